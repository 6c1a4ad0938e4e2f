"""The web application: six pages that show the same, and the picture of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

import autobatch.asyncio
from autobatch.asgi import BatchMiddleware
from autobatch.demo import awaited, page, piped
from autobatch.demo.front import Front
from autobatch.demo.seed import VISITOR
from autobatch.demo.shop import Shop

HOST = "127.0.0.1"


class Kinds(NamedTuple):
    """The classes of clients that the ways use."""

    plain: Any
    autobatch: Any
    async_plain: Any
    async_autobatch: Any


ONE_SERVER = Kinds(redis.Redis, autobatch.Redis, redis.asyncio.Redis, autobatch.asyncio.Redis)
CLUSTER = Kinds(
    redis.RedisCluster,
    autobatch.RedisCluster,
    redis.asyncio.RedisCluster,
    autobatch.asyncio.RedisCluster,
)


def create_app(redis_port: int, *, cluster: bool = False) -> Starlette:
    """Return the application. Its index page is added when there is something to show.

    Args:
        redis_port: where the server is, or one node of the cluster.
        cluster: it is a cluster, which has one database for all ways.
    """
    clients = contextlib.AsyncExitStack()
    kinds = CLUSTER if cluster else ONE_SERVER

    def options(database: int) -> dict[str, Any]:
        return {"decode_responses": True} | ({} if cluster else {"db": database})

    def connect(kind: Any, database: int) -> Any:
        client = kind(host=HOST, port=redis_port, **options(database))
        clients.callback(client.close)
        return client

    def aconnect(kind: Any, database: int) -> Any:
        client = kind(host=HOST, port=redis_port, **options(database))
        clients.push_async_callback(client.aclose)
        return client

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with clients:
            yield

    endpoints = {
        "/plain": _endpoint(Shop(connect(kinds.plain, 0)).front),
        "/pipeline": _endpoint(partial(piped.front, connect(kinds.plain, 1))),
        "/autobatch": _endpoint(Shop(connect(kinds.autobatch, 2)).front),
        "/asyncio/plain": _aendpoint(partial(awaited.front_plain, aconnect(kinds.async_plain, 3))),
        "/asyncio/pipeline": _aendpoint(
            partial(awaited.front_pipeline, aconnect(kinds.async_plain, 4))
        ),
        "/asyncio/autobatch": _aendpoint(
            partial(awaited.front_autobatch, aconnect(kinds.async_autobatch, 5))
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
