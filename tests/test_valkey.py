"""valkey-py's clients, batching: values, errors, types and pools are valkey-py's."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import pickle
import subprocess
import sys

import pytest
import redis
from hypothesis import HealthCheck, given, settings

from autobatch import Future, batch, instrument, unwrap, wrap
from autobatch.errors import NotReady, NotSent, OutcomeUnknown
from autobatch.future import AsyncFuture
from autobatch.testing import Cut, Silence, unbatched
from common import PATIENCE, eventually
from looping import in_loop
from moments import Elsewhere, assert_told_truly
from programs_of_steps import keyspace, prepare, steps
from test_differential import BatchedRun, PlainRun

valkey = pytest.importorskip("valkey")

import valkey.asyncio  # noqa: E402, F811
from valkey.backoff import NoBackoff  # noqa: E402
from valkey.retry import Retry  # noqa: E402

from autobatch.valkey import AsyncValkey, Valkey  # noqa: E402

OPTIONS = {"decode_responses": True, "socket_timeout": PATIENCE}


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def protocol(request):
    return request.param


@pytest.fixture
def theirs(proxy, protocol):
    """A client of valkey-py's own."""
    with valkey.Valkey(port=proxy.port, protocol=protocol, **OPTIONS) as client:
        yield client


@pytest.fixture
def ours(theirs):
    """Its batching twin."""
    return wrap(theirs)


# ---- the same values -------------------------------------------------------------------------


def test_it_is_a_client_of_valkey_py(theirs, ours, proxy):
    """Of a subclass of its class, on its pool."""
    assert isinstance(ours, valkey.Valkey)
    assert isinstance(ours, Valkey)
    assert ours.connection_pool is theirs.connection_pool
    assert wrap(ours) is ours
    assert wrap(ours.eager) is ours
    with batch() as scope:
        future = ours.set("a", 1)
        assert type(future) is Future
        assert ours.get("a") == "1"
    assert proxy.names == [["SET", "GET"]]
    assert scope.stats.round_trips == 1
    assert ours.get("a") == "1"
    assert type(theirs) is valkey.Valkey
    assert theirs.get("a") == "1"


def test_constructors(server, plain):
    """It can be made without a client, too."""
    url = f"valkey://127.0.0.1:{server}?decode_responses=True"
    pool = valkey.ConnectionPool.from_url(url)
    blocking = valkey.BlockingConnectionPool.from_url(url)
    for client in [
        Valkey(port=server, decode_responses=True),
        Valkey.from_url(url),
        Valkey.from_pool(pool),
        Valkey(connection_pool=blocking),
        Valkey.from_url(url, single_connection_client=True),
        wrap(valkey.from_url(url)),
    ]:
        with client, batch() as scope:
            client.set("a", "x")
            assert client.get("a") == "x"
            assert client.eager.get("a") == "x"
        assert scope.stats.round_trips == 1


class Shop(valkey.Valkey):
    """A user's own client."""

    def name_of(self, number):
        return self.get(f"user:{number}")


def test_a_subclass(proxy, plain):
    """Its methods batch."""
    with wrap(Shop(port=proxy.port)) as shop:
        assert isinstance(shop, Shop)
        with batch():
            shop.set("user:1", "Ada")
            assert shop.name_of(1) == b"Ada"
    assert proxy.names == [["SET", "GET"]]


