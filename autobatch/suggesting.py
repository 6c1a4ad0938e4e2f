"""Suggest only: a scope in which nothing waits, and that tells what batching would have saved.

For clients it has closed already, so that each call runs as outside any scope: at once, and with a
plain value (with asyncio, when it is awaited). What ran is recorded. No client asks whether
batching is only suggested, so that costs nothing where it is not.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

from autobatch import report, switch
from autobatch.advice import Kind, advise
from autobatch.ambient import current
from autobatch.command import Command
from autobatch.promise import Failure
from autobatch.report import CommandRecord, FlushRecord, Reason, ScopeRecord, counted
from autobatch.scope import OwnScope, dispatch_stray

# Whether scopes suggest where nobody says so.
by_default = switch.is_set("AUTOBATCH_SUGGEST")


class SuggestingScope(OwnScope):
    """A scope whose commands do not wait.

    Attributes:
        record: what was called in it.
        edge: where the program has opened it.
        hears: it has not ended yet.
    """

    recorded = True
    closed = True
    hears = True
    record: ScopeRecord
    edge: Any
    _divided = False

    def start(self, record: ScopeRecord, edge: Any) -> None:
        """Begin to record."""
        self.record = record
        self.edge = edge
        self._values = _Values()
        self._taking = threading.Lock()
        # As long as somebody subscribes, clients tell of what they run. Nobody may have ended it.
        self._subscription = report.subscribe(on_scope=_nothing)
        weakref.finalize(self, self._subscription.cancel).atexit = False

    def take(self, flush: FlushRecord, commands: list[Command]) -> None:
        """Take over the record of commands that left together."""
        for command, made in zip(commands, flush.commands, strict=True):
            made.needs = self._values.sources_of(command.args)
        with self._taking:  # threads may share a scope
            flush.divided, self._divided = self._divided, False
            self.record.add(flush)
            self.stats.took(len(flush.commands))
            self.stats.flushes += 1
            self.stats.round_trips += flush.round_trips
            self.stats.exchanges += flush.exchanges

    def settled(self, command: Command, made: CommandRecord) -> None:
        """Note a value, to know it again if it is an argument later."""
        if self.hears and type(command.outcome) is not Failure:
            self._values.add(command.outcome, made)

    # ---- what would have sent what waits

    def because(self, reason: Reason) -> None:  # noqa: ARG002
        self._divided = True

    def flush(self) -> None:
        self._divided = True

    async def aflush(self) -> None:
        self._divided = True

    def forked(self) -> None:
        super().forked()
        self._taking = threading.Lock()

    # ---- how it ends

    def close(self) -> list[Failure]:
        dispatch_stray()
        failures = super().close()
        self._end()
        return failures

    async def aclose(self, name: str = "a cancelled scope") -> list[Failure]:
        dispatch_stray()
        failures = await super().aclose(name)
        self._end()
        return failures

    def _end(self) -> None:
        if self.hears:
            self.hears = False
            self.record.closed = time.perf_counter()
            self._values = _Values()
            report.publish(self.record)
            self._subscription.cancel()
            self._tell()

    def _tell(self) -> None:
        if self.record.commands and report.logger.isEnabledFor(logging.INFO):
            try:
                report.logger.info("%s", suggestion(self.record))
            except Exception:
                report.logger.exception("a suggestion failed")


def _nothing(_: ScopeRecord) -> None:
    pass


def suggesting_now() -> SuggestingScope | None:
    """Return the ambient scope, if that only suggests."""
    scope = current()
    return scope if isinstance(scope, SuggestingScope) and scope.hears else None


def suggestion(record: ScopeRecord) -> str:
    """Return what batching would have saved in a scope, in lines: a sum, and what to know."""
    advices = [advice for advice in advise(record) if advice.kind is not Kind.DEPENDENCY]
    least = record.round_trips - sum(advice.saved for advice in advices)
    first = (
        f"{record.name}: {counted(record.commands, 'command')} in "
        f"{counted(record.round_trips, 'round trip')}; in a batch, {least} could do"
    )
    return "\n  ".join([first, *map(str, advices)])


class _Values:
    """The values of some commands, and their parts: held, so that each is known by its identity."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, CommandRecord]] = {}

    def add(self, value: Any, made: CommandRecord) -> None:
        """Note a value and its parts."""
        left = [value]
        for thing in left:  # which grows meanwhile
            if len(left) > _PARTS or len(self._known) > _VALUES:
                break
            if isinstance(thing, dict):
                left += [*thing, *thing.values()]
            elif isinstance(thing, (list, tuple, set, frozenset)):
                left += thing
            elif not _is_shared(thing):
                self._known[id(thing)] = thing, made

    def sources_of(self, args: Iterable[object]) -> tuple[CommandRecord, ...]:
        """Return which commands' values some arguments are."""
        found = {}
        for arg in args:
            known = self._known.get(id(arg))
            if known is not None and known[0] is arg:
                found[id(known[1])] = known[1]
        return tuple(found.values())


def _is_shared(thing: object) -> bool:
    """Return whether Python itself may have but one object of this value: that tells nothing."""
    if isinstance(thing, (str, bytes)):
        return len(thing) <= 1
    if isinstance(thing, int):
        return _SMALLEST <= thing <= _GREATEST  # bool, too
    return thing is None


_SMALLEST, _GREATEST = -5, 256
_PARTS = 10_000  # of one value
_VALUES = 100_000
