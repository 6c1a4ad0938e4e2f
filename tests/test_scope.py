"""What a scope promises: order, once, errors that surface, limits. The wire is the witness."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import inspect
import itertools
import logging
import weakref

import pytest
import redis

import autobatch
from autobatch.errors import NotReady, NotSent
from autobatch.future import promise_of
from autobatch.testing import Hold, Proxy
from common import connect


def runs(names):
    """Return how many runs of the same name there are, as in "aab" two."""
    return len(list(itertools.groupby(names)))


# ---- order -----------------------------------------------------------------------------


@pytest.fixture
def other_client(proxy):
    """A second client of the server, on a pool of its own."""
    with autobatch.Redis(port=proxy.port) as client:
        yield client


@pytest.fixture
def elsewhere(second_server):
    """A client of another server, through a proxy of its own."""
    with Proxy(second_server) as proxy, autobatch.Redis(port=proxy.port) as client:
        client.flushall()
        proxy.reset()
        yield client, proxy


def test_any_interleaving_of_clients_keeps_the_programs_order(
    client, other_client, elsewhere, proxy, plain
):
    """Two clients of one server take turns in waves; another server's commands do not wait."""
    far_client, far_proxy = elsewhere
    clients = {"a": client, "b": other_client, "z": far_client}
    for names in itertools.product("abz", repeat=4):
        plain.delete("log")
        far_client.delete("log")
        proxy.reset()
        far_proxy.reset()
        with autobatch.batch() as scope:
            lengths = [clients[name].rpush("log", number) for number, name in enumerate(names)]
        near = [number for number, name in enumerate(names) if name != "z"]
        far = [number for number, name in enumerate(names) if name == "z"]
        assert plain.lrange("log", 0, -1) == [str(number) for number in near]
        assert [int(number) for number in far_client.lrange("log", 0, -1)] == far
        assert [int(command[2]) for one in proxy.exchanges for command in one] == near
        assert sorted(lengths) == sorted([*range(1, 1 + len(near)), *range(1, 1 + len(far))])
        # The wire and the scope agree on what it cost.
        waves = runs(name for name in names if name != "z")
        assert proxy.round_trips == waves
        assert scope.stats.round_trips == max(waves, 1)
        assert scope.stats.exchanges == waves + (1 if far else 0)
        assert (scope.stats.commands, scope.stats.flushes) == (4, 1)


def test_clients_on_one_pool_share_a_batch(client, proxy):
    """However their calls alternate: `wrap` makes a twin on the same pool."""
    twin = autobatch.wrap(redis.Redis(connection_pool=client.connection_pool))
    with autobatch.batch():
        futures = [(client, twin)[number % 2].incr("n") for number in range(6)]
    assert futures == [1, 2, 3, 4, 5, 6]
    assert proxy.names == [["INCRBY"] * 6]


def echo_at_once(first, second, holds):
    """Call one command on each; neither is answered until the other one has arrived."""
    holds[0].released, holds[1].released = holds[1].requested, holds[0].requested
    with autobatch.batch() as scope:
        futures = [first.echo("first"), second.echo("second")]
    assert futures == ["first", "second"]
    assert (scope.stats.round_trips, scope.stats.exchanges) == (1, 2)


def test_two_servers_are_both_written_before_one_is_read(server, second_server, plain):
    holds = Hold(), Hold()
    with Proxy(server, delay=0) as one, Proxy(second_server, delay=0) as two:
        one.arm(holds[0])
        two.arm(holds[1])
        with connect(one.port) as first, connect(two.port) as second:
            echo_at_once(first, second, holds)


def test_two_databases_are_both_written_before_one_is_read(server, plain):
    holds = Hold(), Hold()
    with Proxy(server, delay=0) as proxy:
        proxy.arm(*holds)
        with connect(proxy.port) as first, connect(proxy.port, db=1) as second:
            echo_at_once(first, second, holds)


SPELLINGS = {
    "host and port": {"host": "localhost", "port": 6379},
    "url": {"connection_pool": redis.ConnectionPool.from_url("redis://localhost")},
    "url with all": {"connection_pool": redis.ConnectionPool.from_url("redis://localhost:6379/0")},
    "url with nothing": {"connection_pool": redis.ConnectionPool.from_url("redis://")},
    "pool without port": {"connection_pool": redis.ConnectionPool(host="localhost")},
    "no database": {"db": None},
    "database as text": {"db": "0"},
}


