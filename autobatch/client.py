"""The synchronous client, and its eager view."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import redis
from redis.connection import ConnectionPool

from autobatch import report
from autobatch.ambient import Scope, current
from autobatch.command import Command, spelled_out, traits_of
from autobatch.funnel import Eager, names_himport, without_futures
from autobatch.recording import ran_alone
from autobatch.scope import step_aside
from autobatch.sync_funnel import SyncFunnel
from autobatch.wire.server import wires_of
from autobatch.wire.sync import Wire, call

if TYPE_CHECKING:
    from autobatch.funnel import constructed_as


class Synchronous(SyncFunnel):
    """What makes a synchronous client batch, whichever library it is of."""

    @functools.cached_property
    def _wire(self) -> Wire:
        client: Any = self
        pool, retry_writes = client.connection_pool, self.retry_writes
        if client.connection is not None:
            lock = client.single_connection_lock
            return Wire(pool, client.connection, lock, retry_writes=retry_writes)
        wire: Wire = wires_of(pool).setdefault(retry_writes, Wire(pool, retry_writes=retry_writes))
        return wire

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command and return its Future; outside a scope run it and return its value.

        Raises:
            redis.DataError: an argument cannot be sent.
        """
        scope = current()
        if scope is None or scope.closed:
            return self._run_now(args, options)
        return self._queue(scope, args, options)

    def _run_alone(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        scope.step_aside()
        return self._run_now(args, options)

    def _run_now(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        plain: Any = super()
        return plain.execute_command(*args, **options)

    # redis-py's execute_command, which instrumentation libraries hook into, ends here. Below it
    # redis-py would send a write again whose reply was lost; our own wire does not.
    def _execute_command(self, *args: Any, **options: Any) -> Any:
        command = None if self._caches else self._plain_command(args, options)
        if command is None:
            args = without_futures(args)
            if self._from_cache(args) or names_himport(args[0]):
                plain: Any = super()
                return plain._execute_command(*args, **options)
            command = self._command(Command, args, options, None)
        began = time.perf_counter()
        try:
            value = call(command)
        finally:
            if report.listening or current() is not None:
                ran_alone([command], began, through_redis_py=True)
        if command.traits.name == "SCRIPT LOAD":
            self._know_script(args[-1])
        return value

    def _from_cache(self, args: tuple[Any, ...]) -> bool:
        """Return whether the client-side cache may have the answer.

        What it has not is asked for by redis-py, again and again if need be: only what reads.
        """
        return self._caches and traits_of(spelled_out(args)).read_only

    @functools.cached_property
    def _caches(self) -> bool:
        client: Any = self
        return getattr(client.connection_pool, "cache", None) is not None


class SynchronousEager(Eager, Synchronous):
    """What makes a synchronous client the eager view of one that batches."""

    # Of what one is the view that was made by its constructor.
    _batching_type: ClassVar[type[Any]]

    @property
    def batching(self) -> Any:
        if self._origin is not None:
            return self._origin
        # It was made by its constructor: no class of its own may come first here.
        batching = object.__new__(self._batching_type)
        batching.__dict__.update(self.__dict__)
        batching._origin = self
        return batching

    def execute_command(self, *args: Any, **options: Any) -> Any:
        step_aside()
        return self._run_now(args, options)


class Redis(Synchronous, redis.Redis):
    """redis-py's client, batching: inside a scope every call returns a Future at once.

    Constructor, `from_url`, methods and types are redis-py's. Outside a scope a call runs at
    once and returns the plain value. A write whose reply was lost is never sent again, unless
    `retry_writes=True` asks for it.

    Attributes:
        retry_writes: as given to the constructor.
    """

    if TYPE_CHECKING:  # redis-py's arguments, and ours; its stubs say redis.Redis

        @overload
        @constructed_as(redis.Redis.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, retry_writes: bool, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        @classmethod
        def from_pool(cls, connection_pool: ConnectionPool) -> Self: ...


class EagerRedis(SynchronousEager, Redis):
    """The plain view of a batching client: `client.eager`.

    Where a library's settings take a class of clients by its name, they take this one.
    """

    _batching_type = Redis


Redis._eager_type = EagerRedis
