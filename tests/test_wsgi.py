"""The WSGI middleware: under gunicorn, with real requests; and called directly."""

from __future__ import annotations

import contextvars
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
import redis

import autobatch
from autobatch.ambient import ambient
from autobatch.wsgi import BatchMiddleware

for needed in ("httpx", "gunicorn"):
    pytest.importorskip(needed)

import httpx  # noqa: E402

from serving import eventually, serve  # noqa: E402

VISIT = ["INCRBY", "EXPIRE", "SADD"]
FAIL = ["SET", "LPUSH"]
WORKERS = {
    "sync": ["--worker-class", "sync"],
    "threads": ["--worker-class", "gthread", "--threads", "4"],
    "preload": ["--preload", "--workers", "2"],
}


@pytest.fixture(scope="module", params=WORKERS.values(), ids=WORKERS)
def served(server, request):
    command = ["gunicorn", "apps.wsgi:app", "--bind", "127.0.0.1:0", *request.param]
    with serve(*command, redis_port=server) as site:
        yield site


@pytest.fixture
def site(served, plain):
    """The application in apps/wsgi.py, with nothing counted and nothing in Redis."""
    served.forget()
    return served


# ---- under gunicorn ---------------------------------------------------------------------


def test_a_request_is_one_round_trip(site):
    """Nobody looks at a value: the end of the application sends everything."""
    response = site.get("/page")
    assert (response.status_code, response.text) == (200, "visited")
    assert response.headers["x-path"] == "/page"
    assert site.proxy.names == [VISIT]


def test_nested_middlewares_share_one_scope(site):
    """A part of an application may have its own, and it may be installed twice."""
    assert site.get("/twice/page").text == "visited"
    assert site.proxy.names == [["INCRBY", *VISIT]]


def test_head(site):
    """The application runs, and what it calls is sent."""
    response = site.http.head("/page")
    assert (response.status_code, response.content) == (200, b"")
    assert site.proxy.names == [VISIT]


def test_requests_at_the_same_time_keep_their_values_apart(site):
    """Each reads back what it has written itself."""
    keys = [f"key{number}" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda key: site.get(f"/increment?{key}").text, keys))
    assert texts == [f"{key} is 1" for key in keys]
    expected = [[(b"INCRBY", key.encode(), b"1"), (b"GET", key.encode())] for key in keys]
    assert sorted(site.proxy.exchanges) == sorted(expected)


def test_context_variables_do_not_leak_into_the_next_request(site):
    """More requests than threads: some of them come to the same one."""
    threads, found = zip(*(site.get("/leak").text.split() for _ in range(9)), strict=True)
    assert len(set(threads)) < len(threads)
    assert set(found) == {"untouched"}


def test_an_unseen_error_is_a_500(site):
    """The response has not started, so the error can still become one."""
    response = site.get("/fail")
    assert response.status_code == 500
    assert "all is well" not in response.text
    assert site.proxy.names == [FAIL]
    assert site.logs("ResponseError: WRONGTYPE")


def test_an_application_that_raises_sends_what_it_called(site):
    """Errors that nobody has looked at are notes of its own."""
    assert site.get("/raise").status_code == 500
    assert site.proxy.names == [VISIT + FAIL]
    assert site.logs("RuntimeError: broken")
    assert "Also failed: ResponseError: WRONGTYPE" in site.log
    assert "unseen error" not in site.log


def test_a_generator_runs_in_the_context_and_scope_of_its_request(site):
    """One round trip a chunk."""
    response = site.get("/chunks")
    assert response.text.splitlines() == [f"{n} set by the application" for n in range(3)]
    assert site.proxy.names == [["RPUSH"]] * 3


def test_an_unseen_error_before_the_first_chunk_is_a_500(site):
    """Servers send the headers with it."""
    response = site.get("/chunks/fail-first")
    assert response.status_code == 500
    assert "all is well" not in response.text
    assert site.proxy.names == [FAIL]


def test_an_unseen_error_after_the_first_chunk_is_logged(site):
    """The response has started: it goes on as if nothing had happened."""
    response = site.get("/chunks/fail-second")
    assert (response.status_code, response.text) == (200, "first second third")
    assert site.proxy.names == [FAIL]
    logged = "unseen error in GET /chunks/fail-second: ResponseError: WRONGTYPE"
    assert site.logs(logged)


def test_a_generator_that_raises_first_sends_what_it_called(site):
    """It is a 500, and the log tells of both errors."""
    assert site.get("/chunks/raise-first").status_code == 500
    assert site.proxy.names == [FAIL]
    assert site.logs("RuntimeError: broken")
    assert site.logs("ResponseError: WRONGTYPE")


def test_a_generator_that_raises_later_sends_what_it_called(site):
    """It ends the response, and the log tells of both errors."""
    with pytest.raises(httpx.RemoteProtocolError):
        site.get("/chunks/raise-second")
    assert site.proxy.names == [FAIL]
    assert site.logs("RuntimeError: broken")
    assert site.logs("ResponseError: WRONGTYPE")


