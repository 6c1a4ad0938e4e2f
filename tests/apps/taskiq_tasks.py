"""What test_taskiq.py has done by real workers."""

from __future__ import annotations

import os

from taskiq import SimpleRetryMiddleware, TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

import autobatch
import autobatch.asyncio
from autobatch.integrations.taskiq import BatchMiddleware

QUEUE = os.environ["QUEUE_URL"]
URL = os.environ["REDIS_URL"]
redis = autobatch.asyncio.Redis.from_url(URL, decode_responses=True)
sync_redis = autobatch.Redis.from_url(URL, decode_responses=True)


def broker_of(queue):
    """Return a broker, with which no task is declared yet."""
    results = RedisAsyncResultBackend(QUEUE)
    return ListQueueBroker(QUEUE, queue_name=queue).with_result_backend(results)


plain_broker = broker_of("plain")


# Declared before the middleware is there: it is none of our tasks.
@plain_broker.task("plain")
async def plain(name):
    await redis.sadd("visitors", name)
    await redis.expire("visitors", 60)
    return await redis.incr("visits")


@plain_broker.task("decorated")
@autobatch.batch
async def decorated(name):
    redis.sadd("visitors", name)
    redis.expire("visitors", 60)
    return await redis.incr("visits")


broker = broker_of("tests").with_middlewares(BatchMiddleware(), SimpleRetryMiddleware())


@broker.task("visit")
async def visit(name: str):
    redis.sadd("visitors", name)
    redis.expire("visitors", 60)
    return redis.incr("visits")


@broker.task("visit_in_a_thread")
def visit_in_a_thread(name: str):
    sync_redis.sadd("visitors", name)
    sync_redis.expire("visitors", 60)
    return sync_redis.incr("visits")


@broker.task("nested")
async def nested(key: str):
    name = redis.hget("hash", "name").map(str.upper)
    return {"list": [redis.get(key), [redis.incr("other"), None]], "name": name}


@broker.task("chained")
async def chained():
    return redis.get("current").map(lambda key: redis.hget(key, "name"))


@broker.task("typed")
async def typed(number: int, more: list[int] | None = None) -> int:
    """Get what its signature says, whatever was sent."""
    return redis.incrby("number", number + sum(more or []))


def dependency():
    return "a dependency"


@broker.task("depending")
async def depending(name: str = TaskiqDepends(dependency)):
    return redis.append("name", name).map(lambda _: name)


@broker.task("nothing")
async def nothing():
    redis.incr("nothing")


@broker.task("unseen")
async def unseen():
    redis.set("text", "a string")
    redis.lpush("text", 1)
    redis.incr("after")


@broker.task("retried")
async def retried():
    if await redis.incr("attempts") > 1:
        redis.delete("text")
    else:
        redis.set("text", "a string")
    redis.rpush("text", 1)
    return redis.lrange("text", 0, -1)


@broker.task("raising")
async def raising():
    redis.incr("before")
    raise ValueError("broken")
