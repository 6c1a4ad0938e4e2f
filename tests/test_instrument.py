"""`instrument`: clients that others have made batch inside scopes; outside they are redis-py's."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import gc
import operator
import os
import queue
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio
from redis.lock import Lock
from redis.sentinel import Sentinel

import autobatch
from autobatch import Future, batch, instrument, uninstrument, unwrap
from autobatch.future import AsyncFuture
from autobatch.testing import Cut, Proxy
from common import PATIENCE, eventually, meanwhile
from looping import in_loop
from sentinels import SERVICE, Watched

METHODS = {
    kind: dict(vars(kind))
    for kind in (
        redis.Redis,
        redis.RedisCluster,
        redis.asyncio.Redis,
        redis.asyncio.RedisCluster,
    )
}


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Each test ends with redis-py's classes as they were."""
    yield
    uninstrument()
    assert {kind: dict(vars(kind)) for kind in METHODS} == METHODS


@pytest.fixture
def ours(proxy):
    """A client of redis-py's own, made before anything is instrumented."""
    with redis.Redis(port=proxy.port, decode_responses=True) as client:
        yield client


@pytest.fixture
def on():
    """redis-py is instrumented."""
    with instrument():
        yield


def seen(plain, key):
    """What the server has, asked outside any scope."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(plain.get, key).result(PATIENCE)


def module(name, source, **names):
    """A module of that name, so calls can come from it."""
    made = types.ModuleType(name)
    made.__dict__.update(names)
    exec(source, made.__dict__)
    return made


# ---- which clients ---------------------------------------------------------------------------


def test_a_client_that_was_there_before(ours, proxy, on):
    """Its calls wait inside a scope."""
    with batch() as scope:
        future = ours.set("a", 1)
        assert type(future) is Future
        value = ours.get("a")
        assert (future, value) == (True, "1")
    assert proxy.names == [["SET", "GET"]]
    assert scope.stats.round_trips == 1


def test_it_stays_what_it_is(ours, on):
    """No type changes, and none of its attributes but one of ours, so nothing can tell."""
    before = dict(vars(ours))
    with batch():
        ours.set("a", 1)
    assert type(ours) is redis.Redis
    assert vars(ours) == before | {"_wire": vars(ours)["_wire"]}


class Shop(redis.Redis):
    """A user's own client: it overrides the funnel, and has a method."""

    calls = 0

    def execute_command(self, *args, **options):
        Shop.calls += 1
        return super().execute_command(*args, **options)

    def name_of(self, number):
        return self.get(f"user:{number}")


def test_ways_to_make_a_client(server, plain, on):
    """Constructors, pools, URLs, subclasses, clients of their own connection."""
    from redis import Redis

    url = f"redis://127.0.0.1:{server}/0?decode_responses=True"
    pool = redis.ConnectionPool.from_url(url)
    with contextlib.ExitStack() as stack:
        for client in [
            Redis(port=server, decode_responses=True),
            redis.StrictRedis(port=server, decode_responses=True),
            redis.from_url(url),
            Redis.from_pool(pool),
            Redis(connection_pool=redis.BlockingConnectionPool.from_url(url)),
            Shop.from_url(url),
            Redis.from_url(url, single_connection_client=True),
            Redis.from_url(url, protocol=2),
        ]:
            stack.enter_context(client)
            with batch() as scope:
                client.set("a", "x")
                assert client.get("a") == "x"
            assert (scope.stats.commands, scope.stats.round_trips) == (2, 1)


def test_a_subclass_keeps_its_say(ours, proxy, on):
    """What it overrides runs once a call, and its own methods batch."""
    with Shop(port=proxy.port, decode_responses=True) as shop, batch():
        Shop.calls = 0
        shop.set("user:1", "Ada")
        name = shop.name_of(1)
        assert type(name) is Future
        assert name == "Ada"
        assert Shop.calls == 2
    assert proxy.names == [["SET", "GET"]]


@pytest.mark.server
def test_a_client_of_sentinel(on):
    """Which asks the sentinels by clients of its own: those are left alone."""
    with Watched() as watched:
        sentinel = Sentinel(watched.sentinels, socket_timeout=PATIENCE)
        with batch() as scope:
            primary = sentinel.master_for(SERVICE, decode_responses=True)
            primary.set("a", "x")
            assert primary.get("a") == "x"
        assert (scope.stats.commands, scope.stats.round_trips) == (2, 1)
        primary.close()


