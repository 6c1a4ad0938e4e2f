"""What shows batches, together with what changes how they come about."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest
import redis
import redis.asyncio

import autobatch
from autobatch import instrument, report
from autobatch.advice import advise, possible
from autobatch.asgi import BatchMiddleware as AsgiMiddleware
from autobatch.report import Reason
from autobatch.testing import unbatched
from autobatch.wsgi import BatchMiddleware as WsgiMiddleware
from common import PATIENCE, eventually
from looping import in_loop
from recorded import marked, recording


@pytest.fixture
def records():
    with recording() as records:
        yield records


@pytest.fixture
def on():
    with instrument():
        yield


# ---- instrument() ----------------------------------------------------------------------------


def test_records_of_a_client_that_was_instrumented(proxy, plain, on, records):
    """The lines are the program's."""
    with redis.Redis(port=proxy.port, decode_responses=True) as client, autobatch.batch():
        client.set("a", 1)  # sets
        assert client.get("a") == "1"  # forces
    (flush,) = records.flushes
    assert [command.place.line for command in flush.commands] == [marked("sets"), marked("forces")]
    assert (flush.reason, flush.place.line) == (Reason.FORCED, marked("forces"))


def test_suggesting_with_a_client_that_was_instrumented(proxy, plain, on, records):
    """What it would save is told, although nothing is batched."""
    with redis.Redis(port=proxy.port, decode_responses=True) as client:
        with autobatch.batch(suggest=True):
            assert client.set("a", 1) is True
            assert type(client.get("a")) is str  # asks
            assert client.get("missing") is None
        assert type(client) is redis.Redis
    assert proxy.names == [["SET"], ["GET"], ["GET"]]
    (scope,) = records.scopes
    assert (scope.commands, scope.round_trips, possible(scope)) == (3, 3, 1)
    assert [flush.reason for flush in scope.flushes] == [Reason.EAGER] * 3
    assert scope.flushes[1].place.line == marked("asks")


def test_suggesting_leaves_modules_that_are_excluded(proxy, plain, records):
    """Batching has nothing to give them."""
    client = redis.Redis(port=proxy.port)
    with client, instrument(exclude=[__name__]), autobatch.batch(suggest=True):
        assert client.set("a", 1) is True
    assert proxy.names == [["SET"]]
    assert records.flushes == []


def test_suggesting_with_valkeys_client(proxy, plain, on, records):
    valkey = pytest.importorskip("valkey")
    client = valkey.Valkey(port=proxy.port, decode_responses=True)
    with client, autobatch.batch(suggest=True):
        assert client.set("a", 1) is True
        assert type(client.get("a")) is str
    assert proxy.names == [["SET"], ["GET"]]
    (scope,) = records.scopes
    assert (scope.commands, scope.round_trips, possible(scope)) == (2, 2, 1)


@in_loop
async def test_suggesting_with_an_asyncio_client(proxy, plain, on, records):
    client = redis.asyncio.Redis(port=proxy.port, decode_responses=True)
    async with client, autobatch.batch(suggest=True):
        assert await client.set("a", 1) is True
        assert type(await client.get("a")) is str
    assert proxy.names == [["SET"], ["GET"]]
    scope = records.scopes[0]
    assert (scope.commands, scope.round_trips, possible(scope)) == (2, 2, 1)


def test_suggesting_with_a_cluster(cluster, on, records):
    with redis.RedisCluster("127.0.0.1", cluster.primaries[0], decode_responses=True) as client:
        client.get("a")
        with autobatch.batch(suggest=True):
            assert client.set("a", 1) is True
            assert client.mget_nonatomic("a", "b") == ["1", None]
    (scope,) = records.scopes
    assert scope.commands == 3
    assert scope.round_trips == 2


@in_loop
async def test_suggesting_to_those_who_do_not_await(server, plain, records):
    """What is on its way when the scope ends has taken no time yet."""
    async with autobatch.asyncio.Redis(port=server) as client:
        async with autobatch.batch(suggest=True):
            client.set("a", 1)
        scope = records.scopes[-1]
        assert scope.commands == 1
        assert [flush.duration for flush in scope.flushes] == [0.0]
        assert "SET a" in str(scope.flushes[0])


# ---- Server-Timing ---------------------------------------------------------------------------


def _serve_wsgi(app):
    started = []
    body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *given: started.append(given))
    assert b"".join(body) == b"done"
    ((_, headers),) = started
    return dict(headers).get("Server-Timing", "none")


@pytest.mark.parametrize("suggest", [False, True])
def test_timing_of_a_scope(client, plain, suggest):
    """The header tells what ran, batched or not."""

    def app(_, start_response):
        client.set("a", 1)
        client.get("a")
        start_response("200 OK", [])
        return [b"done"]

    told = _serve_wsgi(WsgiMiddleware(app, server_timing=True, suggest=suggest))
    assert told.endswith('desc="2 commands, 2 round trips"' if suggest else '1 round trip"')
    assert not report.listening


@in_loop
async def test_timing_of_a_scope_with_asgi(server, plain):
    sent = []

    async def app(scope, receive, send):
        async with autobatch.asyncio.Redis(port=server) as client:
            await client.set("a", 1)
            await client.get("a")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await AsgiMiddleware(app, server_timing=True, suggest=True)(scope, None, send)
    ((_, told),) = sent[0]["headers"]
    assert told.endswith(b'desc="2 commands, 2 round trips"')


