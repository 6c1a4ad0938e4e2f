"""The ASGI middleware: under uvicorn, with real requests; and message by message."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import redis

import autobatch
from autobatch.ambient import ambient
from autobatch.asgi import BatchMiddleware

for needed in ("httpx", "starlette", "uvicorn", "websockets"):
    pytest.importorskip(needed)

import httpx  # noqa: E402
from websockets.exceptions import ConnectionClosedError  # noqa: E402
from websockets.sync import client as websockets  # noqa: E402

from common import PATIENCE  # noqa: E402
from serving import eventually, serve  # noqa: E402

VISIT = ["INCRBY", "EXPIRE", "SADD"]
FAIL = ["SET", "LPUSH"]


@pytest.fixture(scope="module")
def served(server):
    with serve("uvicorn", "apps.asgi:app", "--port", "0", redis_port=server) as site:
        yield site


@pytest.fixture
def site(served, plain):
    """The application in apps/asgi.py, with nothing counted and nothing in Redis."""
    served.forget()
    return served


# ---- requests ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/async", "/threadpool"])
def test_a_request_is_one_round_trip(site, path):
    """Nobody looks at a value: the response's start sends everything."""
    assert site.get(path).text == "visited"
    assert site.proxy.names == [VISIT]


def test_a_response_of_futures_is_one_round_trip(site):
    """It is rendered after what waits was flushed."""
    assert site.get("/json").json() == {"visits": 1, "log": ["visited"]}
    assert site.proxy.names == [["INCRBY", "RPUSH", "LRANGE"]]


@pytest.mark.parametrize("path", ["/tasks", "/threads"])
def test_tasks_and_threads_of_a_request_share_its_scope(site, path):
    """create_task, TaskGroup, asyncio.to_thread and anyio.to_thread carry the context."""
    assert site.get(path).text == "visited"
    assert site.proxy.names == [VISIT * 3]


def test_a_task_that_outlives_its_request_runs_its_commands_at_once(site, plain):
    """Its scope has closed: a call returns the plain value."""
    assert site.get("/tasks/outlive").text == "left alone"
    assert eventually(lambda: plain.get("type")) == "int"
    assert site.proxy.names == [["INCRBY"], ["SET"]]


def test_requests_at_the_same_time_have_a_scope_each(site):
    """Two requests that are both in their endpoints send their own commands, apart."""
    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda key: site.get(f"/meet/{key}").text, ["a", "b"]))
    assert texts == ["a is 2", "b is 2"]
    apart = [[(b"INCRBY", key, b"1")] * 2 for key in (b"a", b"b")]
    assert sorted(site.proxy.exchanges) == apart


def test_nested_middlewares_share_one_scope(site):
    """A mounted application may have its own, and it may be installed twice."""
    assert site.get("/nested/async").text == "visited"
    assert site.proxy.names == [["INCRBY", *VISIT]]


def test_a_base_http_middleware_inside_shares_the_scope(site):
    """What its dispatch function calls rides along."""
    assert site.get("/around/inside/async").text == "visited"
    assert site.proxy.names == [["INCRBY", *VISIT, "INCRBY"]]


def test_a_base_http_middleware_outside_has_no_scope(site):
    """Its commands run at once, and the endpoint's are batched all the same."""
    assert site.get("/around/outside/async").text == "visited"
    assert site.proxy.names == [["INCRBY"], VISIT, ["INCRBY"]]


def test_forcing_on_the_loop_works_and_warns_once_a_line(site):
    """Whatever the key: a program with many users has one line that wants mending."""
    assert [site.get(f"/force/{key}").text for key in "aab"] == ["1 2 ", "3 4 ", "1 2 "]
    assert site.proxy.names == [["INCRBY"]] * 6
    warnings = [line for line in site.log.splitlines() if "BlockingFlushWarning" in line]
    assert len(warnings) == 1
    assert "apps/asgi.py" in warnings[0]


# ---- errors -----------------------------------------------------------------------------


def raw_request(site, path):
    """Return every byte that the server sends in answer to a request."""
    url = httpx.URL(site.url)
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_an_unseen_error_is_a_500(site):
    """The response has not started, so the error can still become one."""
    response = site.get("/fail")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert site.proxy.names == [FAIL]
    assert site.logs("ResponseError: WRONGTYPE")


