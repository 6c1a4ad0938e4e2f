"""redis-om's asyncio side: hash models by their keys."""

from __future__ import annotations

from aredis_om import HashModel

from . import redis_om_models

NAME = "redis-om, `aredis_om`"
DISTRIBUTION = "redis-om"
DECODES = True
GIVEN = "class Meta: database = client"


def given(client):
    return redis_om_models.customer(HashModel, client)


async def use(client, record):
    kind = given(client)

    async def got(pk):
        return (await kind.get(pk)).model_dump()

    async def pks():
        return sorted([pk async for pk in await kind.all_pks()])

    async def expire():
        return await (await kind.get("2")).expire(60)

    async def update():
        return await (await kind.get("1")).update(age=37)

    await record.awaited("save", kind(pk="1", name="Ada", age=36).save(), lambda m: m.model_dump())
    await record.awaited("get", got("1"))
    await record.awaited("get, missing", got("missing"))
    await record.awaited("update", update())
    await record.awaited("get, updated", got("1"))
    await record.awaited("add", kind.add([kind(pk=n, name=n, age=1) for n in "23"]), len)
    await record.awaited("all_pks", pks())
    await record.awaited("expire", expire())
    await record.awaited("delete", kind.delete("1"))
    await record.awaited("delete, missing", kind.delete("1"))
