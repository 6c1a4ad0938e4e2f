"""cachelib: all of its cache's methods."""

from __future__ import annotations

from cachelib.redis import RedisCache

NAME = "cachelib"
DISTRIBUTION = "cachelib"


def given(client):
    return RedisCache(host=client)


def use(client, record):
    cache = given(client)
    record("set", cache.set, "a", {"n": 1})
    record("get", cache.get, "a")
    record("get, missing", cache.get, "missing")
    record("add", cache.add, "b", 2)
    record("add, again", cache.add, "b", 3)
    record("has", cache.has, "a")
    record("has, missing", cache.has, "missing")
    record("set_many", cache.set_many, {"c": 3, "d": [4]})
    record("get_many", cache.get_many, "a", "missing", "d")
    record("get_dict", cache.get_dict, "a", "missing")
    record("inc", cache.inc, "number", 2)
    record("dec", cache.dec, "number")
    record("get, a number", cache.get, "number")
    record("delete", cache.delete, "a")
    record("delete, missing", cache.delete, "a")
    record("delete_many", cache.delete_many, "c", "missing")
    record("set, no timeout", cache.set, "forever", 1, timeout=0)
