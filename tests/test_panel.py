"""The debug panel: who may see it, what it shows, and that it shows it in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import html
import shutil
import subprocess
import sys
import threading

import pytest
import redis

import autobatch
from autobatch import report
from autobatch.asgi import BatchMiddleware
from autobatch.panel import Panel, from_this_machine
from autobatch.wsgi import BatchMiddleware as WSGIBatchMiddleware
from common import eventually, meanwhile

LOCAL = {"host": "localhost:8000"}


@pytest.fixture
def panel():
    panel = Panel("/_panel", limit=3)
    yield panel
    panel.close()
    assert not report.subscriptions


def shown(panel, **options):
    """Return the page as its reader gets it."""
    status, headers, body = panel.answer("GET", "127.0.0.1", LOCAL, **options)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Length"] == str(len(body))
    return html.unescape(body.decode())


# ---- who may see it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "headers", "allowed"),
    [
        ("127.0.0.1", {"host": "localhost:8000"}, True),
        ("127.0.0.1", {"host": "127.0.0.1"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("127.8.9.1", {"host": "shop.localhost"}, True),
        ("::ffff:127.0.0.1", {"host": "LOCALHOST.:8000"}, True),
        ("::ffff:192.168.0.7", {"host": "localhost"}, False),
        ("192.168.0.7", {"host": "localhost"}, False),
        ("127.0.0.1", {"host": "evil.example"}, False),  # its owner lets it lead here
        ("127.0.0.1", {"host": "localhost.evil.example"}, False),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, False),
        ("127.0.0.1", {}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=8.8.8.8"}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-host": "shop.example"}, False),
        ("127.0.0.1", {"host": "localhost", "via": "1.1 proxy"}, False),
        ("", {"host": "localhost"}, False),
        ("testclient", {"host": "localhost"}, False),
        (None, {"host": "localhost"}, False),  # a Unix socket
    ],
)
def test_it_answers_clients_on_this_machine_alone(client, headers, allowed, panel):
    assert from_this_machine(client, headers) is allowed
    status, _, body = panel.answer("GET", client, headers)
    assert status == (200 if allowed else 403)
    assert (b"on this machine only" in body) is not allowed


def test_others_may_see_it_where_the_program_says_so():
    asked = []
    panel = Panel(allow=lambda client, headers: asked.append((client, headers)) or True)
    try:
        status, *_ = panel.answer("GET", "10.0.0.1", {"host": "shop.example"})
    finally:
        panel.close()
    assert (status, asked) == (200, [("10.0.0.1", {"host": "shop.example"})])


def test_it_only_shows(panel):
    status, headers, _ = panel.answer("POST", "127.0.0.1", LOCAL)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, headers, body = panel.answer("HEAD", "127.0.0.1", LOCAL)
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='begins with "/"'):
        Panel("panel")
    with pytest.raises(ValueError, match="at least 1"):
        Panel(limit=0)
    assert not report.subscriptions


# ---- what it shows -----------------------------------------------------------------------


def test_it_says_when_there_is_nothing(panel):
    assert "No scope has ended" in shown(panel)


def test_it_shows_round_trips_and_what_forced_them(panel, client):
    with autobatch.batch():
        client.set("user:1", "a secret")
        assert client.get("user:1") == "a secret"
        client.lpush("user:1", 1).exception()
        client.get("user:1")
        client.blpop("nothing", timeout=0.01)
    page = shown(panel)
    for text in (
        "SET user:1",
        "GET user:1",
        "forced (eq)",
        "tests/test_panel.py",
        "in test_it_shows_round_trips_and_what_forced_them",
        "WRONGTYPE",
        "stepped aside",
        "alone",
        "BLPOP",
    ):
        assert text in page
    assert "secret" not in page
    assert page.count('class="lane"') == 4
    assert page.count("trip bad") == page.count("trip aside") == 1


def test_it_shows_the_last_scopes_the_newest_first(panel, client):
    for number in range(5):
        with autobatch.batch():
            client.set(f"number:{number}", 1)
    page = shown(panel)
    places = [page.find(f"SET number:{number}") for number in (4, 3, 2)]
    assert -1 not in places
    assert places == sorted(places)
    assert "number:1" not in page


def test_many_commands_are_counted(panel, client):
    with autobatch.batch():
        for number in range(30):
            client.set(f"number:{number}", 1)
    page = shown(panel)
    assert "number:19" in page
    assert "number:20" not in page
    assert "and 10 more" in page


def test_many_round_trips_are_counted(panel, client):
    with autobatch.batch():
        for number in range(170):
            assert client.get(f"number:{number}") == None  # noqa: E711  # forces
    page = shown(panel)
    assert page.count('class="lane"') == 160
    assert page.count("<tr>") == 1 + 50
    assert "and 120 more" in page


def test_a_scope_with_very_many_commands_keeps_the_last(client):
    """They would take the memory that the batches themselves do not."""
    scopes = []
    with report.subscribe(on_scope=scopes.append), autobatch.batch(max_commands=5000):
        for _ in range(60_001):
            client.get("a")
    (scope,) = scopes
    assert (scope.commands, scope.round_trips) == (60_001, 13)
    assert [len(flush.commands) for flush in scope.flushes] == [*[5000] * 9, 1]


def test_scopes_with_very_many_commands_are_few(panel, client, monkeypatch):
    """They would take much memory, and the page much time."""
    monkeypatch.setattr("autobatch.panel._COMMANDS", 100)
    for key in ("first", "second", "third", "fourth"):
        with autobatch.batch():
            for _ in range(40):
                client.get(key)
    page = shown(panel)
    assert "GET third" in page
    assert "GET fourth" in page
    assert "GET second" not in page
    with autobatch.batch():
        for _ in range(200):
            client.get("fifth")
    assert "GET fifth" in shown(panel)
    assert "GET fourth" not in shown(panel)


def test_a_scope_without_round_trips_is_shown(panel):
    with autobatch.batch():
        pass
    page = shown(panel)
    assert "test_panel.py" in page
    assert "<svg" not in page
    assert "<table" not in page


def test_it_is_shown_while_scopes_end_in_other_threads(panel, client):
    """Nobody waits for anybody."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            with autobatch.batch():
                client.get("a")

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(meanwhile(work))
        stack.callback(stop.set)
        eventually(lambda: "GET a" in shown(panel))
        for _ in range(50):
            assert "GET a" in shown(panel)


