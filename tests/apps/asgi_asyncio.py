"""What test_asgi_asyncio.py serves: an application of asyncio clients, under several servers."""

from __future__ import annotations

import asyncio
import os

from redis import RedisError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

import autobatch
import autobatch.asyncio
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.starlette import JSONResponse

URL = os.environ["REDIS_URL"]
redis = autobatch.asyncio.Redis.from_url(URL, decode_responses=True)
sync_redis = autobatch.Redis.from_url(URL, decode_responses=True)


def visit():
    """Call three commands, and await none of them."""
    redis.incr("visits")
    redis.expire("visits", 60)
    redis.sadd("visitors", "ada")


def fail():
    """Call a command whose error nobody looks at."""
    redis.set("text", "a string")
    redis.lpush("text", 1)


async def visiting(request):
    visit()
    return PlainTextResponse("visited")


def visiting_in_a_thread(request):
    visit()
    return PlainTextResponse("visited")


def forcing_in_a_thread(request):
    redis.set("ping", "from an asyncio client")
    return PlainTextResponse(f"{sync_redis.incr('visits')}")


async def awaiting(request):
    visit()
    visits = await redis.get("visits")
    visitors = redis.smembers("visitors")
    return PlainTextResponse(f"{visits} {await visitors}")


async def gathering(request):
    async def read(number):
        await redis.set(f"key{number}", number)
        return await redis.get(f"key{number}")

    values = await asyncio.gather(*map(read, range(3)))
    return PlainTextResponse(" ".join(values))


async def tasks(request):
    async def child():
        visit()

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        group.create_task(child())
    return PlainTextResponse("visited")


_both = asyncio.Barrier(2)


async def meeting(request):
    await _both.wait()
    return PlainTextResponse(f"{await redis.incr(request.path_params['key'])}")


async def mixed(request):
    sync_redis.set("ping", "from a synchronous client")
    ping = redis.get("ping")
    sync_redis.set("pong", await ping)
    redis.append("pong", "!")
    return JSONResponse({"ping": ping, "pong": sync_redis.get("pong")})


async def failing(request):
    fail()
    return PlainTextResponse("all is well")


async def failing_at_the_await(request):
    try:
        await redis.lpush("visits", await redis.incr("visits"))
    except RedisError as error:
        return PlainTextResponse(f"caught {str(error).split()[0]}")


async def raising(request):
    visit()
    fail()
    raise RuntimeError("broken")


async def touching(request):
    return PlainTextResponse(f"{redis.incr('visits') + 1}")


async def chunks(request):
    async def some():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    return StreamingResponse(some())


async def awaited_chunks(request):
    async def some():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{await redis.llen('chunks')} "

    return StreamingResponse(some())


async def failing_chunks(request):
    async def some():
        yield "first "
        fail()
        yield "second "

    return StreamingResponse(some())


async def endless_chunks(request):
    async def some():
        redis.set("stream", "open")
        try:
            while True:
                yield "more "
                await redis.incr("chunks")
                await asyncio.sleep(0.001)
        finally:
            redis.set("stream", "closed")

    return StreamingResponse(some())


async def background(request):
    async def afterwards():
        visit()
        fail()

    return PlainTextResponse("later", background=BackgroundTask(afterwards))


async def json_of_futures(request):
    visits = redis.incr("visits")
    redis.rpush("log", "visited")
    return JSONResponse({"visits": visits, "log": [redis.lrange("log", 0, -1)]})


async def json_of_failure(request):
    return JSONResponse({"visits": redis.incr("visits"), "length": redis.llen("visits")})


async def echo(websocket):
    """Count and send back each message; "silent" is not answered, "quit" ends it."""
    await websocket.accept()
    try:
        while (text := await websocket.receive_text()) != "quit":
            redis.incr("messages")
            length = redis.rpush("log", text)
            if text == "count":
                text = f"{await length}"
            if text != "silent":
                await websocket.send_text(text)
    except WebSocketDisconnect:
        pass
    redis.rpush("log", "bye")


async def failing_echo(websocket):
    """Fail at the message, say so, and fail once more."""
    await websocket.accept()
    await websocket.receive_text()
    fail()
    try:
        await websocket.send_text("all is well")
    except RedisError as error:
        await websocket.send_text(f"failed: {str(error).split()[0]}")
    fail()


async def call_around(request, call_next):
    await redis.incr("before")
    response = await call_next(request)
    redis.incr("after")
    return response


async def answer(request, error):
    answers = await redis.incr("answers")
    return PlainTextResponse(f"sorry {answers}: {type(error).__name__}", status_code=503)


BATCH = Middleware(BatchMiddleware)
AROUND = Middleware(BaseHTTPMiddleware, dispatch=call_around)
ROUTES = [
    Route("/visit", visiting),
    Route("/thread", visiting_in_a_thread),
    Route("/thread/force", forcing_in_a_thread),
    Route("/await", awaiting),
    Route("/gather", gathering),
    Route("/tasks", tasks),
    Route("/meet/{key}", meeting),
    Route("/mixed", mixed),
    Route("/fail", failing),
    Route("/fail/await", failing_at_the_await),
    Route("/raise", raising),
    Route("/touch", touching),
    Route("/stream", chunks),
    Route("/stream/await", awaited_chunks),
    Route("/stream/fail", failing_chunks),
    Route("/stream/endless", endless_chunks),
    Route("/background", background),
    Route("/json", json_of_futures),
    Route("/json/fail", json_of_failure),
    WebSocketRoute("/echo", echo),
    WebSocketRoute("/echo/fail", failing_echo),
]


def site(*middleware, handlers=None):
    return Starlette(routes=ROUTES, middleware=middleware, exception_handlers=handlers)


app = Router(
    [
        Mount("/handled", site(BATCH, handlers={RedisError: answer})),
        Mount("/around/inside", site(BATCH, AROUND)),
        Mount("/around/outside", site(AROUND, BATCH)),
        Mount("/", site(BATCH)),
    ]
)
