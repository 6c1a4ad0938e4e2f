"""Ends that nobody planned: garbage, an interpreter that exits, Ctrl-C, other interpreters.

What ends a process is tried in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
import textwrap
import threading

import pytest

import autobatch
from autobatch import batch
from autobatch.errors import OutcomeUnknown
from autobatch.testing import Cut
from common import PATIENCE, connect
from looping import in_loop, tidy
from moments import InterruptAt, assert_told_truly

PRELUDE = """
import asyncio, atexit, contextlib, gc, os, signal, sys, threading
import autobatch
from autobatch import batch

PORT = int(sys.argv[1])
client = autobatch.Redis(port=PORT, decode_responses=True)


def asynchronous():
    return autobatch.asyncio.Redis(port=PORT, decode_responses=True)
"""


@pytest.fixture
def run(server, plain):
    """Run a program; return its exit status, what it printed, and what went to its stderr."""

    def run(program, prelude=PRELUDE):
        done = subprocess.run(
            [sys.executable, "-c", prelude + textwrap.dedent(program), str(server)],
            capture_output=True,
            text=True,
            timeout=6 * PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def collect_always():
    """Let the garbage collector run wherever it can."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


# ---- garbage ---------------------------------------------------------------------------


def test_a_dropped_future_drops_no_command(client, proxy, plain):
    """It does not send it either: nothing is sent by the garbage collector."""
    with batch():
        for _ in range(10):
            client.incr("n")
            client.incr("n").map(str)
            gc.collect()
        assert proxy.names == []
    assert proxy.names == [["INCRBY"] * 20]


def test_collecting_garbage_at_any_moment_changes_nothing(client, proxy, plain, collect_always):
    cycle = []
    with batch() as scope:
        for number in range(50):
            cycle = [cycle[:1], client.incr("n"), client.get("n").map(client.echo)]
            cycle.append(cycle)  # garbage that holds pending Futures, from the next turn on
            if number % 10 == 9:
                assert cycle[1] == number + 1
        last = cycle[2]
        del cycle
    assert last == "50"
    assert plain.get("n") == "50"
    assert (scope.stats.commands, proxy.command_names.count("INCRBY")) == (150, 50)


@in_loop
async def test_collecting_garbage_at_any_moment_of_a_loop_changes_nothing(
    server, plain, collect_always
):
    client = autobatch.asyncio.Redis(port=server, decode_responses=True)

    async def work(name):
        async with batch():
            for number in range(20):
                client.incr("all")
                client.incr(name).map(client.echo)
                if number % 5 == 4:
                    assert await client.get(name) == str(number + 1)

    await asyncio.gather(*[work(f"n{i}") for i in range(5)])
    assert await client.get("all") == "100"


def test_a_scope_outlives_the_clients_that_were_called_in_it(server, plain):
    """Which are garbage while their commands wait, as those that a function makes for itself."""
    with batch():
        for _ in range(3):
            autobatch.Redis(port=server).incr("n")
            gc.collect()
        assert plain.get("n") is None
    assert plain.get("n") == "3"


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
@pytest.mark.parametrize("scoped", [False, True], ids=["outside", "in a scope"])
def test_what_an_asyncio_client_was_called_for_is_sent_when_it_is_garbage(
    scoped, used, server, plain
):
    async def call():
        client = autobatch.asyncio.Redis(port=server)
        if used:
            await client.ping()
        return client.incr("n")

    async def main():
        if not scoped:
            future = await call()
            gc.collect()
            assert await future == 1
            return
        async with batch():
            future = await call()
            gc.collect()
            for _ in range(5):  # the loop learns that the client is gone, and goes on
                await asyncio.sleep(0)
        assert future == 1

    asyncio.run(tidy(main()))
    assert plain.get("n") == "1"


# ---- the interpreter exits ---------------------------------------------------------------