CALLS = [
    ("hset", "h", "f", "v"),
    ("hgetall", "h"),
    ("hgetall", "missing"),
    ("sadd", "s", "x"),
    ("smembers", "s"),
    ("sinter", "s", "missing"),
    ("zadd", "z", {"x": 1.5}),
    ("zrange", "z", 0, -1, False, True),
    ("zscore", "z", "x"),
    ("zincrby", "z", 2, "x"),
    ("incrbyfloat", "f", 0.5),
    ("mget", "a", "f"),
    ("type", "h"),
    ("ttl", "h"),
    ("xadd", "x", {"f": "v"}, "1-1"),
    ("xrange", "x"),
    ("xinfo_stream", "x"),
    ("xread", {"x": 0}),
    ("scan", 0),
    ("hscan", "h"),
    ("zscan", "z"),
    ("config_get", "maxmemory"),
    ("client_getname",),
    ("object", "encoding", "h"),
    ("dump", "missing"),
    ("geoadd", "g", [13.3, 38.1, "Palermo"]),
    ("geopos", "g", "Palermo"),
    ("setbit", "b", 7, 1),
    ("exists", "h", "s"),
    ("echo", "hello"),
    ("eval", "return {1, ARGV[1], {2}}", 0, "x"),
    ("eval", "return redis.error_reply('MINE it is')", 0),
    ("set", "a", 1, 10),
    ("get", "a"),
    ("get", "h"),
    ("lpush", "h", 1),
    ("getset", "a", "2"),
    ("set", "a", "3", None, None, False, False, False, True),
    ("execute_command", "NO-SUCH", "x"),
    ("time",),
    ("info", "server"),
    ("flushall",),
]


VALKEY = "valkey.exceptions"


def told(error):
    """The error of valkey-py's that it is, and its text."""
    return next(k.__name__ for k in type(error).__mro__ if k.__module__ == VALKEY), str(error)


def outcome(call, client):
    """The value, or the error, of a call."""
    name, *args = call
    try:
        value = unwrap(getattr(client, name)(*args))
    except Exception as error:
        return told(error)
    return type(value), (None if name in {"time", "info"} else value)


@pytest.mark.parametrize("decode", [True, False])
def test_values_are_the_same(server, plain, protocol, decode):
    """Of many commands, one after the other and in one batch, and their errors."""
    options = {"port": server, "protocol": protocol, "decode_responses": decode}
    with valkey.Valkey(**options) as client:
        expected = [outcome(call, client) for call in CALLS]
        twin = wrap(client)
        with batch():
            assert [outcome(call, twin) for call in CALLS] == expected
        assert [outcome(call, twin) for call in CALLS] == expected
        with batch():
            futures = [_start(call, twin) for call in CALLS[:10]]
            assert [(type(f.value), f.value) for f in futures] == expected[:10]


def _start(call, client):
    name, *args = call
    return getattr(client, name)(*args)


class PlainValkeyRun(PlainRun):
    """On valkey-py's client."""

    errors = valkey.ValkeyError


class BatchedValkeyRun(BatchedRun):
    """On its twin."""

    errors = valkey.ValkeyError


@pytest.fixture(scope="module")
def databases(server):
    """Two databases: one for the plain run, one for the batched run."""
    plain = valkey.Valkey(port=server, db=1, decode_responses=True)
    batching = wrap(valkey.Valkey(port=server, db=2, decode_responses=True))
    with plain, batching:
        yield plain, batching


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=steps())
def test_a_program_means_the_same_batched(databases, program):
    """As `test_differential` holds it for redis-py."""
    plain, batching = databases
    for client in databases:
        prepare(client)
    expected = PlainValkeyRun(plain).run(program)
    assert BatchedValkeyRun(batching).run(program) == expected
    assert keyspace(batching.eager) == keyspace(plain)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_text_is_written_in_the_clients_encoding(server, plain, encoding):
    """As valkey-py without libvalkey does; with it, in UTF-8."""
    options = {"port": server, "encoding": encoding, "decode_responses": True}
    with valkey.Valkey(**options) as client, valkey.Valkey(port=server) as raw:
        client.set("theirs", "ä")
        with batch():
            wrap(client).set("ours", "ä")
        assert raw.get("ours") == raw.get("theirs")


# ---- errors ----------------------------------------------------------------------------------


def test_errors_of_the_server_are_valkeys(ours, plain):
    """And redis-py's, for the code of autobatch itself."""
    plain.set("text", "x")
    with batch():
        future = ours.lpush("text", 1)
        with pytest.raises(valkey.exceptions.ResponseError, match="WRONGTYPE") as caught:
            future == 1
        assert isinstance(caught.value, redis.ResponseError)
        assert repr(caught.value) == f"ResponseError({str(caught.value)!r})"
        assert "LPUSH text, queued at" in caught.value.__notes__[0]
        assert "test_valkey.py" in caught.value.__notes__[0]
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"), batch():
        ours.lpush("text", 1)
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
        ours.lpush("text", 1)
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
        ours.eager.lpush("text", 1)


