"""The asyncio client: its Futures, what rides together, and code written for redis.asyncio."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import copy
import gc
import inspect
import itertools
import logging
import operator
import pickle
import pprint
import threading
import warnings

import pytest
import redis
import redis.asyncio

import autobatch
from autobatch import batch, resolve, unwrap
from autobatch.errors import AutobatchError, NoLoop, NotReady, NotSent
from autobatch.future import AsyncFuture
from autobatch.testing import Hold, HoldRequests, Proxy
from looping import eventually, in_loop, reports, tidy

INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1] or 1)"


def client_of(port, **options):
    return autobatch.asyncio.Redis(port=port, **{"decode_responses": True} | options)


@pytest.fixture
def client(proxy):
    """A batching asyncio client, through the proxy. Nobody closes it: the loop's end does."""
    return client_of(proxy.port)


@pytest.fixture
def sync_client(proxy):
    with autobatch.Redis(port=proxy.port, decode_responses=True) as client:
        yield client


async def value(future):
    """A coroutine, for what takes nothing else."""
    return await future


# ---- Futures ---------------------------------------------------------------------------------


@in_loop
async def test_a_call_returns_a_future_at_once(client, plain):
    """It is pending, `await` gives the plain value, and `is None` holds."""
    future = client.set("a", "1")
    assert type(future) is AsyncFuture
    assert not future.done()
    assert await future is True
    assert future.done()
    assert type(await client.get("a")) is str
    assert await client.get("missing") is None


@in_loop
async def test_awaited_any_number_of_times(client, proxy):
    """Each time it is the same value, in whichever task, and sent once."""
    future = client.incr("a")
    assert [await future, await future] == [1, 1]
    late = client.incr("a")
    assert await asyncio.gather(*(value(late) for _ in range(5))) == [2] * 5
    assert await asyncio.create_task(value(late)) == 2
    assert proxy.names == [["INCRBY"], ["INCRBY"]]


