"""Records: each flush says why it left, what forced it and where, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import json
import logging
import os
import sys
import threading
import weakref

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch import report
from autobatch.command import Command
from autobatch.errors import NotReady, OutcomeUnknown
from autobatch.future import promise_of
from autobatch.report import Place, Reason
from autobatch.testing import Answer, Cut, Hold
from common import PATIENCE, connect, meanwhile
from looping import eventually as eventually_in_loop
from looping import in_loop
from recorded import marked, recording


@pytest.fixture
def records():
    with recording() as records:
        yield records


def line_of(place):
    """Return a place's line, when it is one of this file."""
    assert place.file == __file__
    return place.line


@contextlib.asynccontextmanager
async def asyncio_client(port, **options):
    client = autobatch.asyncio.Redis(port=port, decode_responses=True, **options)
    try:
        yield client
    finally:
        await client.aclose()


# ---- reasons and places ------------------------------------------------------------------


def test_forced(client, records):
    """The line that needed the value, the function, what for, and the lines that called."""
    with autobatch.batch():
        client.set("a", 1)  # sets
        value = client.get("a")  # gets
        assert value == "1"  # compares
    (flush,) = records.flushes
    assert flush.reason is Reason.FORCED
    assert line_of(flush.place) == marked("compares")
    assert flush.place.function == "test_forced"
    assert (flush.use, flush.forced) == ("eq", 1)
    assert [str(command) for command in flush.commands] == ["SET a", "GET a"]
    assert [line_of(c.place) for c in flush.commands] == [marked("sets"), marked("gets")]
    assert {c.place.function for c in flush.commands} == {"test_forced"}
    assert [command.read_only for command in flush.commands] == [False, True]
    assert flush.commands[0].server == f"localhost:{client_port(client)}/0"
    assert [(f.place, f.use, f.command) for f in flush.forces] == [(flush.place, "eq", 1)]


def client_port(client):
    return client.connection_pool.connection_kwargs["port"]


@pytest.mark.parametrize(
    ("use", "need"),
    [
        ("bool", lambda value, _: bool(value)),
        ("eq", lambda value, _: value == 1),
        ("lt", lambda value, _: value < "x"),
        ("iter", lambda value, _: list(value)),
        ("len", lambda value, _: len(value)),
        ("getitem", lambda value, _: value[0]),
        ("contains", lambda value, _: "x" in value),
        ("add", lambda value, _: value + "x"),
        ("add", lambda value, _: "x" + value),
        ("int", lambda value, _: int(value)),
        ("index", lambda value, _: range(10)[: value.map(int)]),
        ("hash", lambda value, _: hash(value)),
        ("str", lambda value, _: str(value)),
        ("format", lambda value, _: f"{value}"),
        ("attribute", lambda value, _: value.upper()),
        ("class", lambda value, _: isinstance(value, str)),
        ("exception", lambda value, _: value.exception()),
        ("value", lambda value, _: value.value),
        ("value", lambda value, _: autobatch.unwrap(value)),
        ("value", lambda value, _: autobatch.resolve({"a": [value]})),
        ("argument", lambda value, client: client.get(value)),
        ("argument", lambda value, client: client.set("b", value)),
        ("argument", lambda value, client: client.set("b", "x", ex=value.map(int))),
        ("argument", lambda value, client: client.set(name="b", value="x", px=value.map(int))),
        ("argument", lambda value, client: client.hset("h", mapping={"f": value})),
        ("argument", lambda value, client: client.execute_command("GET", value)),
        ("argument", lambda value, client: client.pipeline().get(value)),
        ("argument", lambda value, client: client.mget([value, "b"])),
    ],
)
def test_what_for(client, records, plain, use, need):
    """`use` names what the program did with the value."""
    plain.set("a", "5")
    with autobatch.batch():
        need(client.get("a"), client)
    flush = records.flushes[0]
    assert (flush.reason, flush.use, flush.forced) == (Reason.FORCED, use, 0)
    assert flush.place.function == "<lambda>"
    assert flush.place.file == __file__


def test_what_for_on_redis_py_s_own_loops(client, records, plain):
    """`scan_iter` looks at the values itself."""
    plain.set("a", "5")
    with autobatch.batch():
        assert list(client.scan_iter()) == ["a"]  # scans
        with pytest.raises(KeyError):
            client["missing"]  # looks up
    assert [flush.use for flush in records.flushes] == ["iter", "value"]
    assert [line_of(f.place) for f in records.flushes] == [marked("scans"), marked("looks up")]


def test_looking_is_no_force(client, records):
    """repr() and done() flush nothing, so they are not recorded."""
    with autobatch.batch():
        value = client.get("a")
        repr(value)
        assert not value.done()
    assert records.reasons == ["end"]


