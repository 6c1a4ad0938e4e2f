"""Django: views that return Futures respond as views that return plain values."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime as dt
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
import autobatch.asyncio
from autobatch.asgi import BatchMiddleware as AsgiMiddleware
from autobatch.report import Reason, subscribe
from autobatch.testing import free_port
from autobatch.wsgi import BatchMiddleware as WsgiMiddleware
from common import eventually, run_documentation

for needed in ("django", "httpx"):
    pytest.importorskip(needed)

import django  # noqa: E402
from django import http  # noqa: E402
from django.conf import settings  # noqa: E402
from django.test import AsyncClient, Client  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

if not settings.configured:
    settings.configure()
settings.SECRET_KEY = "for sessions"

from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.shortcuts import render  # noqa: E402
from django.template.response import TemplateResponse  # noqa: E402
from django.urls import path  # noqa: E402

from autobatch.integrations import django as integration  # noqa: E402
from serving import ASGI_SERVERS, TESTS, serve, serve_asgi  # noqa: E402

ROOT = Path(__file__).parent.parent

# What the project below does, as a test wants it.
site = {}


def view(request):
    return site["view"](request)


async def async_view(request):
    return await site["view"](request)


def server_error(request):
    return http.HttpResponse("handler500", status=500)


urlpatterns = [path("", view), path("async", async_view)]
handler500 = server_error

OURS = "autobatch.integrations.django"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = {
    "simple.html": (
        "{% if a == None %}nothing{% endif %} {{ b|default:'-' }} {{ d.name }} {{ e|join:', ' }} "
        "{% if d.name == 'Ada' %}yes{% endif %} {{ j.k|default:'-' }} {{ l|length }} {{ m|upper }} "
        "{% for g in h %}{{ forloop.counter }}{{ g|upper }}{% endfor %} {{ i|add:1 }} {{ m }}"
    ),
    "report.html": (
        "{% if a is None %}nothing{% endif %} {{ b|default_if_none:'c' }} {{ d.name }} "
        "{% if d.name == 'Ada' %}yes{% endif %} {{ e|join:', ' }} {{ f|json_script }} "
        "{% for g in h %}{{ forloop.counter }}{{ g|upper }}{% empty %}empty{% endfor %} "
        "{{ i|add:1 }} {{ j.k|yesno:'y,n,none' }} {{ b|default:'-' }} {{ l|length }} {{ m }} "
        "{% for row in rows %}"
        "{% if row.n is None %}none{% else %}{{ row.n }}{% endif %}{% endfor %}"
        "{% with x=a %}{{ x }}{% endwith %} {{ i|floatformat:2 }} {% firstof a i %}"
    ),
}


def project(*, lazy, **changes):
    """Return settings of a project, with the integration or without."""
    engine = (
        f"{OURS}.DjangoTemplates" if lazy else "django.template.backends.django.DjangoTemplates"
    )
    loader = ("django.template.loaders.locmem.Loader", TEMPLATES)
    return override_settings(
        **{
            "ALLOWED_HOSTS": ["*"],
            "CACHES": {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}},
            "MIDDLEWARE": [f"{OURS}.BatchMiddleware", *MIDDLEWARE] if lazy else MIDDLEWARE,
            "ROOT_URLCONF": __name__,
            "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
            "SESSION_SERIALIZER": f"{OURS if lazy else 'django.core.signing'}.JSONSerializer",
            "MESSAGE_STORAGE": "django.contrib.messages.storage.cookie.CookieStorage",
            "TEMPLATES": [{"BACKEND": engine, "OPTIONS": {"loaders": [loader]}}],
            "USE_TZ": True,
            **changes,
        }
    )


@pytest.fixture(scope="module", autouse=True)
def applications():
    with project(lazy=True):
        django.setup()


@pytest.fixture
def data(plain):
    """Something of every kind in Redis."""
    plain.set("text", "héllo")
    plain.set("name", "ada")
    plain.set("count", 3)
    plain.set("long", "." * 203)
    plain.hset("hash", mapping={"name": "Ada", "born": "1815"})
    plain.rpush("list", "a", "b")
    plain.zadd("scores", {"ada": 1.5})


def shown(response):
    """What a client gets."""
    body = b"".join(response.streaming_content) if response.streaming else response.content
    cookies = {name: morsel.value for name, morsel in response.cookies.items()}
    return response.status_code, dict(response.headers), cookies, body


def respond(function, *, lazy=True, **changes):
    """Return the response to a request, as Django's own client for tests sees it."""
    site["view"] = function
    with project(lazy=lazy, **changes):
        response = Client(raise_request_exception=False).get("/")
        seen = shown(response)
        response.close()
    return seen


def parts(*, lazy):
    """What a view uses of Django, or of the integration."""
    return integration if lazy else http