TOUCHES = {
    "add": lambda f: f + 1,
    "added": lambda f: 1 + f,
    "joined": lambda f: "x" + f,
    "in-place": lambda f: operator.iadd(f, 1),
    "negative": operator.neg,
    "power": lambda f: f**2,
    "divided": lambda f: divmod(7, f),
    "bool": bool,
    "not": operator.not_,
    "str": str,
    "format": "{:>5}".format,
    "percent": lambda f: "%s" % f,  # noqa: UP031  # a way to touch it
    "bytes": bytes,
    "int": int,
    "float": float,
    "index": lambda f: [1, 2][f],
    "len": len,
    "iter": iter,
    "list": list,
    "star": lambda f: [*f],
    "in": lambda f: "x" in f,
    "item": lambda f: f[0],
    "set item": lambda f: operator.setitem(f, 0, 1),
    "reversed": reversed,
    "equal": lambda f: f == "1",
    "unequal": lambda f: f != "1",
    "less": lambda f: f < 2,
    "sorted": lambda f: sorted([f, 1]),
    "attribute": lambda f: f.upper,
    "method": lambda f: f.upper(),
    "set attribute": lambda f: setattr(f, "x", 1),
    "dir": dir,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "round": round,
    "value": lambda f: f.value,
    "exception": lambda f: f.exception(),
    "unwrap": unwrap,
    "resolve": lambda f: resolve({"x": [f]}),
    "argument": lambda f: autobatch.asyncio.Redis().set("k", f),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_touching_it_too_early_says_what_to_do(touch, client, plain):
    """NotReady, with the way out, and without harm to the Future."""

    @in_loop
    async def test():
        future = client.incr("a")
        with pytest.raises(NotReady, match=r"INCRBY a .* await it, or await .*flush\(\)"):
            touch(future)
        assert await future == 1

    test()


@in_loop
async def test_touching_it_in_a_scope_too(client, proxy):
    """Nothing is sent by that."""
    async with batch() as scope:
        future = client.get("a")
        with pytest.raises(NotReady):
            future + "x"
        assert scope.stats.flushes == 0
    assert proxy.names == [["GET"]]


@in_loop
async def test_asking_what_it_is_needs_no_value(client, plain):
    """isinstance, hasattr, getattr with a default: none of them raises."""
    future = client.get("a")
    assert isinstance(future, autobatch.Future)
    assert isinstance(future, collections.abc.Awaitable)
    assert not isinstance(future, str)
    assert not isinstance(future, (int, list, dict))
    assert not hasattr(future, "upper")
    assert getattr(future, "upper", None) is None
    assert inspect.isawaitable(future)
    assert asyncio.iscoroutine(future)
    await future


@in_loop
async def test_only_a_missing_attribute_is_an_attribute_error(client, plain):
    """In a property that computes with a pending value, it would be taken for one without it."""

    class Cart:
        @property
        def total(self):
            return price + 1

    price = client.incr("price")
    with pytest.raises(NotReady):
        getattr(Cart(), "total", 0)
    await price
    assert Cart().total == 2


@in_loop
async def test_a_key_is_a_value(client, plain):
    """A dict in which a pending one stood for itself would not find it again later."""
    plain.set("a", "x")
    future = client.get("a")
    with pytest.raises(NotReady):
        {future: 1}
    with pytest.raises(NotReady):
        {"x": 1}.get(future)
    await future
    assert {future: 1, "x": 2} == {"x": 2}


@in_loop
async def test_settled_it_behaves_as_its_value(client, plain):
    """Without `await`, and an awaited one no less."""
    plain.rpush("l", "x", "y")
    text, number, items, nothing = (
        client.set("a", "1", get=True),
        client.incrby("n", 5),
        client.lrange("l", 0, -1),
        client.get("none"),
    )
    await autobatch.asyncio.flush()
    assert text.value is None
    assert not nothing
    assert unwrap(nothing) is None
    assert number + 1 == 6
    assert 10 - number == 5
    assert f"{number:03}" == "005"
    assert isinstance(number, int)
    assert hash(number) == hash(5)
    assert items == ["x", "y"]
    assert [*items, "z"] == ["x", "y", "z"]
    assert items.index("y") == 1
    assert len(items) == 2
    assert inspect.isawaitable(items)
    assert await items == ["x", "y"]
    assert resolve([{"n": number}, items]) == [{"n": 5}, ["x", "y"]]
    assert await client.set("copy", number) is True
    assert plain.get("copy") == "5"


@in_loop
async def test_a_settled_failure_raises_wherever_it_is_touched(client, plain):
    """Awaited or not, with the line that queued it."""
    plain.set("a", "text")
    future = client.incr("a")
    assert isinstance(await failure_of(future), redis.ResponseError)
    with pytest.raises(redis.ResponseError, match="not an integer") as raised:
        future + 1
    assert "test_asyncio.py" in raised.value.__notes__[0]
    assert isinstance(future.exception(), redis.ResponseError)
    with pytest.raises(redis.ResponseError):
        await future


async def failure_of(future):
    try:
        await future
    except Exception as error:
        return error
    return None


@in_loop
async def test_value_and_exception(client, plain):
    """Both raise NotReady before, and tell after."""
    future = client.set("a", "1")
    for ask in (lambda: future.value, future.exception):
        with pytest.raises(NotReady):
            ask()
    await future
    assert future.value is True
    assert future.exception() is None


async def _gathered(future):
    [got] = await asyncio.gather(future)
    return got


async def _in_task_group(future):
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(future)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return task.result()


async def _as_completed(future):
    [done] = [await each for each in asyncio.as_completed([future])]
    return done


async def _waited_for(future):
    task = asyncio.ensure_future(future)
    [done], _ = await asyncio.wait([task])
    return done.result()


async def _in_timeout(future):
    async with asyncio.timeout(10):
        return await future


WAYS = {
    "create_task": asyncio.create_task,
    "ensure_future": asyncio.ensure_future,
    "gather": _gathered,
    "wait_for": lambda f: asyncio.wait_for(f, 10),
    "wait_for without limit": lambda f: asyncio.wait_for(f, None),
    "shield": asyncio.shield,
    "TaskGroup": _in_task_group,
    "as_completed": _as_completed,
    "wait": _waited_for,
    "timeout": _in_timeout,
    "coroutine": value,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("state", ["pending", "settled"])
def test_it_passes_for_a_coroutine(state, way, client, plain):
    """Wherever asyncio wants one, before it has a value and after."""

    @in_loop
    async def test():
        future = client.rpush("l", "x")
        items = client.lrange("l", 0, -1)
        if state == "settled":
            await items
        got = await way(future)
        assert type(got) is int
        assert got == 1
        assert await way(items) == ["x"]  # a list, which has no hash
        plain.set("text", "x")
        failing = client.incr("text")
        if state == "settled":
            assert await failure_of(failing)
        with pytest.raises(redis.ResponseError, match="not an integer"):
            await way(failing)

    test()


@in_loop
async def test_gather_of_all_kinds(client, plain):
    """The same Future twice, pending and settled ones, lists as values, and failures."""
    plain.rpush("l", "x", "y")
    plain.set("text", "x")
    items, number = client.lrange("l", 0, -1), client.incr("n")
    await number
    late, wrong = client.get("text"), client.incr("text")
    got = await asyncio.gather(items, items, number, late, number, wrong, return_exceptions=True)
    assert got[:5] == [["x", "y"], ["x", "y"], 1, "x", 1]
    assert isinstance(got[5], redis.ResponseError)
    with pytest.raises(redis.ResponseError):
        await asyncio.gather(wrong, late)


@in_loop
async def test_gather_of_equal_values(client, plain):
    """Settled Futures that are equal keep their own values."""
    truth, one = client.set("a", "1"), client.incr("n")
    await autobatch.asyncio.flush()
    got = await asyncio.gather(truth, one)
    assert [type(each) for each in got] == [bool, int]


@in_loop
async def test_as_completed_of_equal_values(client, plain):
    """Settled Futures that are equal are as many as they are."""
    futures = [client.set(key, "1") for key in "abc"]
    await autobatch.asyncio.flush()
    assert [await each for each in asyncio.as_completed(futures)] == [True] * 3


def test_called_before_there_is_a_loop(client, plain):
    """`asyncio.run(client.get(...))` works as with redis-py, for any command."""
    assert asyncio.run(client.set("a", "1")) is True
    assert asyncio.run(client.get("a")) == "1"
    assert asyncio.run(client.blpop("none", timeout=0.01)) is None
    gc.collect()


def test_driven_without_a_loop(client):
    """As a coroutine may be that is thrown away with its loop."""
    coroutine = client.get("a")
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)


def test_called_before_there_is_a_loop_and_never_run(client):
    """Python warns of it, as of any coroutine that was never awaited."""
    with pytest.warns(RuntimeWarning, match="never awaited"):
        client.get("a")
        gc.collect()


@in_loop
async def test_nobody_awaits_it(client, proxy):
    """Its command is sent all the same, at the end of the tick."""
    sent = client.set("a", "1")
    await eventually(sent.done)
    client.rpush("l", "x")
    client.rpush("l", "y")
    assert await client.llen("l") == 2
    assert proxy.names == [["SET"], ["RPUSH", "RPUSH", "LLEN"]]


def test_nobody_awaits_it_and_the_loop_ends(client, plain):
    """What was called in the loop's last tick is sent, too, on an open connection."""

    async def main():
        await client.ping()
        client.set("a", "1")

    asyncio.run(main())
    gc.collect()
    assert plain.get("a") == "1"


def test_the_first_call_of_a_loop_is_its_last(client, plain):
    """What was called is sent, though there is no connection yet when the loop ends."""

    async def main():
        client.set("a", "1")

    asyncio.run(main())
    gc.collect()
    assert plain.get("a") == "1"


@in_loop
async def test_an_unseen_error_outside_a_scope(client, plain):
    """The loop's exception handler hears of it once, with the line that queued it."""
    plain.set("text", "x")
    client.incr("text")
    await client.ping()
    [report] = await reports()
    assert "INCRBY text, queued at" in report["message"]
    assert "test_asyncio.py" in report["message"]
    assert isinstance(report["exception"], redis.ResponseError)
    assert await reports() == []


@in_loop
async def test_a_seen_error_outside_a_scope(client, plain):
    """Whoever awaited it, or asked for it, has looked."""
    plain.set("text", "x")
    awaited, asked = client.incr("text"), client.incr("text")
    with pytest.raises(redis.ResponseError):
        await awaited
    assert asked.exception() is not None
    gathered = await asyncio.gather(client.incr("text"), return_exceptions=True)
    assert isinstance(gathered[0], redis.ResponseError)
    del awaited, asked, gathered
    assert await reports() == []


@in_loop
async def test_an_unseen_error_in_a_scope(client, plain):
    """It is raised at the scope's end, the first with the others as notes."""
    plain.set("text", "x")
    with pytest.raises(redis.ResponseError, match="not an integer") as raised:
        async with batch():
            client.incr("text")
            seen = client.incr("text")
            client.lpush("text", "y")
            assert await failure_of(seen)
    assert "INCRBY text, queued at" in raised.value.__notes__[0]
    assert "LPUSH text" in raised.value.__notes__[1]
    assert len(raised.value.__notes__) == 2
    del raised, seen
    assert await reports() == []


@in_loop
async def test_looking_is_free(client, proxy, caplog):
    """repr, logging and what a debugger does neither send nor raise."""
    async with batch() as scope:
        future = client.get("a")
        assert repr(future) == "<Future pending: GET a>"
        assert pprint.pformat([future]) == "[<Future pending: GET a>]"
        with caplog.at_level(logging.INFO):
            logging.getLogger("app").info("got %s and %r", future, future)
            logging.getLogger("app").info("only %s", future)
            logging.getLogger("app").info(future)
        assert caplog.messages[0].count("<Future pending: GET a>") == 2
        assert caplog.messages[1:] == ["only <Future pending: GET a>", "<Future pending: GET a>"]
        assert not future.done()
        assert type(future) is AsyncFuture
        assert future.__class__ is AsyncFuture
        assert {"future": future} != {}
        assert scope.stats.flushes == 0
    assert repr(future) == "<Future done: None>"


# ---- map -------------------------------------------------------------------------------------


@in_loop
async def test_a_mapped_future(client, proxy):
    """It has the function's result, awaited any number of times, and forces nothing."""
    async with batch() as scope:
        calls = []
        doubled = client.incr("n").map(lambda n: calls.append(n) or n * 2)
        assert type(doubled) is AsyncFuture
        assert scope.stats.flushes == 0
        with pytest.raises(NotReady, match="map of INCRBY n"):
            doubled + 1
        assert [await doubled, await doubled] == [2, 2]
        assert await asyncio.gather(doubled, doubled) == [2, 2]
        assert doubled + 1 == 3
        assert calls == [1]


@in_loop
async def test_chains_of_maps_share_their_second_wave(client, proxy, plain):
    """Commands that the functions call ride together in the next round trip."""
    plain.mset({f"name:{i}": f"user:{i}" for i in range(5)})
    plain.mset({f"user:{i}": f"{i}" for i in range(5)})
    async with batch():
        users = [
            client.get(f"name:{i}").map(client.get).map(int).map(lambda n: n + 1) for i in range(5)
        ]
        assert await asyncio.gather(*users) == [1, 2, 3, 4, 5]
    assert proxy.names == [["GET"] * 5, ["GET"] * 5]


@in_loop
async def test_chains_of_maps_outside_a_scope(client, proxy, plain):
    """There, too."""
    plain.mset({"a": "b", "b": "c", "c": "d"})
    chains = [client.get("a").map(client.get).map(client.get) for _ in range(3)]
    assert await asyncio.gather(*chains) == ["d"] * 3
    assert proxy.names == [["GET"] * 3] * 3


@in_loop
async def test_a_mapped_future_that_nobody_awaits(client, plain):
    """What its function calls is sent, in a scope and outside."""
    plain.mset({"a": "1", "b": "2"})
    async with batch():
        client.get("a").map(lambda text: client.set("copy a", text))
    assert plain.get("copy a") == "1"
    client.get("b").map(lambda text: client.set("copy b", text))
    await eventually(lambda: plain.get("copy b") == "2")


@in_loop
async def test_a_function_that_raises(client, plain):
    """Its error is the mapped Future's; it surfaces like a command's."""
    async with batch():
        broken = client.incr("n").map(lambda n: n / 0)
        with pytest.raises(ZeroDivisionError):
            await broken
        with pytest.raises(ZeroDivisionError):
            await broken
    with pytest.raises(ZeroDivisionError):
        async with batch():
            client.incr("n").map(lambda n: n / 0)
    client.incr("n").map(lambda n: n / 0)
    await client.ping()
    [report] = await reports()
    assert isinstance(report["exception"], ZeroDivisionError)


@in_loop
async def test_a_map_of_a_failure(client, plain):
    """The function is not called, and the error is told once."""
    plain.set("text", "x")
    called = []
    with pytest.raises(redis.ResponseError, match="not an integer"):
        await client.incr("text").map(called.append)
    client.incr("text").map(called.append)
    await client.ping()
    [report] = await reports()
    assert isinstance(report["exception"], redis.ResponseError)
    assert called == []


@in_loop
async def test_a_map_of_a_settled_future(client, plain):
    """It is settled at once."""
    number = client.incr("n")
    await number
    assert number.map(lambda n: n + 1) + 1 == 3
    assert await number.map(lambda n: client.incrby("n", n)) == 2


# ---- other threads and loops -----------------------------------------------------------------


@in_loop
async def test_awaited_in_another_threads_loop(client, plain):
    """Pending or settled, the value arrives there."""

    def elsewhere(future):
        return asyncio.run(value(future))

    settled = client.incr("a")
    await settled
    assert await asyncio.to_thread(elsewhere, settled) == 1
    pending = client.incr("a")
    assert await asyncio.to_thread(elsewhere, pending) == 2
    assert await pending == 2


@in_loop
async def test_called_in_a_thread(client, proxy, plain):
    """In the scope it joins; without one it is a coroutine for a loop of that thread."""

    @batch
    def increment():
        return client.incr("n")

    async with batch():
        future = await asyncio.to_thread(increment)
        client.incr("n")
        assert await future == 1
    assert proxy.names == [["INCRBY", "INCRBY"]]
    assert await asyncio.to_thread(lambda: asyncio.run(client.incr("n"))) == 3
    with pytest.raises(NotSent, match="not sent: no event loop") as info:
        (await asyncio.to_thread(increment)).value
    assert isinstance(info.value, NoLoop)


@in_loop
async def test_in_flight_and_awaited_in_another_threads_loop(server, plain):
    """Who waits there is woken there, and a scope waits here for what was sent there."""
    with Proxy(server, delay=0) as proxy:
        client = client_of(proxy.port)
        await client.ping()
        hold = Hold()
        proxy.arm(hold)
        future = client.incr("a")
        elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, value(future)))
        await eventually(hold.requested.is_set)
        hold.released.set()
        assert await elsewhere == 1
        assert await future == 1
        await client.aclose()