def test_end(client, records):
    """No line made it leave."""
    with autobatch.batch():
        client.set("a", 1)
        client.set("b", 1)
    (flush,) = records.flushes
    assert (flush.reason, flush.place, flush.use, flush.forced) == (Reason.END, None, None, None)
    assert flush.forces == []
    assert (flush.round_trips, flush.exchanges, flush.saved) == (1, 1, 1)


@pytest.mark.parametrize("limits", [{"max_commands": 2}, {"max_bytes": 54}])
def test_limit(client, records, limits):
    """Each time that so many wait."""
    with autobatch.batch(**limits):
        for number in range(5):
            client.set("a", number)
    assert records.reasons == ["limit", "limit", "end"]
    assert [len(flush.commands) for flush in records.flushes] == [2, 2, 1]


def test_explicit(client, records):
    """The line that says so, of the module's function and of the scope's."""
    with autobatch.batch() as scope:
        client.set("a", 1)
        autobatch.flush()  # flushes the ambient one
        autobatch.flush()
        client.set("a", 1)
        scope.flush()  # flushes its scope
    assert records.reasons == ["explicit", "explicit"]
    assert [line_of(flush.place) for flush in records.flushes] == [
        marked("flushes the ambient one"),
        marked("flushes its scope"),
    ]


def test_aside(client, records):
    """What came, and the command itself, which runs alone."""
    with autobatch.batch():
        client.set("a", 1)
        client.blpop("list", timeout=0.01)  # blocks
        client.set("a", 1)
        client.pipeline().ping().execute()  # runs a pipeline
    aside, alone, again = records.flushes
    assert (aside.reason, alone.reason, again.reason) == ("stepped aside", "alone", "stepped aside")
    assert line_of(aside.place) == line_of(alone.place) == marked("blocks")
    assert line_of(again.place) == marked("runs a pipeline")
    assert [str(command) for command in alone.commands] == ["BLPOP"]
    assert line_of(alone.commands[0].place) == marked("blocks")
    assert alone.commands[0].server == f"localhost:{client_port(client)}/0"


def test_a_scope_of_its_own_steps_aside(client, records):
    """What waits around it leaves first, at its line; it tells whose it is."""
    with autobatch.batch():
        client.set("a", 1)
        with autobatch.batch(join=False):  # opens one
            client.set("b", 1)
    assert records.reasons == ["stepped aside", "end"]
    assert line_of(records.flushes[0].place) == marked("opens one")
    inner, outer = records.scopes
    assert inner.parent == outer.name
    assert outer.parent is None
    assert inner.name.endswith(f"test_report.py:{marked('opens one')}")


def test_outside_any_scope(client, records):
    """A call that runs at once is told of, too; it is of no scope that ends."""
    client.set("a", 1)  # sets alone
    with pytest.raises(redis_py.ResponseError):
        client.incr("a", "x")
    first, failed = records.flushes
    assert first.reason is failed.reason is Reason.ALONE
    assert line_of(first.place) == line_of(first.commands[0].place) == marked("sets alone")
    assert failed.errors == failed.commands
    assert first.scope.name == "outside any scope"
    assert records.scopes == []


def test_eager(client, records):
    """The eager view makes what waits step aside, and runs alone."""
    with autobatch.batch():
        client.set("a", 1)
        assert client.eager.get("a") == "1"
    assert records.reasons == ["stepped aside", "alone"]


# ---- places in all kinds of code ---------------------------------------------------------


def test_places_in_comprehensions(client, records):
    """Lines, not where the comprehension begins."""
    with autobatch.batch():
        futures = [
            client.get(key)  # gets in a comprehension
            for key in ("a", "b")
        ]
        [
            value
            for value in futures
            if value == 1  # compares in a comprehension
        ]
    (flush,) = records.flushes
    gets = marked("gets in a comprehension")
    assert [line_of(command.place) for command in flush.commands] == [gets, gets]
    assert line_of(flush.place) == marked("compares in a comprehension")
    assert flush.place.function.startswith("test_places_in_comprehensions")


def passing(function):
    """A decorator of the program's own."""

    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Thing:
    """What the program is made of."""

    @autobatch.batch
    def load(self, client):
        return client.get("a")  # gets in a method

    @passing
    @passing
    def look(self, value):
        return bool(value)  # looks in a method


def test_places_in_methods_and_decorators(client, records):
    """Qualified names; the wrappers are callers."""
    with autobatch.batch():
        thing = Thing()
        thing.look(thing.load(client))  # calls both
    (flush,) = records.flushes
    (command,) = flush.commands
    assert (line_of(command.place), command.place.function) == (
        marked("gets in a method"),
        "Thing.load",
    )
    assert (line_of(flush.place), flush.place.function) == (
        marked("looks in a method"),
        "Thing.look",
    )
    (force,) = flush.forces
    assert [place.function for place in force.callers[:3]] == [
        "passing.<locals>.wrapper",
        "passing.<locals>.wrapper",
        "test_places_in_methods_and_decorators",
    ]
    assert line_of(force.callers[2]) == line_of(command.callers[0]) == marked("calls both")


