"""The same lock, made by hand as libraries do."""

from __future__ import annotations

from redis.lock import Lock

from . import redis_client_lock

NAME = "redis-py's `redis.lock.Lock`"
DISTRIBUTION = "redis"


def given(client):
    return Lock(client, "lock", timeout=60, blocking=False)


class _Made:
    def __init__(self, client):
        self.client = client

    def lock(self, name, **options):
        return Lock(self.client, name, **options)


def use(client, record):
    redis_client_lock.use(_Made(client), record)