@in_loop
async def test_a_scopes_command_sent_by_another_threads_loop(server, plain):
    """The scope's end waits for it, and is woken although it landed in the other thread."""
    with Proxy(server, delay=0) as proxy:
        client = client_of(proxy.port, socket_timeout=None)
        hold = Hold()
        proxy.arm(hold)
        async with batch():
            future = client.incr("a")
            elsewhere = threading.Thread(target=asyncio.run, args=(value(future),))
            elsewhere.start()
            assert await asyncio.to_thread(hold.replied.wait, 10)
            released = threading.Timer(0.05, hold.released.set)  # when this loop sleeps
            released.start()
        assert future.value == 1
        elsewhere.join()


# ---- what rides together ---------------------------------------------------------------------


@in_loop
async def test_gathered_awaits_share_a_round_trip(client, proxy, plain):
    """Fifty of them take one, on one connection."""
    plain.mset({f"k{i}": f"{i}" for i in range(50)})

    async def read(i):
        return await client.get(f"k{i}")

    assert await asyncio.gather(*map(read, range(50))) == [f"{i}" for i in range(50)]
    assert proxy.names == [["GET"] * 50]
    assert len(proxy.links) == 1


@in_loop
async def test_gathered_futures_share_a_round_trip(client, proxy):
    """Without coroutines of the program, and in a TaskGroup."""
    await asyncio.gather(*(client.incr("n") for _ in range(50)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.incr("n")) for _ in range(50)]
    assert [task.result() for task in tasks] == list(range(51, 101))
    assert proxy.names == [["INCRBY"] * 50] * 2


@in_loop
async def test_sequential_awaits_in_gathered_tasks(client, proxy):
    """Four awaits in each of twenty tasks are four round trips."""

    async def work(task):
        return [await client.incr(f"n{task}") for _ in range(4)]

    assert await asyncio.gather(*map(work, range(20))) == [[1, 2, 3, 4]] * 20
    assert proxy.names == [["INCRBY"] * 20] * 4


@in_loop
async def test_unawaited_commands_of_a_scope_wait(client, proxy):
    """For a value that is needed, or the scope's end; ticks go by meanwhile."""
    async with batch() as scope:
        client.set("a", "1")
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert scope.stats.flushes == 0
        client.set("b", "2")
        assert await client.get("b") == "2"
        client.set("c", "3")
    assert proxy.names == [["SET", "SET", "GET"], ["SET"]]
    assert scope.stats.commands == 4
    assert scope.stats.round_trips == 2


@in_loop
async def test_flush_sends_what_waits(client, proxy):
    """`scope.aflush()` and `autobatch.asyncio.flush()`, in a scope and outside."""
    async with batch() as scope:
        first = client.incr("n")
        await scope.aflush()
        assert first == 1
        second = client.incr("n")
        await autobatch.asyncio.flush()
        assert second == 2
    third = client.incr("n")
    await autobatch.asyncio.flush()
    assert third == 3
    assert proxy.names == [["INCRBY"]] * 3