def test_places_in_nested_functions_and_generators(client, records):
    """Of a generator, the line where it goes on."""

    @autobatch.batch
    def generate():
        for key in ("a", "b"):
            future = client.get(key)  # gets in a generator
            yield future
            assert not future  # looks in a generator

    def consume():
        return list(generate())

    consume()
    assert records.reasons == ["forced", "forced"]
    for flush in records.flushes:
        assert line_of(flush.place) == marked("looks in a generator")
        assert line_of(flush.commands[0].place) == marked("gets in a generator")
        assert flush.place.function.endswith("<locals>.generate")


def test_a_call_over_several_lines(client, records):
    """It is where its name is; the span covers all of it."""
    with autobatch.batch():
        client.set(  # begins here
            "a",
            1,
        )
    place = records.flushes[0].commands[0].place
    assert line_of(place) == marked("begins here")
    assert place.span[1] == place.line + 3


def test_two_calls_in_one_line_are_told_apart(client, records):
    """By their columns."""
    with autobatch.batch():
        _ = client.get("a"), client.get("b")
    first, second = [command.place for command in records.flushes[0].commands]
    assert first.line == second.line
    assert first.span[0] < second.span[0]


def test_places_of_what_map_calls(client, records, plain):
    """Commands called by a function given to map() leave in a flush of the same cause."""
    plain.mset({"a": "b", "b": "c"})
    with autobatch.batch():
        value = client.get("a").map(
            lambda key: client.get(str(key))  # gets in map
        )
        assert value == "c"  # compares what map gave
    assert records.reasons == ["forced", "forced"]
    first, second = records.flushes
    assert line_of(first.place) == line_of(second.place) == marked("compares what map gave")
    assert (first.forced, second.forced) == (0, 0)
    assert line_of(second.commands[0].place) == marked("gets in map")


def test_the_end_with_map(client, records, plain):
    """Wave after wave is of the end."""
    plain.mset({"a": "b", "b": "c"})
    with autobatch.batch():
        client.get("a").map(client.get).map(client.get)
    assert records.reasons == ["end", "end", "end"]


# ---- asyncio -----------------------------------------------------------------------------


@in_loop
async def test_awaited(server, plain, records):
    """The line of the `await`, in a coroutine function and in what it awaits."""

    async def load(client):
        value = client.get("a")  # gets to await
        return await value  # awaits

    async with asyncio_client(server) as client, autobatch.batch():
        await load(client)  # awaits the function
    (flush,) = records.flushes
    assert (flush.reason, flush.use, flush.forced) == (Reason.FORCED, "await", 0)
    assert line_of(flush.place) == marked("awaits")
    assert flush.place.function == "test_awaited.<locals>.load"
    (force,) = flush.forces
    assert line_of(force.callers[0]) == marked("awaits the function")
    assert line_of(flush.commands[0].callers[0]) == marked("awaits the function")
    assert flush.finished >= flush.started
    assert flush.exchanges == flush.round_trips == 1


@in_loop
async def test_gathered_tasks_and_who_awaits(server, plain, records):
    """One flush; the first that awaited caused it, and the others are told, too."""

    async def first(client):
        return await client.get("a")  # awaits first

    async def second(client):
        return await client.get("b")  # awaits second

    async with asyncio_client(server) as client, autobatch.batch():
        await asyncio.gather(first(client), second(client), second(client))
    (flush,) = records.flushes
    assert line_of(flush.place) == marked("awaits first")
    assert [(line_of(force.place), force.command) for force in flush.forces] == [
        (marked("awaits first"), 0),
        (marked("awaits second"), 1),
        (marked("awaits second"), 2),
    ]


@in_loop
async def test_gathered_futures(server, plain, records):
    """The event loop drives them, so no line of the program forced it."""
    async with asyncio_client(server) as client, autobatch.batch():
        await asyncio.gather(client.get("a"), client.get("b"))
    (flush,) = records.flushes
    assert (flush.reason, flush.place, flush.use) == (Reason.FORCED, None, "await")
    assert [force.command for force in flush.forces] == [0, 1]
    assert [command.place.function for command in flush.commands] == [
        "test_gathered_futures",
        "test_gathered_futures",
    ]


@in_loop
async def test_what_stands_between(server, plain, records):
    """A function of asyncio is not where the program awaits."""
    async with asyncio_client(server) as client, autobatch.batch():
        await asyncio.wait_for(client.get("a"), 10)  # waits for it
    (flush,) = records.flushes
    assert (flush.reason, flush.use) == (Reason.FORCED, "await")
    # Before Python 3.12 it waits for a task of its own, which the event loop drives.
    expected = None if sys.version_info < (3, 12) else marked("waits for it")
    assert (flush.place and line_of(flush.place)) == expected


