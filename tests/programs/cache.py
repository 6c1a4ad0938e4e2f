"""A cache of JSON values with tags, and a lock that keeps stampedes away."""

from __future__ import annotations

import json


class Cache:
    """JSON values that expire, each with any number of tags."""

    def __init__(self, client, ttl=300, lock_timeout=10):
        self.client = client
        self.ttl = ttl
        self.lock_timeout = lock_timeout

    def get(self, key, default=None):
        raw = self.client.get(f"cache:{key}")
        if raw is None:
            return default
        return json.loads(raw)

    def set(self, key, value, tags=()):
        self.client.set(f"cache:{key}", json.dumps(value), ex=self.ttl)
        for tag in tags:
            self.client.sadd(f"tag:{tag}", key)

    def get_many(self, *keys):
        raws = self.client.mget([f"cache:{key}" for key in keys])
        return {key: json.loads(raw) for key, raw in zip(keys, raws, strict=True) if raw}

    def get_or_compute(self, key, compute, tags=()):
        """Return the cached value; compute it, in one process at a time, if there is none."""
        raw = self.client.get(f"cache:{key}")
        if raw:
            return json.loads(raw)
        with self.client.lock(f"lock:{key}", timeout=self.lock_timeout, sleep=0.01):
            raw = self.client.get(f"cache:{key}")  # perhaps computed while we waited
            if raw:
                return json.loads(raw)
            value = compute()
            self.set(key, value, tags)
            return value

    def invalidate(self, tag):
        """Forget every value with this tag; return how many there were."""
        keys = self.client.smembers(f"tag:{tag}")
        forgotten = 0
        if keys:
            forgotten = self.client.delete(*(b"cache:" + key for key in keys))
        self.client.delete(f"tag:{tag}")
        return forgotten
