"""What stays secret, and what stays one command: hostile arguments of every kind.

A secret is any argument but a command's name and its key: nothing that autobatch says shows it.
On the wire a proxy is the witness: each call is one command with the arguments that redis-py's own
client sends, whatever these are made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import inspect
import logging
import subprocess
import sys
import textwrap
import traceback
import warnings
from wsgiref.util import setup_testing_defaults

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch import batch
from autobatch.asgi import BatchMiddleware as AsgiMiddleware
from autobatch.command import TABLE
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Answer, Cut, free_port
from autobatch.wsgi import BatchMiddleware as WsgiMiddleware
from common import PATIENCE

SECRET = "hunter2"
# What the proxy takes for the greeting of a new connection.
GREETING = {"AUTH", "CLIENT", "HELLO", "SELECT"}
# The proxy and the server are the same for all examples.
on_the_wire = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Overheard(logging.Handler):
    """All that is said while a block runs: records of any logger, warnings, and what it is told."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.said = []
        self._formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")

    def emit(self, record):
        self.said.append(self._formatter.format(record))  # with its traceback

    def error(self, error):
        """Take in all that can be shown of an error."""
        self.said += [str(error), repr(error), *getattr(error, "__notes__", [])]
        self.said += traceback.format_exception(error)

    def of_the_loop(self, _, context):
        self.said.append(context["message"])
        self.error(context["exception"])

    def __enter__(self):
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        self._warnings = warnings.catch_warnings(record=True)
        self._warned = self._warnings.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error):
        self._warnings.__exit__(*error)
        self.said += [str(warning.message) for warning in self._warned]
        logging.getLogger().removeHandler(self)
        logging.getLogger().setLevel(self._level)

    def with_secret(self, secret=SECRET):
        """Return what shows a secret."""
        return [text for text in self.said if secret in text.lower()]


def stream(body):
    """Run a function while a response is streamed, where errors can only be logged."""

    def app(environ, start_response):
        def chunks():
            yield b"started"
            body()
            yield b"ended"

        return chunks()

    environ = {}
    setup_testing_defaults(environ)
    response = WsgiMiddleware(app)(environ, lambda *_: None)
    assert list(response) == [b"started", b"ended"]
    response.close()


# ---- no secret is told -------------------------------------------------------------------


def spelled(name):
    return st.sampled_from([name, name.lower(), name.encode(), *([tuple(name.split())] * 2)])


def call_of(name, secrets):
    """Return a call of a command with nothing but secrets behind its key, if it has one."""
    words = name if isinstance(name, tuple) else (name,)
    text = " ".join(words) if isinstance(name, tuple) else name
    text = text.decode() if isinstance(text, bytes) else text
    traits = TABLE.get(text.upper())
    key = ["key"] if traits is not None and traits.keyed else []
    return (*words, *key, *secrets)


secrets = st.lists(
    st.sampled_from(
        [
            SECRET,
            SECRET.encode(),
            SECRET.upper(),
            f">{SECRET}",
            f"return '{SECRET}'",
            f"\r\n{SECRET}\0",
            f"{SECRET} {SECRET}",
        ]
    ),
    min_size=1,
    max_size=4,
)
# HIMPORT is redis-py's own affair. The proxy passes a greeting on, which a server answers itself.
known = st.sampled_from([name for name in TABLE if name.split()[0] not in GREETING | {"HIMPORT"}])
unknown = st.from_regex(r"[A-Z]{2,8}\.[A-Z]{2,8}( [A-Z]{2,8})?", fullmatch=True)
calls = st.builds(call_of, st.one_of(known, unknown).flatmap(spelled), secrets)
# Those of which everybody knows that they have one.
notorious = [
    ("AUTH", SECRET),
    ("AUTH", "user", SECRET),
    ("HELLO", 3, "AUTH", "user", SECRET),
    ("CONFIG SET", "requirepass", SECRET),
    ("CONFIG", "SET", "masterauth", SECRET),
    ("ACL SETUSER", "user", f">{SECRET}"),
    ("MIGRATE", "host", 6379, "key", 0, 10, "AUTH", SECRET),
    ("MIGRATE", "host", 6379, "", 0, 10, "AUTH2", "user", SECRET, "KEYS", "key"),
    ("SET", "key", SECRET),
    ("SETEX", "key", 10, SECRET),
    ("HSET", "key", "field", SECRET),
    ("MSET", "key", SECRET, "other", SECRET),
    ("EVAL", f"return '{SECRET}'", 1, "key", SECRET),
    ("EVALSHA", "0" * 40, 1, "key", SECRET),
    ("FCALL", "function", 0, SECRET),
    ("SCRIPT LOAD", f"return '{SECRET}'"),
    (f"AUTH {SECRET}",),
    (f"SET key {SECRET}",),
]
# What becomes of the commands: an error in the server's place, a lost reply, no connection. The
# server hears of none: there are dangerous ones among them.
FATES = {
    "refused": (lambda: Answer(b"-ERR no\r\n"), redis.ResponseError),
    "lost": (lambda: Cut(request=0), OutcomeUnknown),
    "not connected": (None, NotSent),
}
each_fate = pytest.mark.parametrize("fate", FATES)


