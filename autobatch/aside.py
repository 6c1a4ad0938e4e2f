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


class _Pipeline:
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*map(unwrap, args), **options)  # type: ignore[misc]

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        step_aside()
        return super().immediate_execute_command(*args, **options)  # type: ignore[misc]

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        return super().execute(*args, **kwargs)  # type: ignore[misc]


class _ClusterPipeline:
    _watching = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._watching:  # perhaps it runs at once
            step_aside()
        return super().execute_command(*map(unwrap, args), **options)  # type: ignore[misc]

    def watch(self, *names: Any) -> Any:
        step_aside()
        self._watching = True
        return super().watch(*names)  # type: ignore[misc]

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        self._watching = False
        return super().execute(*args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        self._watching = False
        super().reset()  # type: ignore[misc]


class _PubSub:
    def execute_command(self, *args: Any) -> Any:
        step_aside()
        return super().execute_command(*map(unwrap, args))  # type: ignore[misc]

    def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()  # what waits may be the very message
        return super().parse_response(*args, **kwargs)  # type: ignore[misc]


class _ClusterPubSub(_PubSub):
    def ssubscribe(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()
        return super().ssubscribe(*args, **kwargs)  # type: ignore[misc]

    def get_sharded_message(self, *args: Any, **kwargs: Any) -> Any:
        step_aside()  # it reads from a node's own pub/sub
        return super().get_sharded_message(*args, **kwargs)  # type: ignore[misc]


class _Monitor:
    def __enter__(self) -> Any:
        step_aside()
        return super().__enter__()  # type: ignore[misc]

    def next_command(self) -> Any:
        step_aside()
        return super().next_command()  # type: ignore[misc]


class _AsyncPipeline:
    connection_pool: Any

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*map(unwrap, args), **options)  # type: ignore[misc]

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().immediate_execute_command(*args, **options)  # type: ignore[misc]

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().execute(*args, **kwargs)  # type: ignore[misc]


class _AsyncClusterPipeline:
    __slots__ = ()  # as redis-py's has

    cluster_client: Any

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = super().execute_command(*map(unwrap, args), **options)  # type: ignore[misc]
        return self._behind(answer) if inspect.iscoroutine(answer) else answer

    async def _behind(self, answer: Any) -> Any:
        await astep_aside(_root_of(self))
        return await answer

    async def watch(self, *names: Any) -> Any:
        await astep_aside(_root_of(self))
        return await super().watch(*names)  # type: ignore[misc]

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(_root_of(self))
        return await super().execute(*args, **kwargs)  # type: ignore[misc]


def _root_of(pipeline: Any) -> Any:
    client: Any = getattr(pipeline, "cluster_client", None) or getattr(pipeline, "_client", None)
    return client.root if hasattr(client, "root") else client  # one that was instrumented


class _AsyncPubSub:
    connection_pool: Any

    async def execute_command(self, *args: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().execute_command(*map(unwrap, args))  # type: ignore[misc]

    async def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside(self.connection_pool)
        return await super().parse_response(*args, **kwargs)  # type: ignore[misc]


class _AsyncClusterPubSub(_AsyncPubSub):
    async def ssubscribe(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside()
        return await super().ssubscribe(*args, **kwargs)  # type: ignore[misc]

    async def get_sharded_message(self, *args: Any, **kwargs: Any) -> Any:
        await astep_aside()
        return await super().get_sharded_message(*args, **kwargs)  # type: ignore[misc]


class _AsyncMonitor:
    connection_pool: Any

    async def __aenter__(self) -> Any:
        await astep_aside(self.connection_pool)
        return await super().__aenter__()  # type: ignore[misc]

    async def next_command(self) -> Any:
        await astep_aside(self.connection_pool)
        return await super().next_command()  # type: ignore[misc]


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
