"""Orders, as Celery tasks. Every task is a scope: what it calls is one round trip.

With a server at REDIS_URL, start a worker and have it something to do:

$ celery -A examples.celery_tasks worker
$ python -m examples.celery_tasks
order 1: 3 left
order 2: 1 left
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery  # type: ignore[import-untyped]

import autobatch
from autobatch.integrations.celery import BatchTask
from examples.server import server_url

QUEUE = os.environ.get("QUEUE_URL") or server_url()
redis = autobatch.Redis.from_url(server_url(), decode_responses=True)
app = Celery("shop", broker=QUEUE, backend=QUEUE, task_cls=BatchTask)


@app.task(name="place")  # type: ignore[untyped-decorator]
def place(item: str, number: int) -> dict[str, Any]:
    order = redis.incr("example:orders")
    redis.rpush("example:log", item)
    return {"order": order, "left": redis.hincrby("example:stock", item, -number)}


def main() -> None:
    with autobatch.batch():
        redis.delete("example:orders")
        redis.hset("example:stock", "tea", "5")
        # What waits is sent before the first task is: the worker may need it.
        results = [place.delay("tea", number) for number in (2, 2)]
    for result in results:
        placed = result.get(timeout=10)
        print(f"order {placed['order']}: {placed['left']} left")


if __name__ == "__main__":
    main()
