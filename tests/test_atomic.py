"""Atomic blocks: MULTI and EXEC in the same write as the rest, all or nothing."""

from __future__ import annotations

import contextlib
import contextvars
import threading

import pytest
import redis

import autobatch
from autobatch.errors import AutobatchError, NotReady, NotSent, OutcomeUnknown
from autobatch.testing import Answer, Hold, Proxy
from common import PATIENCE, connect, meanwhile
from looping import in_loop


@pytest.fixture
def elsewhere(second_server):
    """A client of another server, through a proxy of its own."""
    with Proxy(second_server) as proxy, autobatch.Redis(port=proxy.port) as client:
        client.flushall()
        proxy.reset()
        yield client, proxy


def test_a_block_travels_with_the_rest(client, proxy):
    with autobatch.batch() as scope:
        client.set("k", 1)
        with autobatch.batch(atomic=True):
            got, count = client.get("k"), client.incr("k")
        after = client.get("k")
    assert (got, count, after) == ("1", 2, "2")
    assert proxy.names == [["SET", "MULTI", "GET", "INCRBY", "EXEC", "GET"]]
    assert (scope.stats.commands, scope.stats.round_trips) == (4, 1)


def test_a_block_of_its_own_is_one_round_trip(client, proxy):
    with autobatch.batch(atomic=True) as scope:
        futures = [client.incr("n") for _ in range(3)]
    assert futures == [1, 2, 3]
    assert proxy.names == [["MULTI", *["INCRBY"] * 3, "EXEC"]]
    assert scope.stats.commands == 3


def test_a_decorated_function_is_atomic(client, proxy):
    @autobatch.batch(atomic=True)
    def transfer(source, target, amount):
        return client.decrby(source, amount), client.incrby(target, amount)

    with autobatch.batch():
        first, second = transfer("a", "b", 5), transfer("b", "c", 2)
    assert [*first, *second] == [-5, 5, 3, 2]
    assert proxy.names == [["MULTI", "DECRBY", "INCRBY", "EXEC"] * 2]


def test_an_empty_block_sends_nothing(client, proxy):
    with autobatch.batch(), autobatch.batch(atomic=True):
        pass
    with autobatch.batch(atomic=True):
        pass
    assert proxy.round_trips == 0


def test_replies_pass_their_callbacks(client, proxy, plain):
    """As redis-py's own MULTI/EXEC pipeline gives them, for each kind of reply."""
    plain.hset("hash", mapping={"f": 1})
    plain.zadd("zset", {"m": 1.5})
    plain.sadd("set", "a", "b")
    plain.rpush("list", 1)
    plain.xadd("stream", {"f": "v"}, id="1-1")

    def calls(redis):
        return [
            redis.set("k", 1),
            redis.hgetall("hash"),
            redis.zrange("zset", 0, -1, withscores=True),
            redis.smembers("set"),
            redis.lrange("list", 0, -1),
            redis.xrange("stream"),
            redis.exists("k", "missing"),
            redis.expire("k", 100),
            redis.get("missing"),
            redis.type("hash"),
            redis.object("encoding", "k"),
        ]

    with autobatch.batch(atomic=True):
        futures = calls(client)
    pipeline = plain.pipeline(transaction=True)
    calls(pipeline)
    assert autobatch.resolve(futures) == pipeline.execute()


# ---- values are not ready inside -------------------------------------------------------