def test_an_unseen_error_inside_a_base_http_middleware_is_a_500(site):
    """The start of the response reaches us by way of its dispatch function."""
    response = site.get("/around/inside/fail")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert site.proxy.names == [["INCRBY", *FAIL, "INCRBY"]]


@pytest.mark.parametrize("kind", ["exact", "base", "threadpool", "object"])
def test_the_applications_handler_answers_an_unseen_error(site, kind):
    """Registered for the error or a base class; awaited, or run in a thread."""
    raw = raw_request(site, f"/handled/{kind}/fail")
    assert raw.count(b"HTTP/1.1") == 1
    assert raw.startswith(b"HTTP/1.1 503 ")
    assert raw.endswith(b"\r\n\r\nsorry: ResponseError")
    assert site.proxy.names == [FAIL, ["INCRBY"]]


def test_the_applications_handler_answers_inside_a_base_http_middleware(site):
    """Its dispatch function has seen the response that was begun."""
    response = site.get("/handled/around/fail")
    assert (response.status_code, response.text) == (503, "sorry: ResponseError")
    assert site.proxy.names == [["INCRBY", *FAIL, "INCRBY"], ["INCRBY"]]


def test_the_applications_handler_answers_what_a_task_group_sends(site):
    """The group makes a group of what ends the response that was begun."""
    raw = raw_request(site, "/handled/exact/fail/group")
    assert raw.count(b"HTTP/1.1") == 1
    assert raw.startswith(b"HTTP/1.1 503 ")
    site.get("/async")  # by then the server has seen the end of the other one
    assert "Traceback" not in site.log


def test_the_applications_handler_answers_an_error_in_a_response_of_futures(site):
    """It is raised where the value is needed, before the response starts."""
    response = site.get("/handled/exact/json/fail")
    assert (response.status_code, response.text) == (503, "sorry: ResponseError")
    assert site.proxy.names == [["INCRBY", "LLEN"], ["INCRBY"]]


@pytest.mark.parametrize("kind", ["any", "500"])
def test_the_handler_of_last_resort_answers_an_unseen_error(site, kind):
    """Starlette runs it outside the middlewares, and lets the error go on to the log."""
    response = site.get(f"/handled/{kind}/fail")
    assert (response.status_code, response.text) == (503, "sorry: ResponseError")
    assert site.proxy.names == [FAIL, ["INCRBY"]]
    assert site.logs("ResponseError: WRONGTYPE")


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/missing", (404, "Not Found")), ("/handled/404/missing", (503, "sorry: HTTPException"))],
)
def test_the_handler_of_a_status_answers(site, path, answer):
    """A function given to map() may raise Starlette's HTTPException."""
    response = site.get(path)
    assert (response.status_code, response.text) == answer


def test_errors_of_a_handlers_own_commands_are_logged(site):
    """It has answered; there is nobody left to raise them for."""
    response = site.get("/handled/failing/fail")
    assert (response.status_code, response.text) == (503, "sorry: ResponseError")
    logged = "unseen error in GET /handled/failing/fail: ResponseError: WRONGTYPE"
    assert site.logs(logged)
    assert site.proxy.names == [FAIL, [*FAIL, "INCRBY"]]


def test_a_handler_that_raises_is_a_500(site):
    """Its error is logged, with the one that it was asked about as its context."""
    response = site.get("/handled/raising/fail")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert site.logs("RuntimeError: broken handler")
    assert "ResponseError: WRONGTYPE" in site.log


def test_the_applications_handler_answers_in_place_of_a_stream(site, plain):
    """The stream, which would never end, is ended: nobody wants it any more."""
    response = site.get("/handled/exact/stream/fail-endless")
    assert (response.status_code, response.text) == (503, "sorry: ResponseError")
    assert eventually(lambda: plain.get("stream") in (None, "closed"))


def test_an_endpoint_that_raises_sends_what_it_called(site):
    """Errors that nobody has looked at are notes of its own."""
    assert site.get("/raise").status_code == 500
    assert site.proxy.names == [VISIT + FAIL]
    assert site.logs("RuntimeError: broken")
    assert "Also failed: ResponseError: WRONGTYPE" in site.log
    assert "unseen error" not in site.log


