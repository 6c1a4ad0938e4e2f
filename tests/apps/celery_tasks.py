"""What test_celery.py has done by real workers."""

from __future__ import annotations

import os

from celery import Celery
from redis import ResponseError

import autobatch
from autobatch.integrations.celery import BatchTask

QUEUE = os.environ["QUEUE_URL"]
redis = autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
app = Celery("tests", broker=QUEUE, backend=QUEUE, task_cls=BatchTask)
app.conf.task_default_queue = "tests"
plain_app = Celery("plain", broker=QUEUE, backend=QUEUE)


def visit_by(name):
    redis.sadd("visitors", name)
    redis.expire("visitors", 60)
    return redis.incr("visits")


@app.task
def visit(name):
    return visit_by(name)


@app.task
def nested(key):
    return {"list": [redis.get(key), (redis.incr("other"), None)], "hash": redis.hgetall("hash")}


@app.task
def looking(key):
    if redis.incr(key) > 1:
        return "again"
    return redis.get(key)


@app.task
def nothing():
    redis.incr("nothing")


@app.task
def unseen():
    """Fail by an error that nobody looks at."""
    redis.set("text", "a string")
    redis.lpush("text", 1)
    redis.incr("after")


@app.task
def seen():
    """Fail by what it returns."""
    return {"length": redis.llen("visits")}


@app.task
def raising():
    redis.incr("before")
    raise ValueError("broken")


@app.task(bind=True, autoretry_for=(ResponseError,), max_retries=2, default_retry_delay=0)
def retried(self):
    """Fail at the end of the scope, but not the second time."""
    redis.incr("attempts")
    if self.request.retries:
        redis.delete("text")
    else:
        redis.set("text", "a string")
    redis.rpush("text", self.request.retries)
    return redis.lrange("text", 0, -1)


@app.task(bind=True)
def retried_by_hand(self):
    attempts = redis.incr("attempts")
    if not self.request.retries:
        raise self.retry(countdown=0)
    return attempts


@app.task
def double(number):
    return redis.incrby(f"number:{number}", number) + number


@app.task
def total(numbers):
    return redis.incrby("total", sum(numbers))


class Visit(app.Task):
    """A task of a class."""

    name = "apps.celery_tasks.Visit"

    def run(self, name):
        return visit_by(name)


app.register_task(Visit())


@app.task(base=BatchTask, name="apps.celery_tasks.visit_with_base")
def visit_with_base(name):
    return visit_by(name)


# What it takes without us: the function is a scope, and gives plain values.
@app.task(base=plain_app.Task, name="apps.celery_tasks.visit_decorated")
@autobatch.batch
def visit_decorated(name):
    return autobatch.resolve({"visits": visit_by(name)})


@app.task(base=plain_app.Task, name="apps.celery_tasks.visit_plain")
def visit_plain(name):
    return visit_by(name)