@in_loop
async def test_discard_drops_what_waits(client, proxy):
    """The Futures say so."""
    async with batch() as scope:
        dropped = client.incr("n")
        scope.discard()
        with pytest.raises(NotSent):
            await dropped
    assert proxy.names == []


@in_loop
async def test_two_servers_share_the_time(server, second_server, plain):
    """Both batches are written before either reply has come."""
    with redis.Redis(port=second_server) as other:
        other.flushall()
    with Proxy(server, delay=0) as one, Proxy(second_server, delay=0) as two:
        first, second = client_of(one.port), client_of(two.port)
        await asyncio.gather(first.ping(), second.ping())
        holds = Hold(), Hold()
        one.arm(holds[0])
        two.arm(holds[1])
        async with batch() as scope:
            a, b = first.incr("n"), second.incrby("n", 5)
            end = asyncio.create_task(scope.aflush())
            for hold in holds:  # neither has its reply yet
                await eventually(hold.replied.is_set)
            assert not a.done()
            assert not b.done()
            for hold in holds:
                hold.released.set()
            await end
            assert (a, b) == (1, 5)
        assert scope.stats.round_trips == 1
        await first.aclose()
        await second.aclose()


@in_loop
async def test_requests_at_the_same_time_share_writes(client, proxy):
    """Each is a scope; what is ready in a tick is one write."""

    async def request(number):
        async with batch() as scope:
            client.set(f"k{number}", number)
            own = await client.get(f"k{number}")
            client.incr("requests")
        return own, scope.stats.round_trips

    assert await asyncio.gather(*map(request, range(10))) == [(f"{i}", 2) for i in range(10)]
    assert proxy.names == [["SET", "GET"] * 10, ["INCRBY"] * 10]


@in_loop
async def test_the_order_of_a_scope_holds(client, plain):
    """Whatever its tasks do in between, commands arrive as they were called."""
    called = []

    async def work(task):
        for step in range(10):
            called.append(f"{task}.{step}")
            future = client.rpush("log", called[-1])
            if (task + step) % 3 == 0:
                await future
            elif (task + step) % 3 == 1:
                await asyncio.sleep(0)

    async with batch():
        await asyncio.gather(*map(work, range(7)))
    assert plain.lrange("log", 0, -1) == called


@in_loop
async def test_the_order_outside_a_scope_holds(client, plain):
    """The same without a scope, also across commands that step aside."""
    called = []
    for step in range(9):
        called.append(f"{step}")
        client.rpush("log", called[-1])
        if step % 3 == 2:
            await client.blpop("none", timeout=0.01)
            assert plain.lrange("log", 0, -1) == called
    await client.ping()
    assert plain.lrange("log", 0, -1) == called


@in_loop
async def test_a_scope_comes_after_what_was_called_outside(client, plain):
    """Also where it is flushed at once; one that joins nothing, likewise."""
    client.set("a", "1")
    async with batch() as scope:
        future = client.get("a")
        await scope.aflush()
        assert future == "1"
    client.set("a", "2")
    async with batch(join=False):
        assert tuple(await client.blpop("none", timeout=0.01) or ()) == ()
        assert plain.get("a") == "2"


ASIDE = {
    "pipeline": lambda client: client.pipeline().strlen("big").execute(),
    "transaction": lambda client: client.transaction(lambda pipe: pipe.strlen("big")),
    "eager": lambda client: client.eager.strlen("big"),
    "blocking": lambda client: client.blpop("list", timeout=0.01),
    "stream": lambda client: client.xread({"stream": "0"}, block=1),
    "connection": lambda client: client.client_id(),
}


@pytest.mark.parametrize("aside", ASIDE.values(), ids=ASIDE)
def test_what_steps_aside_comes_after_what_was_called_outside(aside, client, proxy, plain):
    """It waits until that has its replies, though nobody awaits them."""

    @in_loop
    async def test():
        await asyncio.gather(client.ping(), client.client_id())  # both connections are open
        big = "x" * 10_000_000
        writes = [
            client.set("big", big),
            client.rpush("list", big),
            client.xadd("stream", {big: 1}),
        ]
        got = await aside(client)
        assert all(write.done() for write in writes)
        assert got not in (0, [0], None, [])

    test()


@in_loop
async def test_the_limit_flushes_early(client, proxy):
    """At `max_commands`, and without anybody's await."""
    async with batch(max_commands=5) as scope:
        futures = [client.incr("n") for _ in range(12)]
        assert scope.stats.flushes == 2
        await eventually(futures[9].done)
        assert not futures[10].done()
    assert futures == list(range(1, 13))
    assert proxy.commands == 12


@in_loop
async def test_the_limit_of_bytes(client, proxy):
    """At `max_bytes`, likewise."""
    async with batch(max_bytes=1000) as scope:
        for _ in range(4):
            client.rpush("l", "x" * 400)
        assert scope.stats.flushes == 1
    assert scope.stats.commands == 4
    assert proxy.commands == 4


# ---- scopes ----------------------------------------------------------------------------------


@in_loop
async def test_decorated_coroutine_functions(client, proxy):
    """The outermost one is the scope; the inner ones join it."""

    @batch
    async def visit(page):
        client.incr(f"visits:{page}")
        client.expire(f"visits:{page}", 60)

    @batch()
    async def visit_all():
        for page in "abc":
            await visit(page)
        return client.get("visits:a")

    assert inspect.iscoroutinefunction(visit)
    future = await visit_all()
    assert future == "1"
    assert proxy.names == [["INCRBY", "EXPIRE"] * 3 + ["GET"]]


@in_loop
async def test_decorated_async_generators(client, proxy):
    """The scope covers the body, not the consumer."""

    @batch
    async def pages():
        for page in range(3):
            yield client.incr(f"page{page}")
        client.set("done", 1)

    assert inspect.isasyncgenfunction(pages)
    futures = []
    async for future in pages():
        futures.append(future)
        assert await client.ping()  # outside: it does not wait for the generator
    assert futures == [1, 1, 1]
    assert proxy.names == [["PING"]] * 3 + [["INCRBY"] * 3 + ["SET"]]


@in_loop
async def test_an_async_generator_left_early(client, plain):
    """Closing it ends its scope, and sends what waits."""

    @batch
    async def endless():
        while True:
            yield client.incr("n")

    async with contextlib.aclosing(endless()) as numbers:
        await anext(numbers)
        await anext(numbers)
        assert plain.get("n") is None
    assert plain.get("n") == "2"


@in_loop
async def test_an_async_generator_that_nobody_closed(client, plain):
    """The loop closes it in another task, where its scope ends well."""

    @batch
    async def endless():
        while True:
            yield client.incr("n")

    async for _ in endless():
        break
    gc.collect()
    await eventually(lambda: plain.get("n") == "1")


@in_loop
async def test_nested_scopes_join(client, proxy):
    """Or open their own, after what waits around them."""
    async with batch() as outer:
        client.set("a", "1")
        async with batch() as inner:
            assert inner is outer
            client.set("b", "2")
        async with batch(join=False) as own:
            assert own is not outer
            client.set("c", "3")
        client.set("d", "4")
    assert proxy.names == [["SET", "SET"], ["SET"], ["SET"]]