def test_a_body_is_closed_once(site, plain):
    """In its request's scope: what `close` calls is sent."""
    assert site.get("/close").text == "visited"
    assert eventually(lambda: plain.get("closed") == "1")
    assert site.proxy.names == [VISIT, ["INCRBY"]]


def test_a_body_is_closed_once_when_the_flush_fails(site, plain):
    """The server does not get to see it."""
    assert site.get("/close/fail").status_code == 500
    assert plain.get("closed") == "1"
    assert site.proxy.names == [FAIL, ["INCRBY"]]


def test_a_file_is_sent(site):
    """By the server's own means."""
    assert site.get("/file").text == "a file"
    assert site.proxy.names == [VISIT]


def test_a_client_that_goes_away_loses_no_commands(site, plain):
    """The server closes the generator; what it called in its `finally` is sent."""
    with site.http.stream("GET", "/chunks/endless") as response:
        chunks = response.iter_text()  # which closes the connection when it is forgotten
        assert next(chunks).startswith("more ")
        assert plain.get("stream") == "open"
    assert eventually(lambda: plain.get("stream") == "closed")


# ---- called directly --------------------------------------------------------------------


def start_response(status, headers, exc_info=None):
    return lambda data: None


def call(app, **environ):
    """Call `app` as a server does; return the body as it is."""
    setup_testing_defaults(environ)
    return app(environ, start_response)


class Body:
    """A body that knows how often it was closed, and may do something then."""

    def __init__(self, *chunks, on_close=lambda: None):
        self.closed = 0
        self._chunks = chunks
        self._on_close = on_close

    def __iter__(self):
        return iter(self._chunks)

    def close(self):
        self.closed += 1
        self._on_close()


@pytest.fixture
def wrong(client):
    """Call a command whose error nobody looks at."""
    client.set("text", "a string")
    return lambda: client.lpush("text", 1)


@pytest.mark.parametrize("body", [[b"one", b"two"], (b"one",), [], ()])
def test_a_complete_body_is_handed_on_as_it_is(client, plain, body):
    """Servers compute the length of a response from it."""

    def app(environ, start_response):
        client.set("called", "yes")
        return body

    assert call(BatchMiddleware(app)) is body
    assert plain.get("called") == "yes"


def test_a_file_wrapper_is_handed_on_as_it_is(client, plain):
    """Servers send the file itself."""
    wrapper = FileWrapper(io.BytesIO(b"a file"))

    def app(environ, start_response):
        client.set("called", "yes")
        return wrapper

    assert call(BatchMiddleware(app), **{"wsgi.file_wrapper": FileWrapper}) is wrapper
    assert plain.get("called") == "yes"
    assert not wrapper.filelike.closed


def test_a_file_that_is_not_sent_is_closed(wrong):
    """An unseen error takes its place."""
    wrapper = FileWrapper(io.BytesIO(b"a file"))

    def app(environ, start_response):
        wrong()
        return wrapper

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        call(BatchMiddleware(app), **{"wsgi.file_wrapper": FileWrapper})
    assert wrapper.filelike.closed


def test_start_response_is_the_servers_own():
    """Whatever else a server lets it do."""
    given = []

    def app(environ, start_response):
        given.append(start_response)
        return []

    call(BatchMiddleware(app))
    assert given == [start_response]


def test_the_protocol_is_kept(client):
    """Python's validator finds nothing to object to, on either side."""

    def app(environ, start_response):
        client.set("called", "yes")
        start_response("200 OK", [("Content-Type", "text/plain")])

        def chunks():
            client.set("called", "twice")
            yield b"chunk"

        return chunks()

    body = call(validator(BatchMiddleware(validator(app))), QUERY_STRING="")
    assert list(body) == [b"chunk"]
    body.close()


def test_a_flush_precedes_each_chunk(client, plain):
    """Whoever has a part of the response finds in Redis what was called before it."""

    def app(environ, start_response):
        client.set("called", "before the body")

        def chunks():
            for number in range(2):
                client.set("called", f"before chunk {number}")
                yield b"chunk"
            client.set("called", "before the end")

        return chunks()

    body = call(BatchMiddleware(app))
    seen = [plain.get("called"), *(plain.get("called") for _ in body)]
    assert seen == ["before the body", "before chunk 0", "before chunk 1"]
    assert plain.get("called") == "before the end"
    body.close()


@pytest.mark.parametrize("body", [list, iter, lambda chunks: (chunk for chunk in chunks)])
def test_chunks_may_be_futures(client, proxy, plain, body):
    """Servers look at the real type of what they write."""
    plain.set("count", 3)
    plain.set("other", "text")
    expected = [plain.dump("count"), b"-", plain.dump("other")]

    def app(environ, start_response):
        return body([client.dump("count"), b"-", client.dump("other")])

    served = call(BatchMiddleware(app))
    chunks = list(served)
    assert chunks == expected
    assert [type(chunk) for chunk in chunks] == [bytes] * 3
    assert proxy.names == [["DUMP", "DUMP"]]


