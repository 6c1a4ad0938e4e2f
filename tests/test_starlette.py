"""Starlette: responses of Futures are what the same responses of plain values are."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import pytest
import redis

import autobatch
import autobatch.asyncio
from autobatch import report
from autobatch.asgi import BatchMiddleware

for needed in ("httpx", "itsdangerous", "jinja2", "starlette", "uvicorn"):
    pytest.importorskip(needed)

import httpx  # noqa: E402
import jinja2  # noqa: E402
import starlette.middleware.sessions  # noqa: E402
import starlette.responses  # noqa: E402
import starlette.templating  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse as PlainJSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from autobatch.integrations import jinja, starlette_sessions, starlette_templates  # noqa: E402
from autobatch.integrations import starlette as ours  # noqa: E402
from autobatch.integrations.starlette import JSONResponse  # noqa: E402
from looping import in_loop  # noqa: E402
from serving import serve  # noqa: E402

ROOT = Path(__file__).parent.parent


def send(response, calls=1):
    """Return the messages of a response that is made and sent inside a request.

    It is made in a thread, as by an endpoint that is no coroutine. Forcing a value on the event
    loop would warn, and so fail the test.
    """

    async def app(scope, receive, send):
        made = await asyncio.to_thread(response)
        for _ in range(calls):
            sent.clear()
            await made(scope, receive, send)

    async def keep(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(BatchMiddleware(app)(scope, None, keep))
    return sent


# Each is called with the batching client, and with redis-py's.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "count": redis.incr("other")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "tuple": lambda redis: (redis.get("count"), redis.zrange("scores", 0, -1, withscores=True)),
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "str": lambda redis: redis.get("text"),
    "int": lambda redis: redis.incr("other"),
    "float": lambda redis: redis.zscore("scores", "ada"),
    "bool": lambda redis: redis.set("other", 1),
    "None": lambda redis: redis.get("missing"),
    "None inside": lambda redis: {"missing": redis.get("missing"), "none": None},
    "a dict": lambda redis: redis.hgetall("hash"),
    "a list": lambda redis: redis.lrange("list", 0, -1),
    "without Futures": lambda redis: {"é": [1, 2.5, None, True, {"b": "c"}], "d": ("e",)},
    "nothing": lambda redis: None,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_response_is_as_starlettes(client, plain, data, content):
    """The same status, headers and body, whatever is a Future in it."""
    plainly = send(lambda: PlainJSONResponse(content(plain)))
    plain.delete("other")
    lazily = send(lambda: JSONResponse(content(client)))
    assert lazily == plainly
    headers = dict(lazily[0]["headers"])
    assert int(headers[b"content-length"]) == len(lazily[1]["body"])


def test_keys_may_be_futures(client, plain, data):
    """A dict forces its keys when it is made; they are Futures all the same."""

    def content(redis):
        return {redis.get("text"): 1, redis.strlen("text"): [{redis.get("count"): None}]}

    plainly = send(lambda: PlainJSONResponse(content(plain)))
    assert send(lambda: JSONResponse(content(client))) == plainly


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_response_is_one_round_trip(client, data, proxy, content):
    """At most: a response without Futures takes none."""
    send(lambda: JSONResponse(content(client)))
    assert proxy.round_trips == any(proxy.exchanges)


@pytest.mark.parametrize(
    "arguments",
    [
        {"status_code": 201},
        {"status_code": 204},
        {"status_code": 304},
        {"headers": {"X-Name": "value"}},
        {"headers": {"Content-Type": "application/problem+json"}},
        {"media_type": "application/problem+json"},
    ],
    ids=str,
)
def test_a_response_takes_starlettes_arguments(client, plain, data, arguments):
    """With the same effect."""
    plainly = send(lambda: PlainJSONResponse([plain.get("count")], **arguments))
    assert send(lambda: JSONResponse([client.get("count")], **arguments)) == plainly


def test_headers_may_be_set_before_it_is_sent(client, data):
    """Cookies, too."""

    def respond():
        response = JSONResponse({"count": client.get("count")})
        response.headers["X-Name"] = "value"
        response.set_cookie("name", "value")
        return response

    headers = dict(send(respond)[0]["headers"])
    assert headers[b"x-name"] == b"value"
    assert headers[b"set-cookie"].startswith(b"name=value")
    assert headers[b"content-length"] == b"13"


def test_a_response_may_be_sent_twice(client, data):
    """As Starlette's, which may be a constant of a program."""
    once = send(lambda: JSONResponse({"count": client.get("count")}))
    assert send(lambda: JSONResponse({"count": client.get("count")}), calls=2) == once


@dataclasses.dataclass
class Thing:
    """Something that is no JSON."""

    name: str