def test_a_client_of_autobatch_is_as_before(client, proxy, on):
    """It is not touched twice."""
    assert client.set("a", 1) is True
    with batch():
        client.incr("a")
        client.execute_command("CLIENT", "ID")
        assert client.get("a") == "2"
        assert client.eager.get("a") == "2"
    wrapped = autobatch.wrap(redis.Redis(port=proxy.port))
    with wrapped, batch():
        assert type(wrapped.get("a")) is Future


# ---- outside a scope -------------------------------------------------------------------------


def test_outside_a_scope_it_is_plain(ours, proxy, on):
    """Values, errors and round trips are redis-py's."""
    assert ours.set("a", 1) is True
    assert type(ours.get("a")) is str
    assert ours.get("missing") is None
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ours.lpush("a", 1)
    with pytest.raises(KeyError):
        ours["missing"]
    assert proxy.names == [["SET"], ["GET"], ["GET"], ["LPUSH"], ["GET"]]


def test_outside_a_scope_it_repeats_writes_as_redis_py_does(ours, proxy, on):
    """That is redis-py's way; inside a scope ours holds."""
    ours.ping()
    proxy.arm(Cut(reply=0))
    assert ours.incr("a") == 2
    proxy.arm(Cut(reply=0))
    with batch():
        assert isinstance(ours.incr("a").exception(), autobatch.errors.OutcomeUnknown)
    assert ours.get("a") == "3"


def test_a_scope_that_has_ended_is_none(ours, on):
    """As in a thread that outlives its request."""
    late = []
    go = threading.Event()

    def work():
        go.wait(PATIENCE)
        late.append(ours.set("a", 1))

    with batch():
        import contextvars

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
    go.set()
    thread.join(PATIENCE)
    assert late == [True]


# ---- whose calls -----------------------------------------------------------------------------

LIBRARY = """
def read(client, key):
    value = client.get(key)
    return "missing" if value is None else value
"""


def test_an_excluded_module_gets_plain_values(ours, proxy):
    """After what waits was sent: the order of the program holds."""
    library = module("library.cache", LIBRARY)
    with instrument(exclude=["library"]), batch():
        ours.set("a", "x")
        assert library.read(ours, "missing") == "missing"
        assert type(library.read(ours, "a")) is str
        ours.set("b", 1)
    assert proxy.names == [["SET"], ["GET"], ["GET"], ["SET"]]


def test_without_that_a_library_is_misled(ours, on):
    """What exclusion is for."""
    library = module("library.cache", LIBRARY)
    with batch():
        assert type(library.read(ours, "missing")) is Future


@pytest.mark.parametrize(
    ("rules", "batched"),
    [
        ({}, {"shop", "shop.views", "shopping", "cachelib_of_ours"}),
        ({"exclude": ["shop"]}, {"shopping", "cachelib_of_ours"}),
        ({"include": ["shop"]}, {"shop", "shop.views"}),
        ({"exclude": ["shop"], "include": ["shop.views"]}, {"shop.views"}),
        ({"include": ["shop"], "exclude": ["shop.views"]}, {"shop"}),
        ({"include": ["cachelib.redis"]}, {"cachelib.redis"}),
    ],
)
def test_the_most_specific_name_decides(ours, rules, batched):
    """Names are of modules with all that is inside, not beginnings of names."""
    names = ["shop", "shop.views", "shopping", "cachelib", "cachelib.redis", "cachelib_of_ours"]
    with instrument(**rules), batch():
        kinds = {
            name: type(module(name, "def get(client): return client.get('a')").get(ours))
            for name in names
        }
    assert {name for name, kind in kinds.items() if kind is Future} == batched


@pytest.mark.parametrize("rule", ["exclude", "include"])
def test_a_single_name_is_refused(ours, rule):
    """Its letters would be the names."""
    with pytest.raises(TypeError, match=r"\['shop'\]"):
        instrument(**{rule: "shop"})
    with batch():
        assert ours.get("a") is None  # nothing was switched on