@in_loop
async def test_an_atomic_block(client, proxy, plain):
    """MULTI and EXEC in the same write; awaiting inside says why it cannot be."""
    async with batch() as scope:
        client.set("a", "1")
        async with batch(atomic=True):
            number = client.incr("a")
            text = client.get("a")
            with pytest.raises(NotReady, match="atomic block"):
                await number
            with pytest.raises(NotReady, match="atomic block"):
                await autobatch.asyncio.flush()
            with pytest.raises(AutobatchError, match="atomic block"):
                await client.blpop("none", timeout=0.01)
        late = client.get("a")
        assert await number == 2
        assert text == late == "2"
    assert proxy.names == [["SET", "MULTI", "INCRBY", "GET", "EXEC", "GET"]]
    assert scope.stats.round_trips == 1


@in_loop
async def test_an_atomic_block_of_its_own(client, proxy):
    """It is a scope if there is none; nobody else's command lands in it."""

    @batch(atomic=True)
    async def move(amount):
        client.decrby("from", amount)
        await asyncio.sleep(0)
        client.incrby("to", amount)

    await asyncio.gather(move(1), move(2), value(client.get("x")), move(3))
    flat = list(itertools.chain(*proxy.names))
    assert flat.count("MULTI") == 3
    for at, name in enumerate(flat):
        if name == "MULTI":
            assert flat[at : at + 4] == ["MULTI", "DECRBY", "INCRBY", "EXEC"]


@in_loop
async def test_an_atomic_block_that_fails(client, proxy):
    """Its commands are dropped, and those around it sent."""
    async with batch():
        client.set("a", "1")
        with contextlib.suppress(ZeroDivisionError):
            async with batch(atomic=True):
                dropped = client.incr("a")
                raise ZeroDivisionError
        with pytest.raises(NotSent):
            await dropped
    assert proxy.names == [["SET"]]


@in_loop
async def test_discarding_on_error(client, proxy):
    """What still waits is dropped when the block raises."""
    with pytest.raises(ZeroDivisionError):
        async with batch(on_error="discard"):
            assert await client.incr("n") == 1
            dropped = client.incr("n")
            raise ZeroDivisionError
    assert isinstance(dropped.exception(), NotSent)
    assert proxy.names == [["INCRBY"]]


@in_loop
async def test_an_error_ends_a_scope(client, proxy):
    """What waits is sent, and errors that nobody saw are its notes."""
    plain = client.set("text", "x")
    await plain
    with pytest.raises(ZeroDivisionError) as raised:
        async with batch():
            client.set("a", "1")
            client.incr("text")
            raise ZeroDivisionError
    assert "INCRBY text" in raised.value.__notes__[0]
    assert proxy.names == [["SET"], ["SET", "INCRBY"]]


@in_loop
async def test_sync_and_asyncio_clients_in_one_scope(client, sync_client, plain):
    """The order of their calls holds; a synchronous client's exchange is a thread's."""
    threads = set()
    sync_client.set_response_callback("RPUSH", lambda n: threads.add(threading.get_ident()) or n)
    async with batch():
        client.rpush("log", "1")
        future = sync_client.rpush("log", "2")
        client.rpush("log", "3")
        sync_client.rpush("log", "4")
        items = client.lrange("log", 0, -1)
        assert await items == ["1", "2", "3", "4"]
        assert future == 2
        sync_client.rpush("log", "5")
    assert plain.lrange("log", 0, -1) == ["1", "2", "3", "4", "5"]
    assert threads
    assert threading.get_ident() not in threads


@in_loop
async def test_all_cancelled_while_both_kinds_of_clients_are_on_their_way(
    client, sync_client, plain
):
    """Whenever that is, the scope ends and what was called is sent."""

    async def work():
        async with batch():
            called.extend([sync_client.incr("n"), client.incr("n"), sync_client.incr("n")])
            await called[1]

    for turns in range(12):
        plain.delete("n")
        called = []
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        await asyncio.wait([task])
        await eventually(lambda: all(future.done() for future in called))
        assert sorted(map(int, called)) == list(range(1, len(called) + 1))
    assert called


@in_loop
async def test_the_loop_runs_while_a_sync_client_waits(server, plain):
    """The reply is held back until the loop has had its turn."""
    with Proxy(server, delay=0) as proxy, autobatch.Redis(port=proxy.port) as sync_client:
        sync_client.ping()
        hold = Hold()
        proxy.arm(hold)
        async with batch():
            future = sync_client.incr("n")
            task = asyncio.create_task(release(hold))
        assert future == 1
        await task


@in_loop
async def test_the_order_of_flushes_while_a_sync_client_waits(server, client, plain):
    """What an asyncio client calls meanwhile does not overtake it."""
    with Proxy(server, delay=0) as proxy, autobatch.Redis(port=proxy.port) as sync_client:
        sync_client.ping()
        await client.ping()
        hold = HoldRequests()
        proxy.arm(hold)
        async with batch() as scope:
            sync_client.rpush("log", "1")
            first = asyncio.create_task(scope.aflush())
            await eventually(hold.requested.is_set)
            client.rpush("log", "2")
            second = asyncio.create_task(scope.aflush())
            await asyncio.sleep(0.01)  # time to overtake
            hold.released.set()
            await asyncio.gather(first, second)
            assert await client.lrange("log", 0, -1) == ["1", "2"]


async def release(hold):
    await eventually(hold.requested.is_set)
    hold.released.set()


@in_loop
async def test_a_sync_client_forced_on_the_loop(sync_client, plain):
    """It works, and warns."""
    async with batch():
        future = sync_client.incr("n")
        with pytest.warns(RuntimeWarning, match="event loop"):
            assert future + 1 == 2


@in_loop
async def test_child_tasks_share_the_scope(client, proxy):
    """create_task, gather and TaskGroup: one queue, one round trip."""

    async def child(number):
        client.set(f"k{number}", number)

    async with batch():
        await asyncio.create_task(child(1))
        await asyncio.gather(child(2), child(3))
        async with asyncio.TaskGroup() as group:
            group.create_task(child(4))
            group.create_task(child(5))
    assert proxy.names == [["SET"] * 5]


@in_loop
async def test_a_child_that_outlives_its_scope(client, proxy, plain):
    """It goes on as outside any scope, and loses nothing."""
    closed = asyncio.Event()

    async def child():
        client.rpush("log", "before")
        await closed.wait()
        client.rpush("log", "after")
        assert await client.lrange("log", 0, -1) == ["before", "after"]
        async with batch() as own:
            client.rpush("log", "own")
            assert own.stats.flushes == 0
        assert await client.llen("log") == 3
        return own

    async with batch() as scope:
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    closed.set()
    assert await task is not scope
    assert plain.lrange("log", 0, -1) == ["before", "after", "own"]


@in_loop
async def test_an_unseen_error_of_a_child_that_outlives_its_scope(client, plain):
    """The loop's exception handler hears of it, since no scope will."""
    plain.set("text", "x")
    closed = asyncio.Event()

    async def child():
        await closed.wait()
        client.incr("text")
        await client.ping()

    async with batch():
        task = asyncio.create_task(child())
    closed.set()
    await task
    [report] = await reports()
    assert "INCRBY text" in report["message"]


@in_loop
async def test_a_plain_with_block_in_asyncio_code(client, proxy, plain):
    """It hands over at its end, and waits for nothing; its Futures can be awaited afterwards."""
    with batch():
        first = client.incr("n")
        second = client.incr("n")
    assert not first.done()
    assert await second == 2
    assert first == 1
    assert proxy.names == [["INCRBY", "INCRBY"]]