@pytest.mark.parametrize(
    "content",
    [
        lambda redis: b"bytes",
        lambda redis: {"bytes": b"bytes"},
        lambda redis: redis.smembers("set"),
        lambda redis: {"set": redis.smembers("set")},
        lambda redis: Thing("name"),
        lambda redis: {("a", "tuple"): redis.get("text")},
        lambda redis: {"nan": math.nan, "text": redis.get("text")},
    ],
)
def test_what_is_no_json_fails_as_with_starlette(client, plain, data, content):
    """With the same error."""
    with pytest.raises((TypeError, ValueError)) as expected:
        PlainJSONResponse(content(plain))
    with pytest.raises(type(expected.value)) as raised:
        send(lambda: JSONResponse(content(client)))
    assert str(raised.value) == str(expected.value)


def test_bytes_of_redis_fail_as_with_starlette(proxy, data):
    """A client that does not decode replies has values that are no JSON."""
    with (
        autobatch.Redis(port=proxy.port) as client,
        pytest.raises(TypeError, match="Object of type bytes is not JSON serializable"),
    ):
        send(lambda: JSONResponse({"text": client.get("text")}))


def test_a_failed_future_raises_its_error_before_the_response_starts(client, data):
    """It is not an unseen one: it is raised once, where the value is needed."""
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        send(lambda: JSONResponse({"length": client.llen("text"), "count": client.get("count")}))
    [note] = raised.value.__notes__
    assert note.startswith("LLEN text, queued at ")


def test_a_background_task_is_kept(client, plain, data):
    """It runs after the response, in the request's scope."""

    def respond():
        task = BackgroundTask(client.set, "background", "done")
        return JSONResponse({"count": client.get("count")}, background=task)

    assert send(respond)[1]["body"] == b'{"count":"3"}'
    assert plain.get("background") == "done"


def test_what_a_response_flushes_is_said_to_be_for_it(client, data):
    """Not to be a wish of the program's."""
    reasons = []
    with report.subscribe(lambda flush: reasons.append(flush.reason)):
        send(lambda: JSONResponse({"count": client.get("count")}))
    assert reasons == [report.Reason.RESPONSE]


def test_a_response_needs_no_scope():
    """What has no Futures, or only settled ones, can be sent anywhere."""

    async def keep(message):
        sent.append(message)

    sent = []
    asyncio.run(JSONResponse({"a": 1})({"type": "http"}, None, keep))
    assert sent[1]["body"] == b'{"a":1}'


# ---- other responses ------------------------------------------------------------------------


