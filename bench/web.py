"""The benchmark of a whole application: Starlette under uvicorn, and a server 2 ms away.

Four processes: the load generator, uvicorn, a proxy that stands for the network, the server. The
ways to make the calls take turns, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from autobatch.testing import free_port
from bench.calls import KEYS, VALUE

NAME = "web"
CALLS = 20
CONCURRENCY = 32
DELAY = 1.0  # milliseconds each way
ROOT = Path(__file__).parent.parent
WAYS = {
    "autobatch, awaited one by one": "/batch",
    "autobatch, gathered": "/gather",
    "redis.asyncio, pipeline": "/pipeline",
    "redis.asyncio, one by one": "/one-by-one",
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of one way: milliseconds, but for the rate.

    Attributes:
        rate: requests a second, the median of the rounds.
        p50, p99: how long a request takes for whoever waits.
        cpu: what a request costs the application's process.
    """

    rate: float
    p50: float
    p99: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out, way by way."""

    name: str
    title: str
    rounds: int
    requests: int
    ways: dict[str, Figures]


def measure(port: int, rounds: int, requests: int) -> Result:
    """Load the application with so many requests, in so many rounds each way."""
    with redis.Redis(port=port) as client:
        client.mset(dict.fromkeys(KEYS, VALUE))
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with _proxy(port) as remote, _application(remote) as application:
        order = list(WAYS)
        shuffle = random.Random(NAME).shuffle
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                seen[name].append(_load(application, WAYS[name], requests))
    bodies = {body for ones in seen.values() for one in ones for body in one["bodies"]}
    if bodies != {json.dumps([VALUE] * CALLS, separators=(",", ":"))}:
        raise AssertionError(f"unexpected pages: {bodies}")
    title = (
        f"Starlette under uvicorn, {CALLS} calls a request, {2 * DELAY:g} ms away, "
        f"{CONCURRENCY} requests at a time"
    )
    figures = {name: _figures(ones, requests) for name, ones in seen.items()}
    return Result(NAME, title, rounds, requests, figures)


def _load(application: int, path: str, requests: int) -> dict[str, Any]:
    arguments = [str(application), path, str(requests), str(CONCURRENCY)]
    before = _cpu(application)
    output = subprocess.run(
        [sys.executable, "-m", "bench.web_load", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    seen: dict[str, Any] = json.loads(output)
    # The generator's first requests, one a connection, are not measured otherwise.
    seen["cpu"] = (_cpu(application) - before) / (requests + CONCURRENCY)
    return seen


def _cpu(application: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{application}/cpu") as response:
        return float(response.read())


def _figures(ones: Sequence[dict[str, Any]], requests: int) -> Figures:
    latencies = sorted(1000 * latency for one in ones for latency in one["latencies"])
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return Figures(
        rate=statistics.median([requests / one["seconds"] for one in ones]),
        p50=percentiles[49],
        p99=percentiles[98],
        cpu=statistics.median([1000 * one["cpu"] for one in ones]),
    )


@contextlib.contextmanager
def _proxy(server: int) -> Iterator[int]:
    port = free_port()
    arguments = ["--server", str(server), "--listen", str(port), "--delay", str(DELAY)]
    with _process(["autobatch.testing", *arguments], port):
        yield port


@contextlib.contextmanager
def _application(server: int) -> Iterator[int]:
    port = free_port()
    arguments = ["bench.web_app:app", "--port", str(port), "--log-level", "warning"]
    with _process(["uvicorn", *arguments], port, BENCH_REDIS_PORT=str(server)):
        yield port


@contextlib.contextmanager
def _process(arguments: list[str], port: int, **environment: str) -> Iterator[None]:
    """Run a module in a process that listens on `port`."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **environment}
    )
    try:
        _wait_for(process, port)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def table(result: Result) -> str:
    """Return the figures as a table."""
    lines = [
        result.title,
        f"  {'':31}{'requests/s':>10}  {'p50 ms':>7}  {'p99 ms':>7}  {'CPU ms a request':>16}",
    ]
    for name, figures in result.ways.items():
        lines.append(
            f"  {name:31}{figures.rate:10.0f}  {figures.p50:7.1f}  {figures.p99:7.1f}"
            f"  {figures.cpu:16.2f}"
        )
    return "\n".join(lines)
