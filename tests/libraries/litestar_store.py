"""Litestar's store: what its sessions and its response cache call."""

from __future__ import annotations

from litestar.stores.redis import RedisStore

NAME = "Litestar, `RedisStore`"
DISTRIBUTION = "litestar"


def given(client):
    return RedisStore(client)


async def use(client, record):
    store = given(client)
    await record.awaited("set", store.set("a", b"1", expires_in=60))
    await record.awaited("get", store.get("a"))
    await record.awaited("get, missing", store.get("missing"))
    await record.awaited("get, renewed", store.get("a", renew_for=120))
    await record.awaited("exists", store.exists("a"))
    await record.awaited("exists, missing", store.exists("missing"))
    await record.awaited("expires_in", store.expires_in("a"), lambda seconds: seconds > 60)
    await record.awaited("expires_in, missing", store.expires_in("missing"))
    await record.awaited("delete", store.delete("a"))
    await record.awaited("set, text", store.set("b", "2"))
    await record.awaited("delete_all", store.delete_all())
    await record.awaited("get, gone", store.get("b"))
    await record.awaited("set, kept", store.with_namespace("other").set("c", "3"))
