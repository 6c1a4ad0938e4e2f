"""FastAPI: endpoints return Futures, and answer what the same endpoints with redis-py do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

for needed in ("fastapi", "httpx", "uvicorn", "websockets"):
    pytest.importorskip(needed)

import httpx  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.encoders import jsonable_encoder  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: E402
from websockets.sync import client as websockets  # noqa: E402

import autobatch  # noqa: E402
from apps import fastapi_site  # noqa: E402
from apps.fastapi_site import CONTENTS, KINDS, build  # noqa: E402
from autobatch.integrations.fastapi import install  # noqa: E402
from common import PATIENCE, eventually  # noqa: E402
from serving import serve  # noqa: E402

FAIL = ["SET", "LPUSH"]
needs_function_scope = pytest.mark.skipif(
    not fastapi_site.HAS_FUNCTION_SCOPE, reason="FastAPI 0.121's"
)
needs_streams = pytest.mark.skipif(not fastapi_site.HAS_STREAMS, reason="a newer FastAPI's")
ROOT = Path(__file__).parent.parent
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def served(server):
    with serve("uvicorn", "apps.fastapi_site:app", "--port", "0", redis_port=server) as site:
        yield site


@pytest.fixture
def site(served, plain, data):
    """The application, with something of every kind in Redis, and nothing counted."""
    plain.set("pointer", "text")
    served.forget()
    yield served
    assert "BlockingFlushWarning" not in served.log
    assert "Serializer" not in served.log  # pydantic warns of values that it did not expect


def names(site):
    return [sorted(exchange) for exchange in site.proxy.names]


@each_kind
@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_is_returned_is_as_with_redis_py(site, plain, kind, name):
    """One round trip, whether the endpoint is a coroutine or runs in a thread."""
    response = site.get(f"/{kind}/content/{name}")
    assert site.proxy.round_trips == any(site.proxy.exchanges) == (name != "nothing")
    plain.delete("views", "other")
    assert response.json() == jsonable_encoder(CONTENTS[name](plain))


@each_kind
def test_a_response_model_validates_and_filters_values(site, kind):
    """An int, a str, a str that is not there; and what it does not name is left out."""
    response = site.get(f"/{kind}/page")
    expected = {"views": 1, "title": "héllo", "subtitle": None, "tags": ["a", "b"]}
    assert response.json() == expected
    assert names(site) == [["GET", "GET", "GET", "INCRBY", "LRANGE"]]


@each_kind
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("text", "héllo"),
        ("missing", None),
        ("lazy", {"views": 1, "tags": ["a", "b"], "anything": "héllo"}),
        ("response", {"text": "héllo", "views": 1}),
        ("visit", None),
        ("dependency", {"name": "Ada"}),
    ],
)
def test_an_endpoint_is_one_round_trip(site, kind, path, expected):
    """With a response model of a str or of None, of Lazy fields, and with a response of ours."""
    assert site.get(f"/{kind}/{path}").json() == expected
    assert site.proxy.round_trips == 1


@each_kind
def test_a_chain_takes_a_round_trip_a_link(site, kind):
    """What a function given to map() calls comes in the second wave."""
    assert site.get(f"/{kind}/chained").json() == {"v": "héllo"}
    assert site.proxy.names == [["GET"], ["GET"]]


@each_kind
def test_a_status_without_a_body(site, kind):
    response = site.get(f"/{kind}/no-content")
    assert (response.status_code, response.content) == (204, b"")
    assert site.proxy.names == [["INCRBY", "EXPIRE"]]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("object", marks=needs_streams),  # older ones want coroutine functions
        "partial",
        "partial/after",
        pytest.param("decorated", marks=needs_streams),
    ],
)
def test_an_endpoint_may_be_any_callable(site, path):
    """An object, a partial function, a decorated coroutine with names in its annotations."""
    assert site.get(f"/{path}", params={"name": "count"}).json() == {"value": "3"}
    assert site.proxy.names == [["GET"]]


@pytest.mark.parametrize(
    "path", ["after", "outer/inner/dict", "by-hand/r/content/dict", "by-hand/direct"]
)
def test_every_route_of_the_application_is_served(site, path):
    """Those of routers in routers, those that came after, and those that were set up by hand."""
    assert site.get(f"/{path}").json() == {"text": "héllo", "views": 1}
    assert site.proxy.round_trips == 1


def test_a_route_class_of_the_applications_own_is_kept(site):
    response = site.get("/timed/before")
    assert response.json() == {"text": "héllo", "views": 1}
    assert response.headers["x-timed"] == "yes"


def test_routers_that_are_included_take_routes_later(site):
    """FastAPI's older versions copy the routes that are there; the newer ones look later."""
    made = build()
    router = fastapi_site.APIRouter(route_class=fastapi_site.TimedRoute)
    made.include_router(router)
    router.get("/later")(lambda: None)
    [route] = router.routes
    assert isinstance(route, fastapi_site.BatchRoute)
    assert isinstance(route, fastapi_site.TimedRoute)


# ---- dependencies, background tasks -------------------------------------------------------


@each_kind
def test_a_yield_dependency_rides_along(site, plain, kind):
    """What it calls before; what it calls after the response goes by itself."""
    assert site.get(f"/{kind}/yield/request").json() == {"views": 1}
    assert eventually(lambda: plain.get("in use") == "0")
    assert site.proxy.names == [["INCRBY", "INCRBY"], ["DECRBY"]]


@needs_function_scope
@each_kind
def test_a_yield_dependency_of_the_function_ends_before_the_response(site, plain, kind):
    """When the values that the endpoint returned are already there."""
    assert site.get(f"/{kind}/yield/function").json() == {"views": 1}
    assert plain.get("in use") == "0"
    assert site.proxy.names == [["INCRBY", "INCRBY"], ["DECRBY"]]


