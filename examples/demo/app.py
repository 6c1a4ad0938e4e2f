"""The web application: three pages that show the same, and the picture of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

import autobatch
from autobatch.asgi import BatchMiddleware
from examples.demo import page, piped
from examples.demo.front import Front
from examples.demo.seed import VISITOR
from examples.demo.shop import Shop


def create_app(redis_port: int) -> Starlette:
    """Return the application. Its index page is added when there is something to show."""

    def connect(kind: type[redis.Redis], database: int) -> redis.Redis:
        return kind(port=redis_port, db=database, decode_responses=True)

    fronts: dict[str, Callable[[str], Front]] = {
        "/plain": Shop(connect(redis.Redis, 0)).front,
        "/pipeline": functools.partial(piped.front, connect(redis.Redis, 1)),
        "/autobatch": Shop(connect(autobatch.Redis, 2)).front,
    }
    app = Starlette(routes=[Route(path, _endpoint(front)) for path, front in fronts.items()])
    app.add_middleware(BatchMiddleware)
    return app


def _endpoint(front: Callable[[str], Front]) -> Callable[[Request], HTMLResponse]:
    def show(_: Request) -> HTMLResponse:
        return HTMLResponse(page.render(front(VISITOR)))

    return show


def add_index(app: Starlette, html: str) -> None:
    """Serve the picture."""
    app.routes.append(Route("/", lambda _: HTMLResponse(html)))
