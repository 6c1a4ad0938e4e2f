"""What test_litestar.py serves: the same routes with each kind of handler and of client."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from jinja2 import DictLoader, Environment
from litestar import Litestar, MediaType, Request, Response, Router, WebSocket, get, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import Provide
from litestar.dto import DataclassDTO, DTOConfig
from litestar.response import Redirect, Stream, Template
from litestar.template.config import TemplateConfig
from redis import RedisError, ResponseError

try:
    from litestar.plugins.jinja import JinjaTemplateEngine
except ImportError:  # before Litestar 2.22
    from litestar.contrib.jinja import JinjaTemplateEngine

try:
    from litestar.di import NamedDependency

    Given = NamedDependency[Any]
except ImportError:  # before Litestar 2.23
    from litestar.params import Dependency

    Given = Annotated[Any, Dependency()]

import autobatch
import autobatch.asyncio
from autobatch.integrations.litestar import BatchPlugin

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1")
sync_redis = autobatch.Redis.from_url(URL, decode_responses=True)
async_redis = autobatch.asyncio.Redis.from_url(URL, decode_responses=True)


class Struct(msgspec.Struct, frozen=True):
    """Keeps whatever it is given."""

    title: Any
    scores: Any


@dataclasses.dataclass
class Card:
    """Keeps whatever it is given."""

    title: Any
    secret: Any


class CardDTO(DataclassDTO[Card]):
    """Leaves out what is secret."""

    config = DTOConfig(exclude={"secret"})


# Each is called with a batching client, and with redis-py's.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "views": redis.incr("views")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "int": lambda redis: redis.incr("views"),
    "float": lambda redis: redis.zscore("scores", "ada"),
    "bool": lambda redis: [redis.set("other", 1)],
    "none": lambda redis: {"missing": redis.get("missing")},
    "set": lambda redis: redis.smembers("set"),
    "struct": lambda redis: Struct(redis.get("text"), [redis.zscore("scores", "ada")]),
    "dataclass": lambda redis: Card(redis.get("text"), {"b": [redis.get("count")]}),
    "nothing": lambda redis: {"a": 1},
}


def visit(redis):
    redis.incr("visits")
    redis.expire("visits", 60)


def fail(redis):
    redis.set("text", "a string")
    redis.lpush("text", 1)


def handler_of(path, function, annotation=Any, *, kind, **options):
    """Return a handler that returns what `function` does."""
    if kind == "coroutine":

        async def handler():
            return function()
    else:

        def handler():
            return function()

        options["sync_to_thread"] = kind == "thread"
    handler.__annotations__["return"] = annotation
    return get(path, **options)(handler)


def values(redis, kind):
    def handler(*args, **options):
        return handler_of(*args, kind=kind, **options)

    card = {"title": "a card", "secret": "a secret"}
    return [
        *[
            handler(f"/content/{name}", lambda content=content: content(redis))
            for name, content in CONTENTS.items()
        ],
        handler("/text", lambda: redis.get("text"), str),
        handler("/text/none", lambda: redis.get("missing"), str | None),
        handler("/bytes", lambda: redis.get("text").map(str.encode), bytes),
        handler("/response", lambda: Response(CONTENTS["dict"](redis)), Response),
        handler("/msgpack", lambda: CONTENTS["dict"](redis), media_type=MediaType.MESSAGEPACK),
        handler(
            "/dto",
            lambda: Card(title=redis.get("text"), secret=card["secret"]),
            Card,
            return_dto=CardDTO,
        ),
        handler("/template", lambda: template(redis), Template),
        handler("/redirect", lambda: Redirect("/coroutine-sync/text"), Redirect),
        handler("/visit", lambda: visit(redis), None),
        handler("/chained", lambda: {"v": redis.get("pointer").map(redis.get)}),
        handler("/fail", lambda: fail(redis), None),
        handler("/fail/value", lambda: {"length": redis.llen("text"), "v": redis.incr("views")}),
        handler(
            "/background",
            lambda: Response({}, background=BackgroundTask(CONTENTS["dict"], redis)),
            Response,
        ),
        handler(
            "/background/fail",
            lambda: Response({}, background=BackgroundTask(fail, redis)),
            Response,
        ),
        handler("/cached", lambda: CONTENTS["dict"](redis), cache=True),
    ]


def template(redis):
    return Template(
        template_name="page",
        context={"text": redis.get("text"), "items": [redis.get("count"), redis.get("missing")]},
    )


def dependent(redis):
    """Return handlers of dependencies: one that is a Future, and one that cleans up."""

    async def user() -> Any:
        return redis.hgetall("hash")

    async def counted(request: Request[Any, Any, Any]) -> AsyncGenerator[Any, None]:
        redis.incr("in use")
        try:
            yield redis
        except ResponseError as error:
            redis.rpush("seen", f"{request.url.path}: {type(error).__name__}")
            raise
        finally:
            redis.decr("in use")

    @get("/dependency", dependencies={"user": Provide(user)})
    async def named(user: Given) -> Any:
        return {"name": user.map(lambda found: found["name"])}

    dependencies = {"given": Provide(counted)}

    @get("/yield", dependencies=dependencies)
    async def counting(given: Given) -> Any:
        return {"views": given.incr("views")}

    @get("/yield/fail", dependencies=dependencies)
    async def failing(given: Given) -> None:
        fail(given)

    return [named, counting, failing]


def streaming(redis):
    async def chunks():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    @get("/stream")
    async def stream() -> Stream:
        return Stream(chunks())

    return [stream]


KINDS = {
    "coroutine-asyncio": (async_redis, "coroutine"),
    "coroutine-sync": (sync_redis, "coroutine"),
    "thread-sync": (sync_redis, "thread"),
    "thread-asyncio": (async_redis, "thread"),
    "loop-sync": (sync_redis, "loop"),
}


@websocket("/socket")
async def socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    while (text := await socket.receive_text()) != "quit":
        async_redis.rpush("log", text)
        counts = {"length": async_redis.llen("log")}
        await socket.send_json(await autobatch.asyncio.resolve(counts))
    await socket.close()


async def count_after(response: Response[Any]) -> Response[Any]:
    async_redis.incr("after")
    return response


@get("/hooked", after_request=count_after)
async def hooked() -> Any:
    return CONTENTS["dict"](async_redis)


@get(["/one", "/two"])
async def twice() -> Any:
    return CONTENTS["dict"](async_redis)


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    return Response({"sorry": type(error).__name__}, status_code=503)


def build(*, plugins, exception_handlers=None):
    routers = [
        Router(
            f"/{name}", route_handlers=[*values(redis, kind), *dependent(redis), *streaming(redis)]
        )
        for name, (redis, kind) in KINDS.items()
    ]
    return Litestar(
        [*routers, socket, hooked, twice],
        plugins=plugins,
        exception_handlers=exception_handlers,
        template_config=TemplateConfig(
            instance=JinjaTemplateEngine.from_environment(
                Environment(
                    autoescape=True,
                    loader=DictLoader(
                        {"page": "{{ text }}{% for item in items %} {{ item is none }}{% endfor %}"}
                    ),
                )
            )
        ),
    )


plain_app = build(plugins=[BatchPlugin()])
handled = build(plugins=[BatchPlugin()], exception_handlers={RedisError: answer})


async def app(scope, receive, send):
    """Serve one application below /handled, and another one elsewhere."""
    prefix = "/handled"
    if scope["type"] != "lifespan" and scope["path"].startswith(prefix):
        path = scope["path"].removeprefix(prefix)
        await handled({**scope, "path": path, "raw_path": path.encode()}, receive, send)
    else:
        await plain_app(scope, receive, send)
