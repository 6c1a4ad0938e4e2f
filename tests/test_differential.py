"""Batching never changes what a program means: random programs, run plain and batched.

A program is a list of steps. The plain run executes each call at once and writes down its reply or
its error; the batched run goes through scopes, Futures and flushes. Both must observe the same
values and errors at the same steps, the same first unseen error at the end of each outermost scope,
and leave the same keys behind.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings

import autobatch
from programs_of_steps import (
    AT_ONCE,
    INCREMENT,
    Block,
    Boom,
    Call,
    Result,
    also_failed,
    keyspace,
    prepare,
    steps,
    told,
)


class Run:
    """One execution of a program; the subclasses differ in what a reply and a block are."""

    errors: type[Exception] = redis.RedisError  # of the client's library

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


class PlainRun(Run):
    """Every call at once. Which errors nobody looked at is kept in books."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.unseen: list[list[dict[str, Any]]] = []  # of each scope that is not joined

    def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return {"value": self.send(method, args, kwargs)}
        except self.errors as error:
            reply = {"error": error, "seen": False}
            if self.unseen:
                self.unseen[-1].append(reply)
            return reply

    def look(self, reply: Any) -> tuple[str, Any]:
        reply["seen"] = True
        return told(reply["error"]) if "error" in reply else ("value", reply["value"])

    def lend(self, reply: Any) -> Any:
        return reply["value"]

    def block(self, block: Block) -> None:
        own = not self.unseen or not block.join
        if own:
            self.unseen.append([])
        self.run(block.steps)
        unseen = [reply for reply in self.unseen.pop() if not reply["seen"]] if own else []
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
        except self.errors as error:
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
        except self.errors as error:
            self.log.append(("unseen", told(error), also_failed(error)))

    def body(self, block: Block) -> None:
        self.run(block.steps)
        if block.fails:
            raise Boom


@pytest.fixture(scope="module")
def databases(server):
    """Two databases: one for the plain run, one for the batched run."""
    plain = redis.Redis(port=server, db=1, decode_responses=True)
    batching = autobatch.Redis(port=server, db=2, decode_responses=True)
    with plain, batching:
        yield plain, batching


@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=steps())
def test_a_program_means_the_same_batched(databases, program):
    plain, batching = databases
    for client in databases:
        prepare(client)
    expected = PlainRun(plain).run(program)
    assert BatchedRun(batching).run(program) == expected
    assert keyspace(batching.eager) == keyspace(plain)
