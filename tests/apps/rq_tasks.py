"""What test_rq.py has done by real workers."""

from __future__ import annotations

import os

import autobatch

redis = autobatch.Redis.from_url(os.environ.get("REDIS_URL", "redis://"), decode_responses=True)


def visit(name):
    redis.sadd("visitors", name)
    redis.expire("visitors", 60)
    return redis.incr("visits")


def nested(key):
    return {"list": [redis.get(key), (redis.incr("other"), None)], "hash": redis.hgetall("hash")}


def nothing():
    redis.incr("nothing")


def unseen():
    """Fail by an error that nobody looks at, but for the first time alone."""
    if redis.incr("attempts") > 1:
        redis.delete("text")
    else:
        redis.set("text", "a string")
    redis.lpush("text", 1)
    redis.incr("after")


def raising():
    redis.incr("before")
    raise ValueError("broken")


class Counter:
    """Something with a method."""

    def __init__(self, key):
        self.key = key

    def count(self, by):
        redis.expire(self.key, 60)
        return redis.incrby(self.key, by)


async def coroutine(name):
    """Use the synchronous client, as a job that awaits other things may."""
    return visit(name)


@autobatch.batch
def decorated(name):
    return autobatch.resolve({"visits": visit(name)})
