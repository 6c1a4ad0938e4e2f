"""The synchronous client: redis-py's own, in a scope and out of it, on a real server."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import socket
from datetime import timedelta

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

import autobatch
from autobatch import Future, batch, unwrap, wrap
from autobatch.errors import AutobatchError, NotSent

INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1] or 1)"


# ---- making clients --------------------------------------------------------------------------


def test_it_is_a_redis_client(server, plain):
    """A subclass with redis-py's constructors; its values outside a scope are plain."""
    url = f"redis://127.0.0.1:{server}/0?decode_responses=True"
    pool = redis.ConnectionPool.from_url(url)
    clients = [
        autobatch.Redis(host="127.0.0.1", port=server, db=0, decode_responses=True),
        autobatch.Redis.from_url(url),
        autobatch.Redis.from_pool(pool),
        autobatch.Redis(connection_pool=redis.ConnectionPool.from_url(url)),
    ]
    for client in clients:
        with client:
            assert type(client) is autobatch.Redis
            assert isinstance(client, redis.Redis)
            assert client.set("a", "1") is True
            assert type(client.get("a")) is str
            with batch():
                assert type(client.get("a")) is Future
                assert client.get("a") == "1"


def test_outside_a_scope_each_call_is_one_exchange(client, proxy):
    """Nothing is queued, and nothing is said that redis-py would not say."""
    assert client.set("a", "1") is True
    assert client.get("a") == "1"
    assert client.get("missing") is None
    assert client.hset("h", mapping={"f": "v"}) == 1
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        client.lpush("a", "x")
    assert not hasattr(raised.value, "__notes__")
    assert proxy.names == [["SET"], ["GET"], ["GET"], ["HSET"], ["LPUSH"]]


def test_a_client_with_its_own_connection(client, plain):
    """`client()` gives a batching client that keeps one connection."""
    with client.client() as one:
        assert isinstance(one, autobatch.Redis)
        number = one.client_id()
        with batch() as scope:
            one.set("a", 1)
            value = one.get("a")
            assert one.client_id() == number
            one.incr("a")
        assert (value, scope.stats.round_trips) == ("1", 2)
        assert one.client_id() == number
    assert plain.get("a") == "2"


def test_leaving_a_client_s_context_flushes(server, plain):
    """What was called on it before is sent while it still has connections."""
    with batch():
        with autobatch.Redis(port=server) as client:
            future = client.set("a", 1)
            assert not future.done()
        assert future.done()
        assert plain.get("a") == "1"


def test_closing_flushes_first(client, proxy):
    """close() comes after what waits, as in the program; the client can be used again."""
    with batch():
        client.set("a", 1)
        client.close()
        assert proxy.names == [["SET"]]
        assert client.get("a") == "1"


