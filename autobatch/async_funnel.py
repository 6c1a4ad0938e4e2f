"""What the asyncio clients of a server and those of a cluster have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from autobatch.funnel import Eager, Funnel
from autobatch.future import AsyncFuture
from autobatch.scope import aflush
from autobatch.wire.server import wires_of


class AsyncFunnel(Funnel):
    """How calls of an asyncio client are queued, whatever it leads to."""

    # What is such a client of that library.
    _plain_type: ClassVar[type[Any]]
    _script_type: ClassVar[type[Any]]
    _future_type = AsyncFuture
    _lanes = 1

    execute_command: Any

    def __init__(self, *args: Any, lanes: int = 1, **kwargs: Any) -> None:
        """Create a client.

        Args:
            args: as for redis-py's client.
            lanes: how many connections to each server its tasks share in each event loop. A scope
                stays on one of them, so a slow batch holds up only the scopes on its lane.
            kwargs: as for redis-py's client, and `retry_writes` as for the synchronous one.
        """
        lanes = checked_lanes(lanes)
        super().__init__(*args, **kwargs)
        self._lanes = lanes

    @property
    def _home(self) -> Any:
        """What its wires are kept on: whatever shares that shares them."""
        raise NotImplementedError

    async def _in_a_loop(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # For asyncio.run(client.get("key")): called before there is a loop.
        asyncio.get_running_loop()  # raises where there is still none: that would never end
        return await self.execute_command(*args, **options)

    # A type checker goes on seeing redis-py's signatures.
    if not TYPE_CHECKING:

        def register_script(self, script):
            self._know_script(script)
            return self._script_type(self, script)

        def _aside(self, thing):
            if asyncio._get_running_loop() is not None:
                self._wire.at_home()  # closes the connections of its own when the loop ends
            return super()._aside(thing)

    async def _take_leave(self) -> None:
        """Send what waits, then close the connections that tasks share."""
        await aflush()
        for wire in list(wires_of(self._home).values()):
            await wire.close()

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        # A twin must not close, nor warn of, what it shares.
        if self._origin is None:
            plain: Any = super()
            plain.__del__(*args, **kwargs)


class AsyncEager(Eager, AsyncFunnel):
    """What the eager views of asyncio clients have in common."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self._eagerly(args, options)

    async def _eagerly(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Send what waits, then run a command."""
        raise NotImplementedError


def checked_lanes(lanes: int) -> int:
    """Return how many lanes were asked for.

    Raises:
        ValueError: not even one.
    """
    if lanes < 1:
        raise ValueError("lanes must be at least 1")
    return lanes
