"""Orders, as RQ jobs. Every job is a scope: what it calls is one round trip.

With a server at REDIS_URL, start a worker and have it something to do:

$ rq worker --url $REDIS_URL --job-class autobatch.integrations.rq.BatchJob shop
$ python -m examples.rq_tasks
order 1: 3 left
order 2: 1 left
"""

from __future__ import annotations

import os
import time
from typing import Any

from redis import Redis
from rq import Queue

import autobatch
from autobatch.integrations.rq import BatchJob
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


def place(item: str, number: int) -> dict[str, Any]:
    order = redis.incr("example:orders")
    redis.rpush("example:log", item)
    return {"order": order, "left": redis.hincrby("example:stock", item, -number)}


def main() -> None:
    # The queue's own client stays plain.
    connection = Redis.from_url(os.environ.get("QUEUE_URL") or server_url())
    queue = Queue("shop", connection=connection, job_class=BatchJob)
    with autobatch.batch():
        redis.delete("example:orders")
        redis.hset("example:stock", "tea", "5")
        # What waits is sent before the first job is: the worker may need it.
        jobs = [queue.enqueue("examples.rq_tasks.place", "tea", number) for number in (2, 2)]
    for job in jobs:
        while not job.is_finished:
            time.sleep(0.01)
        placed: Any = job.return_value()
        print(f"order {placed['order']}: {placed['left']} left")
    connection.close()


if __name__ == "__main__":
    main()