def test_a_client_that_cannot_connect(plain):
    """In a scope the Future says that its command was not sent; both are ConnectionErrors."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        client = autobatch.Redis(port=port, retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis.ConnectionError):
            client.get("a")
        with batch():
            assert isinstance(client.get("a").exception(), NotSent)
            with pytest.raises(redis.ConnectionError):
                client.get("a") + "x"


def test_a_client_that_is_refused(server, plain):
    """Whatever redis-py raises when a password is wrong is what is raised here."""
    plain.acl_setuser("app", enabled=True, passwords=["+right"])
    options = {"port": server, "username": "app", "retry": Retry(NoBackoff(), 0)}
    reference = redis.Redis(password="wrong", **options)
    with pytest.raises(redis.AuthenticationError) as raised:
        reference.get("a")
    with autobatch.Redis(password="wrong", **options) as client:
        with pytest.raises(raised.type):
            client.get("a")
        with batch():
            error = client.get("a").exception()
    assert isinstance(error, raised.type)
    assert isinstance(error, NotSent)
    plain.acl_deluser("app")


# ---- wrap ------------------------------------------------------------------------------------


class Prefixed(redis.Redis):
    """A client of a program of its own, which gives every key a prefix."""

    def __init__(self, application, **options):
        self.application = application
        super().__init__(**options)

    def execute_command(self, name, *args, **options):
        if args:
            args = (f"{self.application}:{args[0]}", *args[1:])
        return super().execute_command(name, *args, **options)


def test_wrap(proxy):
    """The twin shares the pool and batches; the client stays as it was."""
    with redis.Redis(port=proxy.port, decode_responses=True) as client:
        twin = wrap(client)
        assert isinstance(twin, autobatch.Redis)
        assert twin.connection_pool is client.connection_pool
        with batch():
            future = twin.set("a", 1)
            assert type(future) is Future
            assert client.get("a") is None
            assert twin.get("a") == "1"
        assert type(twin.get("a")) is str
        assert proxy.names == [["GET"], ["SET", "GET"], ["GET"]]


def test_wrap_of_a_subclass(server, plain):
    """What the subclass overrides keeps its say, in a scope, out of one and eagerly."""
    with Prefixed("shop", port=server, decode_responses=True) as client:
        twin = wrap(client)
        assert isinstance(twin, Prefixed)
        assert isinstance(twin, autobatch.Redis)
        assert type(twin).__name__ == "Prefixed"
        twin.set("a", 1)
        with batch() as scope:
            twin.set("b", 2)
            values = twin.get("a"), twin.get("b")
        assert twin.eager.get("b") == "2"
    assert values == ("1", "2")
    assert scope.stats.round_trips == 1
    assert sorted(plain.keys()) == ["shop:a", "shop:b"]


def test_wrap_of_a_client_with_its_own_connection(server, plain):
    """The twin uses that very connection."""
    with redis.Redis(port=server, single_connection_client=True) as client:
        twin = wrap(client)
        number = client.client_id()
        client.select(3)
        assert twin.client_id() == number
        with batch():
            twin.set("a", 1)
            assert twin.dbsize() == 1
        assert client.get("a") == b"1"
        client.flushdb()


def test_wrap_of_sentinel_s_client():
    """Any redis.Redis will do; nothing is connected yet."""
    client = Sentinel([("127.0.0.1", 26379)]).master_for("shop")
    assert isinstance(wrap(client), autobatch.Redis)
    assert wrap(client).connection_pool is client.connection_pool


def test_wrap_once(client):
    """A batching client is returned as it is, also from its eager view."""
    assert wrap(client) is client
    assert wrap(client.eager) is client
    twin = wrap(redis.Redis())
    assert wrap(twin) is twin
    assert wrap(twin.eager) is twin


def test_closing_a_twin_closes_its_client(server, plain):
    """They are one client with two faces."""
    client = redis.Redis(port=server)
    with wrap(client) as twin:
        twin.set("a", 1)
        assert client.connection_pool._available_connections
        (connection,) = client.connection_pool._available_connections
    assert connection._sock is None


def test_a_twin_that_is_forgotten_closes_nothing(server, plain):
    """The garbage collector may take a twin while its client lives on."""
    with redis.Redis(port=server) as client:
        wrap(client).set("a", 1)
        wrap(client).eager.set("a", 2)
        (connection,) = client.connection_pool._available_connections
        assert connection._sock is not None
        assert client.get("a") == b"2"


@pytest.mark.parametrize(
    "thing",
    [
        None,
        "redis://localhost",
        redis.Redis,
        redis.ConnectionPool(),
        redis.Redis().pipeline(),
        autobatch.Redis().pipeline(),
        redis.Redis().pubsub(),
        redis.asyncio.Redis().pipeline(),
    ],
    ids=lambda thing: type(thing).__module__ + "." + type(thing).__name__,
)
def test_wrap_takes_clients_only(thing):
    """Anything else is a mistake that shows at once."""
    with pytest.raises(TypeError, match=r"^wrap\(\) takes a"):
        wrap(thing)


def test_response_callbacks_are_shared(server, plain):
    """One that is set on the client later counts for its twin too, and the other way round."""
    with redis.Redis(port=server, decode_responses=True) as client:
        twin = wrap(client)
        client.set_response_callback("GET", lambda reply: f"<{reply}>")
        twin.set_response_callback("strlen", lambda reply: reply - 1)
        with batch():
            assert (twin.get("a"), twin.strlen("a")) == ("<None>", -1)
        assert (twin.get("a"), client.strlen("a")) == ("<None>", -1)


def test_a_response_callback_that_raises(client, plain):
    """Its own command fails, where it is forced; the others have their values."""
    client.set_response_callback("GET", int)
    plain.mset({"a": "1", "b": "two"})
    with batch():
        one, two, three = client.get("a"), client.get("b"), client.get("a")
        assert one + three == 2
        with pytest.raises(ValueError, match="two"):
            two + 1


# ---- the eager view --------------------------------------------------------------------------


def test_eager(client, proxy):
    """It flushes what waits, then runs, and gives plain values."""
    with batch():
        future = client.set("a", 1)
        value = client.eager.get("a")
        assert type(value) is str
        assert future.done()
        assert client.eager.get("missing") is None
    assert proxy.names == [["SET"], ["GET"], ["GET"]]
    assert client.eager.eager.get("a") == "1"
    assert isinstance(client.eager, redis.Redis)
    assert client.eager.connection_pool is client.connection_pool


def test_eager_sees_what_other_clients_queued(client, server, plain):
    """Everything that waits in the scope goes first, whoever called it."""
    with autobatch.Redis(port=server) as other, batch():
        other.set("a", 1)
        assert client.eager.get("a") == "1"


# ---- what goes round the funnel --------------------------------------------------------------


def test_pipeline(client, proxy):
    """An explicit pipeline comes after what waits, and is redis-py's own."""
    with batch():
        client.set("a", 1)
        with client.pipeline(transaction=False) as pipe:
            assert isinstance(pipe, redis.client.Pipeline)
            assert pipe.incr("a").incr("a") is pipe
            client.incr("a")
            assert pipe.execute() == [3, 4]
        assert client.get("a") == "4"
    assert proxy.names == [["SET", "INCRBY"], ["INCRBY", "INCRBY"], ["GET"]]
    assert client.pipeline().get("a").execute() == ["4"]


def test_pipeline_with_a_watch(client, proxy):
    """WATCH is sent at the call, so what waits goes before it."""
    with batch():
        client.set("a", 1)
        with client.pipeline() as pipe:
            pipe.watch("a")
            assert pipe.get("a") == "1"
            pipe.multi()
            pipe.set("a", client.get("a"))
            client.incr("other")
            assert pipe.execute() == [True]
    assert proxy.names == [
        ["SET"],
        ["WATCH"],
        ["GET"],
        ["GET"],
        ["INCRBY"],
        ["MULTI", "SET", "EXEC"],
    ]


def test_a_watched_key_that_changes(client):
    """A queued write to it, by this very program, is a change like any other."""
    with batch(), client.pipeline() as pipe:
        pipe.watch("a")
        pipe.multi()
        pipe.get("a")
        client.set("a", 1)
        with pytest.raises(redis.WatchError):
            pipe.execute()


