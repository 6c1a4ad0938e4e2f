"""Batching never changes what a program means, with asyncio clients either.

As in test_differential.py, but in the batched run most calls are not awaited at once, some are
gathered, tasks run side by side, and the wait for a read may be cancelled. The plain run is
redis.asyncio's client, which awaits one call after the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autobatch
import autobatch.asyncio
from programs_of_steps import (
    AT_ONCE,
    INCREMENT,
    LOOKS,
    Block,
    Boom,
    Call,
    Look,
    Result,
    also_failed,
    calls,
    keyspace,
    prepare,
    steps,
    told,
)

PATIENCE = 20  # seconds: who waits so long has met a bug, and fails instead of hanging


@dataclasses.dataclass(frozen=True)
class LookBy:
    """Look at the reply of an earlier call in a certain way."""

    back: int
    way: str


@dataclasses.dataclass(frozen=True)
class Gather:
    """Make some calls, and gather their replies."""

    calls: tuple[Call, ...]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Let tasks make calls side by side, each to a key of its own; each looks at every reply."""

    tasks: tuple[tuple[Call, ...], ...]


@dataclasses.dataclass(frozen=True)
class Cancel:
    """Make a read, wait for it in a task, and cancel that after some turns of the loop."""

    call: Call
    turns: int


@dataclasses.dataclass(frozen=True)
class Pause:
    """Let the loop have some turns."""

    turns: int


@dataclasses.dataclass(frozen=True)
class Flush:
    """Send what waits."""


ALONE = (*AT_ONCE, "pipeline", "script after a flush")
QUEUED = calls(*ALONE)
READS = calls(only=["get", "mget", "hgetall", "lrange", "smembers", "zrank"])
SEVERAL_KEYS = ("mget", "delete", "exists", "rename", "lmove", "sinter")
ONE_KEY = calls(*ALONE, *SEVERAL_KEYS, "xread", "eval", "script", "execute_command")
WAYS = st.sampled_from(["task", "wait_for", "shield", "flush", "map"])
PROGRAMS = steps(
    LOOKS,
    st.builds(LookBy, st.integers(0, 3), WAYS),
    st.builds(Gather, st.lists(QUEUED, min_size=2, max_size=5).map(tuple)),
    st.builds(
        Tasks,
        st.lists(st.lists(ONE_KEY, min_size=1, max_size=4).map(tuple), min_size=2, max_size=3),
    ),
    st.builds(Cancel, READS, st.integers(0, 2)),
    st.builds(Pause, st.integers(0, 3)),
    st.builds(Flush),
)


