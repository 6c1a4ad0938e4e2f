"""Tests that hold code to its round trips: `pip install "redis-autobatch[testing]"`, then pytest.

The plugin brings the fixtures and the marker; its server is a real Valkey that it starts itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import autobatch
from autobatch.pytest_plugin import RedisBatches
from autobatch.testing.valkey import Server


@autobatch.batch
def page(redis: autobatch.Redis, user: int) -> dict[str, Any]:
    name = redis.get(f"user:{user}:name")
    posts = [redis.get(f"post:{number}") for number in range(10)]
    return {"name": name, "posts": posts, "visits": redis.incr(f"user:{user}:visits")}


@pytest.fixture
def redis(empty_valkey: Server) -> Iterator[autobatch.Redis]:
    with autobatch.Redis.from_url(empty_valkey.url, decode_responses=True) as client:
        client.mset({"user:1:name": "Ada", "post:3": "Notes"})  # of a fixture: not counted
        yield client


@pytest.mark.round_trips(1)
def test_a_page_takes_one_round_trip(redis: autobatch.Redis) -> None:
    shown = page(redis, 1)
    assert shown["name"] == "Ada"
    assert [post for post in shown["posts"] if post] == ["Notes"]
    assert shown["visits"] == 1


@pytest.mark.parametrize(("users", "round_trips"), [([1], 1), ([1, 2, 3], 3)])
def test_a_scope_of_its_own_is_a_round_trip(
    redis: autobatch.Redis, redis_batches: RedisBatches, users: list[int], round_trips: int
) -> None:
    for user in users:
        page(redis, user)
    redis_batches.assert_round_trips(round_trips)


def test_what_was_sent(redis: autobatch.Redis, redis_batches: RedisBatches) -> None:
    page(redis, 1)
    assert [str(command) for command in redis_batches.commands][:2] == [
        "GET user:1:name",
        "GET post:0",
    ]
    assert {command.name for command in redis_batches.commands} == {"GET", "INCRBY"}
    assert redis_batches.advice == []

    redis_batches.reset()
    redis.get("user:1:name")
    redis_batches.assert_round_trips(max=1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.round_trips(1)
async def test_what_is_gathered_shares_one(empty_valkey: Server) -> None:
    async with autobatch.asyncio.Redis.from_url(empty_valkey.url) as client:
        await asyncio.gather(*(client.incr(f"counter:{number}") for number in range(50)))
