"""A module that somebody else has written, with redis-py: `examples/instrument.py` uses it."""

from __future__ import annotations

from redis import Redis

from examples.server import server_url

client = Redis.from_url(server_url(), decode_responses=True)


def open_shop() -> None:
    for number in range(6):
        client.hset(f"example:user:{number}", "name", f"user {number}")


def name_and_visit(number: int) -> object:
    client.incr(f"example:visits:{number}")
    return client.hget(f"example:user:{number}", "name")


def greeting(user: str) -> str:
    name = client.hget(f"example:user:{user}", "name")
    return f"{user!r} has " + ("no name" if name is None else "a name")
