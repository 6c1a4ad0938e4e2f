"""At least once instead of at most once, for the clients that ask for it: `retry_writes=True`."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Answer, Cut, Proxy, Swallow
from looping import tidy

LOST = Cut(reply=0)
TIMEOUT = 0.25  # of a socket that waits for what will not come
ALWAYS = 50  # more connections than anything here makes


@pytest.fixture
def proxy(server, plain):
    with Proxy(server, delay=0) as proxy:
        yield proxy


@pytest.fixture(params=["sync", "asyncio"])
def run(proxy, request):
    """Run a program, a coroutine function of a client, with a client of either kind."""

    def run(program, retries=3, **options):
        options = {"decode_responses": True, "retry_writes": True, **options}
        if request.param == "asyncio":
            return asyncio.run(tidy(in_a_loop(program, retries, options)))
        with autobatch.Redis(
            port=proxy.port, retry=Retry(NoBackoff(), retries), **options
        ) as client:
            return finish(program(client))

    async def in_a_loop(program, retries, options):
        client = autobatch.asyncio.Redis(
            port=proxy.port, retry=AsyncRetry(NoBackoff(), retries), **options
        )
        async with client:
            return await program(client)

    return run


def finish(program):
    """Run a coroutine that never has to wait."""
    try:
        program.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a synchronous client waits without awaiting")


async def outcomes(client, queue, *, atomic=False):
    """What becomes of the commands that a function queues, in one batch."""
    if isinstance(client, autobatch.Redis):
        with autobatch.batch() as scope:
            with autobatch.batch(atomic=atomic):
                futures = queue()
            scope.flush()
            return [future.exception() or future.value for future in futures]
    async with autobatch.batch() as scope:
        async with autobatch.batch(atomic=atomic):
            futures = queue()
        await scope.aflush()
        return [future.exception() or future.value for future in futures]


@pytest.mark.parametrize("fault", [LOST, Swallow()], ids=["cut", "timeout"])
@pytest.mark.parametrize("atomic", [False, True], ids=["batch", "atomic"])
def test_a_write_whose_reply_was_lost_is_sent_again(run, fault, atomic, proxy, plain):
    """The server ran it twice, which the program has asked for."""

    async def program(client):
        proxy.arm(fault)
        return await outcomes(
            client,
            lambda: [client.incr("n"), client.get("n"), client.rpush("l", "x")],
            atomic=atomic,
        )

    assert run(program, socket_timeout=TIMEOUT) == [2, "2", 2]
    assert (plain.get("n"), plain.llen("l")) == ("2", 2)


def test_what_was_answered_is_not_sent_again(run, proxy, plain):
    """Only what is behind the cut runs twice."""

    async def program(client):
        proxy.arm(Cut(reply=len(":1\r\n")))
        return await outcomes(
            client, lambda: [client.incr("a"), client.incr("b"), client.incr("c")]
        )

    assert run(program) == [1, 2, 2]
    assert plain.mget("a", "b", "c") == ["1", "2", "2"]


def test_when_retries_are_used_up_the_error_tells_what_may_have_happened(run, proxy, plain):
    async def program(client):
        proxy.arm(*[LOST] * ALWAYS)
        return await outcomes(client, lambda: [client.incr("n")])

    (error,) = run(program, retries=2)
    assert isinstance(error, OutcomeUnknown)
    assert "it may have run, once or several times" in str(error)
    assert plain.get("n") == "3"


def test_what_steps_aside_is_sent_again(run, proxy, plain):
    """It pops once more: that is what at least once means."""
    plain.rpush("l", "a", "b")

    async def program(client):
        proxy.arm(LOST)
        value = client.blpop("l", 1)
        return value if isinstance(value, (list, tuple)) else await value

    assert list(run(program)) == ["l", "b"]


def test_a_script_is_sent_again(run, proxy, plain):
    async def program(client):
        bump = client.register_script("return redis.call('INCR', KEYS[1])")
        proxy.arm(LOST)
        return await outcomes(client, lambda: [bump(keys=["n"])])

    assert run(program) == [2]


def test_an_error_of_the_server_is_no_reason(run, proxy):
    """It was answered."""

    async def program(client):
        proxy.arm(Answer(b"-ERR no\r\n"))
        return await outcomes(client, lambda: [client.incr("n")])

    (error,) = run(program)
    assert isinstance(error, redis.ResponseError)
    assert proxy.command_names.count("INCRBY") == 1


def test_without_it_nothing_is_sent_again(run, proxy, plain):
    async def program(client):
        proxy.arm(LOST)
        return await outcomes(client, lambda: [client.incr("n")])

    (error,) = run(program, retry_writes=False)
    assert isinstance(error, OutcomeUnknown)
    assert plain.get("n") == "1"


def test_one_pool_serves_clients_of_both_kinds(proxy, plain):
    """Each keeps its own promise, and their commands keep their order."""
    with redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 1)) as pool:
        careful = autobatch.wrap(pool)
        eager = autobatch.wrap(careful, retry_writes=True)
        assert (careful.retry_writes, eager.retry_writes) == (False, True)
        assert autobatch.wrap(eager) is eager
        assert autobatch.wrap(eager.eager, retry_writes=True) is eager
        assert not autobatch.wrap(eager, retry_writes=False).retry_writes
        proxy.arm(LOST, LOST)
        with autobatch.batch():
            lost, repeated, after = careful.incr("a"), eager.incr("b"), careful.get("a")
            assert isinstance(lost.exception(), OutcomeUnknown)
            assert (repeated, after) == (2, b"1")


@pytest.mark.parametrize("kind", [autobatch.Redis, autobatch.asyncio.Redis])
def test_a_url_takes_it(kind):
    assert kind.from_url("redis://localhost", retry_writes=True).retry_writes
    assert not kind.from_url("redis://localhost").retry_writes


def test_what_cannot_be_sent_is_not_sent(run, proxy):
    async def program(client):
        proxy.refuse()
        return await outcomes(client, lambda: [client.incr("n")])

    (error,) = run(program, retries=1)
    assert isinstance(error, NotSent)