@pytest.mark.parametrize("options", SPELLINGS.values(), ids=SPELLINGS)
def test_one_server_has_one_name(options):
    """However it is spelled, its clients are not taken for clients of several servers."""
    with autobatch.Redis() as default, autobatch.Redis(**options) as client:
        assert client._wire.server == default._wire.server


def test_two_databases_are_two_servers():
    with autobatch.Redis() as default, autobatch.Redis(db=1) as other:
        assert other._wire.server != default._wire.server


def test_opening_a_scope_of_its_own_flushes_what_waits(client, proxy):
    with autobatch.batch() as outer:
        client.set("k", "outer")
        with autobatch.batch(join=False) as inner:
            value = client.get("k")
        assert value.done()
        client.append("k", "!")
    assert value == "outer"
    assert proxy.names == [["SET"], ["GET"], ["APPEND"]]
    assert (outer.stats.commands, outer.stats.round_trips) == (2, 2)
    assert (inner.stats.commands, inner.stats.round_trips) == (1, 1)


def test_nested_scopes_join(client, proxy):
    with autobatch.batch() as outer:
        client.set("k", 1)
        with autobatch.batch() as inner:
            future = client.get("k")
            with autobatch.batch():
                client.incr("k")
        assert not future.done()
        assert inner.stats is outer.stats
    assert proxy.names == [["SET", "GET", "INCRBY"]]


@pytest.mark.parametrize(
    ("step_aside", "name"),
    [
        (lambda client: client.blpop("list", 1), "BLPOP"),
        (lambda client: client.xread({"stream": 0}, block=1), "XREAD"),
        (lambda client: client.client_id(), "CLIENT"),
        (lambda client: client.wait(0, 1), "WAIT"),
        (lambda client: client.pipeline(transaction=False).get("k").execute(), "GET"),
        (lambda client: client.eager.get("k"), "GET"),
        (lambda client: client.pubsub().subscribe("channel"), "SUBSCRIBE"),
        (lambda client: client.script_load("return 1"), "SCRIPT"),
    ],
)
def test_what_steps_aside_comes_after_what_waits(step_aside, name, client, proxy):
    with autobatch.batch():
        client.rpush("list", 1)
        client.set("k", 1)
        step_aside(client)
        client.get("k")
    names = [one for one in proxy.names if one != ["CLIENT", "CLIENT"]]
    assert names == [["RPUSH", "SET"], [name], ["GET"]]


# ---- flush, discard --------------------------------------------------------------------


def test_forcing_one_future_sends_all_that_waits(client, proxy):
    with autobatch.batch() as scope:
        futures = [client.incr("n") for _ in range(3)]
        assert futures[1] == 2
        assert [future.done() for future in futures] == [True, True, True]
        late = client.incr("n")
        assert not late.done()
    assert late.done()
    assert proxy.names == [["INCRBY"] * 3, ["INCRBY"]]
    assert (scope.stats.commands, scope.stats.flushes, scope.stats.round_trips) == (4, 2, 2)


def test_flush_sends_what_waits_and_nothing_twice(client, proxy):
    with autobatch.batch() as scope:
        future = client.incr("n")
        scope.flush()
        assert future.done()
        scope.flush()
        autobatch.flush()
        client.incr("n")
        autobatch.flush()
    assert proxy.names == [["INCRBY"], ["INCRBY"]]


def test_flush_keeps_errors_for_whoever_looks(client):
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), autobatch.batch() as scope:
        client.set("k", "text")
        client.lpush("k", 1)
        scope.flush()
        done = client.set("later", 1)
    assert done == True  # noqa: E712  # a Future


def test_flush_outside_a_scope_does_nothing():
    autobatch.flush()


def test_an_empty_scope_sends_nothing(client, proxy):
    with autobatch.batch() as scope:
        pass
    assert proxy.round_trips == scope.stats.round_trips == 0


