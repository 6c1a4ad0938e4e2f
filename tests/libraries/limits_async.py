"""limits.aio: all strategies, with redis-py's asyncio client."""

from __future__ import annotations

from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)

NAME = "limits, `limits.aio`"
DISTRIBUTION = "limits"


def given(client):
    pool = client.connection_pool
    storage = RedisStorage("async+redis://", implementation="redispy", connection_pool=pool)
    # It always makes a client of redis-py's own.
    storage.bridge.storage = client
    storage.bridge.register_scripts()
    return storage


GIVEN = "storage.bridge.storage = client; storage.bridge.register_scripts()"


async def use(client, record):
    storage = given(client)
    limit = parse("2/hour")
    for kind in [
        FixedWindowRateLimiter,
        MovingWindowRateLimiter,
        SlidingWindowCounterRateLimiter,
    ]:
        name, limiter = kind.__name__, kind(storage)
        await record.awaited(f"{name}.test", limiter.test(limit, name))
        for _ in range(3):
            await record.awaited(f"{name}.hit", limiter.hit(limit, name))
        await record.awaited(f"{name}.clear", limiter.clear(limit, name))
        await record.awaited(f"{name}.hit once more", limiter.hit(limit, name))
    await record.awaited("get", storage.get("missing"))
    await record.awaited("check", storage.check())
    await record.awaited("reset", storage.reset())
