"""A guest book on Starlette. Every request is a batch, and what the handlers return is lazy.

$ python -m examples.starlette_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X POST http://127.0.0.1:8000/guests/ada
{"name":"ada","visits":1}
$ curl http://127.0.0.1:8000
{"views":1,"guests":["ada"],"visits":{"ada":"1"}}
$ curl -c cookies -b cookies http://127.0.0.1:8000/page
<p>Guest 2, and 1 guests before you: ada.</p>
"""

from __future__ import annotations

import os
import secrets
import signal
from typing import Any

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

import autobatch
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.starlette import HTMLResponse, JSONResponse  # for Starlette's own
from autobatch.integrations.starlette_sessions import SessionMiddleware
from autobatch.integrations.starlette_templates import Jinja2Templates
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)

PAGE = """\
<p>Guest {{ number }}, and {{ guests|length }} guests before you: {{ guests|join(", ") }}.</p>
"""
templates = Jinja2Templates(
    env=jinja2.Environment(loader=jinja2.DictLoader({"page": PAGE}), autoescape=True)
)


def sign(name: str) -> int:
    redis.lpush("example:guests", name)
    redis.ltrim("example:guests", 0, 9)
    return redis.hincrby("example:guest_visits", name)


def page() -> dict[str, Any]:
    return {
        "views": redis.incr("example:views"),
        "guests": redis.lrange("example:guests", 0, -1),
        "visits": redis.hgetall("example:guest_visits"),
    }


async def show(_: Request) -> JSONResponse:
    return JSONResponse(page())


async def add(request: Request) -> JSONResponse:
    name = request.path_params["name"]
    return JSONResponse({"name": name, "visits": sign(name)})


async def welcome(request: Request) -> HTMLResponse:
    if "number" not in request.session:
        request.session["number"] = redis.incr("example:views")
    context = {
        "number": request.session["number"],
        "guests": redis.lrange("example:guests", 0, -1),
    }
    return templates.TemplateResponse(request, "page", context)


app = Starlette(
    routes=[
        Route("/", show),
        Route("/page", welcome),
        Route("/guests/{name}", add, methods=["POST"]),
    ],
    middleware=[
        Middleware(BatchMiddleware),
        Middleware(SessionMiddleware, secret_key=secrets.token_hex()),
    ],
)


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
