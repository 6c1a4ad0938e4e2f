"""The lock that a client's `lock()` gives: autobatch's own makes it of its eager view."""

from __future__ import annotations

NAME = "redis-py's `client.lock()`"
DISTRIBUTION = "redis"


def given(client):
    return client.lock("lock", timeout=60, blocking=False)


def use(client, record):
    lock = given(client)
    record("locked, free", lock.locked)
    record("acquire", lock.acquire)
    record("acquire, another", given(client).acquire)
    record("locked", lock.locked)
    record("owned", lock.owned)
    record("extend", lock.extend, 60)
    record("reacquire", lock.reacquire)
    record("release", lock.release)
    record("release, again", lock.release)
    with given(client):
        record("locked, in a block", lock.locked)
    record("locked, behind it", lock.locked)
