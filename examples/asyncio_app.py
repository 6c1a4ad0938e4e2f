"""A poll on Starlette, with an asyncio client: nothing blocks the loop, and little is awaited.

$ python -m examples.asyncio_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X POST http://127.0.0.1:8000/vote/tea
{"choice":"tea","votes":1.0,"ahead":0}
$ curl http://127.0.0.1:8000
{"votes":"1","ranking":[["tea",1.0]]}

Each request takes one round trip, but a vote, which awaits a value in between: that takes two.
Requests that run at the same time share theirs.
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
from starlette.routing import Route

import autobatch.asyncio
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.starlette import JSONResponse  # in place of Starlette's own
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


async def show(_: Request) -> JSONResponse:
    # Neither is awaited: the response is rendered when both are there.
    votes = redis.get("example:votes")
    ranking = redis.zrange("example:ranking", 0, -1, desc=True, withscores=True)
    return JSONResponse({"votes": votes, "ranking": ranking})


async def vote(request: Request) -> JSONResponse:
    choice = request.path_params["choice"]
    redis.incr("example:votes")
    votes = await redis.zincrby("example:ranking", 1, choice)  # the first round trip
    ahead = redis.zcount("example:ranking", f"({votes}", "+inf")
    return JSONResponse({"choice": choice, "votes": votes, "ahead": ahead})


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with redis:
        yield


app = Starlette(
    routes=[Route("/", show), Route("/vote/{choice}", vote, methods=["POST"])],
    middleware=[Middleware(BatchMiddleware)],
    lifespan=lifespan,
)


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
