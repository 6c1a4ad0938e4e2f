"""django-redis: Django's cache methods, and what it has beside them."""

from __future__ import annotations

from django.conf import settings
from django_redis.cache import RedisCache

NAME = "django-redis"
DISTRIBUTION = "django-redis"
GIVEN = '"OPTIONS": {"REDIS_CLIENT_CLASS": "autobatch.client.EagerRedis"}'


def given(client):
    if not settings.configured:
        settings.configure()
    host = client.connection_pool.connection_kwargs
    kind = type(client)
    path = f"{kind.__module__}.{kind.__qualname__}"
    url = f"redis://127.0.0.1:{host['port']}/0"
    return RedisCache(url, {"OPTIONS": {"REDIS_CLIENT_CLASS": path}})


def use(client, record):
    cache = given(client)
    record("set", cache.set, "a", {"n": 1})
    record("get", cache.get, "a")
    record("get, missing", cache.get, "missing")
    record("get, default", cache.get, "missing", "default")
    record("add", cache.add, "b", 2)
    record("add, again", cache.add, "b", 3)
    record("set, nx", cache.set, "b", 4, nx=True)
    record("has_key", cache.has_key, "a")
    record("set_many", cache.set_many, {"c": 3, "d": [4]})
    record("get_many", cache.get_many, ["a", "missing", "d"])
    record("get_or_set", cache.get_or_set, "made", lambda: "new")
    record("incr", cache.incr, "c")
    record("decr", cache.decr, "c", 2)
    record("incr, missing", cache.incr, "missing")
    record("touch", cache.touch, "a", 60)
    record("ttl", lambda: cache.ttl("a") > 0)
    record("ttl, forever", cache.ttl, "missing")
    record("expire", cache.expire, "b", 60)
    record("persist", cache.persist, "b")
    record("keys", lambda: sorted(cache.keys("*")))
    record("delete", cache.delete, "a")
    record("delete, missing", cache.delete, "a")
    record("delete_many", cache.delete_many, ["c", "missing"])
    record("delete_pattern", cache.delete_pattern, "d*")
    record("sadd", cache.sadd, "set", 1, 2)
    record("smembers", lambda: sorted(cache.smembers("set")))
    record("hset", cache.hset, "hash", "field", 1)
    record("hexists", lambda: [cache.hexists("hash", field) for field in ("field", "missing")])
    record("hkeys", cache.hkeys, "hash")
    with cache.lock("lock"):
        record("lock", lambda: cache.lock("lock").acquire(blocking=False))
    record("clear", cache.clear)
    record("set, again", cache.set, "a", 1)