def test_transaction(client):
    """redis-py's transaction() with its retries on a changed key."""

    def double(pipe):
        value = int(pipe.get("a"))
        pipe.multi()
        pipe.set("a", value * 2)
        pipe.get("a")

    with batch():
        client.set("a", 21)
        assert client.transaction(double, "a") == [True, "42"]
    assert client.transaction(double, "a") == [True, "84"]


def test_pipeline_takes_futures(client):
    """A Future is an argument like its value."""
    with batch():
        client.set("a", "key")
        with client.pipeline() as pipe:
            pipe.set(client.get("a"), 1)
            pipe.hset("h", mapping={"f": client.get("a")})
            pipe.hget("h", "f")
            assert pipe.execute() == [True, 1, "key"]
    assert client.get("key") == "1"


def test_pubsub(client):
    """A message that was published before is sent before it is waited for."""
    with client.pubsub() as listener, batch():
        listener.subscribe("news")
        assert listener.get_message(timeout=10)["type"] == "subscribe"
        receivers = client.publish("news", "hello")
        message = listener.get_message(timeout=10)
        assert (message["type"], message["data"]) == ("message", "hello")
        assert receivers == 1
        client.publish("news", "bye")
        assert next(listener.listen())["data"] == "bye"


def test_subscribing_comes_after_what_waits(client, proxy):
    """So a message that was published before it does not arrive."""
    with client.pubsub() as listener, batch():
        assert client.publish("news", "early").map(bool).done() is False
        listener.subscribe("news")
        assert listener.get_message(timeout=10)["type"] == "subscribe"
        assert proxy.names == [["PUBLISH"], ["SUBSCRIBE"]]


def test_monitor(client):
    """What waits is sent before the monitor waits for it."""
    with client.monitor() as monitor, batch():
        commands = (entry["command"] for entry in monitor.listen())
        client.set("a", 1)
        assert "SET a 1" in commands  # looks as far as it has to
        client.set("b", 2)
        assert next(commands) == "SET b 2"


def test_lock(client):
    """A lock is what it says, in a scope too, where each answer is needed at once."""
    with batch():
        lock, other = client.lock("job", timeout=60), client.lock("job", timeout=60)
        assert lock.locked() is False
        assert lock.acquire() is True
        assert (lock.locked(), lock.owned(), other.owned()) == (True, True, False)
        assert other.acquire(blocking=False) is False
        assert lock.extend(60) is True
        assert lock.reacquire() is True
        lock.release()
        assert lock.locked() is False
        with pytest.raises(redis.exceptions.LockError):
            lock.release()


def test_a_lock_s_commands_are_in_order(client, proxy):
    """What was called before it runs before it, what is called inside it runs before its end."""
    with batch():
        client.set("before", 1)
        with client.lock("job", timeout=60):
            client.set("inside", 1)
        client.set("after", 1)
    written = [c[1].decode() for one in proxy.exchanges for c in one if c[0] == b"SET"]
    assert written == ["before", "job", "inside", "after"]
    assert ["EVALSHA"] not in proxy.names[:3]


def test_scan_iter(client, plain):
    """Iterators over keys and members see what was queued before them."""
    with batch():
        client.mset({f"key:{n}": n for n in range(30)})
        client.hset("h", mapping={f"f{n}": n for n in range(30)})
        client.sadd("s", *range(30))
        client.zadd("z", {f"m{n}": n for n in range(30)})
        assert sorted(client.scan_iter("key:*", count=5)) == sorted(f"key:{n}" for n in range(30))
        assert dict(client.hscan_iter("h", count=5)) == plain.hgetall("h")
        assert set(client.sscan_iter("s")) == plain.smembers("s")
        assert dict(client.zscan_iter("z")) == dict(plain.zrange("z", 0, -1, withscores=True))


def test_as_a_mapping(client, proxy):
    """`client[key]` raises KeyError where there is nothing, so it needs its reply at once."""
    with batch():
        client["a"] = 1
        assert "a" in client
        assert "b" not in client
        value = client["a"]
        assert type(value) is str
        with pytest.raises(KeyError, match="b"):
            client["b"]
        del client["a"]
        with pytest.raises(KeyError):
            client["a"]
    assert proxy.commands == 7


def test_json_pipelines_keep_the_order(client, proxy):
    """A module's namespace makes its own pipelines, which flush first as well."""
    with batch():
        client.set("a", 1)
        pipe = client.json().pipeline()
        pipe.execute_command("GET", "a")
        assert pipe.execute() == ["1"]
    assert proxy.names == [["SET"], ["MULTI", "GET", "EXEC"]]


# ---- scripts ---------------------------------------------------------------------------------


def test_a_script_costs_no_round_trip(client, proxy):
    """The first call in a batch brings the source, the others the digest."""
    increment = client.register_script(INCREMENT)
    with batch() as scope:
        values = [increment(keys=["a"], args=[n]) for n in (1, 2, 3)]
        assert [unwrap(value) for value in values] == [1, 3, 6]
    assert proxy.names == [["EVAL", "EVALSHA", "EVALSHA"]]
    assert scope.stats.round_trips == 1


@pytest.mark.parametrize("where", ["before the batch", "in the batch", "in a script's batch"])
def test_a_script_survives_script_flush(client, plain, where):
    """Whenever the server forgets it, no call fails."""
    increment = client.register_script(INCREMENT)
    increment(keys=["a"])
    if where == "before the batch":
        plain.script_flush()
    with batch():
        first = increment(keys=["a"])
        if where == "in the batch":
            client.script_flush()
        elif where == "in a script's batch":
            client.execute_command("script", "flush", "sync")
        second = increment(keys=["a"])
        assert (first, second) == (2, 3)