@in_loop
async def test_an_unseen_error_of_a_plain_with_block(client, plain):
    """The block could not wait for it, so the loop's exception handler hears of it."""
    plain.set("text", "x")
    with batch():
        client.incr("text")
    await client.ping()
    [report] = await reports()
    assert "INCRBY text" in report["message"]


@in_loop
async def test_a_decorated_function_in_asyncio_code(client, proxy):
    """A synchronous building block joins the scope, and is one of its own without."""

    @batch
    def increment(key):
        client.incr(key)
        return client.get(key)

    async with batch():
        futures = [increment("n") for _ in range(3)]
    assert futures == ["1", "2", "3"]
    assert await increment("n") == "4"
    assert proxy.names == [["INCRBY", "GET"] * 3, ["INCRBY", "GET"]]


# ---- code written for redis.asyncio ----------------------------------------------------------


@pytest.fixture
def theirs(server):
    """redis-py's own asyncio client."""
    return redis.asyncio.Redis(port=server, decode_responses=True)


CALLS = {
    "set": lambda r: r.set("a", "1"),
    "set nx": lambda r: r.set("a", "2", nx=True),
    "set get": lambda r: r.set("a", "3", get=True),
    "get": lambda r: r.get("a"),
    "get missing": lambda r: r.get("missing"),
    "getdel": lambda r: r.getdel("a"),
    "mset": lambda r: r.mset({"b": "1", "c": "2"}),
    "mget": lambda r: r.mget("b", "missing", "c"),
    "incr": lambda r: r.incr("n"),
    "incrbyfloat": lambda r: r.incrbyfloat("f", 1.5),
    "append": lambda r: r.append("b", "x"),
    "strlen": lambda r: r.strlen("b"),
    "exists": lambda r: r.exists("b", "c", "missing"),
    "expire": lambda r: r.expire("b", 100),
    "ttl": lambda r: r.ttl("b"),
    "type": lambda r: r.type("b"),
    "delete": lambda r: r.delete("b", "missing"),
    "hset": lambda r: r.hset("h", mapping={"x": 1, "y": 2}),
    "hget": lambda r: r.hget("h", "x"),
    "hgetall": lambda r: r.hgetall("h"),
    "hgetall missing": lambda r: r.hgetall("missing"),
    "hmget": lambda r: r.hmget("h", "x", "missing"),
    "hexists": lambda r: r.hexists("h", "x"),
    "rpush": lambda r: r.rpush("l", "x", "y", "z"),
    "lrange": lambda r: r.lrange("l", 0, -1),
    "lpop": lambda r: r.lpop("l", 2),
    "sadd": lambda r: r.sadd("s", "x", "y"),
    "smembers": lambda r: r.smembers("s"),
    "sismember": lambda r: r.sismember("s", "x"),
    "zadd": lambda r: r.zadd("z", {"x": 1, "y": 2.5}),
    "zrange": lambda r: r.zrange("z", 0, -1, withscores=True),
    "zscore": lambda r: r.zscore("z", "y"),
    "zpopmin": lambda r: r.zpopmin("z"),
    "xadd": lambda r: r.xadd("x", {"f": "v"}, id="1-1"),
    "xrange": lambda r: r.xrange("x"),
    "xread": lambda r: r.xread({"x": "0"}),
    "xread block": lambda r: r.xread({"x": "1-1"}, block=1),
    "xgroup": lambda r: r.xgroup_create("x", "g", "0"),
    "xreadgroup": lambda r: r.xreadgroup("g", "me", {"x": ">"}),
    "xreadgroup block": lambda r: r.xreadgroup("g", "me", {"x": ">"}, block=1),
    "xack": lambda r: r.xack("x", "g", "1-1"),
    "xinfo": lambda r: r.xinfo_groups("x"),
    "geoadd": lambda r: r.geoadd("g", (13.361389, 38.115556, "Palermo")),
    "geopos": lambda r: r.geopos("g", "Palermo", "missing"),
    "pfadd": lambda r: r.pfadd("p", "x"),
    "pfcount": lambda r: r.pfcount("p"),
    "setbit": lambda r: r.setbit("bits", 3, 1),
    "bitcount": lambda r: r.bitcount("bits"),
    "eval": lambda r: r.eval("return {KEYS[1], 1, false}", 1, "k"),
    "scan": lambda r: r.scan(match="missing"),
    "blpop": lambda r: r.blpop(["l"], timeout=1),
    "blpop empty": lambda r: r.blpop(["missing"], timeout=0.01),
    "command_info": lambda r: r.command_info(),
    "memory_help": lambda r: r.memory_help(),
    "config": lambda r: r.config_get("maxmemory"),
    "ping": lambda r: r.ping(),
    "echo": lambda r: r.echo("x"),
    "raw": lambda r: r.execute_command("object", "encoding", "n"),
    "wrong": lambda r: r.lpush("n", "x"),
    "unknown": lambda r: r.execute_command("NOSUCH", "x"),
    "arity": lambda r: r.execute_command("GET"),
}


async def outcome_of(call, client):
    try:
        got = await call(client)
    except Exception as error:
        return type(error), str(error)
    return type(got), got


@pytest.mark.parametrize("protocol", [None, 2, 3])
@pytest.mark.parametrize("decode", [True, False])
def test_the_same_results_as_redis_py(decode, protocol, server, plain):
    """Each call of a long list, awaited: value and type, or error and message."""
    options = {"port": server, "decode_responses": decode}
    if protocol:
        options["protocol"] = protocol

    @in_loop
    async def test():
        outcomes = []
        async with redis.asyncio.Redis(**options) as theirs:
            outcomes.append([await outcome_of(call, theirs) for call in CALLS.values()])
        plain.flushall()
        async with autobatch.asyncio.Redis(**options) as ours:
            outcomes.append([await outcome_of(call, ours) for call in CALLS.values()])
        for name, expected, got in zip(CALLS, *outcomes, strict=True):
            assert (name, *got) == (name, *expected)
        plain.flushall()
        async with autobatch.asyncio.Redis(**options) as ours, batch():
            outcomes.append([await outcome_of(call, ours) for call in CALLS.values()])
        assert outcomes[2] == outcomes[0]

    test()


@in_loop
async def test_the_same_results_in_one_batch(theirs, client, plain):
    """Called first and looked at later, each has its own value."""
    calls = {k: v for k, v in CALLS.items() if k not in ("command_info", "memory_help")}
    expected = [await outcome_of(call, theirs) for call in calls.values()]
    await theirs.aclose()
    plain.flushall()
    async with batch():
        called = [call(client) for call in calls.values()]
        got = [await outcome_of(lambda _, c=each: c, None) for each in called]
    assert [(name, *each) for name, each in zip(calls, got, strict=True)] == [
        (name, *each) for name, each in zip(calls, expected, strict=True)
    ]


@in_loop
async def test_a_pipeline(client, proxy):
    """An explicit one runs as in redis-py, after what waits."""
    client.set("a", "1")
    async with client.pipeline(transaction=False) as pipe:
        assert await pipe.incr("a").get("a").execute() == [2, "2"]
    async with batch():
        client.incr("a")
        async with client.pipeline(transaction=True) as pipe:
            pipe.get("a")
            assert await pipe.execute() == ["3"]
    assert proxy.names == [["SET"], ["INCRBY", "GET"], ["INCRBY"], ["MULTI", "GET", "EXEC"]]


