"""Packing and reading: what goes over a connection is what redis-py makes and expects."""

from __future__ import annotations

import contextlib
import decimal
import enum
import subprocess
import sys
import textwrap

import hiredis
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.connection import PythonRespSerializer

import autobatch
from autobatch.future import promise_of
from autobatch.wire.connection import decoder, packers

# ---- packing ---------------------------------------------------------------------------------


class Colour(enum.StrEnum):
    """Text, for whoever does not look twice."""

    RED = "red"


ENCODER = redis.connection.Encoder("utf-8", "strict", decode_responses=False)
PACKERS = {"hiredis": None, "Python": PythonRespSerializer(6000, ENCODER.encode)}

names = st.sampled_from(
    [
        "SET",
        "set",
        "CONFIG GET",
        "object encoding",
        "MEMORY USAGE",
        "XINFO  STREAM",
        "FT.CONFIG SET",
    ]
)


def taken(value):
    """Return whether this redis-py can send a value; older ones take fewer types."""
    try:
        return bool(redis.Connection().pack_command("ECHO", value))
    except redis.DataError:
        return False


sendable = st.one_of(
    st.text(),
    st.integers(),
    st.floats(),
    *[st.binary().map(kind) for kind in (bytes, bytearray, memoryview) if taken(kind(b""))],
    st.just(Colour.RED),
    st.text(alphabet="x", min_size=7000, max_size=7001),
)


def bytes_of(client, args):
    """Return what the client would send for a call."""
    with autobatch.batch() as scope:
        packed = promise_of(client.execute_command(*args)).packed
        scope.discard()
    return packed


def parsed(packed):
    """Return a packed command's arguments, as a server reads them."""
    reader = hiredis.Reader()
    reader.feed(packed)
    return reader.gets()


def pool_with(packer, **options):
    return redis.ConnectionPool(command_packer=packer, **options)


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
@given(name=names, as_bytes=st.booleans(), args=st.lists(sendable, max_size=4))
@settings(deadline=None)
def test_packed_as_redis_py_packs(packer, name, as_bytes, args):
    """Whatever redis-py accepts, spelled in any way, has the same bytes on the wire."""
    args = (name.encode() if as_bytes else name, *args)
    connection = redis.Connection(command_packer=packer)
    client = autobatch.Redis(connection_pool=pool_with(packer))
    expected = b"".join(connection.pack_command(*args))
    # The case of a command's name is the server's business, but not of what follows it.
    assert bytes_of(client, args).upper() == expected.upper()
    assert parsed(bytes_of(client, args))[2:] == parsed(expected)[2:]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("line", ["SET Key Value", b"set Key Value", "Echo Hello"])
def test_a_whole_line_in_the_name_keeps_its_case(packer, line):
    """redis-py splits its first argument at spaces; a key that stands there stays as it is."""
    client = autobatch.Redis(connection_pool=pool_with(packer))
    words = line.split() if isinstance(line, bytes) else line.encode().split()
    packed = parsed(bytes_of(client, (line,)))
    assert packed[0].upper() == words[0].upper()
    assert packed[1:] == words[1:]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize(
    "bad", [None, True, object, [1], {"a": 1}, decimal.Decimal(1), 1j], ids=repr
)
def test_what_cannot_be_sent_is_refused_at_the_call(packer, bad):
    """The error is redis-py's, says which type it is, and comes before anything is queued."""
    client = autobatch.Redis(connection_pool=pool_with(packer))
    with pytest.raises(redis.DataError):
        redis.Connection(command_packer=packer).pack_command("SET", "a", bad)
    for call in (client.execute_command, client.set):
        with autobatch.batch() as scope:
            args = ("SET", "a", bad) if call == client.execute_command else ("a", bad)
            with pytest.raises(redis.DataError, match=type(bad).__name__):
                call(*args)
            assert scope.stats.commands == 0