@each_kind
@pytest.mark.parametrize("scope", ["request", pytest.param("function", marks=needs_function_scope)])
def test_a_yield_dependency_sees_an_error_that_nobody_looked_at(site, plain, kind, scope):
    """It can roll back, as with redis-py."""
    path = f"/{kind}/yield/{scope}/fail"
    assert site.get(path).status_code == 500
    assert eventually(lambda: plain.lrange("seen", 0, -1)) == [f"{path}: ResponseError"]
    assert eventually(lambda: plain.get("in use") == "0")


@each_kind
def test_background_tasks_are_flushed_after_the_response(site, plain, kind):
    assert site.get(f"/{kind}/background").json() is None
    assert eventually(lambda: plain.get("views")) == "1"
    assert site.proxy.names == [["GET", "INCRBY"]]


@each_kind
def test_errors_of_background_tasks_are_logged(site, kind):
    assert site.get(f"/{kind}/background/fail").status_code == 200
    assert site.logs(f"unseen error in GET /{kind}/background/fail: ResponseError: WRONGTYPE")


# ---- errors -------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("path", ["fail", "fail/value"])
def test_an_error_is_a_500(site, kind, path):
    """Nobody looked at it; or it is the value of what was returned."""
    response = site.get(f"/{kind}/{path}")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert site.proxy.round_trips == 1
    assert site.logs("ResponseError: WRONGTYPE")


@each_kind
@pytest.mark.parametrize("path", ["fail", "fail/value"])
@pytest.mark.parametrize("handled", ["handled", "handled-any"])
def test_the_applications_handler_answers(site, plain, kind, path, handled):
    """One for ResponseError, and one for any Exception; it may return Futures."""
    response = site.get(f"/{handled}/{kind}/{path}")
    assert response.status_code == 503
    assert response.json() == {"sorry": "ResponseError", "answers": 1}
    assert site.proxy.round_trips == 2
    assert "response already started" not in site.log


# ---- streams, WebSockets ------------------------------------------------------------------


@each_kind
def test_a_stream_flushes_before_each_chunk(site, kind):
    assert site.get(f"/{kind}/stream").text == "0 1 2 "
    assert site.proxy.names == [["RPUSH"]] * 3


@needs_streams
@each_kind
def test_the_items_of_a_stream_may_be_futures(site, kind):
    assert [json.loads(line) for line in site.get(f"/{kind}/jsonl").iter_lines()] == [
        {"length": number} for number in (1, 2, 3)
    ]
    assert site.proxy.names == [["RPUSH"]] * 3


@needs_streams
@each_kind
def test_the_data_of_events_may_be_futures(site, kind):
    lines = site.get(f"/{kind}/events").text.split("\n")
    data = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    assert data == [{"length": number} for number in (1, 2, 3)]
    assert site.proxy.names == [["RPUSH"]] * 3


def test_each_message_of_a_websocket_is_one_batch(site):
    """Two clients, one round trip."""
    with websockets.connect(site.url.replace("http", "ws") + "/socket") as socket:
        for number in (1, 2):
            socket.send("hello")
            assert json.loads(socket.recv(PATIENCE)) == {"length": number, "views": number}
        socket.send("quit")
    assert sorted(site.proxy.names) == [["INCRBY"]] * 2 + [["RPUSH", "LLEN"]] * 2


# ---- what it leaves alone -----------------------------------------------------------------


def test_openapi_is_unchanged():
    """Names, parameters, models, descriptions: of endpoints of every kind."""
    plainly = build(installed=None)
    assert build().openapi() == plainly.openapi()
    assert len(plainly.openapi()["paths"]) > 4 * len(CONTENTS)


def test_installing_twice_changes_nothing():
    made = build()
    endpoints = [route.endpoint for route in made.routes if isinstance(route, APIRoute)]
    install(made)
    assert endpoints == [route.endpoint for route in made.routes if isinstance(route, APIRoute)]
    assert endpoints


def test_the_example(server, plain):
    """Its docstring tells what it answers; each request is one round trip."""
    with serve("examples.fastapi_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        tea = '"name":"tea","price":3'
        cake = '{"name":"cake","price":null,"views":1,"buyers":[]}'
        added = site.http.put("/products/tea?price=3")
        assert added.text == f'{{{tea},"views":0,"buyers":[]}}'
        bought = site.http.post("/products/tea/buyers?user=ada")
        assert bought.text == '{"bought":"tea","orders":1}'
        assert site.get("/products").text == f'[{{{tea},"views":1,"buyers":["ada"]}},{cake}]'
        product = ["HGET", "HINCRBY", "LRANGE"]
        assert site.proxy.names == [["HSET", *product], ["HINCRBY", "LPUSH"], product * 2]


@pytest.mark.parametrize("inside", [True, False])
def test_middleware_is_inside_of_the_scope_if_it_was_added_before_install(server, inside):
    application = FastAPI()
    redis = autobatch.asyncio.Redis(port=server)

    async def count(request, call_next):
        redis.strlen("requests")
        return await call_next(request)

    @application.get("/")
    async def visit():
        return {"visits": redis.strlen("visits")}

    if inside:
        application.add_middleware(BaseHTTPMiddleware, dispatch=count)
    install(application, server_timing=True)
    if not inside:
        application.add_middleware(BaseHTTPMiddleware, dispatch=count)

    async def main():
        transport = httpx.ASGITransport(application)
        async with redis, httpx.AsyncClient(transport=transport, base_url="http://site") as http:
            response = await http.get("/")
            assert response.json() == {"visits": 0}
            return response.headers["server-timing"]

    # Outside it leaves by itself, at the end of the tick.
    assert ("2 commands" if inside else "1 command,") in asyncio.run(main())