# ---- streams, background tasks, disconnects ---------------------------------------------


@pytest.mark.parametrize("kind", ["async", "threadpool"])
def test_a_stream_flushes_before_each_chunk(site, kind):
    """One round trip a chunk, and none for the end."""
    assert site.get(f"/stream/{kind}").text == "0 1 2 "
    assert site.proxy.names == [["RPUSH"]] * 3


def test_an_error_in_a_stream_is_logged(site):
    """The response has started: it goes on as if nothing had happened."""
    response = site.get("/stream/fail")
    assert (response.status_code, response.text) == (200, "first second third")
    assert site.proxy.names == [FAIL]
    logged = "unseen error in GET /stream/fail: ResponseError: WRONGTYPE"
    assert site.logs(logged)


def test_a_client_that_goes_away_loses_no_commands(site, plain):
    """The generator is cancelled; what it called in its `finally` is sent."""
    with site.http.stream("GET", "/stream/endless") as response:
        chunks = response.iter_text()  # which closes the connection when it is forgotten
        assert next(chunks).startswith("more ")
        assert plain.get("stream") == "open"
    assert eventually(lambda: plain.get("stream") == "closed")


@pytest.mark.parametrize("kind", ["async", "threadpool"])
def test_background_tasks_are_flushed_and_logged(site, kind):
    """They run after the response, so their errors have nowhere else to go."""
    response = site.get(f"/background/{kind}")
    assert (response.status_code, response.text) == (200, "later")
    logged = f"unseen error in GET /background/{kind}: ResponseError: WRONGTYPE"
    assert site.logs(logged)
    assert site.proxy.names == [VISIT + FAIL]


# ---- WebSockets -------------------------------------------------------------------------


@pytest.fixture
def connect(site):
    """Connect to a WebSocket of the site."""
    return lambda path: websockets.connect(f"ws{site.url.removeprefix('http')}{path}", proxy=None)


def test_each_message_of_a_websocket_is_a_batch(site, connect, plain):
    """An answer ends it, or waiting for the next message; and so does the end."""
    with connect("/echo") as websocket:
        websocket.send("one")
        assert websocket.recv(PATIENCE) == "one"
        websocket.send("silent")
        websocket.send("two")
        assert websocket.recv(PATIENCE) == "two"
        websocket.send("quit")
        assert eventually(lambda: plain.lrange("log", -1, -1) == ["bye"])
    assert site.proxy.names == [["INCRBY", "RPUSH"]] * 3 + [["RPUSH"]]


def test_a_websocket_that_is_closed_by_its_client_loses_no_commands(site, connect, plain):
    """What the application calls then is sent when it ends."""
    with connect("/echo") as websocket:
        websocket.send("silent")
    assert eventually(lambda: plain.lrange("log", 0, -1) == ["silent", "bye"])
    assert site.proxy.names == [["INCRBY", "RPUSH"], ["RPUSH"]]


def test_an_error_is_raised_at_the_next_message_of_a_websocket(site, connect):
    """At the answer or, without one, at the wait for the next message; at the end it is logged."""
    with connect("/echo/fail") as websocket:
        for text in ("hello", "silent"):
            websocket.send(text)
            assert websocket.recv(PATIENCE) == "failed: WRONGTYPE"
        assert "unseen error" not in site.log
        websocket.send("quit")
        logged = "unseen error in WEBSOCKET /echo/fail: ResponseError: WRONGTYPE"
        assert site.logs(logged)
    assert site.proxy.names == [FAIL] * 3


def test_an_error_that_a_websocket_does_not_catch_ends_it(site, connect):
    """As any other error does: the server closes the connection, not as one that is done."""
    with connect("/echo/uncaught") as websocket:
        websocket.send("hello")
        with pytest.raises(ConnectionClosedError):
            websocket.recv(PATIENCE)
    assert site.logs("ResponseError: WRONGTYPE")


# ---- in this process: which thread sends, and exactly what is sent -----------------------


class WatchedSocket(socket.socket):
    """A socket that knows the threads which send on it."""

    threads: ClassVar[set[int]] = set()

    def send(self, *args):
        self.threads.add(threading.get_ident())
        return super().send(*args)

    def sendall(self, *args):
        self.threads.add(threading.get_ident())
        return super().sendall(*args)


