"""limits: all strategies, and what a window tells."""

from __future__ import annotations

from limits import parse
from limits.storage import RedisStorage
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)

NAME = "limits"
DISTRIBUTION = "limits"


def given(client):
    storage = RedisStorage("redis://", connection_pool=client.connection_pool)
    # It always makes a client of redis-py's own; the scripts are registered with the client.
    storage.storage = client
    storage.initialize_storage("redis://")
    return storage


GIVEN = 'storage.storage = client; storage.initialize_storage("")'


def use(client, record):
    storage = given(client)
    limit = parse("2/hour")
    for kind in [
        FixedWindowRateLimiter,
        MovingWindowRateLimiter,
        SlidingWindowCounterRateLimiter,
    ]:
        name, limiter = kind.__name__, kind(storage)
        record(f"{name}.test", limiter.test, limit, name)
        for _ in range(3):
            record(f"{name}.hit", limiter.hit, limit, name)
        record(f"{name}.test of a full window", limiter.test, limit, name)
        record(f"{name} remaining", lambda: limiter.get_window_stats(limit, name).remaining)
        record(f"{name}.clear", limiter.clear, limit, name)
        record(f"{name}.hit once more", limiter.hit, limit, name)
    record("get", storage.get, "missing")
    record("check", storage.check)
    record("reset", storage.reset)
    record("incr", storage.incr, "counter", 100)
