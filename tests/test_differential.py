"""Batching never changes what a program means: random programs, run plain and batched.

A program is a list of steps. The plain run executes each call at once and writes down its reply or
its error; the batched run goes through scopes, Futures and flushes. Both must observe the same
values and errors at the same steps, the same first unseen error at the end of each outermost scope,
and leave the same keys behind.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autobatch

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


def calls() -> st.SearchStrategy[Call]:
    argument = st.one_of(MEMBERS, NUMBERS, st.builds(Result, st.integers(0, 3)))

    def call(method: str, *args: Any, **kwargs: Any) -> st.SearchStrategy[Call]:
        keywords = st.tuples(*(st.tuples(st.just(k), v) for k, v in kwargs.items()))
        return st.builds(Call, st.just(method), st.tuples(*args), keywords)

    return st.one_of(
        call("set", KEYS, argument),
        call("set", KEYS, argument, nx=st.booleans(), get=st.booleans()),
        call("get", KEYS),
        call("incrby", KEYS, NUMBERS),
        call("append", KEYS, argument),
        call("getrange", KEYS, st.just(0), NUMBERS),
        call("mget", KEYS, KEYS),
        call("delete", KEYS, KEYS),
        call("exists", KEYS, KEYS),
        call("type", KEYS),
        call("rename", KEYS, KEYS),
        call("hset", KEYS, MEMBERS, argument),
        call("hincrby", KEYS, MEMBERS, NUMBERS),
        call("hgetall", KEYS),
        call("hdel", KEYS, MEMBERS),
        call("rpush", KEYS, argument, argument),
        call("lpop", KEYS),
        call("lrange", KEYS, st.just(0), NUMBERS),
        call("lmove", KEYS, KEYS),
        call("sadd", KEYS, argument, MEMBERS),
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
        call("pipeline", KEYS, argument),
        call("blpop", KEYS, timeout=st.just(0.01)),
    )


def steps() -> st.SearchStrategy[tuple[Any, ...]]:
    leaf = st.one_of(calls(), calls(), st.builds(Look, st.integers(0, 3)))

    def block(step: st.SearchStrategy[Any]) -> st.SearchStrategy[Block]:
        some = st.lists(step, min_size=2, max_size=10).map(tuple)
        return st.builds(Block, some, st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, 1]))

    inner = block(leaf)
    outer = block(st.one_of(leaf, leaf, leaf, inner))
    return st.lists(st.one_of(leaf, outer, outer), min_size=1, max_size=4).map(tuple)


# They run at the call in a scope too, so their errors are raised there: blocking commands, and
# XREAD, whose method looks at its own reply in newer versions of redis-py. Both runs look, too.
AT_ONCE = {"blpop", "xread"}


class Run:
    """One execution of a program; the subclasses differ in what a reply and a block are."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.log: list[Any] = []
        self.replies: list[Any] = []
        self.script = client.register_script(INCREMENT)

    def run(self, program: tuple[Any, ...]) -> list[Any]:
        for step in program:
            if isinstance(step, Block):
                self.block(step)
            elif isinstance(step, Call):
                self.replies.append(self.call(step))
            elif step.back < len(self.replies):
                self.log.append(self.look(self.replies[-1 - step.back]))
        return self.log

    def call(self, call: Call) -> Any:
        args = [self.argument(arg) if isinstance(arg, Result) else arg for arg in call.args]
        reply = self.invoke(call.method, args, dict(call.kwargs))
        if call.method in AT_ONCE:
            self.look(reply)
        return reply

    def argument(self, result: Result) -> Any:
        if result.back >= len(self.replies):
            return "no reply"
        reply = self.replies[-1 - result.back]
        kind, value = self.look(reply)
        return self.lend(reply) if kind == "value" and type(value) in (str, int) else "no argument"

    def send(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if method == "script after a flush":
            self.client.script_flush()
        if method.startswith("script"):
            return self.script(keys=args[:1], args=args[1:])
        if method == "pipeline":
            with self.client.pipeline() as pipe:
                pipe.set("p", args[1]).get(args[0]).type(args[0])
                return [str(reply) for reply in pipe.execute(raise_on_error=False)]
        return getattr(self.client, method)(*args, **kwargs)

    def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call, and return what `look` and `lend` take."""
        raise NotImplementedError

    def look(self, reply: Any) -> tuple[str, Any]:
        """Return the value or the error, plain."""
        raise NotImplementedError

    def lend(self, reply: Any) -> Any:
        """Return what to pass as an argument for this reply."""
        raise NotImplementedError

    def block(self, block: Block) -> None:
        raise NotImplementedError


def told(error: Exception) -> tuple[str, Any]:
    return "error", (type(error).__name__, str(error))


class PlainRun(Run):
    """Every call at once. Which errors nobody looked at is kept in books."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.errors: list[list[dict[str, Any]]] = []  # of each scope that is not joined

    def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return {"value": self.send(method, args, kwargs)}
        except redis.RedisError as error:
            reply = {"error": error, "seen": False}
            if self.errors:
                self.errors[-1].append(reply)
            return reply

    def look(self, reply: Any) -> tuple[str, Any]:
        reply["seen"] = True
        return told(reply["error"]) if "error" in reply else ("value", reply["value"])

    def lend(self, reply: Any) -> Any:
        return reply["value"]

    def block(self, block: Block) -> None:
        own = not self.errors or not block.join
        if own:
            self.errors.append([])
        self.run(block.steps)
        unseen = [reply for reply in self.errors.pop() if not reply["seen"]] if own else []
        for reply in unseen:
            reply["seen"] = True
        if block.fails:
            self.log.append(("failed", len(unseen)))
        elif unseen:
            self.log.append(("unseen", told(unseen[0]["error"]), len(unseen) - 1))


class BatchedRun(Run):
    """Through scopes and Futures."""

    def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return self.send(method, args, kwargs)
        except redis.RedisError as error:
            return error

    def look(self, reply: Any) -> tuple[str, Any]:
        if type(reply) is autobatch.Future and reply.exception() is not None:
            return told(reply.exception())
        reply = autobatch.unwrap(reply)
        return told(reply) if isinstance(reply, Exception) else ("value", reply)

    def lend(self, reply: Any) -> Any:
        return reply

    def block(self, block: Block) -> None:
        try:
            if block.decorator:
                autobatch.batch(join=block.join)(self.body)(block)
            else:
                with autobatch.batch(join=block.join):
                    self.body(block)
        except Boom as error:
            self.log.append(("failed", also_failed(error)))
        except redis.RedisError as error:
            self.log.append(("unseen", told(error), also_failed(error)))

    def body(self, block: Block) -> None:
        self.run(block.steps)
        if block.fails:
            raise Boom


def also_failed(error: Exception) -> int:
    return sum(note.startswith("Also failed") for note in getattr(error, "__notes__", ()))


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


@pytest.fixture(scope="module")
def databases(server):
    """Two databases: one for the plain run, one for the batched run."""
    plain = redis.Redis(port=server, db=1, decode_responses=True)
    batching = autobatch.Redis(port=server, db=2, decode_responses=True)
    with plain, batching:
        yield plain, batching


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=steps())
def test_a_program_means_the_same_batched(databases, program):
    plain, batching = databases
    for client in (plain, batching):
        client.flushdb()
        client.set("a", "5")
        client.hset("b", "x", "1")
        client.rpush("c", "x", "y")
        client.zadd("d", {"x": 1})
    expected = PlainRun(plain).run(program)
    assert BatchedRun(batching).run(program) == expected
    assert keyspace(batching.eager) == keyspace(plain)