def test_what_it_shows_is_escaped(panel, client):
    """Keys and paths may come from anywhere."""
    evil = "<script>alert(1)</script>"

    async def app(scope, receive, send):
        client.eager.set(evil, 1)

    scope = {"type": "http", "method": "GET", "path": f"/{evil}", "headers": []}
    asyncio.run(BatchMiddleware(app)(scope, None, None))
    _, _, body = panel.answer("GET", "127.0.0.1", LOCAL)
    assert body.count(b"&lt;script&gt;") == 2
    assert b"<script" not in body


def test_a_path_that_is_no_text_is_shown_all_the_same(panel, client):
    names = {}
    exec(compile("def call(client):\n    client.get('a')", "/caf\udce9.py", "exec"), names)
    with autobatch.batch():
        names["call"](client)
    assert "/caf?.py:2" in shown(panel)


# ---- in the middlewares ------------------------------------------------------------------


def asgi_get(app, path, client=("127.0.0.1", 5), root_path="", host=b"localhost"):
    """Return the status and the body of an ASGI application's answer."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": root_path,
        "headers": [(b"host", host)],
        "client": client,
    }
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


def wsgi_get(app, path, client="127.0.0.1", root=""):
    """Return the status and the body of a WSGI application's answer."""
    started = []

    def start_response(status, headers, exc_info=None):
        started.append((status, headers))

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": root,
        "PATH_INFO": path.encode().decode("latin-1"),
        "REMOTE_ADDR": client,
        "HTTP_HOST": "localhost",
    }
    body = app(environ, start_response)
    chunks = b"".join(body)
    getattr(body, "close", lambda: None)()
    ((status, headers),) = started
    return int(status.split()[0]), chunks, dict(headers)


