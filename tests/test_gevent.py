"""Under gevent: a scope to each greenlet, as docs/gevent.md promises.

The programs run in a process of their own, which gevent patches; the proxy stays outside.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import threading

import pytest

from autobatch.testing import Hold
from common import PATIENCE

pytest.importorskip("gevent")

PRELUDE = """
from gevent import monkey
monkey.patch_all()
import contextvars, sys, warnings
import gevent, redis
import autobatch
from autobatch.errors import OutcomeUnknown

warnings.simplefilter("error")
port = int(sys.argv[1])
client = autobatch.Redis(port=port, decode_responses=True)


def together(*functions):
    greenlets = [gevent.spawn(function) for function in functions]
    gevent.joinall(greenlets, raise_error=True)
    return [greenlet.value for greenlet in greenlets]


def tell(line):  # to the test
    print(line, flush=True)
"""


@pytest.fixture
def run(proxy):
    """Run a program, meanwhile what the block does; it fails where one of its asserts does."""

    @contextlib.contextmanager
    def run(program):
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program), str(proxy.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process, contextlib.ExitStack() as stack:
            timer = threading.Timer(3 * PATIENCE, process.kill)
            stack.callback(timer.cancel)
            timer.start()
            yield process
            _, complaints = process.communicate()
            assert (process.returncode, complaints) == (0, "")

    return run


def test_greenlets_with_a_scope_each_do_not_mix(run, proxy):
    """Twenty flushes are under way at once: none blocks the others, each has its own values."""
    holds = [Hold() for _ in range(20)]
    proxy.arm(*holds)
    program = """
        def work(name):
            def run():
                with autobatch.batch() as scope:
                    for step in range(3):
                        counts = [client.incr(f"{name}:{i}") for i in range(5)]
                        echo = client.echo(name)
                        gevent.sleep(0)
                        assert counts == [step + 1] * 5
                        assert echo == name
                assert scope.stats.round_trips == 3
            return run
        together(*[work(f"greenlet {number}") for number in range(20)])
        """
    with run(program):
        arrived = [hold.requested.wait(PATIENCE) for hold in holds]
        for hold in holds:
            hold.released.set()
    assert all(arrived)
    assert proxy.names == [["INCRBY"] * 5 + ["ECHO"]] * 60
    for exchange in proxy.exchanges:
        assert {args[1].rpartition(b":")[0] for args in exchange[:5]} == {exchange[5][1]}


def test_a_future_that_another_greenlet_has_in_flight(run, proxy):
    """Whoever needs it waits for that flush, without stopping the others, and sends nothing."""
    hold = Hold()
    program = """
        with autobatch.batch() as scope:
            first, second = client.incr("n"), client.echo("v")
            greenlets = [gevent.spawn(lambda: first + 0)]
            gevent.sleep(0)
            assert scope.busy and not second.done()

            def force():
                tell("forcing")
                return second + ""
            greenlets += [gevent.spawn(force), gevent.spawn(tell, "others run")]
            gevent.joinall(greenlets, raise_error=True)
        assert [greenlet.value for greenlet in greenlets[:2]] == [1, "v"]
        """
    proxy.arm(hold)
    with run(program) as process:
        told = [process.stdout.readline() for _ in range(2)]
        hold.released.set()
    assert told == ["forcing\n", "others run\n"]
    assert proxy.names == [["INCRBY", "ECHO"]]


def test_a_timeout_of_gevents_leaves_nothing_pending(run, proxy, plain):
    """It interrupts the flush: what was sent is told to be unknown, and the rest goes on."""
    hold = Hold()
    proxy.arm(hold)
    program = """
        from gevent.fileobject import FileObject

        def work():
            with autobatch.batch():
                future, other = client.incr("n"), client.incr("n")
                try:
                    future.value
                except gevent.Timeout:
                    assert isinstance(future.exception(), OutcomeUnknown)
                    assert isinstance(other.exception(), OutcomeUnknown)
                after = client.echo("in step")
            return after + ""
        greenlet = gevent.spawn(work)
        FileObject(sys.stdin).readline()
        greenlet.kill(gevent.Timeout)  # as one does that was started with a number of seconds
        assert greenlet.get() == "in step"
        """
    with run(program) as process:
        assert hold.replied.wait(PATIENCE)
        process.stdin.write("now\n")
        process.stdin.flush()
    assert plain.get("n") == "2"
    assert proxy.connections == 2


def test_what_a_killed_greenlet_has_called_is_sent(run, proxy, plain):
    program = """
        @autobatch.batch
        def work():
            client.incr("n")
            gevent.sleep(3600)
        greenlet = gevent.spawn(work)
        gevent.sleep(0)
        greenlet.kill()
        """
    with run(program):
        pass
    assert (proxy.names, plain.get("n")) == ([["INCRBY"]], "1")


def test_a_new_greenlet_has_no_scope_unless_it_is_given_one(run, proxy):
    """Like a thread: it starts with an empty context, and its commands run at once."""
    program = """
        with autobatch.batch() as scope:
            waiting = client.incr("n")
            [alone] = together(lambda: client.incr("n"))
            assert type(alone) is int
            context = contextvars.copy_context()
            shared = gevent.spawn(context.run, client.incr, "n").get()
            assert type(shared) is autobatch.Future
        assert (waiting, shared, scope.stats.round_trips) == (2, 3, 1)
        """
    with run(program):
        pass
    assert proxy.names == [["INCRBY"], ["INCRBY"] * 2]


def test_more_greenlets_than_connections(run, proxy):
    """A blocking pool lets them take turns."""
    program = """
        pool = redis.BlockingConnectionPool(port=port, max_connections=3, timeout=10)
        client = autobatch.Redis(connection_pool=pool)

        def work(name):
            def run():
                for step in range(5):
                    with autobatch.batch():
                        echoes = [client.echo(f"{name}:{step}:{i}") for i in range(3)]
                    assert [f"{name}:{step}:{i}".encode() for i in range(3)] == echoes
            return run
        together(*[work(number) for number in range(20)])
        """
    with run(program):
        pass
    assert proxy.names == [["ECHO"] * 3] * 100
    assert proxy.connections == 3
