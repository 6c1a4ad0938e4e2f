"""What redis-py does on a connection of its own: it comes after what waits.

Explicit pipelines, pub/sub and MONITOR take a connection from the pool themselves. Each is
redis-py's own object, of a subclass that first sends what waits in the ambient scope.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, TypeVar

import redis.asyncio
import redis.asyncio.cluster
from redis.client import Monitor, Pipeline, PubSub
from redis.cluster import ClusterPipeline, ClusterPubSub

from autobatch.future import unwrap
from autobatch.scope import astep_aside, step_aside

T = TypeVar("T")


# What the classes here are mixed into: which, only `_aside_class` knows.
_Base: Any = object


class _Pipeline(_Base):  # type: ignore[misc]
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*map(unwrap, args), **options)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        step_aside()
        return super().immediate_execute_command(*args, **options)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        return super().execute(*args, **kwargs)


class _ClusterPipeline(_Base):  # type: ignore[misc]
    _watching = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._watching:  # perhaps it runs at once
            step_aside()
        return super().execute_command(*map(unwrap, args), **options)

    def watch(self, *names: Any) -> Any:
        step_aside()
        self._watching = True
        return super().watch(*names)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        self._watching = False
        return super().execute(*args, **kwargs)

    def reset(self) -> None:
        self._watching = False
        super().reset()


class _PubSub(_Base):  # type: ignore[misc]
    def execute_command(self, *args: Any) -> Any:
        step_aside()
        return super().execute_command(*map(unwrap, args))

    def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()  # what waits may be the very message
        return super().parse_response(*args, **kwargs)


class _ClusterPubSub(_PubSub):
    def ssubscribe(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        return super().ssubscribe(*args, **kwargs)

    def get_sharded_message(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()  # it reads from a node's own pub/sub
        return super().get_sharded_message(*args, **kwargs)


class _Monitor(_Base):  # type: ignore[misc]
    def __enter__(self) -> Any:
        step_aside()
        return super().__enter__()

    def next_command(self) -> Any:
        step_aside()
        return super().next_command()


class _AsyncPipeline(_Base):  # type: ignore[misc]
    connection_pool: Any

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*map(unwrap, args), **options)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().immediate_execute_command(*args, **options)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().execute(*args, **kwargs)


class _AsyncClusterPipeline(_Base):  # type: ignore[misc]
    __slots__ = ()  # as redis-py's has

    cluster_client: Any

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = super().execute_command(*map(unwrap, args), **options)
        return self._behind(answer) if inspect.iscoroutine(answer) else answer

    async def _behind(self, answer: Any) -> Any:
        await astep_aside(_root_of(self))
        return await answer

    async def watch(self, *names: Any) -> Any:
        await astep_aside(_root_of(self))
        return await super().watch(*names)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(_root_of(self))
        return await super().execute(*args, **kwargs)


def _root_of(pipeline: Any) -> Any:
    client: Any = getattr(pipeline, "cluster_client", None) or getattr(pipeline, "_client", None)
    return client.root if hasattr(client, "root") else client  # one that was instrumented


class _AsyncPubSub(_Base):  # type: ignore[misc]
    connection_pool: Any

    async def execute_command(self, *args: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().execute_command(*map(unwrap, args))

    async def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().parse_response(*args, **kwargs)


class _AsyncClusterPubSub(_AsyncPubSub):
    async def ssubscribe(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside()
        return await super().ssubscribe(*args, **kwargs)

    async def get_sharded_message(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside()
        return await super().get_sharded_message(*args, **kwargs)


class _AsyncMonitor(_Base):  # type: ignore[misc]
    connection_pool: Any

    async def __aenter__(self) -> Any:
        await astep_aside(self.connection_pool)
        return await super().__aenter__()

    async def next_command(self) -> Any:
        await astep_aside(self.connection_pool)
        return await super().next_command()


_MIXINS: dict[type, type] = {
    Pipeline: _Pipeline,
    ClusterPipeline: _ClusterPipeline,
    ClusterPubSub: _ClusterPubSub,
    PubSub: _PubSub,
    Monitor: _Monitor,
    redis.asyncio.client.Pipeline: _AsyncPipeline,
    redis.asyncio.cluster.ClusterPipeline: _AsyncClusterPipeline,
    **(
        {redis.asyncio.cluster.ClusterPubSub: _AsyncClusterPubSub}
        if hasattr(redis.asyncio.cluster, "ClusterPubSub")  # not in redis-py 7.0
        else {}
    ),
    redis.asyncio.client.PubSub: _AsyncPubSub,
    redis.asyncio.client.Monitor: _AsyncMonitor,
}


def add_library(name: str) -> None:
    """Know the classes of a fork of redis-py, an imported package, by their counterparts."""
    for base, mixin in list(_MIXINS.items()):
        module = sys.modules.get(base.__module__.replace("redis", name, 1))
        fork = getattr(module, base.__name__, None)
        if fork is not None:
            _MIXINS.setdefault(fork, mixin)


def aside(thing: T) -> T:
    """Make a pipeline, pub/sub or monitor of redis-py flush first what waits; return it."""
    kind: Any = type(thing)
    thing.__class__ = _aside_class(kind)
    return thing


@functools.cache  # bounded by the number of such classes
def _aside_class(kind: Any) -> Any:
    mixin = next(mixin for base, mixin in _MIXINS.items() if issubclass(kind, base))
    if issubclass(kind, mixin):
        return kind
    members: dict[str, Any] = {"__module__": kind.__module__}
    if "__slots__" in mixin.__dict__:
        members["__slots__"] = ()
    return type(kind.__name__, (mixin, kind), members)


def aside_module(namespace: Any) -> Any:
    """Make the pipelines of a module's namespace, such as `client.json()`, flush first."""
    pipeline = namespace.pipeline
    namespace.pipeline = lambda *args, **kwargs: aside(pipeline(*args, **kwargs))
    return namespace
