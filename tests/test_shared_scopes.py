"""A scope that event loops and threads share: in both, order holds and nothing hangs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import random
import sys
import threading
import warnings

import pytest

import autobatch
import autobatch.asyncio
from autobatch.errors import OutcomeUnknown
from autobatch.testing import Hold
from common import PATIENCE, eventually
from looping import eventually as wait_until
from looping import in_loop


def in_a_thread(function):
    """Run it in this context and wait for it, without giving an event loop its turn."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(function,))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


async def flush_that_is_held(scope, proxy):
    """Let a thread flush; return what holds its replies, and the thread."""
    hold = Hold()
    proxy.arm(hold)
    flushing = threading.Thread(target=scope.flush)
    flushing.start()
    await asyncio.to_thread(hold.requested.wait, PATIENCE)
    return hold, flushing


async def somebody_awaits(tasks):
    """So the scope sends what waits when this tick ends."""
    await tasks.echo("x")


# ---- threads beside a loop -------------------------------------------------------------------


@in_loop
async def test_a_thread_flushes_what_the_loop_has_called(server, plain):
    """What is called after that comes after it, also at the end of the same tick."""

    async def calls():
        tasks.rpush("a", 1)
        in_a_thread(scope.flush)
        await tasks.rpush("a", 2)

    async with autobatch.asyncio.Redis(port=server) as tasks, autobatch.batch() as scope:
        await asyncio.gather(somebody_awaits(tasks), calls())
    assert plain.lrange("a", 0, -1) == ["1", "2"]


@in_loop
async def test_a_thread_alternates_clients_of_one_server(server, plain):
    """The loop's later calls wait for those that wait for the thread."""

    async def calls():
        sync.rpush("a", 1)
        tasks.rpush("a", 2)
        in_a_thread(scope.flush)
        await tasks.rpush("a", 3)

    sync = autobatch.Redis(port=server)
    async with autobatch.asyncio.Redis(port=server) as tasks, autobatch.batch() as scope:
        await asyncio.gather(somebody_awaits(tasks), calls())
    sync.close()
    assert plain.lrange("a", 0, -1) == ["1", "2", "3"]


@in_loop
async def test_waiting_for_what_a_thread_has_in_flight(server, client, proxy, plain):
    """Also when something else is on its way in the loop."""
    async with autobatch.asyncio.Redis(port=server) as tasks, autobatch.batch() as scope:
        held = client.set("a", 1)
        hold, flushing = await flush_that_is_held(scope, proxy)
        other = tasks.set("b", 1)
        waiting = asyncio.create_task(scope.aflush())
        assert await other
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        hold.released.set()
        await waiting
        assert held.done()
        flushing.join(PATIENCE)


@in_loop
async def test_dropping_while_a_thread_waits_for_its_server(server, client, proxy, plain):
    """The loop does not wait for it."""
    async with autobatch.asyncio.Redis(port=server) as tasks, autobatch.batch() as scope:
        held = client.set("a", 1)
        hold, flushing = await flush_that_is_held(scope, proxy)
        with pytest.raises(ZeroDivisionError), autobatch.batch(on_error="discard"):
            tasks.set("b", 1)
            raise ZeroDivisionError
        assert not held.done()
        hold.released.set()
        flushing.join(PATIENCE)
    assert plain.keys() == ["a"]


@pytest.fixture
def restless():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def push_in_thread(client, key, rng, scope):
    replies = []
    for count in range(1, 25):
        pushed = client.rpush(key, count)
        echoed = pushed.map(client.echo)
        replies += [(pushed, count), (echoed, str(count))]
        choice = rng.random()
        if choice < 0.2:
            assert rng.choice(replies)[0]
        elif choice < 0.3:
            scope.flush()
        elif choice < 0.4:
            with pytest.raises(ZeroDivisionError), autobatch.batch(on_error="discard"):
                client.llen(key)
                raise ZeroDivisionError
    return replies


async def push_in_task(tasks, key, rng, scope):
    replies = []
    for count in range(1, 50):
        pushed = tasks.rpush(key, count)
        replies += [(pushed, count), (pushed.map(tasks.echo), str(count))]
        choice = rng.random()
        if choice < 0.1:
            assert await pushed == count
        elif choice < 0.3:
            await asyncio.sleep(0)
        elif choice < 0.35:
            await scope.aflush()
            assert pushed.done()
    return replies


@pytest.mark.filterwarnings("ignore::autobatch.errors.BlockingFlushWarning")  # at a limit
@in_loop
async def test_threads_and_tasks_at_random(restless, server, client, plain):
    """RPUSH tells how many came before it: each has its own reply, in order, whoever flushes."""
    rng = random.Random(7)

    async with autobatch.asyncio.Redis(port=server, decode_responses=True) as tasks:
        for often in range(60):
            limit = rng.choice([3, 20, 10_000])
            async with autobatch.batch(max_commands=limit) as scope:
                given = [(f"{often}:{n}", random.Random(rng.random()), scope) for n in range(4)]
                replies = await asyncio.gather(
                    *(asyncio.to_thread(push_in_thread, client, *one) for one in given[:2]),
                    *(push_in_task(tasks, *one) for one in given[2:]),
                )
            for future, expected in itertools.chain(*replies):
                assert future.done()
                assert future == expected
            assert not scope.busy


