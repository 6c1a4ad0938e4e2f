"""Batching never changes what a program means, on a cluster either.

The programs and the runs are those of test_differential.py and test_differential_asyncio.py, with
redis-py's client of a cluster as the judge. Their keys are of one slot, or of several nodes.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable
from types import CoroutineType
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from redis.exceptions import RedisClusterException

import autobatch
import autobatch.asyncio
import test_differential as synchronous
import test_differential_asyncio as asynchronous
from clusters import HOST, Cluster
from programs_of_steps import keyspace, prepare, steps, told

pytestmark = pytest.mark.server

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
TAGS = {"one slot": "{{t}}{}", "several nodes": "{}"}


class Refused(redis.RedisError):
    """A client of a cluster does not send this; each says so in its own words, at the call."""


class Tagged:
    """A client whose keys all get a tag."""

    def __init__(self, client: Any, tag: str) -> None:
        self._client = client
        self._tag = tag

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return functools.partial(self._call, method) if callable(method) else method

    def register_script(self, source: str) -> Any:
        script = self._client.register_script(source)
        return lambda keys, args: self._call(script, self.tagged(keys), args)

    def pipeline(self) -> Any:
        return TaggedPipeline(self._client.pipeline(), self._tag)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return self._result(method(*map(self.tagged, args), **kwargs))
        except RedisClusterException as error:
            raise Refused from error

    def _result(self, result: Any) -> Any:
        # By its type: to ask a Future in any other way forces it.
        return self._awaited(result) if type(result) is CoroutineType else result

    async def _awaited(self, result: Any) -> Any:
        try:
            return await result
        except RedisClusterException as error:
            raise Refused from error

    def tagged(self, arg: Any) -> Any:
        if isinstance(arg, dict):
            return {self.tagged(key): value for key, value in arg.items()}
        if isinstance(arg, list):
            return [self.tagged(key) for key in arg]
        return self._tag.format(arg) if type(arg) is str and arg in {"a", "b", "c", "d"} else arg


class TaggedPipeline(Tagged):
    """The same for a pipeline, which returns itself."""

    def _result(self, result: Any) -> Any:
        return self if result is self._client else super()._result(result)

    def __enter__(self) -> Any:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)

    async def __aenter__(self) -> Any:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)


class PlainRun(synchronous.PlainRun):
    """What is refused is refused at the call, so it is no unseen error of a scope."""

    def invoke(self, *call: Any) -> Any:
        reply = super().invoke(*call)
        reply["seen"] = isinstance(reply.get("error"), Refused)
        return reply


class PlainAsyncRun(asynchronous.PlainRun):
    """The same with asyncio."""

    async def invoke(self, *call: Any) -> Any:
        reply = await super().invoke(*call)
        reply["seen"] = isinstance(reply.get("error"), Refused)
        return reply


class BatchedAsyncRun(asynchronous.BatchedRun):
    """What is refused is not queued, so the call itself raises."""

    async def invoke(self, *call: Any) -> Any:
        try:
            return await super().invoke(*call)
        except Refused as error:
            return error


@pytest.fixture(scope="module")
def cluster():
    """A cluster without proxies, which would take their time at each call."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(params=TAGS.values(), ids=TAGS)
def tag(request):
    return request.param


def empty(cluster: Cluster) -> None:
    for port in cluster.primaries:
        cluster.node(port).flushall()


def found(cluster: Cluster) -> dict[str, Any]:
    return {k: v for port in cluster.primaries for k, v in keyspace(cluster.node(port)).items()}


def settings_of(cluster: Cluster) -> dict[str, Any]:
    return {"host": HOST, "port": cluster.ports[0], "decode_responses": True}


@pytest.fixture
def compare(cluster, tag):
    """Run a program plain and batched, and compare."""
    options = settings_of(cluster)
    with redis.RedisCluster(**options) as plain, autobatch.RedisCluster(**options) as batching:

        def compare(program):
            seen = []
            for client, kind in (plain, PlainRun), (batching, synchronous.BatchedRun):
                empty(cluster)
                tagged = Tagged(client, tag)
                prepare(tagged)
                seen.append((kind(tagged).run(program), found(cluster)))
            assert seen[1] == seen[0]

        yield compare


@SETTINGS
@given(program=steps())
def test_a_program_means_the_same_batched(compare, program):
    compare(program)


@pytest.fixture
def compare_with_asyncio(cluster, tag):
    """The same in an event loop. What nobody looks at is told to the loop's handler."""
    options = settings_of(cluster)
    reported: list[Any] = []

    async def run(client: Any, kind: Any, program: Any) -> tuple[Any, ...]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        async with asyncio.timeout(asynchronous.PATIENCE):
            tagged = Tagged(client, tag)
            for prepared in prepare(tagged):
                await prepared
            one = kind(tagged)
            await one.run(program)
            await autobatch.asyncio.flush()
        one.replies.clear()
        gc.collect()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        reported_now = [context["exception"] for context in reported]
        reported.clear()
        unseen = one.unseen() if isinstance(one, PlainAsyncRun) else reported_now
        return one.log, sorted(map(told, unseen)), found(cluster)

    gc.collect()
    gc.freeze()  # each comparison collects: not all that was there before
    with asyncio.Runner() as runner:
        plain = redis.asyncio.RedisCluster(**options)
        batching = autobatch.asyncio.RedisCluster(**options)
        # A program may begin with FLUSHDB, a coroutine as long as the nodes are not known.
        runner.run(batching.initialize())

        def compare(program):
            seen = []
            for client, kind in (plain, PlainAsyncRun), (batching, BatchedAsyncRun):
                empty(cluster)
                seen.append(runner.run(run(client, kind, program)))
            assert seen[1] == seen[0]

        yield compare
        runner.run(plain.aclose())
        runner.run(batching.aclose())
    gc.unfreeze()


@SETTINGS
@given(program=asynchronous.PROGRAMS)
def test_a_program_means_the_same_with_asyncio(compare_with_asyncio, program):
    compare_with_asyncio(program)
