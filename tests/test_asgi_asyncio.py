"""The ASGI middleware with asyncio clients, under every server: its life cycle, on the wire."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

for needed in ("httpx", "starlette", "websockets", "uvicorn", "hypercorn", "granian"):
    pytest.importorskip(needed)

from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync import client as websockets  # noqa: E402

from common import PATIENCE  # noqa: E402
from serving import ASGI_SERVERS, TESTS, eventually, serve, serve_asgi  # noqa: E402

VISIT = ["INCRBY", "EXPIRE", "SADD"]
FAIL = ["SET", "LPUSH"]


@pytest.fixture(scope="module", params=ASGI_SERVERS)
def served(request, server):
    with serve_asgi(request.param, "apps.asgi_asyncio:app", redis_port=server) as site:
        yield site


@pytest.fixture
def site(served, plain):
    """The application in apps/asgi_asyncio.py, with nothing counted and nothing in Redis."""
    served.forget()
    return served


@pytest.fixture
def connect(site):
    """Connect to a WebSocket of the site."""
    return lambda path: websockets.connect(f"ws{site.url.removeprefix('http')}{path}", proxy=None)


# ---- requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "exchanges"),
    [
        ("/visit", "visited", [VISIT]),
        ("/thread", "visited", [VISIT]),
        ("/tasks", "visited", [VISIT * 2]),
        ("/await", "1 {'ada'}", [[*VISIT, "GET"], ["SMEMBERS"]]),
        ("/gather", "0 1 2", [["SET"] * 3, ["GET"] * 3]),
        ("/json", '{"visits":1,"log":[["visited"]]}', [["INCRBY", "RPUSH", "LRANGE"]]),
        ("/around/inside/visit", "visited", [["INCRBY"], [*VISIT, "INCRBY"]]),
        ("/fail/await", "caught WRONGTYPE", [["INCRBY"], ["LPUSH"]]),
    ],
)
def test_a_requests_round_trips(site, path, text, exchanges):
    """What nobody awaits leaves together, at the start of the response at the latest."""
    response = site.get(path)
    assert (response.status_code, response.text) == (200, text)
    assert site.proxy.names == exchanges


def test_a_thread_that_forces_sends_what_asyncio_clients_wait_with(site, plain):
    """There is no event loop in it: that of the request is meant."""
    assert site.get("/thread/force").text == "1"
    assert plain.get("ping") == "from an asyncio client"


def test_outside_a_base_http_middleware_there_is_no_scope(site, plain):
    """Its commands leave by themselves; the endpoint's are batched all the same."""
    assert site.get("/around/outside/visit").text == "visited"
    assert eventually(lambda: plain.get("after") == "1")
    assert eventually(lambda: site.proxy.commands == 5)
    names = site.proxy.names
    assert names[0] == ["INCRBY"]
    assert [name for exchange in names[1:] for name in exchange] == [*VISIT, "INCRBY"]


def test_requests_that_run_at_the_same_time_share_a_round_trip(site):
    """Both are ready in one tick of their loop: one write."""
    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda key: site.get(f"/meet/{key}").text, ["a", "b"]))
    assert texts == ["1", "1"]
    assert site.proxy.names == [["INCRBY", "INCRBY"]]


def test_synchronous_and_asyncio_clients_in_one_request_keep_their_order(site, plain):
    """They have a connection each, and see what the other one wrote before."""
    ping = "from a synchronous client"
    assert site.get("/mixed").json() == {"ping": ping, "pong": f"{ping}!"}
    order = [name for exchange in site.proxy.names for name in exchange]
    assert order == ["SET", "GET", "SET", "APPEND", "GET"]
    assert "BlockingFlushWarning" not in site.log


# ---- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "logged", "exchanges"),
    [
        ("/fail", "ResponseError: WRONGTYPE", [FAIL]),
        ("/json/fail", "ResponseError: WRONGTYPE", [["INCRBY", "LLEN"]]),
        ("/around/inside/fail", "ResponseError: WRONGTYPE", [["INCRBY"], [*FAIL, "INCRBY"]]),
        ("/raise", "RuntimeError: broken", [VISIT + FAIL]),
        ("/touch", "is not there yet: await it", [["INCRBY"]]),
    ],
)
def test_an_error_before_the_start_is_a_500(site, path, logged, exchanges):
    """Whether Redis, the endpoint or the use of a value that is not there made it."""
    response = site.get(path)
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert site.logs(logged)
    assert site.proxy.names == exchanges


