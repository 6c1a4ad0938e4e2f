"""Threads that share a client, a scope or a Future. Each reply reaches its own command."""

from __future__ import annotations

import contextvars
import itertools
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

import autobatch
from autobatch.errors import NotReady, OutcomeUnknown
from autobatch.testing import Cut, Hold, Swallow
from common import PATIENCE, connect, meanwhile
from moments import Elsewhere, assert_told_truly

THREADS = 8


@pytest.fixture(autouse=True)
def switch_often():
    """Let threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(functions):
    """Run functions at once, each in a copy of this context; return their results."""
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait(PATIENCE)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, run, each) for each in functions]
        return [job.result(3 * PATIENCE) for job in jobs]


# ---- one scope, many threads -----------------------------------------------------------


def test_two_threads_that_force_at_once_send_once(client, proxy):
    for number in range(20):
        proxy.reset()
        with autobatch.batch():
            futures = [client.echo(f"{number}:{which}") for which in range(2)]
            values = in_threads([lambda: futures[0].value, lambda: futures[1].value])
        assert values == [f"{number}:0", f"{number}:1"]
        assert proxy.names == [["ECHO"] * 2]


def test_a_thread_waits_for_what_another_has_in_flight(proxy):
    """It neither sends again nor comes back with nothing."""
    hold = Hold()
    with connect(proxy.port) as client, autobatch.batch():
        futures = [client.echo("first"), client.echo("second")]
        proxy.arm(hold)
        with meanwhile(lambda: futures[0].value):
            assert hold.replied.wait(PATIENCE)
            assert not futures[1].done()
            forcing = threading.Event()

            def force():
                forcing.set()
                return futures[1].value

            with meanwhile(force):
                assert forcing.wait(PATIENCE)
                hold.released.set()
        assert [future.value for future in futures] == ["first", "second"]
    assert proxy.names == [["ECHO", "ECHO"]]


def test_a_later_command_follows_what_is_in_flight(proxy, plain):
    """Flushes of one scope come one after the other: the program's order holds."""
    hold = Hold()
    with connect(proxy.port) as client, autobatch.batch():
        first = client.rpush("log", "first")
        proxy.arm(hold)
        with meanwhile(lambda: first.value):
            assert hold.replied.wait(PATIENCE)
            second = client.rpush("log", "second")
            with meanwhile(lambda: second.value):
                hold.released.set()
        assert (first, second) == (1, 2)
    assert plain.lrange("log", 0, -1) == ["first", "second"]
    assert proxy.connections == 1


def test_a_scope_that_ends_waits_for_what_is_in_flight(proxy):
    """Nothing of it is left to settle when the block is over."""
    hold = Hold()
    with connect(proxy.port) as client, ThreadPoolExecutor(1) as pool:
        with autobatch.batch() as scope:
            future = client.echo("value")
            proxy.arm(hold)
            forced = pool.submit(lambda: future.value)
            assert hold.replied.wait(PATIENCE)
            assert scope.busy
            threading.Timer(0.01, hold.released.set).start()  # perhaps while the block ends
        assert future.done()
        assert not scope.busy
        assert forced.result(PATIENCE) == "value"


def test_a_failure_in_flight_reaches_every_thread(proxy):
    """The thread that waited gets the error of its own command."""
    with connect(proxy.port) as client, autobatch.batch():
        futures = [client.incr("a"), client.incr("b")]
        proxy.arm(Cut(reply=0))
        errors = in_threads([futures[0].exception, futures[1].exception])
    assert [type(error).__name__ for error in errors] == ["OutcomeUnknown"] * 2
    assert ["INCRBY a" in str(errors[0]), "INCRBY b" in str(errors[1])] == [True, True]


def test_many_threads_share_a_scope(client, proxy, plain):
    """Eight threads of 500 commands each, forced here and there: each reply is its command's."""

    def work(name):
        choice = random.Random(name)
        counts, echoes = [], []
        for number in range(250):
            counts.append(client.incr(f"count:{name}"))
            echoes.append(client.echo(f"{name}:{number}"))
            if choice.random() < 0.05:
                assert choice.choice(counts) > 0
        assert counts == list(range(1, 251))
        assert echoes == [f"{name}:{number}" for number in range(250)]

    with autobatch.batch() as scope:
        in_threads([lambda name=name: work(name) for name in range(THREADS)])
    assert scope.stats.commands == proxy.commands == THREADS * 500
    assert scope.stats.exchanges == proxy.round_trips
    assert [plain.get(f"count:{name}") for name in range(THREADS)] == ["250"] * THREADS


