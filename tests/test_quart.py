"""Quart: views that return Futures, awaited or not, respond as views that return plain values."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import autobatch
import autobatch.asyncio
from autobatch.report import Reason, subscribe
from autobatch.testing import free_port

for needed in ("quart", "httpx"):
    pytest.importorskip(needed)

import itsdangerous  # noqa: E402
import quart  # noqa: E402

from autobatch.integrations.quart import install  # noqa: E402
from common import run_documentation  # noqa: E402
from serving import ASGI_SERVERS, serve  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(plain):
    """Something of every kind in Redis."""
    plain.set("text", "héllo")
    plain.set("name", "ada")
    plain.set("count", 3)
    plain.set("long", "." * 203)
    plain.hset("hash", mapping={"name": "Ada", "born": "1815"})
    plain.rpush("list", "a", "b")


def application(view, *, lazy=True, testing=True, debug=False):
    """Return a Quart application of one view, set up by one line or not at all."""
    app = quart.Quart(__name__)
    app.debug = debug
    app.config["PROPAGATE_EXCEPTIONS"] = debug or None  # Quart before 0.21 goes by this
    app.secret_key = "for sessions"
    app.testing = testing  # errors reach the test
    if lazy:
        install(app)
    app.get("/")(view)
    return app


def respond(view, port, *, set_up=lambda app, client: None, lazy=True, **kind_of_application):
    """Return the status, headers and body of the response of a view, which has a client."""

    async def main():
        kind = autobatch.asyncio.Redis if lazy else redis.asyncio.Redis
        async with kind(port=port, decode_responses=True) as client:

            async def bound():
                return await view(client)

            app = application(bound, lazy=lazy, **kind_of_application)
            set_up(app, client)
            response = await app.test_client().get("/")
            return response.status, list(response.headers), await response.get_data()

    return asyncio.run(main())


async def dict_of_futures(client, w):
    return {"text": await w(client.get("text")), "missing": await w(client.get("missing"))}


async def list_of_futures(client, w):
    return [await w(client.get("count")), await w(client.lrange("list", 0, -1))]


async def bare(client, w):
    return await w(client.get("text"))


async def bare_bytes(client, w):
    return await w(client.dump("count"))


async def bare_dict(client, w):
    return await w(client.hgetall("hash"))


async def with_status(client, w):
    return await w(client.get("text")), await w(client.strlen("long"))


async def with_headers(client, w):
    headers = {"X-Name": await w(client.get("name")), "X-Count": await w(client.incr("count"))}
    return "text", 201, headers


async def with_keys(client, w):
    return {"a": {"b": [await w(client.hgetall("hash"))]}, "c": await w(client.get("missing"))}


async def with_a_session(client, w):
    quart.session["text"] = await w(client.get("text"))
    quart.session["nested"] = [{"hash": await w(client.hgetall("hash"))}]
    return "text"


async def with_a_template(client, w):
    return await quart.render_template_string(
        "{{ a is none }} {{ b }} {{ c|tojson }} {{ c.name }} {% for d in e %}{{ d }}{% endfor %}",
        a=await w(client.get("missing")),
        b=await w(client.get("text")),
        c=await w(client.hgetall("hash")),
        e=await w(client.lrange("list", 0, -1)),
    )


RETURNED = [
    dict_of_futures,
    list_of_futures,
    bare,
    bare_bytes,
    bare_dict,
    with_status,
    with_headers,
    with_keys,
    with_a_session,
    with_a_template,
]


@pytest.fixture
def one_second(monkeypatch):
    """Cookies tell when they were signed: here always at the same time."""
    monkeypatch.setattr(itsdangerous.TimestampSigner, "get_timestamp", lambda _: 0)


@pytest.mark.parametrize("view", RETURNED)
def test_what_a_view_returns_is_as_quarts(server, plain, proxy, data, one_second, view):
    """The same status, headers and body, in one round trip, though nothing was awaited."""

    async def awaited(value):
        return await value

    async def left(value):
        return value

    plainly = respond(lambda client: view(client, awaited), server, lazy=False)
    plain.set("count", 3)
    assert respond(lambda client: view(client, left), proxy.port) == plainly
    assert plainly[0][0] == "2"
    assert proxy.round_trips == 1


@pytest.mark.parametrize("view", [bare, bare_dict, dict_of_futures])
def test_a_synchronous_client_does_not_block_the_loop(client, proxy, data, view):
    """It would warn."""

    async def left(value):
        return value

    assert respond(lambda _: view(client, left), proxy.port)[0] == "200 OK"
    assert proxy.round_trips == 1


async def failing_bare(client):
    return client.llen("text")


async def failing_dict(client):
    return {"length": client.llen("text")}


async def failing_tuple(client):
    return {"length": client.llen("text")}, 201


async def failing_template(client):
    return await quart.render_template_string("{{ n }}", n=client.llen("text"))


async def failing_awaited(client):
    return f"{await client.llen('text')}"


async def failing_unseen(client):
    client.llen("text")
    return "all is well"


async def failing_headers(client):
    return "text", {"X-Length": client.llen("text")}


async def failing_session(client):
    quart.session["length"] = client.llen("text")
    return "text"


FAILING = [
    failing_bare,
    failing_dict,
    failing_tuple,
    failing_template,
    failing_awaited,
    failing_unseen,
]
# Quart asks no handler for a class of errors any more, as with an error that is raised there.
LATE = [failing_headers, failing_session]


def handle(kind):
    """Return what gives an application a handler for a class of errors."""

    def set_up(app, client):
        @app.errorhandler(kind)
        async def sorry(error):
            error = getattr(error, "original_exception", None) or error
            return {"sorry": str(error).split()[0], "notes": len(error.__notes__)}, 503

    return set_up


@pytest.mark.parametrize("view", FAILING)
def test_a_failed_command_goes_to_the_handler_of_its_error(proxy, data, view):
    """As an error of the view does; the answer replaces what the view has returned."""
    status, _, body = respond(view, proxy.port, set_up=handle(redis.ResponseError))
    assert (status[:3], body) == ("503", b'{"notes":1,"sorry":"WRONGTYPE"}\n')
    assert proxy.names == [["LLEN"]]


@pytest.mark.parametrize("view", FAILING + LATE)
def test_a_failed_command_goes_to_the_handler_of_a_500(proxy, data, view, caplog):
    """Where there is no other. Quart logs it, with its note of where it was called."""
    status, _, body = respond(view, proxy.port, testing=False, set_up=handle(500))
    assert (status[:3], body) == ("503", b'{"notes":1,"sorry":"WRONGTYPE"}\n')
    assert "queued at" in caplog.text


@pytest.mark.parametrize("view", FAILING + LATE)
def test_a_failed_command_is_a_500(proxy, data, view, caplog):
    """Where the application has no handlers at all."""
    status, _, body = respond(view, proxy.port, testing=False)
    assert status[:3] == "500"
    assert b"Internal Server Error" in body


@pytest.mark.parametrize("view", [failing_dict, failing_tuple, failing_unseen])
def test_a_failed_command_has_quarts_page_for_debugging(proxy, data, view):
    """It shows the `str` of all local variables, so none may be a Future that has failed."""
    status, _, body = respond(view, proxy.port, testing=False, debug=True)
    assert status[:3] == "500"
    assert b"<h1>ResponseError <span>WRONGTYPE" in body


def test_more_failures_are_notes_of_what_a_view_raises(proxy, data, caplog):
    async def view(client):
        client.llen("text")
        raise LookupError("of the view")

    assert respond(view, proxy.port, testing=False)[0][:3] == "500"
    assert "LookupError: of the view\nAlso failed: ResponseError: WRONGTYPE" in caplog.text


def test_failures_after_the_last_handler_are_logged(proxy, data, caplog):
    """The 500 is sent."""

    def set_up(app, client):
        @app.after_request
        async def count(response):
            client.hget("text", "field")
            return response

    assert respond(failing_unseen, proxy.port, testing=False, set_up=set_up)[0][:3] == "500"
    assert "unseen error in GET /: ResponseError: WRONGTYPE" in caplog.text
    assert "(HGET text, queued at" in caplog.text


def test_functions_around_a_view_share_its_round_trip(proxy, data):
    """Before it, after it, and the session's."""

    def set_up(app, client):
        @app.before_request
        async def before():
            client.rpush("log", "before")

        @app.after_request
        async def after(response):
            client.rpush("log", "after")
            return response

    async def view(client):
        client.rpush("log", "view")
        quart.session["text"] = "text"
        return "text"

    assert respond(view, proxy.port, set_up=set_up)[2] == b"text"
    assert proxy.names == [["RPUSH"] * 3]