@in_loop
async def test_a_transaction_with_watch(client, plain):
    """WATCH, immediate reads, MULTI, EXEC: redis-py's recipe, and its helper."""
    client.set("n", 5)
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        current = int(await pipe.get("n"))
        pipe.multi()
        pipe.set("n", current * 2)
        assert await pipe.execute() == [True]
        await pipe.watch("n")
        await client.incr("n")
        pipe.multi()
        pipe.set("n", 0)
        with pytest.raises(redis.WatchError):
            await pipe.execute()

    async def double(pipe):
        number = int(await pipe.get("n"))
        pipe.multi()
        pipe.set("n", number * 2)

    assert await client.transaction(double, "n") == [True]
    assert await client.get("n") == "22"


@in_loop
async def test_pub_sub(client, plain):
    """Messages arrive, those that wait in the scope too, and the shared connection goes on."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        client.publish("news", "outside")
        async with batch():
            client.publish("news", "inside")
            messages = []
            while len(messages) < 2:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
                if message:
                    messages.append(message["data"])
        assert messages == ["outside", "inside"]
        await client.publish("news", "last")
        async for message in pubsub.listen():
            if message["type"] == "message":
                assert message["data"] == "last"
                break


@in_loop
async def test_locks(client, plain):
    """Acquire, ask, extend, release; and the one who comes too late."""
    async with client.lock("lock", timeout=5) as lock:
        assert await lock.locked() is True
        assert await lock.owned() is True
        assert await lock.extend(5) is True
        assert await lock.reacquire() is True
        late = client.lock("lock", blocking=False)
        assert await late.acquire() is False
    assert await lock.locked() is False
    async with batch():
        async with client.lock("lock", timeout=5) as lock:
            assert await lock.locked() is True
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            lost = client.lock("lock", timeout=5)
            await lost.acquire()
            await client.delete("lock")
            await lost.release()


@in_loop
async def test_scripts(client, proxy, plain):
    """Registered ones give Futures, share round trips and survive SCRIPT FLUSH."""
    increment = client.register_script(INCREMENT)
    assert await increment(keys=["n"]) == 1
    assert await asyncio.gather(*(increment(["n"], [10]) for _ in range(3))) == [11, 21, 31]
    plain.script_flush()
    async with batch():
        first, second = increment(keys=["n"]), increment(keys=["n"])
        assert not first.done()
    assert (first, second) == (32, 33)
    assert proxy.round_trips == 3
    async with client.pipeline() as pipe:
        await increment(keys=["n"], client=pipe)
        assert await pipe.execute() == [34]


@in_loop
async def test_an_evalsha_without_its_source(client, plain):
    """A NOSCRIPT is raised at the await, as in redis-py; SCRIPT LOAD makes it known."""
    with pytest.raises(redis.exceptions.NoScriptError):
        await client.evalsha("0" * 40, 0)
    digest = await client.script_load(INCREMENT)
    assert await client.evalsha(digest, 1, "n") == 1
    plain.script_flush()
    assert await client.evalsha(digest, 1, "n") == 2


@in_loop
async def test_iterating(client, plain):
    """scan_iter and its siblings, in a scope and outside."""
    plain.mset({f"k{i}": i for i in range(50)})
    plain.hset("h", mapping={f"f{i}": i for i in range(5)})
    plain.sadd("s", "x", "y")
    plain.zadd("z", {"x": 1})
    for scope in (contextlib.nullcontext(), batch()):
        async with scope:
            assert {key async for key in client.scan_iter("k*")} == {f"k{i}" for i in range(50)}
            assert dict([pair async for pair in client.hscan_iter("h")])["f4"] == "4"
            assert {member async for member in client.sscan_iter("s")} == {"x", "y"}
            assert [pair async for pair in client.zscan_iter("z")] == [("x", 1.0)]


@in_loop
async def test_as_a_context_manager(proxy, plain):
    """`async with client` sends what waits, and closes."""
    async with client_of(proxy.port) as client:
        client.set("a", "1")
    assert plain.get("a") == "1"
    await eventually(lambda: not proxy.links)


@in_loop
async def test_blocking_pops_after_what_waits(client, proxy, plain):
    """A command that blocks sees what was called before it, and holds up nobody."""
    client.rpush("l", "x")
    assert await client.blpop("l", timeout=5) == ("l", "x") or plain.llen("l") == 0
    async with batch():
        client.rpush("l", "y")
        assert tuple(await client.brpop("l", timeout=5)) == ("l", "y")
    waiting = asyncio.create_task(value(client.blpop("late", timeout=5)))
    await eventually(lambda: proxy.names[-1] == ["BLPOP"])
    assert await client.rpush("late", "z") == 1
    assert tuple(await waiting) == ("late", "z")


@in_loop
async def test_consumer_groups(client, plain):
    """Streams with XREADGROUP, with BLOCK and without."""
    await client.xgroup_create("x", "group", mkstream=True)
    ids = await asyncio.gather(*(client.xadd("x", {"n": i}) for i in range(3)))
    first = await client.xreadgroup("group", "me", {"x": ">"}, count=2)
    assert [entry for _, entries in first for entry in entries] == [
        (ids[0], {"n": "0"}),
        (ids[1], {"n": "1"}),
    ]
    async with batch():
        client.xack("x", "group", ids[0])
        late = await client.xreadgroup("group", "me", {"x": ">"}, block=5000)
        assert late[0][1][0][0] == ids[2]
    assert (await client.xpending("x", "group"))["pending"] == 2


@in_loop
async def test_connection_state_steps_aside(client, proxy, plain):
    """CLIENT commands run as in redis-py, after what waits."""
    client.set("a", "1")
    assert isinstance(await client.client_id(), int)
    assert await client.client_setname("x") is True
    with pytest.raises(redis.ResponseError):
        await client.execute_command("CLIENT", "NOSUCH")
    assert proxy.names[0] == ["SET"]


@in_loop
async def test_the_eager_view(client, proxy):
    """Coroutines and plain values, after what waits."""
    async with batch():
        client.set("a", "1")
        coroutine = client.eager.get("a")
        assert inspect.iscoroutine(coroutine)
        assert await coroutine == "1"
        client.set("b", "2")
    assert client.eager.batching is client
    assert await client.eager.get("b") == "2"
    assert proxy.names == [["SET"], ["GET"], ["SET"], ["GET"]]


@in_loop
async def test_wrapped_clients(proxy, theirs, plain):
    """The twin shares the pool; closing it closes the client."""
    original = redis.asyncio.Redis(port=proxy.port, decode_responses=True)
    client = autobatch.wrap(original)
    assert isinstance(client, autobatch.asyncio.Redis)
    assert autobatch.wrap(client) is client
    assert client.connection_pool is original.connection_pool
    assert await asyncio.gather(*(client.incr("n") for _ in range(5))) == [1, 2, 3, 4, 5]
    assert await original.get("n") == "5"
    assert proxy.names == [["INCRBY"] * 5, ["GET"]]
    await client.aclose()
    await eventually(lambda: not proxy.links)


@in_loop
async def test_a_subclass_that_overrides_execute_command(proxy, plain):
    """What it does to each call keeps its say, wrapped or inherited."""

    class Prefixed(redis.asyncio.Redis):
        async def execute_command(self, *args, **options):
            return await super().execute_command(args[0], f"app:{args[1]}", *args[2:], **options)

    class PrefixedToo(autobatch.asyncio.Redis):
        def execute_command(self, *args, **options):
            return super().execute_command(args[0], f"app:{args[1]}", *args[2:], **options)

    wrapped = autobatch.wrap(Prefixed(port=proxy.port, decode_responses=True))
    inherited = PrefixedToo(port=proxy.port, decode_responses=True)
    assert await wrapped.set("a", "1") is True
    assert await inherited.get("a") == "1"
    assert await asyncio.gather(*(wrapped.incr("n") for _ in range(3))) == [1, 2, 3]
    future = inherited.incr("n")
    assert type(future) is AsyncFuture
    assert await future == 4
    assert sorted(plain.keys()) == ["app:a", "app:n"]


@in_loop
async def test_a_client_with_its_own_connection(client, proxy, plain):
    """`client()` and `single_connection_client` keep one connection."""
    async with client.client() as own:
        assert isinstance(own, autobatch.asyncio.Redis)
        number = await own.client_id()
        assert await own.client_id() == number
        assert await own.set("a", "1") is True
        async with batch():
            assert await own.get("a") == "1"
            assert await client.get("a") == "1"
    async with client_of(proxy.port, single_connection_client=True) as own:
        assert await own.client_id() == await own.client_id()


@in_loop
async def test_a_client_with_its_own_connection_gives_coroutines(proxy, plain):
    """As redis-py does: a call runs when it is awaited, on that connection, also in a scope."""
    async with client_of(proxy.port, single_connection_client=True) as own:
        mine = await own.client_id()
        async with batch():
            call = own.incr("n")
            assert inspect.iscoroutine(call)
            assert await call == 1
        assert await own.client_id() == mine


@in_loop
async def test_a_pool_with_a_limit(server, plain):
    """The shared connection is none of its connections: with one of them all works."""
    for kind in (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool):
        pool = kind(port=server, decode_responses=True, max_connections=1)
        client = autobatch.asyncio.Redis(connection_pool=pool)
        assert await client.incr("n")
        for _ in range(2):
            got = await asyncio.gather(client.blpop("none", timeout=0.01), client.incr("n"))
            assert got[0] is None
            assert await client.pipeline().exists("n").execute() == [1]
        await client.aclose()
        await pool.aclose()
    assert plain.get("n") == "6"


@in_loop
async def test_an_asynchronous_response_callback(client, plain):
    """It is awaited, as redis-py does; what it raises is the command's error."""
    plain.set("a", "1")

    async def callback(reply, **options):
        await asyncio.sleep(0)
        if reply is None:
            raise KeyError("nothing")
        return f"<{reply}>"

    client.set_response_callback("GET", callback)
    assert await client.get("a") == "<1>"
    assert await client.eager.get("a") == "<1>"
    async with batch():
        coming, other = client.get("a"), client.exists("a")
        assert await other == 1
        assert await coming == "<1>"
    with pytest.raises(KeyError):
        await client.get("missing")
    eager = client.eager
    assert await eager.get("a") == "<1>"
    eager.set_response_callback("GET", str)
    assert (await client.get("a"), await eager.get("a")) == ("1", "1")