@pytest.mark.parametrize(
    "need",
    [
        lambda future, scope: future.value,
        lambda future, scope: bool(future),
        lambda future, scope: future.exception(),
        lambda future, scope: autobatch.resolve([future]),
        lambda future, scope: scope.flush(),
        lambda future, scope: autobatch.flush(),
    ],
    ids=["value", "bool", "exception", "resolve", "scope.flush", "autobatch.flush"],
)
def test_forcing_inside_is_an_error_that_helps(need, client, proxy):
    """Not a deadlock; and whoever catches it goes on."""
    with autobatch.batch(atomic=True) as scope:
        future = client.incr("n")
        with pytest.raises(NotReady, match=r"atomic block.* at its end"):
            need(future, scope)
        client.incr("n")
    assert future == 1
    assert proxy.names == [["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_a_future_of_the_block_is_no_argument_in_it(client, proxy):
    with autobatch.batch(atomic=True):
        future = client.incr("n")
        with pytest.raises(NotReady, match="INCRBY n"):
            client.set("copy", future)
    assert proxy.names == [["MULTI", "INCRBY", "EXEC"]]


def test_a_future_from_before_the_block_is_ready_in_it(client, proxy):
    """Forcing it sends what waited before the block, and nothing of the block."""
    with autobatch.batch():
        before = client.incr("n")
        with autobatch.batch(atomic=True):
            client.set("k", 1)
            assert before + 0 == 1
            client.set("copy", before)
    assert proxy.names == [["INCRBY"], ["MULTI", "SET", "SET", "EXEC"]]


def test_map_computes_with_a_value_of_the_block(client, proxy):
    with autobatch.batch(atomic=True):
        double = client.incr("n").map(lambda value: value * 2)
    assert double == 2
    assert proxy.round_trips == 1


def test_a_map_may_call_redis_after_the_block(client, proxy):
    with autobatch.batch(), autobatch.batch(atomic=True):
        copied = client.incr("n").map(lambda value: client.set("copy", value))
    assert copied.value is True
    assert proxy.names == [["MULTI", "INCRBY", "EXEC"], ["SET"]]


# ---- what goes wrong -------------------------------------------------------------------


def test_a_refused_command_aborts_its_block_alone(client, proxy, plain):
    """EXECABORT: nothing of the block ran, each of its Futures says so, the rest is unharmed."""
    with autobatch.batch():
        before = client.set("before", 1)
        with autobatch.batch(atomic=True):
            first = client.incr("n")
            wrong = client.execute_command("GET")
            last = client.incr("n")
        after = client.get("before")
        errors = [future.exception() for future in (first, wrong, last)]
        assert (before.value, after.value) == (True, "1")
    assert plain.get("n") is None
    assert isinstance(errors[0], redis.exceptions.ExecAbortError)
    assert "wrong number of arguments" in str(errors[1])
    assert isinstance(errors[2], redis.exceptions.ExecAbortError)
    assert errors[0] is not errors[2]
    assert len(proxy.exchanges) == 1


def test_an_aborted_block_surfaces_with_its_reason(client):
    """The program's first command failed for the sake of the second one: both are told."""
    with pytest.raises(redis.exceptions.ExecAbortError) as raised, autobatch.batch(atomic=True):
        client.incr("n")
        client.execute_command("GET")
    assert "wrong number of arguments" in raised.value.__notes__[1]


def test_an_error_at_run_time_is_that_commands_alone(client, plain):
    plain.set("text", "no list")
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            futures = [client.incr("n"), client.lpush("text", 1), client.incr("n")]
        assert [futures[0].value, futures[2].value] == [1, 2]
        assert "WRONGTYPE" in str(futures[1].exception())


def test_an_error_at_run_time_surfaces_if_nobody_looks(client, plain):
    plain.set("text", "no list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), autobatch.batch(atomic=True):
        client.incr("n")
        client.lpush("text", 1)


def test_a_server_that_refuses_multi_is_no_server_that_ran_nothing(server, plain):
    """It runs the commands one by one: they have their replies, and the refusal surfaces."""
    plain.acl_setuser("alice", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-multi"])
    refused = pytest.raises(redis.exceptions.NoPermissionError, match="multi")
    with connect(server, username="alice", password="any") as client, refused, autobatch.batch():
        with autobatch.batch(atomic=True):
            future = client.incr("n")
        assert future == 1
    plain.acl_deluser("alice")
    assert plain.get("n") == "1"


def test_a_block_that_raises_drops_all_of_it(client, proxy):
    with autobatch.batch():
        before = client.set("before", 1)
        with pytest.raises(LookupError), autobatch.batch(atomic=True):
            dropped = [client.incr("n"), client.incr("n")]
            raise LookupError
        after = client.get("before")
    assert (before.value, after.value) == (True, "1")
    for future in dropped:
        with pytest.raises(NotSent, match="its atomic block was ended by LookupError"):
            future.value
    assert proxy.names == [["SET", "GET"]]


def test_a_block_of_its_own_that_raises_sends_nothing(client, proxy):
    """And the dropped commands are no errors of their own."""
    with pytest.raises(LookupError) as raised, autobatch.batch(atomic=True):
        dropped = client.incr("n")
        raise LookupError
    assert isinstance(dropped.exception(), NotSent)
    assert not hasattr(raised.value, "__notes__")
    assert proxy.round_trips == 0


def test_what_is_mapped_from_a_dropped_block_says_so(client):
    with autobatch.batch():
        with contextlib.suppress(LookupError), autobatch.batch(atomic=True):
            mapped = client.incr("n").map(str)
            raise LookupError
        assert isinstance(mapped.exception(), NotSent)


def test_discard_drops_what_the_block_holds(client, proxy):
    with autobatch.batch():
        client.set("before", 1)
        with autobatch.batch(atomic=True) as scope:
            dropped = client.incr("n")
            scope.discard()
            client.incr("m")
    assert isinstance(dropped.exception(), NotSent)
    assert proxy.names == [["SET", "MULTI", "INCRBY", "EXEC"]]


def test_dropped_commands_count_as_called(client):
    """As those of a discarded scope do."""
    with autobatch.batch() as scope:
        with contextlib.suppress(LookupError), autobatch.batch(atomic=True):
            client.incr("n")
            raise LookupError
        client.incr("n")
        scope.discard()
    assert scope.stats.commands == 2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: client.blpop("list", 1), "BLPOP"),
        (lambda client: client.xread({"stream": 0}, block=1), "XREAD"),
        (lambda client: client.client_setname("name"), "CLIENT SETNAME"),
        (lambda client: client.execute_command("WATCH", "k"), "WATCH"),
        (lambda client: client.execute_command("MULTI"), "MULTI"),
        (lambda client: client.execute_command("exec"), "EXEC"),
        (lambda client: client.execute_command("DISCARD"), "DISCARD"),
        (lambda client: client.execute_command("SELECT", 1), "SELECT"),
        (lambda client: client.wait(0, 1), "WAIT"),
    ],
)
def test_what_steps_aside_is_refused(call, name, client, proxy):
    """It cannot be part of the block; the block itself goes on."""
    with autobatch.batch(), autobatch.batch(atomic=True):
        client.incr("n")
        with pytest.raises(AutobatchError, match=f"{name} runs on a connection of its own"):
            call(client)
        client.incr("n")
    assert proxy.names == [["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_a_scope_of_its_own_is_refused_inside(client, proxy):
    """It would have to flush what waits around it, which the block holds back."""
    with autobatch.batch(atomic=True):
        client.set("k", 1)
        with pytest.raises(AutobatchError), autobatch.batch(join=False):
            client.get("k")
    assert proxy.names == [["MULTI", "SET", "EXEC"]]


# ---- nesting ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"atomic": True}, {"on_error": "discard"}], ids=str)
def test_a_scope_inside_joins_the_block(options, client, proxy):
    with autobatch.batch(atomic=True):
        client.incr("n")
        with autobatch.batch(**options):
            client.incr("n")
        client.incr("n")
    assert proxy.names == [["MULTI", *["INCRBY"] * 3, "EXEC"]]


@pytest.mark.parametrize("options", [{"atomic": True}, {"on_error": "discard"}], ids=str)
def test_a_block_inside_that_fails_drops_its_own(options, client, proxy):
    with autobatch.batch(atomic=True):
        client.set("outer", 1)
        with contextlib.suppress(LookupError), autobatch.batch(**options):
            dropped = client.set("inner", 1)
            raise LookupError
        client.set("outer", 2)
    assert isinstance(dropped.exception(), NotSent)
    assert proxy.names == [["MULTI", "SET", "SET", "EXEC"]]


def test_a_block_inside_a_discarding_one_shares_its_fate(client, proxy):
    with autobatch.batch():
        client.set("before", 1)
        with contextlib.suppress(LookupError), autobatch.batch(on_error="discard"):
            with autobatch.batch(atomic=True):
                dropped = client.incr("n")
            raise LookupError
    assert isinstance(dropped.exception(), NotSent)
    assert proxy.names == [["SET"]]


def test_forcing_in_a_scope_inside_the_block_is_an_error_too(client):
    with autobatch.batch(atomic=True), autobatch.batch(on_error="discard"):
        future = client.incr("n")
        with pytest.raises(NotReady):
            future.value
    assert future == 1


# ---- several clients -------------------------------------------------------------------


def test_two_clients_in_one_block_have_a_transaction_each(client, elsewhere, proxy):
    """Of two servers, in one round trip; no transaction spans servers."""
    far_client, far_proxy = elsewhere
    with autobatch.batch(atomic=True) as scope:
        futures = [client.incr("n"), far_client.incr("n"), client.incr("n")]
    assert futures == [1, 1, 2]
    assert proxy.names == [["MULTI", "INCRBY", "INCRBY", "EXEC"]]
    assert far_proxy.names == [["MULTI", "INCRBY", "EXEC"]]
    assert (scope.stats.commands, scope.stats.round_trips, scope.stats.exchanges) == (3, 1, 2)


def test_a_client_that_aborts_leaves_the_other_ones_alone(client, elsewhere, proxy):
    far_client, _ = elsewhere
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            wrong, fine = client.execute_command("GET"), far_client.incr("n")
        assert wrong.exception()
        assert fine == 1


def test_another_threads_commands_stay_out_of_a_block(client, proxy, plain):
    """It shares the outer scope: what it calls meanwhile lands before the block or after it."""
    inside, called = threading.Event(), threading.Event()

    def other_thread():
        assert inside.wait(PATIENCE)
        client.set("other", 1)
        called.set()

    with autobatch.batch():
        client.set("before", 1)
        context = contextvars.copy_context()
        with meanwhile(lambda: context.run(other_thread)), autobatch.batch(atomic=True):
            client.incr("n")
            inside.set()
            assert called.wait(PATIENCE)
            client.incr("n")
    [names] = proxy.names
    start = names.index("MULTI")
    assert names[start : start + 4] == ["MULTI", "INCRBY", "INCRBY", "EXEC"]
    assert names.count("SET") == 2


def test_a_thread_that_shares_the_block_is_part_of_it(client, proxy):
    with autobatch.batch(atomic=True):
        client.incr("n")
        context = contextvars.copy_context()
        with meanwhile(lambda: context.run(client.incr, "n")):
            pass
    assert proxy.names == [["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_a_block_may_end_while_its_scope_is_in_flight(server, plain):
    """Another thread has forced what waited before; the block follows in its own exchange."""
    with Proxy(server, delay=0) as proxy, connect(proxy.port) as client:
        hold = Hold()
        with autobatch.batch():
            client.ping()
            before = client.incr("n")
            context = contextvars.copy_context()
            proxy.arm(hold)
            with meanwhile(lambda: context.run(lambda: before.value)):
                assert hold.replied.wait(PATIENCE)
                with autobatch.batch(atomic=True):
                    inside = client.incr("n")
                hold.released.set()
                assert inside == 2
        assert proxy.names == [["PING", "INCRBY"], ["MULTI", "INCRBY", "EXEC"]]


# ---- what needs care on the wire -------------------------------------------------------


def test_replies_that_are_never_decoded(client, plain):
    """DUMP's reply is bytes, its neighbours' are what the client decodes, however nested."""
    plain.set("k", "v")
    plain.hset("hash", "f", "v")
    plain.sadd("set", "m")
    plain.zadd("zset", {"m": 1.5})
    plain.xadd("stream", {"f": "v"}, id="1-1")
    with autobatch.batch(atomic=True):
        dump = client.dump("k")
        rest = [
            client.get("k"),
            client.hgetall("hash"),
            client.smembers("set"),
            client.zrange("zset", 0, -1, withscores=True),
            client.xrange("stream"),
            client.get("missing"),
        ]
    assert dump.value == plain.dump("k")
    assert autobatch.resolve(rest) == [
        "v",
        {"f": "v"},
        {"m"},
        [("m", 1.5)],
        [("1-1", {"f": "v"})],
        None,
    ]


def test_an_undecodable_reply_is_that_commands_error(client, plain):
    """As in redis-py. The whole EXEC is one reply: it must not take its neighbours along."""
    plain.set("binary", b"\xff")
    plain.set("k", "v")
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            bad, good = client.get("binary"), client.get("k")
        assert isinstance(bad.exception(), UnicodeDecodeError)
        assert good == "v"


def test_a_script_runs_in_a_block(client, proxy, plain):
    """Also when the server does not know it yet: no NOSCRIPT aborts the block."""
    count = client.register_script("return redis.call('INCR', KEYS[1])")
    plain.script_flush()
    with autobatch.batch(atomic=True):
        futures = [count(keys=["n"]), count(keys=["n"]), client.get("n")]
    assert futures == [1, 2, "2"]
    assert proxy.names == [["MULTI", "EVAL", "EVALSHA", "GET", "EXEC"]]


def test_a_script_after_an_aborted_block_runs(client, plain):
    """The call that would have brought its source was never run."""
    count = client.register_script("return redis.call('INCR', KEYS[1])")
    plain.script_flush()
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            aborted = [count(keys=["n"]), client.execute_command("GET")]
        after = count(keys=["n"])
        assert [future.exception() is not None for future in aborted] == [True, True]
        assert after == 1


def test_a_script_whose_source_nobody_knows_is_that_commands_error(client):
    """An EVALSHA by hand, inside a block: the server's NOSCRIPT is its own."""
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            unknown, fine = client.evalsha("f" * 40, 0), client.incr("n")
        assert isinstance(unknown.exception(), redis.exceptions.NoScriptError)
        assert fine == 1


def test_redis_pys_own_transaction_runs_apart(client, proxy):
    """WATCH and the rest stay with redis-py's pipeline; what waits goes first."""
    with autobatch.batch():
        client.set("n", 1)

        def increase(pipe):
            value = int(pipe.get("n"))
            pipe.multi()
            pipe.set("n", value + 1)

        client.transaction(increase, "n")
        after = client.get("n")
    assert after == "2"
    assert proxy.names == [["SET"], ["WATCH"], ["GET"], ["MULTI", "SET", "EXEC"], ["GET"]]


odd_replies = pytest.mark.parametrize("reply", [b"+OK\r\n", b"*0\r\n", b":1\r\n"])


@odd_replies
def test_an_exec_that_is_answered_otherwise_settles_its_commands(reply, proxy):
    """Something between us and the server answers MULTI, the command and EXEC alike."""
    proxy.arm(Answer(reply))
    with connect(proxy.port) as client:
        with pytest.raises(OutcomeUnknown, match="no reply to EXEC"), autobatch.batch(atomic=True):
            future = client.incr("n")
        assert future.done()


@odd_replies
@in_loop
async def test_so_it_does_with_asyncio(reply, proxy):
    proxy.arm(Answer(reply))
    client = autobatch.asyncio.Redis(port=proxy.port)
    with pytest.raises(OutcomeUnknown, match="no reply to EXEC"):
        async with autobatch.batch(atomic=True):
            future = client.incr("n")
    assert future.done()
    await client.aclose()