def test_who_only_watches_is_looked_through(ours, on):
    """Tracers replace the same method: the call is that of the module behind them."""
    tracer = module(
        "opentelemetry.instrumentation.redis",
        "def wrap(f):\n    return lambda *args, **options: f(*args, **options)",
    )
    library = module("rq.job", LIBRARY)
    original = redis.Redis.execute_command
    redis.Redis.execute_command = tracer.wrap(original)
    try:
        with batch():
            assert type(ours.get("a")) is Future
            assert library.read(ours, "a") == "missing"
    finally:
        redis.Redis.execute_command = original


def test_a_tracer_put_on_top_may_stay(ours, plain):
    """Ours cannot be taken out below it, but does nothing any more, and is not put in twice."""
    calls = []
    ours.ping()
    first = instrument()
    inner = redis.Redis.execute_command

    def traced(self, *args, **options):
        calls.append(args[0])
        return inner(self, *args, **options)

    redis.Redis.execute_command = traced
    first.__exit__()
    with batch():
        assert ours.set("a", 1) is True
    with instrument(), batch():
        assert type(ours.get("a")) is Future
    assert calls == ["SET", "GET"]
    redis.Redis.execute_command = inner
    uninstrument()


def test_libraries(ours, server, plain, on):
    """Real ones, which test replies with `is None` or unpickle them, on a client of the program."""
    import cachelib
    from apscheduler.jobstores.redis import RedisJobStore
    from dogpile.cache import make_region
    from walrus import Walrus

    with batch():
        cache = cachelib.RedisCache(redis.Redis(port=server))
        assert cache.get("missing") is None
        cache.set("a", {"b": 1})
        assert cache.get("a") == {"b": 1}

        region = make_region().configure("dogpile.cache.redis", arguments={"port": server})
        assert region.get_or_create("made", lambda: {"x": 1}) == {"x": 1}
        assert region.get("made") == {"x": 1}

        walrus = Walrus(port=server)
        assert walrus.cache().get("missing") is None
        assert "zz" not in walrus.ZSet("z")

        store = RedisJobStore(port=server)
        assert store.lookup_job("missing") is None
        assert store.get_all_jobs() == []
        walrus.close()
        store.redis.close()
    gc.collect()


# ---- what takes a connection, and what looks at replies itself --------------------------------


def test_pipelines_come_after_what_waits(ours, proxy, on):
    """Also those that were made before the scope; and they stay pipelines of redis-py's."""
    early = ours.pipeline()
    assert isinstance(early, redis.client.Pipeline)
    with batch():
        ours.set("a", 1)
        assert early.incr("a").execute() == [2]
        ours.set("a", 5)
        with ours.pipeline(transaction=False) as pipe:
            pipe.watch("a")
            assert pipe.get("a") == "5"
            pipe.multi()
            pipe.incr("a")
            assert pipe.execute() == [6]

        def increment(pipe):
            pipe.multi()
            pipe.incr("a")

        ours.set("a", 8)
        assert ours.transaction(increment, "a") == [9]
    assert proxy.names[:2] == [["SET"], ["MULTI", "INCRBY", "EXEC"]]


def test_pubsub_and_monitor_come_after_what_waits(ours, plain, on):
    """A subscriber sees what was published before it looked."""
    with ours.pubsub() as pubsub, batch():
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
        ours.publish("news", "hello")
        assert pubsub.get_message(timeout=PATIENCE)["data"] == "hello"
        ours.set("a", 1)
        with ours.monitor():
            assert seen(plain, "a") == "1"


def test_blocking_commands_step_aside(ours, proxy, on):
    """As from a batching client."""
    with batch():
        ours.rpush("list", "x")
        assert ours.blpop("list", 1) == ("list", "x")
        ours.set("a", 1)
    assert proxy.names == [["RPUSH"], ["BLPOP"], ["SET"]]


@pytest.mark.parametrize("inside", [True, False])
def test_locks_get_plain_values(ours, proxy, on, inside):
    """`locked` tests `is not None`. A lock may be older than the scope, and than `instrument`."""
    with batch() if inside else contextlib.nullcontext():
        locks = [ours.lock("one"), Lock(ours, "two", timeout=PATIENCE)]
    with batch():
        ours.set("a", 1)
        for lock in locks:
            assert lock.locked() is False
            with lock:
                assert lock.locked() is True
                assert lock.owned() is True
            assert lock.locked() is False


