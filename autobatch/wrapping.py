"""`wrap`: the batching twin of a client that exists."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import redis
import redis.asyncio
import redis.asyncio.cluster

from autobatch import asyncio as autobatch_asyncio
from autobatch import client as autobatch_client
from autobatch import cluster as autobatch_cluster
from autobatch.funnel import Funnel, twin_of

T = TypeVar("T")


@overload
def wrap(client: redis.Redis, *, retry_writes: bool | None = None) -> autobatch_client.Redis: ...


@overload
def wrap(
    client: redis.RedisCluster, *, retry_writes: bool | None = None
) -> autobatch_cluster.RedisCluster: ...


@overload
def wrap(
    client: redis.asyncio.Redis, *, retry_writes: bool | None = None
) -> autobatch_asyncio.Redis: ...


@overload
def wrap(
    client: redis.asyncio.RedisCluster, *, retry_writes: bool | None = None
) -> autobatch_asyncio.RedisCluster: ...


def wrap(client: Any, *, retry_writes: bool | None = None) -> Any:
    """Return the batching twin of a redis-py client.

    It shares the client's connection pool and response callbacks and is of a subclass of its
    class; closing it closes the client. The client itself stays as it was.

    Args:
        client: a `redis.Redis`, `redis.RedisCluster`, `redis.asyncio.Redis` or
            `redis.asyncio.RedisCluster`, or one of a subclass, such as Sentinel's `master_for`
            makes. A client that batches already is returned as it is, and for an eager view the
            client that it shows.
        retry_writes: as for the constructor of `Redis`; by default as the client has it.

    Raises:
        TypeError: it is anything else.
    """
    if isinstance(client, Funnel):
        batching: Any = client.batching
        if retry_writes in (None, batching.retry_writes):
            return batching
        return _twin(batching, type(batching), retry_writes)
    if isinstance(client, PIPELINES):
        raise TypeError("wrap() takes a client; a pipeline is a batch already")
    for kind, twin in TWINS.items():
        if isinstance(client, kind):
            return _twin(client, twin, retry_writes)
    raise TypeError(
        "wrap() takes a redis.Redis, redis.RedisCluster, redis.asyncio.Redis or "
        f"redis.asyncio.RedisCluster, not {type(client).__module__}.{type(client).__name__}"
    )


def _twin(client: object, kind: type[T], retry_writes: bool | None) -> T:  # noqa: FBT001  # as named
    twin: Any = twin_of(client, kind)
    if retry_writes is not None:
        twin.retry_writes = retry_writes
        twin.__dict__.pop("_wire", None)  # a batching client's own
    made: T = twin
    return made


PIPELINES = (
    redis.client.Pipeline,
    redis.cluster.ClusterPipeline,
    redis.asyncio.client.Pipeline,
    redis.asyncio.cluster.ClusterPipeline,
)
TWINS: dict[type, type] = {
    redis.Redis: autobatch_client.Redis,
    redis.RedisCluster: autobatch_cluster.RedisCluster,
    redis.asyncio.Redis: autobatch_asyncio.Redis,
    redis.asyncio.RedisCluster: autobatch_asyncio.RedisCluster,
}