@pytest.mark.parametrize("inside", [True, False])
def test_an_argument_that_cannot_be_sent(ours, inside):
    """valkey-py's DataError, at the call."""
    with (
        batch() if inside else contextlib.nullcontext(),
        pytest.raises(valkey.DataError, match="object"),
    ):
        ours.set("a", object())


@pytest.mark.parametrize("inside", [True, False])
def test_a_lost_write_is_not_repeated(proxy, plain, protocol, inside):
    """OutcomeUnknown, which is a ConnectionError of valkey-py's."""
    retry = Retry(NoBackoff(), 3)
    with valkey.Valkey(port=proxy.port, protocol=protocol, retry=retry, **OPTIONS) as client:
        ours = wrap(client)
        ours.ping()
        proxy.arm(Cut(reply=0))
        scope = batch() if inside else contextlib.nullcontext()
        with pytest.raises(valkey.ConnectionError) as caught, scope:
            ours.incr("a")
        assert isinstance(caught.value, OutcomeUnknown)
        assert isinstance(caught.value, redis.ConnectionError)
        assert plain.get("a") == "1"
        assert ours.incr("a") == 2


def test_a_lost_read_is_repeated_as_often_as_retry_says(proxy, plain, protocol):
    """By valkey-py's own Retry."""
    plain.set("a", "x")
    for times in (0, 1):
        retry = Retry(NoBackoff(), times)
        with valkey.Valkey(port=proxy.port, protocol=protocol, retry=retry, **OPTIONS) as client:
            ours = wrap(client)
            ours.ping()
            proxy.arm(Cut(reply=0))
            with batch():
                future = ours.get("a")
                error = future.exception()
                assert (error is None) == bool(times)
                assert error is None or isinstance(error, valkey.ConnectionError)


def test_a_timeout(proxy, plain, protocol):
    """It is valkey-py's TimeoutError, too."""
    with valkey.Valkey(port=proxy.port, protocol=protocol, socket_timeout=0.2) as client:
        ours = wrap(client)
        ours.ping()
        proxy.arm(Silence())
        with batch(), pytest.raises(valkey.TimeoutError) as caught:
            int(ours.incr("a"))
        assert isinstance(caught.value, OutcomeUnknown)
        assert isinstance(caught.value, valkey.ConnectionError)


def test_no_server(protocol):
    """NotSent, which is valkey-py's ConnectionError."""
    with valkey.Valkey(port=1, protocol=protocol) as client:
        ours = wrap(client)
        with pytest.raises(valkey.ConnectionError) as caught, batch():
            ours.set("a", 1)
        assert isinstance(caught.value, NotSent)
        with pytest.raises(valkey.ConnectionError):
            ours.set("a", 1)


def test_closed_by_another_thread_at_any_point(server, plain):
    """Each command that waits or is on its way says what became of it."""
    for number in itertools.count(1):
        plain.delete("a")
        with valkey.Valkey(port=server, retry=Retry(NoBackoff(), 1), **OPTIONS) as theirs:
            client = wrap(theirs)
            if number % 2:
                client.echo("opened")

            def close(pool=theirs.connection_pool):
                for connection in [*pool._in_use_connections]:
                    connection.disconnect()

            elsewhere = Elsewhere(number, close)
            with batch() as scope:
                pushed = [client.rpush("a", count) for count in range(1, 4)]
                sys.setprofile(elsewhere)
                scope.flush()
                sys.setprofile(None)
                assert_told_truly(pushed, plain)
            assert client.echo("in step") == "in step"
        if elsewhere.left > 0 and not number % 2:  # one that had to open its connection, too
            break
    assert number > 50