def test_what_is_recorded(proxy, data):
    """The request's name, and why its batch has left."""

    async def view(client):
        client.incr("views")
        return "text"

    with subscribe(on_scope=(told := []).append):
        respond(view, proxy.port)
    assert [scope.name for scope in told] == ["GET /"]
    assert [flush.reason for flush in told[0].flushes] == [Reason.RESPONSE]


def test_a_stream_is_in_its_requests_scope(proxy, data):
    """A round trip a chunk."""

    async def view(client):
        async def chunks():
            for number in range(3):
                client.rpush("chunks", number)
                yield f"{number} "

        return chunks()

    assert respond(view, proxy.port)[2] == b"0 1 2 "
    assert proxy.names == [["RPUSH"]] * 3


def test_a_synchronous_view_is_in_its_requests_scope(client, proxy, data):
    """Quart runs it in a thread."""

    async def main():
        app = application(lambda: {"text": client.get("text"), "count": client.incr("count")})
        response = await app.test_client().get("/")
        return await response.get_json()

    assert asyncio.run(main()) == {"text": "héllo", "count": 4}
    assert proxy.names == [["GET", "INCRBY"]]


def test_each_message_of_a_websocket_is_a_batch(proxy, data):
    async def main():
        app = quart.Quart(__name__)
        install(app)
        async with autobatch.asyncio.Redis(port=proxy.port) as client:

            @app.websocket("/")
            async def echo():
                while True:
                    text = await quart.websocket.receive()
                    client.rpush("log", text)
                    client.incr("messages")
                    await quart.websocket.send(text)

            async with app.test_client().websocket("/") as websocket:
                for text in ("one", "two"):
                    await websocket.send(text)
                    assert await websocket.receive() == text

    asyncio.run(main())
    assert proxy.names == [["RPUSH", "INCRBY"]] * 2