def test_scripts_ride_in_the_batch(ours, proxy, plain, on):
    """Registered outside or inside a scope."""
    outside = ours.register_script("return redis.call('INCRBY', KEYS[1], 2)")
    with batch() as scope:
        inside = ours.register_script("return redis.call('INCRBY', KEYS[1], 3)")
        ours.set("a", 1)
        values = [outside(["a"]), inside(["a"]), outside(["a"])]
        assert values == [3, 6, 8]
    assert scope.stats.round_trips == 1


def test_a_script_from_before(ours, plain):
    """Its text is not known, so it runs at once."""
    script = ours.register_script("return redis.call('INCR', KEYS[1])")
    with instrument(), batch():
        ours.set("a", 1)
        assert script(["a"]) == 2


def test_getting_an_item(ours, on):
    """`client[key]` raises KeyError on a miss."""
    with batch():
        ours.set("a", "x")
        assert ours["a"] == "x"
        with pytest.raises(KeyError):
            ours["missing"]


def test_scans(ours, on):
    """Iterators look at each page."""
    with batch():
        ours.mset({f"key{i}": i for i in range(30)})
        assert len(list(ours.scan_iter(count=7))) == 30


def test_callbacks_and_options(ours, on):
    """Response callbacks are the client's, also those set later."""
    with batch():
        ours.set("a", "x")
        ours.set_response_callback("GET", lambda reply, **_: f"<{reply}>")
        assert ours.get("a") == "<x>"
        assert ours.hgetall("missing") == {}
        assert ours.config_get("maxmemory") == {"maxmemory": "0"}


def test_transactions_and_errors(ours, proxy, plain, on):
    """Atomic blocks, and errors that surface at the end."""
    plain.set("text", "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as caught, batch():
        with batch(atomic=True):
            ours.set("a", 1)
            ours.incr("a")
        ours.lpush("text", 1)
    assert "test_transactions_and_errors" in caught.value.__notes__[0]
    assert proxy.names == [["MULTI", "SET", "INCRBY", "EXEC", "LPUSH"]]


def test_closing_sends_what_waits(proxy, plain, on):
    """And leaves no connection behind."""
    with batch():
        with redis.Redis(port=proxy.port) as client:
            client.set("a", 1)
        assert seen(plain, "a") == "1"


def test_the_garbage_collector_does_not_flush(proxy, plain, on):
    """A client that is forgotten keeps nothing alive; its commands leave with their scope."""
    with batch():
        client = redis.Redis(port=proxy.port)
        client.set("a", 1)
        del client  # there is no cycle: it goes at once
        assert seen(plain, "a") is None
    assert plain.get("a") == "1"


def test_a_client_makes_no_cycle(ours, on):
    """A view goes with the call, so a client is freed when it is forgotten."""
    import weakref

    client = redis.Redis(connection_pool=ours.connection_pool)
    with batch():
        client.get("a")
    forgotten = weakref.ref(client)
    gc.disable()
    try:
        del client
        assert forgotten() is None
    finally:
        gc.enable()


# ---- on and off ------------------------------------------------------------------------------


def test_on_and_off(ours, plain):
    """It may be called again, and is undone once."""
    instrument()
    instrument(exclude=["tests"])
    with batch():
        assert type(ours.set("a", 1)) is Future
        uninstrument()
        assert ours.get("b") is None
    assert plain.get("a") == "1"
    uninstrument()
    made_meanwhile = ours.pipeline()
    with batch():
        assert ours.get("a") == "1"
        assert made_meanwhile.get("a").execute() == ["1"]


def test_blocks_nest(ours):
    """The end of each brings back what was before it."""
    here = __name__

    def kind():
        with batch():
            return type(ours.get("a"))

    with instrument():
        assert kind() is Future
        with instrument(exclude=[here]):
            assert kind() is type(None)
        assert kind() is Future
    assert kind() is type(None)


def test_what_was_made_meanwhile_goes_on(proxy, plain):
    """A client, a lock, a script, a pipeline, a pub/sub: plain ones."""
    with instrument(), redis.Redis(port=proxy.port, decode_responses=True) as client:
        with batch():
            client.set("a", 1)
            lock, pipe, pubsub = client.lock("l"), client.pipeline(), client.pubsub()
            script = client.register_script("return redis.call('INCR', KEYS[1])")
        uninstrument()
        with batch():
            assert client.get("a") == "1"
            assert script(["a"]) == 2
            assert lock.locked() is False
            assert pipe.get("a").execute() == ["2"]
            pubsub.subscribe("x")
            pubsub.close()


def test_threads_turn_it_on_and_off(ours):
    """Each call sees either state, whole."""
    stop = threading.Event()

    def turn():
        while not stop.is_set():
            instrument()
            uninstrument()

    with contextlib.ExitStack() as stack:
        stack.enter_context(meanwhile(turn))
        stack.enter_context(meanwhile(turn))
        stack.callback(stop.set)
        for number in range(300):
            with batch():
                ours.set("a", number)
                assert unwrap(ours.get("a")) == str(number)


def test_methods_keep_their_signatures(on):
    """Names, documentation and signatures are what they were."""
    import inspect

    for kind, methods in METHODS.items():
        for name, now in vars(kind).items():
            if name in methods and now is not methods[name]:
                assert now.__doc__ == methods[name].__doc__
                assert inspect.signature(now) == inspect.signature(methods[name])


PROGRAM = """
import sys
import redis
client = redis.Redis(port=int(sys.argv[1]))
import autobatch
with autobatch.batch():
    client.set("a", 1)
    client.set("b", 1)
"""


@pytest.mark.parametrize(("value", "names"), [("1", [["SET", "SET"]]), ("0", [["SET"], ["SET"]])])
def test_the_environment_variable(server, value, names):
    """AUTOBATCH_INSTRUMENT=1 does it when autobatch is imported."""
    environment = {**os.environ, "AUTOBATCH_INSTRUMENT": value}
    with Proxy(server) as proxy:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(proxy.port)], env=environment, check=True
        )
        assert [sent for sent in proxy.names if "SET" in sent] == names


