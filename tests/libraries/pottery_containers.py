"""pottery: containers, a lock, a counter of ids and a cache."""

from __future__ import annotations

import pottery

NAME = "pottery"
DISTRIBUTION = "pottery"


def given(client):
    return pottery.RedisDict({"a": 1}, key="dict", redis=client)


def use(client, record):
    dict_ = given(client)
    record("dict[]=", dict_.__setitem__, "b", [2])
    record("dict[]", lambda: [dict_["a"], dict_["b"]])
    record("dict[], missing", lambda: dict_["z"])
    record("in dict", lambda: ["a" in dict_, "z" in dict_])
    record("dict.get, missing", dict_.get, "z")
    record("dict.pop", dict_.pop, "b")
    record("dict", lambda: [dict(dict_), len(dict_), dict_ == {"a": 1}])
    set_ = pottery.RedisSet({"x"}, redis=client, key="set")
    record("set.add", set_.add, "y")
    record("set", lambda: [sorted(set_), "x" in set_, "z" in set_, len(set_)])
    record("set.remove, missing", set_.remove, "z")
    list_ = pottery.RedisList(["a"], redis=client, key="list")
    record("list.append", list_.append, "b")
    record("list", lambda: [list(list_), list_[0], list_[-1], list_.index("b")])
    record("list[], missing", lambda: list_[9])
    record("list.pop", list_.pop)
    deque = pottery.RedisDeque([1, 2], redis=client, key="deque", maxlen=2)
    record("deque", lambda: [deque.append(3), list(deque), deque.popleft()])
    record("RedisCounter()", lambda: dict(pottery.RedisCounter("aab", redis=client, key="counter")))
    hyper = pottery.HyperLogLog({"x"}, redis=client, key="hyper")
    record("hyperloglog", lambda: [hyper.add("y"), len(hyper), "x" in hyper])
    bloom = pottery.BloomFilter(
        {"x"}, num_elements=100, false_positives=0.01, redis=client, key="bloom"
    )
    record("bloom", lambda: ["x" in bloom, "z" in bloom, len(bloom)])
    ids = pottery.NextID(key="ids", masters={client})
    record("next id", lambda: [next(ids), next(ids)])
    lock = pottery.Redlock(key="lock", masters={client}, auto_release_time=60)
    record("lock.acquire", lock.acquire, blocking=False)
    record("lock.locked", lambda: lock.locked() > 0)
    record("lock.release", lock.release)

    @pottery.redis_cache(redis=client, key="cache")
    def double(number):
        calls.append(number)
        return number * 2

    calls = []
    record("cache", lambda: [double(2), double(2), calls])