@in_loop
async def test_places_of_what_map_calls_with_asyncio(server, plain, records):
    """A function of the program has a line; what an event loop calls has none."""
    plain.mset({"a": "b", "b": "c"})
    async with asyncio_client(server) as client:
        async with autobatch.batch():
            value = client.get("a").map(
                lambda key: client.get(str(key))  # gets in map with asyncio
            )
            assert await value == "c"
        async with autobatch.batch():
            assert await client.get("a").map(client.get) == "c"
    first, second, _, fourth = records.flushes
    assert (first.use, second.use, fourth.use) == ("await", "await", "await")
    assert second.reason is fourth.reason is Reason.FORCED
    assert second.place is fourth.place is None
    assert line_of(second.commands[0].place) == marked("gets in map with asyncio")
    assert fourth.commands[0].place is None


@in_loop
async def test_touched_too_early(server, plain, records):
    """That raised, so it did not cause the flush that came later."""
    async with asyncio_client(server) as client:
        async with autobatch.batch():
            value = client.get("a")
            with pytest.raises(NotReady):
                bool(value)
            await value  # awaits after all
        async with autobatch.batch():
            with pytest.raises(NotReady):
                bool(client.get("a"))
    first, second = records.flushes
    assert (line_of(first.place), first.use) == (marked("awaits after all"), "await")
    assert second.reason is Reason.END


@in_loop
async def test_aflush(server, plain, records):
    """The line that says so."""
    async with asyncio_client(server) as client, autobatch.batch() as scope:
        client.set("a", 1)
        await scope.aflush()  # flushes and waits
        client.set("a", 1)
        await autobatch.asyncio.flush()  # flushes the ambient one and waits
    assert records.reasons == ["explicit", "explicit"]
    assert [line_of(flush.place) for flush in records.flushes] == [
        marked("flushes and waits"),
        marked("flushes the ambient one and waits"),
    ]


@in_loop
async def test_aside_in_asyncio(server, plain, records):
    """What came, and the command itself."""
    async with asyncio_client(server) as client, autobatch.batch():
        client.set("a", 1)
        await client.blpop("list", timeout=0.01)  # blocks in asyncio
    aside, alone = records.flushes
    assert (aside.reason, alone.reason) == ("stepped aside", "alone")
    assert line_of(aside.place) == line_of(alone.place) == marked("blocks in asyncio")


@in_loop
async def test_ticks_outside_any_scope(server, plain, records):
    """Each is a flush of its own."""
    async with asyncio_client(server) as client:
        await asyncio.gather(client.get("a"), client.get("b"))
        await client.get("a")
    assert records.reasons == ["tick", "tick"]
    assert records.names == [["GET", "GET"], ["GET"]]
    assert {flush.scope.name for flush in records.flushes} == {"outside any scope"}
    assert {flush.place for flush in records.flushes} == {None}


@in_loop
async def test_a_synchronous_client_on_a_loop(server, plain, records):
    """It is forced as anywhere."""
    with connect(server) as client:
        async with autobatch.batch():
            client.set("a", 1)
            client.get("a")
    (flush,) = records.flushes
    assert flush.reason is Reason.END
    assert flush.exchanges == 1


@in_loop
async def test_a_cancelled_scope(proxy, records):
    """Its record comes when the last reply has, once, with all its flushes."""
    hold = Hold()
    async with asyncio_client(proxy.port) as client:
        await client.ping()
        records.flushes.clear()
        proxy.arm(hold)
        entered = asyncio.Event()

        async def work():
            async with autobatch.batch():
                client.set("a", 1)
                client.set("b", 1)
                entered.set()

        task = asyncio.create_task(work())
        await entered.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert records.scopes == []
        hold.released.set()
        await eventually_in_loop(lambda: records.scopes)
    (scope,) = records.scopes
    assert scope.commands == 2
    assert [flush.reason for flush in scope.flushes] == ["end"]


@in_loop
async def test_a_scope_that_is_cancelled_before_anything_left(server, plain, records):
    """Its commands leave all the same, and its record comes after that, once."""
    async with asyncio_client(server) as client:
        client_called = asyncio.Event()

        async def work():
            async with autobatch.batch():
                client.set("a", 1)
                client_called.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await client_called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually_in_loop(lambda: records.scopes)
    (scope,) = records.scopes
    assert scope.commands == 1
    assert plain.get("a") == "1"


# ---- what became of the commands -----------------------------------------------------------


def test_errors(client, records, plain):
    """Each that failed says what with, and nothing of what may be secret."""
    plain.set("text", "x")
    with autobatch.batch():
        client.set("a", "first secret")
        failed = client.lpush("text", "second secret")
        bad = client.execute_command("SET", "a", "third-secret", "BAD")
        assert isinstance(failed.exception(), redis_py.ResponseError)
        bad.exception()
    (flush,) = records.flushes
    assert flush.commands[0].error is None
    assert [str(command) for command in flush.errors] == ["LPUSH text", "SET a"]
    assert flush.errors[0].error.startswith("ResponseError: WRONGTYPE")
    assert "2 failed" in str(flush)
    assert "secret" not in repr(flush) + repr(records.scopes) + str(flush)