def test_looking_is_free(client, proxy, caplog):
    """Neither repr, nor a log line, nor done(), nor a collection of Futures sends anything."""
    with autobatch.batch():
        future = client.get("user:1")
        assert repr([future]) == "[<Future pending: GET user:1>]"
        with caplog.at_level(logging.INFO):
            logging.getLogger("test").info("%s %r", future, future)
        assert caplog.messages == ["<Future pending: GET user:1> <Future pending: GET user:1>"]
        assert not future.done()
        assert proxy.round_trips == 0


def test_discard_drops_what_waits_and_says_so(client, proxy):
    """Dropped by the program's own will, it is no error at the end."""
    with autobatch.batch() as scope:
        sent = client.set("sent", 1)
        scope.flush()
        dropped = client.set("dropped", 1)
        scope.discard()
        client.set("later", 1)
    assert sent.value is True
    with pytest.raises(NotSent, match="SET dropped was not sent: its scope was discarded"):
        dropped.value
    assert proxy.exchanges == [[(b"SET", b"sent", b"1")], [(b"SET", b"later", b"1")]]


def test_what_is_mapped_from_a_dropped_command_says_so(client, proxy):
    with autobatch.batch() as scope:
        mapped = client.get("k").map(str)
        scope.discard()
        assert isinstance(mapped.exception(), NotSent)
    assert isinstance(mapped.exception(), NotSent)
    assert proxy.round_trips == 0


# ---- errors ----------------------------------------------------------------------------


@pytest.fixture
def text(plain):
    """The name of a key on which commands of lists fail."""
    plain.set("text", "no list")
    return "text"


def line_of(function, marker):
    """Return "file:line" of the line of a function that ends with `marker`."""
    lines, first = inspect.getsourcelines(function)
    number = first + next(n for n, line in enumerate(lines) if line.rstrip().endswith(marker))
    return f"{function.__code__.co_filename}:{number}"


def test_a_forced_error_is_raised_there_and_names_its_line(client, text):
    with autobatch.batch():
        future = client.lpush(text, "secret")  # queued here
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
            future + 1
    place = line_of(test_a_forced_error_is_raised_there_and_names_its_line, "# queued here")
    [note] = raised.value.__notes__
    assert note.startswith(f"LPUSH text, queued at {place} in test_a_forced_error")
    assert "secret" not in note


def test_a_forced_error_is_raised_again_each_time(client, text):
    """With one note still."""
    with autobatch.batch():
        future = client.lpush(text, 1)
        for _ in range(3):
            with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
                future.value
            assert len(raised.value.__notes__) == 1


def test_unseen_errors_are_raised_at_the_end(client, text):
    """The first in program order, as redis-py would; the others are its notes."""
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch():
        client.lpush(text, 1)
        client.set("fine", 1)
        client.incr(text)
        client.sadd(text, 1)
    first, *others = raised.value.__notes__
    assert first.startswith("LPUSH text, queued at")
    assert len(others) == 2
    assert "not an integer" in others[0]
    assert "INCRBY text" in others[0]
    assert "SADD text" in others[1]


def test_unseen_errors_over_clients_and_flushes_keep_program_order(
    client, other_client, elsewhere, text
):
    """Waves, servers and flushes do not change which error is the first."""
    far_client, _ = elsewhere
    far_client.set(text, "no list")
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch() as scope:
        far_client.lpush(text, 1)
        client.rpush(text, 1)
        scope.flush()
        other_client.sadd(text, 1)
        client.incr(text)
        far_client.hset(text, "f", 1)
        other_client.zadd(text, {"m": 1})
    notes = raised.value.__notes__
    names = ["LPUSH", "RPUSH", "SADD", "INCRBY", "HSET", "ZADD"]
    assert [next(name for name in names if name in note) for note in notes] == names


def test_an_error_that_ends_the_block_gets_the_unseen_ones_as_notes(client, text, proxy):
    error = ValueError("the program's own")
    with pytest.raises(ValueError) as raised, autobatch.batch():
        client.lpush(text, 1)
        client.sadd(text, 1)
        raise error
    assert raised.value is error
    assert ["LPUSH text" in error.__notes__[0], "SADD text" in error.__notes__[1]] == [True, True]
    assert len(error.__notes__) == 2
    assert proxy.names == [["LPUSH", "SADD"]]


def test_an_error_that_was_forced_is_not_told_twice(client, text):
    """It ends the block itself, with the one note of its line."""
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch():
        future = client.lpush(text, 1)
        future.value
    assert len(raised.value.__notes__) == 1


