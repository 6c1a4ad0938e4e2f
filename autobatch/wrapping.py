"""`wrap`: the batching twin of a client that exists."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, overload

import redis
import redis.asyncio
import redis.asyncio.cluster

from autobatch import asyncio as autobatch_asyncio
from autobatch import client as autobatch_client
from autobatch import cluster as autobatch_cluster
from autobatch.funnel import Funnel, twin_of

if TYPE_CHECKING:
    import valkey
    import valkey.asyncio

    from autobatch import valkey as autobatch_valkey

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


@overload
def wrap(client: valkey.Valkey, *, retry_writes: bool | None = None) -> autobatch_valkey.Valkey: ...


@overload
def wrap(
    client: valkey.asyncio.Valkey, *, retry_writes: bool | None = None
) -> autobatch_valkey.AsyncValkey: ...


def wrap(client: Any, *, retry_writes: bool | None = None) -> Any:
    """Return the batching twin of a client of redis-py or valkey-py.

    It shares the client's connection pool and response callbacks and is of a subclass of its
    class; closing it closes the client. The client itself stays as it was.

    Args:
        client: a `redis.Redis`, `redis.RedisCluster`, `redis.asyncio.Redis` or
            `redis.asyncio.RedisCluster`, or one of a subclass, such as Sentinel's `master_for`
            makes; or one of valkey-py's of the same kinds. A client that batches already is
            returned as it is, and for an eager view the client that it shows.
        retry_writes: as for the constructor of `Redis`; by default as the client has it.

    Raises:
        TypeError: it is anything else.
    """
    if isinstance(client, Funnel):
        batching: Any = client.batching
        if retry_writes in (None, batching.retry_writes):
            return batching
        return _twin(batching, type(batching), retry_writes)
    if isinstance(client, pipelines()):
        raise TypeError("wrap() takes a client; a pipeline is a batch already")
    for kind, twin in twins().items():
        if isinstance(client, kind):
            return _twin(client, twin, retry_writes)
    raise TypeError(
        "wrap() takes a client of redis-py or valkey-py, such as redis.Redis or "
        f"redis.asyncio.RedisCluster, not {type(client).__module__}.{type(client).__name__}"
    )


def _twin(client: object, kind: type[T], retry_writes: bool | None) -> T:  # noqa: FBT001  # as named
    twin: Any = twin_of(client, kind)
    if retry_writes is not None:
        twin.retry_writes = retry_writes
        twin.__dict__.pop("_wire", None)  # a batching client's own
    made: T = twin
    return made


def pipelines() -> tuple[type, ...]:
    """Return the classes of pipelines, some of which are subclasses of a client's."""
    return _PIPELINES if _valkey() is None else (*_PIPELINES, *_valkey().PIPELINES)


def twins() -> dict[type, type]:
    """Return the batching class of each class of clients, valkey-py's too if that is imported."""
    return _TWINS if _valkey() is None else {**_TWINS, **_valkey().TWINS}


def _valkey() -> Any:
    if "valkey" not in sys.modules:  # so it cannot be one of its clients
        return None
    # A program without valkey-py has no use for it.
    from autobatch import valkey as ours  # noqa: PLC0415

    return ours


_PIPELINES = (
    redis.client.Pipeline,
    redis.cluster.ClusterPipeline,
    redis.asyncio.client.Pipeline,
    redis.asyncio.cluster.ClusterPipeline,
)
_TWINS: dict[type, type] = {
    redis.Redis: autobatch_client.Redis,
    redis.RedisCluster: autobatch_cluster.RedisCluster,
    redis.asyncio.Redis: autobatch_asyncio.Redis,
    redis.asyncio.RedisCluster: autobatch_asyncio.RedisCluster,
}
