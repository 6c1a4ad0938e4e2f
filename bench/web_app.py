"""The application of the web benchmark: the same page of 20 calls, made in several ways.

Serve it with `BENCH_REDIS_PORT=6379 uvicorn bench.web_app:app`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import redis.asyncio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import autobatch.asyncio
from autobatch.asgi import BatchMiddleware

PORT = int(os.environ["BENCH_REDIS_PORT"])
KEYS = [f"bench:{number}" for number in range(20)]

plain = redis.asyncio.Redis(port=PORT, decode_responses=True)
batching: Any = autobatch.asyncio.Redis(port=PORT, decode_responses=True)


async def one_by_one(_: Request) -> JSONResponse:
    return JSONResponse([await plain.get(key) for key in KEYS])


async def pipeline(_: Request) -> JSONResponse:
    commands = plain.pipeline(transaction=False)
    for key in KEYS:
        commands.get(key)
    return JSONResponse(await commands.execute())


async def batch(_: Request) -> JSONResponse:
    futures = [batching.get(key) for key in KEYS]
    return JSONResponse([await future for future in futures])


async def gather(_: Request) -> JSONResponse:
    return JSONResponse(await asyncio.gather(*[batching.get(key) for key in KEYS]))


async def cpu(_: Request) -> JSONResponse:
    return JSONResponse(time.process_time())


BATCHED = [Middleware(BatchMiddleware)]
app = Starlette(
    routes=[
        Route("/one-by-one", one_by_one),
        Route("/pipeline", pipeline),
        Route("/batch", batch, middleware=BATCHED),
        Route("/gather", gather, middleware=BATCHED),
        Route("/cpu", cpu),
    ]
)