def test_errors_command_no_terminal(client, records):
    """What a script says may come from anywhere."""
    with autobatch.batch():
        failed = client.eval("return redis.error_reply('BAD \\27[2J')", 0)
        assert isinstance(failed.exception(), redis_py.ResponseError)
    (flush,) = records.flushes
    assert flush.errors[0].error == r"ResponseError: ... \x1b[..."


def test_no_values(client, records):
    """Of all that is known, keys alone are told, and shortened."""
    long = "k" * 1000
    with autobatch.batch():
        client.set(long, "secret")
        client.hset("hash", mapping={"secret field": "secret"})
        client.eval("return 'secret'", 0)
        client.config_set("maxmemory", 0)
    told = repr(records.flushes) + "".join(map(str, records.flushes))
    assert "secret" not in told
    assert max(len(str(command)) for command in records.flushes[0].commands) < 100
    assert [command.key for command in records.flushes[0].commands][2] is None


def test_a_read_that_is_sent_again(proxy, plain, records):
    """It says so, and each time counts as a round trip."""
    plain.set("a", "x")
    with connect(proxy.port) as client:
        client.ping()
        records.flushes.clear()
        proxy.arm(Cut(reply=0))
        with autobatch.batch():
            assert client.get("a") == "x"
    (flush,) = records.flushes
    assert (flush.retries, flush.commands[0].sent) == (1, 2)
    assert flush.round_trips == flush.exchanges == 2
    assert flush.errors == []
    assert records.scopes[0].round_trips == 2


def test_a_write_whose_reply_was_lost(proxy, plain, records):
    """It was sent once, and nobody knows."""
    with connect(proxy.port) as client:
        client.ping()
        records.flushes.clear()
        proxy.arm(Cut(reply=0))
        with autobatch.batch():
            assert isinstance(client.incr("a").exception(), OutcomeUnknown)
    (flush,) = records.flushes
    assert flush.retries == 0
    assert flush.commands[0].error.startswith("OutcomeUnknown: INCRBY a was sent")


def test_a_server_that_is_loading(proxy, plain, records):
    """What it refuses is sent again, as often as the client retries."""
    with connect(proxy.port, retry=Retry(NoBackoff(), 2)) as client:
        client.ping()
        records.flushes.clear()
        loading = Answer(b"-LOADING the dataset is in memory\r\n")
        proxy.arm(*[loading] * 10)
        with autobatch.batch():
            answer = client.get("a").exception()
        proxy.arm()
    (flush,) = records.flushes
    assert isinstance(answer, redis_py.exceptions.BusyLoadingError) == bool(flush.errors)
    assert flush.commands[0].sent == flush.round_trips == flush.exchanges == 3


@in_loop
async def test_a_read_that_is_sent_again_in_asyncio(proxy, plain, records):
    """As in the synchronous client."""
    async with asyncio_client(proxy.port) as client:
        await client.ping()
        records.flushes.clear()
        proxy.arm(Cut(reply=0))
        async with autobatch.batch():
            assert await client.get("a") is None
    (flush,) = records.flushes
    assert (flush.commands[0].sent, flush.errors) == (2, [])