def test_an_error_of_an_inner_scope_is_not_told_again_by_the_outer_one(client, text):
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch():
        client.set("fine", 1)
        with autobatch.batch(join=False):
            client.lpush(text, 1)
    assert len(raised.value.__notes__) == 1


def test_exception_counts_as_seen(client, text):
    with autobatch.batch():
        failed = client.lpush(text, 1)
        fine = client.set("fine", 1)
        assert isinstance(failed.exception(), redis.ResponseError)
        assert fine.exception() is None


def test_a_swallowed_error_counts_as_seen(client, text):
    with autobatch.batch(), contextlib.suppress(redis.ResponseError):
        client.lpush(text, 1).value


def test_a_thousand_errors_are_told_in_a_bounded_number_of_notes(client, text):
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch():
        for _ in range(1000):
            client.lpush(text, 1)
    assert len(raised.value.__notes__) < 30
    assert raised.value.__notes__[-1] == "And 979 more commands failed."


# ---- limits ----------------------------------------------------------------------------


def test_a_scope_flushes_early_at_max_commands(client, proxy):
    with autobatch.batch(max_commands=10) as scope:
        futures = [client.incr("n") for _ in range(25)]
        assert [future.done() for future in futures] == [True] * 20 + [False] * 5
    assert [len(one) for one in proxy.exchanges] == [10, 10, 5]
    assert (scope.stats.commands, scope.stats.round_trips) == (25, 3)


def test_a_scope_flushes_early_at_max_bytes(client, proxy):
    """It leaves with the command that reaches the limit."""
    with autobatch.batch(max_bytes=1000):
        for _ in range(10):
            client.set("k", "x" * 300)  # with its name and lengths, 333 bytes
    assert [len(one) for one in proxy.exchanges] == [4, 4, 2]


KINDS = {
    "usual": lambda client: client.set("k", "v"),
    "of two words": lambda client: client.object("encoding", "k"),
    "never decoded": lambda client: client.dump("k"),
    "lower case": lambda client: client.execute_command("incr", "n"),
    "of a bytearray": lambda client: client.set("k", bytearray(b"v")),
    "script": lambda client: client.register_script("return 1")(keys=["k"]),
}