def test_a_second_installation_does_nothing():
    app = application(lambda: "text")
    before = dict(vars(app))
    install(app)
    assert vars(app) == before


def test_a_server_that_is_gone_is_a_500(plain, caplog):
    """Quart's own, though all commands fail."""

    async def main():
        retry = Retry(NoBackoff(), 0)
        async with autobatch.asyncio.Redis(port=free_port(), retry=retry) as nowhere:

            async def view():
                nowhere.incr("views")
                return {"text": nowhere.get("text")}

            response = await application(view, testing=False).test_client().get("/")
            return response.status_code, response.mimetype

    assert asyncio.run(main()) == (500, "text/html")


@pytest.mark.parametrize("name", ["its own", *ASGI_SERVERS])
def test_the_example(server, plain, name):
    """Its docstring tells what it answers; each request is one round trip, under any server."""
    if name == "its own":
        serving = serve("examples.quart_app", redis_port=server, cwd=ROOT)
    else:
        pytest.importorskip(name)
        command = ASGI_SERVERS[name]("examples.quart_app:app")
        serving = serve(*command, redis_port=server, cwd=ROOT)
    with serving as site:
        plain.flushall()
        site.forget()
        answer = site.http.post("/guests/ada")
        assert (answer.status_code, answer.json()) == (200, {"name": "ada", "visits": 1})
        answer = site.get("/")
        assert answer.json() == {"guests": ["ada"], "views": 1, "visits": {"ada": "1"}}
        sign = ["LPUSH", "LTRIM", "HINCRBY"]
        assert site.proxy.names == [sign, ["INCRBY", "LRANGE", "HGETALL"]]
        site.forget()
        with ThreadPoolExecutor(8) as pool:
            names = [f"guest{number}" for number in range(24)]
            answers = list(pool.map(lambda name: site.http.post(f"/guests/{name}").json(), names))
        assert answers == [{"name": name, "visits": 1} for name in names]
        assert site.proxy.commands == 24 * len(sign)
        assert site.proxy.round_trips <= 24
        assert "Traceback" not in site.log


def test_the_documentation(proxy, plain):
    """Its code runs, and does what it says."""
    names = run_documentation("quart", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")

    async def main():
        response = await names["app"].test_client().get("/")
        await names["redis"].aclose()
        return await response.get_json()

    assert asyncio.run(main()) == {"views": 1, "guests": []}
    assert proxy.names == [["EXPIRE", "INCRBY", "LRANGE"]]
