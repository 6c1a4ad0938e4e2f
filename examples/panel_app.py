"""A Starlette application with the debug panel, and a page that does not batch as it could.

$ python -m examples.panel_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

Open http://127.0.0.1:8000/team and http://127.0.0.1:8000/batched, then the panel at
http://127.0.0.1:8000/_autobatch.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import autobatch
from autobatch.asgi import BatchMiddleware
from autobatch.panel import Panel
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Make a team of five."""
    async with autobatch.batch():
        for number in range(1, 6):
            redis.sadd("team", f"user:{number}")
            redis.hset(f"user:{number}", "name", f"Ada {number}")
    yield
    await redis.aclose()


async def team(_: Request) -> PlainTextResponse:
    """Tell the names one after the other: each is a round trip of its own."""
    redis.incr("visits")
    names = []
    for member in sorted(await redis.smembers("team")):
        names.append(str(await redis.hget(member, "name")))  # noqa: PERF401  # often seen
    return PlainTextResponse(", ".join(names))


async def batched(_: Request) -> PlainTextResponse:
    """Tell the same in two round trips: call first, look later."""
    redis.incr("visits")
    members = sorted(await redis.smembers("team"))
    names = [redis.hget(member, "name") for member in members]
    return PlainTextResponse(", ".join([str(await name) for name in names]))


app = Starlette(
    routes=[Route("/team", team), Route("/batched", batched)],
    lifespan=lifespan,
    middleware=[
        Middleware(
            BatchMiddleware,
            panel=Panel("/_autobatch"),  # for development only
            server_timing=True,
        )
    ],
)


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