def test_many_threads_share_a_scope_with_small_limits(client, plain):
    """Each limit is met by many threads at once: nothing is lost, nothing is sent twice."""
    with autobatch.batch(max_commands=7) as scope:
        results = in_threads([lambda: [client.incr("n") for _ in range(100)]] * THREADS)
    assert sorted(int(n) for each in results for n in each) == list(range(1, 801))
    assert all(each == sorted(each) for each in results)
    assert scope.stats.commands == 800
    assert plain.get("n") == "800"


def test_a_scope_that_closes_under_its_threads_loses_nothing(client, plain):
    """Before the end they are queued, after it they run at once; each runs exactly once."""
    for _ in range(10):
        plain.delete("n")
        going = threading.Barrier(3)

        def work(going=going):
            going.wait(PATIENCE)
            return [client.incr("n") for _ in range(100)]

        with ThreadPoolExecutor(2) as pool:
            with autobatch.batch():
                jobs = [pool.submit(contextvars.copy_context().run, work) for _ in range(2)]
                going.wait(PATIENCE)
            results = [job.result(PATIENCE) for job in jobs]
        assert sorted(int(n) for each in results for n in each) == list(range(1, 201))
        assert plain.get("n") == "200"


def test_a_command_that_meets_the_end_of_its_scope_runs(client, plain):
    """The scope closes after the client has asked whether it is open, while it packs."""
    elsewhere = contextvars.copy_context()
    boundary = autobatch.batch()
    elsewhere.run(boundary.__enter__)
    with autobatch.batch() as scope:
        closing = elsewhere.run(lambda: client.echo("v").map(lambda value: scope.close() or value))
        future = client.set("k", closing)
        assert scope.closed
        assert future.done()
    elsewhere.run(boundary.__exit__, None, None, None)
    assert plain.get("k") == "v"