def test_a_script_outside_a_scope(client, plain):
    """There redis-py's own way with NOSCRIPT is taken."""
    increment = client.register_script(INCREMENT)
    assert increment(keys=["a"]) == 1
    plain.script_flush()
    assert increment(keys=["a"]) == 2


def test_a_script_that_was_registered_elsewhere(client, plain, proxy):
    """One call learns its source, from redis-py's answer to NOSCRIPT; then it is known."""
    increment = plain.register_script(INCREMENT)
    with batch():
        first = increment(keys=["a"], client=client)
        second = increment(keys=["a"], client=client)
        assert (first, second) == (1, 2)
    assert proxy.names == [["EVALSHA"], ["SCRIPT"], ["EVAL", "EVALSHA"]]


def test_a_digest_that_nobody_knows(client, proxy):
    """Only the caller can do something about it, so it is told at the call."""
    with batch():
        client.set("a", 1)
        with pytest.raises(redis.exceptions.NoScriptError):
            client.evalsha("0" * 40, 0)
        client.incr("a")
    assert proxy.names == [["SET"], ["EVALSHA"], ["INCRBY"]]


def test_a_script_in_a_transaction(client):
    """An atomic block can call scripts, also as the first one of a batch."""
    increment = client.register_script(INCREMENT)
    with batch() as scope:
        with batch(atomic=True):
            inside = increment(keys=["a"]), increment(keys=["a"])
        after = increment(keys=["a"])
    assert (*inside, after) == (1, 2, 3)
    assert scope.stats.round_trips == 1


def test_a_script_after_a_transaction_that_was_aborted(client):
    """What the transaction should have brought along did not arrive."""
    increment = client.register_script(INCREMENT)
    with batch():
        with batch(atomic=True):
            inside = increment(keys=["a"])
            wrong = client.execute_command("GET")
        after = increment(keys=["a"])
        assert isinstance(inside.exception(), redis.exceptions.ExecAbortError)
        assert isinstance(wrong.exception(), redis.ResponseError)
        assert after == 1


def test_a_script_whose_first_call_was_refused(client):
    """A call that the server refuses before it looks at the script teaches it nothing."""
    increment = client.register_script(INCREMENT)
    with batch():
        wrong = client.evalsha(increment.sha, 7)
        right = increment(keys=["a"])
        assert isinstance(wrong.exception(), redis.ResponseError)
        assert right == 1


# ---- stepping aside --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda client: client.blpop("queue", timeout=1), ("queue", "job")),
        (lambda client: client.brpop(["queue"], timeout=1), ("queue", "job")),
        (lambda client: client.blmove("queue", "done", timeout=1), "job"),
        (lambda client: client.blmpop(1, 1, "queue", direction="LEFT"), ["queue", ["job"]]),
        (lambda client: client.wait(0, 1), 0),
        (lambda client: client.select(0), True),
        (lambda client: client.acl_whoami(), "default"),
        (lambda client: client.client_info()["db"], 0),
        (lambda client: client.execute_command("client info")["db"], 0),
    ],
    ids=["blpop", "brpop", "blmove", "blmpop", "wait", "select", "acl", "client info", "lower"],
)
def test_stepping_aside(client, proxy, step, expected):
    """It travels alone, after what waits, and its plain value is there at once."""
    with batch():
        client.rpush("queue", "job")
        value = step(client)
        assert type(value) is not Future
        assert value == expected
        client.set("after", 1)
    assert [len(one) for one in proxy.names] == [1, 1, 1]
    assert [proxy.names[0], proxy.names[2]] == [["RPUSH"], ["SET"]]


def test_stepping_aside_in_an_atomic_block(client):
    """It cannot be part of a transaction, and says so."""
    with batch(atomic=True):
        client.set("a", 1)
        with pytest.raises(AutobatchError, match="atomic block"):
            client.blpop("queue")
        with pytest.raises(AutobatchError, match="atomic block"):
            client.client_info()


def test_streams(client, proxy):
    """XREAD and XREADGROUP ride along; with BLOCK they step aside."""
    with batch():
        client.xgroup_create("s", "group", id="0", mkstream=True)
        client.xadd("s", {"f": "v"}, id="1-1")
        read = client.xread({"s": "0"})
        client.xadd("s", {"f": "w"}, id="2-1")
        group = client.xreadgroup("group", "me", {"s": ">"})
        with pytest.raises(redis.DataError, match="positive"):
            client.xread({"s": "0"}, count=0)
        assert read == [["s", [("1-1", {"f": "v"})]]]
        assert group == [["s", [("1-1", {"f": "v"}), ("2-1", {"f": "w"})]]]
        client.xadd("s", {"f": "x"}, id="3-1")
        assert client.xread({"s": "2-1"}, block=1) == [["s", [("3-1", {"f": "x"})]]]
        client.xadd("s", {"f": "y"}, id="4-1")
        fresh = client.xreadgroup("group", "me", {"s": ">"}, block=1)
        assert [entry for entry, _ in fresh[0][1]] == ["3-1", "4-1"]
    assert proxy.names == [
        ["XGROUP", "XADD", "XREAD", "XADD", "XREADGROUP"],
        ["XADD"],
        ["XREAD"],
        ["XADD"],
        ["XREADGROUP"],
    ]


# ---- arguments -------------------------------------------------------------------------------


