"""Litestar: handlers return Futures, and answer what the same handlers with redis-py do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

for needed in ("httpx", "jinja2", "litestar", "uvicorn", "websockets"):
    pytest.importorskip(needed)

from litestar.serialization import decode_msgpack, encode_json  # noqa: E402
from websockets.sync import client as websockets  # noqa: E402

from apps.litestar_site import CONTENTS, KINDS, BatchPlugin, build  # noqa: E402
from common import PATIENCE, eventually  # noqa: E402
from serving import serve  # noqa: E402

ROOT = Path(__file__).parent.parent
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def served(server):
    with serve("uvicorn", "apps.litestar_site:app", "--port", "0", redis_port=server) as site:
        yield site


@pytest.fixture
def site(served, plain, data):
    """The application, with something of every kind in Redis, and nothing counted."""
    plain.set("pointer", "text")
    served.forget()
    yield served
    assert "BlockingFlushWarning" not in served.log


@each_kind
@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_is_returned_is_as_with_redis_py(site, plain, kind, name):
    """One round trip, whether the handler is a coroutine, or runs in a thread or on the loop."""
    response = site.get(f"/{kind}/content/{name}")
    assert site.proxy.round_trips == (name != "nothing")
    plain.delete("views", "other")
    assert response.content == encode_json(CONTENTS[name](plain))


@each_kind
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("text", "héllo"),
        ("text/none", "null"),
        ("bytes", "héllo"),
        ("response", '{"text":"héllo","views":1}'),
        ("dto", '{"title":"héllo"}'),
        ("template", "héllo False True"),
        ("redirect", "héllo"),
        ("visit", "null"),
        ("dependency", '{"name":"Ada"}'),
    ],
)
def test_a_request_is_one_round_trip(site, kind, path, text):
    """With a text, with Litestar's own responses, with a DTO, with a dependency's value."""
    response = site.http.get(f"/{kind}/{path}", follow_redirects=True)
    assert response.status_code == 200
    assert response.text == text
    assert site.proxy.round_trips == 1


@each_kind
def test_msgpack(site, kind):
    content = site.get(f"/{kind}/msgpack").content
    assert decode_msgpack(content) == {"text": "héllo", "views": 1}
    assert site.proxy.round_trips == 1


@each_kind
def test_a_chain_takes_a_round_trip_a_link(site, kind):
    """What a function given to map() calls comes in the second wave."""
    assert site.get(f"/{kind}/chained").json() == {"v": "héllo"}
    assert site.proxy.names == [["GET"], ["GET"]]


@each_kind
def test_a_cached_response_asks_once(site, kind):
    for _ in range(2):
        assert site.get(f"/{kind}/cached").json() == {"text": "héllo", "views": 1}
    assert site.proxy.names == [["GET", "INCRBY"]]


@pytest.mark.parametrize("path", ["/one", "/two"])
def test_a_handler_may_have_several_paths(site, path):
    assert site.get(path).json() == {"text": "héllo", "views": 1}
    assert site.proxy.round_trips == 1


def test_the_applications_hooks_run(site, plain):
    """What `after_request` calls is sent before the response starts."""
    assert site.get("/hooked").json() == {"text": "héllo", "views": 1}
    assert site.proxy.names == [["GET", "INCRBY"], ["INCRBY"]]
    assert plain.get("after") == "1"


# ---- dependencies, background tasks, streams, WebSockets ------------------------------------


@each_kind
def test_a_dependency_that_cleans_up_does_it_before_the_response(site, plain, kind):
    assert site.get(f"/{kind}/yield").json() == {"views": 1}
    assert plain.get("in use") == "0"
    assert site.proxy.names == [["INCRBY", "INCRBY"], ["DECRBY"]]


@each_kind
def test_a_dependency_sees_an_error_that_nobody_looked_at(site, plain, kind):
    """It can roll back, as with redis-py."""
    path = f"/{kind}/yield/fail"
    assert site.get(path).status_code == 500
    assert eventually(lambda: plain.lrange("seen", 0, -1)) == [f"{path}: ResponseError"]
    assert eventually(lambda: plain.get("in use") == "0")


@each_kind
def test_background_tasks_are_flushed_after_the_response(site, plain, kind):
    assert site.get(f"/{kind}/background").json() == {}
    assert eventually(lambda: plain.get("views")) == "1"
    assert site.proxy.names == [["GET", "INCRBY"]]


@each_kind
def test_errors_of_background_tasks_are_logged(site, kind):
    assert site.get(f"/{kind}/background/fail").status_code == 200
    assert site.logs(f"unseen error in GET /{kind}/background/fail: ResponseError: WRONGTYPE")


@each_kind
def test_a_stream_flushes_before_each_chunk(site, kind):
    assert site.get(f"/{kind}/stream").text == "0 1 2 "
    assert site.proxy.names == [["RPUSH"]] * 3


def test_each_message_of_a_websocket_is_one_batch(site):
    with websockets.connect(site.url.replace("http", "ws") + "/socket") as socket:
        for number in (1, 2):
            socket.send("hello")
            assert json.loads(socket.recv(PATIENCE)) == {"length": number}
        socket.send("quit")
    assert site.proxy.names == [["RPUSH", "LLEN"]] * 2


# ---- errors -----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("path", ["fail", "fail/value"])
def test_an_error_is_a_500(site, kind, path):
    """Nobody looked at it; or it is the value of what was returned."""
    response = site.get(f"/{kind}/{path}")
    assert response.status_code == 500
    assert response.json() == {"status_code": 500, "detail": "Internal Server Error"}
    assert site.proxy.round_trips == 1


@each_kind
@pytest.mark.parametrize("path", ["fail", "fail/value"])
def test_the_applications_handler_answers(site, kind, path):
    response = site.get(f"/handled/{kind}/{path}")
    assert response.status_code == 503
    assert response.json() == {"sorry": "ResponseError"}
    assert site.proxy.round_trips == 1


# ---- what it leaves alone ---------------------------------------------------------------------


def test_openapi_is_unchanged():
    def told(plugins):
        schema = json.dumps(build(plugins=plugins).openapi_schema.to_schema())
        return re.sub(r"(ResponseBody)_\d+", r"\1", schema)  # Litestar counts them

    assert told([BatchPlugin()]) == told([])
    assert len(told([])) > 10_000


def test_the_example(server, plain):
    """Its docstring tells what it answers; each request is one round trip."""
    with serve("examples.litestar_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        played = site.http.post("/players/ada/3")
        assert played.text == '{"name":"ada","score":3.0,"rank":0,"games":1}'
        assert site.get("/").text == '{"games":"1","best":[["ada",3.0]]}'
        assert site.proxy.names == [["ZINCRBY", "ZREVRANK", "INCRBY"], ["GET", "ZREVRANGE"]]