def test_errors_of_other_threads_surface_at_the_end(client, plain):
    plain.set("text", "no list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised, autobatch.batch():
        in_threads([lambda: client.lpush("text", 1)] * 3)
    assert len(raised.value.__notes__) == 3


def test_a_map_runs_once_whatever_thread_settles_it(client):
    for _ in range(20):
        calls = []
        with autobatch.batch():
            future = client.incr("n")
            mapped = [future.map(lambda value: calls.append(value) or value) for _ in range(5)]
            in_threads([lambda: future.value] + [lambda one=one: one.value for one in mapped])
        assert len(calls) == 5


def test_a_response_callback_that_waits_for_its_own_batch_is_told_so(client, plain):
    """It cannot have what is settled only after it: an error, not a deadlock."""
    holder = []
    client.set_response_callback("GET", lambda reply: holder[0].value)
    with autobatch.batch():
        future = client.get("k")
        holder.append(client.incr("n"))
        assert isinstance(future.exception(), NotReady)
        assert holder[0] == 1


# ---- many scopes, many threads ---------------------------------------------------------


def test_threads_with_a_scope_each_do_not_mix(client, proxy, plain):
    def work(name):
        for number in range(20):
            with autobatch.batch():
                values = [client.echo(f"{name}:{number}:{i}") for i in range(5)]
                count = client.incr(f"count:{name}")
            assert values == [f"{name}:{number}:{i}" for i in range(5)]
            assert count == number + 1

    in_threads([lambda name=name: work(name) for name in range(THREADS)])
    assert proxy.names == [["ECHO"] * 5 + ["INCRBY"]] * (20 * THREADS)
    assert not client.connection_pool._in_use_connections


def test_threads_outside_any_scope_do_not_mix(client):
    def work(name):
        assert [client.echo(f"{name}:{i}") for i in range(50)] == [f"{name}:{i}" for i in range(50)]

    in_threads([lambda name=name: work(name) for name in range(THREADS)])


def test_a_new_thread_has_no_scope(client, proxy):
    """A plain thread starts in an empty context, so its commands run at once."""
    with autobatch.batch():
        client.set("k", 1)
        with meanwhile(lambda: client.incr("n")):
            pass
        assert proxy.names == [["INCRBY"]]


@pytest.mark.parametrize("size", [1, 3])
def test_threads_share_a_connection_of_one_client(size, server, plain):
    """A single connection, or a pool that blocks: whoever comes second waits."""
    pool = redis.BlockingConnectionPool(port=server, max_connections=size, timeout=PATIENCE)
    with autobatch.Redis(connection_pool=pool) as client:

        def work(name):
            for number in range(20):
                with autobatch.batch():
                    values = [client.echo(f"{name}:{number}:{i}") for i in range(3)]
                assert values == [f"{name}:{number}:{i}".encode() for i in range(3)]

        in_threads([lambda name=name: work(name) for name in range(THREADS)])
    pool.disconnect()


def test_threads_share_a_single_connection_client(server, plain):
    with connect(server, single_connection_client=True) as client:

        def work(name):
            for number in range(20):
                with autobatch.batch():
                    values = [client.echo(f"{name}:{number}:{i}") for i in range(3)]
                assert client.echo(name) == name
                assert values == [f"{name}:{number}:{i}" for i in range(3)]

        in_threads([lambda name=str(name): work(name) for name in range(THREADS)])


def test_scopes_over_the_same_two_pools_do_not_wait_for_each_other(server, second_server, plain):
    """Each pool has one connection, and the threads call their clients in opposite orders."""
    pools = [
        redis.BlockingConnectionPool(port=port, max_connections=1, timeout=PATIENCE)
        for port in (server, second_server)
    ]
    clients = [autobatch.Redis(connection_pool=pool) for pool in pools]

    def work(order):
        for number in range(50):
            with autobatch.batch():
                values = [client.echo(number) for client in order]
            assert [int(value) for value in values] == [number] * 2

    in_threads([lambda: work(clients), lambda: work(clients[::-1])] * 2)
    for pool in pools:
        pool.disconnect()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_clients_that_share_pools_do_not_wait_for_each_other(server, second_server, plain, order):
    """Those with and without `retry_writes` ask for the connections in the same order."""
    pools = [
        redis.BlockingConnectionPool(port=port, max_connections=1, timeout=PATIENCE)
        for port in (server, second_server)
    ]
    clients = {
        (which, retry_writes): autobatch.Redis(connection_pool=pool, retry_writes=retry_writes)
        for which, pool in enumerate(pools)
        for retry_writes in (False, True)
    }
    for place in order:  # their wires are made in another order, so they are elsewhere in memory
        [*clients.values()][place].echo("x")

    def work(*, retry_writes):
        for turn in range(50):
            with autobatch.batch():
                values = [clients[which, retry_writes].echo(turn) for which in (0, 1)]
            assert [int(value) for value in values] == [turn] * 2

    in_threads([lambda: work(retry_writes=False), lambda: work(retry_writes=True)] * 2)
    for pool in pools:
        pool.disconnect()


def test_a_client_closed_by_another_thread_loses_no_future(proxy, plain):
    """Its connection goes away in the middle of an exchange: settled, and in step after."""
    fault = Swallow()
    with connect(proxy.port) as client:
        proxy.arm(fault)

        def close():
            assert fault.replied.wait(PATIENCE)
            client.connection_pool.disconnect()

        with meanwhile(close), autobatch.batch():
            future = client.incr("n")
            assert isinstance(future.exception(), OutcomeUnknown)
        assert plain.get("n") == "1"
        assert client.echo("in step") == "in step"


@pytest.mark.parametrize("health_check_interval", [0, 1e-9])
def test_a_connection_closed_by_another_thread_at_any_point(server, plain, health_check_interval):
    """While it is opened, or used: redis-py meets None where its socket was."""
    for number in itertools.count(1):
        plain.delete("a")
        options = {"health_check_interval": health_check_interval}
        with connect(server, **options) as client, autobatch.batch() as scope:

            def close(pool=client.connection_pool):
                # As its disconnect() does, but for the lock, which the thread that waits may hold.
                for connection in [*pool._in_use_connections]:
                    connection.disconnect()

            pushed = [client.rpush("a", count) for count in range(1, 4)]
            elsewhere = Elsewhere(number, close)
            sys.setprofile(elsewhere)
            scope.flush()
            sys.setprofile(None)
            assert_told_truly(pushed, plain)
            assert client.echo("y") == "y"
        if elsewhere.left > 0:
            break
    assert number > 100