def test_what_was_dropped(ours):
    """Says so with an error of valkey-py's as well."""
    with batch() as scope:
        future = ours.set("a", 1)
        scope.discard()
    assert isinstance(future.exception(), valkey.ConnectionError)
    assert isinstance(future.exception(), NotSent)


def test_a_wrong_password(server):
    """The error of the greeting keeps its kind."""
    with valkey.Valkey(port=server, password="wrong") as client:
        with pytest.raises(valkey.AuthenticationError) as caught, batch():
            wrap(client).set("a", 1)
        assert isinstance(caught.value, NotSent)


def test_errors_can_be_pickled(ours, plain):
    """And copied: what comes back is caught by the same clauses."""
    plain.set("text", "x")
    with batch() as scope:
        errors = [ours.lpush("text", 1).exception()]
        dropped = ours.set("a", 1)
        scope.discard()
        errors.append(dropped.exception())
    for error in errors:
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert isinstance(other, valkey.ValkeyError)
            assert isinstance(other, redis.RedisError)
            assert str(other) == str(error)


# ---- what takes a connection, and what looks at replies itself --------------------------------


def test_transactions(ours, proxy, plain):
    """Atomic blocks."""
    with batch():
        ours.set("a", 1)
        with batch(atomic=True):
            total = ours.incr("a")
            with pytest.raises(NotReady):
                int(total)
        assert total == 2
    assert proxy.names == [["SET", "MULTI", "INCRBY", "EXEC"]]
    plain.set("text", "x")
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"), batch(), batch(atomic=True):
        ours.lpush("text", 1)


def test_pipelines_pubsub_and_blocking_commands(ours, proxy, plain):
    """Each comes after what waits."""
    with batch():
        ours.set("a", 1)
        with ours.pipeline() as pipe:
            assert isinstance(pipe, valkey.client.Pipeline)
            pipe.watch("a")
            assert pipe.get("a") == "1"
            pipe.multi()
            pipe.incr("a")
            assert pipe.execute() == [2]
        ours.rpush("list", "x")
        assert ours.blpop("list", 1) == (["list", "x"] if _resp3(ours) else ("list", "x"))
        with ours.pubsub() as pubsub:
            pubsub.subscribe("news")
            assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
            ours.publish("news", "hello")
            assert pubsub.get_message(timeout=PATIENCE)["data"] == "hello"
        ours.set("b", 1)
        with ours.monitor():
            assert plain.get("b") == "1"
    with pytest.raises(TypeError):
        wrap(ours.pipeline())


def _resp3(client):
    return client.connection_pool.connection_kwargs["protocol"] == 3


def test_scripts_locks_scans_and_items(ours, plain):
    """What looks at replies itself."""
    script = ours.register_script("return redis.call('INCRBY', KEYS[1], 2)")
    with batch() as scope:
        ours.set("a", 1)
        assert [script(["a"]), script(["a"])] == [3, 5]
        assert scope.stats.round_trips == 1
        plain.script_flush()
        assert script(["a"]) == 7
        lock = ours.lock("l", timeout=PATIENCE)
        assert lock.locked() is False
        with lock:
            assert lock.locked() is True
        with pytest.raises(valkey.exceptions.LockError):
            lock.release()
        ours.mset({f"key{i}": i for i in range(20)})
        assert len(list(ours.scan_iter("key*", count=5))) == 20
        assert ours["a"] == "7"
        with pytest.raises(KeyError):
            ours["missing"]


def test_a_connection_of_its_own(theirs, proxy, plain):
    """`client()`, from valkey-py's client or from ours."""
    for single in (wrap(theirs.client()), wrap(theirs).client()):
        with single, batch() as scope:
            single.set("a", 1)
            single.select(1)
            assert single.get("a") is None or unwrap(single.get("a")) is None
            single.select(0)
            assert single.get("a") == "1"
        assert scope.stats.commands == 4