def each_notorious(test):
    for args in notorious:
        test = example(args=args)(test)
    return test


def fails_with(fate, args):
    """Return what the error of a call will be."""
    name = args[0] if isinstance(args[0], str) else args[0].decode()
    return redis.RedisError if name.split()[0] in GREETING else FATES[fate][1]


def client_of(kind, proxy, fate, **options):
    """Return a client whose commands will all suffer the same."""
    fault, _ = FATES[fate]
    if fault is not None:
        proxy.arm(*(fault() for _ in range(10)))
    port = free_port() if fault is None else proxy.port
    retry = Retry if kind is autobatch.Redis else AsyncRetry
    return kind(port=port, retry=retry(NoBackoff(), 0), socket_timeout=PATIENCE, **options)


def look(future, overheard):
    """Take in all that a Future tells of itself."""
    overheard.said += [repr(future), repr(future.map(str))]


@each_fate
@each_notorious
@given(args=calls)
@on_the_wire
def test_no_secret_is_told(fate, proxy, args):
    """Neither of a command that waits, nor of one that failed: raised, noted, or logged."""
    kind = fails_with(fate, args)

    def run():
        futures = []
        for _ in range(3):
            # A command that steps aside fails at the call.
            with contextlib.suppress(redis.RedisError):
                try:
                    futures.append(client.execute_command(*args))
                except redis.RedisError as error:
                    assert isinstance(error, kind)
                    overheard.error(error)
                    raise
        return futures

    with Overheard() as overheard, client_of(autobatch.Redis, proxy, fate) as client:
        with batch() as scope:
            for future in run():
                look(future, overheard)
            scope.discard()
        futures = []
        try:
            with batch():
                futures = run()
        except redis.RedisError as error:
            assert isinstance(error, kind)
            overheard.error(error)
        for future in futures:
            look(future, overheard)
            overheard.error(future.exception())
        stream(run)
    assert overheard.with_secret() == []


@each_fate
@each_notorious
@given(args=calls)
@on_the_wire
def test_asyncio_no_secret_is_told(fate, proxy, args):
    """The same, and outside a scope, where the loop's exception handler hears of it."""
    kind = fails_with(fate, args)

    async def run():
        futures = []
        for _ in range(2):
            future = client.execute_command(*args)
            if inspect.iscoroutine(future) and type(future) is not autobatch.future.AsyncFuture:
                try:  # it steps aside
                    await future
                except redis.RedisError as error:
                    assert isinstance(error, kind)
                    overheard.error(error)
            else:
                futures.append(future)
                overheard.said.append(repr(future))
        return futures

    async def main():
        asyncio.get_running_loop().set_exception_handler(overheard.of_the_loop)
        try:
            async with batch():
                await run()
        except redis.RedisError as error:
            assert isinstance(error, kind)
            overheard.error(error)
        for future in await run():
            with contextlib.suppress(redis.RedisError):
                await future
            overheard.said.append(repr(future))
            overheard.error(future.exception())
        await run()
        await autobatch.asyncio.flush()
        await client.aclose()

    with Overheard() as overheard:
        client = client_of(autobatch.asyncio.Redis, proxy, fate)
        asyncio.run(main())
    assert overheard.with_secret() == []