@in_loop
async def test_a_wrapped_client_has_an_asynchronous_response_callback(proxy, plain):
    """The client itself keeps it, and so does each view."""

    async def callback(reply, **options):
        await asyncio.sleep(0)
        return f"<{reply}>"

    plain.set("a", "1")
    async with redis.asyncio.Redis(port=proxy.port, decode_responses=True) as wrapped:
        wrapped.set_response_callback("GET", callback)
        client = autobatch.wrap(wrapped)
        async with batch() as scope:
            assert await asyncio.gather(client.get("a"), client.exists("a")) == ["<1>", 1]
        assert scope.stats.round_trips == 1
        client.set_response_callback("EXISTS", callback)
        assert await client.exists("a") == "<1>"
        for each in (wrapped, client.eager):
            assert (await each.get("a"), await each.exists("a")) == ("<1>", "<1>")
        await client.aclose()


@in_loop
async def test_awaiting_the_client(proxy):
    """`await Redis(...)` gives the client, as in redis-py."""
    client = await client_of(proxy.port)
    assert await client.ping() is True


@in_loop
async def test_wrong_arguments_raise_at_the_call(client, plain):
    """And mutable ones are captured there."""
    with pytest.raises(redis.DataError):
        client.set("a", None)
    payload = bytearray(b"old")
    future = client.set("a", payload)
    payload[:] = b"new"
    await future
    assert plain.get("a") == "old"


def test_it_is_a_redis_client(server, plain):
    """Constructors are redis-py's, and `lanes` is checked."""
    url = f"redis://127.0.0.1:{server}/0?decode_responses=True"
    clients = [
        autobatch.asyncio.Redis(host="127.0.0.1", port=server, decode_responses=True),
        autobatch.asyncio.Redis.from_url(url, lanes=2),
        autobatch.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool.from_url(url)),
        autobatch.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool.from_url(url)),
    ]

    async def main():
        for client in clients:
            assert type(client) is autobatch.asyncio.Redis
            assert isinstance(client, redis.asyncio.Redis)
            async with client:
                assert await client.set("a", "1") is True
                assert await client.get("a") == "1"

    asyncio.run(tidy(main()))
    with pytest.raises(ValueError, match="lanes"):
        autobatch.asyncio.Redis(lanes=0)
    with pytest.raises(ValueError, match="lanes"):
        autobatch.asyncio.Redis.from_url(url, lanes=0)


@in_loop
async def test_a_future_as_an_argument(client, plain):
    """A settled one is its value; a pending one is too early."""
    plain.set("a", "1")
    read = client.get("a")
    with pytest.raises(NotReady):
        client.set("b", read)
    await read
    await client.set("b", read)
    assert plain.get("b") == "1"


def test_nothing_warns(client, plain):
    """A program that closes nothing leaves nothing: no socket, no task, no warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        async def main():
            await client.ping()
            await client.blpop("none", timeout=0.01)

        asyncio.run(main())
        gc.collect()
    assert caught == []


@in_loop
async def test_a_limit_keeps_the_order_of_two_clients_of_one_server(client, proxy):
    """The second client's command leaves after the first one's reply."""
    held = HoldRequests()
    proxy.arm(held)
    other = client_of(proxy.port)
    async with batch(max_commands=1):
        first = client.incr("n")
        await asyncio.to_thread(held.requested.wait)
        second = other.incr("n")
        assert await asyncio.wait_for(asyncio.to_thread(held.released.wait, 0.05), 1) is False
        held.released.set()
    assert (await first, await second) == (1, 2)


class Sealing(redis.connection.Encoder):
    """A program's own encoder, as a pool's `encoder_class`."""

    def encode(self, value):
        return b"sealed:" + super().encode(value) if value == "secret" else super().encode(value)


@in_loop
async def test_the_pools_own_encoder_writes(server, plain):
    pool = redis.asyncio.ConnectionPool(port=server, encoder_class=Sealing)
    async with autobatch.asyncio.Redis.from_pool(pool) as client, batch():
        client.set("a", "secret")
        assert await client.get("a") == b"sealed:secret"
