"""`retry_on_error`, and the errors that a `Retry` names: what the server refused is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch.testing import Answer, Cut, Proxy, Swallow
from looping import tidy

RETRIES = 3
READONLY = Answer(b"-READONLY You can't write against a read only replica.\r\n")
TIMEOUT = 0.25  # of a socket that waits for what will not come


@pytest.fixture
def proxy(server, plain):
    with Proxy(server, delay=0) as proxy:
        yield proxy


@pytest.fixture(params=["sync", "asyncio"])
def run(proxy, request):
    """Run a program, a coroutine function of a client and of how to look at a value."""

    def run(program, *, errors=(redis.ConnectionError, redis.TimeoutError), **options):
        if request.param == "asyncio":
            return asyncio.run(tidy(in_a_loop(program, errors, options)))
        retry = Retry(NoBackoff(), RETRIES, errors)
        with autobatch.Redis(port=proxy.port, retry=retry, **options) as client:
            try:
                program(client, looked_at).send(None)
            except StopIteration as done:
                return done.value
            raise AssertionError("a synchronous client waits without awaiting")

    async def in_a_loop(program, errors, options):
        retry = AsyncRetry(NoBackoff(), RETRIES, errors)
        async with autobatch.asyncio.Redis(port=proxy.port, retry=retry, **options) as client:
            return await program(client, awaited)

    async def looked_at(value):
        return autobatch.unwrap(value)

    async def awaited(value):
        return await value

    return run


NAMED = [{"retry_on_error": [redis.ReadOnlyError]}, {"errors": (redis.ReadOnlyError,)}]
named = pytest.mark.parametrize("options", NAMED)


@named
@pytest.mark.parametrize("single", [False, True])
def test_a_refused_command_is_sent_again(run, proxy, plain, options, single):
    async def program(client, look):
        proxy.arm(READONLY, READONLY)
        return await look(client.incr("n"))

    assert run(program, single_connection_client=single, **options) == 1
    assert plain.get("n") == "1"


@named
def test_a_command_that_steps_aside_is_sent_again(run, proxy, plain, options):
    plain.lpush("list", "item")

    async def program(client, look):
        proxy.arm(READONLY)
        with autobatch.batch():
            return await look(client.blpop("list", 1))

    assert run(program, **options) == (b"list", b"item")


@named
def test_a_refused_batch_is_sent_again_in_order(run, proxy, plain, options):
    async def program(client, look):
        proxy.arm(READONLY)
        with autobatch.batch():
            values = [client.rpush("list", number) for number in range(3)]
            await look(values[-1])
            return autobatch.resolve(values)

    assert run(program, **options) == [1, 2, 3]
    assert plain.lrange("list", 0, -1) == ["0", "1", "2"]


@named
@pytest.mark.parametrize("single", [False, True])
def test_at_last_the_servers_error_is_raised(run, proxy, plain, options, single):
    async def program(client, look):
        proxy.arm(*[READONLY] * RETRIES)
        assert await look(client.incr("n")) == 1
        proxy.arm(*[READONLY] * (RETRIES + 1))
        with pytest.raises(redis.ReadOnlyError) as raised:
            await look(client.incr("n"))
        return raised.type

    assert run(program, single_connection_client=single, **options) is redis.ReadOnlyError
    assert plain.get("n") == "1"


def test_what_nobody_names_is_not_sent_again(run, proxy):
    async def program(client, look):
        proxy.arm(READONLY)
        with pytest.raises(redis.ReadOnlyError):
            await look(client.incr("n"))

    run(program)


def test_a_batch_of_which_something_ran_is_not_sent_again(run, proxy, plain):
    plain.set("text", "a")

    async def program(client, look):
        await look(client.ping())
        proxy.reset()
        with autobatch.batch():
            failed = client.lpush("text", "b")
            length = client.append("text", "c")
            await look(length)
            return type(failed.exception()), length.value

    assert run(program, retry_on_error=[redis.ResponseError]) == (redis.ResponseError, 2)
    assert proxy.names == [["LPUSH", "APPEND"]]


WRITES_THEN_FAILS = "redis.call('INCR', KEYS[1]) return redis.error_reply('ERR late')"
LIBRARY = f"""#!lua name=late
redis.register_function('late', function(KEYS) {WRITES_THEN_FAILS} end)
"""


def by_source(client):
    return client.eval(WRITES_THEN_FAILS, 1, "n")


def by_digest(client):
    return client.evalsha(hashlib.sha1(WRITES_THEN_FAILS.encode()).hexdigest(), 1, "n")


def by_function(client):
    return client.fcall("late", 1, "n")


@pytest.mark.parametrize("call", [by_source, by_digest, by_function])
@pytest.mark.parametrize("scope", [contextlib.nullcontext, autobatch.batch])
@pytest.mark.parametrize("single", [False, True])
def test_what_failed_after_it_had_written_is_not_sent_again(run, plain, call, scope, single):
    """A script's error does not tell how far it came."""
    plain.script_load(WRITES_THEN_FAILS)
    plain.function_load(LIBRARY, replace=True)

    async def program(client, look):
        with scope(), pytest.raises(redis.ResponseError, match="late"):
            await look(call(client))

    run(program, single_connection_client=single, retry_on_error=[redis.ResponseError])
    assert plain.get("n") == "1"


def test_a_script_is_sent_again_with_retry_writes(run, plain):
    async def program(client, look):
        with pytest.raises(redis.ResponseError, match="late"):
            await look(by_source(client))

    run(program, retry_writes=True, retry_on_error=[redis.ResponseError])
    assert plain.get("n") == str(1 + RETRIES)


@pytest.mark.parametrize("single", [False, True])
def test_a_lost_write_is_not_sent_again(run, proxy, plain, single):
    async def program(client, look):
        proxy.arm(Cut(reply=0))
        with pytest.raises(autobatch.errors.OutcomeUnknown):
            await look(client.incr("n"))

    run(program, single_connection_client=single, retry_on_error=[redis.ResponseError])
    assert plain.get("n") == "1"


def test_a_read_is_repeated_after_the_errors_that_are_named(run, proxy):
    """As redis-py does: whoever names no TimeoutError waits once."""

    async def program(client, look):
        proxy.arm(Swallow())
        with pytest.raises(redis.TimeoutError):
            await look(client.get("a"))

    run(program, errors=(redis.ConnectionError,), socket_timeout=TIMEOUT)