class WatchedConnection(redis.Connection):
    """A connection on such a socket."""

    def _connect(self):
        sock = super()._connect()
        timeout = sock.gettimeout()
        watched = WatchedSocket(fileno=sock.detach())
        watched.settimeout(timeout)
        return watched


@pytest.fixture
def application(proxy, monkeypatch):
    """The application in apps/asgi.py, here, with a client whose threads are watched."""
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{proxy.port}")
    module = importlib.import_module("apps.asgi")
    pool = redis.ConnectionPool(
        WatchedConnection, host="127.0.0.1", port=proxy.port, decode_responses=True
    )
    monkeypatch.setattr(WatchedSocket, "threads", set())
    with autobatch.Redis.from_pool(pool) as client:
        monkeypatch.setattr(module, "redis", client)
        yield module.app


class Peer:
    """The server's side of a request.

    Attributes:
        sent: the messages that the application has sent.
    """

    def __init__(self, path="/page", kind="http", received=({"type": "http.request"},)):
        self.sent = []
        self._received = list(received)
        self.scope = {
            "type": kind,
            "method": "GET",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        if kind == "websocket":
            del self.scope["method"]

    async def receive(self):
        if not self._received:
            await asyncio.Event().wait()  # the client is still there
        return self._received.pop(0)

    async def send(self, message):
        self.sent.append(message)

    async def call(self, app):
        """Let `app` respond; return the types of the messages that it sent."""
        await app(self.scope, self.receive, self.send)
        return [message["type"] for message in self.sent]


RESPONSE = ["http.response.start", "http.response.body"]
PATHS = [
    "/async",
    "/threadpool",
    "/stream/async",
    "/stream/threadpool",
    "/stream/fail",
    "/background/async",
    "/background/threadpool",
    "/tasks",
    "/threads",
    "/nested/async",
    "/around/inside/async",
    "/handled/exact/fail",
    "/handled/threadpool/fail",
    "/handled/around/fail",
    "/json",
    "/handled/exact/json/fail",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_loops_thread_sends_nothing(application, path):
    """Whatever waits is flushed in a thread."""
    asyncio.run(Peer(path).call(application))
    assert WatchedSocket.threads
    assert threading.get_ident() not in WatchedSocket.threads


def test_the_loops_thread_sends_nothing_for_a_websocket(application):
    """Neither between messages nor at the end."""
    messages = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "one"},
        {"type": "websocket.receive", "text": "silent"},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    peer = Peer("/echo", "websocket", messages)
    assert asyncio.run(peer.call(application)) == ["websocket.accept", "websocket.send"]
    assert WatchedSocket.threads
    assert threading.get_ident() not in WatchedSocket.threads


@pytest.mark.parametrize(
    ("path", "error"), [("/fail", redis.ResponseError), ("/raise", RuntimeError)]
)
def test_the_loops_thread_sends_nothing_when_a_request_fails(application, path, error):
    """An error is no reason to block."""
    with pytest.raises(error):
        asyncio.run(Peer(path).call(application))
    assert WatchedSocket.threads
    assert threading.get_ident() not in WatchedSocket.threads


@pytest.mark.filterwarnings("ignore::autobatch.errors.BlockingFlushWarning")
def test_the_loops_thread_sends_what_is_forced_on_it(application):
    """The one exception, which is what the warning is about."""
    asyncio.run(Peer("/force/key").call(application))
    assert threading.get_ident() in WatchedSocket.threads


@pytest.mark.parametrize("kind", ["exact", "base", "threadpool", "object", "around"])
def test_exactly_one_response_is_sent(application, kind):
    """That of the handler; nothing is left of the one that the endpoint began."""
    peer = Peer(f"/handled/{kind}/fail")
    assert asyncio.run(peer.call(application)) == RESPONSE
    assert peer.sent[0]["status"] == 503
    assert peer.sent[1]["body"] == b"sorry: ResponseError"


def test_what_belongs_to_a_replaced_response_does_not_run(application, plain):
    """Its background task would tell somebody that all went well."""
    peer = Peer("/handled/exact/fail/background")
    assert asyncio.run(peer.call(application)) == RESPONSE
    assert peer.sent[0]["status"] == 503
    assert plain.get("paid") is None


def test_an_endless_stream_ends_when_a_handler_answers_in_its_place(application):
    """Also on a server that does not tell the application when the response is complete."""
    peer = Peer("/handled/exact/stream/fail-endless")
    peer.scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}

    async def main():
        async with asyncio.timeout(5):  # it would not end
            return await peer.call(application)

    assert asyncio.run(main()) == RESPONSE