async def sending(response):
    """Return the messages of a response that is made and sent by a coroutine, in a request."""

    async def app(scope, receive, send):
        await (await response())(scope, receive, send)

    async def keep(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await BatchMiddleware(app)(scope, asyncio.Event().wait, keep)  # nobody disconnects
    return sent


async def compared(proxy, plain, lazily, plainly):
    """Compare the messages of our response with Starlette's, with each kind of client."""

    async def made(make, client):
        return make(client)

    expected = await sending(lambda: made(plainly, plain))
    with autobatch.Redis(port=proxy.port, decode_responses=True) as client:
        assert await sending(lambda: made(lazily, client)) == expected
    assert proxy.round_trips == 1
    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:
        assert await sending(lambda: made(lazily, client)) == expected
    assert proxy.round_trips == 2


@pytest.mark.parametrize("name", ["PlainTextResponse", "HTMLResponse"])
@pytest.mark.parametrize(
    "content",
    [lambda redis: redis.get("text"), lambda redis: redis.get("missing")],
    ids=["text", "None"],
)
@in_loop
async def test_a_text_may_be_a_future(proxy, plain, data, name, content):
    """In a coroutine, without blocking the loop: that would warn."""

    def of(module):
        return lambda redis: getattr(module, name)(content(redis), headers={"X-Name": "value"})

    await compared(proxy, plain, of(ours), of(starlette.responses))


@in_loop
async def test_bytes_may_be_a_future(proxy, plain, data):
    """Of a client that does not decode replies."""
    async with autobatch.asyncio.Redis(port=proxy.port) as client:

        async def respond():
            return ours.PlainTextResponse(client.get("text"))

        assert (await sending(respond))[1]["body"] == "héllo".encode()


@in_loop
async def test_json_waits_for_what_map_has_called(proxy, plain, data):
    """Wave after wave, without blocking the loop."""
    plain.set("pointer", "text")

    def of(kind):
        return lambda redis: kind({"a": [redis.get("pointer").map(redis.get)]})

    for module in (autobatch, autobatch.asyncio):
        client = module.Redis(port=proxy.port, decode_responses=True)

        async def respond(client=client):
            chain = client.get("pointer").map(client.get)
            return JSONResponse({"a": [chain]})

        async def respond_with_it(client=client):
            return JSONResponse(client.get("pointer").map(client.get))

        assert (await sending(respond))[1]["body"] == '{"a":["héllo"]}'.encode()
        assert (await sending(respond_with_it))[1]["body"] == '"héllo"'.encode()
        if module is autobatch:
            client.close()
        else:
            await client.aclose()


@in_loop
async def test_chunks_may_be_futures(proxy, plain, data):
    """One round trip a chunk."""

    def of(module, pieces):
        return lambda redis: module.StreamingResponse(pieces(redis))

    async def pieces(redis):
        yield "first "
        yield redis.get("text")

    def pieces_in_a_thread(redis):
        yield "first "
        yield redis.get("text")

    for some in (pieces, pieces_in_a_thread):
        proxy.reset()
        await compared(proxy, plain, of(ours, some), of(starlette.responses, some))


def test_a_body_that_was_replaced_is_sent(client):
    """As FastAPI does where a status has none."""

    def respond():
        response = JSONResponse({"a": 1}, status_code=204)
        response.body = b""
        return response

    assert send(respond)[1]["body"] == b""


# ---- templates ------------------------------------------------------------------------------

CONTEXT = {
    "text": lambda redis: redis.get("text"),
    "markup": lambda redis: redis.get("markup"),
    "count": lambda redis: redis.incr("other"),
    "missing": lambda redis: redis.get("missing"),
    "hash": lambda redis: redis.hgetall("hash"),
    "items": lambda redis: [redis.get("text"), redis.get("missing"), redis.get("count")],
    "rows": lambda redis: redis.lrange("list", 0, -1),
}
TEMPLATES = [
    "{{ text }}",
    "{{ count }}",
    "{{ missing }}",
    "{{ markup }}",
    "{{ markup|safe }}",
    "{{ text }} {{ count }}",
    "{{ count + 1 }} {{ -count }} {{ count > 0 and count }}",
    "{{ hash|tojson }} {{ text|tojson }} {{ missing|tojson }} {{ items|tojson }}",
    "{% for row in rows %}{{ loop.index }}{{ row }}{% endfor %}",
    "{% for item in items %}{{ item }}{% else %}nothing{% endfor %}",
    "{% for key, value in hash|dictsort %}{{ key }}={{ value }}{% endfor %}",
    "{{ hash.name }} {{ hash['born'] }} {{ hash.nothing is defined }}",
    "{{ missing is none }} {{ text is none }} {% if missing is none %}nothing{% endif %}",
    "{{ missing is defined }} {{ unknown is defined }} {{ missing or 'nothing' }}",
    "{{ text is string }} {{ count is number }} {{ count is integer }} {{ hash is mapping }}",
    "{{ count is odd }} {{ count is eq 1 }} {{ text in items }} {{ count is true }}",
    "{{ missing|default('nothing', true) }} {{ text|upper }} {{ text|length }} {{ rows|first }}",
    "{{ rows|join(', ') }} {{ items|map('string')|join('-') }} {{ rows|map('upper')|join(text) }}",
    "{{ items|select|list|length }} {{ rows|sort(reverse=true)|join }}",
    "{{ text|replace('l', text) }} {{ text|center(9) }} {{ count|float }} {{ text|truncate(3) }}",
    "{{ '%s %d'|format(text, count) }} {{ rows|batch(1)|list }} {{ text|e }} {{ rows[count - 1] }}",
    "{% set twice = text %}{{ twice }}{% with other = count %}{{ other }}{% endwith %}",
    "{% macro show(value) %}[{{ value }}]{% endmacro %}{{ show(text) }}{{ show(missing) }}",
]


# An operator of Jinja's that asks nobody: it wants plain values where markup is escaped.
CONCATENATION = "{{ text ~ count }} {{ missing ~ markup }}"


@pytest.fixture
def markup(plain, data):
    plain.set("markup", "<b>&amp;</b>")


def pages(kind, source, *, autoescape=True, **options):
    """Return the templates of one page."""
    loader = jinja2.DictLoader({"page": source})
    return kind(env=jinja2.Environment(loader=loader, autoescape=autoescape), **options)


def context_of(redis):
    return {name: value(redis) for name, value in CONTEXT.items()}


def page(templates, redis, **options):
    request = Request({"type": "http", "headers": [], "path": "/"})
    return templates.TemplateResponse(request, "page", context_of(redis), **options)


@pytest.mark.parametrize("source", [*TEMPLATES, CONCATENATION])
@pytest.mark.parametrize("autoescape", [True, False])
def test_a_template_shows_what_it_does_of_values(client, plain, markup, source, autoescape):
    """In a thread: it is rendered where it is made."""
    options = {"autoescape": autoescape}
    plainly = pages(starlette.templating.Jinja2Templates, source, **options)
    expected = send(lambda: page(plainly, plain, status_code=201))
    plain.delete("other")
    lazily = pages(starlette_templates.Jinja2Templates, source, **options)
    assert send(lambda: page(lazily, client, status_code=201)) == expected


@pytest.mark.parametrize("source", [*TEMPLATES, CONCATENATION])
@in_loop
async def test_a_template_in_a_coroutine(proxy, plain, markup, source):
    """It is rendered when it is sent, after one round trip."""
    plainly = pages(starlette.templating.Jinja2Templates, source)
    lazily = pages(starlette_templates.Jinja2Templates, source)

    def made(templates):
        def respond(redis):
            plain.delete("other")
            return page(templates, redis)

        return respond

    await compared(proxy, plain, made(lazily), made(plainly))


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("autoescape", [True, False])
def test_an_environment_of_jinja_takes_futures(client, plain, markup, source, autoescape):
    """`jinja.install`, without any framework: nothing is resolved beforehand."""
    environment = jinja2.Environment(autoescape=autoescape)
    expected = environment.from_string(source).render(context_of(plain))
    plain.delete("other")
    environment = jinja2.Environment(autoescape=autoescape)
    jinja.install(environment)
    with autobatch.batch() as scope:
        assert environment.from_string(source).render(context_of(client)) == expected
        assert scope.stats.round_trips == 1


def test_an_environments_own_finalize_is_kept(client, data):
    environment = jinja2.Environment(finalize=lambda value: "-" if value is None else value)
    jinja.install(environment)
    with autobatch.batch():
        template = environment.from_string("{{ a }} {{ b }}")
        assert template.render(a=client.get("missing"), b=client.get("count")) == "- 3"


def test_context_processors_may_give_futures(client, data):
    """They are called as Starlette calls them."""
    processors = [lambda request: {"count": client.get("count")}]
    templates = pages(
        starlette_templates.Jinja2Templates, "{{ count }}", context_processors=processors
    )
    request = Request({"type": "http", "headers": [], "path": "/"})
    assert send(lambda: templates.TemplateResponse(request, "page"))[1]["body"] == b"3"


# ---- sessions -------------------------------------------------------------------------------


def session_site(kind, redis, *middleware):
    """Return an application with sessions that counts in them."""

    async def write(request):
        request.session["count"] = redis.incr("sessions")
        request.session["user"] = {"name": redis.get("text")}
        return JSONResponse("written")

    async def read(request):
        return PlainJSONResponse(request.session)

    async def clear(request):
        request.session.clear()
        return PlainJSONResponse("cleared")

    sessions = Middleware(kind, secret_key="secret")
    ordered = [one or sessions for one in middleware]
    routes = [Route("/write", write), Route("/read", read), Route("/clear", clear)]
    return Starlette(routes=routes, middleware=ordered)


@pytest.mark.parametrize("outside", ["batch", "session"])
@in_loop
async def test_a_session_takes_futures(proxy, data, outside):
    """Whichever middleware is outside: one round trip, and the cookie has plain values."""
    batching = Middleware(BatchMiddleware)
    middleware = [batching, None] if outside == "batch" else [None, batching]
    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as redis:
        app = session_site(starlette_sessions.SessionMiddleware, redis, *middleware)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as site:
            assert (await site.get("/write")).json() == "written"
            assert proxy.names == [["INCRBY", "GET"]]
            response = await site.get("/read")
            assert response.json() == {"count": 1, "user": {"name": "héllo"}}
            assert proxy.round_trips == 1
            await site.get("/clear")
            assert (await site.get("/read")).json() == {}


@in_loop
async def test_a_session_that_nobody_writes_sets_no_cookie(proxy, data):
    """As with Starlette's own."""
    headers = []
    for module in (starlette.middleware.sessions, starlette_sessions):
        app = session_site(module.SessionMiddleware, None, Middleware(BatchMiddleware), None)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as site:
            headers.append((await site.get("/read")).headers)
    assert headers[0] == headers[1]


def test_the_example(server, plain):
    """Its docstring tells what it answers; each request is one round trip."""
    with serve("examples.starlette_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        assert site.http.post("/guests/ada").text == '{"name":"ada","visits":1}'
        assert site.get("/").text == '{"views":1,"guests":["ada"],"visits":{"ada":"1"}}'
        assert site.proxy.names == [["LPUSH", "LTRIM", "HINCRBY"], ["INCRBY", "LRANGE", "HGETALL"]]
        site.proxy.reset()
        welcome = "<p>Guest 2, and 1 guests before you: ada.</p>"
        assert [site.get("/page").text, site.get("/page").text] == [welcome] * 2
        assert site.proxy.names == [["INCRBY", "LRANGE"], ["LRANGE"]]  # it knows its guest again