def application(client):
    async def app(scope, receive, send):
        client.incr("visits")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"visited"})

    return app


def wsgi_application(client, body):
    def app(environ, start_response):
        client.incr("visits")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body()

    return app


@pytest.mark.filterwarnings("ignore::autobatch.errors.BlockingFlushWarning")
def test_asgi_serves_it_at_its_path(panel, client):
    app = BatchMiddleware(application(client), panel=panel)
    assert asgi_get(app, "/page")[:2] == (200, b"visited")
    status, body, _ = asgi_get(app, "/_panel")
    assert status == 200
    assert b"GET /page" in body
    assert b"INCRBY visits" in body
    assert b"response" in body
    assert asgi_get(app, "/_panel/")[0] == 200
    assert asgi_get(app, "/sub/_panel", root_path="/sub")[0] == 200
    assert asgi_get(app, "/_panel", root_path="/sub")[0] == 200  # as of an older uvicorn
    assert asgi_get(app, "/sub/_panel", root_path="/su")[:2] == (200, b"visited")
    assert asgi_get(app, "/_panel", client=("10.0.0.1", 5))[0] == 403
    assert asgi_get(app, "/_panel", client=None)[0] == 403
    assert client.get("visits") == "2"  # the panel's own requests do not reach the application


def test_wsgi_serves_it_at_its_path(panel, client):
    app = WSGIBatchMiddleware(wsgi_application(client, lambda: [b"visited"]), panel=panel)
    assert wsgi_get(app, "/page")[:2] == (200, b"visited")
    status, body, _ = wsgi_get(app, "/_panel")
    assert status == 200
    assert b"GET /page" in body
    assert b"INCRBY visits" in body
    assert wsgi_get(app, "/_panel", client="10.0.0.1")[0] == 403
    assert client.get("visits") == "1"


@pytest.mark.filterwarnings("ignore::autobatch.errors.BlockingFlushWarning")
def test_it_is_served_inside_another_middleware(panel, client):
    """As that of a mounted application: the outer one batches, the inner one has the panel."""
    app = BatchMiddleware(BatchMiddleware(application(client), panel=panel))
    assert asgi_get(app, "/page")[:2] == (200, b"visited")
    assert b"GET /page" in asgi_get(app, "/_panel")[1]
    inner = WSGIBatchMiddleware(wsgi_application(client, lambda: [b"visited"]), panel=panel)
    assert b"GET /page" in wsgi_get(WSGIBatchMiddleware(inner), "/_panel")[1]
    assert client.get("visits") == "1"


def test_wsgis_paths_are_read_as_they_were_asked_for(client):
    panel = Panel("/übersicht")
    app = WSGIBatchMiddleware(wsgi_application(client, lambda: [b"visited"]), panel=panel)
    with contextlib.closing(panel):
        wsgi_get(app, "/seite/ä", root="/unter")
        assert "GET /unter/seite/ä" in wsgi_get(app, "/übersicht")[1].decode()


@pytest.mark.parametrize("make", [BatchMiddleware, WSGIBatchMiddleware])
def test_without_a_panel_the_path_is_the_applications(make, client):
    if make is BatchMiddleware:
        assert asgi_get(make(application(client)), "/_autobatch")[1] == b"visited"
    else:
        app = make(wsgi_application(client, lambda: [b"visited"]))
        assert wsgi_get(app, "/_autobatch")[1] == b"visited"
    assert not report.listening


def fastapi_site(**options):
    from fastapi import FastAPI

    from autobatch.integrations.fastapi import install

    app = FastAPI()
    install(app, **options)
    return app


def litestar_site(**options):
    from litestar import Litestar

    from autobatch.integrations.litestar import BatchPlugin

    return BatchMiddleware(Litestar(plugins=[BatchPlugin()]), **options)


def quart_site(**options):
    from quart import Quart

    from autobatch.integrations.quart import install

    app = Quart("site")
    install(app, **options)
    return app


