"""Random programs for the differential tests: their steps, and what both kinds of runs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import redis
from hypothesis import strategies as st

KEYS = st.sampled_from(["a", "b", "c", "d"])
MEMBERS = st.sampled_from(["x", "y", "z", "1", "2"])
NUMBERS = st.integers(-3, 9)
INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@dataclasses.dataclass(frozen=True)
class Call:
    """Call a method of the client; a `Result` among the arguments stands for that reply."""

    method: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """The reply of an earlier call, counted from the latest."""

    back: int


@dataclasses.dataclass(frozen=True)
class Look:
    """Look at the reply of an earlier call."""

    back: int


@dataclasses.dataclass(frozen=True)
class Block:
    """A scope around some steps; `fails` makes it end by an exception."""

    steps: tuple[Any, ...]
    join: bool
    decorator: bool
    fails: bool


class Boom(Exception):
    """How a block fails."""


ARGUMENT = st.one_of(MEMBERS, NUMBERS, st.builds(Result, st.integers(0, 3)))


def call(method: str, *args: Any, **kwargs: Any) -> tuple[str, st.SearchStrategy[Call]]:
    keywords = st.tuples(*(st.tuples(st.just(k), v) for k, v in kwargs.items()))
    return method, st.builds(Call, st.just(method), st.tuples(*args), keywords)


CALLS = [
    call("set", KEYS, ARGUMENT),
    call("set", KEYS, ARGUMENT, nx=st.booleans(), get=st.booleans()),
    call("get", KEYS),
    call("incrby", KEYS, NUMBERS),
    call("append", KEYS, ARGUMENT),
    call("getrange", KEYS, st.just(0), NUMBERS),
    call("mget", KEYS, KEYS),
    call("delete", KEYS, KEYS),
    call("exists", KEYS, KEYS),
    call("type", KEYS),
    call("rename", KEYS, KEYS),
    call("hset", KEYS, MEMBERS, ARGUMENT),
    call("hincrby", KEYS, MEMBERS, NUMBERS),
    call("hgetall", KEYS),
    call("hdel", KEYS, MEMBERS),
    call("rpush", KEYS, ARGUMENT, ARGUMENT),
    call("lpop", KEYS),
    call("lrange", KEYS, st.just(0), NUMBERS),
    call("lmove", KEYS, KEYS),
    call("sadd", KEYS, ARGUMENT, MEMBERS),
    call("smembers", KEYS),
    call("sinter", KEYS, KEYS),
    call("zadd", KEYS, st.dictionaries(MEMBERS, NUMBERS, min_size=1)),
    call("zincrby", KEYS, NUMBERS, MEMBERS),
    call("zrange", KEYS, st.just(0), st.just(-1), withscores=st.booleans()),
    call("zrank", KEYS, MEMBERS),
    call("xadd", KEYS, st.dictionaries(MEMBERS, NUMBERS, min_size=1), id=st.just("*-x")),
    call("xadd", KEYS, st.just({"f": "v"}), id=st.sampled_from(["1-1", "2-1", "3-1"])),
    call("xlen", KEYS),
    call("xrange", KEYS),
    call("xread", st.dictionaries(KEYS, st.just("0"), min_size=1)),
    call("eval", st.just(INCREMENT), st.just(1), KEYS, NUMBERS),
    call("script", KEYS, NUMBERS),
    call("script", KEYS, NUMBERS),
    call("script after a flush", KEYS, NUMBERS),
    call("execute_command", st.just("GET")),  # a wrong number of arguments
    call("execute_command", st.just("object encoding"), KEYS),
    call("pipeline", KEYS, ARGUMENT),
    call("blpop", KEYS, timeout=st.just(0.01)),
]


def calls(*but: str, only: Iterable[str] = ()) -> st.SearchStrategy[Call]:
    """Return a call of some of the methods: all of them, all but some, or some only."""
    return st.one_of(
        *(made for name, made in CALLS if name not in but and (not only or name in only))
    )


LOOKS = st.builds(Look, st.integers(0, 3))


def weighted(*strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Choose among these evenly. Of nested alternatives, `one_of` makes one flat list."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


def steps(*others: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    leaf = weighted(calls(), calls(), calls(), LOOKS, *others)

    def block(step: st.SearchStrategy[Any]) -> st.SearchStrategy[Block]:
        some = st.lists(step, min_size=2, max_size=10).map(tuple)
        return st.builds(Block, some, st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, 1]))

    inner = block(leaf)
    outer = block(weighted(leaf, leaf, leaf, inner))
    return st.lists(weighted(leaf, outer, outer), min_size=1, max_size=4).map(tuple)


# It runs at the call in a scope too, so its errors are raised there. Both runs look.
AT_ONCE = {"blpop"}


def told(error: Exception) -> tuple[str, Any]:
    return "error", (type(error).__name__, str(error))


def also_failed(error: Exception) -> int:
    return sum(note.startswith("Also failed") for note in getattr(error, "__notes__", ()))


def prepare(client: Any) -> list[Any]:
    """Call what every program starts with; return what a client gave for that."""
    return [
        client.flushdb(),
        client.set("a", "5"),
        client.hset("b", "x", "1"),
        client.rpush("c", "x", "y"),
        client.zadd("d", {"x": 1}),
    ]


def keyspace(client: redis.Redis) -> dict[str, Any]:
    read = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda key: client.lrange(key, 0, -1),
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": client.xrange,
    }
    return {key: read[client.type(key)](key) for key in sorted(client.keys())}