@pytest.mark.parametrize("password", [SECRET, f"{SECRET}%20%0d%0a"], ids=["plain", "quoted"])
@pytest.mark.parametrize("there", [True, False], ids=["wrong", "nobody there"])
def test_no_password_of_a_url_is_told(password, there, server, plain):
    """Where a connection cannot be had, whether its password is wrong or nobody listens."""
    port = server if there else free_port()
    url = f"redis://user:{password}@127.0.0.1:{port}"

    async def main():
        client = autobatch.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0))
        with pytest.raises(NotSent) as raised:
            await client.get("key")
        overheard.error(raised.value)
        client.get("key")
        await autobatch.asyncio.flush()
        await client.aclose()

    with (
        Overheard() as overheard,
        autobatch.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        with pytest.raises(NotSent) as raised, batch():
            client.get("key")
        overheard.error(raised.value)
        with pytest.raises(NotSent) as raised:
            client.get("key")
        overheard.error(raised.value)
        stream(lambda: client.get("key"))
        asyncio.run(main())
    assert overheard.with_secret() == []
    assert overheard.said


# Errors of a real server that repeat what it was sent. Where such an error is raised, the server's
# words are its own, as with redis-py; but what autobatch adds to them must not pass them on.
REPEATED = [
    ("NOSUCHCOMMAND", SECRET),
    ("SET", "key", "value", "EX", SECRET),
    ("EXPIRE", "key", 10, SECRET),
    ("OBJECT", SECRET),
    ("CONFIG", SECRET),
    ("CONFIG SET", SECRET, "value"),
    ("XGROUP", SECRET),
    ("SCAN", 0, "TYPE", SECRET),
    ("XREADGROUP", "GROUP", SECRET, "consumer", "STREAMS", "key", ">"),
    ("XAUTOCLAIM", "key", SECRET, "consumer", 1, 0),
    ("FUNCTION LOAD", f"#!lua name=library\n{SECRET}()"),
    ("FUNCTION LOAD", SECRET, "source"),
    ("EVAL", "return redis.error_reply('refused ' .. ARGV[1])", 0, SECRET),
    ("EVAL", "error(ARGV[1])", 0, SECRET),
    ("EVAL", f"return {SECRET}.field", 0),
    ("EVAL", f"#!lua flags={SECRET}\nreturn 1", 0),
]


def noted(client, args, overheard):
    with pytest.raises(redis.ResponseError) as raised, batch():
        client.lpush("text", 1)
        client.execute_command(*args)
    overheard.said += raised.value.__notes__


def logged(client, args, overheard):
    stream(lambda: client.execute_command(*args))


def told_to_the_loop(client, args, overheard):
    async def main():
        asyncio.get_running_loop().set_exception_handler(overheard.of_the_loop)
        kwargs = client.connection_pool.connection_kwargs
        other = autobatch.asyncio.Redis(port=kwargs["port"])
        other.execute_command(*args)
        await autobatch.asyncio.flush()
        await other.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("way", [noted, logged, told_to_the_loop])
def test_what_the_server_repeats_is_not_passed_on(way, client, plain):
    """In a note to another error, in a log, by the handler of a loop: nothing but name and key."""
    plain.set("text", "no list")
    leaks = {}
    for args in REPEATED:
        with Overheard() as overheard:
            way(client, args, overheard)
        assert any("queued at" in text for text in overheard.said)
        if overheard.with_secret():
            leaks[args] = overheard.with_secret()
    assert leaks == {}


@pytest.mark.parametrize(
    "args",
    [
        ("AUTH", "user", SECRET),
        ("HELLO", 3, "AUTH", "user", SECRET),
        ("MIGRATE", "127.0.0.1", 1, "text", 0, 10, "AUTH", SECRET),
        ("CONFIG SET", "maxmemory", SECRET),
        ("SETEX", "key", SECRET, SECRET),
        ("INCRBY", "key", SECRET),
        ("LPUSH", "text", SECRET),
        ("EVAL", f"{SECRET}(", 0),
        ("EVALSHA", SECRET, 0),
        ("RESTORE", "key", 0, SECRET),
    ],
    ids=lambda args: args[0],
)
def test_what_a_server_does_not_repeat_is_nowhere(args, client, plain):
    """Not in the whole traceback of a command that a real server refused."""
    plain.set("text", "no list")
    with pytest.raises(redis.RedisError) as raised, batch():
        client.execute_command(*args)
    overheard = Overheard()
    overheard.error(raised.value)
    assert overheard.with_secret() == []


# ---- what is said is one line ------------------------------------------------------------

FORGED = "\r\nCRITICAL forged \x1b[31m\x85\u2028\x00"


def control_characters(text):
    return {character for character in text if not character.isprintable()}


@pytest.mark.parametrize("key", [f"text{FORGED}", f"text{FORGED}".encode()], ids=["str", "bytes"])
def test_a_key_forges_no_line(key, client, plain):
    """Whoever chooses a key cannot write a log's next line, nor command the terminal."""
    plain.set(key, "no list")
    with batch() as scope:
        future = client.lpush(key, 1)
        assert control_characters(repr(future)) == set()
        scope.flush()
        assert control_characters(repr(future)) == set()
        notes = future.exception().__notes__
    with Overheard() as overheard:
        stream(lambda: client.lpush(key, 1))
    logged = [text.partition("\nredis.exceptions")[0] for text in overheard.said]
    assert len(notes) == len(logged) == 1
    assert [control_characters(text) for text in notes + logged] == [set(), set()]


def request_by_wsgi(path, body):
    def app(environ, start_response):
        def chunks():
            yield b"started"
            body()

        return chunks()

    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    response = WsgiMiddleware(app)(environ, lambda *_: None)
    list(response)
    response.close()


def request_by_asgi(path, body):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body()
        await send({"type": "http.response.body"})

    async def main():
        async def send(message):
            pass

        scope = {"type": "http", "method": "GET", "path": path}
        await AsgiMiddleware(app)(scope, None, send)

    asyncio.run(main())


@pytest.mark.parametrize("request_by", [request_by_wsgi, request_by_asgi])
def test_a_path_forges_no_line(request_by, client, plain, caplog):
    """Servers have decoded it, `%0a` included."""
    plain.set("text", "no list")
    with caplog.at_level(logging.ERROR, "autobatch"):
        request_by(f"/path{FORGED}", lambda: client.lpush("text", 1))
    [message] = caplog.messages
    assert "/path" in message
    assert control_characters(message) == set()


class Unshowable(str):
    """Text that cannot be shown."""

    __slots__ = ()

    def __str__(self):
        raise LookupError

    __repr__ = __format__ = __str__


def use_an_unshowable_key(client):
    """Return what became of its command, of the neighbour, and of a look at it."""
    with contextlib.suppress(LookupError), batch() as scope:
        failed = client.lpush(Unshowable("text"), 1)
        neighbour = client.incr("n")
        with contextlib.suppress(LookupError):
            scope.flush()
        if not failed.done():
            return "pending", neighbour.done(), None
        return type(failed.exception()), neighbour.value, repr(failed)
    return None


def test_a_key_that_cannot_be_shown_breaks_nothing(client, plain, monkeypatch):
    """Looking raises nothing, and its neighbours get their replies."""
    plain.set("text", "no list")
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
    outcome, neighbour, shown = use_an_unshowable_key(client)
    gc.collect()
    assert (outcome, neighbour) == (redis.ResponseError, 1)
    assert "LPUSH" in shown
    assert unraisable == []


# ---- on the wire a call is one command ---------------------------------------------------

PING = "*1\r\n$4\r\nPING\r\n"


def commands_of(proxy):
    return [tuple(command) for exchange in proxy.exchanges for command in exchange]


def sync_sent(proxy, client, args, options):
    """Return what arrived for a call, or the type of what it raised."""
    proxy.reset()
    try:
        with contextlib.suppress(redis.ResponseError):
            client.execute_command(*args, **options)
    except Exception as error:
        assert commands_of(proxy) == []
        return type(error)
    return commands_of(proxy)


async def async_sent(proxy, client, args, options):
    proxy.reset()
    try:
        with contextlib.suppress(redis.ResponseError):
            await client.execute_command(*args, **options)
    except Exception as error:
        assert commands_of(proxy) == []
        return type(error)
    return commands_of(proxy)


def by_redis_py(proxy, args, options):
    with redis.Redis(port=proxy.port) as client:
        return sync_sent(proxy, client, args, options)


def by_redis_asyncio(proxy, args, options, **settings):
    async def main():
        async with redis.asyncio.Redis(port=proxy.port, **settings) as client:
            return await async_sent(proxy, client, args, options)

    return asyncio.run(main())


def outside(proxy, args, options):
    with autobatch.Redis(port=proxy.port) as client:
        return sync_sent(proxy, client, args, options)


def in_a_scope(proxy, args, options):
    with autobatch.Redis(port=proxy.port) as client, contextlib.suppress(redis.ResponseError):
        proxy.reset()
        with batch() as scope:
            try:
                client.execute_command(*args, **options)
            except Exception as error:  # at the call, and nothing is queued
                assert not isinstance(error, redis.ResponseError)
                assert scope.stats.commands == 0
                return type(error)
    return commands_of(proxy)


def in_a_transaction(proxy, args, options):
    with autobatch.Redis(port=proxy.port) as client, contextlib.suppress(redis.ResponseError):
        proxy.reset()
        with batch(atomic=True) as scope:
            try:
                client.execute_command(*args, **options)
            except Exception as error:
                assert scope.stats.commands == 0
                return type(error)
    multi, *commands, exec_ = commands_of(proxy)
    assert (multi, exec_) == ((b"MULTI",), (b"EXEC",))
    return commands


def asyncio_outside(proxy, args, options, **settings):
    async def main():
        async with autobatch.asyncio.Redis(port=proxy.port, **settings) as client:
            return await async_sent(proxy, client, args, options)

    return asyncio.run(main())


def asyncio_in_a_scope(proxy, args, options, **settings):
    async def main():
        async with autobatch.asyncio.Redis(port=proxy.port, **settings) as client, batch():
            return await async_sent(proxy, client, args, options)

    return asyncio.run(main())


SYNC_WAYS = [outside, in_a_scope, in_a_transaction]
ASYNC_WAYS = [asyncio_outside, asyncio_in_a_scope]
EACH_WAY = [*SYNC_WAYS, *ASYNC_WAYS]
each_way = pytest.mark.parametrize("way", EACH_WAY)
each_async_way = pytest.mark.parametrize("way", ASYNC_WAYS)


def by_each_way(proxy, args):
    return {way.__name__: way(proxy, args, {}) for way in EACH_WAY}


def same_by_each_way(sent):
    return {way.__name__: sent for way in EACH_WAY}


text = st.lists(
    st.one_of(
        st.sampled_from(["\r\n", "\0", PING, "$-1\r\n", "*0\r\n", " ", "\t", "\xa0", "\u2028"]),
        st.sampled_from(["FLUSHALL", "'", '"', "\ud800", "é"]),
        st.text(max_size=5),
    ),
    max_size=5,
).map("".join)
utf8 = text.map(lambda value: value.encode("utf-8", "surrogatepass"))
anything = st.one_of(
    text,
    utf8,
    st.binary(max_size=10),
    st.integers(),
    st.sampled_from([10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([None, True, False, 1j, (), [b"a"], {}, object()]),
)
# What separates the words of a name has a table of its own, below.
lines = st.builds(
    str.__add__,
    st.sampled_from(["get", "SET", "CONFIG GET", "Set key", "NOSUCH", f"GET{chr(0)}"]),
    st.text("ab\0$*\"'é", max_size=3).map(lambda value: f" x{value}"),
)


@each_way
@given(
    name=st.one_of(lines, lines.map(str.encode)),
    args=st.lists(anything, min_size=1, max_size=4),
    options=st.sampled_from([{}, {"keys": ["key"]}, {"keys": [f"a{PING}"]}, {"keys": None}]),
)
@on_the_wire
def test_a_call_is_the_one_command_that_redis_py_sends(way, proxy, name, args, options):
    """The same arguments, byte for byte, or an error at the call: one of those that it can have."""
    expected = by_redis_py(proxy, (name, *args), options)
    sent = way(proxy, (name, *args), options)
    if inspect.isclass(expected):
        wrong = [by_redis_py(proxy, (name, arg), options) for arg in args]
        assert sent in {error for error in wrong if inspect.isclass(error)}
    else:
        assert sent == expected
    assert inspect.isclass(expected) or len(expected) == 1


@given(values=st.lists(utf8.filter(bool), min_size=1, max_size=3))
@on_the_wire
def test_the_value_of_a_future_is_one_argument(proxy, values):
    """Whatever a server has answered, and wherever the Future stands but in front."""
    with autobatch.Redis(port=proxy.port) as client, contextlib.suppress(redis.ResponseError):
        proxy.reset()
        with batch():
            client.execute_command("SET", *[client.echo(value) for value in values])
    assert commands_of(proxy)[-1] == (b"SET", *values)
    assert len(commands_of(proxy)) == len(values) + 1


@pytest.mark.parametrize("value", ["get\r\nFLUSHALL", f"GET{PING}", "set key", "NOSUCH\0"])
def test_the_value_of_a_future_may_be_a_name(value, client, proxy):
    """It is split as redis-py would split it, and stays one command."""
    expected = by_redis_py(proxy, (value, "a"), {})
    proxy.reset()
    with contextlib.suppress(redis.ResponseError), batch():
        client.execute_command(client.echo(value), "a")
    assert commands_of(proxy)[1:] == expected


@pytest.mark.parametrize(
    "name",
    [
        "get\r\nFLUSHALL",
        "GET\tkey",
        f"GET{PING}",
        "GET key\xa0FLUSHALL",
        "GET key\u2003EX",
        "GET key\x1cFLUSHALL",
        " GET  key ",
        "GET\0FLUSHALL",
        "CONFIG\nGET",
        "",
        "GET \ud800",
        b"get\r\nFLUSHALL",
        b"get key\r\nFLUSHALL",
        b" GET  key\t",
        b"",
    ],
    ids=repr,
)
def test_a_name_has_the_words_that_redis_py_makes_of_it(name, proxy):
    """Who builds a name from what users say gets no other command than with redis-py."""
    args = (name, "a")
    assert by_each_way(proxy, args) == same_by_each_way(by_redis_py(proxy, args, {}))


class Liar(str):
    """Text that says it is something else."""

    __slots__ = ()

    def __str__(self):
        return PING

    def encode(self, *_):
        return PING.encode()

    __repr__ = __format__ = __str__


class LiarBytes(bytes):
    """Bytes that say they are something else."""

    def __bytes__(self):
        return PING.encode()

    def __len__(self):
        return 1

    def __str__(self):
        return PING

    __repr__ = __str__


class LiarInt(int):
    """A number that says it is something else."""

    def __str__(self):
        return PING

    __repr__ = __format__ = __str__


class Colour(enum.Enum):
    """What redis-py does not take."""

    RED = "red"


class TextColour(str, enum.Enum):  # noqa: UP042  # as older programs have them
    """Text, in the older way."""

    RED = "red"


class StrColour(enum.StrEnum):
    """Text."""

    RED = "red"


class IntColour(enum.IntEnum):
    """A number."""

    RED = 1


VIEW = memoryview(b"abcdef")
WHOLE = {
    "CR and LF": ("a\r\nb", b"a\r\nb"),
    "NUL": ("a\0b", b"a\0b"),
    "a command": (PING, PING.encode()),
    "a command in bytes": (PING.encode(), PING.encode()),
    "a surrogate": ("\ud800", UnicodeEncodeError),
    "a large integer": (10**400, b"1" + b"0" * 400),
    "nan": (float("nan"), b"nan"),
    "inf": (float("-inf"), b"-inf"),
    "a bool": (True, redis.DataError),
    "None": (None, redis.DataError),
    "a bytearray": (bytearray(b"a\r\n"), b"a\r\n"),
    "a view": (VIEW, b"abcdef"),
    "a view with steps": (VIEW[::2], b"ace"),
    "a view from behind": (VIEW[::-1], b"fedcba"),
    "a view of integers": (memoryview(b"abcdefgh").cast("I"), b"abcdefgh"),
    "a view of two dimensions": (memoryview(b"abcdefgh").cast("B", (2, 4)), b"abcdefgh"),
    "text that lies": (Liar("text"), b"text"),
    "text that cannot be shown": (Unshowable("text"), b"text"),
    "bytes that lie": (LiarBytes(b"bytes"), b"bytes"),
    "an Enum": (Colour.RED, redis.DataError),
    "an Enum of text": (TextColour.RED, b"red"),
    "a StrEnum": (StrColour.RED, b"red"),
    "a list": (["a"], redis.DataError),
    "a set": ({"a"}, redis.DataError),
    "a complex number": (1j, redis.DataError),
}
each_value = pytest.mark.parametrize(("value", "sent"), WHOLE.values(), ids=WHOLE)


@each_value
def test_a_value_of_any_type_is_one_argument_or_refused(value, sent, proxy):
    """As a key, as a value, as an option: its own bytes, or an error at the call."""
    for before in (("GET",), ("SET", "key"), ("SET", "key", "value")):
        expected = sent
        if not inspect.isclass(sent):
            expected = [(*(word.encode() for word in before), sent)]
        assert by_each_way(proxy, (*before, value)) == same_by_each_way(expected)


class Identifier(int):
    """A number of the program's own type, that behaves well."""


@pytest.mark.parametrize(
    "value",
    [Identifier(7), LiarInt(7), IntColour.RED],
    ids=["an Identifier", "a number that lies", "an IntEnum"],
)
def test_a_number_of_a_subclass_is_refused(value, proxy):
    """As by redis-py's synchronous client; its other one sends the repr, which nobody wants."""
    args = ("SET", "key", value)
    assert by_redis_py(proxy, args, {}) is redis.DataError
    assert set(by_each_way(proxy, args).values()) == {redis.DataError}


@each_async_way
@pytest.mark.parametrize(
    ("value", "settings"),
    [
        ("é", {"encoding": "latin-1"}),
        ("\udcff", {"encoding_errors": "surrogateescape"}),
        ("\ud800", {"encoding_errors": "replace"}),
    ],
    ids=["latin-1", "surrogateescape", "replace"],
)
def test_asyncio_a_value_is_encoded_as_by_redis_asyncio(way, value, settings, proxy):
    """It packs in Python, with the client's encoding; redis-py's synchronous client does not."""
    args = ("SET", "key", value)
    expected = by_redis_asyncio(proxy, args, {}, **settings)
    assert way(proxy, args, {}, **settings) == expected


def test_the_line_of_a_call_with_keys_is_the_callers(client, plain):
    """Programs may give redis-py's option `keys`, too."""
    plain.set("text", "no list")
    with batch():
        future = client.execute_command("LPUSH", "text", 1, keys=["text"])
        [note] = future.exception().__notes__
    assert note.endswith("in test_the_line_of_a_call_with_keys_is_the_callers")


@pytest.mark.parametrize("kind", ["autobatch.Redis", "autobatch.asyncio.Redis"])
def test_a_number_that_python_refuses_to_print_is_an_error(kind):
    """And not the end of the process, whatever the C code that packs thinks of it."""
    program = f"""
        import asyncio, autobatch

        async def main():
            client = {kind}(port=1)
            with autobatch.batch() as scope:
                try:
                    client.set("key", 10**5000)
                except ValueError:
                    print("refused")
                scope.discard()

        asyncio.run(main())
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "refused\n", "")