@pytest.mark.parametrize("call", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("limit", [{"max_commands": 10}, {"max_bytes": 250}], ids=str)
def test_limits_hold_for_commands_of_every_kind(call, limit, client, proxy):
    with autobatch.batch(**limit):
        for _ in range(40):
            call(client)
    assert proxy.round_trips >= 4
    assert max(len(one) for one in proxy.exchanges) <= 12  # of 21 bytes, the shortest


def test_limits_hold_for_arguments_that_are_futures(client, proxy):
    with autobatch.batch(max_commands=10) as scope:
        value = client.get("k").map(lambda _: "v")
        scope.flush()
        proxy.reset()
        for _ in range(40):
            client.set("k", value)
    assert [len(one) for one in proxy.exchanges] == [10, 10, 10, 10]


@pytest.mark.parametrize("inner", [{}, {"on_error": "discard"}], ids=["joined", "discarding"])
def test_a_long_scope_keeps_no_more_commands_than_its_limit(inner, client):
    """A million commands need no million replies in memory at once."""
    with autobatch.batch(max_commands=50), autobatch.batch(**inner):
        commands = [weakref.ref(promise_of(client.get("k"))) for _ in range(500)]
        gc.collect()
        assert sum(command() is not None for command in commands) <= 50


# ---- map -------------------------------------------------------------------------------


def test_a_map_is_not_forced_and_shares_the_round_trip(client, proxy):
    calls = []
    with autobatch.batch():
        double = client.incr("n").map(lambda value: calls.append(value) or value * 2)
        assert (calls, proxy.round_trips) == ([], 0)
    assert (double.value, calls) == (2, [1])
    assert proxy.round_trips == 1


def test_maps_that_call_redis_share_the_second_round_trip(client, proxy, plain):
    """As many chains as there are, each step is one round trip for all of them."""
    for number in range(10):
        plain.set(f"user:{number}", f"city:{number}")
        plain.set(f"city:{number}", f"country:{number}")
        plain.set(f"country:{number}", number)
    with autobatch.batch() as scope:
        futures = [
            client.get(f"user:{number}").map(client.get).map(client.get) for number in range(10)
        ]
        assert futures[3] == "3"
    assert [int(future) for future in futures] == list(range(10))
    assert proxy.names == [["GET"] * 10] * 3
    assert (scope.stats.commands, scope.stats.round_trips) == (30, 3)


def test_what_a_map_calls_at_the_end_of_a_scope_is_sent(client, proxy, plain):
    """Nobody forced anything: the last flush settles the first step, and goes on to the next."""
    with autobatch.batch():
        client.incr("n").map(lambda value: client.set("copy", value))
    assert proxy.names == [["INCRBY"], ["SET"]]
    assert plain.get("copy") == "1"


def test_an_error_in_a_mapped_function_surfaces_at_the_end(client):
    def fail(value):
        raise LookupError(value)

    with pytest.raises(LookupError) as raised, autobatch.batch():
        failed = client.get("k").map(fail)
    assert failed.exception().args == raised.value.args == (None,)
    assert raised.value.__notes__[0].startswith("map of GET k, queued at")
    assert "fail" in [entry.name for entry in raised.traceback]


def test_an_error_of_a_command_is_told_once_whatever_is_mapped_from_it(client, text):
    """The functions are not called; their results fail with the same error."""
    calls = []
    with pytest.raises(redis.ResponseError) as raised, autobatch.batch():
        future = client.lpush(text, 1)
        mapped = [future.map(calls.append), future.map(calls.append).map(calls.append)]
    assert calls == []
    assert len(raised.value.__notes__) == 1
    assert {str(each.exception()) for each in mapped} == {str(raised.value)}


def test_a_map_of_a_settled_future_runs_at_once(client, proxy):
    with autobatch.batch():
        value = client.incr("n")
        assert value == 1
        assert value.map(str).done()
    assert value.map(lambda number: number + 1) == 2
    assert proxy.round_trips == 1


def test_a_mapped_function_may_force(client, proxy):
    with autobatch.batch():
        copied = client.incr("n").map(lambda value: client.incr("other").value + value)
        assert copied == 2
    assert proxy.round_trips == 2


def test_a_mapped_function_that_is_interrupted_leaves_no_future_pending(client):
    """Ctrl-C while it ran: the other functions still have to be called, or their Futures fail."""

    def interrupt(value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), autobatch.batch():
        futures = [client.get("k").map(interrupt), client.get("k").map(str)]
    assert [future.done() for future in futures] == [True, True]


def test_a_function_that_waits_for_itself_is_told_so(client):
    """An error, not a deadlock."""
    with autobatch.batch():
        holder = []
        mapped = client.get("k").map(lambda value: holder[0].value)
        holder.append(mapped)
        assert isinstance(mapped.exception(), NotReady)


# ---- outside, before and after ---------------------------------------------------------


def test_outside_a_scope_a_call_runs_at_once(client, proxy):
    assert type(client.incr("n")) is int
    assert client.get("missing") is None
    assert proxy.names == [["INCRBY"], ["GET"]]


def test_a_late_command_runs_at_once_and_returns_a_plain_value(client, proxy):
    """The context still holds the closed scope, as a background task's would."""
    context = []

    def late():
        return type(client.incr("n")), type(client.get("missing"))

    with autobatch.batch():
        client.set("n", 1)
        context = contextvars.copy_context()
    assert context.run(late) == (int, type(None))
    assert proxy.names == [["SET"], ["INCRBY"], ["GET"]]


def test_a_late_command_that_fails_raises_at_once(client, text):
    with autobatch.batch():
        context = contextvars.copy_context()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        context.run(client.lpush, text, 1)


def test_a_late_scope_is_a_scope_of_its_own(client, proxy):
    """A block that opens in the context of a closed scope joins nothing."""

    def late():
        with autobatch.batch():
            return [client.incr("n"), client.incr("n")]

    with autobatch.batch():
        context = contextvars.copy_context()
    assert context.run(late) == [1, 2]
    assert proxy.names == [["INCRBY"] * 2]


def test_a_future_is_its_value_after_its_scope_closed(client, proxy):
    with autobatch.batch():
        future = client.incr("n")
    assert future.value == 1
    assert future + 1 == 2
    assert proxy.round_trips == 1
