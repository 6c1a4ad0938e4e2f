"""Benchmarks of Redis calls: many in a batch, and a lone one.

The clients have their defaults, as most programs do: RESP3, replies as bytes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import hiredis
import redis

import autobatch
from bench.harness import Benchmark, Run, Setup, repeated

KEYS = [f"bench:{number}" for number in range(50)]
VALUE = "x" * 20


def with_client(kind: type[redis.Redis], work: Callable[[Any], object]) -> Setup:
    """Return the set-up of a contender that works on a client."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        with kind(port=port) as client:
            client.mset(dict.fromkeys(KEYS, VALUE))
            yield repeated(lambda: work(client))

    return setup


def get_pipeline(client: redis.Redis) -> object:
    pipeline = client.pipeline(transaction=False)
    for key in KEYS:
        pipeline.get(key)
    return pipeline.execute()


def get_batch(client: autobatch.Redis) -> object:
    with autobatch.batch():
        futures: list[Any] = [client.get(key) for key in KEYS]
        return [future.value for future in futures]


def get_each(client: redis.Redis) -> object:
    return [client.get(key) for key in KEYS]


def set_pipeline(client: redis.Redis) -> object:
    pipeline = client.pipeline(transaction=False)
    for key in KEYS:
        pipeline.set(key, VALUE, ex=60)
    return pipeline.execute()


def set_batch(client: autobatch.Redis) -> object:
    with autobatch.batch():
        futures: list[Any] = [client.set(key, VALUE, ex=60) for key in KEYS]
        return [future.value for future in futures]


def set_each(client: redis.Redis) -> object:
    return [client.set(key, VALUE, ex=60) for key in KEYS]


def get_lone(client: redis.Redis) -> object:
    return client.get(KEYS[0])


def bare(command: Callable[[str], tuple[Any, ...]], value: Callable[[Any], object]) -> Setup:
    """Return the set-up of the floor: what packing, a socket and parsing cost without a client.

    Args:
        command: returns the command for a key.
        value: returns what a client makes of a reply; not measured.
    """

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def work() -> list[object]:
                connection.sendall(b"".join([hiredis.pack_command(command(key)) for key in KEYS]))
                reader = hiredis.Reader()
                replies: list[object] = []
                while len(replies) < len(KEYS):
                    reader.feed(connection.recv(65536))
                    while (reply := reader.gets()) is not False:
                        replies.append(reply)
                return replies

            def run(times: int) -> object:
                for _ in range(times):
                    replies = work()
                return [value(reply) for reply in replies]

            yield run

    return setup


GET50 = Benchmark(
    name="get50",
    title="50 GETs",
    unit="command",
    units=len(KEYS),
    times=10,
    base="redis-py, pipeline",
    contenders={
        "autobatch": with_client(autobatch.Redis, get_batch),
        "redis-py, pipeline": with_client(redis.Redis, get_pipeline),
        "redis-py, one by one": with_client(redis.Redis, get_each),
        "hiredis and a socket": bare(lambda key: ("GET", key), lambda reply: reply),
    },
)
SET50EX = Benchmark(
    name="set50ex",
    title="50 SET … EX",
    unit="command",
    units=len(KEYS),
    times=10,
    base="redis-py, pipeline",
    contenders={
        "autobatch": with_client(autobatch.Redis, set_batch),
        "redis-py, pipeline": with_client(redis.Redis, set_pipeline),
        "redis-py, one by one": with_client(redis.Redis, set_each),
        "hiredis and a socket": bare(
            lambda key: ("SET", key, VALUE, "EX", 60), lambda reply: reply == b"OK"
        ),
    },
)
LONE = Benchmark(
    name="lone",
    title="One GET outside a scope",
    unit="command",
    units=1,
    times=100,
    base="redis-py",
    contenders={
        "autobatch": with_client(autobatch.Redis, get_lone),
        "redis-py": with_client(redis.Redis, get_lone),
    },
)