# ---- message by message -----------------------------------------------------------------

START = {"type": "http.response.start", "status": 200, "headers": []}


def body(chunk=b"", *, more_body=False):
    return {"type": "http.response.body", "body": chunk, "more_body": more_body}


def test_a_flush_precedes_the_start_and_each_chunk(client, plain):
    """Whoever has a part of the response finds in Redis what was called before it."""

    async def app(scope, receive, send):
        client.set("called", "before the start")
        await send(START)
        client.set("called", "before a chunk")
        await send(body(b"chunk", more_body=True))
        client.set("called", "before the end")
        await send(body())
        client.set("called", "after the end")

    class Watching(Peer):
        async def send(self, message):
            self.sent.append(plain.get("called"))

    peer = Watching()
    asyncio.run(BatchMiddleware(app)(peer.scope, peer.receive, peer.send))
    assert peer.sent == ["before the start", "before a chunk", "before the end"]
    assert plain.get("called") == "after the end"


def test_an_application_may_catch_the_error_at_the_start(client):
    """It has seen the error then, and may respond in another way."""

    async def app(scope, receive, send):
        client.set("text", "a string")
        client.lpush("text", 1)
        try:
            await send(START)
        except redis.ResponseError:
            await send({**START, "status": 503})
        await send(body())

    peer = Peer()
    assert asyncio.run(peer.call(BatchMiddleware(app))) == RESPONSE
    assert peer.sent[0]["status"] == 503


def test_several_unseen_errors_are_one_with_notes(client):
    """The first in program order is raised."""

    async def app(scope, receive, send):
        client.set("text", "a string")
        client.lpush("text", 1)
        client.incr("text")
        await send(START)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        asyncio.run(Peer().call(BatchMiddleware(app)))
    assert any("Also failed" in note and "INCRBY text" in note for note in raised.value.__notes__)


def test_an_application_that_never_responds_raises_its_errors(client):
    """Nothing was sent, so the server can answer."""

    async def app(scope, receive, send):
        client.set("text", "a string")
        client.lpush("text", 1)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        asyncio.run(Peer().call(BatchMiddleware(app)))


def test_an_error_after_the_start_is_logged_with_its_request(client, caplog):
    """By the logger "autobatch", with the error and the line that called the command."""

    async def app(scope, receive, send):
        await send(START)
        client.set("text", "a string")
        client.lpush("text", 1)
        await send(body())

    assert asyncio.run(Peer().call(BatchMiddleware(app))) == RESPONSE
    [record] = caplog.records
    assert (record.name, record.levelno) == ("autobatch", logging.ERROR)
    assert record.getMessage().startswith("unseen error in GET /page: ResponseError: WRONGTYPE")
    assert "LPUSH text" in record.getMessage()
    assert isinstance(record.exc_info[1], redis.ResponseError)


def test_a_send_that_fails_loses_no_commands(client, plain):
    """Servers may say in this way that the client has gone."""

    class Gone(Peer):
        async def send(self, message):
            raise OSError("gone")

    async def app(scope, receive, send):
        client.set("called", "before")
        try:
            await send(START)
        finally:
            client.set("called", "after")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(Gone().call(BatchMiddleware(app)))
    assert plain.get("called") == "after"


def test_other_messages_flush_and_do_not_start_the_response(client, proxy):
    """Such as an early hint: an error after it can still be raised."""

    async def app(scope, receive, send):
        client.set("text", "a string")
        await send({"type": "http.response.early_hint", "links": []})
        client.lpush("text", 1)
        await send(START)

    peer = Peer()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        asyncio.run(peer.call(BatchMiddleware(app)))
    assert [message["type"] for message in peer.sent] == ["http.response.early_hint"]
    assert proxy.names == [["SET"], ["LPUSH"]]


