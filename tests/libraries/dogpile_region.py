"""dogpile.cache: a region, several keys at once, decorators, and its distributed lock."""

from __future__ import annotations

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

NAME = "dogpile.cache"
DISTRIBUTION = "dogpile.cache"
GIVEN = "region.backend.reader_client = region.backend.writer_client = client"


def given(client):
    pool = client.connection_pool
    arguments = {"connection_pool": pool, "distributed_lock": True, "thread_local_lock": False}
    region = make_region().configure("dogpile.cache.redis", expiration_time=60, arguments=arguments)
    region.backend.writer_client = region.backend.reader_client = client
    return region


def known(value):
    return "NO_VALUE" if value is NO_VALUE else value


def use(client, record):
    region = given(client)
    record("get, missing", lambda: known(region.get("missing")))
    record("get_value_metadata, missing", lambda: known(region.get_value_metadata("missing")))
    record("key_is_locked", region.key_is_locked, "a")
    record("set", region.set, "a", {"n": 1})
    record("get", region.get, "a")
    record("set_multi", region.set_multi, {"b": 2, "c": [3]})
    record("get_multi", lambda: [known(v) for v in region.get_multi(["a", "missing", "c"])])
    record("get_or_create", region.get_or_create, "made", lambda: "new")
    record("get_or_create, again", region.get_or_create, "made", lambda: "newer")
    record("get_or_create_multi", region.get_or_create_multi, ["b", "d"], lambda *k: list(k))

    @region.cache_on_arguments()
    def double(number):
        calls.append(number)
        return number * 2

    calls = []
    record("cache_on_arguments", lambda: [double(2), double(2), double(3), calls])
    record("invalidate", double.invalidate, 2)
    record("cache_on_arguments, invalidated", lambda: [double(2), calls])
    mutex = region.backend.get_mutex("a")
    record("mutex.acquire", mutex.acquire, wait=False)
    record("mutex.locked", mutex.locked)
    record("another's acquire", region.backend.get_mutex("a").acquire, wait=False)
    record("mutex.release", mutex.release)
    record("mutex.locked, released", mutex.locked)
    record("delete", region.delete, "a")
    record("delete_multi", region.delete_multi, ["b", "missing"])
