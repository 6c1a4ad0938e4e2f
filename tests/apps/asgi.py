"""What test_asgi.py serves under uvicorn: an address for each thing that a request can do."""

from __future__ import annotations

import asyncio
import os

import anyio.to_thread
from redis import RedisError, ResponseError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

import autobatch
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.starlette import JSONResponse

redis = autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


def visit():
    """Call three commands, and look at none of their values."""
    redis.incr("visits")
    redis.expire("visits", 60)
    redis.sadd("visitors", "ada")


def fail():
    """Call a command whose error nobody looks at."""
    redis.set("text", "a string")
    redis.lpush("text", 1)


async def async_endpoint(request):
    visit()
    return PlainTextResponse("visited")


def threadpool_endpoint(request):
    visit()
    return PlainTextResponse("visited")


async def failing_endpoint(request):
    fail()
    return PlainTextResponse("all is well")


class GroupedResponse(PlainTextResponse):
    """Sends itself in a task of a group."""

    async def __call__(self, scope, receive, send):
        async with asyncio.TaskGroup() as group:
            group.create_task(super().__call__(scope, receive, send))


async def failing_endpoint_with_a_group(request):
    fail()
    return GroupedResponse("all is well")


async def failing_endpoint_with_background(request):
    fail()
    return PlainTextResponse("all is well", background=BackgroundTask(redis.set, "paid", "yes"))


async def raising_endpoint(request):
    visit()
    fail()
    raise RuntimeError("broken")


async def async_chunks(request):
    async def chunks():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    return StreamingResponse(chunks())


def threadpool_chunks(request):
    def chunks():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    return StreamingResponse(chunks())


async def failing_chunks(request):
    async def chunks():
        yield "first "
        fail()
        yield "second "
        yield "third"

    return StreamingResponse(chunks())


async def endless_chunks(request):
    async def chunks():
        redis.set("stream", "open")
        try:
            while True:
                yield "more "
                await asyncio.sleep(0.01)
        finally:
            redis.set("stream", "closed")

    return StreamingResponse(chunks())


async def failing_endless_chunks(request):
    fail()
    return await endless_chunks(request)


async def async_background(request):
    async def afterwards():
        visit()
        fail()

    return PlainTextResponse("later", background=BackgroundTask(afterwards))


async def threadpool_background(request):
    def afterwards():
        visit()
        fail()

    return PlainTextResponse("later", background=BackgroundTask(afterwards))


async def child_tasks(request):
    async def child():
        visit()

    task = asyncio.create_task(child())
    async with asyncio.TaskGroup() as group:
        group.create_task(child())
    await task
    visit()
    return PlainTextResponse("visited")


async def threads(request):
    await asyncio.to_thread(visit)
    await anyio.to_thread.run_sync(visit)
    visit()
    return PlainTextResponse("visited")


_tasks = set()  # the loop itself holds weak references only


async def outliving_task(request):
    with autobatch.batch() as scope:  # joins the request's

        async def outlive():
            while not scope.closed:  # noqa: ASYNC110  # nobody would set an event
                await asyncio.sleep(0.001)
            redis.set("type", type(redis.incr("late")).__name__)

        task = asyncio.create_task(outlive())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    return PlainTextResponse("left alone")


_both = asyncio.Barrier(2)


async def meeting(request):
    key = request.path_params["key"]
    with autobatch.batch() as scope:
        redis.incr(key)
        await _both.wait()
        total = redis.incr(key)
        await _both.wait()
        await scope.aflush()
    return PlainTextResponse(f"{key} is {total}")


async def forcing(request):
    key = request.path_params["key"]
    text = ""
    for _ in range(2):
        text += f"{redis.incr(key)} "  # forced here, on the loop
    return PlainTextResponse(text)


async def echo(websocket):
    """Count and send back each message; "silent" is not answered, "quit" ends it."""
    await websocket.accept()
    try:
        while (text := await websocket.receive_text()) != "quit":
            redis.incr("messages")
            redis.rpush("log", text)
            if text != "silent":
                await websocket.send_text(text)
    except WebSocketDisconnect:
        pass
    redis.rpush("log", "bye")


