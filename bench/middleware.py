"""Benchmarks of the middleware: what it adds to a request that does not call Redis.

The applications are called directly, without an HTTP server, and do next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from autobatch import asgi, wsgi
from bench.harness import Benchmark, Run, Setup, repeated


async def asgi_app(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def wsgi_app(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def with_asgi(app: Any) -> Setup:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def requests(times: int) -> list[bytes]:
        body: list[bytes] = []

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                body.append(message["body"])

        for _ in range(times):
            body.clear()
            await app({"type": "http", "method": "GET", "path": "/"}, receive, send)
        return body

    @contextlib.contextmanager
    def setup(_port: int) -> Iterator[Run]:
        with asyncio.Runner() as runner:
            yield lambda times: runner.run(requests(times))

    return setup


def with_wsgi(app: Any) -> Setup:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        pass

    def request() -> list[bytes]:
        chunks = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start_response)
        body = list(chunks)
        if hasattr(chunks, "close"):
            chunks.close()
        return body

    @contextlib.contextmanager
    def setup(_port: int) -> Iterator[Run]:
        yield repeated(request)

    return setup


ASGI = Benchmark(
    name="asgi",
    title="An ASGI request without a Redis call",
    unit="request",
    units=1,
    times=1000,
    base="bare application",
    contenders={
        "with BatchMiddleware": with_asgi(asgi.BatchMiddleware(asgi_app)),
        "bare application": with_asgi(asgi_app),
    },
)
WSGI = Benchmark(
    name="wsgi",
    title="A WSGI request without a Redis call",
    unit="request",
    units=1,
    times=1000,
    base="bare application",
    contenders={
        "with BatchMiddleware": with_wsgi(wsgi.BatchMiddleware(wsgi_app)),
        "bare application": with_wsgi(wsgi_app),
    },
)
