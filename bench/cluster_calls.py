"""Benchmarks of a cluster: batches of commands that belong to several nodes.

Half of the commands GET, half SET with an expiry, and their keys are random. Client time is
measured on nodes that are near. How long a batch takes is measured behind delays, as that depends
on how often, and for how many nodes at a time, a client waits: it is held against a round trip to
one node.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import hiredis
import redis
import redis.asyncio

import autobatch
import autobatch.asyncio
from bench.asyncio_calls import in_a_loop, peer
from bench.calls import VALUE
from bench.harness import Benchmark, Run, Setup, repeated

HOST = "127.0.0.1"
DAY = 86_400
BATCHES = 20  # of each size; they take turns

_random = random.Random(0)
KEYS = [f"bench:{_random.getrandbits(32):08x}" for _ in range(5_000)]

# Whether it writes, and the key.
Commands: TypeAlias = list[tuple[bool, str]]
Request: TypeAlias = Callable[[Any, Commands], list[Any]]
AsyncRequest: TypeAlias = Callable[[Any, Commands], Awaitable[list[Any]]]


def batches(size: int, keys: list[str]) -> list[Commands]:
    """Return lists of commands; their replies are the same, place by place."""
    chosen = random.Random(size)
    writes = [bool(place % 2) for place in range(size)]
    return [list(zip(writes, chosen.sample(keys, size), strict=True)) for _ in range(BATCHES)]


def call(client: Any, commands: Commands) -> list[Any]:
    """Call each command on a client, or on a pipeline."""
    return [
        client.set(key, VALUE, ex=DAY) if writes else client.get(key) for writes, key in commands
    ]


# ---- synchronous clients ------------------------------------------------------------------


def with_client(kind: type[redis.RedisCluster], request: Request, size: int) -> Setup:
    """Return the set-up of a contender that works on a client."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        fill(port)
        with kind(HOST, port) as client:
            todo = itertools.cycle(batches(size, KEYS))
            yield repeated(lambda: request(client, next(todo)))

    return setup


def fill(port: int) -> None:
    """Give all keys their value."""
    with redis.RedisCluster(HOST, port) as client:
        client.mset_nonatomic(dict.fromkeys(KEYS, VALUE))


def batch(client: autobatch.RedisCluster, commands: Commands) -> list[Any]:
    with autobatch.batch():
        return [future.value for future in call(client, commands)]


def pipeline(client: redis.RedisCluster, commands: Commands) -> list[Any]:
    pipe = client.pipeline()
    call(pipe, commands)
    values: list[Any] = pipe.execute()
    return values


# ---- asyncio ------------------------------------------------------------------------------


def open_autobatch(port: int) -> AbstractAsyncContextManager[Any]:
    client: AbstractAsyncContextManager[Any] = autobatch.asyncio.RedisCluster(HOST, port)
    return client


def open_redis_py(port: int) -> AbstractAsyncContextManager[Any]:
    return redis.asyncio.RedisCluster(HOST, port)


@contextlib.asynccontextmanager
async def open_coredis(port: int) -> AsyncIterator[Any]:
    async with peer("coredis").RedisCluster(HOST, port) as client:
        yield client


@contextlib.asynccontextmanager
async def open_glide(port: int) -> AsyncIterator[Any]:
    glide = peer("glide")
    configuration = glide.GlideClusterClientConfiguration([glide.NodeAddress(HOST, port)])
    client = await glide.GlideClusterClient.create(configuration)
    try:
        yield client
    finally:
        await client.close()


def with_async_client(
    opening: Callable[[int], AbstractAsyncContextManager[Any]], request: AsyncRequest, size: int
) -> Setup:
    """Return the set-up of a contender that works on a client in a loop of its own."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        fill(port)
        todo = itertools.cycle(batches(size, KEYS))
        with in_a_loop(opening(port), lambda client: request(client, next(todo))) as run:
            yield run

    return setup


@autobatch.batch
async def abatch(client: Any, commands: Commands) -> list[Any]:
    return [await future for future in call(client, commands)]


async def apipeline(client: Any, commands: Commands) -> list[Any]:
    pipe = client.pipeline()
    call(pipe, commands)
    values: list[Any] = await pipe.execute()
    return values


async def coredis_pipeline(client: Any, commands: Commands) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        futures = call(pipe, commands)
    return [await future for future in futures]


async def glide_batch(client: Any, commands: Commands) -> list[Any]:
    glide = importlib.import_module("glide")
    expiry = glide.ExpirySet(glide.ExpiryType.SEC, DAY)
    todo = glide.ClusterBatch(is_atomic=False)
    for writes, key in commands:
        if writes:
            todo.set(key, VALUE, expiry=expiry)
        else:
            todo.get(key)
    values = await client.exec(todo, raise_on_error=True)
    return [value == "OK" or value for value in values]  # as the others say it


async def one_by_one(client: Any, commands: Commands) -> list[Any]:
    return [await coroutine for coroutine in call(client, commands)]


# ---- what a round trip to one node takes ---------------------------------------------------


def keys_by_node(port: int) -> dict[int, list[str]]:
    """Return the benchmark's keys by the port of the node that has them."""
    by_node: dict[int, list[str]] = {}
    with redis.RedisCluster(HOST, port) as client:
        for key in KEYS:
            by_node.setdefault(client.get_node_from_key(key).port, []).append(key)
    return by_node