def test_the_client_s_encoding():
    """A packer in Python encodes as its connection would."""
    encoder = redis.connection.Encoder("latin-1", "strict", decode_responses=False)
    packer = PythonRespSerializer(6000, encoder.encode)
    pack, _ = packers(pool_with(packer, encoding="latin-1"))
    assert parsed(pack(("SET", "é"))) == [b"SET", "é".encode("latin-1")]


def test_decoder():
    """What was read as bytes is decoded at any depth; what is no text stays."""
    decode = decoder(redis.connection.Encoder("utf-8", "strict", decode_responses=True))
    error = redis.ResponseError("no")
    assert decode([b"a", [b"b", 1, None, 1.5, True], {b"c": [b"d"]}, error]) == [
        "a",
        ["b", 1, None, 1.5, True],
        {"c": ["d"]},
        error,
    ]


# ---- reading ---------------------------------------------------------------------------------

PARSERS = {
    "hiredis, RESP2": {"protocol": 2},
    "hiredis, RESP3": {"protocol": 3},
    "Python, RESP2": {"protocol": 2, "parser_class": _RESP2Parser},
    "Python, RESP3": {"protocol": 3, "parser_class": _RESP3Parser},
}
each_parser = pytest.mark.parametrize("options", PARSERS.values(), ids=PARSERS)
each_decoding = pytest.mark.parametrize("decode", [True, False], ids=["text", "bytes"])


@pytest.fixture
def connect(server, plain):
    """Make clients of a pool with any options."""
    with contextlib.ExitStack() as stack:

        def connect(kind, *, single_connection_client=False, **options):
            # The pool's options, since a client's constructor does not take `parser_class`.
            pool = redis.ConnectionPool(port=server, **options)
            stack.callback(pool.disconnect)
            return stack.enter_context(
                kind(connection_pool=pool, single_connection_client=single_connection_client)
            )

        yield connect


# Replies of every type that the protocol has.
CALLS = [
    lambda client: client.set("text", "Grüße"),
    lambda client: client.get("text"),
    lambda client: client.get("missing"),
    lambda client: client.incr("count"),
    lambda client: client.incrbyfloat("ratio", 1.5),
    lambda client: client.rpush("list", "a", "b"),
    lambda client: client.lrange("list", 0, -1),
    lambda client: client.lrange("missing", 0, -1),
    lambda client: client.hset("hash", mapping={"a": 1, "b": 2}),
    lambda client: client.hgetall("hash"),
    lambda client: client.hmget("hash", "a", "c"),
    lambda client: client.sadd("set", "a"),
    lambda client: client.smembers("set"),
    lambda client: client.smismember("set", ["a", "b"]),
    lambda client: client.zadd("zset", {"a": 1, "b": 2.5}),
    lambda client: client.zrange("zset", 0, -1, withscores=True),
    lambda client: client.zscore("zset", "b"),
    lambda client: client.zscore("zset", "c"),
    lambda client: client.xadd("stream", {"f": "v"}, id="1-1"),
    lambda client: client.xrange("stream"),
    lambda client: client.geoadd("geo", (13.4, 52.5, "Berlin")),
    lambda client: client.geopos("geo", "Berlin", "Nowhere"),
    lambda client: client.config_get("maxmemory*"),
    lambda client: client.object("encoding", "count"),
    lambda client: client.eval("return {1, 'two', {'three', false}, {err='four'}}", 0),
    lambda client: client.eval("redis.setresp(3); return {map={a=true}}", 0),
    lambda client: client.eval("redis.setresp(3); return {double=2.5}", 0),
    lambda client: client.lpush("text", "wrong"),
    lambda client: client.eval("return redis.error_reply('five')", 0),
    lambda client: client.ping(),
    lambda client: client.echo("x" * 100_000),
]


def outcome(function, *args):
    """Return a value, or an error, such that the same means equal."""
    try:
        return comparable(function(*args))
    except Exception as error:
        return comparable(error)


def comparable(value):
    if isinstance(value, Exception):
        return type(value), str(value)
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return type(value), value