# Each is called with a request, the batching client or redis-py's, and our classes or Django's.
RETURNED = {
    "json": lambda request, redis, d: d.JsonResponse(
        {"text": redis.get("text"), "count": redis.incr("other"), "missing": redis.get("missing")}
    ),
    "json of a hash": lambda request, redis, d: d.JsonResponse(redis.hgetall("hash")),
    "json of a list": lambda request, redis, d: d.JsonResponse(
        [redis.get("count"), redis.lrange("list", 0, -1)], safe=False
    ),
    "json of one": lambda request, redis, d: d.JsonResponse(redis.get("text"), safe=False),
    "json of None": lambda request, redis, d: d.JsonResponse(redis.get("missing"), safe=False),
    "json with keys": lambda request, redis, d: d.JsonResponse(
        {redis.get("text"): 1, "b": {redis.get("count"): None}}
    ),
    "json of other types": lambda request, redis, d: d.JsonResponse(
        {"when": dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC), "text": redis.get("text")}
    ),
    "indented json": lambda request, redis, d: d.JsonResponse(
        {"list": [redis.get("count"), redis.hgetall("hash")]}, json_dumps_params={"indent": 2}
    ),
    "json without Futures": lambda request, redis, d: d.JsonResponse({"é": [1, None, True]}),
    "text": lambda request, redis, d: d.HttpResponse(redis.get("text")),
    "bytes": lambda request, redis, d: d.HttpResponse(redis.dump("count")),
    "a number": lambda request, redis, d: d.HttpResponse(redis.incr("other")),
    "None": lambda request, redis, d: d.HttpResponse(redis.get("missing")),
    "a list": lambda request, redis, d: d.HttpResponse(redis.lrange("list", 0, -1)),
    "Django's own response": lambda request, redis, d: http.HttpResponse(redis.get("text")),
    "status": lambda request, redis, d: http.HttpResponse("text", status=redis.strlen("long")),
    "headers": lambda request, redis, d: http.HttpResponse(
        "text", headers={"X-Name": redis.get("name")}
    ),
    "redirection": lambda request, redis, d: http.HttpResponseRedirect(redis.get("name")),
    "chunks": lambda request, redis, d: http.StreamingHttpResponse(
        [redis.get("text"), redis.dump("count"), redis.get("count")]
    ),
}


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_what_a_view_returns_is_as_djangos(client, plain, proxy, data, returned):
    """The same status, headers and body, in one round trip, whatever is a Future in it."""
    plainly = respond(lambda request: returned(request, plain, parts(lazy=False)), lazy=False)
    plain.delete("other")
    assert respond(lambda request: returned(request, client, parts(lazy=True))) == plainly
    assert plainly[0] < 400
    assert proxy.round_trips == any(proxy.exchanges)


def test_headers_and_cookies(client, plain, proxy, data):
    """Values that are set one by one; they are called for at once."""

    def answer(redis):
        name, count, text = redis.get("name"), redis.get("count"), redis.get("name")
        response = http.HttpResponse("text")
        response["X-Name"] = name
        response.headers["X-Count"] = count
        response.set_cookie("text", text)
        response.set_signed_cookie("signed", count)
        return response

    plainly = respond(lambda request: answer(plain), lazy=False)
    lazily = respond(lambda request: answer(client))
    assert [lazily[0], lazily[1], lazily[2]["text"]] == [plainly[0], plainly[1], "ada"]
    assert lazily[2]["signed"].startswith("3:")
    assert proxy.names == [["GET"] * 3]


def context(redis):
    return {
        "a": redis.get("missing"),
        "b": redis.get("missing"),
        "d": redis.hgetall("hash"),
        "e": [redis.get("text"), redis.get("count")],
        "f": {"hash": redis.hgetall("hash")},
        "h": redis.lrange("list", 0, -1),
        "i": redis.incr("other"),
        "j": {"k": redis.get("missing")},
        "l": redis.lrange("list", 0, -1),
        "m": redis.get("text"),
        "rows": [{"n": redis.get(name)} for name in ("missing", "count")],
    }


@pytest.mark.parametrize(
    "rendered",
    [
        lambda request, variables: render(request, "report.html", variables),
        lambda request, variables: TemplateResponse(request, "report.html", variables),
    ],
    ids=["render", "TemplateResponse"],
)
def test_templates(client, plain, proxy, data, rendered):
    """They see what they would see of plain values, and force once."""
    plainly = respond(lambda request: rendered(request, context(plain)), lazy=False)
    plain.delete("other")
    assert respond(lambda request: rendered(request, context(client))) == plainly
    assert plainly[0] == 200
    assert b"nothing" in plainly[3]
    assert proxy.round_trips == 1


def test_templates_of_djangos_own_engine(client, plain, proxy, data):
    """Most of what they do asks a value."""
    engine = project(lazy=False).options["TEMPLATES"]
    plainly = respond(lambda request: render(request, "simple.html", context(plain)), lazy=False)
    plain.delete("other")
    assert (
        respond(lambda request: render(request, "simple.html", context(client)), TEMPLATES=engine)
        == plainly
    )
    assert b"nothing - Ada" in plainly[3]
    assert proxy.round_trips == 1