def on_one_node(size: int) -> Setup:
    """Return the set-up of autobatch with as many commands, whose keys one node has."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        fill(port)
        keys = max(keys_by_node(port).values(), key=len)
        with autobatch.RedisCluster(HOST, port) as client:
            todo = itertools.cycle(batches(size, keys))
            yield repeated(lambda: batch(client, next(todo)))

    return setup


def bare(size: int) -> Setup:
    """Return the set-up of the floor: the part of the node that has most of a batch, no client."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        fill(port)
        node_of = {key: node for node, keys in keys_by_node(port).items() for key in keys}
        whole = batches(size, KEYS)
        parts = itertools.cycle([_largest_part(each, node_of) for each in whole])
        # The replies to the whole batch; of those that it is spared, too.
        replies = [True if writes else VALUE.encode() for writes, _ in whole[0]]
        with contextlib.ExitStack() as stack:
            connections = {
                node: stack.enter_context(socket.create_connection((HOST, node)))
                for node in set(node_of.values())
            }
            for connection in connections.values():
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def run(times: int) -> object:
                for _ in range(times):
                    node, commands = next(parts)
                    _exchange(connections[node], commands)
                return replies

            yield run

    return setup


def _largest_part(commands: Commands, node_of: dict[str, int]) -> tuple[int, Commands]:
    parts: dict[int, Commands] = {}
    for writes, key in commands:
        parts.setdefault(node_of[key], []).append((writes, key))
    return max(parts.items(), key=lambda part: len(part[1]))


def _exchange(connection: socket.socket, commands: Commands) -> None:
    calls: list[tuple[Any, ...]] = [
        ("SET", key, VALUE, "EX", DAY) if writes else ("GET", key) for writes, key in commands
    ]
    connection.sendall(b"".join(map(hiredis.pack_command, calls)))
    reader = hiredis.Reader()
    expected = len(commands)
    while expected:
        reader.feed(connection.recv(65536))
        while (reply := reader.gets()) is not False:
            assert reply in (b"OK", VALUE.encode()), reply
            expected -= 1


# ---- the benchmarks ------------------------------------------------------------------------

CLUSTER_PIPELINE = "redis-py, ClusterPipeline"
ASYNC_CLUSTER_PIPELINE = "redis.asyncio, ClusterPipeline"
ONE_NODE = "autobatch, keys of one node"


def contenders(size: int) -> dict[str, Setup]:
    return {
        "autobatch": with_client(autobatch.RedisCluster, batch, size),
        CLUSTER_PIPELINE: with_client(redis.RedisCluster, pipeline, size),
    }


def async_contenders(size: int) -> dict[str, Setup]:
    return {
        "autobatch": with_async_client(open_autobatch, abatch, size),
        ASYNC_CLUSTER_PIPELINE: with_async_client(open_redis_py, apipeline, size),
        "coredis, pipeline": with_async_client(open_coredis, coredis_pipeline, size),
        "valkey-glide, batch": with_async_client(open_glide, glide_batch, size),
    }


def of_client_time(size: int, times: int) -> Benchmark:
    return Benchmark(
        name=f"cluster-{size}",
        title=f"3 nodes: {size} commands",
        unit="command",
        units=size,
        times=times,
        base=CLUSTER_PIPELINE,
        contenders=contenders(size)
        | {"redis-py, one by one": with_client(redis.RedisCluster, call, size)},
    )


def of_async_client_time(size: int, times: int) -> Benchmark:
    return Benchmark(
        name=f"cluster-asyncio-{size}",
        title=f"3 nodes, asyncio: {size} commands",
        unit="command",
        units=size,
        times=times,
        base=ASYNC_CLUSTER_PIPELINE,
        contenders=async_contenders(size)
        | {"redis.asyncio, one by one": with_async_client(open_redis_py, one_by_one, size)},
    )


def of_wall_time(size: int, delay: float) -> Benchmark:
    asynchronous = async_contenders(size)
    return Benchmark(
        name=f"cluster-wall-{size}",
        title=f"3 nodes, {1000 * delay:g} ms away each: a batch of {size} commands",
        unit="batch",
        units=1,
        times=2,
        base=ONE_NODE,
        contenders={
            ONE_NODE: on_one_node(size),
            **contenders(size),
            "autobatch.asyncio": asynchronous.pop("autobatch"),
            **asynchronous,
            "hiredis and a socket, one part": bare(size),
        },
    )


DELAY = 0.001  # seconds, each way
NEAR = [
    of_client_time(50, 10),
    of_client_time(500, 2),
    of_async_client_time(50, 10),
    of_async_client_time(500, 2),
]
FAR = [of_wall_time(50, DELAY), of_wall_time(500, DELAY)]