def batched(client, calls):
    """Return the outcomes of calls that share a batch."""
    with autobatch.batch() as scope:
        futures = [call(client) for call in calls]
        done = [outcome(autobatch.unwrap, future) for future in futures]
        assert scope.stats.round_trips == 1
    return done


@each_parser
@each_decoding
def test_replies_are_redis_py_s(connect, plain, options, decode):
    """In one batch, and out of a scope, with every parser: the values of redis-py's client."""
    reference = connect(redis.Redis, decode_responses=decode, protocol=options["protocol"])
    expected = [outcome(call, reference) for call in CALLS]
    client = connect(autobatch.Redis, decode_responses=decode, **options)
    plain.flushall()
    assert batched(client, CALLS) == expected
    plain.flushall()
    assert [outcome(call, client) for call in CALLS] == expected


@each_parser
def test_what_is_no_text_fails_its_own_command(connect, plain, options):
    """The replies after it stay in step, and so does the connection."""
    client = connect(autobatch.Redis, decode_responses=True, **options)
    eager = client.eager
    eager.set("good", "1")
    eager.set("bad", b"\xff\xfe")
    eager.rpush("bad list", "a", b"\xff", "b")
    eager.hset("bad hash", "field", b"\xff")
    with autobatch.batch():
        calls = [client.get, client.get, client.get, lambda key: client.lrange(key, 0, -1)]
        keys = ["good", "bad", "good", "bad list"]
        futures = [call(key) for call, key in zip(calls, keys, strict=True)]
        futures += [client.hgetall("bad hash"), client.get("good"), client.incr("count")]
        errors = [future.exception() for future in futures]
        values = [future.value for future in futures if future.exception() is None]
    assert values == ["1", "1", "1", 1]
    assert [type(error) for error in errors if error] == [UnicodeDecodeError] * 3
    assert [client.get("good"), client.incr("count")] == ["1", 2]