def test_a_whole_line_as_the_name(client, proxy):
    """redis-py splits its first argument at spaces, so `SET Key Value` is three words."""
    client.execute_command("SET Key Value")
    with batch():
        client.execute_command("append Key -2")
        assert client.get("Key") == "Value-2"
        assert client.execute_command("SELECT 0") == "OK"
    assert proxy.names == [["SET"], ["APPEND", "GET"], ["SELECT"]]


def test_futures_as_arguments(client, proxy):
    """A Future that is an argument is forced, wherever it stands."""
    with batch():
        client.set("a", "5")
        a = client.get("a")
        client.set("b", a)
        client.mset({"c": a, a: "key"})
        client.hset("h", mapping={"f": a, a: "name"})
        client.rpush("l", *[a, a])
        client.zadd("z", {"member": a})
        client.expire("b", a)
        client.incrby("b", a)
        assert client.mget("b", "c", "5") == ["10", "5", "key"]
        assert client.hgetall("h") == {"f": "5", "5": "name"}
        assert client.lrange("l", 0, -1) == ["5", "5"]
        assert client.zscore("z", "member") == 5.0
        assert 0 < client.ttl("b") <= 5
        assert client.eager.set("d", a) is True
    assert proxy.names[0] == ["SET", "GET"]
    assert proxy.names[1][:7] == ["SET", "MSET", "HSET", "RPUSH", "ZADD", "EXPIRE", "INCRBY"]
    client.set("e", a)
    assert client.get("e") == "5"


def test_lazy_collections_as_arguments(client):
    """What redis-py iterates over may be a Future."""
    with batch():
        client.rpush("keys", "a", "b")
        client.mset({"a": 1, "b": 2})
        assert client.mget(client.lrange("keys", 0, -1)) == ["1", "2"]
        client.hset("h", mapping=client.hgetall("nothing").map(lambda found: {"f": 1, **found}))
        assert client.hget("h", "f") == "1"
        assert client.delete(*client.lrange("keys", 0, -1)) == 2


def test_mutable_arguments_are_taken_at_the_call(client):
    """Whatever becomes of them before the batch leaves."""
    increment = client.register_script("return ARGV[1]")
    with batch():
        increment(args=["x"])
        text, mapping, items = bytearray(b"before"), {"f": "before"}, ["before"]
        client.set("a", text)
        client.hset("h", mapping=mapping)
        client.rpush("l", *items)
        client.execute_command("set", "b", text)
        echoed = increment(args=[text])
        text[:] = b"after!"
        mapping["f"] = items[0] = "after"
        assert client.mget("a", "b") == ["before", "before"]
        assert client.hget("h", "f") == "before"
        assert client.lrange("l", 0, -1) == ["before"]
        assert echoed == "before"


@pytest.mark.parametrize("bad", [None, True, object()], ids=["None", "bool", "object"])
def test_a_wrong_argument_raises_at_the_call(client, proxy, bad):
    """The scope is unharmed: what was called before and after it is sent, together."""
    with batch():
        client.set("a", 1)
        for call in (client.set, client.rpush, client.sadd):
            with pytest.raises(redis.DataError):
                call("b", bad)
        value = client.get("a")
    assert value == "1"
    assert proxy.names == [["SET", "GET"]]


def test_a_wrong_argument_outside_a_scope(client):
    """The same error, and nothing is sent."""
    for bad in (None, True, object()):
        with pytest.raises(redis.DataError):
            client.set("b", bad)


# ---- the life of a Future --------------------------------------------------------------------


def test_a_future_outlives_its_scope(client):
    """Its value is known when the scope has ended."""
    with batch():
        value, missing = client.incr("a"), client.get("missing")
    assert value.done()
    assert value + 1 == 2
    assert unwrap(missing) is None
    assert value.map(str) == "1"


def test_a_command_in_a_closed_scope_runs_at_once(client, plain):
    """A context that was copied inside a scope, and is used after it, is outside."""
    with batch():
        context = contextvars.copy_context()
        client.set("a", 1)
    assert type(context.run(client.get, "a")) is str
    assert context.run(client.set, "b", 1) is True
    assert plain.get("b") == "1"


def test_looking_at_a_future_sends_nothing(client, proxy):
    """A secret value is not shown either."""
    with batch() as scope:
        future = client.set("user:1", "hunter2")
        assert repr(future) == "<Future pending: SET user:1>"
        assert not future.done()
        assert proxy.names == []
        scope.discard()
        assert repr(future) == "<Future failed: SET user:1: NotSent>"
    assert proxy.names == []


def test_map_over_several_commands(client, proxy):
    """Commands that functions of map() call share the second round trip."""
    with batch():
        client.mset({"one": "a", "two": "b", "a": "A", "b": "B"})
        found = [client.get(name).map(client.get) for name in ("one", "two")]
        assert [unwrap(value) for value in found] == ["A", "B"]
    assert proxy.names == [["MSET", "GET", "GET"], ["GET", "GET"]]


def test_map_to_a_future_of_another_scope(client):
    """It is forced where it waits: here in the scope of a generator that is suspended."""

    @batch
    def elsewhere():
        yield client.incr("inner")

    with contextlib.closing(elsewhere()) as generator:
        inner = next(generator)
        with batch():
            mapped = client.get("outer").map(lambda _: inner)
            assert mapped == 1


