"""Suggest only: everything runs as without batching, and the end tells what batching would save."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import subprocess
import sys
import weakref

import pytest
import redis as redis_py

import autobatch
from autobatch import report
from autobatch.advice import Kind, advise, possible
from autobatch.asgi import BatchMiddleware as AsgiMiddleware
from autobatch.report import Reason
from autobatch.testing import Proxy
from autobatch.wsgi import BatchMiddleware as WsgiMiddleware
from looping import in_loop
from recorded import marked, recording


@pytest.fixture
def records():
    with recording() as records:
        yield records


def names_of(client, users):
    found = []
    for user in users:
        name = client.hget(f"user:{user}", "name")  # gets a name
        found.append(name)
    return found


def test_plain_values_at_once(client, proxy, plain):
    """Each call is a round trip of its own, and nothing is lazy."""
    plain.set("text", "x")
    with autobatch.batch(suggest=True) as scope:
        value = client.get("text")
        assert type(value) is str
        assert client.get("missing") is None
        assert plain.get("a") is None
        assert client.set("a", 1) is True
        assert plain.get("a") == "1"
        with pytest.raises(redis_py.ResponseError):
            client.lpush("text", 1)
    assert proxy.names == [["GET"], ["GET"], ["SET"], ["LPUSH"]]
    assert (scope.stats.commands, scope.stats.round_trips) == (4, 4)
    assert not report.listening


def test_what_it_tells(client, proxy, plain, records, caplog):
    """How many round trips would do, and where they could be saved."""
    caplog.set_level(logging.INFO, "autobatch.report")
    with autobatch.batch(suggest=True):  # suggests
        names_of(client, "abcd")
    (scope,) = records.scopes
    assert [flush.reason for flush in scope.flushes] == [Reason.EAGER] * 4
    assert (scope.commands, scope.round_trips, possible(scope)) == (4, 4, 1)
    assert records.flushes == list(scope.flushes)
    (loop,) = advise(scope)
    assert (loop.kind, loop.place.line) == (Kind.LOOP, marked("gets a name"))
    (told,) = caplog.records
    assert (told.name, told.levelno) == ("autobatch.report", logging.INFO)
    assert told.getMessage() == (
        f"tests/test_suggest.py:{marked('suggests')}: 4 commands in 4 round trips; in a batch, "
        f"1 could do\n  {loop}"
    )
    assert f"(the loop of line {marked('gets a name') - 1})" in loop.text


def test_it_is_what_batching_gives(client, proxy, plain, records):
    """Batched, and with the values looked at in the end, it takes what was said."""
    with autobatch.batch(suggest=True):
        names_of(client, "abcd")
        client.get("a")
    (scope,) = records.scopes
    proxy.reset()
    with autobatch.batch():
        names_of(client, "abcd")
        client.get("a")
    assert possible(scope) == proxy.round_trips == 1


def test_values_that_are_arguments(client, proxy, plain, records):
    """By identity, whatever way they have taken; or their parts."""

    class Box:
        pass

    plain.set("first", "second")
    plain.hset("second", mapping={"key": "third"})
    box = Box()

    def load():
        box.content = client.get("first")

    def use():
        box.content = client.hgetall(box.content)

    def use_a_part():
        return client.get(next(iter(box.content.values())))

    with autobatch.batch(suggest=True):
        load()
        use()
        use_a_part()
        client.get("other")
    (scope,) = records.scopes
    needs = [[str(one) for one in flush.commands[0].needs] for flush in scope.flushes]
    assert needs == [[], ["GET first"], ["HGETALL second"], []]
    assert possible(scope) == 3


def test_what_python_shares_is_no_value_of_ours(client, plain, records):
    """Small numbers and single letters are the same objects everywhere."""
    plain.set("letter", "a")
    with autobatch.batch(suggest=True):
        letter = client.get("letter")
        one = client.incr("counter")
        client.get("a")
        client.expire("other", 1)
    assert (letter, one) == ("a", 1)
    (scope,) = records.scopes
    assert [flush.commands[0].needs for flush in scope.flushes] == [()] * 4


def test_values_that_decide(client, plain, records):
    """As far as the source tells."""
    with autobatch.batch(suggest=True):
        if client.get("flag") is None:
            client.set("flag", 1)
    (scope,) = records.scopes
    assert (scope.round_trips, possible(scope)) == (2, 2)


def test_what_steps_aside(client, plain, records):
    """It would have run alone, and divides what comes before from what comes after."""
    with autobatch.batch(suggest=True):
        client.get("a")
        client.get("b")
        client.blpop("list", timeout=0.01)
        client.get("c")
        client.get("d")
    (scope,) = records.scopes
    assert [flush.reason.value for flush in scope.flushes] == [
        "eager", "eager", "alone", "eager", "eager",
    ]  # fmt: skip
    assert (scope.round_trips, possible(scope)) == (5, 3)


def test_nested_boundaries_join(client, proxy, plain, records):
    """Decorated functions inside run as their bodies."""

    @autobatch.batch
    def load(key):
        value = client.get(key)
        assert value is None
        return value

    @autobatch.batch(on_error="discard")
    def fail():
        client.set("a", 1)
        raise KeyError

    with autobatch.batch(suggest=True):
        load("a")
        load("b")
        with pytest.raises(KeyError):
            fail()
    (scope,) = records.scopes
    assert (scope.commands, scope.round_trips) == (3, 3)
    assert proxy.names == [["GET"], ["GET"], ["SET"]]


def test_a_scope_of_its_own_inside(client, plain, records):
    """It only suggests, too, and is told of by itself."""
    with autobatch.batch(suggest=True):
        client.get("a")
        with autobatch.batch(join=False):
            assert client.get("b") is None
        client.get("c")
    inner, outer = records.scopes
    assert (inner.commands, outer.commands) == (1, 2)
    assert inner.parent == outer.name
    assert possible(outer) == 2


def test_a_transaction_is_one(client, proxy, plain, records):
    """What the program asked for is done: its commands run together, at its end."""
    with autobatch.batch(suggest=True):
        client.set("a", 1)
        with autobatch.batch(atomic=True):
            client.incr("a")
            total = client.incr("a")
        assert total == 3
    assert proxy.names == [["SET"], ["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_a_decorated_function(client, plain, records, caplog):
    caplog.set_level(logging.INFO, "autobatch.report")

    @autobatch.batch(suggest=True)
    def work():
        return names_of(client, "ab")

    assert work() == [None, None]
    assert "2 commands in 2 round trips; in a batch, 1 could do" in caplog.text


def test_only_where_it_is_said(client, proxy, plain):
    """Scopes around and beside go on batching."""
    with autobatch.batch():
        client.set("a", 1)
        with autobatch.batch(join=False, suggest=True):
            assert client.get("a") == "1"
        client.set("b", 1)
        client.set("c", 1)
    assert proxy.names == [["SET"], ["GET"], ["SET", "SET"]]


def test_nothing_is_kept(client, plain):
    """Neither values nor the subscription outlive the scope, also when it fails."""

    class Value(str):
        __slots__ = ("__weakref__",)

    client.set_response_callback("GET", Value)
    plain.set("a", "long enough")
    with recording() as records:
        with pytest.raises(KeyError), autobatch.batch(suggest=True):
            kept = weakref.ref(client.get("a"))
            assert kept() is not None  # held until the end
            raise KeyError
        gc.collect()
        assert kept() is None
        assert len(records.scopes) == 1
        assert "long enough" not in repr(records.scopes)
    assert not report.listening


def test_a_scope_that_is_never_left(client, plain):
    """What it needs goes when it does."""

    @autobatch.batch(suggest=True)
    def generate():
        yield client.get("a")

    generator = generate()
    next(generator)
    assert report.listening
    context = contextvars.Context()
    context.run(generator.close)
    assert not report.listening

    boundary = autobatch.batch(suggest=True)
    context.run(boundary.__enter__)
    assert report.listening
    autobatch.scope.open_scopes.clear()  # or the interpreter's end would leave it
    del boundary, context
    gc.collect()
    assert not report.listening


@in_loop
async def test_with_asyncio(proxy, plain, records):
    """What is awaited leaves with its tick, as outside any scope; each scope has its share."""
    plain.set("a", "secret")

    async def load(client):
        async with autobatch.batch(suggest=True):
            assert await client.get("a") == "secret"
            await asyncio.gather(client.get("b"), client.get("c"))
            await client.get("d")

    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:
        await client.ping()
        proxy.reset()
        await load(client)
        assert proxy.names == [["GET"], ["GET", "GET"], ["GET"]]
        (scope,) = records.scopes
        assert [flush.reason.value for flush in scope.flushes] == ["eager"] * 3
        assert [len(flush.commands) for flush in scope.flushes] == [1, 2, 1]
        assert all(flush.finished > flush.started for flush in scope.flushes)
        assert (scope.commands, scope.round_trips, possible(scope)) == (4, 3, 1)
        await asyncio.gather(load(client), load(client))
    assert [(scope.commands, scope.round_trips) for scope in records.scopes] == [(4, 3)] * 3


@in_loop
async def test_values_that_are_arguments_with_asyncio(proxy, plain, records):
    plain.set("first", "second")
    async with (
        autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client,
        autobatch.batch(suggest=True),
    ):
        key = await client.get("first")
        await client.get(key)
        client.set("forgotten", 1)
    (scope,) = records.scopes
    needs = [[str(one) for one in flush.commands[0].needs] for flush in scope.flushes]
    assert needs == [[], ["GET first"], []]
    assert possible(scope) == 2
    assert plain.get("forgotten") == "1"


def test_a_cluster(cluster, records):
    """As with one server."""
    with (
        autobatch.RedisCluster(
            host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
        ) as client,
        autobatch.batch(suggest=True),
    ):
        assert client.set("a", 1) is True
        assert client.get("b") is None
        assert client.delete("a", "b", "c") == 1
    (scope,) = records.scopes
    assert (scope.round_trips, possible(scope)) == (3, 1)


def test_wsgi(client, plain, records, caplog):
    """Of a request, its streamed body included."""
    caplog.set_level(logging.INFO, "autobatch.report")

    def app(environ, start_response):
        client.get("a")
        client.get("b")
        start_response("200 OK", [])

        def body():
            assert client.get("c") is None
            yield b"hello"
            client.get("d")

        return body()

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/page"}
    body = WsgiMiddleware(app, suggest=True)(environ, lambda *_: None)
    assert list(body) == [b"hello"]
    body.close()
    (scope,) = records.scopes
    assert (scope.name, scope.round_trips, possible(scope)) == ("GET /page", 4, 3)
    assert "GET /page: 4 commands in 4 round trips; in a batch, 3 could do" in caplog.text


@in_loop
async def test_asgi(server, plain, records):
    """Of a request; the start of the response divides it."""
    async with autobatch.asyncio.Redis(port=server, decode_responses=True) as client:

        async def app(scope, receive, send):
            assert await client.get("a") is None
            assert await client.get("b") is None
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await client.get("c")
            await send({"type": "http.response.body", "body": b"hello"})

        sent = []

        async def send(message):
            sent.append(message["type"])

        await AsgiMiddleware(app, suggest=True)(
            {"type": "http", "method": "GET", "path": "/page"}, None, send
        )
    assert sent == ["http.response.start", "http.response.body"]
    (scope,) = records.scopes
    assert (scope.name, scope.round_trips, possible(scope)) == ("GET /page", 3, 2)


PROGRAM = """
import logging, sys
import autobatch
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
redis = autobatch.Redis(port=int(sys.argv[1]), decode_responses=True)
with autobatch.batch():
    for key in "abc":
        redis.set(key, "x")
with autobatch.batch(suggest=False):
    for key in "abc":
        redis.set(key, "x")
"""


@pytest.mark.parametrize("value", ["1", "yes", "0", "", None])
def test_the_environment_variable(server, value, tmp_path):
    """It holds for every scope that does not say something else."""
    environment = {k: v for k, v in os.environ.items() if k != "AUTOBATCH_SUGGEST"}
    if value is not None:
        environment["AUTOBATCH_SUGGEST"] = value
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with Proxy(server) as proxy:
        done = subprocess.run(
            [sys.executable, program, str(proxy.port)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        sent = [names for names in proxy.names if "SET" in names]
    if value in ("1", "yes"):
        assert sent == [["SET"], ["SET"], ["SET"], ["SET", "SET", "SET"]]
        assert "program.py:6: 3 commands in 3 round trips; in a batch, 1 could do" in done.stdout
        assert "program.py:8 calls 3 commands" in done.stdout
    else:
        assert sent == [["SET", "SET", "SET"]] * 2
        assert done.stdout == ""
