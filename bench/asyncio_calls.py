"""Benchmarks of asyncio's calls: batches, concurrent requests, gathered awaits, and a lone one.

Each contender has an event loop of its own, which stands still while the others run. valkey-glide
works in threads of its own as well: client time is that of the whole process, so it counts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import redis
import redis.asyncio

import autobatch
from autobatch.asyncio import Redis
from bench.calls import KEYS, VALUE
from bench.harness import Benchmark, Run, Setup, Unavailable

Work: TypeAlias = Callable[[Any], Awaitable[object]]
# Takes the server's port.
Opening: TypeAlias = Callable[[int], AbstractAsyncContextManager[Any]]

REQUESTS = 64
KEYS_OF_REQUEST = KEYS[:10]


def open_autobatch(port: int) -> AbstractAsyncContextManager[Any]:
    client: AbstractAsyncContextManager[Any] = Redis(port=port)
    return client


def open_redis_py(port: int) -> AbstractAsyncContextManager[Any]:
    return redis.asyncio.Redis(port=port)


@contextlib.asynccontextmanager
async def open_coredis(port: int) -> AsyncIterator[Any]:
    coredis = peer("coredis")
    async with coredis.Redis(port=port) as client:
        yield client


@contextlib.asynccontextmanager
async def open_glide(port: int) -> AsyncIterator[Any]:
    glide = peer("glide")
    address = glide.NodeAddress("127.0.0.1", port)
    client = await glide.GlideClient.create(glide.GlideClientConfiguration([address]))
    try:
        yield client
    finally:
        await client.close()


def peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{error}; `make bench` installs it") from error


def with_client(opening: Opening, work: Work) -> Setup:
    """Return the set-up of a contender that works on a client in a loop of its own."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        with redis.Redis(port=port) as plain:
            plain.mset(dict.fromkeys(KEYS, VALUE))
        with in_a_loop(opening(port), work) as run:
            yield run

    return setup


@contextlib.contextmanager
def in_a_loop(opening: AbstractAsyncContextManager[Any], work: Work) -> Iterator[Run]:
    """Give what works on a client, in a loop of its own that runs no longer than it takes."""
    with asyncio.Runner() as runner:
        keeper, client = runner.run(_keep(opening))

        async def repeat(times: int) -> object:
            result: object = None
            for _ in range(times):
                result = await work(client)
            return result

        try:
            yield lambda times: runner.run(repeat(times))
        finally:
            runner.run(_end(keeper))


async def _keep(opening: AbstractAsyncContextManager[Any]) -> tuple[asyncio.Task[None], Any]:
    """Open a client in a task that closes it, too: coredis wants both in one task."""
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def keep() -> None:
        async with opening as client:
            opened.set_result(client)
            await asyncio.Event().wait()  # to be cancelled

    keeper = asyncio.create_task(keep())
    await asyncio.wait([keeper, opened], return_when=asyncio.FIRST_COMPLETED)
    if keeper.done():
        keeper.result()
    return keeper, opened.result()


async def _end(keeper: asyncio.Task[None]) -> None:
    keeper.cancel()
    await asyncio.wait([keeper])


# ---- one request: a batch of commands ----------------------------------------------------


@autobatch.batch
async def batch(client: Any, keys: list[str]) -> list[Any]:
    futures = [client.get(key) for key in keys]
    return [await future for future in futures]


async def redis_py_pipeline(client: Any, keys: list[str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.get(key)
    values: list[Any] = await pipeline.execute()
    return values


async def coredis_pipeline(client: Any, keys: list[str]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        futures = [pipeline.get(key) for key in keys]
    return [await future for future in futures]


async def glide_batch(client: Any, keys: list[str]) -> list[Any]:
    pipeline = importlib.import_module("glide").Batch(is_atomic=False)
    for key in keys:
        pipeline.get(key)
    values: list[Any] = await client.exec(pipeline, raise_on_error=True)
    return values


async def one_by_one(client: Any, keys: list[str]) -> list[Any]:
    return [await client.get(key) for key in keys]


Request: TypeAlias = Callable[[Any, list[str]], Awaitable[list[Any]]]


def one(request: Request) -> Work:
    return lambda client: request(client, KEYS)


def concurrently(request: Request) -> Work:
    async def work(client: Any) -> object:
        return await asyncio.gather(*[request(client, KEYS_OF_REQUEST) for _ in range(REQUESTS)])

    return work


# ---- single awaits ------------------------------------------------------------------------


async def get(client: Any, key: str) -> Any:
    return await client.get(key)


async def gathered(client: Any) -> object:
    return await asyncio.gather(*[get(client, key) for key in KEYS])


async def lone(client: Any) -> object:
    return await client.get(KEYS[0])


def of_requests(shape: Callable[[Request], Work]) -> dict[str, Setup]:
    return {
        "autobatch": with_client(open_autobatch, shape(batch)),
        "redis.asyncio, pipeline": with_client(open_redis_py, shape(redis_py_pipeline)),
        "redis.asyncio, one by one": with_client(open_redis_py, shape(one_by_one)),
        "coredis, pipeline": with_client(open_coredis, shape(coredis_pipeline)),
        "valkey-glide, batch": with_client(open_glide, shape(glide_batch)),
    }


def of_clients(work: Work) -> dict[str, Setup]:
    return {
        "autobatch": with_client(open_autobatch, work),
        "redis.asyncio": with_client(open_redis_py, work),
        "coredis": with_client(open_coredis, work),
        "valkey-glide": with_client(open_glide, work),
    }


GET50 = Benchmark(
    name="asyncio-get50",
    title="asyncio: 50 GETs in one request",
    unit="command",
    units=len(KEYS),
    times=10,
    base="redis.asyncio, pipeline",
    contenders=of_requests(one),
)
CONCURRENT = Benchmark(
    name="asyncio-64x10",
    title="asyncio: 64 concurrent requests",
    unit="command",
    units=REQUESTS * len(KEYS_OF_REQUEST),
    times=1,
    base="redis.asyncio, pipeline",
    contenders=of_requests(concurrently),
)
GATHERED = Benchmark(
    name="asyncio-gather50",
    title="asyncio: 50 gathered GETs",
    unit="command",
    units=len(KEYS),
    times=10,
    base="redis.asyncio",
    contenders=of_clients(gathered),
)
LONE = Benchmark(
    name="asyncio-lone",
    title="asyncio: a lone GET",
    unit="command",
    units=1,
    times=100,
    base="redis.asyncio",
    contenders=of_clients(lone),
)
