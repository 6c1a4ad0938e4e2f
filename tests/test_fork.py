"""os.fork(): a child sends nothing of its parent's, never hangs, and both go on working.

Each test is a small program in a process of its own, since pytest's has threads.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

PRELUDE = """
import contextvars, os, signal, sys, threading, traceback
import redis
import autobatch
from autobatch.errors import AutobatchError, NotSent

port = int(sys.argv[1])
client = autobatch.Redis(port=port, decode_responses=True)
plain = redis.Redis(port=port, decode_responses=True)


def fork():
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # a child that hangs ends, and is found out
    return pid


def join(pid):
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"


def in_child(function):
    pid = fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    join(pid)
"""


@pytest.fixture
def run(server, plain):
    """Run a program that forks; it fails where one of its asserts does."""

    def run(program):
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program), str(server)],
            cwd=pathlib.Path(__file__).parent,  # where `faults` is
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    return run


def test_what_waited_before_a_fork_is_sent_by_the_parent_alone(run, plain):
    """The child's Futures say so; neither end of the block surfaces anything."""
    run("""
        with autobatch.batch():
            future = client.incr("n")
            pid = fork()
        if pid == 0:
            assert isinstance(future.exception(), NotSent)
            assert "os.fork()" in str(future.exception())
            os._exit(0)
        join(pid)
        assert future == 1
    """)
    assert plain.get("n") == "1"


def test_a_child_that_forces_gets_told_and_does_not_send(run, plain):
    run("""
        with autobatch.batch():
            future = client.incr("n")
            in_child(lambda: isinstance(future.exception(), NotSent) or sys.exit("no"))
            assert plain.get("n") is None
        assert future == 1
    """)
    assert plain.get("n") == "1"


def test_what_a_child_calls_in_an_inherited_scope_is_sent_by_the_child(run, plain):
    """Once by the child, with what the parent had queued left to the parent."""
    run("""
        with autobatch.batch():
            before = client.incr("before")
            pid = fork()
            mine = client.incr("parent" if pid else "child")
        assert mine == 1
        if pid == 0:
            os._exit(0)
        join(pid)
        assert before == 1
    """)
    assert plain.mget("before", "parent", "child") == ["1", "1", "1"]


def test_a_child_that_exits_inside_a_scope_sends_nothing_and_reports_nothing(run, plain):
    """The usual way out of a child, sys.exit, leaves the block by an exception."""
    run("""
        with autobatch.batch():
            client.incr("n")
            pid = fork()
            if pid == 0:
                sys.exit(0)
        join(pid)
    """)
    assert plain.get("n") == "1"


@pytest.mark.parametrize("outer", ["", "with autobatch.batch():"])
def test_an_atomic_block_that_forks_is_sent_by_the_parent_alone(outer, run, plain):
    run(f"""
        {outer or "if True:"}
            with autobatch.batch(atomic=True):
                future = client.incr("n")
                pid = fork()
        if pid == 0:
            assert isinstance(future.exception(), NotSent)
            os._exit(0)
        join(pid)
        assert future == 1
    """)
    assert plain.get("n") == "1"


def test_a_discarding_block_that_forks_drops_for_itself_alone(run, plain):
    run("""
        with autobatch.batch():
            with autobatch.batch(on_error="discard"):
                client.incr("n")
                pid = fork()
                if pid == 0:
                    sys.exit(0)
        join(pid)
    """)
    assert plain.get("n") == "1"


def test_what_was_settled_before_a_fork_is_known_to_both(run):
    run("""
        with autobatch.batch():
            future = client.incr("n")
            assert future == 1

            def child():
                assert future == 1
            in_child(child)
        assert future == 1
    """)


def test_a_preloaded_application_serves_from_every_worker(run, plain):
    """As under gunicorn --preload: the client was used before the workers were forked."""
    run("""
        client.ping()
        mine = client.client_id()
        workers = []
        for worker in range(4):
            pid = fork()
            if pid == 0:
                assert client.client_id() != mine
                for request in range(25):
                    with autobatch.batch() as scope:
                        echoes = [client.echo(f"{worker}:{request}:{i}") for i in range(5)]
                        client.incr("served")
                    assert echoes == [f"{worker}:{request}:{i}" for i in range(5)]
                    assert scope.stats.round_trips == 1
                os._exit(0)
            workers.append(pid)
        for request in range(25):
            with autobatch.batch():
                value = client.echo(f"parent:{request}")
            assert value == f"parent:{request}"
        for pid in workers:
            join(pid)
        assert client.client_id() == mine
    """)
    assert plain.get("served") == "100"


def test_a_single_connection_is_not_shared_with_a_child(run):
    """A reply to one process must not be read by the other."""
    run("""
        client = autobatch.Redis(port=port, single_connection_client=True)
        mine = client.client_id()

        def child():
            with autobatch.batch():
                value = client.echo("child")
            assert value == b"child"
            assert client.client_id() != mine

        in_child(child)
        assert client.client_id() == mine
    """)


IN_FLIGHT = """
    from autobatch.testing import Hold, Proxy
    from common import PATIENCE
    with Proxy(port, delay=0) as proxy, autobatch.Redis(port=proxy.port) as held_up:
        hold = Hold()
        proxy.arm(hold)
        with autobatch.batch() as scope:
            future = held_up.incr("n")
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(lambda: future.value,))
            thread.start()
            assert hold.replied.wait(PATIENCE)
            try:
                in_child(child)
            finally:
                hold.released.set()
                thread.join()
            assert future == 1
"""


@pytest.mark.parametrize(
    "child",
    [
        "assert client.incr('child') + 0 == 1",
        "client.incr('child'); scope.flush()",
        "client.incr('dropped'); scope.discard(); assert client.incr('child') + 0 == 1",
        "list(in_a_scope_of_its_own())",
        "assert client.eager.incr('child') == 1",
    ],
    ids=["force", "flush", "discard", "join=False", "eager"],
)
def test_a_child_does_not_wait_for_a_thread_of_its_parent(child, run, plain):
    """A thread has a flush in flight when another one forks: the child has no such thread."""
    run(f"""
    @autobatch.batch(join=False)
    def in_a_scope_of_its_own():
        yield client.incr("child")

    def child():
        {child}
    {IN_FLIGHT}
    """)
    assert plain.mget("n", "child", "dropped") == ["1", "1", None]


def test_what_is_in_flight_in_the_parent_is_no_riddle_in_the_child(run):
    """The child cannot have the value: the error tells that the fork is the reason."""
    run(f"""
    def child():
        error = None
        try:
            future.value
        except AutobatchError as caught:
            error = caught
        assert "fork" in str(error), error
    {IN_FLIGHT}
    """)