def test_an_error_names_the_line_that_queued_it(client, plain):
    """The note leads to the call, however far away the value is needed."""
    plain.set("a", "text")
    with batch():
        future = client.lpush("a", 1)
        line = inspect.currentframe().f_lineno - 1
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
            future + 1
    (note,) = raised.value.__notes__
    assert note.startswith(f"LPUSH a, queued at {__file__}:{line} in test_an_error_names")


# ---- the same as redis-py --------------------------------------------------------------------


def fill(client, prefix):
    """Store something of each type."""
    p = prefix
    client.mset({p + "text": "Grüße", p + "number": "7", p + "other": "x"})
    client.rpush(p + "list", "3", "1", "2")
    client.hset(p + "hash", mapping={"a": "1", "b": "two"})
    client.sadd(p + "set", "a")
    client.sadd(p + "set2", "a")
    client.zadd(p + "zset", {"a": 1, "b": 2.5, "c": 3})
    client.zadd(p + "zset2", {"b": 1})
    client.xgroup_create(p + "stream", "group", id="0", mkstream=True)
    client.xadd(p + "stream", {"f": "v"}, id="1-1")
    client.geoadd(p + "geo", (13.4, 52.5, "Berlin", 2.35, 48.85, "Paris"))
    client.mset({p + "w_1": "30", p + "w_2": "20", p + "w_3": "10"})


