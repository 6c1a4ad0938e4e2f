"""A guest book on Starlette. Every request is a batch, and what the handlers return is lazy.

$ python -m examples.starlette_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X POST http://127.0.0.1:8000/guests/ada
{"name":"ada","visits":1}
$ curl http://127.0.0.1:8000
{"views":1,"guests":["ada"],"visits":{"ada":"1"}}
"""

from __future__ import annotations

import os
import signal
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

import autobatch
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.starlette import JSONResponse  # in place of Starlette's own
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


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


app = Starlette(
    routes=[Route("/", show), Route("/guests/{name}", add, methods=["POST"])],
    middleware=[Middleware(BatchMiddleware)],
)


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
