"""Runs a library's usage three ways, on a real server behind a proxy that counts."""

from __future__ import annotations

import asyncio
import inspect
import re
from types import ModuleType
from typing import Any, NamedTuple

import redis
import redis.asyncio

import autobatch
from autobatch.testing import Proxy
from common import keyspace

from .record import Record

WAYS = ("plain", "batching", "eager")

# What no two runs have in common: times, and ids.
_VOLATILE = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(Z|\+00:00)?"  # ISO 8601
    rb"|\b1[6-9]\d{8}(\d{3}\b|\.\d+|\b)"  # a Unix time, in seconds or milliseconds
    rb"|[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}"  # a UUID
    rb"|127\.0\.0\.1:\d+|\b0\.\d{4,}\b"  # a client's address, how long something took
    rb"|(?<=^session:).*"
)


class Ran(NamedTuple):
    """What running a usage did.

    Attributes:
        results: what the library gave, by name.
        keyspace: what is in the server then.
        round_trips: how many it took.
    """

    results: dict[str, list[Any]]
    keyspace: Any
    round_trips: int


def run(usage: ModuleType, way: str, port: int) -> Ran:
    """Run a usage inside of a scope, on an empty server.

    Args:
        usage: a module of this package.
        way: one of WAYS.
        port: the server's.
    """
    with redis.Redis(port=port) as plain, Proxy(port) as proxy:
        plain.flushall()
        plain.script_flush()
        options = {"port": proxy.port, "decode_responses": getattr(usage, "DECODES", False)}
        if inspect.iscoroutinefunction(usage.use):
            results = asyncio.run(_run_async(usage, way, options))
        else:
            results = _run(usage, way, options)
        return Ran(results, _without_volatile(keyspace(plain)), len(proxy.exchanges))


def _run(usage: ModuleType, way: str, options: dict[str, Any]) -> dict[str, list[Any]]:
    kind = redis.Redis if way == "plain" else autobatch.Redis
    record = Record()
    with kind(**options) as client, autobatch.batch():
        usage.use(client.eager if way == "eager" else client, record)
        return record.results()


async def _run_async(usage: ModuleType, way: str, options: dict[str, Any]) -> dict[str, list[Any]]:
    kind = redis.asyncio.Redis if way == "plain" else autobatch.asyncio.Redis
    record = Record()
    async with kind(**options) as client, autobatch.batch():
        await usage.use(client.eager if way == "eager" else client, record)
        return record.results()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, bytes):
        return _VOLATILE.sub(b"*", value)
    if isinstance(value, float):  # a time as a score
        return _without_volatile(repr(value).encode())
    if isinstance(value, dict):
        return {_without_volatile(key): _without_volatile(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_volatile(part) for part in value]
    return value


def differences(ran: Ran, reference: Ran) -> list[str]:
    """Return in what a run differs from another one: names of results, or "the keyspace"."""
    names = [*reference.results, *(name for name in ran.results if name not in reference.results)]
    found = [name for name in names if ran.results.get(name) != reference.results.get(name)]
    return found + ["the keyspace"] * (ran.keyspace != reference.keyspace)
