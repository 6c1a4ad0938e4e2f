"""Contract 4: an error that nobody has looked at surfaces, whatever kind of boundary ends.

What single boundaries do besides is tested with them: requests in test_asgi.py and test_wsgi.py,
commands of an asyncio client outside any scope in test_asyncio.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

import autobatch
from autobatch import batch
from looping import in_loop, reports

pytestmark = pytest.mark.server

# The errors that FAILURES makes, in program order; the INCRBY in between was looked at.
FAILED = ["LPUSH text", "SADD text"]


@pytest.fixture
def client(client, plain):
    """A client of a server where commands of other types than text fail on the key `text`."""
    plain.set("text", "no list")
    return client


@pytest.fixture
def async_client(proxy, client):
    return autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)


def fail(client, error=None):
    """Call what fails and what does not; then raise `error`, if there is one."""
    client.lpush("text", 1)
    client.set("fine", 1)
    client.sadd("text", 1)
    if error is not None:
        raise error


def assert_told(error, own=None):
    """The first error is raised and the others are its notes; or all are notes of `own`."""
    notes = error.__notes__
    if own is None:
        assert isinstance(error, redis.ResponseError)
        assert notes[0].startswith(f"{FAILED[0]}, queued at {__file__}:")
    else:
        assert error is own
    others = notes if own is not None else notes[1:]
    expected = FAILED if own is not None else FAILED[1:]
    assert len(others) == len(expected)
    for note, failed in zip(others, expected, strict=True):
        assert note.startswith("Also failed: ResponseError: WRONGTYPE")
        assert f"({failed}, queued at {__file__}:" in note


# ---- boundaries that raise ---------------------------------------------------------------


def function(body, **options):
    batch(**options)(body)()


def block(body, **options):
    with batch(**options):
        body()


def nested_block(body, **options):
    """The outermost boundary raises, once; here the inner ones are left well."""
    with batch():
        block(body, **options)


def nested_function(body, **options):
    with batch():
        function(body, **options)


def generator(body, **options):
    @batch(**options)
    def generate():
        body()
        yield

    list(generate())


def closed_generator(body, **options):
    @batch(**options)
    def generate():
        try:
            yield
        finally:
            body()

    generating = generate()
    next(generating)
    generating.close()


def generator_that_is_thrown_into(body, **options):
    @batch(**options)
    def generate():
        try:
            yield
        except KeyError:
            body()

    generating = generate()
    next(generating)
    with contextlib.suppress(StopIteration):
        generating.throw(KeyError())


def worker(body, **options):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function, body, **options).result()


async def coroutine(body, **options):
    @batch(**options)
    async def run():
        body()

    await run()


async def async_block(body, **options):
    async with batch(**options):
        body()


async def nested_coroutine(body, **options):
    async with batch():
        await coroutine(body, **options)


async def async_generator(body, **options):
    @batch(**options)
    async def generate():
        body()
        yield

    async for _ in generate():
        pass


async def closed_async_generator(body, **options):
    @batch(**options)
    async def generate():
        try:
            yield
        finally:
            body()

    generating = generate()
    await anext(generating)
    await generating.aclose()


async def async_generator_that_is_thrown_into(body, **options):
    @batch(**options)
    async def generate():
        try:
            yield
        except KeyError:
            body()

    generating = generate()
    await anext(generating)
    with contextlib.suppress(StopAsyncIteration):
        await generating.athrow(KeyError())


async def task(body, **options):
    await asyncio.create_task(coroutine(body, **options))


WAYS = [
    function,
    block,
    nested_block,
    nested_function,
    generator,
    closed_generator,
    generator_that_is_thrown_into,
    worker,
]
ASYNC_WAYS = [
    coroutine,
    async_block,
    nested_coroutine,
    async_generator,
    closed_async_generator,
    async_generator_that_is_thrown_into,
    task,
]
each_way = pytest.mark.parametrize("way", WAYS)
each_async_way = pytest.mark.parametrize("way", ASYNC_WAYS)
# A block that fails drops commands of these kinds, so there is nothing to tell then.
DROPPING = [{"atomic": True}, {"on_error": "discard"}]
KEEPING = [{}, {"join": False}]
each_kind = pytest.mark.parametrize("options", KEEPING + DROPPING, ids=str)
each_keeping_kind = pytest.mark.parametrize("options", KEEPING, ids=str)


@each_way
@each_kind
def test_the_first_is_raised_with_the_others_as_notes(way, options, client):
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        way(lambda: fail(client), **options)
    assert_told(raised.value)


@each_way
@each_keeping_kind
def test_an_error_that_ends_the_boundary_has_them_as_notes(way, options, client):
    own = LookupError()
    with pytest.raises(LookupError) as raised:
        way(lambda: fail(client, own), **options)
    assert_told(raised.value, own)


@each_way
@each_keeping_kind
def test_what_was_looked_at_is_not_told(way, options, client):
    def body():
        assert client.incr("text").exception() is not None
        fail(client)
        with contextlib.suppress(redis.ResponseError):
            client.hset("text", "f", 1).value

    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        way(body, **options)
    assert_told(raised.value)


@each_async_way
@each_kind
@pytest.mark.parametrize("kind", ["client", "async_client"])
def test_asyncio_the_first_is_raised_with_the_others_as_notes(way, options, kind, request):
    client = request.getfixturevalue(kind)

    @in_loop
    async def main():
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
            await way(lambda: fail(client), **options)
        assert_told(raised.value)
        del raised
        assert await reports() == []  # nobody is told again

    main()


@each_async_way
@each_keeping_kind
@pytest.mark.parametrize("kind", ["client", "async_client"])
def test_asyncio_an_error_that_ends_the_boundary_has_them_as_notes(way, options, kind, request):
    client = request.getfixturevalue(kind)

    @in_loop
    async def main():
        own = LookupError()
        with pytest.raises(LookupError) as raised:
            await way(lambda: fail(client, own), **options)
        assert_told(raised.value, own)
        del raised
        assert await reports() == []

    main()


def test_an_inner_boundary_raises_nothing_of_the_scope_it_joins(client):
    """Only the outermost one does, so what comes after an inner one runs."""
    reached = []
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised, batch():
        for way in (function, block, generator, closed_generator):
            way(lambda: client.lpush("text", 1))
            reached.append(way)
    assert len(reached) == len(raised.value.__notes__) == 4


def test_a_scope_of_its_own_raises_where_it_ends(client):
    """What follows it does not run, and its errors are not those of the scope around it."""
    with batch():
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
            block(lambda: fail(client), join=False)
        client.set("fine", 2)
    assert_told(raised.value)


# ---- where nobody can catch it -----------------------------------------------------------


def test_a_thread_tells_the_hook_of_threads(client, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    thread = threading.Thread(target=function, args=[lambda: fail(client)])
    thread.start()
    thread.join()
    [error] = told
    assert_told(error)


def test_a_generator_that_is_dropped_tells_the_unraisable_hook(client, monkeypatch):
    @batch
    def generate():
        fail(client)
        yield

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    generating = generate()
    next(generating)
    del generating
    gc.collect()
    [error] = told
    assert_told(error)


@pytest.mark.parametrize("kind", ["client", "async_client"])
def test_a_task_that_nobody_awaits_tells_the_loop(kind, request):
    client = request.getfixturevalue(kind)

    @in_loop
    async def main():
        running = asyncio.create_task(coroutine(lambda: fail(client)))
        await asyncio.wait([running])
        del running
        [report] = await reports()
        assert report["message"] == "Task exception was never retrieved"
        assert_told(report["exception"])

    main()


def close_a_generator(body):
    """Its consumer has had enough, which is no failure: the error reaches nobody else."""

    def generate():
        with batch():
            body()
            yield

    generating = generate()
    next(generating)
    generating.close()


def close_an_async_generator(body):
    async def generate():
        async with batch():
            body()
            yield

    async def main():
        generating = generate()
        await anext(generating)
        await generating.aclose()

    asyncio.run(main())


def close_a_coroutine(body):
    async def run():
        with batch():
            body()
            await asyncio.sleep(0)

    running = run()
    running.send(None)
    running.close()


def exit_the_interpreter(body):
    """The interpreter shows no traceback of a SystemExit, and so no notes."""
    with contextlib.suppress(SystemExit), batch():
        body()
        sys.exit()


@pytest.mark.parametrize(
    "end",
    [close_a_generator, close_an_async_generator, close_a_coroutine, exit_the_interpreter],
)
def test_an_end_that_shows_no_notes_logs_them(end, client, caplog):
    """As a cancellation does: whatever swallows such an exception does not look at its notes."""
    with caplog.at_level(logging.ERROR, "autobatch"):
        end(lambda: fail(client))
    assert [next(f for f in FAILED if f in message) for message in caplog.messages] == FAILED


# ---- the interpreter's end ---------------------------------------------------------------

PRELUDE = """
    import asyncio, sys
    import autobatch
    port = int(sys.argv[1])
    redis = autobatch.Redis(port=port)
"""
LAST_WORDS = {
    "of a with block": """
        with autobatch.batch():
            redis.lpush("text", 1)
    """,
    "of a thread": """
        import threading
        threading.Thread(target=autobatch.batch(lambda: redis.lpush("text", 1))).start()
    """,
    "of a command in a loop's last tick": """
        async def main():
            autobatch.asyncio.Redis(port=port).lpush("text", 1)

        asyncio.run(main())
    """,
    "of a command whose Future outlives its loop": """
        kept = []

        async def main():
            redis = autobatch.asyncio.Redis(port=port)
            kept.append(redis.lpush("text", 1))
            await redis.ping()

        asyncio.run(main())
        kept.clear()
    """,
}


@pytest.mark.parametrize("program", LAST_WORDS.values(), ids=LAST_WORDS)
def test_the_last_words_of_a_program(program, server, client):
    """Its standard error names the error and the command, before or while it ends."""
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(program)
    run = [sys.executable, "-c", source, str(server)]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert "WRONGTYPE" in ended.stderr
    assert "LPUSH text, queued at" in ended.stderr
