"""redis-om: hash models by their keys. Queries, and JsonModel, need a server's modules."""

from __future__ import annotations

from redis_om import HashModel

NAME = "redis-om, `HashModel` without queries"
DISTRIBUTION = "redis-om"
DECODES = True
GIVEN = "class Meta: database = client"


def given(client):
    return customer(HashModel, client)


def customer(base, client):
    class Customer(base, index=True):
        name: str
        age: int
        email: str | None = None

        class Meta:
            database = client
            global_key_prefix = "om"
            model_key_prefix = "customer"

    return Customer


def use(client, record):
    kind = given(client)
    record("save", lambda: kind(pk="1", name="Ada", age=36).save().model_dump())
    record("get", lambda: kind.get("1").model_dump())
    record("get, missing", kind.get, "missing")
    record("update", lambda: kind.get("1").update(age=37))
    record("get, updated", lambda: kind.get("1").age)
    record("add", lambda: len(kind.add([kind(pk=n, name=n, age=1) for n in "23"])))
    record("all_pks", lambda: sorted(kind.all_pks()))
    record("expire", lambda: kind.get("2").expire(60))
    record("delete", kind.delete, "1")
    record("delete, missing", kind.delete, "1")
    record("delete_many", lambda: kind.delete_many([kind.get("3")]))