def test_a_body_is_iterated_and_closed_in_its_own_context():
    """The same context, and the same scope, for all that belongs to a request."""
    variable = contextvars.ContextVar("variable", default="untouched")
    seen = []

    class Watching(Body):
        def __iter__(self):
            seen.append((variable.get(), ambient.get()))
            yield b"chunk"

    def app(environ, start_response):
        variable.set("set by the application")
        seen.append((variable.get(), ambient.get()))
        return Watching(on_close=lambda: seen.append((variable.get(), ambient.get())))

    body = call(BatchMiddleware(app))
    assert (variable.get(), ambient.get()) == ("untouched", None)
    assert list(body) == [b"chunk"]
    assert (variable.get(), ambient.get()) == ("untouched", None)
    body.close()
    assert (variable.get(), ambient.get()) == ("untouched", None)
    values, scopes = zip(*seen, strict=True)
    assert values == ("set by the application",) * 3
    assert len(set(map(id, scopes))) == 1
    assert scopes[0].closed


def test_a_body_that_is_never_iterated_is_closed(client, proxy):
    """As servers do after HEAD, or when the client has gone."""
    bodies = []

    def app(environ, start_response):
        client.set("called", "yes")
        bodies.append(Body(b"chunk", on_close=lambda: client.set("called", "at the end")))
        return bodies[0]

    call(BatchMiddleware(app)).close()
    assert bodies[0].closed == 1
    assert proxy.names == [["SET"], ["SET"]]


def test_an_unseen_error_closes_the_body(client, wrong, plain):
    """Once, and what that calls is sent."""
    bodies = []

    def app(environ, start_response):
        wrong()
        bodies.append(Body(b"chunk", on_close=lambda: client.incr("closed")))
        return bodies[0]

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        call(BatchMiddleware(app))
    assert (bodies[0].closed, plain.get("closed")) == (1, "1")


def test_errors_are_not_lost_when_closing_the_body_fails_too(client, wrong, caplog):
    """What `close` called was sent, and each error is raised, noted or logged."""

    def app(environ, start_response):
        wrong()
        return Body(b"chunk", on_close=lambda: client.incr("text"))

    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        call(BatchMiddleware(app))
    told = [*raised.value.__notes__, *(record.getMessage() for record in caplog.records)]
    assert any("INCRBY text" in text for text in told)


def test_commands_are_not_lost_when_closing_the_body_raises(client, wrong, plain):
    """Neither of the two errors hides the other."""

    def close():
        client.set("closed", 1)
        raise RuntimeError("broken")

    def app(environ, start_response):
        wrong()
        return Body(b"chunk", on_close=close)

    with pytest.raises((redis.ResponseError, RuntimeError)) as raised:
        call(BatchMiddleware(app))
    assert plain.get("closed") == "1"
    told = [str(raised.value), *raised.value.__notes__, str(raised.value.__context__)]
    assert any("WRONGTYPE" in text for text in told)
    assert any("broken" in text for text in told)


def test_an_error_at_the_end_of_a_body_is_logged_with_its_request(wrong, caplog):
    """By the logger "autobatch", with the error and the line that called the command."""

    def app(environ, start_response):
        return Body(b"chunk", on_close=wrong)

    body = call(BatchMiddleware(app), PATH_INFO="/page")
    assert list(body) == [b"chunk"]
    body.close()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("autobatch", logging.ERROR)
    assert record.getMessage().startswith("unseen error in GET /page: ResponseError: WRONGTYPE")
    assert "LPUSH text" in record.getMessage()
    assert isinstance(record.exc_info[1], redis.ResponseError)


def test_a_generator_that_raises_first_raises_its_own_error(wrong):
    """The program failed there; errors that nobody has looked at are its notes."""

    def app(environ, start_response):
        wrong()
        raise RuntimeError("broken")
        yield b"never"

    body = call(BatchMiddleware(app))
    with pytest.raises(RuntimeError, match="broken") as raised:
        next(body)
    body.close()
    assert any("Also failed: ResponseError: WRONGTYPE" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_application_that_is_ended_sends_what_it_called(client, plain, error):
    """Also by what is no Exception, as when a server gives up on a request."""

    def app(environ, start_response):
        client.set("called", "yes")
        raise error

    with pytest.raises(error):
        call(BatchMiddleware(app))
    assert plain.get("called") == "yes"
    assert ambient.get() is None


def test_an_application_called_inside_a_scope_flushes_that_first(client, proxy):
    """A test's client calls the application in its own thread, perhaps inside a batch."""

    def app(environ, start_response):
        client.set("inner", 1)
        return []

    with autobatch.batch() as scope:
        client.set("outer", 1)
        call(BatchMiddleware(app))
        client.set("outer", 2)
        assert ambient.get() is scope
    assert [exchange[0][1] for exchange in proxy.exchanges] == [b"outer", b"inner", b"outer"]


def test_the_limits_of_a_scope_are_the_middlewares(client, proxy):
    """A request that calls a great deal flushes early."""

    def app(environ, start_response):
        for number in range(5):
            client.set(f"key{number}", number)
        return []

    call(BatchMiddleware(app, max_commands=2))
    assert proxy.names == [["SET", "SET"], ["SET", "SET"], ["SET"]]
