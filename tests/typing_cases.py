"""What a type checker sees; tests/test_structure.py runs mypy on it. None of this runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import redis
import valkey
import valkey.asyncio
from redis.client import Pipeline

import autobatch
import autobatch.valkey

client = autobatch.Redis(decode_responses=True)


def clients_are_redis_py_s() -> None:
    """A batching client stands wherever redis-py's does, and stays one."""

    def takes(plain: redis.Redis) -> None: ...

    takes(client)
    assert_type(autobatch.Redis.from_url("redis://localhost"), autobatch.Redis)
    assert_type(autobatch.Redis.from_pool(redis.ConnectionPool()), autobatch.Redis)
    assert_type(autobatch.wrap(redis.Redis()), autobatch.Redis)
    assert_type(client.eager, autobatch.Redis)
    assert_type(autobatch.wrap(redis.asyncio.Redis()), autobatch.asyncio.Redis)
    assert_type(autobatch.wrap(valkey.Valkey()), autobatch.valkey.Valkey)
    assert_type(autobatch.wrap(valkey.asyncio.Valkey()), autobatch.valkey.AsyncValkey)


def constructors_take_redis_py_s_arguments() -> None:
    """A wrong one is an error here, too; a right one needs not be known twice."""
    assert_type(autobatch.Redis("localhost", db=1, retry_writes=True), autobatch.Redis)
    assert_type(autobatch.RedisCluster("localhost", retry_writes=True), autobatch.RedisCluster)
    assert_type(autobatch.asyncio.Redis(db=1, lanes=2), autobatch.asyncio.Redis)
    assert_type(autobatch.asyncio.Redis(retry_writes=True, lanes=2), autobatch.asyncio.Redis)
    assert_type(autobatch.asyncio.RedisCluster("localhost"), autobatch.asyncio.RedisCluster)
    autobatch.Redis(hots="localhost")  # type: ignore[call-overload]
    autobatch.RedisCluster(port="x")  # type: ignore[call-overload]
    autobatch.asyncio.Redis(hots="localhost")  # type: ignore[call-overload]
    autobatch.asyncio.RedisCluster(prot=1)  # type: ignore[call-overload]


def methods_have_redis_py_s_types() -> None:
    """Code that was checked with redis-py's client checks as before."""
    assert_type(client.get("a"), bytes | str | None)
    assert_type(client.incr("a"), int)
    assert_type(client.hgetall("a"), dict[bytes | str, bytes | str])
    assert_type(client.smembers("a"), set[bytes | str])
    assert_type(client.lrange("a", 0, -1), list[bytes | str])
    assert_type(client.eager.incr("a"), int)
    assert_type(client.pipeline(), Pipeline)
    assert_type(client.incr("a") + 1, int)


def values() -> None:
    """`unwrap` and `resolve` change nothing that a type checker knows."""
    assert_type(autobatch.unwrap(client.incr("a")), int)
    assert_type(autobatch.unwrap("text"), str)
    assert_type(autobatch.resolve({"a": [client.incr("a")]}), dict[str, list[int]])


def scopes() -> None:
    """What `with batch()` gives."""
    with autobatch.batch() as scope:
        assert_type(scope.stats.round_trips, int)
        assert_type(scope.stats.commands, int)
        assert_type(scope.flush(), None)
    with autobatch.batch(join=False, atomic=True, on_error="discard", max_commands=5, max_bytes=5):
        pass
    autobatch.batch(on_error="ignore")  # type: ignore[call-overload]  # no such choice


async def scopes_in_coroutines() -> None:
    """What `async with batch()` gives."""
    async with autobatch.batch() as scope:
        await scope.aflush()
        assert_type(scope.stats.flushes, int)


@autobatch.batch
def function(key: str, *, expire: int = 60) -> int:
    """Bare."""
    return client.incr(key)


@autobatch.batch(atomic=True)
async def coroutine(key: str) -> str:
    """With options."""
    return key


@autobatch.batch
def generator(count: int) -> Iterator[int]:
    """A generator."""
    yield count


@autobatch.batch()
async def async_generator(count: int) -> AsyncIterator[int]:
    """An async generator."""
    yield count


class Repository:
    """A class of methods that batch."""

    @autobatch.batch
    def count(self, key: str) -> int:
        """Take self like any method."""
        return client.incr(key)


async def decorated_functions_keep_their_signatures() -> None:
    """Arguments and results are checked as before."""
    assert_type(function("a", expire=5), int)
    assert_type(await coroutine("a"), str)
    assert_type(generator(3), Iterator[int])
    assert_type(async_generator(3), AsyncIterator[int])
    assert_type(Repository().count("a"), int)
    function(1)  # type: ignore[arg-type]  # the key is a str
    function("a", 5)  # type: ignore[call-arg]  # expire is keyword-only
    Repository().count()  # type: ignore[call-arg]  # it takes a key
