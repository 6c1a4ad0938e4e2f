"""`wrap`: the batching twin of a client that exists."""

from __future__ import annotations

from typing import overload

import redis
import redis.asyncio

from autobatch import asyncio as autobatch_asyncio
from autobatch import client as autobatch_client
from autobatch.funnel import twin_of


@overload
def wrap(client: redis.Redis) -> autobatch_client.Redis: ...


@overload
def wrap(client: redis.asyncio.Redis) -> autobatch_asyncio.Redis: ...


def wrap(
    client: redis.Redis | redis.asyncio.Redis,
) -> autobatch_client.Redis | autobatch_asyncio.Redis:
    """Return the batching twin of a redis-py client.

    It shares the client's connection pool and response callbacks and is of a subclass of its
    class; closing it closes the client. The client itself stays as it was.

    Args:
        client: a `redis.Redis` or `redis.asyncio.Redis`, or one of a subclass, such as Sentinel's
            `master_for` makes. A client that batches already is returned as it is,
            and for an eager view the client that it shows.

    Raises:
        TypeError: it is anything else.
    """
    if isinstance(client, (autobatch_client.Redis, autobatch_asyncio.Redis)):
        batching: autobatch_client.Redis | autobatch_asyncio.Redis = client.batching
        return batching
    if isinstance(client, (redis.client.Pipeline, redis.asyncio.client.Pipeline)):
        raise TypeError("wrap() takes a client; a pipeline is a batch already")
    if isinstance(client, redis.Redis):
        twin: autobatch_client.Redis = twin_of(client, autobatch_client.Redis)
        return twin
    if isinstance(client, redis.asyncio.Redis):
        asyncio_twin: autobatch_asyncio.Redis = twin_of(client, autobatch_asyncio.Redis)
        return asyncio_twin
    raise TypeError(
        "wrap() takes a redis.Redis or a redis.asyncio.Redis, "
        f"not {type(client).__module__}.{type(client).__name__}"
    )