def test_called_where_no_line_of_python_is_outside(proxy, ours, on):
    """As `atexit.register(client.close)`, or a thread or a greenlet that begins with a call."""
    with batch():
        # All of this is C, in a context that is inside the scope.
        call = map(contextvars.copy_context().run, [ours.execute_command], ["INCR"], ["n"])
        answers = queue.SimpleQueue()
        _thread.start_new_thread(all, (map(answers.put, call),))
        assert answers.get(timeout=PATIENCE) == 1
    closed = map(operator.methodcaller("close"), [ours])
    _thread.start_new_thread(all, (map(answers.put, closed),))
    assert answers.get(timeout=PATIENCE) is None


# ---- asyncio ---------------------------------------------------------------------------------


def connections(plain):
    """How many the server has."""
    return plain.info("clients")["connected_clients"]


@in_loop
async def test_asyncio(proxy, plain, on):
    """Inside a scope calls wait; outside they are redis-py's coroutines."""
    before = connections(plain)
    client = redis.asyncio.Redis(port=proxy.port, decode_responses=True)
    outside = client.set("a", 1)
    assert asyncio.iscoroutine(outside)
    assert await outside is True
    async with batch() as scope:
        client.set("b", 2)
        future = client.get("a")
        assert type(future) is AsyncFuture
        assert await future == "1"
        assert await asyncio.gather(*[client.incr("b") for _ in range(3)]) == [3, 4, 5]
    assert scope.stats.round_trips == 2
    assert type(client) is redis.asyncio.Redis
    await client.aclose()
    await asyncio.to_thread(eventually, lambda: connections(plain) == before)


@in_loop
async def test_asyncio_response_callbacks_stay_the_clients(proxy, plain):
    """One that is a coroutine function, too: inside a scope, outside, and when all is over."""
    plain.set("a", "1")

    async def callback(reply, **options):
        return f"<{reply}>"

    async with (
        redis.asyncio.Redis(port=proxy.port, decode_responses=True) as before,
        redis.asyncio.Redis(port=proxy.port, decode_responses=True) as after,
    ):
        before.set_response_callback("GET", callback)
        with instrument():
            after.set_response_callback("GET", callback)
            for client in (before, after):
                assert await client.get("a") == "<1>"
                async with batch():
                    assert await client.get("a") == "<1>"
        for client in (before, after):
            assert await client.get("a") == "<1>"


@in_loop
async def test_asyncio_closing_a_client_closes_what_tasks_share(proxy, plain, on):
    """Also outside the scope, and by `async with`."""
    before = connections(plain)
    async with redis.asyncio.Redis(port=proxy.port) as client:
        async with batch():
            assert await client.set("a", 1) is True
        assert connections(plain) > before
    await asyncio.to_thread(eventually, lambda: connections(plain) == before)