@pytest.mark.parametrize(
    ("path", "exchanges"),
    [("fail", [FAIL, ["INCRBY"]]), ("json/fail", [["INCRBY", "LLEN"], ["INCRBY"]])],
)
def test_the_applications_own_handler_answers_an_error(site, path, exchanges):
    """It may await the client itself."""
    response = site.get(f"/handled/{path}")
    assert (response.status_code, response.text) == (503, "sorry 1: ResponseError")
    assert site.proxy.names == exchanges


# ---- streams, background tasks, disconnects ---------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "exchange"),
    [("/stream", "0 1 2 ", ["RPUSH"]), ("/stream/await", "1 2 3 ", ["RPUSH", "LLEN"])],
)
def test_a_stream_flushes_before_each_chunk(site, path, text, exchange):
    """One round trip a chunk, and none for the end."""
    assert site.get(path).text == text
    assert site.proxy.names == [exchange] * 3


def test_an_error_in_a_stream_is_logged(site):
    """The response has started: it goes on as if nothing had happened."""
    assert site.get("/stream/fail").text == "first second "
    assert site.logs("unseen error in GET /stream/fail: ResponseError: WRONGTYPE")
    assert site.proxy.names == [FAIL]


def test_background_tasks_are_flushed_and_logged(site):
    """They run after the response, so their errors have nowhere else to go."""
    assert site.get("/background").text == "later"
    assert site.logs("unseen error in GET /background: ResponseError: WRONGTYPE")
    assert site.proxy.names == [VISIT + FAIL]


def test_a_client_that_goes_away_loses_no_commands(site, plain):
    """The generator is cancelled, and what it called in its `finally` is sent."""
    with site.http.stream("GET", "/stream/endless") as response:
        chunks = response.iter_text()  # which closes the connection when it is forgotten
        assert next(chunks).startswith("more ")
        assert plain.get("stream") == "open"
    assert eventually(lambda: plain.get("stream") == "closed")
    assert site.get("/await").text == "1 {'ada'}"  # its neighbours' replies are in step


# ---- WebSockets -------------------------------------------------------------------------


def test_each_message_of_a_websocket_is_a_batch(site, connect, plain):
    """An answer ends it, or waiting for the next message; and so does the end."""
    with connect("/echo") as websocket:
        websocket.send("one")
        assert websocket.recv(PATIENCE) == "one"
        websocket.send("silent")
        websocket.send("count")
        assert websocket.recv(PATIENCE) == "3"
        websocket.send("quit")
        assert eventually(lambda: plain.lrange("log", -1, -1) == ["bye"])
    assert site.proxy.names == [["INCRBY", "RPUSH"]] * 3 + [["RPUSH"]]


def test_a_websocket_that_is_closed_by_its_client_loses_no_commands(site, connect, plain):
    """What the application calls then is sent when it ends."""
    with connect("/echo") as websocket:
        websocket.send("silent")
    assert eventually(lambda: plain.lrange("log", 0, -1) == ["silent", "bye"])


def test_an_error_in_a_websocket_is_raised_at_the_next_message(site, connect):
    """Where there is none, it is logged."""
    with connect("/echo/fail") as websocket:
        websocket.send("hello")
        assert websocket.recv(PATIENCE) == "failed: WRONGTYPE"
        with pytest.raises(ConnectionClosed):
            websocket.recv(PATIENCE)
    assert site.logs("unseen error in WEBSOCKET /echo/fail: ResponseError: WRONGTYPE")
    assert site.proxy.names == [FAIL] * 2


# ---- the example ------------------------------------------------------------------------


def test_the_example_takes_the_round_trips_that_it_promises(server, plain):
    """And answers as its docstring says."""
    with serve("examples.asyncio_app", redis_port=server, cwd=TESTS.parent) as site:
        site.forget()
        plain.flushall()
        assert site.http.post("/vote/tea").text == '{"choice":"tea","votes":1.0,"ahead":0}'
        assert site.proxy.names == [["INCRBY", "ZINCRBY"], ["ZCOUNT"]]
        site.proxy.reset()
        assert site.get("/").text == '{"votes":"1","ranking":[["tea",1.0]]}'
        assert site.proxy.names == [["GET", "ZREVRANGE"]]