def test_templates_from_strings(client, data):
    """As `django.template.engines` makes them."""
    from django.template import engines

    with project(lazy=True), autobatch.batch():
        template = engines["django"].from_string("{% if a is None %}nothing{% endif %}")
        assert template.render({"a": client.get("missing")}) == "nothing"


def test_sessions(client, proxy, data):
    """The next request finds plain values in it; saving it takes no round trip of its own."""
    seen = []

    def answer(request):
        seen.append(dict(request.session))
        request.session["text"] = client.get("text")
        request.session["nested"] = [{"count": client.incr("count")}, client.get("missing")]
        client.rpush("log", "visited")
        return http.HttpResponse("text")

    site["view"] = answer
    with project(lazy=True):
        browser = Client()
        browser.get("/")
        browser.get("/")
    assert seen == [{}, {"text": "héllo", "nested": [{"count": 4}, None]}]
    assert {type(value) for value in seen[1].values()} == {str, list}
    assert proxy.names == [["GET", "INCRBY", "GET", "RPUSH"]] * 2


# ---- errors ------------------------------------------------------------------------------


def failing_unseen(client):
    client.llen("text")
    return http.HttpResponse("all is well")


def failing_before_a_stream(client):
    client.llen("text")
    return http.StreamingHttpResponse(["all", "is", "well"])


def failing_before_a_file(client):
    client.llen("text")
    return http.FileResponse((ROOT / "LICENSE").open("rb"))


