"""The asyncio client of a cluster, and its eager view."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, overload

import redis.asyncio

from autobatch import report
from autobatch.ambient import Scope, current, open_scope
from autobatch.async_funnel import AsyncEager, AsyncFunnel
from autobatch.cluster import TARGET, Call, Clustered, Finish, needs_nodes
from autobatch.funnel import BatchingScript, Funnel, names_himport
from autobatch.future import AsyncFuture
from autobatch.keys import ONE_KEY
from autobatch.recording import ran_alone, stray_scope
from autobatch.scope import StrayScope, astep_aside
from autobatch.wire.cluster_mux import Wire
from autobatch.wire.server import wires_of

if TYPE_CHECKING:
    from autobatch.funnel import constructed_as


class ClusteredAsynchronous(AsyncFunnel, Clustered):
    """What makes a cluster's asyncio client batch, whichever library it is of."""

    _wire_type: ClassVar[type[Any]] = Wire

    @property
    def _home(self) -> Any:
        return self.root

    @functools.cached_property
    def _wire(self) -> Wire:
        retry_writes = self.retry_writes
        wire: Wire = wires_of(self._home).setdefault(
            retry_writes, self._wire_type(self, self._lanes, retry_writes=retry_writes)
        )
        owner = self if self._origin is None else self._origin
        if isinstance(owner, self._plain_type):
            weakref.finalize(owner, wire.abandoning()).atexit = False
        return wire

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command and return its Future.

        Raises:
            redis.DataError: an argument cannot be sent.
            redis.exceptions.RedisClusterException: its keys belong to different slots.
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
        if args[0] in ONE_KEY and len(args) > 1 and TARGET not in options:
            return self._queue(scope, args, options)
        if not self.nodes_manager.slots_cache and needs_nodes(self, args, options):
            return self._when_initialized(args, options)
        return self._queue_routed(scope, args, options)

    async def initialize(self, *args: Any, **kwargs: Any) -> Any:
        """Look at the cluster, if need be, as redis-py's client does."""
        plain: Any = super()
        async with self._wire.looking():
            return await plain.initialize(*args, **kwargs)

    async def _when_initialized(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # The first call of all, of a command that goes to certain nodes: which are there?
        await self._wire.initialize()
        return await self.execute_command(*args, **options)

    def _queue_unknown(self, scope: Scope, call: Call) -> Any:
        return self._find_and_run(scope, call)

    async def _find_and_run(self, scope: Scope, call: Call) -> Any:
        if call.of_search:
            if not isinstance(scope, StrayScope):
                await scope.astep_aside()
            plain: Any = super(Funnel, self)
            return await plain.execute_command(*call.args, **call.options)
        await self._wire.initialize()
        client: Any = self
        call.place(await client._determine_slot(*call.args))
        return await self._queue_call(scope, call)

    def _together(self, values: list[Any], function: Finish) -> Any:
        if values and type(values[0]) is AsyncFuture:
            return super()._together(values, function)
        return self._gathered(values, function)

    async def _gathered(self, values: list[Any], function: Finish) -> Any:
        return function(list(await asyncio.gather(*values)))

    def _run_alone(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return self._step_aside(scope, args, options)

    async def _step_aside(
        self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if not isinstance(scope, StrayScope):
            await scope.astep_aside()
        await astep_aside(self.root)
        await self._wire.initialize()
        if names_himport(args[0]):
            plain: Any = super(Funnel, self)
            return await plain.execute_command(*args, **options)
        call = Call(self, args, options)
        commands = call.commands(None)
        began = time.perf_counter()
        try:
            values = await asyncio.gather(*map(self._wire.call, commands))
        finally:
            if report.listening or current() is not None:
                ran_alone(commands, began)
        if call.traits.name == "SCRIPT LOAD":
            self._know_script(call.args[-1])
        return call.finish(list(values))

    async def aclose(self) -> None:
        """Send what waits, then close the connections, as redis-py's client does."""
        await self._take_leave()
        if self._origin is not None:
            await self._origin.aclose()
        else:
            plain: Any = super()
            await plain.aclose()


class ClusteredAsynchronousEager(AsyncEager, ClusteredAsynchronous):
    """What makes a cluster's asyncio client the eager view of one that batches."""

    async def _eagerly(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        scope = open_scope()
        if scope is not None:
            await scope.astep_aside()
        if not self.nodes_manager.slots_cache and needs_nodes(self, args, options):
            await self._wire.initialize()
        return await self._queue_routed(stray_scope(asyncio.get_running_loop()), args, options)


class RedisCluster(ClusteredAsynchronous, redis.asyncio.RedisCluster):  # type: ignore[misc]  # redis-py's own
    """redis-py's asyncio client of a cluster, batching: every call returns a Future at once.

    Each node has one connection that all tasks of an event loop share. Otherwise as
    `autobatch.asyncio.Redis` and `autobatch.RedisCluster`.
    """

    _plain_type = redis.asyncio.RedisCluster
    _script_type = BatchingScript

    if TYPE_CHECKING:  # redis-py's arguments, and ours

        @overload
        @constructed_as(redis.asyncio.RedisCluster.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, lanes: int, **kwargs: Any) -> None: ...
        @overload
        def __init__(self, *args: Any, retry_writes: bool, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class EagerRedisCluster(ClusteredAsynchronousEager, RedisCluster):  # type: ignore[misc]
    """The plain view of a batching asyncio cluster client: `client.eager`."""


RedisCluster._eager_type = EagerRedisCluster
