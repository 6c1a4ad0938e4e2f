"""The end of an event loop's tick, where everything that is ready by then leaves together.

One tick of the loop runs all callbacks that are ready: every task that can go on goes on to its
next `await`. What they ask for meanwhile is collected, and sent in the next turn of the loop, by
one callback for all clients, scopes and tasks: so 50 tasks that each await a reply share one write.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Protocol

from autobatch.promise import run_all


class Dispatcher(Protocol):
    """What can hand its waiting commands over to the connections: a scope."""

    def dispatch(self) -> None:
        """Hand them over, without waiting for anything."""


class Pump(Protocol):
    """What has handed-over commands to write: a shared connection."""

    def pump(self) -> None:
        """Write what can be written now."""


class Tick:
    """The work that one event loop has to do when its tick ends.

    Attributes:
        loop: whose tick.
        homes: what each wire has in this loop.
        stray: the scope of commands that are called outside any scope.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.homes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.stray: Any = None
        self._dispatchers: list[Dispatcher] = []
        self._pumps: dict[Pump, None] = {}  # each once, in order

    def at_end(self, dispatcher: Dispatcher) -> None:
        """Let `dispatcher` hand over what waits when the tick ends."""
        if not self._dispatchers:
            self.loop.call_soon(self._end)
        self._dispatchers.append(dispatcher)

    def write_soon(self, pump: Pump) -> None:
        """Let `pump` write, after everything that is handed over at the same time."""
        if not self._pumps and not self._ending:
            self.loop.call_soon(self._write)
        self._pumps[pump] = None

    _ending = False

    def _end(self) -> None:
        dispatchers, self._dispatchers = self._dispatchers, []
        self._ending = True
        try:
            run_all(lambda dispatcher: dispatcher.dispatch(), dispatchers)
        finally:
            self._ending = False
            self._write()

    def _write(self) -> None:
        pumps, self._pumps = self._pumps, {}
        run_all(lambda pump: pump.pump(), pumps)


def tick_of(loop: asyncio.AbstractEventLoop) -> Tick:
    """Return the one Tick of a loop. It is kept on the loop itself, and goes when the loop goes."""
    tick: Tick | None = getattr(loop, "_autobatch_tick", None)
    if tick is None:
        tick = Tick(loop)
        loop._autobatch_tick = tick  # type: ignore[attr-defined]  # noqa: SLF001
    return tick
