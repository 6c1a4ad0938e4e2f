"""The asyncio client, and its eager view."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import weakref
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, overload

import redis.asyncio

from autobatch import report
from autobatch.ambient import Scope, current, open_scope
from autobatch.async_funnel import AsyncEager, AsyncFunnel, checked_lanes
from autobatch.asyncio_cluster import RedisCluster
from autobatch.command import Command
from autobatch.funnel import BatchingScript, names_himport, without_futures
from autobatch.future import AsyncFuture, arrival
from autobatch.recording import ran_alone, stray_scope
from autobatch.resolve import replace, survey
from autobatch.scope import StrayScope, astep_aside
from autobatch.scope import aflush as flush
from autobatch.wire.mux import Wire
from autobatch.wire.server import wires_of

if TYPE_CHECKING:
    from autobatch.funnel import constructed_as

__all__ = ["Redis", "RedisCluster", "flush", "resolve"]

T = TypeVar("T")


class Asynchronous(AsyncFunnel):
    """What makes an asyncio client batch, whichever library it is of."""

    _wire_type: ClassVar[type[Wire]] = Wire

    @classmethod
    def from_url(cls, url: str, *args: Any, lanes: int = 1, **kwargs: Any) -> Self:
        """Return a client for a URL, as redis-py's client does, with the constructor's options."""
        lanes = checked_lanes(lanes)
        client: Any = super().from_url(url, *args, **kwargs)
        client._lanes = lanes
        made: Self = client
        return made

    @property
    def _home(self) -> Any:
        client: Any = self
        return client.connection_pool

    @functools.cached_property
    def _wire(self) -> Wire:
        client: Any = self
        pool, retry_writes = client.connection_pool, self.retry_writes
        wire: Wire = wires_of(pool).setdefault(
            retry_writes, self._wire_type(pool, self._lanes, retry_writes=retry_writes)
        )
        owner = self if self._origin is None else self._origin
        if isinstance(owner, self._plain_type) and owner.auto_close_connection_pool:
            # If that is forgotten without closing it, nobody can use its pool any more.
            weakref.finalize(owner, wire.abandon).atexit = False
        return wire

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command and return its Future.

        Raises:
            redis.DataError: an argument cannot be sent.
            NotReady: an argument is a Future that has no value yet.
        """
        scope = current()
        if scope is None or scope.closed:
            loop = asyncio._get_running_loop()
            if loop is None:
                return self._in_a_loop(args, options)
            scope = stray_scope(loop)
        elif scope.loop is None:
            scope.loop = asyncio._get_running_loop()
        client: Any = self
        if client.single_connection_client:
            return self._run_alone(scope, args, options)
        if self._awaited and str(args[0]).upper() in self._awaited:
            return _twice(self._queue(scope, args, options))
        return self._queue(scope, args, options)

    @functools.cached_property
    def _awaited(self) -> frozenset[str]:
        """The commands whose response callbacks are coroutine functions."""
        if isinstance(self._origin, Asynchronous):
            return self._origin._awaited
        callbacks = self.response_callbacks.items()
        return frozenset(name for name, one in callbacks if inspect.iscoroutinefunction(one))

    def set_response_callback(self, command: str, callback: Any) -> None:
        """Set a response callback, as on redis-py's client; it may be a coroutine function."""
        plain: Any = super()
        plain.set_response_callback(command, callback)
        client: Any = self
        while isinstance(client, Asynchronous):
            client.__dict__.pop("_awaited", None)
            client = client._origin

    def _run_alone(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return self._step_aside(scope, without_futures(args), options)

    async def _step_aside(
        self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if not isinstance(scope, StrayScope):
            await scope.astep_aside()
        client: Any = self
        await astep_aside(client.connection_pool)
        if names_himport(args[0]):
            plain: Any = super()
            return await plain.execute_command(*args, **options)
        command = self._command(Command, args, options, None)
        began = time.perf_counter()
        try:
            if client.single_connection_client:
                await client.initialize()
                value = await self._wire.call(command, client.connection, client._single_conn_lock)
            else:
                value = await self._wire.call(command)
        finally:
            if report.listening or current() is not None:
                ran_alone([command], began)
        if command.traits.name == "SCRIPT LOAD":
            self._know_script(args[-1])
        return value

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001  # redis-py's
        """Send what waits, then close the connections, as redis-py's client does."""
        if self._origin is not None:
            await self._take_leave()
            await self._origin.aclose(close_connection_pool)
            return
        client: Any = self
        plain: Any = super()
        closes = close_connection_pool is None and client.auto_close_connection_pool
        await (self._take_leave() if close_connection_pool or closes else flush())
        await plain.aclose(close_connection_pool)


async def _twice(reply: Awaitable[Any]) -> Any:
    # A batch settles without awaiting anything: its value is what the callback has to do still.
    value = await reply
    return await value if inspect.isawaitable(value) else value


class AsynchronousEager(AsyncEager, Asynchronous):
    """What makes an asyncio client the eager view of one that batches."""

    async def _eagerly(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        scope = open_scope()
        if scope is not None:
            await scope.astep_aside()
        stray = stray_scope(asyncio.get_running_loop())
        client: Any = self
        if client.single_connection_client:
            return await self._run_alone(stray, args, options)
        reply = self._queue(stray, args, options)
        return await (_twice(reply) if str(args[0]).upper() in self._awaited else reply)


class Redis(Asynchronous, redis.asyncio.Redis):  # type: ignore[misc]  # redis-py's own bases
    """redis-py's asyncio client, batching: every call returns a Future at once.

    Constructor, `from_url`, methods and types are redis-py's. Awaiting a Future sends what waits
    at the end of the event loop's tick, together with what other tasks have called by then, on
    one connection that they share. A command that nobody awaits is sent, too: inside a scope at
    its end, outside a scope at the end of the tick.
    """

    _plain_type = redis.asyncio.Redis
    _script_type = BatchingScript

    if TYPE_CHECKING:  # redis-py's arguments, and ours

        @overload
        @constructed_as(redis.asyncio.Redis.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, lanes: int, **kwargs: Any) -> None: ...
        @overload
        def __init__(self, *args: Any, retry_writes: bool, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class EagerRedis(AsynchronousEager, Redis):  # type: ignore[misc]
    """The plain view of a batching asyncio client: `client.eager`."""


Redis._eager_type = EagerRedis


async def resolve(structure: T) -> T:
    """Do as `autobatch.resolve` does, without blocking the event loop.

    What waits is sent and awaited first, that of synchronous clients in a thread.

    Args:
        structure: as for `autobatch.resolve`.

    Raises:
        Exception: the error of the first command that failed.
    """
    scope = open_scope()
    if scope is not None and scope.busy:
        await scope.aflush()
    found = survey(structure)
    for future in found.futures:
        # What functions given to map() have called comes in later waves.
        while not future.done() and scope is not None and scope.busy:
            await scope.aflush()
        if type(future) is AsyncFuture:
            await arrival(future)
    return replace(structure, found)