# Each is called with a client and a prefix for its keys.
CALLS = {
    "append": lambda c, p: c.append(p + "text", "!"),
    "bitcount": lambda c, p: c.bitcount(p + "text"),
    "bitfield": lambda c, p: c.bitfield(p + "bits").set("u8", 0, 200).get("u8", 0).execute(),
    "bitop": lambda c, p: c.bitop("AND", p + "to", p + "text", p + "number"),
    "blpop": lambda c, p: c.blpop([p + "none", p + "list"], timeout=1),
    "bzpopmin": lambda c, p: c.bzpopmin(p + "zset", timeout=1),
    "client_getname": lambda c, p: c.client_getname(),
    "command_count": lambda c, p: c.command_count(),
    "command_getkeys": lambda c, p: c.command_getkeys("GET", p + "text"),
    "config_get": lambda c, p: c.config_get("maxmemory*"),
    "copy": lambda c, p: c.copy(p + "text", p + "to"),
    "dbsize": lambda c, p: c.dbsize() > 0,
    "decr": lambda c, p: c.decr(p + "number", 2),
    "delete": lambda c, p: c.delete(p + "text", p + "number", p + "none"),
    "dump": lambda c, p: c.dump(p + "number"),
    "echo": lambda c, p: c.echo("Grüße"),
    "eval": lambda c, p: c.eval("return {KEYS[1], ARGV[1], 3}", 1, p + "text", "x"),
    "exists": lambda c, p: c.exists(p + "text", p + "none"),
    "expire": lambda c, p: c.expire(p + "text", 60),
    "expire, gone": lambda c, p: c.expire(p + "none", 60),
    "geodist": lambda c, p: c.geodist(p + "geo", "Berlin", "Paris", unit="km"),
    "geopos": lambda c, p: c.geopos(p + "geo", "Berlin", "Rome"),
    "geosearch": lambda c, p: c.geosearch(
        p + "geo", longitude=13, latitude=52, radius=99, unit="km", withcoord=True, withdist=True
    ),
    "get": lambda c, p: c.get(p + "text"),
    "get, gone": lambda c, p: c.get(p + "none"),
    "getdel": lambda c, p: c.getdel(p + "text"),
    "getex": lambda c, p: c.getex(p + "text", ex=60),
    "getrange": lambda c, p: c.getrange(p + "number", 0, 0),
    "getset": lambda c, p: c.getset(p + "text", "new"),
    "hexists": lambda c, p: c.hexists(p + "hash", "a"),
    "hget": lambda c, p: c.hget(p + "hash", "a"),
    "hgetall": lambda c, p: c.hgetall(p + "hash"),
    "hgetall, gone": lambda c, p: c.hgetall(p + "none"),
    "hincrby": lambda c, p: c.hincrby(p + "hash", "a", 5),
    "hincrbyfloat": lambda c, p: c.hincrbyfloat(p + "hash", "a", 0.5),
    "hkeys": lambda c, p: c.hkeys(p + "hash"),
    "hmget": lambda c, p: c.hmget(p + "hash", ["a", "none"]),
    "hscan": lambda c, p: c.hscan(p + "hash"),
    "hset": lambda c, p: c.hset(p + "hash", "c", 3, mapping={"d": 4}),
    "hsetnx": lambda c, p: c.hsetnx(p + "hash", "a", 3),
    "hvals": lambda c, p: c.hvals(p + "hash"),
    "incr": lambda c, p: c.incr(p + "number"),
    "incrbyfloat": lambda c, p: c.incrbyfloat(p + "number", 0.5),
    "keys": lambda c, p: c.keys(p + "te*"),
    "lastsave": lambda c, p: c.lastsave(),
    "lcs": lambda c, p: c.lcs(p + "text", p + "other", len=True),
    "lindex": lambda c, p: c.lindex(p + "list", -1),
    "linsert": lambda c, p: c.linsert(p + "list", "BEFORE", "1", "x"),
    "llen": lambda c, p: c.llen(p + "list"),
    "lmove": lambda c, p: c.lmove(p + "list", p + "to"),
    "lmpop": lambda c, p: c.lmpop(1, p + "list", direction="LEFT", count=2),
    "lpop": lambda c, p: c.lpop(p + "list"),
    "lpop, many": lambda c, p: c.lpop(p + "list", 2),
    "lpos": lambda c, p: c.lpos(p + "list", "1", count=0),
    "lpush": lambda c, p: c.lpush(p + "list", "a", "b"),
    "lrange": lambda c, p: c.lrange(p + "list", 0, -1),
    "lrem": lambda c, p: c.lrem(p + "list", 0, "1"),
    "lset": lambda c, p: c.lset(p + "list", 0, "x"),
    "lset, gone": lambda c, p: c.lset(p + "none", 0, "x"),
    "ltrim": lambda c, p: c.ltrim(p + "list", 0, 1),
    "memory_usage": lambda c, p: c.memory_usage(p + "number") > 0,
    "mget": lambda c, p: c.mget([p + "text", p + "none"]),
    "mset": lambda c, p: c.mset({p + "x": 1, p + "y": 2.5}),
    "msetnx": lambda c, p: c.msetnx({p + "text": 1}),
    "object encoding": lambda c, p: c.object("encoding", p + "number"),
    "persist": lambda c, p: c.persist(p + "text"),
    "pfadd": lambda c, p: c.pfadd(p + "hll", "a", "b"),
    "pfcount": lambda c, p: c.pfcount(p + "hll"),
    "ping": lambda c, p: c.ping(),
    "publish": lambda c, p: c.publish(p + "channel", "x"),
    "pubsub_numsub": lambda c, p: c.pubsub_numsub(p + "channel"),
    "rename": lambda c, p: c.rename(p + "text", p + "to"),
    "rename, gone": lambda c, p: c.rename(p + "none", p + "to"),
    "sadd": lambda c, p: c.sadd(p + "set", "a", "b"),
    "scan": lambda c, p: c.scan(match=p + "tex*", count=1000),
    "scard": lambda c, p: c.scard(p + "set"),
    "script_exists": lambda c, p: c.script_exists("0" * 40),
    "script_load": lambda c, p: c.script_load("return 1"),
    "sdiff": lambda c, p: c.sdiff(p + "set", p + "set2"),
    "set": lambda c, p: c.set(p + "text", "x", ex=60),
    "set, get": lambda c, p: c.set(p + "text", "x", get=True),
    "set, nx": lambda c, p: c.set(p + "text", "x", nx=True),
    "setbit": lambda c, p: c.setbit(p + "bits", 7, 1),
    "setnx": lambda c, p: c.setnx(p + "text", "x"),
    "setrange": lambda c, p: c.setrange(p + "number", 1, "x"),
    "sinter": lambda c, p: c.sinter([p + "set", p + "set2"]),
    "sintercard": lambda c, p: c.sintercard(2, [p + "set", p + "set2"]),
    "sismember": lambda c, p: c.sismember(p + "set", "a"),
    "smembers": lambda c, p: c.smembers(p + "set"),
    "smismember": lambda c, p: c.smismember(p + "set", ["a", "b"]),
    "smove": lambda c, p: c.smove(p + "set", p + "to", "a"),
    "sort": lambda c, p: c.sort(p + "list"),
    "sort, by and get": lambda c, p: c.sort(p + "list", by=p + "w_*", get=["#", p + "w_*"]),
    "sort, groups": lambda c, p: c.sort(p + "list", get=["#", p + "w_*"], groups=True, desc=True),
    "sort, store": lambda c, p: c.sort(p + "list", alpha=True, store=p + "to"),
    "spop": lambda c, p: c.spop(p + "set"),
    "srandmember": lambda c, p: c.srandmember(p + "set", 1),
    "srem": lambda c, p: c.srem(p + "set", "a", "none"),
    "sscan": lambda c, p: c.sscan(p + "set"),
    "strlen": lambda c, p: c.strlen(p + "text"),
    "sunionstore": lambda c, p: c.sunionstore(p + "to", p + "set", p + "set2"),
    "touch": lambda c, p: c.touch(p + "text"),
    "ttl": lambda c, p: c.ttl(p + "text"),
    "type": lambda c, p: c.type(p + "hash"),
    "unlink": lambda c, p: c.unlink(p + "text"),
    "wait": lambda c, p: c.wait(0, 1),
    "spelled small": lambda c, p: c.execute_command("hgetall", p + "hash"),
    "spelled in bytes": lambda c, p: c.execute_command(b"HGETALL", p + "hash"),
    "spelled joined": lambda c, p: c.execute_command("config get", "maxmemory*"),
    "spelled split": lambda c, p: c.execute_command("CONFIG", "GET", "maxmemory*"),
    "spelled split, with a key": lambda c, p: c.execute_command("object", b"encoding", p + "hash"),
    "wrong number of arguments": lambda c, p: c.execute_command("GET"),
    "wrong type": lambda c, p: c.lpush(p + "text", "x"),
    "no such command": lambda c, p: c.execute_command("NOSUCHCOMMAND", 1),
    "xack": lambda c, p: c.xack(p + "stream", "group", "1-1"),
    "xadd": lambda c, p: c.xadd(p + "stream", {"f": "w"}, id="2-1", maxlen=5),
    "xautoclaim": lambda c, p: c.xautoclaim(p + "stream", "group", "me", min_idle_time=0),
    "xdel": lambda c, p: c.xdel(p + "stream", "1-1"),
    "xinfo_consumers": lambda c, p: c.xinfo_consumers(p + "stream", "group"),
    "xinfo_groups": lambda c, p: c.xinfo_groups(p + "stream"),
    "xinfo_stream": lambda c, p: c.xinfo_stream(p + "stream"),
    "xlen": lambda c, p: c.xlen(p + "stream"),
    "xpending": lambda c, p: c.xpending(p + "stream", "group"),
    "xrange": lambda c, p: c.xrange(p + "stream"),
    "xread": lambda c, p: c.xread({p + "stream": "0"}),
    "xread, nothing": lambda c, p: c.xread({p + "stream": "9"}),
    "xreadgroup": lambda c, p: c.xreadgroup("group", "me", {p + "stream": ">"}),
    "xrevrange": lambda c, p: c.xrevrange(p + "stream", count=1),
    "xtrim": lambda c, p: c.xtrim(p + "stream", maxlen=0, approximate=False),
    "zadd": lambda c, p: c.zadd(p + "zset", {"a": 2, "d": 4}, ch=True),
    "zadd, incr": lambda c, p: c.zadd(p + "zset", {"a": 2}, incr=True),
    "zcount": lambda c, p: c.zcount(p + "zset", 1, "(3"),
    "zdiff": lambda c, p: c.zdiff([p + "zset", p + "zset2"], withscores=True),
    "zincrby": lambda c, p: c.zincrby(p + "zset", 1.5, "a"),
    "zinter": lambda c, p: c.zinter([p + "zset", p + "zset2"], withscores=True),
    "zmpop": lambda c, p: c.zmpop(1, [p + "zset"], min=True, count=2),
    "zmscore": lambda c, p: c.zmscore(p + "zset", ["a", "none"]),
    "zpopmax": lambda c, p: c.zpopmax(p + "zset", 2),
    "zrange": lambda c, p: c.zrange(p + "zset", 0, -1),
    "zrange, scores": lambda c, p: c.zrange(p + "zset", 0, -1, desc=True, withscores=True),
    "zrange, cast": lambda c, p: c.zrange(
        p + "zset", 0, -1, withscores=True, score_cast_func=lambda score: f"<{float(score)}>"
    ),
    "zrangebyscore": lambda c, p: c.zrangebyscore(p + "zset", "-inf", "+inf", withscores=True),
    "zrangestore": lambda c, p: c.zrangestore(p + "to", p + "zset", 0, 1),
    "zrank": lambda c, p: c.zrank(p + "zset", "b"),
    "zrank, score": lambda c, p: c.zrank(p + "zset", "b", withscore=True),
    "zrem": lambda c, p: c.zrem(p + "zset", "a"),
    "zscan": lambda c, p: c.zscan(p + "zset"),
    "zscore": lambda c, p: c.zscore(p + "zset", "b"),
    "zscore, gone": lambda c, p: c.zscore(p + "zset", "none"),
    "zunionstore": lambda c, p: c.zunionstore(p + "to", {p + "zset": 2, p + "zset2": 1}),
}


