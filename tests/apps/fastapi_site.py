"""What test_fastapi.py serves: the same routes with each kind of endpoint and of client."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from redis import ResponseError

import autobatch
import autobatch.asyncio
from autobatch.integrations.fastapi import BatchRoute, install
from autobatch.integrations.pydantic import Lazy
from autobatch.integrations.starlette import JSONResponse

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1")
sync_redis = autobatch.Redis.from_url(URL, decode_responses=True)
async_redis = autobatch.asyncio.Redis.from_url(URL, decode_responses=True)

HAS_FUNCTION_SCOPE = "scope" in inspect.signature(Depends).parameters
HAS_STREAMS = "stream_item_type" in APIRoute.__annotations__


class Page(BaseModel):
    """What redis-py gives is validated and filtered by it."""

    views: int
    title: str
    subtitle: str | None
    tags: list[str]


class LazyPage(BaseModel):
    """Keeps Futures."""

    views: Lazy[int]
    tags: Lazy[list[str]]
    anything: Any


@dataclasses.dataclass
class Card:
    """Keeps whatever it is given."""

    title: Any
    scores: Any


def page(redis):
    return {
        "views": redis.incr("views"),
        "title": redis.get("text"),
        "subtitle": redis.get("missing"),
        "tags": redis.lrange("list", 0, -1),
        "secret": redis.get("count"),
    }


# Each is called with a batching client, and with redis-py's.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "views": redis.incr("views")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "str": lambda redis: redis.get("text"),
    "int": lambda redis: redis.incr("views"),
    "float": lambda redis: redis.zscore("scores", "ada"),
    "bool": lambda redis: redis.set("other", 1),
    "none": lambda redis: {"missing": redis.get("missing")},
    "set": lambda redis: redis.smembers("set"),
    "dataclass": lambda redis: Card(redis.get("text"), [redis.zscore("scores", "ada")]),
    "model": lambda redis: LazyPage(
        views=redis.incr("views"), tags=redis.lrange("list", 0, -1), anything=redis.get("text")
    ),
    "nothing": lambda redis: {"a": 1},
}


def visit(redis):
    redis.incr("visits")
    redis.expire("visits", 60)


def fail(redis):
    redis.set("text", "a string")
    redis.lpush("text", 1)


def endpoint_of(function, *, coroutine):
    """Return an endpoint that returns what `function` does."""
    if coroutine:

        async def endpoint():
            return function()
    else:

        def endpoint():
            return function()

    return endpoint


def routes(redis, *, coroutine, route_class=APIRoute):
    """Return a router whose endpoints are coroutines, or run in threads, with one client."""
    router = APIRouter(route_class=route_class)

    def add(path, function, **options):
        router.get(path, **options)(endpoint_of(function, coroutine=coroutine))

    for name, content in CONTENTS.items():
        add(f"/content/{name}", functools.partial(content, redis))
    add("/page", lambda: page(redis), response_model=Page)
    add("/text", lambda: redis.get("text"), response_model=str | None)
    add("/missing", lambda: redis.get("missing"), response_model=str | None)
    add("/lazy", lambda: CONTENTS["model"](redis), response_model=LazyPage)
    add("/visit", lambda: visit(redis))
    add("/fail", lambda: fail(redis))
    add("/fail/value", lambda: {"length": redis.llen("text"), "views": redis.incr("views")})
    add("/response", lambda: JSONResponse(CONTENTS["dict"](redis)))
    add("/no-content", lambda: visit(redis), status_code=204)
    add("/chained", lambda: {"v": redis.get("pointer").map(redis.get)})
    add_dependencies(router, redis, coroutine=coroutine)
    add_streams(router, redis, coroutine=coroutine)
    return router


def counter(redis, *, coroutine):
    """Return a dependency that counts what uses it, and what fails meanwhile."""

    @contextlib.contextmanager
    def counted(request):
        redis.incr("in use")
        try:
            yield redis
        except ResponseError as error:
            redis.rpush("seen", f"{request.url.path}: {type(error).__name__}")
            raise
        finally:
            redis.decr("in use")

    def dependency(request: Request):
        with counted(request) as given:
            yield given

    async def async_dependency(request: Request):
        with counted(request) as given:
            yield given

    return async_dependency if coroutine else dependency


def add_dependencies(router, redis, *, coroutine):
    def user():
        return redis.hgetall("hash")

    async def async_user():
        return redis.hgetall("hash")

    user_name = depending(
        coroutine=False,
        annotation=Annotated[Any, Depends(async_user if coroutine else user)],
        function=lambda user: user.map(lambda found: found["name"]),
    )

    counting = counter(redis, coroutine=coroutine)
    router.get("/dependency")(
        depending(coroutine, Annotated[Any, Depends(user_name)], lambda name: {"name": name})
    )
    scopes = {"request": Depends(counting)}
    if HAS_FUNCTION_SCOPE:
        scopes["function"] = Depends(counting, scope="function")
    for scope, depends in scopes.items():
        dependency = Annotated[Any, depends]
        router.get(f"/yield/{scope}")(
            depending(coroutine, dependency, lambda redis: {"views": redis.incr("views")})
        )
        router.get(f"/yield/{scope}/fail")(depending(coroutine, dependency, fail))

    router.get("/background")(
        depending(coroutine, BackgroundTasks, lambda tasks: tasks.add_task(CONTENTS["dict"], redis))
    )
    router.get("/background/fail")(
        depending(coroutine, BackgroundTasks, lambda tasks: tasks.add_task(fail, redis))
    )


def add_streams(router, redis, *, coroutine):
    def chunks():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    async def async_chunks():
        for chunk in chunks():
            yield chunk

    def stream():
        return StreamingResponse(async_chunks() if coroutine else chunks())

    router.get("/stream")(endpoint_of(stream, coroutine=coroutine))
    if HAS_STREAMS:
        add_items(router, redis, coroutine=coroutine)


def add_items(router, redis, *, coroutine):
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    def items():
        for number in range(3):
            yield {"length": redis.rpush("chunks", number)}

    def events():
        for item in items():
            yield ServerSentEvent(data=item, event="count")

    for path, function, options in (
        ("/jsonl", items, {}),
        ("/events", events, {"response_class": EventSourceResponse}),
    ):
        if coroutine:
            router.get(path, **options)(asynchronously(function))
        else:
            router.get(path, **options)(function)


def asynchronously(generator):
    async def endpoint():
        for item in generator():
            yield item

    return endpoint


def depending(coroutine, annotation, function):
    """Return an endpoint of one parameter."""
    if coroutine:

        async def endpoint(given):
            return function(given)
    else:

        def endpoint(given):
            return function(given)

    endpoint.__annotations__["given"] = annotation
    return endpoint


class Endpoint:
    """An endpoint that is an object."""

    async def __call__(self, name: str = "text"):
        return {"value": async_redis.get(name)}


def partial_endpoint(prefix, name: Annotated[str, "not a query parameter alone"] = "text"):
    return {prefix: sync_redis.get(name)}


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@decorated
async def decorated_endpoint(name: Name = "text"):  # a name that is known below
    return {"value": async_redis.get(name)}


Name = str


class TimedRoute(APIRoute):
    """A route class of the application's own."""

    def get_route_handler(self):
        handler = super().get_route_handler()

        async def timed(request):
            response = await handler(request)
            response.headers["X-Timed"] = "yes"
            return response

        return timed