@each_parser
def test_outside_a_scope_what_is_no_text_leaves_nothing_behind(connect, plain, options):
    """The next call gets its own reply."""
    client = connect(autobatch.Redis, decode_responses=True, **options)
    client.set("bad", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        client.get("bad")
    assert client.incr("count") == 1


@each_parser
def test_replies_that_are_never_decoded(connect, plain, options):
    """DUMP gives bytes whatever the client decodes: in a scope, out of one, in a transaction."""
    client = connect(autobatch.Redis, decode_responses=True, **options)
    client.set("a", "Grüße")
    client.sadd("set", "é")
    client.hset("hash", "ü", "ö")
    client.zadd("zset", {"z": 1.5})
    dumped = client.dump("a")
    assert type(dumped) is bytes
    assert client.restore("b", 0, dumped)
    with autobatch.batch():
        before, again, after = client.get("a"), client.dump("a"), client.get("b")
        client.restore("c", 0, again)
        assert (before, again, after, client.get("c")) == ("Grüße", dumped, "Grüße", "Grüße")


@each_parser
def test_a_transaction_with_a_reply_that_is_never_decoded(connect, plain, options):
    """EXEC's one reply is read as bytes then; the other values in it are decoded afterwards."""
    client = connect(autobatch.Redis, decode_responses=True, **options)
    client.set("a", "Grüße")
    client.sadd("set", "é")
    client.hset("hash", "ü", "ö")
    client.zadd("zset", {"ß": 1.5})
    calls = [
        lambda client: client.get("a"),
        lambda client: client.dump("a"),
        lambda client: client.smembers("set"),
        lambda client: client.hgetall("hash"),
        lambda client: client.zrange("zset", 0, -1, withscores=True),
        lambda client: client.mget("a", "missing"),
        lambda client: client.exists("a"),
        lambda client: client.lpush("a", "wrong"),
        lambda client: client.eval("redis.setresp(3); return {map={ü={set={é=true}}}}", 0),
    ]
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            inside = [call(client) for call in calls]
        done = [outcome(autobatch.unwrap, future) for future in inside]
    assert done == [outcome(call, client) for call in calls]


@pytest.mark.parametrize("name", ["hiredis, RESP3", "Python, RESP3"])
def test_pushes_between_replies(connect, plain, name):
    """An invalidation in the middle of a batch goes to its handler, not to a Future."""
    client = connect(
        autobatch.Redis, decode_responses=True, single_connection_client=True, **PARSERS[name]
    )
    pushed = []
    client.connection._parser.set_invalidation_push_handler(pushed.append)
    client.client_tracking_on()
    plain.set("tracked", "0")
    with autobatch.batch() as scope:
        replies = [
            client.get("tracked"),
            client.set("tracked", "1"),
            client.get("tracked"),
            client.set("tracked", "2"),
            client.get("tracked"),
        ]
        assert [autobatch.unwrap(reply) for reply in replies] == ["0", True, "1", True, "2"]
        assert scope.stats.round_trips == 1
    plain.set("tracked", "3")  # from elsewhere: the push comes before the next reply
    assert client.get("other") is None
    assert [message[1] for message in pushed] == [["tracked"]] * 3


def test_a_large_batch_is_written_whole(connect, plain):
    """A write that the operating system takes in parts goes on where it stopped."""
    client = connect(autobatch.Redis, decode_responses=True)
    value = "x" * 1_000_000
    with autobatch.batch(max_bytes=64_000_000) as scope:
        for number in range(20):
            client.set(f"large{number}", value)
        lengths = [client.strlen(f"large{number}") for number in range(20)]
        last = client.get("large19")
    assert lengths == [1_000_000] * 20
    assert last == value
    assert scope.stats.round_trips == 1


def test_health_checks(proxy):
    """A connection that is due for one is checked before the batch, as redis-py would."""
    with autobatch.Redis(port=proxy.port, health_check_interval=3600) as client:
        client.ping()
        proxy.reset()
        connection = client.connection_pool.get_connection()
        connection.next_health_check = 0
        client.connection_pool.release(connection)
        for _ in range(2):
            with autobatch.batch():
                client.set("a", 1)
                client.get("a")
    assert proxy.names == [["PING"], ["SET", "GET"], ["SET", "GET"]]


def test_connections_of_the_program_s_own(server, plain):
    """Those of a class that reads in its own way are asked for each reply, as by redis-py."""

    class Socket:
        """One that can only write whole payloads, as that of a stand-in for a server."""

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            if name == "send":
                raise AttributeError(name)
            return getattr(self._real, name)

    class Connection(redis.Connection):
        replies = 0

        def _connect(self):
            return Socket(super()._connect())

        def read_response(self, *args, **options):
            type(self).replies += 1
            return super().read_response(*args, **options)

    pool = redis.ConnectionPool(connection_class=Connection, port=server, decode_responses=True)
    with autobatch.Redis(connection_pool=pool) as client:
        client.set("a", 1)
        Connection.replies = 0
        with autobatch.batch() as scope:
            wrong, number, text = client.lpush("a", 1), client.incr("a"), client.get("a")
            assert type(wrong.exception()) is redis.ResponseError
            assert (number, text) == (2, "2")
        assert scope.stats.round_trips == 1
    assert Connection.replies == 3
    pool.disconnect()


def test_without_hiredis(server, plain):
    """A redis-py that has no hiredis packs and parses in Python; so does autobatch."""
    program = f"""
        import sys
        sys.modules["hiredis"] = None
        import autobatch, redis
        client = autobatch.Redis(port={server}, decode_responses=True)
        with autobatch.batch() as scope:
            client.set("a", 1)
            client.rpush("l", "x", b"y")
            wrong = client.lpush("a", 1)
            values = client.get("a"), client.lrange("l", 0, -1), type(wrong.exception())
        print(*values, scope.stats.round_trips, client.get("a"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 ['x', 'y'] <class 'redis.exceptions.ResponseError'> 1 1\n"