@pytest.mark.parametrize("kind", ["lifespan", "something.else"])
def test_only_requests_and_websockets_have_a_scope(client, proxy, kind):
    """What starts and stops an application runs its commands at once."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(ambient.get())
        assert client.incr("starts") == 1
        assert proxy.round_trips == 1

    asyncio.run(Peer(kind=kind).call(BatchMiddleware(app)))
    assert scopes == [None]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_scope_is_gone_after_the_request(client, kind, error):
    """However it has ended."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(ambient.get())
        client.set("key", "value")
        if error is not None:
            raise error

    async def main():
        try:
            await Peer(kind=kind).call(BatchMiddleware(app))
        except RuntimeError:
            assert error is RuntimeError
        return ambient.get()

    assert asyncio.run(main()) is None
    assert scopes[0].closed


def test_an_application_called_inside_a_scope_flushes_that_first(client, proxy):
    """A test's client calls the application in its own task, perhaps inside a batch."""

    async def app(scope, receive, send):
        client.set("inner", 1)
        await send(START)
        await send(body())

    async def main():
        transport = httpx.ASGITransport(BatchMiddleware(app))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://app") as http,
            autobatch.batch() as scope,
        ):
            client.set("outer", 1)
            assert (await http.get("/")).status_code == 200
            client.set("outer", 2)
            assert ambient.get() is scope

    asyncio.run(main())
    assert [exchange[0][1] for exchange in proxy.exchanges] == [b"outer", b"inner", b"outer"]


def test_the_limits_of_a_scope_are_the_middlewares(client, proxy):
    """A request that calls a great deal flushes early."""

    async def app(scope, receive, send):
        for number in range(5):
            client.set(f"key{number}", number)
        await send(START)

    # Early is where the call is, so the loop waits.
    with pytest.warns(autobatch.errors.BlockingFlushWarning):
        asyncio.run(Peer().call(BatchMiddleware(app, max_commands=2)))
    assert proxy.names == [["SET", "SET"], ["SET", "SET"], ["SET"]]


@pytest.fixture
def paused(plain):
    """A server that executes no write before it is told to."""
    plain.client_pause(60_000, all=False)
    yield plain
    plain.client_unpause()


@pytest.mark.parametrize("cancellations", [1, 2])
def test_a_request_that_is_cancelled_while_it_flushes_loses_nothing(
    client, proxy, paused, caplog, cancellations
):
    """Neither what is on its way nor what it calls on its way out; errors are logged."""

    async def app(scope, receive, send):
        client.set("text", "a string")
        try:
            await send(START)
        finally:
            client.set("last", 1)
            client.lpush("text", 1)
            leaving.set()

    leaving = asyncio.Event()

    async def main():
        request = asyncio.create_task(Peer().call(BatchMiddleware(app)))
        await asyncio.to_thread(eventually, lambda: proxy.names == [["SET"]])
        request.cancel()
        await leaving.wait()
        if cancellations == 2:
            request.cancel()  # while it waits for the flush at its end
            with pytest.raises(asyncio.CancelledError):
                await request
        paused.client_unpause()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.to_thread(eventually, lambda: caplog.records)

    asyncio.run(main())
    assert proxy.names == [["SET"], ["SET", "LPUSH"]]
    assert paused.get("last") == "1"
    [record] = caplog.records
    assert record.getMessage().startswith("unseen error in GET /page: ResponseError: WRONGTYPE")


def test_a_request_that_is_cancelled_before_its_flush_gets_a_thread_loses_nothing(client, plain):
    """Where a program keeps all threads of its loop busy, a flush waits for its turn."""

    async def app(scope, receive, send):
        client.set("first", 1)
        entered.set()
        try:
            await send(START)
        finally:
            client.set("last", 1)
            leaving.set()

    entered, leaving = asyncio.Event(), asyncio.Event()
    release = threading.Event()

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        occupant = asyncio.create_task(asyncio.to_thread(release.wait))
        await asyncio.sleep(0)
        request = asyncio.create_task(Peer().call(BatchMiddleware(app)))
        await entered.wait()
        request.cancel()
        await leaving.wait()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await request
        await occupant

    asyncio.run(main())
    assert plain.mget("first", "last") == ["1", "1"]