KINDS = {
    "thread-sync": {"redis": sync_redis, "coroutine": False},
    "thread-asyncio": {"redis": async_redis, "coroutine": False},
    "coroutine-sync": {"redis": sync_redis, "coroutine": True},
    "coroutine-asyncio": {"redis": async_redis, "coroutine": True},
}


def build(*, installed=install, handlers=None):
    """Return an application; `installed` is called between its routes."""
    made = FastAPI(exception_handlers=handlers)
    made.get("/object")(Endpoint())
    made.get("/partial")(functools.partial(partial_endpoint, "value"))
    made.get("/decorated")(decorated_endpoint)
    first, *rest = KINDS.items()
    made.include_router(routes(**first[1]), prefix=f"/{first[0]}")
    late = APIRouter()
    made.include_router(late, prefix="/late")
    if installed is not None:
        installed(made)
    for name, kind in rest:
        made.include_router(routes(**kind), prefix=f"/{name}")
    made.get("/partial/after")(functools.partial(partial_endpoint, "value"))
    inner = APIRouter(prefix="/inner")
    inner.get("/dict")(lambda: CONTENTS["dict"](sync_redis))
    outer = APIRouter(prefix="/outer")
    outer.include_router(inner)
    made.include_router(outer)
    timed = APIRouter(route_class=TimedRoute, prefix="/timed")
    timed.get("/before")(lambda: CONTENTS["dict"](sync_redis))
    made.include_router(timed)

    @made.get("/after")
    def after() -> dict[str, Any]:
        return CONTENTS["dict"](sync_redis)

    @made.websocket("/socket")
    async def socket(websocket: WebSocket):
        await websocket.accept()
        while (text := await websocket.receive_text()) != "quit":
            async_redis.rpush("log", text)
            counts = {"length": async_redis.llen("log"), "views": sync_redis.incr("views")}
            await websocket.send_json(await autobatch.asyncio.resolve(counts))
        await websocket.close()

    return made


async def answer(request, error):
    answers = async_redis.incr("answers")
    return JSONResponse({"sorry": type(error).__name__, "answers": answers}, status_code=503)


app = build()
app.mount("/handled", build(handlers={ResponseError: answer}))
app.mount("/handled-any", build(handlers={Exception: answer}))
by_hand = FastAPI()
by_hand.router.route_class = BatchRoute
by_hand.add_middleware(autobatch.asgi.BatchMiddleware)
by_hand.include_router(routes(sync_redis, coroutine=False, route_class=BatchRoute), prefix="/r")
by_hand.get("/direct")(lambda: CONTENTS["dict"](sync_redis))
app.mount("/by-hand", by_hand)
