"""The web application: six pages that show the same, and the picture of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

import autobatch.asyncio
from autobatch.asgi import BatchMiddleware
from examples.demo import awaited, page, piped
from examples.demo.front import Front
from examples.demo.seed import VISITOR
from examples.demo.shop import Shop

AnyAsyncRedis = TypeVar("AnyAsyncRedis", bound=redis.asyncio.Redis)


def create_app(redis_port: int) -> Starlette:
    """Return the application. Its index page is added when there is something to show."""
    clients = contextlib.AsyncExitStack()

    def connect(kind: Callable[..., redis.Redis], database: int) -> redis.Redis:
        client = kind(port=redis_port, db=database, decode_responses=True)
        clients.callback(client.close)
        return client

    def aconnect(kind: Callable[..., AnyAsyncRedis], database: int) -> AnyAsyncRedis:
        client = kind(port=redis_port, db=database, decode_responses=True)
        clients.push_async_callback(client.aclose)
        return client

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with clients:
            yield

    endpoints = {
        "/plain": _endpoint(Shop(connect(redis.Redis, 0)).front),
        "/pipeline": _endpoint(partial(piped.front, connect(redis.Redis, 1))),
        "/autobatch": _endpoint(Shop(connect(autobatch.Redis, 2)).front),
        "/asyncio/plain": _aendpoint(
            partial(awaited.front_plain, aconnect(redis.asyncio.Redis, 3))
        ),
        "/asyncio/pipeline": _aendpoint(
            partial(awaited.front_pipeline, aconnect(redis.asyncio.Redis, 4))
        ),
        "/asyncio/autobatch": _aendpoint(
            partial(awaited.front_autobatch, aconnect(autobatch.asyncio.Redis, 5))
        ),
    }
    app = Starlette(
        routes=[Route(path, endpoint) for path, endpoint in endpoints.items()], lifespan=lifespan
    )
    app.add_middleware(BatchMiddleware)
    return app


def _endpoint(front: Callable[[str], Front]) -> Callable[[Request], HTMLResponse]:
    def show(_: Request) -> HTMLResponse:
        return HTMLResponse(page.render(front(VISITOR)))

    return show


def _aendpoint(
    front: Callable[[str], Awaitable[Front]],
) -> Callable[[Request], Awaitable[HTMLResponse]]:
    async def show(_: Request) -> HTMLResponse:
        return HTMLResponse(page.render(await front(VISITOR)))

    return show


def add_index(app: Starlette, html: str) -> None:
    """Serve the picture."""
    app.routes.append(Route("/", lambda _: HTMLResponse(html)))