class Run:
    """One execution of a program; the subclasses differ in what a reply and a block are."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.log: list[Any] = []
        self.replies: list[Any] = []
        self.script = client.register_script(INCREMENT)

    async def run(self, program: tuple[Any, ...]) -> None:
        for step in program:
            if isinstance(step, Block):
                await self.block(step)
            elif isinstance(step, Call):
                self.replies.append(await self.call(step))
            elif isinstance(step, Look | LookBy):
                if step.back < len(self.replies):
                    way = getattr(step, "way", "await")
                    self.log.append(await self.look(self.replies[-1 - step.back], way))
            elif isinstance(step, Gather):
                self.log.append(await self.gather([await self.prepared(c) for c in step.calls]))
            elif isinstance(step, Tasks):
                self.log.append(await self.tasks(step.tasks))
            elif isinstance(step, Cancel):
                self.replies.append(await self.cancel(await self.prepared(step.call), step.turns))
            elif isinstance(step, Pause):
                await self.pause(step.turns)
            else:
                await self.flush()

    async def prepared(self, call: Call) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the method, and the arguments with the replies that stand in them."""
        args = [await self.argument(a) if isinstance(a, Result) else a for a in call.args]
        return call.method, args, dict(call.kwargs)

    async def argument(self, result: Result) -> Any:
        if result.back >= len(self.replies):
            return "no reply"
        reply = self.replies[-1 - result.back]
        kind, value = await self.look(reply)
        return self.lend(reply) if kind == "value" and type(value) in (str, int) else "no argument"

    async def call(self, call: Call) -> Any:
        reply = await self.invoke(*await self.prepared(call))
        if call.method in AT_ONCE:
            await self.look(reply)
        return reply

    async def single_key_calls(self, number: int, some: tuple[Call, ...]) -> list[Any]:
        replies = []
        for call in some:
            args = [
                f"task {number}",
                *("a result" if isinstance(a, Result) else a for a in call.args[1:]),
            ]
            replies.append(await self.invoke(call.method, args, dict(call.kwargs)))
            if number == 1:  # one of them awaits each call, the others call first
                await self.look(replies[-1])
        return [await self.look(reply) for reply in replies]

    async def send_pipeline(self, args: list[Any]) -> list[str]:
        async with self.client.pipeline() as pipe:
            pipe.set("p", args[1]).get(args[0]).type(args[0])
            return [str(reply) for reply in await pipe.execute(raise_on_error=False)]

    def begin(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call, and return what has to be awaited."""
        if method.startswith("script"):
            return self.script(keys=args[:1], args=args[1:])
        if method == "pipeline":
            return self.send_pipeline(args)
        return getattr(self.client, method)(*args, **kwargs)


class PlainRun(Run):
    """Every call is awaited at once. Which errors nobody looked at is kept in books."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client)
        # Of everything outside the scopes, and then of each scope that is not joined.
        self.errors: list[list[dict[str, Any]]] = [[]]

    async def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            if method == "script after a flush":
                await self.client.script_flush()
            return {"value": await self.begin(method, args, kwargs)}
        except redis.RedisError as error:
            reply = {"error": error, "seen": False}
            self.errors[-1].append(reply)
            return reply

    async def look(self, reply: Any, way: str = "await") -> tuple[str, Any]:
        reply["seen"] = True
        return told(reply["error"]) if "error" in reply else ("value", reply["value"])

    def lend(self, reply: Any) -> Any:
        return reply["value"]

    async def gather(self, prepared: list[Any]) -> list[Any]:
        return [await self.look(await self.invoke(*one)) for one in prepared]

    async def tasks(self, tasks: Any) -> list[Any]:
        return [await self.single_key_calls(number, some) for number, some in enumerate(tasks)]

    async def cancel(self, prepared: Any, turns: int) -> Any:
        return await self.invoke(*prepared)

    async def pause(self, turns: int) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def block(self, block: Block) -> None:
        own = len(self.errors) == 1 or not block.join
        if own:
            self.errors.append([])
        await self.run(block.steps)
        unseen = self.unseen() if own else []
        if block.fails:
            self.log.append(("failed", len(unseen)))
        elif unseen:
            self.log.append(("unseen", told(unseen[0]), len(unseen) - 1))

    def unseen(self) -> list[Exception]:
        unseen = [reply for reply in self.errors.pop() if not reply["seen"]]
        for reply in unseen:
            reply["seen"] = True
        return [reply["error"] for reply in unseen]


class BatchedRun(Run):
    """Through scopes and Futures."""

    async def invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if method == "script after a flush":
            await self.client.script_flush()
        reply = self.begin(method, args, kwargs)
        if type(reply) is autobatch.future.AsyncFuture:
            return reply
        # What steps aside is a coroutine: whoever calls it has to await it.
        try:
            return await reply
        except redis.RedisError as error:
            return error

    async def look(self, reply: Any, way: str = "await") -> tuple[str, Any]:
        if type(reply) is not autobatch.future.AsyncFuture:
            return told(reply) if isinstance(reply, redis.RedisError) else ("value", reply)
        try:
            return "value", await self.settled(reply, way)
        except redis.RedisError as error:
            return told(error)

    async def settled(self, future: Any, way: str) -> Any:
        if way == "task":
            return await asyncio.create_task(future)
        if way == "wait_for":
            return await asyncio.wait_for(future, PATIENCE)
        if way == "shield":
            return await asyncio.shield(future)
        if way == "map":
            return await future.map(lambda value: value)
        if way == "flush":
            if not future.done():
                await autobatch.asyncio.flush()
            return future.value
        return await future

    def lend(self, reply: Any) -> Any:
        return reply

    async def gather(self, prepared: list[Any]) -> list[Any]:
        replies = [await self.invoke(*one) for one in prepared]
        # No return_exceptions: each Future tells its own error.
        return list(await asyncio.gather(*map(self.look, replies)))

    async def tasks(self, tasks: Any) -> list[Any]:
        return list(
            await asyncio.gather(*(self.single_key_calls(n, s) for n, s in enumerate(tasks)))
        )

    async def cancel(self, prepared: Any, turns: int) -> Any:
        reply = await self.invoke(*prepared)
        if type(reply) is autobatch.future.AsyncFuture and not reply.done():
            waiting = asyncio.create_task(reply)
            await self.pause(turns)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        return reply

    async def pause(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def flush(self) -> None:
        await autobatch.asyncio.flush()

    async def block(self, block: Block) -> None:
        try:
            if block.decorator:
                await autobatch.batch(join=block.join)(self.body)(block)
            else:
                async with autobatch.batch(join=block.join):
                    await self.body(block)
        except Boom as error:
            self.log.append(("failed", also_failed(error)))
        except redis.RedisError as error:
            self.log.append(("unseen", told(error), also_failed(error)))

    async def body(self, block: Block) -> None:
        await self.run(block.steps)
        if block.fails:
            raise Boom


class Databases:
    """Two databases, in one loop: one for the plain run, one for the batched run."""

    def __init__(self, port: int) -> None:
        self.plain = redis.asyncio.Redis(port=port, db=1, decode_responses=True)
        self.batching = autobatch.asyncio.Redis(port=port, db=2, decode_responses=True)
        self.seen = [redis.Redis(port=port, db=db, decode_responses=True) for db in (1, 2)]
        self.reported: list[Any] = []

    async def compare(self, program: tuple[Any, ...]) -> None:
        self.reported.clear()
        asyncio.get_running_loop().set_exception_handler(lambda _, c: self.reported.append(c))
        async with asyncio.timeout(PATIENCE):
            for client in (self.plain, self.batching):
                for prepared in prepare(client):
                    await prepared
            plain = PlainRun(self.plain)
            await plain.run(program)
            batched = BatchedRun(self.batching)
            await batched.run(program)
            await autobatch.asyncio.flush()
        assert batched.log == plain.log
        batched.replies.clear()
        gc.collect()
        await asyncio.sleep(0)
        assert sorted(told(context["exception"]) for context in self.reported) == sorted(
            map(told, plain.unseen())
        )
        assert len(asyncio.all_tasks()) == 1
        assert keyspace(self.seen[1]) == keyspace(self.seen[0])

    async def close(self) -> None:
        await self.plain.aclose()
        await self.batching.aclose()
        for client in self.seen:
            client.close()


@pytest.fixture(scope="module")
def compare(server):
    """Run a program plain and batched, and compare."""
    gc.collect()
    gc.freeze()  # each comparison collects: not all that was there before
    with asyncio.Runner() as runner:
        databases = Databases(server)
        yield lambda program: runner.run(databases.compare(program))
        runner.run(databases.close())
    gc.unfreeze()


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=PROGRAMS)
def test_a_program_means_the_same_batched(compare, program):
    compare(program)