ENDS = {
    "sys.exit in a scope": (
        3,
        """
        with batch():
            client.incr("n")
            sys.exit(3)
        """,
    ),
    "sys.exit in a function": (
        3,
        """
        @batch
        def main():
            client.incr("n")
            sys.exit(3)
        main()
        """,
    ),
    "a Future that nobody forced": (
        0,
        """
        with batch():
            future = client.incr("n")
        mapped = future.map(str)
        """,
    ),
    "a scope of a thread that outlives the main one": (
        0,
        """
        def work():
            with batch():
                client.incr("n")
                threading.main_thread().join()
        threading.Thread(target=work).start()
        """,
    ),
    "an atexit handler": (
        0,
        """
        @atexit.register
        @batch
        def last_words():
            count = client.incr("n")
            assert count == 1
        """,
    ),
    "an atexit handler that leaves a scope": (
        0,
        """
        stack = contextlib.ExitStack()
        stack.enter_context(batch())
        client.incr("n")
        atexit.register(stack.close)
        """,
    ),
    "sys.exit in an asyncio scope": (
        3,
        """
        async def main():
            async with batch():
                asynchronous().incr("n")
                sys.exit(3)
        asyncio.run(main())
        """,
    ),
    "a task that never ends": (
        0,
        """
        async def left():
            async with batch():
                asynchronous().incr("n")
                await asyncio.Event().wait()
        async def main():
            global task
            task = asyncio.create_task(left())
            await asyncio.sleep(0)
        asyncio.run(main())
        """,
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_was_called_is_sent_however_a_program_ends(end, run, plain):
    """Exactly once, and Python has nothing to complain about."""
    status, program = end
    assert run(program) == (status, "", "")
    assert plain.get("n") == "1"


LEFT_OPEN = {
    "a scope that was never left": """
        boundary = batch()
        boundary.__enter__()
        client.incr("n")
        """,
    "a generator that was never finished": """
        @batch
        def steps():
            client.incr("n")
            yield
        unfinished = steps()
        next(unfinished)
        """,
    "a daemon thread": """
        entered = threading.Event()
        def work():
            with batch():
                client.incr("n")
                entered.set()
                threading.Event().wait()
        threading.Thread(target=work, daemon=True).start()
        entered.wait()
        """,
}


@pytest.mark.parametrize("program", LEFT_OPEN.values(), ids=LEFT_OPEN)
def test_what_waits_in_an_open_scope_when_the_interpreter_exits_is_not_lost_in_silence(
    program, run, plain
):
    """It is sent, or it is told that it was not."""
    status, printed, complaints = run(program)
    assert (status, printed) == (0, "")
    assert plain.get("n") == "1" or "INCRBY n was not sent" in complaints
    assert "Traceback" not in complaints


UNSEEN = {
    "a scope that was never left": """
        boundary = batch()
        boundary.__enter__()
        client.incr("text")
        autobatch.flush()
        """,
    "an asyncio Future that outlives its loop": """
        async def main():
            return asynchronous().incr("text")
        future = asyncio.run(main())
        del future
        """,
}


@pytest.mark.parametrize("program", UNSEEN.values(), ids=UNSEEN)
def test_an_error_that_nobody_saw_is_logged_when_the_interpreter_exits(program, run, plain):
    plain.set("text", "no number")
    status, _, log = run(program)
    assert status == 0
    assert "INCRBY text, queued at" in log


def test_os_exit_sends_nothing(run, plain):
    """It ends the process on the spot: that is what it is for."""
    program = """
        with batch():
            client.incr("n")
            os._exit(4)
        """
    assert run(program) == (4, "", "")
    assert plain.get("n") is None


def test_daemon_threads_do_not_disturb_the_exit(run, plain):
    """Wherever they are just then: those here flush as fast as they can."""
    program = """
        going = threading.Barrier(5)
        def work():
            going.wait()
            while True:
                with batch():
                    counts = [client.incr("n") for _ in range(20)]
                assert counts[-1] - counts[0] >= 19
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        going.wait()
        while client.get("n") is None:
            pass
        """
    for _ in range(3):
        assert run(program) == (0, "", "")
    assert int(plain.get("n")) % 20 == 0  # each batch ran whole


# ---- Ctrl-C in a loop; tests/test_retry.py has it in synchronous programs ---------------


@pytest.mark.parametrize(
    "moment",
    ["client.incr('n')", "await client.ping(); client.incr('n')", "await client.incr('n')"],
    ids=["before the connection", "while it waits", "after it ran"],
)
def test_an_interrupted_loop_sends_what_was_called(moment, run, plain):
    """Once, and the program ends by the interrupt."""
    program = f"""
        async def main():
            client = asynchronous()
            async with batch():
                {moment}
                signal.raise_signal(signal.SIGINT)
                await asyncio.Event().wait()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    assert run(program) == (0, "interrupted\n", "")
    assert plain.get("n") == "1"


# ---- other loops, other interpreters -----------------------------------------------------


def test_loops_in_threads_that_come_and_go_share_a_client(server, plain):
    """Some are closed while others use the same client: each gets its own values."""
    client = autobatch.asyncio.Redis(port=server, decode_responses=True)
    wrong = []

    async def work(name):
        async with batch():
            await client.incr("all")
            values = [client.echo(f"{name}:{i}") for i in range(20)]
        wrong.extend(i for i in range(20) if values[i] != f"{name}:{i}")

    def one_loop_after_the_other(name):
        for number in range(10):
            asyncio.run(tidy(work(f"{name}:{number}")))

    threads = [threading.Thread(target=one_loop_after_the_other, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (plain.get("all"), wrong) == ("40", [])


def test_a_signal_handler_that_calls_redis_in_an_atomic_block(run):
    """Wherever the block is just then: the command is one of its own."""
    program = """
        calls = [0, 0]

        def on_alarm(*_):
            calls[1] += 1
            client.incr("handled")

        signal.signal(signal.SIGALRM, on_alarm)
        for _ in range(300):
            with batch(), batch(atomic=True):
                signal.setitimer(signal.ITIMER_REAL, 2e-4)
                for _ in range(100):
                    calls[0] += 1
                    client.incr("called")
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert [int(count) for count in client.mget("called", "handled")] == calls
    """
    assert run(program) == (0, "", "")


SUBINTERPRETER = '''
import importlib.util, os, sys
names = ["_interpreters", "_xxsubinterpreters"]  # from 3.13 on, and before
found = [name for name in names if importlib.util.find_spec(name)]
if not found:
    sys.exit("no module")
interpreters = importlib.import_module(found[0])
other = interpreters.create()
interpreters.run_string(other, f"""
import sys
sys.path[:] = {sys.path!r}
try:
    import autobatch
    client = autobatch.Redis(port={sys.argv[1]}, decode_responses=True)
    with autobatch.batch() as scope:
        count = client.incr("n")
        value = client.get("n")
    told = [count + 0, value + "", scope.stats.round_trips]
except ImportError as error:
    told = error
print(repr(told), flush=True)
""")
os._exit(0)
'''


def test_in_a_subinterpreter_it_works_or_says_that_it_does_not(run):
    """What it stands on may refuse to be imported there.

    How such an interpreter ends is not tried: CPython 3.12.1 crashes then, if asyncio was
    imported, and on 3.11 hiredis crashes in those that go on.
    """
    status, told, complaints = run(SUBINTERPRETER, prelude="")
    if "no module" in complaints:
        pytest.skip("this Python has no subinterpreters to try")
    assert (status, complaints) == (0, "")
    assert told == "[1, '1', 1]\n" or told.startswith("ImportError(")


# ---- interrupts ------------------------------------------------------------------------


def test_an_interrupt_anywhere_in_a_flush(client, proxy, plain):
    """No Future stays open or lies, and what waits is sent at the end."""
    for number in itertools.count(1):
        interrupt = InterruptAt(number)
        plain.delete("a")
        with batch() as scope:
            pushed = [client.rpush("a", count) for count in range(1, 4)]
            with contextlib.suppress(KeyboardInterrupt):
                sys.setprofile(interrupt)
                scope.flush()
            sys.setprofile(None)
            assert_told_truly(pushed, plain)
        assert all(map(autobatch.Future.done, pushed))
        assert client.echo("y") == "y"
        if interrupt.left > 0:
            break
    assert number > 20


def test_an_interrupted_callback_of_a_broken_exchange(proxy, plain):
    """What comes after it in the batch is settled all the same."""

    def interrupted(_):
        raise KeyboardInterrupt

    with connect(proxy.port) as client, batch() as scope:
        client.set_response_callback("ECHO", interrupted)
        proxy.arm(Cut(reply=7))
        futures = [client.echo("x"), client.incr("a"), client.get("b")]
        with pytest.raises(KeyboardInterrupt):
            scope.flush()
        assert [type(future.exception()) for future in futures] == [
            KeyboardInterrupt,
            OutcomeUnknown,
            OutcomeUnknown,
        ]
