"""walrus: its cache, containers, rate limits and locks."""

from __future__ import annotations

import redis
import walrus

import autobatch

NAME = "walrus"
DISTRIBUTION = "walrus"
GIVEN = "database = autobatch.wrap(walrus.Database()).eager"


def given(client):
    database = walrus.Database(connection_pool=client.connection_pool)
    if type(client) is redis.Redis:
        return database
    twin = autobatch.wrap(database)
    return twin if client is client.batching else twin.eager


def use(client, record):
    database = given(client)
    cache = database.cache()
    record("cache.set", cache.set, "a", {"n": 1})
    record("cache.get", cache.get, "a")
    record("cache.get, missing", cache.get, "missing")
    record("cache.get, default", cache.get, "missing", "default")
    record("cache.set_many", cache.set_many, {"b": 2, "c": 3})
    record("cache.get_many", cache.get_many, ["a", "missing", "c"])
    record("cache.delete", cache.delete, "a")

    @cache.cached()
    def double(number):
        calls.append(number)
        return number * 2

    calls = []
    record("cache.cached", lambda: [double(2), double(2), calls])
    record("cache.flush", cache.flush)

    hash_ = database.Hash("hash")
    hash_.update(x=1, y=2)
    record("Hash[]", lambda: hash_["x"])
    record("Hash[], missing", lambda: hash_["z"])
    record("in Hash", lambda: ["x" in hash_, "z" in hash_])
    record("len(Hash)", lambda: len(hash_))
    record("dict(Hash)", hash_.as_dict)

    list_ = database.List("list")
    record("List.extend", list_.extend, ["a", "b", "c"])
    record("List[]", lambda: [list_[0], list_[-1], list_[:2]])
    record("List.popleft", list_.popleft)
    record("in List", lambda: b"b" in list_)

    set_ = database.Set("set")
    record("Set.add", set_.add, "a", "b")
    record("in Set", lambda: ["a" in set_, "z" in set_])
    record("Set", lambda: sorted(set_))

    zset = database.ZSet("zset")
    record("ZSet.add", zset.add, {"a": 1, "b": 2})
    record("ZSet.score", zset.score, "a")
    record("ZSet.score, missing", zset.score, "z")
    record("in ZSet", lambda: "a" in zset)
    record("in ZSet, missing", lambda: "z" in zset)
    record("ZSet.rank, missing", zset.rank, "z")

    limit = database.rate_limit("limit", limit=2, per=60)
    record("RateLimit.limit", lambda: [limit.limit("somebody") for _ in range(3)])
    lock = database.lock("lock", ttl=60000)
    record("Lock.acquire", lock.acquire, block=False)
    record("Lock.acquire, another", database.lock("lock").acquire, block=False)
    record("Lock.release", lock.release)
    counter = database.counter("counter")
    record("counter", lambda: [counter.incr(), counter.value()])