def test_durations(proxy, plain, records):
    """Called, then started, then finished; a reply that is late makes it long."""
    hold = Hold()
    with connect(proxy.port) as client:
        client.ping()
        proxy.arm(hold)
        records.flushes.clear()

        def release():
            hold.replied.wait(PATIENCE)
            threading.Event().wait(0.05)
            hold.released.set()

        with meanwhile(release), autobatch.batch():
            client.set("a", 1)
            client.set("b", 1)
    (flush,) = records.flushes
    first, second = [command.called for command in flush.commands]
    assert first < second < flush.started < flush.finished
    assert flush.queued == flush.started - first
    assert flush.duration >= 0.05
    (scope,) = records.scopes
    assert scope.opened < first
    assert flush.finished < scope.closed
    assert scope.duration > flush.duration
    assert flush.size == sum(command.size for command in flush.commands)
    assert flush.commands[0].size == len(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n")


def test_several_servers(client, second_server, records):
    """One wait, an exchange with each."""
    with connect(second_server) as other, autobatch.batch():
        client.set("a", 1)
        other.set("a", 1)
        client.set("b", 1)
    (flush,) = records.flushes
    assert (flush.round_trips, flush.exchanges) == (1, 2)
    assert [command.server for command in flush.commands] == [
        f"localhost:{client_port(client)}/0",
        f"localhost:{second_server}/0",
        f"localhost:{client_port(client)}/0",
    ]


def test_two_clients_of_one_server(client, server, plain, records):
    """Where their calls alternate, the order takes waves, and each is a round trip."""
    with (
        connect(server) as one,
        autobatch.Redis(port=server, db=0, client_name="other") as other,
        autobatch.batch(),
    ):
        one.set("a", 1)
        other.set("a", 2)
        one.set("a", 3)
    (flush,) = records.flushes
    assert (flush.round_trips, flush.exchanges, flush.saved) == (3, 3, 0)
    assert len(flush.commands) == 3
    assert plain.get("a") == "3"


def test_a_transaction(client, proxy, records):
    """Its commands say which one they are of, when they were called, and from where."""
    with autobatch.batch():
        client.set("a", 1)
        with autobatch.batch(atomic=True):
            client.incr("a")  # increments
            client.incr("b")
        with autobatch.batch(atomic=True):
            client.incr("c")
    (flush,) = records.flushes
    assert [command.transaction for command in flush.commands] == [None, 0, 0, 1]
    assert line_of(flush.commands[1].place) == marked("increments")
    called = [command.called for command in flush.commands]
    assert called == sorted(set(called))
    contexts = [command.contexts[records.subscription] for command in flush.commands]
    assert contexts == [1, 2, 3, 4][:1] + contexts[1:]
    assert len(set(contexts)) == 4


def test_a_transaction_that_was_dropped(client, proxy, records):
    """Nothing of it was sent, so nothing is told."""
    with autobatch.batch():
        client.set("a", 1)
        with contextlib.suppress(ZeroDivisionError), autobatch.batch(atomic=True):
            client.incr("a")
            1 / 0
    assert [[str(c) for c in flush.commands] for flush in records.flushes] == [["SET a"]]


def test_an_atomic_block_alone_that_cannot_be_sent(cluster, records):
    """The scope ends, with a record."""
    with (
        cluster_client(cluster) as client,
        pytest.raises(autobatch.errors.AutobatchError),
        autobatch.batch(atomic=True),
    ):
        client.set("a", 1)
        client.set("b", 1)
    (scope,) = records.scopes
    assert scope.commands == 0
    assert scope.closed > 0


def cluster_client(cluster):
    return autobatch.RedisCluster(
        host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
    )


def test_what_is_discarded(client, records):
    """It was not sent, so it is in no record; the rest is."""
    with autobatch.batch() as scope:
        client.set("a", 1)
        scope.discard()
        client.set("b", 1)
        with contextlib.suppress(ZeroDivisionError), autobatch.batch(on_error="discard"):
            client.set("c", 1)
            1 / 0
        client.set("d", 1)
    assert [[str(c) for c in flush.commands] for flush in records.flushes] == [["SET b", "SET d"]]


def test_a_scope_that_sends_nothing(records):
    """It is told of, as one without flushes."""
    with autobatch.batch():
        pass
    (scope,) = records.scopes
    assert (list(scope.flushes), scope.commands, scope.round_trips, scope.saved) == ([], 0, 0, 0)


def test_scripts(client, proxy, plain, records):
    """Their names and places; neither source nor arguments."""
    script = client.register_script("return ARGV[1] .. 'secret'")
    with autobatch.batch():
        value = script(keys=["a"], args=["secret"])  # calls a script
        assert value == "secretsecret"
    (flush,) = records.flushes
    (command,) = flush.commands
    assert (command.name, command.key) == ("EVALSHA", None)
    assert line_of(command.place) == marked("calls a script")
    assert "secret" not in repr(flush)


# ---- clusters ------------------------------------------------------------------------------


def test_a_cluster(cluster, records):
    """One wait, an exchange with each node."""
    with cluster_client(cluster) as client, autobatch.batch():
        for number in range(30):
            client.set(f"key{number}", number)
    (scope,) = records.scopes
    (flush,) = scope.flushes
    assert (flush.round_trips, flush.exchanges, len(flush.commands)) == (1, 3, 30)
    assert [str(command) for command in flush.commands] == [f"SET key{i}" for i in range(30)]


def test_a_command_that_was_redirected(cluster, records):
    """It is sent again, alone, and counts."""
    with cluster_client(cluster) as client:
        client.get("key1")
        slot = client.keyslot("key1")
        other = next(port for port in cluster.primaries if port != cluster.owner(slot))
        cluster.migrate_slot(slot, other)
        records.flushes.clear()
        with autobatch.batch():
            client.get("key1")
            client.get("key2")
    (flush,) = records.flushes
    assert [command.sent for command in flush.commands] == [2, 1]
    assert (flush.retries, flush.round_trips, flush.errors) == (1, 2, [])
    assert records.scopes[0].round_trips == 2


@in_loop
async def test_a_command_that_was_redirected_in_asyncio(cluster, records):
    """As in the synchronous client."""
    client = autobatch.asyncio.RedisCluster(
        host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
    )
    await client.get("key1")
    slot = client.keyslot("key1")
    other = next(port for port in cluster.primaries if port != cluster.owner(slot))
    cluster.migrate_slot(slot, other)
    records.flushes.clear()
    async with autobatch.batch():
        client.get("key1")
        client.get("key2")
    await client.aclose()
    (flush,) = records.flushes
    assert [command.sent for command in flush.commands] == [2, 1]
    assert flush.reason is Reason.END
    assert len(flush.commands) == 2


# ---- threads, forks, lifetimes -------------------------------------------------------------


def test_threads_that_share_a_scope(client, records):
    """Each command is in one record; who forced is told by thread."""
    threads, each = 8, 200

    def work(number):
        for turn in range(each):
            value = client.incr(f"{number}")
            if turn % 10 == 0:
                assert value == turn + 1

    with autobatch.batch() as scope:
        context = contextvars.copy_context()
        running = [
            threading.Thread(target=context.copy().run, args=(work, number))
            for number in range(threads)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert sum(len(flush.commands) for flush in records.flushes) == threads * each
    (told,) = records.scopes
    assert told.commands == threads * each == scope.stats.commands
    assert told.round_trips == scope.stats.round_trips == len(records.flushes)
    assert set(records.reasons) <= {"forced", "end"}


def test_a_thread_that_waits_for_another_s_flush(proxy, plain, records):
    """What it waited for was no cause of the next flush."""
    hold = Hold()
    with connect(proxy.port) as client, autobatch.batch():
        client.ping()
        autobatch.flush()
        records.flushes.clear()
        first = client.get("a")
        proxy.arm(hold)
        context = contextvars.copy_context()
        forcing = threading.Thread(target=context.copy().run, args=(bool, first))
        forcing.start()
        assert hold.replied.wait(PATIENCE)
        client.get("b")
        waiting = threading.Thread(target=context.copy().run, args=(first.done,))
        waiting.start()
        waiting.join()
        second = threading.Thread(target=context.copy().run, args=(bool, first))
        second.start()
        hold.released.set()
        forcing.join()
        second.join()
    assert records.names == [["GET"], ["GET"]]
    assert records.reasons == ["forced", "end"]
    assert records.flushes[1].forces == []


def test_a_fork(client, proxy, plain, records, tmp_path):
    """The child records what it sends itself; the parent's record is the parent's."""
    told = tmp_path / "told"
    with autobatch.batch():
        client.set("a", 1)
        pid = os.fork()
        if pid == 0:
            client.set("b", 1)
            autobatch.flush()
            names = [[str(command) for command in f.commands] for f in records.flushes]
            told.write_text(json.dumps(names))
            os._exit(0)
        os.waitpid(pid, 0)
    assert json.loads(told.read_text()) == [["SET b"]]
    assert [[str(c) for c in flush.commands] for flush in records.flushes] == [["SET a"]]
    assert len(records.scopes) == 1


def test_nothing_is_kept_alive(client, plain):
    """Neither values nor Futures, nor the scope: by the records that somebody keeps."""
    with recording() as records:
        with autobatch.batch() as scope:
            futures = [client.set(f"key{number}", "x" * 100) for number in range(3)]
            kept = [weakref.ref(future) for future in futures]
            kept += [weakref.ref(promise_of(future)) for future in futures]
            assert futures[0]
            client.get("key1").map(str.upper)
            dropped = client.get("dropped")
            kept.append(weakref.ref(promise_of(dropped)))
            scope.discard()
        kept.append(weakref.ref(scope)) if "__weakref__" in dir(scope) else None
        del futures, scope, dropped
        gc.collect()
        assert [one() for one in kept] == [None] * len(kept)
        assert len(records.flushes) == 1
    # Of others' commands something may be kept, such as by the traceback of a test.
    commands = [thing for thing in gc.get_objects() if issubclass(type(thing), Command)]
    assert not [command for command in commands if {"key1", "dropped"} & {*command.args}]


def test_a_scope_record_comes_once(client, records):
    """After the flush of its end, and however often it is closed."""
    order = []
    with (
        report.subscribe(lambda _: order.append("flush"), on_scope=lambda _: order.append("scope")),
        autobatch.batch() as scope,
    ):
        client.set("a", 1)
    scope.close()
    assert order == ["flush", "scope"]
    assert len(records.scopes) == 1
    (told,) = records.scopes
    assert list(told.flushes) == records.flushes
    assert told.closed


def test_a_scope_that_is_interrupted(proxy, plain, records):
    """Its record comes all the same, and once."""

    class Interruption(BaseException):
        pass

    def interrupt(reply):
        raise KeyboardInterrupt

    with connect(proxy.port) as client:
        client.response_callbacks["GET"] = interrupt
        with contextlib.suppress(KeyboardInterrupt), autobatch.batch():
            client.get("a")
            client.set("a", 1)
    assert len(records.scopes) == 1
    assert sum(len(flush.commands) for flush in records.scopes[0].flushes) == 2


def test_the_last_thousand_flushes_are_kept(client, records):
    """Counts are of all of them."""
    with autobatch.batch():
        for _ in range(1001):
            client.ping()
            autobatch.flush()
    (scope,) = records.scopes
    assert len(scope.flushes) == 1000
    assert (scope.commands, scope.round_trips) == (1001, 1001)


# ---- subscribing ---------------------------------------------------------------------------


def test_nobody_listens(client):
    """Then a scope is an unrecorded one, and none of this runs."""
    assert not report.listening
    with autobatch.batch() as scope:
        assert not scope.recorded
        client.set("a", 1)
    assert type(scope).__name__ == "OwnScope"


def test_subscribing_while_a_scope_is_open(client):
    """It holds for those that are opened from then on."""
    with autobatch.batch():
        client.set("a", 1)
        with recording() as records:
            client.set("a", 1)
            autobatch.flush()
            with autobatch.batch(join=False):
                client.set("b", 1)
        client.set("a", 1)
    assert [[str(c) for c in flush.commands] for flush in records.flushes] == [["SET b"]]
    assert len(records.scopes) == 1


def test_cancelling_while_a_scope_is_open(client):
    """Nothing more is heard, also of scopes that are recorded already."""
    with recording() as records, recording() as others, autobatch.batch():
        client.set("a", 1)
        records.subscription.cancel()
        records.subscription.cancel()
        client.set("a", 1)
        autobatch.flush()
    assert (records.flushes, records.scopes, records.calls) == ([], [], 1)
    assert (len(others.flushes), len(others.scopes), others.calls) == (1, 1, 3)
    assert not report.listening


def test_a_subscriber_that_raises(client, records, caplog):
    """It is logged, others hear all the same, and the program goes on."""

    def fail(*_):
        raise ValueError("of the subscriber")

    with report.subscribe(fail, on_scope=fail, on_call=fail), autobatch.batch():
        assert client.set("a", 1)
    assert [record.name for record in caplog.records] == ["autobatch.report"] * 4
    assert "of the subscriber" in caplog.text
    assert len(records.flushes) == len(records.scopes) == 1
    assert list(records.flushes[0].commands[0].contexts.values()) == [1]


def test_contexts_of_calls(client, records):
    """Each command, and what caused the flush, keeps what each subscription gave then."""
    with report.subscribe(on_call=lambda: "mine") as mine, autobatch.batch():
        client.set("a", 1)
        client.set("b", 1)
    (flush,) = records.flushes
    assert [command.contexts for command in flush.commands] == [
        {records.subscription: 1, mine: "mine"},
        {records.subscription: 2, mine: "mine"},
    ]
    assert flush.contexts == {records.subscription: 3, mine: "mine"}
    assert records.calls == 3


@pytest.mark.parametrize("wrong", [(), ("print",), (None,)])
def test_what_cannot_be_called(wrong):
    with pytest.raises(TypeError, match="takes what to call"):
        report.subscribe(*wrong)
    assert not report.listening


def test_a_ring_keeps_the_last(client):
    ring = report.Ring(2)
    with autobatch.batch():
        for key in "abc":
            client.set(key, 1)
            autobatch.flush()
    ring.cancel()
    with autobatch.batch():
        client.set("d", 1)
    assert [str(flush.commands[0]) for flush in ring.records()] == ["SET b", "SET c"]
    assert not report.listening


def test_the_log(client, caplog):
    """One line a flush, at level DEBUG."""
    caplog.set_level(logging.DEBUG, "autobatch.report")
    with report.subscribe(report.log), autobatch.batch():
        for number in range(12):
            client.set(f"key{number}", "secret")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("autobatch.report", logging.DEBUG)
    text = record.getMessage()
    assert "12 commands in 1 round trip" in text
    assert "end" in text
    assert "SET key9, and 2 more" in text
    assert "secret" not in text


def test_the_names_of_scopes(client, records):
    """A function's qualified name, or the line of the `with`."""

    @autobatch.batch
    def decorated():
        client.set("a", 1)

    decorated()
    with autobatch.batch():  # names itself
        client.set("a", 1)
    named, lined = records.scopes
    assert named.name == f"{__name__}.test_the_names_of_scopes.<locals>.decorated"
    assert lined.name.endswith(f"test_report.py:{marked('names itself')}")


def test_a_working_directory_that_is_gone(client, records, monkeypatch, tmp_path):
    """As of a worker whose release was removed: lines have their whole paths, and all works."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with autobatch.batch():
        assert client.incr("a") == 1
    (scope,) = records.scopes
    assert scope.name.startswith(f"{__file__}:")
    assert __file__ in str(scope.flushes[0])


def test_places_without_columns():
    """Where Python has none (`-X no_debug_ranges`), the line alone is told."""
    code = compile("f()\n", "x.py", "exec")
    at = next(
        number
        for number, position in enumerate(code.co_positions())
        if position[2] is not None and position[0] == 1
    )
    assert Place.of(code, at * 2).span is not None
    stripped = code.replace(co_linetable=_without_columns(code))
    place = Place.of(stripped, at * 2)
    assert (place.line, place.span) == (1, None)


def _without_columns(code):
    """Return a line table that has lines only: here, one line."""
    return b"\xe8\x00" * len(list(code.co_positions()))