def test_timing_of_what_steps_aside(client, plain):
    """It takes the longest of all."""

    def app(_, start_response):
        client.rpush("a", 1)
        client.blpop("a")
        start_response("200 OK", [])
        return [b"done"]

    told = _serve_wsgi(WsgiMiddleware(app, server_timing=True))
    assert told.endswith('desc="2 commands, 2 round trips"')


# ---- subscriptions ---------------------------------------------------------------------------


def test_the_garbage_collector_ends_scopes_while_others_begin():
    """A subscription may end at any moment, also while this thread changes them."""
    program = """
        import gc
        from autobatch import report
        from autobatch.recording import own_scope

        def leave():
            scope = own_scope(str, "a request", suggest=True)
            scope.itself = scope  # so only the garbage collector finds it

        for often in range(1, 400):
            gc.set_threshold(often, 1, 1)
            for _ in range(5):
                leave()
                own_scope(str, "another", suggest=True).close()
        gc.collect()
        assert not report.listening, report.subscriptions
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, check=True, timeout=PATIENCE)


# ---- what goes wrong while something is recorded ---------------------------------------------


def test_an_interrupt_while_a_flush_is_recorded(client, proxy, plain):
    """Its commands say that they were not sent; nothing hangs."""
    interrupts = False

    def on_call():
        if interrupts:
            raise KeyboardInterrupt

    with recording() as records, report.subscribe(on_call=on_call), autobatch.batch() as scope:
        future = client.set("a", 1)
        interrupts = True
        with pytest.raises(KeyboardInterrupt):
            scope.flush()
        interrupts = False
        assert future.done()
        assert isinstance(future.exception(), autobatch.errors.NotSent)
        client.set("b", 2)
    assert proxy.names == [["SET"]]
    assert records.names == [["SET"]]
    assert [scope.name for scope in records.scopes] == [records.flushes[0].scope.name]


def test_a_flush_that_cannot_be_recorded(client, proxy, plain, caplog):
    """It is sent all the same, and that is logged: looking on changes nothing."""
    with recording() as records, autobatch.batch() as scope:
        first = client.set("a", 1)
        flushes, scope.record.flushes = scope.record.flushes, None  # what a defect would do
        assert client.get("a") == "1"
        scope.record.flushes = flushes
        assert first.value is True
        client.set("b", 1)
    assert proxy.names == [["SET", "GET"], ["SET"]]
    assert [told.getMessage() for told in caplog.records] == ["a flush could not be recorded"]
    assert records.names == [["SET"]]
    assert len(records.scopes) == 1


# ---- threads and an event loop that share a scope --------------------------------------------


@in_loop
async def test_a_thread_is_first_to_exchange_what_waits_for_another(client, proxy, plain):
    """Each batch is exchanged by one of them, and the other one has nothing to do."""
    async with autobatch.batch() as scope:
        future = client.set("a", 1)
        scope.dispatch()  # as at the end of a tick: a thread shall exchange it
        plain.client_pause(1000 * PATIENCE, all=False)
        flushing = threading.Thread(target=scope.flush)
        flushing.start()
        # The loop waits for this, so no task has begun yet.
        eventually(lambda: [one for one in plain.client_list() if one["cmd"] == "set"])
        for _ in range(10):
            await asyncio.sleep(0)
        plain.client_unpause()
        await scope.aflush()
        assert future.value is True
        flushing.join(PATIENCE)
    assert proxy.names == [["SET"]]
    assert scope.stats.round_trips == 1


@in_loop
async def test_threads_and_a_loop_share_a_scope(server, client, plain):
    """All that they call is sent once, whoever gets to it."""

    def work(number):
        for i in range(10):
            key = f"{number}:{i}"
            client.set(key, i)
            value = client.get(key)
            client.incr("times")
            if i % 3 == 0:
                assert value == str(i)

    async with autobatch.asyncio.Redis(port=server, decode_responses=True) as tasks:
        for _ in range(10):
            async with autobatch.batch() as scope:
                working = [asyncio.to_thread(work, number) for number in range(3)]
                gathered = asyncio.gather(*working)
                while not gathered.done():
                    tasks.incr("more")
                    await tasks.incr("more")
                    await scope.aflush()
                await gathered
            assert scope.stats.commands >= 3 * 10 * 3
        assert int(await tasks.get("times")) == 10 * 10 * 3


# ---- AUTOBATCH_DISABLE -----------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a thread", "asyncio"])
@in_loop
async def test_what_a_task_waits_for_is_not_raised_at_the_end(asynchronous, server, client, plain):
    """It looks at what has failed in the last wave, if a turn of the loop later than the scope."""
    plain.set("text", "x")

    async def look(future):
        while not future.done():  # noqa: ASYNC110  # turn by turn
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(redis.ResponseError):
            future.value  # raises

    async with autobatch.asyncio.Redis(port=server) as other:
        async with autobatch.batch():
            failing = other.incr("text") if asynchronous else client.incr("text")
            task = asyncio.create_task(look(failing))
        await task


def test_records_while_batching_is_off(client, proxy, plain, on, records):
    """Each command is alone, and nobody is told to move it; suggesting goes on."""
    theirs = redis.Redis(port=proxy.port, decode_responses=True)
    with theirs, unbatched():
        with autobatch.batch():
            client.set("a", 1)
            assert theirs.get("a") == "1"
        assert records.names == [["SET"], ["GET"]]
        assert records.reasons == ["alone", "alone"]
        assert advise(records.scopes[0]) == []
        with autobatch.batch(suggest=True):
            client.set("a", 1)
            theirs.get("a")
    assert possible(records.scopes[1]) == 1
