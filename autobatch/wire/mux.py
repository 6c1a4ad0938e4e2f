"""Asyncio's wire to one server: where the connections live that all tasks of a loop share.

Each event loop has connections of its own, which end with it; a client outlives them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import redis
from redis.asyncio import ConnectionPool

from autobatch.batch import Batch
from autobatch.command import Command, Script
from autobatch.promise import Failure
from autobatch.wire import connection as greeted
from autobatch.wire.server import server_of
from autobatch.wire.shared import PATIENCE, PORTION, Link
from autobatch.wire.tick import Tick, tick_of


class Wire:
    """Where the batches of one asyncio client travel: connections that its tasks share.

    Attributes:
        server: equal for wires to the same data.
        lanes: how many connections it has in each event loop.
        retry_writes: what may have run is sent again even if it writes.
        pack, pack_fast, decodes, decode, scripts: as on a synchronous client's wire.
    """

    asynchronous = True
    divides = False

    def __init__(self, pool: ConnectionPool, lanes: int = 1, *, retry_writes: bool = False) -> None:
        self.lanes = lanes
        self.retry_writes = retry_writes
        self.server = server_of(pool)
        self.pack, self.pack_fast = greeted.packers(pool, own_encoding=True)
        encoder = pool.get_encoder()
        self.decodes: bool = encoder.decode_responses
        self.decode = greeted.decoder(encoder)
        self.scripts: dict[str, Script] = {}
        self._pool = pool
        self._homes: weakref.WeakSet[_Home] = weakref.WeakSet()

    def problem_of(self, _: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction: on one server they can."""
        return None

    def submit(self, batch: Batch, lane: int, landed: Callable[[], None]) -> int:
        """Hand a batch over to the running loop's connection, which writes it very soon.

        Args:
            batch: what to send.
            lane: which of the connections; the batches of one lane keep their order.
            landed: called once every command of the batch is settled.

        Returns:
            How many exchanges that takes.
        """
        link = self.at_home().link(lane % self.lanes)
        portions = batch.portions(PORTION)
        left = len(portions)
        if left == 1:
            link.submit(batch, landed)
            return 1

        def one_landed() -> None:
            nonlocal left
            left -= 1
            if not left:
                landed()

        for portion in portions:
            link.submit(portion, one_landed)
        return len(portions)

    def at_home(self) -> _Home:
        """Return what this wire has in the running loop; that ends when the loop ends."""
        tick = tick_of(asyncio.get_running_loop())
        home: _Home | None = tick.homes.get(self)
        if home is None:
            home = tick.homes[self] = _Home(self._pool, tick)
            self._homes.add(home)
        return home

    def doubt(self) -> None:
        """Watch the running loop's connections: somebody has stopped waiting for one."""
        loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
        home: _Home | None = None if loop is None else tick_of(loop).homes.get(self)
        if home is not None:
            home.doubt()

    def abandon(self) -> None:
        """Close the connections of a client that was forgotten; from any thread."""
        for home in list(self._homes):
            self._homes.discard(home)
            home.abandon()

    async def call(
        self, command: Command, connection: Any = None, lock: asyncio.Lock | None = None
    ) -> Any:
        """Run one command on a connection that it has for itself, and return its value.

        Args:
            command: what to run.
            connection: which to use, instead of one of the pool.
            lock: who uses that connection.
        """
        await self.run(command, connection, lock)
        return await value_of(command)

    async def run(
        self,
        command: Command,
        connection: Any = None,
        lock: asyncio.Lock | None = None,
        *,
        ask: bool = False,
    ) -> None:
        """Do the same, and only settle the command; with `ask` behind an ASKING."""
        self.at_home()
        async with lock or contextlib.nullcontext():
            borrowed = connection is None
            if borrowed:
                try:
                    connection = await self._borrow()
                except Exception as error:
                    command.not_sent("no connection", error)
                    return
            try:
                await greeted.exchange_one(connection, command, ask=ask)
            finally:
                if borrowed:
                    await self._pool.release(connection)

    async def _borrow(self) -> Any:
        """Return a connection of the pool."""
        connection = None
        try:
            connection = await self._pool.get_connection()
            if greeted.is_closed(connection):  # by the server, while it was idle
                await connection.disconnect()
                await connection.connect()
        except redis.RedisError:
            if connection is not None:
                await self._pool.release(connection)
            raise
        except BaseException:
            # Of the program's own, or a cancellation: the connection may not be logged in, or
            # have replies to its greeting unread.
            if connection is None:  # redis-py has taken it back as it is
                with contextlib.suppress(redis.RedisError, OSError, RuntimeError):
                    await greeted.close_idle(self._pool)
            else:
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
            raise
        return connection

    async def landed(self) -> None:
        """Wait until everything that was handed over by now in the running loop has landed."""
        home: _Home | None = tick_of(asyncio.get_running_loop()).homes.get(self)
        if home is not None:
            await home.landed()

    async def close(self) -> None:
        """Close the connections of the running loop, after what is on its way has landed."""
        home: _Home | None = tick_of(asyncio.get_running_loop()).homes.pop(self, None)
        if home is not None:
            await home.close()


async def value_of(command: Command) -> Any:
    """Return the value of a settled command, or raise its error."""
    value = command.outcome
    if type(value) is Failure:
        raise value.error
    return await value if inspect.isawaitable(value) else value


class _Home:
    """What a wire has in one event loop: its shared connections, and a word when the loop ends."""

    def __init__(self, pool: ConnectionPool, tick: Tick) -> None:
        # Weakly, or a client that is forgotten would be kept by its own connections.
        self._pool = weakref.ref(pool)
        self._tick = tick
        self._patience = pool.connection_kwargs.get("socket_timeout") or PATIENCE
        self._links: dict[int, Link] = {}
        self._finished = False
        # A loop that ends closes its asynchronous generators, while it still runs. That is the
        # only word of it that we get. It counts from the first step on, which takes no waiting.
        self._keeper = self._keep()
        with contextlib.suppress(StopIteration):
            anext(self._keeper).__await__().send(None)

    def link(self, lane: int) -> Link:
        """Return the connection of one lane."""
        link = self._links.get(lane)
        if link is None or link.gone:
            pool = self._pool()
            assert pool is not None  # whoever asks holds it
            unwanted = link is not None
            link = self._links[lane] = Link(pool, self._tick)
            link.unwanted = unwanted
        return link

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._finish()

    async def _finish(self) -> None:
        """Close everything; what was called in the last tick is sent before that."""
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.landed(), self._patience)
        for link in self._links.values():
            link.shut()
        connecting = [
            link.connecting for link in self._links.values() if link.connecting is not None
        ]
        await asyncio.gather(*connecting, return_exceptions=True)
        pool = self._pool()
        if pool is not None:
            await pool.disconnect(inuse_connections=False)
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    async def landed(self) -> None:
        """Wait until everything that was handed over by now has landed."""
        for link in list(self._links.values()):
            await link.landed()

    def doubt(self) -> None:
        """Give up connections that stay silent, also without a `socket_timeout`."""
        for link in self._links.values():
            link.doubt()

    async def close(self) -> None:
        """Close everything, after what is on its way has landed."""
        await self._finish()
        await self._keeper.aclose()

    def abandon(self) -> None:
        """Close the shared connections as soon as nothing is on its way; from any thread."""
        if not self._tick.loop.is_closed():
            self._tick.loop.call_soon_threadsafe(self._shut_when_idle)

    def _shut_when_idle(self) -> None:
        # No task for it: the loop may be about to end.
        for link in self._links.values():
            link.shut_when_idle()