async def failing_echo(websocket):
    """Fail at each message, and say so; "silent" is not answered."""
    await websocket.accept()
    while True:
        try:
            text = await websocket.receive_text()
            if text == "quit":
                break
            fail()
            if text != "silent":
                await websocket.send_text(text)
        except ResponseError as error:
            await websocket.send_text(f"failed: {str(error).split()[0]}")
    fail()


async def uncaught(websocket):
    await websocket.accept()
    await websocket.receive_text()
    fail()
    await websocket.send_text("all is well")


class Outside:
    """A middleware of the application that calls Redis itself."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        redis.incr("outside")
        await self.app(scope, receive, send)


async def call_around(request, call_next):
    redis.incr("before")
    response = await call_next(request)
    redis.incr("after")
    return response


def answer_in_thread(request, error):
    redis.incr("answers")
    return PlainTextResponse(f"sorry: {type(error).__name__}", status_code=503)


async def answer(request, error):
    return answer_in_thread(request, error)


class Answer:
    """A handler that is an object: Starlette awaits such ones too."""

    async def __call__(self, request, error):
        return answer_in_thread(request, error)


async def answer_and_fail(request, error):
    fail()
    return answer_in_thread(request, error)


async def raise_again(request, error):
    raise RuntimeError("broken handler")


async def json_of_futures(request):
    visits = redis.incr("visits")
    redis.rpush("log", "visited")
    return JSONResponse({"visits": visits, "log": redis.lrange("log", 0, -1)})


async def json_of_failure(request):
    return JSONResponse({"visits": redis.incr("visits"), "length": redis.llen("visits")})


async def missing(request):
    def not_found(value):
        raise HTTPException(404)

    redis.get("nothing").map(not_found)
    return PlainTextResponse("found")


BATCH = Middleware(BatchMiddleware)
AROUND = Middleware(BaseHTTPMiddleware, dispatch=call_around)
ROUTES = [
    Route("/async", async_endpoint),
    Route("/threadpool", threadpool_endpoint),
    Route("/fail", failing_endpoint),
    Route("/fail/group", failing_endpoint_with_a_group),
    Route("/fail/background", failing_endpoint_with_background),
    Route("/raise", raising_endpoint),
    Route("/stream/async", async_chunks),
    Route("/stream/threadpool", threadpool_chunks),
    Route("/stream/fail", failing_chunks),
    Route("/stream/endless", endless_chunks),
    Route("/stream/fail-endless", failing_endless_chunks),
    Route("/background/async", async_background),
    Route("/background/threadpool", threadpool_background),
    Route("/tasks", child_tasks),
    Route("/tasks/outlive", outliving_task),
    Route("/threads", threads),
    Route("/meet/{key}", meeting),
    Route("/force/{key}", forcing),
    Route("/json", json_of_futures),
    Route("/json/fail", json_of_failure),
    Route("/missing", missing),
    WebSocketRoute("/echo", echo),
    WebSocketRoute("/echo/fail", failing_echo),
    WebSocketRoute("/echo/uncaught", uncaught),
]


def site(*middleware, handlers=None, routes=ROUTES):
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


app = Router(
    [
        Mount("/handled/exact", site(BATCH, handlers={ResponseError: answer})),
        Mount("/handled/base", site(BATCH, handlers={RedisError: answer})),
        Mount("/handled/threadpool", site(BATCH, handlers={ResponseError: answer_in_thread})),
        Mount("/handled/object", site(BATCH, handlers={ResponseError: Answer()})),
        Mount("/handled/around", site(BATCH, AROUND, handlers={ResponseError: answer})),
        Mount("/handled/failing", site(BATCH, handlers={ResponseError: answer_and_fail})),
        Mount("/handled/raising", site(BATCH, handlers={ResponseError: raise_again})),
        Mount("/handled/any", site(BATCH, handlers={Exception: answer})),
        Mount("/handled/500", site(BATCH, handlers={500: answer})),
        Mount("/handled/404", site(BATCH, handlers={404: answer})),
        Mount("/around/inside", site(BATCH, AROUND)),
        Mount("/around/outside", site(AROUND, BATCH)),
        Mount(
            "/nested",
            site(BATCH, Middleware(Outside), routes=[Mount("/", site(BATCH, BATCH))]),
        ),
        Mount("/", site(BATCH)),
    ]
)
