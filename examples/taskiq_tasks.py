"""Orders, as taskiq tasks. Every task is a scope: what it calls is one round trip.

With a server at REDIS_URL, start a worker and have it something to do:

$ taskiq worker examples.taskiq_tasks:broker
$ python -m examples.taskiq_tasks
order 1: 3 left
order 2: 1 left
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

import autobatch.asyncio
from autobatch.integrations.taskiq import BatchMiddleware
from examples.server import server_url

QUEUE = os.environ.get("QUEUE_URL") or server_url()
redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)
broker = (
    ListQueueBroker(QUEUE, queue_name="shop")
    .with_result_backend(RedisAsyncResultBackend(QUEUE))
    .with_middlewares(BatchMiddleware())
)


@broker.task("place")
async def place(item: str, number: int) -> dict[str, Any]:
    order = redis.incr("example:orders")
    redis.rpush("example:log", item)
    return {"order": order, "left": redis.hincrby("example:stock", item, -number)}


async def main() -> None:
    await broker.startup()
    async with autobatch.batch():
        redis.delete("example:orders")
        redis.hset("example:stock", "tea", "5")
        # What waits is sent before the first task is: the worker may need it.
        tasks = [await place.kiq("tea", number) for number in (2, 2)]
    for task in tasks:
        placed = (await task.wait_result(check_interval=0.01, timeout=10)).return_value
        print(f"order {placed['order']}: {placed['left']} left")
    await redis.aclose()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