@in_loop
async def test_asyncio_modules_locks_scripts_and_pipelines(proxy, plain, on):
    """As with a synchronous client."""
    client = redis.asyncio.Redis(port=proxy.port, decode_responses=True)
    library = module(
        "rq.jobs", "async def read(client):\n    value = await client.get('a')\n    return value"
    )
    lock = client.lock("l", timeout=PATIENCE)
    script = client.register_script("return redis.call('INCRBY', KEYS[1], 2)")
    async with batch():
        client.set("a", 1)
        assert await library.read(client) == "1"
        assert await lock.locked() is False
        async with lock:
            assert await lock.locked() is True
        client.set("a", 5)
        assert await script(["a"]) == 7
        client.set("a", 9)
        async with client.pipeline() as pipe:
            assert await pipe.incr("a").execute() == [10]
        client.rpush("list", "x")
        assert await client.blpop("list", 1) == ("list", "x")
        client.publish("news", "nobody")
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            message = await pubsub.get_message(timeout=PATIENCE)
            assert message["type"] == "subscribe"
    await client.aclose()


@in_loop
async def test_asyncio_a_connection_of_its_own(proxy, plain, on):
    """A client that keeps one connection steps aside with every call."""
    async with (
        redis.asyncio.Redis(
            port=proxy.port, decode_responses=True, single_connection_client=True
        ) as client,
        batch(),
    ):
        assert await client.set("a", 1) is True
        assert await client.get("a") == "1"


# ---- clusters --------------------------------------------------------------------------------


def test_a_cluster(cluster, on):
    """Its own clients, by which it finds out about itself, are left alone."""
    with batch() as scope:
        client = redis.RedisCluster(
            host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
        )
        assert type(client) is redis.RedisCluster
        for i in range(20):
            client.set(f"key{i}", i)
        values = [client.get(f"key{i}") for i in range(20)]
        assert values == [str(i) for i in range(20)]
        assert client.delete("key0", "key1", "missing") == 2
        assert client.mget_nonatomic("key2", "key0") == ["2", None]
        assert client.exists("key2", "key3") == 2
        client.set("a", 1)
        with client.pipeline() as pipe:
            assert pipe.incr("a").execute() == [2]
        assert client.lock("l").locked() is False
        script = client.register_script("return redis.call('INCR', KEYS[1])")
        assert script(["a"]) == 3
        assert client.ping() == True  # noqa: E712  # a Future
        with ThreadPoolExecutor(1) as elsewhere:
            plain_size = elsewhere.submit(client.dbsize).result(PATIENCE)
        assert client.dbsize() == plain_size
        client.set_response_callback("GET", lambda reply, **_: f"<{reply}>")
        assert client.get("a") == "<3>"
    assert scope.stats.commands > 40
    assert client.set("a", 1) is True
    client.close()


def test_a_cluster_in_one_round_trip(cluster, on):
    """However many nodes."""
    client = redis.RedisCluster(host="127.0.0.1", port=cluster.primaries[0])
    with client:
        client.ping()
        with batch() as scope:
            for i in range(20):
                client.set(f"key{i}", i)
        assert scope.stats.round_trips == 1
        with instrument(exclude=[__name__]), batch() as scope:
            client.set("a", 1)
            assert client.delete("key0", "key1", "missing") == 2
        assert scope.stats.commands == 0


@in_loop
async def test_an_asyncio_cluster(cluster, on):
    """The same."""
    client = redis.asyncio.RedisCluster(
        host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
    )
    assert await client.set("a", 1) is True
    async with batch() as scope:
        for i in range(20):
            client.set(f"key{i}", i)
        values = [client.get(f"key{i}") for i in range(20)]
        await autobatch.asyncio.flush()
        assert values == [str(i) for i in range(20)]
        assert scope.stats.round_trips == 1
        assert await client.delete("key0", "key1", "missing") == 2
        assert await client.lock("l").locked() is False
        client.set("a", 5)
        async with client.pipeline() as pipe:
            assert await pipe.incr("a").execute() == [6]
        assert await client.ping() is True
    await client.aclose()
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.primaries[0])
    async with client, batch():
        client.set("a", 1)
        assert await client.get("a") == b"1"
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.primaries[0])
    async with batch():  # it does not know the cluster yet
        client.set("a", 2)
        assert await client.get("a") == b"2"
    await client.aclose()