@pytest.mark.skipif(
    valkey.utils.LIBVALKEY_AVAILABLE, reason="valkey-py cannot cache with libvalkey"
)
def test_client_side_caching_is_left_to_valkey_py(server, plain):
    """Outside a scope its cache answers; inside one the server does."""
    with valkey.Valkey(port=server, protocol=3, cache_enabled=True) as client:
        ours = wrap(client)
        ours.set("a", 1)
        assert ours.get("a") == b"1"
        with batch():
            ours.set("a", 2)
            assert ours.get("a") == b"2"
        assert eventually(lambda: ours.get("a") == b"2")


def test_together_with_redis_py(ours, client, proxy):
    """Two libraries, one server, one scope: the program's order holds."""
    with batch():
        ours.set("a", 1)
        client.incr("a")
        ours.incr("a")
        assert client.get("a") == "3"


# ---- off, instrumented, without it -----------------------------------------------------------


def test_turned_off(ours, proxy, plain):
    """Each call runs at once, and raises its error."""
    plain.set("text", "x")
    with unbatched(), batch():
        assert ours.set("a", 1).done()
        with pytest.raises(valkey.ResponseError):
            ours.lpush("text", 1)
    assert proxy.names == [["SET"], ["LPUSH"]]


def test_instrumented(theirs, proxy, plain):
    """valkey-py's own clients batch inside scopes."""
    script = theirs.register_script("return redis.call('GET', KEYS[1])")
    with instrument(), batch():
        theirs.set("a", 1)
        assert type(theirs.get("a")) is Future
        assert theirs.get("a") == "1"
        assert theirs.lock("l").locked() is False
        theirs.set("a", 2)
        assert theirs.pipeline().get("a").execute() == ["2"]
        theirs.set("a", 3)
        assert script(["a"]) == "3"
        with pytest.raises(valkey.ResponseError):
            int(theirs.lpush("a", 1))
    assert type(theirs.get("a")) is str
    assert type(theirs) is valkey.Valkey


