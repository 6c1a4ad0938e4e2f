"""The same page with asyncio, in three ways. All of them share what the synchronous ones use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from redis.asyncio import Redis

import autobatch.asyncio
from autobatch.demo import piped
from autobatch.demo.front import Front
from autobatch.demo.shop import Shop


async def front_plain(redis: Redis, visitor: str) -> Front:
    return await _front_piped(OneByOne(redis), visitor)


async def front_pipeline(redis: Redis, visitor: str) -> Front:
    return await _front_piped(redis.pipeline(transaction=False), visitor)


async def front_autobatch(redis: autobatch.asyncio.Redis, visitor: str) -> Front:
    client: Any = redis  # its Futures behave as the values of the shop's types
    front = Shop(client).front(visitor)
    await autobatch.asyncio.flush()
    return front


async def _front_piped(pipe: Any, visitor: str) -> Front:
    piped.queue_front(pipe, visitor)
    return piped.read_front(await pipe.execute())


class OneByOne:
    """What a client without a pipeline does: each call is awaited before the next one starts.

    To share the functions of `piped` it has the form of a pipeline. Written out, each of their
    lines would have an `await`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._calls: list[Callable[[], Awaitable[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._redis, name)
        return lambda *args, **options: self._calls.append(partial(method, *args, **options))

    async def execute(self) -> list[Any]:
        return [await call() for call in self._calls]