FAILING = {
    "forced": lambda client: http.HttpResponse(client.llen("text") + 1),
    "json": lambda client: integration.JsonResponse({"n": client.llen("text")}),
    "template": lambda client: TemplateResponse(None, "report.html", {"m": client.llen("text")}),
    "unseen": failing_unseen,
    "unseen before a stream": failing_before_a_stream,
    "unseen before a file": failing_before_a_file,
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_a_failed_command_is_a_500_of_djangos(client, proxy, data, failing, caplog):
    """Its handler answers, it is logged where Django logs, and tells where it was called."""
    status, _, _, body = respond(lambda request: failing(client))
    assert (status, body) == (500, b"handler500")
    assert [record.name for record in caplog.records] == ["django.request"]
    assert "LLEN text, queued at" in caplog.text
    assert proxy.names == [["LLEN"]]


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_a_failed_command_has_djangos_page_for_debugging(client, data, failing, caplog):
    status, _, _, body = respond(lambda request: failing(client), DEBUG=True)
    assert status == 500
    assert b"ResponseError" in body
    assert b"WRONGTYPE" in body


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_a_failed_command_reaches_a_test(client, data, failing, caplog):
    """As its client does with what a view raises."""
    site["view"] = lambda request: failing(client)
    with project(lazy=True), pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        Client().get("/")


def test_failures_beside_the_error_of_a_view_are_its_notes(client, data, caplog):
    def answer(request):
        client.llen("text")
        raise LookupError("of the view")

    assert respond(answer)[0] == 500
    assert [record.name for record in caplog.records] == ["django.request"]
    assert "LookupError: of the view\nAlso failed: ResponseError: WRONGTYPE" in caplog.text


def test_failures_of_who_handles_errors_are_logged(client, data, caplog, monkeypatch):
    """The response tells of an error already."""

    def count(request):
        client.hget("text", "field")
        return server_error(request)

    monkeypatch.setitem(globals(), "handler500", count)
    status, _, _, body = respond(lambda request: http.HttpResponse(client.llen("text") + 1))
    assert (status, body) == (500, b"handler500")
    names = [record.name for record in caplog.records]
    assert names == ["django.request", "autobatch"]
    assert "unseen error in GET /: ResponseError: WRONGTYPE" in caplog.text


def test_a_server_that_is_gone_is_a_500(caplog):
    """One, whatever else was called."""
    nowhere = autobatch.Redis(port=free_port(), retry=Retry(NoBackoff(), 0))

    def answer(request):
        for _ in range(3):
            nowhere.incr("views")
        return http.HttpResponse("all is well")

    assert respond(answer)[3] == b"handler500"
    nowhere.close()
    assert [record.name for record in caplog.records] == ["django.request"]
    assert caplog.text.count("Also failed: NotSent") == 2


def test_a_file_that_is_not_sent_is_closed(client, data, caplog):
    file = (ROOT / "LICENSE").open("rb")

    def answer(request):
        client.llen("text")
        return http.FileResponse(file)

    assert respond(answer)[0] == 500
    assert file.closed


# ---- streams, and what is around requests ------------------------------------------------


def test_a_stream_is_in_its_requests_scope(client, proxy, data):
    """A round trip a chunk."""

    def answer(request):
        client.rpush("chunks", "view")

        def chunks():
            for number in range(3):
                client.rpush("chunks", number)
                yield f"{number} "

        return http.StreamingHttpResponse(chunks())

    assert respond(answer)[3] == b"0 1 2 "
    assert proxy.names == [["RPUSH"]] * 4


def test_failures_in_a_stream(client, data, caplog):
    """They are logged, once it has started."""

    def answer(request):
        def chunks():
            yield "first "
            client.llen("text")
            yield "second"

        return http.StreamingHttpResponse(chunks())

    assert respond(answer)[3] == b"first second"
    assert [record.name for record in caplog.records] == ["autobatch"]
    assert "unseen error in GET /: ResponseError: WRONGTYPE" in caplog.text


def test_a_stream_that_is_left_sends_what_it_called(client, plain, proxy):
    def answer(request):
        def chunks():
            try:
                while True:
                    yield "more"
            finally:
                client.rpush("log", "closed")
                client.rpush("log", "twice")

        return http.StreamingHttpResponse(chunks())

    site["view"] = answer
    with project(lazy=True):
        response = Client().get("/")
        assert next(response.streaming_content) == b"more"
        response.close()
    assert plain.lrange("log", 0, -1) == ["closed", "twice"]


def test_a_file_is_sent(client, plain):
    """By the server itself, where it can."""

    def answer(request):
        client.set("called", "yes")
        return http.FileResponse((ROOT / "LICENSE").open("rb"))

    site["view"] = answer
    given = []

    class Wrapper(list):
        def __init__(self, file, size):
            given.append(file)

    with project(lazy=True):
        environ = {**Client()._base_environ(), "wsgi.file_wrapper": Wrapper}
        body = WSGIHandler()(environ, lambda status, headers: None)
    assert type(body) is Wrapper
    with given[0] as file:
        assert file.read() == (ROOT / "LICENSE").read_bytes()
    assert plain.get("called") == "yes"


def test_middleware_is_in_the_scope(client, proxy, data):
    """What stands behind ours in the settings."""
    site["client"] = client
    with project(lazy=True):
        behind = [*settings.MIDDLEWARE, f"{__name__}.around"]
    answered = respond(lambda request: failing_free(client), MIDDLEWARE=behind)
    assert answered[3] == b"all is well"
    assert proxy.names == [["INCRBY", "RPUSH", "INCRBY"]]


def failing_free(client):
    client.rpush("log", "view")
    return http.HttpResponse("all is well")


def around(get_response):
    def middleware(request):
        site["client"].incr("before")
        response = get_response(request)
        site["client"].incr("after")
        return response

    return middleware


def test_what_is_recorded(client, proxy, data):
    """The request's name, and why its batches have left."""

    def answer(request):
        client.incr("views")
        return http.StreamingHttpResponse(client.echo("chunk") for _ in range(1))

    with subscribe(on_scope=(told := []).append):
        respond(answer)
        arespond(proxy.port, visiting)
        arespond(proxy.port, template_of_futures)
    assert [scope.name for scope in told] == ["GET /", "GET /async", "GET /async"]
    reasons = [[flush.reason for flush in scope.flushes] for scope in told]
    assert reasons == [[Reason.RESPONSE, Reason.FORCED], [Reason.END], [Reason.RESPONSE]]


def test_the_limits_of_each_request(client, proxy):
    def answer(request):
        for number in range(5):
            client.rpush("list", number)
        return http.HttpResponse("text")

    respond(answer, AUTOBATCH={"max_commands": 2})
    assert proxy.names == [["RPUSH"] * 2, ["RPUSH"] * 2, ["RPUSH"]]


def test_a_request_in_a_scope_has_its_own(client, proxy):
    """As a test may make one."""
    site["view"] = lambda request: failing_free(client)
    with autobatch.batch() as scope, project(lazy=True):
        client.set("a", 1)
        Client().get("/")
        client.set("a", 2)
    assert proxy.names == [["SET"], ["RPUSH"], ["SET"]]
    assert scope.stats.commands == 2


def test_inside_the_middleware_of_the_server(client, proxy, data, caplog):
    """One scope, and errors are Django's all the same."""
    site["view"] = lambda request: failing_free(client)
    statuses = []
    with project(lazy=True):
        handler = WSGIHandler()

        def counting(environ, start_response):
            client.incr("requests")
            return handler(environ, start_response)

        app = WsgiMiddleware(counting)
        environ = Client()._base_environ()
        body = app(dict(environ), lambda status, headers: statuses.append(status))
        assert b"".join(body) == b"all is well"
        body.close()
        assert proxy.names == [["INCRBY", "RPUSH"]]
        site["view"] = lambda request: failing_unseen(client)
        body = app(dict(environ), lambda status, headers: statuses.append(status))
        assert b"".join(body) == b"handler500"
        body.close()
    assert statuses == ["200 OK", "500 Internal Server Error"]


def test_installed_twice_it_is_one_scope(client, proxy):
    with project(lazy=True):
        twice = [f"{OURS}.BatchMiddleware", *settings.MIDDLEWARE]
    respond(lambda request: failing_free(client), MIDDLEWARE=twice)
    assert proxy.names == [["RPUSH"]]


# ---- asynchronous projects ---------------------------------------------------------------


def arespond(port, function, *, reraise=False, behind=(), address="/async", **changes):
    """Return the response of an asynchronous project, whose view has an asyncio client, too."""

    async def answer():
        async with autobatch.asyncio.Redis(port=port, decode_responses=True) as client:

            async def awaited(request):
                return await function(request, client)

            site["view"] = awaited if address == "/async" else function
            response = await AsyncClient(raise_request_exception=reraise).get(address)
            if not response.streaming:
                return shown(response)
            body = b"".join([part async for part in response])
            await asyncio.to_thread(response.close)
            return response.status_code, None, None, body

    with project(lazy=True, **changes):
        given = {"MIDDLEWARE": [*settings.MIDDLEWARE, *behind]} | changes
    with project(lazy=True, **given):
        return asyncio.run(answer())


async def visiting(request, client):
    client.rpush("log", "view")
    client.incr("views")
    return http.HttpResponse("all is well")


async def awaiting(request, client):
    client.rpush("log", "view")
    views = client.incr("views")
    return http.HttpResponse(f"{await views} {len(await client.hgetall('hash'))}")


async def json_of_futures(request, client):
    return integration.JsonResponse({"views": client.incr("views"), "hash": client.hgetall("hash")})


async def template_of_futures(request, client):
    variables = {"a": client.get("missing"), "m": client.get("text")}
    return TemplateResponse(request, "report.html", variables)


ASYNC = {
    "visiting": (visiting, b"all is well", [["RPUSH", "INCRBY"]]),
    "awaiting": (awaiting, b"1 2", [["RPUSH", "INCRBY"], ["HGETALL"]]),
    "json": (json_of_futures, None, [["INCRBY", "HGETALL"]]),
    "template": (template_of_futures, None, [["GET", "GET"]]),
}
# By name: what stands behind our middleware.
BEHIND = {
    "nothing": [],
    "synchronous middleware": [f"{__name__}.passing"],
}


def passing(get_response):
    """A middleware that is synchronous only: all that is around it runs in a thread."""

    def middleware(request):
        return get_response(request)

    return middleware


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("name", ASYNC)
def test_an_asyncio_client(proxy, data, name, behind):
    """Little is awaited; the loop is never blocked, which would warn."""
    function, body, names = ASYNC[name]
    answered = arespond(proxy.port, function, behind=behind)
    assert answered[0] == 200
    assert body is None or answered[3] == body
    assert proxy.names == names
    if name == "json":
        expected = {"views": 1, "hash": {"name": "Ada", "born": "1815"}}
        assert json.loads(answered[3]) == expected
        assert answered[1]["Content-Length"] == str(len(answered[3]))
    if name == "template":
        assert "nothing" in answered[3].decode()
        assert "héllo" in answered[3].decode()


async def failing_unawaited(request, client):
    client.llen("text")
    return http.HttpResponse("all is well")


async def failing_json(request, client):
    return integration.JsonResponse({"n": client.llen("text")})


async def failing_awaited(request, client):
    return http.HttpResponse(await client.llen("text"))


async def failing_async_stream(request, client):
    client.llen("text")

    async def chunks():
        yield "all is well"

    return http.StreamingHttpResponse(chunks())


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize(
    "failing", [failing_unawaited, failing_json, failing_awaited, failing_async_stream]
)
def test_a_failed_command_of_an_asyncio_client(proxy, data, failing, behind, caplog):
    assert arespond(proxy.port, failing, behind=behind)[::3] == (500, b"handler500")
    assert [record.name for record in caplog.records] == ["django.request"]
    assert "LLEN text, queued at" in caplog.text
    caplog.clear()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        arespond(proxy.port, failing, behind=behind, reraise=True)


def test_a_synchronous_client_in_an_asynchronous_view(client, proxy, data):
    """Nothing is forced on the loop, which would warn: a thread waits."""

    async def answer(request, _):
        client.rpush("log", "view")
        return integration.JsonResponse({"views": client.incr("views")})

    assert json.loads(arespond(proxy.port, answer)[3]) == {"views": 1}
    assert proxy.names == [["RPUSH", "INCRBY"]]


def test_a_synchronous_view_in_an_asynchronous_project(client, proxy, data):
    """Django runs it in a thread, in the scope of its request."""

    def answer(request):
        client.rpush("log", "view")
        return integration.JsonResponse({"views": client.incr("views")})

    answered = arespond(proxy.port, answer, address="/")
    assert json.loads(answered[3]) == {"views": 1}
    assert proxy.names == [["RPUSH", "INCRBY"]]


def test_an_asynchronous_stream(proxy, data):
    """A round trip a chunk, two where a value is awaited."""

    async def answer(request, client):
        client.rpush("chunks", "view")

        async def chunks():
            for number in range(2):
                client.rpush("chunks", number)
                yield f"{number} "
            yield f"{await client.llen('chunks')} "
            client.rpush("chunks", "end")

        return http.StreamingHttpResponse(chunks())

    assert arespond(proxy.port, answer)[3] == b"0 1 3 "
    assert proxy.names == [["RPUSH"], ["RPUSH"], ["RPUSH"], ["LLEN"], ["RPUSH"]]


def test_a_failure_in_an_asynchronous_stream(proxy, data, caplog):
    """It is logged at once, and the stream goes on."""

    async def answer(request, client):
        async def chunks():
            yield "first "
            client.llen("text")
            yield "second "
            yield "third" if caplog.records else "too early"

        return http.StreamingHttpResponse(chunks())

    assert arespond(proxy.port, answer)[3] == b"first second third"
    assert [record.name for record in caplog.records] == ["autobatch"]


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
def test_a_failure_in_a_synchronous_stream_of_an_asynchronous_project(client, proxy, data, caplog):
    """It has started, so failures are logged from the first chunk on."""

    async def answer(request, _):
        def chunks():
            client.llen("text")
            yield "first "
            yield "second"

        return http.StreamingHttpResponse(chunks())

    assert arespond(proxy.port, answer)[3] == b"first second"
    assert [record.name for record in caplog.records] == ["autobatch"]


def test_the_scope_of_an_asynchronous_stream_that_is_left_is_closed(proxy, plain):
    """Whoever still meets it is outside any scope."""
    contexts = []

    async def main():
        async with autobatch.asyncio.Redis(port=proxy.port) as client:

            async def answer(request):
                async def chunks():
                    contexts.append(contextvars.copy_context())
                    while True:
                        yield "more"

                return http.StreamingHttpResponse(chunks())

            site["view"] = answer
            response = await AsyncClient().get("/async")
            async with contextlib.aclosing(aiter(response)) as chunks:
                assert await anext(chunks) == b"more"
            await asyncio.to_thread(response.close)
            contexts[0].run(client.rpush, "log", "late")
            await client.ping()

    with project(lazy=True):
        asyncio.run(main())
    assert plain.lrange("log", 0, -1) == ["late"]


def test_an_error_in_an_asynchronous_stream_has_failures_as_notes(proxy, data):
    async def answer(request, client):
        async def chunks():
            yield "first "
            client.llen("text")
            raise LookupError("in a stream")

        return http.StreamingHttpResponse(chunks())

    with pytest.raises(LookupError) as raised:
        arespond(proxy.port, answer)
    assert "Also failed: ResponseError" in raised.value.__notes__[0]


def test_a_rendered_response_is_what_decorators_expect(proxy, data):
    """As a TemplateResponse is: they ask to be called when it is there."""
    from django.views.decorators.gzip import gzip_page

    @gzip_page
    async def long(request, client):
        return integration.JsonResponse({"long": client.get("long")})

    async def answer(request, client):
        request.META["HTTP_ACCEPT_ENCODING"] = "gzip"
        return await long(request, client)

    _, headers, _, body = arespond(proxy.port, answer)
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Length"] == str(len(body))
    assert body[:2] == b"\x1f\x8b"


def test_looking_at_a_response_too_early_says_what_to_do(proxy, data):
    """Nothing can be awaited there."""

    async def answer(request, client):
        return http.HttpResponse(
            integration.JsonResponse({"text": client.get("text")}).content.decode()
        )

    with pytest.raises(autobatch.errors.NotReady, match="await"):
        arespond(proxy.port, answer, reraise=True)


@contextlib.contextmanager
def asgi(app, port, view):
    """Serve one request of an ASGI application; yield the messages that it sends."""
    messages = []

    async def main():
        async with autobatch.asyncio.Redis(port=port, decode_responses=True) as client:
            site["view"] = lambda request: view(request, client)
            received = asyncio.Queue()
            received.put_nowait({"type": "http.request", "body": b""})

            async def send(message):
                messages.append(message)

            scope = {"type": "http", "method": "GET", "path": "/async", "headers": []}
            await app(scope | {"query_string": b""}, received.get, send)

    with project(lazy=True):
        asyncio.run(main())
    yield messages


def test_inside_the_middleware_of_the_asgi_server(client, proxy, data, caplog):
    """One scope, and errors are Django's all the same."""
    with project(lazy=True):
        handler = ASGIHandler()

    async def counting(scope, receive, send):
        client.incr("requests")
        await handler(scope, receive, send)

    async def visiting(request, _):
        return failing_free(client)

    app = AsgiMiddleware(counting)
    with asgi(app, proxy.port, visiting) as messages:
        assert b"".join(message.get("body", b"") for message in messages) == b"all is well"
    assert proxy.names == [["INCRBY", "RPUSH"]]
    with asgi(app, proxy.port, failing_unawaited) as messages:
        assert (messages[0]["status"], messages[1]["body"]) == (500, b"handler500")


def test_an_asynchronous_view_in_a_synchronous_project(proxy, data):
    """Its loop ends with it, so it sends what it has called before: the decorator does it."""
    client = autobatch.asyncio.Redis(port=proxy.port)

    @autobatch.batch(join=False)
    async def answer(request):
        client.rpush("log", "view")
        client.incr("views")
        return http.HttpResponse("all is well")

    site["view"] = answer
    with project(lazy=True):
        assert Client().get("/async").content == b"all is well"
    assert proxy.names == [["RPUSH", "INCRBY"]]


# ---- the parts alone ---------------------------------------------------------------------


def test_a_response_of_its_own(client, plain, data):
    """Without any request, as a test of a view has it."""
    with autobatch.batch():
        response = integration.JsonResponse({"text": client.get("text")})
    assert json.loads(response.content) == {"text": "héllo"}
    assert not hasattr(response, "render")
    assert isinstance(response, http.JsonResponse)
    response.content = b"other"
    assert response.content == b"other"


@pytest.mark.parametrize("data", [["a"], 1, None])
def test_what_is_not_safe_is_refused(client, plain, data):
    with pytest.raises(TypeError, match="safe"):
        integration.JsonResponse(data)


def test_what_is_no_json_fails_as_with_django(client, plain):
    plain.sadd("set", "member")
    with autobatch.batch(), pytest.raises(TypeError) as raised:
        integration.JsonResponse({"set": client.smembers("set")})
    assert str(raised.value) == "Object of type set is not JSON serializable"


# ---- beside requests ---------------------------------------------------------------------


def run_in_project(command, redis_port):
    """Run a command of the project in apps/django_project; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *command],
        cwd=TESTS / "apps" / "django_project",
        env=os.environ | {"REDIS_URL": f"redis://127.0.0.1:{redis_port}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_management_command_is_a_batch(proxy):
    """Its `handle` is decorated."""
    assert run_in_project(["restock", "tea", "coffee"], proxy.port) == "tea: 10\ncoffee: 10\n"
    assert proxy.names == [["HINCRBY", "HINCRBY", "INCRBY"]]


def test_the_tests_of_a_project(server, plain):
    """They find requests batched, as in production: these count round trips themselves."""
    told = run_in_project(["test"], server)
    assert "Ran 4 tests" in told
    assert told.endswith("OK\nDestroying test database for alias 'default'...\n")


@pytest.fixture
def cache(proxy):
    """django-redis, on the client that is made for it."""
    pytest.importorskip("django_redis")
    from django.core.cache import caches

    of_redis = {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{proxy.port}/0",
        "OPTIONS": {"REDIS_CLIENT_CLASS": f"{OURS}.cache_client"},
    }
    with project(lazy=True, CACHES={"default": of_redis}):
        yield caches["default"]
        caches["default"].client.get_client().connection_pool.disconnect()


def test_a_cache_has_plain_values_in_order(cache, proxy):
    """After what waits; a miss is a miss."""
    from django_redis import get_redis_connection

    batching = get_redis_connection("default").batching
    with autobatch.batch():
        batching.set("counter", 1)
        assert cache.get("missing") is None
        assert cache.get("missing", "default") == "default"
        cache.set("thing", {"n": 1})
        assert cache.get("thing") == {"n": 1}
        counter = batching.incr("counter")
        batching.expire("counter", 60)
        assert type(counter) is autobatch.Future
    assert counter == 2
    assert proxy.names == [["SET"], ["GET"], ["GET"], ["SET"], ["GET"], ["INCRBY", "EXPIRE"]]
    assert proxy.connections == 1


def test_a_cached_future_is_its_value(cache, client, data):
    """It is pickled."""
    with autobatch.batch():
        cache.set("hash", {"hash": client.hgetall("hash")})
        cache.set("count", client.get("count"))
    assert cache.get("hash") == {"hash": {"name": "Ada", "born": "1815"}}
    assert cache.get("count") == "3"
    assert type(cache.get("count")) is str


def test_sessions_in_a_cache(cache, client, data):
    """They are pickled, too."""
    seen = []

    def answer(request):
        seen.append(dict(request.session))
        request.session["text"] = client.get("text")
        return http.HttpResponse("text")

    site["view"] = answer
    engine = "django.contrib.sessions.backends.cache"
    with project(lazy=True, CACHES=settings.CACHES, SESSION_ENGINE=engine):
        browser = Client()
        browser.get("/")
        browser.get("/")
    assert seen == [{}, {"text": "héllo"}]


def test_the_documentation(proxy, plain):
    """Its code runs, and does what it says."""
    names = run_documentation("django", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
    given = {name: names[name] for name in ("CACHES", "MIDDLEWARE")}
    assert respond(names["show"], **given)[3] == b'{"views": 1, "guests": []}'
    assert proxy.names == [["EXPIRE", "INCRBY", "LRANGE"]]
    proxy.reset()
    assert respond(names["order"], **given)[3] == b"thank you"
    names["Command"]().handle()
    assert proxy.names == [["INCRBY"], ["ZINCRBY"] * 1000]

    async def live():
        site["view"] = names["live"]
        response = await AsyncClient().get("/async")
        await names["aredis"].aclose()
        return response.json()

    proxy.reset()
    with project(lazy=True, **given):
        assert asyncio.run(live()) == {"views": 2, "guests": []}
    assert proxy.names == [["INCRBY", "LRANGE"]]
    names["redis"].close()


# ---- under servers -----------------------------------------------------------------------


GUNICORN = ["gunicorn", "--bind", "127.0.0.1:0", "--worker-class"]
WSGI = {
    "gunicorn": [*GUNICORN, "sync"],
    "gunicorn threads": [*GUNICORN, "gthread", "--threads", "4"],
    "gunicorn gevent": [*GUNICORN, "gevent"],
}
SIGN = ["LPUSH", "LTRIM", "HINCRBY"]


def needs(command):
    for needed in {"gunicorn", "gevent", "uvicorn", "hypercorn", "granian"} & set(command):
        pytest.importorskip(needed)
    return command


@contextlib.contextmanager
def serve_example(name, server):
    """Run the example: with Django's server, or one for WSGI or ASGI."""
    if name == "runserver":
        with serve("examples.django_app", redis_port=server, cwd=ROOT) as site:
            yield site
    elif name in WSGI:
        command = [*needs(WSGI[name]), "examples.django_app:application"]
        with serve(*command, redis_port=server, cwd=ROOT) as site:
            yield site
    else:
        command = needs(ASGI_SERVERS[name]("examples.django_app:asgi_application"))
        with serve(*command, redis_port=server, cwd=ROOT) as site:
            yield site


@pytest.mark.parametrize("name", ["runserver", *WSGI, *ASGI_SERVERS])
def test_the_example(server, plain, name):
    """Its docstring tells what it answers; each request is one round trip, under any server."""
    with serve_example(name, server) as site:
        plain.flushall()
        site.forget()
        answer = site.http.post("/guests/ada")
        assert (answer.status_code, answer.json()) == (200, {"name": "ada", "visits": 1})
        assert "sessionid" in answer.cookies
        answer = site.get("/")
        assert answer.json() == {"views": 1, "guests": ["ada"], "visits": {"ada": "1"}}
        assert site.get("/last/ada").text == "ada: 1 visit, from nobody knows where\n"
        assert site.proxy.names == [SIGN, ["INCRBY", "LRANGE", "HGETALL"], ["HGET", "HGET"]]
        site.forget()
        with ThreadPoolExecutor(8) as pool:
            names = [f"guest{number}" for number in range(24)]
            answers = list(pool.map(lambda name: site.http.post(f"/guests/{name}").json(), names))
        assert answers == [{"name": name, "visits": 1} for name in names]
        assert site.proxy.names == [SIGN] * 24
        if name in ASGI_SERVERS:
            site.forget()
            guests = plain.lrange("example:guests", 0, -1)
            assert site.get("/live").json() == {"views": 2, "guests": guests}
            assert site.proxy.names == [["INCRBY", "LRANGE"]]
        assert "Traceback" not in site.log


@pytest.fixture(scope="module", params=["gunicorn", "gunicorn threads"])
def wsgi_site(server, request):
    command = needs(WSGI[request.param])
    with serve(*command, "apps.django_site:wsgi", redis_port=server) as site:
        yield site


@pytest.fixture(scope="module", params=ASGI_SERVERS)
def asgi_site(server, request):
    needs([request.param])
    with serve_asgi(request.param, "apps.django_site:asgi", redis_port=server) as site:
        yield site


@pytest.fixture
def wsgi_served(wsgi_site, plain):
    wsgi_site.forget()
    return wsgi_site


@pytest.fixture
def asgi_served(asgi_site, plain):
    asgi_site.forget()
    return asgi_site


def test_a_failure_is_djangos_500_under_wsgi(wsgi_served):
    answer = wsgi_served.get("/fail")
    assert (answer.status_code, "Server Error (500)" in answer.text) == (500, True)
    assert wsgi_served.proxy.names == [["SET", "LPUSH"]]


@pytest.mark.parametrize("path", ["/fail", "/afail"])
def test_a_failure_is_djangos_500_under_asgi(asgi_served, path):
    answer = asgi_served.get(path)
    assert (answer.status_code, "Server Error (500)" in answer.text) == (500, True)
    assert asgi_served.proxy.names == [["SET", "LPUSH"]]


def test_streams_under_wsgi(wsgi_served):
    assert wsgi_served.get("/stream").text == "0 1 2 "
    assert wsgi_served.proxy.names == [["RPUSH"]] * 3


def test_streams_under_asgi(asgi_served):
    assert asgi_served.get("/astream").text == "0 1 2 "
    assert asgi_served.proxy.names == [["RPUSH"]] * 3


def test_a_client_that_goes_away_under_wsgi(wsgi_served, plain):
    """What the generator calls in its `finally` is sent."""
    with wsgi_served.http.stream("GET", "/endless") as response:
        chunks = response.iter_text()  # which closes the connection when it is forgotten
        assert next(chunks).startswith("more ")
        assert plain.get("stream") == "open"
    assert eventually(lambda: plain.get("stream") == "closed")


def test_a_client_that_goes_away_under_asgi(asgi_served, plain):
    """The generator is cancelled, and what it calls in its `finally` is sent."""
    with asgi_served.http.stream("GET", "/aendless") as response:
        chunks = response.iter_text()  # which closes the connection when it is forgotten
        assert next(chunks).startswith("more ")
        assert plain.get("stream") == "open"
    assert eventually(lambda: plain.get("stream") == "closed")