def flask_site(**options):
    from flask import Flask

    from autobatch.integrations.flask import install

    app = Flask("site")
    install(app, **options)
    return app


@pytest.mark.parametrize("site", [fastapi_site, litestar_site, quart_site, flask_site])
def test_the_frameworks_set_up_takes_it(panel, site):
    framework = site.__name__.removesuffix("_site")
    httpx = pytest.importorskip("httpx")
    pytest.importorskip(framework)
    app = site(panel=panel)
    if framework == "flask":
        answer = httpx.Client(transport=httpx.WSGITransport(app)).get("http://localhost/_panel")
    else:

        async def get():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                return await client.get("http://localhost/_panel")

        answer = asyncio.run(get())
    assert (answer.status_code, "Where the round trips went" in answer.text) == (200, True)


# ---- Server-Timing -----------------------------------------------------------------------


def lazily(client):
    """A body whose making calls Redis."""
    client.get("visits")
    yield b"visited"


def test_server_timing_tells_of_the_calls_before_the_start(client):
    app = BatchMiddleware(application(client), server_timing=True)
    _, _, headers = asgi_get(app, "/page")
    name, duration, description = headers[b"server-timing"].decode().split(";")
    assert (name, description) == ("redis", 'desc="1 command, 1 round trip"')
    assert float(duration.removeprefix("dur=")) > 0
    assert not report.listening


def test_server_timing_tells_of_calls_whose_errors_are_answered(client):
    """The response to an error that came with the start, by the application's own handler."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def failing(request):
        client.set("visits", "text")
        client.incr("visits")
        return PlainTextResponse("fine")

    async def handler(request, error):
        return PlainTextResponse("sorry", 503)

    app = starlette.Starlette(
        routes=[Route("/", failing)], exception_handlers={redis.ResponseError: handler}
    )
    app.add_middleware(BatchMiddleware, server_timing=True)
    status, body, headers = asgi_get(app, "/")
    assert (status, body) == (503, b"sorry")
    assert headers[b"server-timing"].endswith(b'desc="2 commands, 1 round trip"')


def test_server_timing_of_wsgi_waits_for_the_flush(client):
    app = WSGIBatchMiddleware(wsgi_application(client, lambda: [b"visited"]), server_timing=True)
    status, body, headers = wsgi_get(app, "/page")
    assert (status, body) == (200, b"visited")
    assert headers["Server-Timing"].endswith('desc="1 command, 1 round trip"')
    assert headers["Content-Type"] == "text/plain"


def test_server_timing_of_a_stream_tells_of_its_first_chunk(client):
    """Its application starts the response when the first chunk is asked for."""

    def app(environ, start_response):
        client.incr("visits")
        start_response("200 OK", [])
        yield from lazily(client)

    _, body, headers = wsgi_get(WSGIBatchMiddleware(app, server_timing=True), "/page")
    assert body == b"visited"
    assert headers["Server-Timing"].endswith('desc="2 commands, 1 round trip"')


def test_server_timing_leaves_what_is_written_in_order(client):
    """The old way of WSGI: start_response returns what writes to the client."""

    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"first ")
        return [b"second"]

    written = []

    def start_response(status, headers, exc_info=None):
        written.append(status)
        return written.append

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    written += WSGIBatchMiddleware(app, server_timing=True)(environ, start_response)
    assert written == ["200 OK", b"first ", b"second"]


def started_by(app):
    """Return how a server was told of the responses of a WSGI application, and the body."""
    told = []

    def start_response(status, headers, exc_info=None):
        told.append((status, dict(headers), exc_info))
        return told.append

    body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start_response)
    with contextlib.closing(body) if hasattr(body, "close") else contextlib.nullcontext():
        told.append(b"".join(body))
    return told


def test_server_timing_leaves_the_second_start_to_the_application(client):
    """An error page in place of what was begun: WSGI's exc_info."""

    def app(environ, start_response):
        start_response("200 OK", [("X-Page", "first")])
        client.get("visits")
        try:
            raise ValueError("no page")  # noqa: TRY301  # as an application's inner part
        except ValueError:
            start_response("500 Sorry", [("X-Page", "second")], sys.exc_info())
        return [b"sorry"]

    (status, headers, exc_info), body = started_by(WSGIBatchMiddleware(app, server_timing=True))
    assert (status, headers["X-Page"], body) == ("500 Sorry", "second", b"sorry")
    assert "1 round trip" in headers["Server-Timing"]
    assert exc_info[0] is ValueError