def test_instrumented_before_it_was_imported(server):
    """Calling `instrument` again is enough."""
    code = (
        "import autobatch\n"
        "autobatch.instrument()\n"
        "import valkey\n"
        f"client = valkey.Valkey(port={server})\n"
        "with autobatch.batch():\n"
        "    assert type(client.set('a', 1)) is bool\n"
        "    autobatch.instrument()\n"
        "    assert type(client.set('a', 1)) is autobatch.Future\n"
        "autobatch.uninstrument()\n"
        "with autobatch.batch():\n"
        "    assert type(client.set('a', 1)) is bool\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_program_without_valkey_py_does_not_import_it(server):
    """Nor is it needed."""
    code = (
        "import sys, autobatch, redis\n"
        f"client = autobatch.wrap(redis.Redis(port={server}))\n"
        "with autobatch.instrument(), autobatch.batch():\n"
        "    assert client.set('a', 1) == True\n"
        "assert 'valkey' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- asyncio ---------------------------------------------------------------------------------


def connect(port, protocol, **options):
    return valkey.asyncio.Valkey(port=port, protocol=protocol, **(OPTIONS | options))


@in_loop
async def test_asyncio(proxy, plain, protocol):
    """Types, values, pool, and what is shared."""
    theirs = connect(proxy.port, protocol)
    ours = wrap(theirs)
    assert isinstance(ours, AsyncValkey)
    assert isinstance(ours, valkey.asyncio.Valkey)
    assert await ours.set("a", 1) is True
    assert await asyncio.gather(*[ours.incr("a") for _ in range(5)]) == [2, 3, 4, 5, 6]
    async with batch() as scope:
        future = ours.set("b", 1)
        assert type(future) is AsyncFuture
        assert await ours.get("b") == "1"
        assert future.value is True
    assert scope.stats.round_trips == 1
    assert [names for names in proxy.names if "INCRBY" in names] == [["INCRBY"] * 5]
    assert await theirs.get("b") == "1"
    assert await ours.eager.get("b") == "1"
    await ours.aclose()


@in_loop
async def test_asyncio_values_are_the_same(server, plain, protocol):
    """Of many commands."""
    for decode in (True, False):
        theirs = connect(server, protocol, decode_responses=decode)
        expected = [await aoutcome(call, theirs) for call in CALLS]
        ours = wrap(theirs)
        async with batch():
            assert [await aoutcome(call, ours) for call in CALLS] == expected
        assert [await aoutcome(call, ours) for call in CALLS] == expected
        await ours.aclose()


async def aoutcome(call, client):
    name, *args = call
    try:
        value = await getattr(client, name)(*args)
    except Exception as error:
        return told(error)
    return type(value), (None if name in {"time", "info"} else value)


@in_loop
async def test_asyncio_errors(proxy, plain, protocol):
    """As of a synchronous client."""
    plain.set("text", "x")
    ours = wrap(connect(proxy.port, protocol))
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE") as caught:
        await ours.lpush("text", 1)
    assert "test_valkey.py" in caught.value.__notes__[0]
    with pytest.raises(valkey.DataError):
        await ours.set("a", object())
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
        async with batch():
            ours.lpush("text", 1)
    proxy.arm(Cut(reply=0))
    with pytest.raises(valkey.ConnectionError) as caught:
        await ours.incr("a")
    assert isinstance(caught.value, OutcomeUnknown)
    assert plain.get("a") == "1"
    assert await ours.incr("a") == 2
    await ours.aclose()
    nobody = wrap(connect(1, protocol))
    with pytest.raises(valkey.ConnectionError) as caught:
        await nobody.incr("a")
    assert isinstance(caught.value, NotSent)
    await nobody.aclose()


@in_loop
async def test_asyncio_a_timeout(proxy, plain, protocol):
    """It is valkey-py's TimeoutError, too."""
    ours = wrap(connect(proxy.port, protocol, socket_timeout=0.2))
    await ours.ping()
    proxy.arm(Silence())
    with pytest.raises(valkey.TimeoutError) as caught:
        await ours.incr("a")
    assert isinstance(caught.value, OutcomeUnknown)
    await ours.aclose()


@in_loop
async def test_asyncio_what_takes_a_connection(proxy, plain, protocol):
    """Pipelines, blocking commands, pub/sub, scripts, locks, transactions."""
    ours = wrap(connect(proxy.port, protocol))
    script = ours.register_script("return redis.call('INCRBY', KEYS[1], 2)")
    async with batch():
        ours.set("a", 1)
        assert await script(["a"]) == 3
        async with batch(atomic=True):
            ours.incr("a")
            total = ours.incr("a")
        assert await total == 5
        async with ours.pipeline() as pipe:
            assert await pipe.incr("a").execute() == [6]
            await script(["a"], client=pipe)
            assert await pipe.execute() == [8]
        ours.rpush("list", "x")
        assert list(await ours.blpop("list", 1)) == ["list", "x"]
        async with ours.pubsub() as pubsub:
            await pubsub.subscribe("news")
            assert (await pubsub.get_message(timeout=PATIENCE))["type"] == "subscribe"
            ours.publish("news", "hello")
            assert (await pubsub.get_message(timeout=PATIENCE))["data"] == "hello"
        lock = ours.lock("l", timeout=PATIENCE)
        assert await lock.locked() is False
        async with lock:
            assert await lock.locked() is True
    single = wrap(ours.client())
    assert await single.incr("a") == 9
    await single.aclose()
    await ours.aclose()


@in_loop
async def test_asyncio_closing(proxy, plain, protocol):
    """No connection is left."""

    def connections():
        return plain.info("clients")["connected_clients"]

    before = connections()
    async with wrap(connect(proxy.port, protocol)) as ours:
        await ours.set("a", 1)
        assert connections() > before
    await asyncio.to_thread(eventually, lambda: connections() == before)


@in_loop
async def test_asyncio_instrumented(proxy, plain, protocol):
    """Inside a scope calls of valkey-py's own client wait."""
    theirs = connect(proxy.port, protocol)
    with instrument():
        async with batch() as scope:
            theirs.set("a", 1)
            assert type(theirs.get("a")) is AsyncFuture
            assert await theirs.get("a") == "1"
            assert await theirs.lock("l").locked() is False
        assert scope.stats.round_trips == 1
        assert await theirs.get("a") == "1"
        await theirs.aclose()