def observed(function, *args):
    """Return the type and the value of a result, or those of an error."""
    try:
        result = unwrap(function(*args))
    except redis.RedisError as error:
        return type(error), str(error)
    return type(result), without_prefix(result)


def without_prefix(value):
    """Return a reply as it would be without a prefix to its keys."""
    if isinstance(value, str):
        return value.removeprefix("plain:").removeprefix("lazy:")
    if isinstance(value, (list, tuple, set)):
        return type(value)(without_prefix(item) for item in value)
    if isinstance(value, dict):
        return {without_prefix(key): without_prefix(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("scoped", [True, False], ids=["in a scope", "outside"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_as_redis_py(server, plain, call, scoped):
    """The same call gives the same value, of the same type, or the same error."""
    fill(plain, "plain:")
    fill(plain, "lazy:")
    expected = observed(call, plain, "plain:")
    with autobatch.Redis(port=server, decode_responses=True) as client:
        if not scoped:
            assert observed(call, client, "lazy:") == expected
            return
        with batch():
            client.set("before", 1)
            assert observed(call, client, "lazy:") == expected
            client.set("after", 1)


def test_an_error_that_cannot_be_shown_settles_its_future(client):
    """A response callback's, say."""

    class Shy(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def callback(_):
        raise Shy

    client.set_response_callback("GET", callback)
    with autobatch.batch():
        failed, fine = client.get("a"), client.echo("b")
        assert isinstance(failed.exception(), Shy)
        assert fine == "b"


SETS = [
    ((), {}),
    *[((), {unit: value}) for unit in ("ex", "px") for value in (5, 0, -1, None, "5", 1.5, True)],
    *[((), {unit: timedelta(seconds=1.5)}) for unit in ("ex", "px")],
    ((), {"ex": 1, "px": 1}),
    ((), {"ex": 1, "nx": True}),
    ((), {"nx": True}),
    ((), {"xx": True, "get": True}),
    ((), {"keepttl": True}),
    ((), {"exat": 1}),
    ((), {"ex": 1 << 20_000}),
    ((5,), {}),
    ((None, 5), {}),
]


@pytest.mark.parametrize(("args", "options"), SETS)
@pytest.mark.parametrize(
    ("plain", "batching"),
    [
        (redis.Redis, autobatch.Redis),
        (redis.asyncio.Redis, autobatch.asyncio.Redis),
    ],
)
def test_set_makes_of_its_arguments_what_redis_py_makes_of_them(plain, batching, args, options):
    """Its usual forms do not go through redis-py's method, which takes long."""

    def made(kind):
        class Recording(kind):
            def execute_command(self, *args, **options):
                return args, options

        try:
            command, kept = Recording().set("key", "value", *args, **options)
        except redis.DataError as error:
            return str(error)
        return [(type(arg), arg) for arg in command], kept

    assert made(batching) == made(plain)