def test_a_second_start_without_an_error_is_refused():
    """As PEP 3333 demands of a server, also while the first one waits."""

    def app(environ, start_response):
        start_response("200 OK", [])
        start_response("404 Not Found", [])
        return []

    with pytest.raises(AssertionError, match="twice"):
        started_by(WSGIBatchMiddleware(app, server_timing=True))


def test_a_start_after_the_start_goes_to_the_server():
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"one")
        try:
            raise ValueError("late")  # noqa: TRY301  # as an application's inner part
        except ValueError:
            start_response("500 Sorry", [], sys.exc_info())(b"two")
        return []

    told = started_by(WSGIBatchMiddleware(app, server_timing=True))
    assert [one if isinstance(one, bytes) else one[0] for one in told] == [
        "200 OK",
        b"one",
        "500 Sorry",
        b"two",
        b"",
    ]


def test_server_timing_has_what_is_finished(client):
    """A flush may be on its way when an application starts to write the old way."""
    scopes = []
    with report.subscribe(on_scope=scopes.append), autobatch.batch():
        bool(client.get("a"))
        bool(client.get("b"))
    (scope,) = scopes
    scope.flushes[1].finished = 0.0  # as it is until then
    name, duration, description = report.server_timing(scope).split(";")
    assert (name, description) == ("redis", 'desc="1 command, 1 round trip"')
    assert float(duration.removeprefix("dur=")) > 0


@pytest.mark.filterwarnings("ignore::autobatch.errors.BlockingFlushWarning")
def test_server_timing_of_a_websocket_records_nothing(client):
    """There is no header to tell it in."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["autobatch.scope"].recorded)
        client.get("a")
        await send({"type": "websocket.accept"})

    async def send(message):
        seen.append(message)

    scope = {"type": "websocket", "path": "/", "headers": []}
    asyncio.run(BatchMiddleware(app, server_timing=True)(scope, None, send))
    assert seen == [False, {"type": "websocket.accept"}]


def test_a_response_without_commands_tells_nothing():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert asgi_get(BatchMiddleware(app, server_timing=True), "/")[2] == {}


# ---- in a browser ------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1200,1000",
]


@pytest.fixture
def site(server):
    """The example, a page of which was asked for."""
    pytest.importorskip("uvicorn")
    from pathlib import Path

    from serving import serve

    with serve("examples.panel_app", redis_port=server, cwd=Path(__file__).parent.parent) as site:
        site.forget()
        yield site


@pytest.mark.server
def test_the_example_is_served(site):
    assert (
        site.get("/team").text == site.get("/batched").text == "Ada 1, Ada 2, Ada 3, Ada 4, Ada 5"
    )
    assert [len(exchange) for exchange in site.proxy.exchanges] == [2, 1, 1, 1, 1, 1, 2, 5]
    timing = site.get("/batched").headers["server-timing"]
    assert timing.endswith('desc="7 commands, 2 round trips"')
    assert "GET /team" in site.get("/_autobatch").text
    assert site.get("/_autobatch", headers={"host": "shop.example"}).status_code == 403


@pytest.mark.server
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_browser_shows_it(site, tmp_path):
    """Real layout: each round trip is a bar that begins where the one before it has ended."""
    site.get("/team")

    def chromium(*what):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *what]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return done.stdout.decode()

    dom = chromium("--dump-dom", f"{site.url}/_autobatch")
    assert dom.count('class="lane"') >= 6
    assert "HGET user:5" in dom
    picture = tmp_path / "panel.png"
    chromium(f"--screenshot={picture}", f"{site.url}/_autobatch")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000  # there is something on it