@pytest.fixture
def untidy():
    """Loops that are closed without the word that asyncio.run() gives leave connections open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


# ---- several loops ---------------------------------------------------------------------------


@in_loop
async def test_a_loop_in_a_thread(server, client, plain):
    """As of code that a threadpool runs, which uses asyncio.run: it shares the request's scope."""

    async def in_the_other_loop(scope):
        for _ in range(10):
            number = tasks.rpush("a", "x")
            client.rpush("b", "x")
            other.rpush("a", "y")
            await scope.aflush()
            assert number.done()
            assert await tasks.rpush("a", "z") == number + 2

    async with (
        autobatch.asyncio.Redis(port=server) as tasks,
        autobatch.asyncio.Redis(port=server) as other,
        autobatch.batch() as scope,
    ):
        await tasks.get("a")  # so the request's loop has the connection
        await asyncio.to_thread(asyncio.run, in_the_other_loop(scope))
    assert plain.llen("a") == 30
    assert plain.llen("b") == 10


def test_loops_in_threads_at_random(restless, server, plain):
    """One of them has the connection, which serves all; so it stays until the others are done."""
    tasks = autobatch.asyncio.Redis(port=server)
    done = []
    at_the_end = threading.Barrier(3)

    async def work(name, scope):
        for count in range(1, 60):
            pushed = tasks.rpush(name, count)
            if count % 3 == 0:
                await scope.aflush()
                assert pushed.done()
            assert await pushed == count
        await asyncio.to_thread(at_the_end.wait, PATIENCE)

    def run(name, scope):
        asyncio.run(work(name, scope))
        done.append(name)

    with autobatch.batch() as scope:
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(run, name, scope), daemon=True
            )
            for name in ("a", "b", "c")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(done) == ["a", "b", "c"]


def test_a_loop_that_stops_before_its_tick_ends(untidy, server, plain):
    """Another one sends what waits."""
    tasks = autobatch.asyncio.Redis(port=server)

    async def first():
        asyncio.get_running_loop().stop()
        await tasks.rpush("a", 1)

    async def second():
        return await asyncio.wait_for(tasks.rpush("a", 2), PATIENCE)

    with autobatch.batch():
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(first())
        loop.run_forever()
        loop.close()
        assert asyncio.run(second()) == 2
    waiting._log_destroy_pending = False  # that is what this test is about
    assert plain.lrange("a", 0, -1) == ["1", "2"]


def test_a_loop_that_is_closed_with_commands_on_their_way(untidy, server, plain):
    """Who waits for them in another loop is told; they do not hold up what comes later."""
    tasks = autobatch.asyncio.Redis(port=server)
    lost = []

    async def first(scope):
        await tasks.get("a")
        lost.append(tasks.set("a", 1))
        scope.flush()

    async def second(scope):
        assert await asyncio.wait_for(tasks.set("b", 1), PATIENCE)
        await asyncio.wait_for(scope.aflush(), PATIENCE)
        with pytest.raises(OutcomeUnknown, match=r"SET a was sent, .*no event loop"):
            await asyncio.wait_for(lost[0], PATIENCE)

    with autobatch.batch() as scope:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(first(scope))
        loop.close()
        asyncio.run(second(scope))
    eventually(lambda: plain.exists("b"))


# ---- who cancels every task there is ---------------------------------------------------------


def cancel_all_others():
    """As asyncio.run() does at its end."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.parametrize("begun", [True, False], ids=["on its way", "not begun"])
@pytest.mark.parametrize("both_kinds", [True, False], ids=["of both kinds", "of asyncio"])
def test_what_waits_for_its_turn_leaves_in_order(proxy, plain, both_kinds, begun):
    """Cancelling ends the wait, not the work: each client waits for the replies of the other."""
    futures = []

    async def calls():
        async with autobatch.batch():
            futures.extend([clients[n % 2].rpush("a", n) for n in range(8)])
            await autobatch.asyncio.flush()

    async def main():
        working = asyncio.create_task(calls())
        await asyncio.sleep(0)
        if begun:
            await wait_until(lambda: plain.exists("a"))
        cancel_all_others()
        with pytest.raises(asyncio.CancelledError):
            await working

    other = autobatch.Redis if both_kinds else autobatch.asyncio.Redis
    clients = [autobatch.asyncio.Redis(port=proxy.port), other(port=proxy.port)]
    asyncio.run(main())
    assert plain.lrange("a", 0, -1) == [str(n) for n in range(8)]
    assert [future.value for future in futures] == list(range(1, 9))
    if both_kinds:
        clients[1].close()


@in_loop
async def test_cancelled_again_nothing_waits_for_its_turn(proxy, plain):
    """Who means it does not have to wait for a server that is silent."""

    async def calls():
        async with autobatch.batch():
            tasks.rpush("a", 1)
            sync.rpush("b", 2)
            await autobatch.asyncio.flush()

    sync = autobatch.Redis(port=proxy.port)
    async with autobatch.asyncio.Redis(port=proxy.port) as tasks:
        await tasks.ping()
        hold = Hold()
        proxy.arm(hold)
        working = asyncio.create_task(calls())
        await asyncio.to_thread(hold.requested.wait, PATIENCE)
        for _ in range(2):
            assert not plain.exists("b")
            cancel_all_others()
            await asyncio.sleep(0)
        await asyncio.to_thread(eventually, lambda: plain.exists("b"))
        hold.released.set()
        with pytest.raises(asyncio.CancelledError):
            await working
    sync.close()
