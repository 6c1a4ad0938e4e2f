"""Errors of a real server, on both engines and with both kinds of clients.

The server is put into the state that it complains about; nothing is answered in its place. Each
error has to land at its own Future, the rest of the batch is unharmed, no write is applied twice,
and afterwards the client works, in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ExecAbortError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Proxy
from common import PATIENCE, eventually, meanwhile
from engines import ENGINES, Server, starting
from looping import tidy

pytestmark = pytest.mark.server

MEGABYTE = 1 << 20


@pytest.fixture(params=ENGINES)
def start(request):
    """Start a server; its arguments are settings."""
    with starting(request.param) as start:
        yield start


@pytest.fixture(params=["sync", "asyncio"])
def connect(request):
    """Give a function that makes a `Caller` of a server."""
    kind = {"sync": SyncCaller, "asyncio": AsyncCaller}[request.param]
    with contextlib.ExitStack() as stack:

        def connect(server, **options):
            proxy = stack.enter_context(Proxy(server.port, delay=0))
            caller = kind(proxy, {"decode_responses": True, "socket_timeout": PATIENCE, **options})
            stack.callback(caller.close)
            return caller

        yield connect


class Caller:
    """A client of either kind, called in the same way. At its end nothing of it is in use.

    A command is a tuple of its arguments, a list of them is an atomic block, and anything else is
    a function of the client.
    """

    client: Any

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def batch(self, *commands: Any) -> list[Any]:
        """Run commands in a scope, in one batch; return the value or the error of each."""
        raise NotImplementedError

    def unseen(self, *commands: Any) -> BaseException | None:
        """Run commands in a scope without a look at them; return what its end raises."""
        raise NotImplementedError

    def sent(self, name: str) -> int:
        """Return how often a command arrived on the wire."""
        return self.proxy.command_names.count(name)

    def _queue(self, commands: tuple[Any, ...]) -> list[Any]:
        queued: list[Any] = []
        for command in commands:
            if isinstance(command, list):
                with autobatch.batch(atomic=True):
                    queued += self._queue(tuple(command))
            elif isinstance(command, tuple):
                queued.append(attempt(lambda: self.client.execute_command(*command)))
            else:
                queued.append(attempt(lambda: command(self.client)))
        return queued


class SyncCaller(Caller):
    """Of a synchronous client."""

    def __init__(self, proxy, options):
        super().__init__(proxy)
        retry = Retry(options.pop("backoff", NoBackoff()), options.pop("retries", 1))
        self.client = autobatch.Redis(port=proxy.port, retry=retry, **options)

    def batch(self, *commands):
        with autobatch.batch():
            queued = self._queue(commands)
            return [attempt(lambda: autobatch.unwrap(one)) for one in queued]

    def unseen(self, *commands):
        def run():
            with autobatch.batch():
                self._queue(commands)

        return attempt(run)

    def close(self):
        assert not self.client.connection_pool._in_use_connections
        self.client.close()


class AsyncCaller(Caller):
    """Of an asyncio client. Its loop stands still between the calls, but keeps its connection."""

    def __init__(self, proxy, options):
        super().__init__(proxy)
        retry = AsyncRetry(options.pop("backoff", NoBackoff()), options.pop("retries", 1))
        self.client = autobatch.asyncio.Redis(port=proxy.port, retry=retry, **options)
        self._runner = asyncio.Runner()

    def batch(self, *commands):
        async def look(queued):
            if isinstance(queued, Exception):
                return queued
            try:
                return await queued
            except Exception as error:
                return error

        async def run():
            async with autobatch.batch():
                queued = self._queue(commands)
                return [await look(one) for one in queued]

        return self._runner.run(tidy(run()))

    def unseen(self, *commands):
        async def run():
            async with autobatch.batch():
                self._queue(commands)

        return attempt(lambda: self._runner.run(tidy(run())))

    def close(self):
        self._runner.run(tidy(self.client.aclose()))
        self._runner.close()


def attempt(function):
    try:
        return function()
    except Exception as error:
        return error


# ---- states in which a server refuses some commands -------------------------------------


@contextlib.contextmanager
def configured(server, **settings):
    """Have settings for the time of the block."""
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    before = {name: server.plain.config_get(name)[name] for name in names}
    for name, value in names.items():
        server.plain.config_set(name, value)
    yield
    for name, value in before.items():
        server.plain.config_set(name, value)


@contextlib.contextmanager
def failing_save(server):
    """Its last snapshot failed: in the place of the file there is a directory."""
    obstacle = server.directory / "dump.rdb"
    obstacle.mkdir()

    def saved(status):
        facts = server.plain.info("persistence")
        return not facts["rdb_bgsave_in_progress"] and facts["rdb_last_bgsave_status"] == status

    with configured(server, save="3600 1"):
        server.plain.bgsave()
        eventually(lambda: saved("err"))
        yield
        obstacle.rmdir()
        server.plain.bgsave()
        eventually(lambda: saved("ok"))


@contextlib.contextmanager
def demoted(server, **settings):
    """It is a replica of a server that does not run."""
    with socket.socket() as nobody, configured(server, **settings):
        nobody.bind(("127.0.0.1", 0))  # and never listens
        server.plain.replicaof("127.0.0.1", nobody.getsockname()[1])
        yield
        server.plain.replicaof("NO", "ONE")


@contextlib.contextmanager
def forbidden(server):
    """Its only user may not write any more."""
    server.plain.execute_command("ACL SETUSER", "default", "-@write")
    yield
    server.plain.execute_command("ACL SETUSER", "default", "+@all")


@contextlib.contextmanager
def locked(server):
    """It asks for a password, and has closed the connections of those who gave none."""
    be_admin(server)
    with configured(server, requirepass="secret"):
        disconnect_others(server)
        yield


def be_admin(server):
    """Let the test's own connection be of a user whom no password concerns."""
    server.plain.execute_command("ACL SETUSER", "admin", "on", "nopass", "~*", "+@all")
    server.plain.auth("", "admin")


def disconnect_others(server):
    server.plain.client_kill_filter(_type="normal", skipme=True)


@contextlib.contextmanager
def looping(server):
    """It runs a script that does not end by itself."""
    with (
        configured(server, busy_reply_threshold=1),
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as other,
    ):
        script = threading.Thread(target=attempt, args=[lambda: other.eval(LOOP, 0)])
        script.start()
        eventually(lambda: "BUSY" in str(attempt(server.plain.ping)))
        yield
        server.plain.script_kill()
        script.join(PATIENCE)


@contextlib.contextmanager
def loading(server):
    """It was started again, and reads a dump that it will not be done with by itself."""
    server.plain.mset({f"filler:{number}": "x" * 1024 for number in range(5000)})
    server.plain.config_set("rdbcompression", "no")
    server.plain.save()
    server.kill()
    # Ten milliseconds for a key, and it answers what has arrived after each.
    server.start(key_load_delay=10_000, loading_process_events_interval_bytes=1024)
    assert isinstance(attempt(server.plain.ping), BusyLoadingError)
    yield
    server.plain.config_set("key-load-delay", 0)
    eventually(lambda: attempt(server.plain.ping) is True)


LOOP = "while true do end"


class State(NamedTuple):
    """How to bring a server into a state and out of it, and what it refuses then: how, and why.

    What nobody refuses is None. `other` stands for commands that neither read nor write.
    """

    name: str
    enter: Callable[[Server], contextlib.AbstractContextManager[None]]
    write: tuple[type[Exception], str]
    read: tuple[type[Exception], str] | None = None
    other: tuple[type[Exception], str] | None = None
    options: Mapping[str, Any] = MappingProxyType({})


OOM = (OutOfMemoryError, "maxmemory")
NOREPLICAS = (ResponseError, "NOREPLICAS")
READONLY = (ReadOnlyError, "read only replica")
BUSY = (ResponseError, "BUSY")
LOADING = (BusyLoadingError, "loading")
NOAUTH = (AuthenticationError, "Authentication required")

# For a client that sends nothing before its first command: else its greeting would be refused.
MUTE: dict[str, Any] = {"protocol": 2}
if "driver_info" in inspect.signature(redis.Redis).parameters:
    MUTE["driver_info"] = None
else:
    MUTE |= {"lib_name": None, "lib_version": None}

STATES = [
    State("OOM", lambda server: configured(server, maxmemory=1), OOM),
    State("MISCONF", failing_save, (ResponseError, "MISCONF")),
    State("NOREPLICAS", lambda server: configured(server, min_replicas_to_write=1), NOREPLICAS),
    State("READONLY", demoted, READONLY),
    State(
        "MASTERDOWN",
        lambda server: demoted(server, replica_serve_stale_data="no"),
        READONLY,
        read=(MasterDownError, "Link with MASTER is down"),
    ),
    State("NOPERM", forbidden, (NoPermissionError, "no permissions")),
    State("BUSY", looping, BUSY, read=BUSY, other=BUSY),
    State("LOADING", loading, LOADING, read=LOADING),
    State("NOAUTH", locked, NOAUTH, read=NOAUTH, other=NOAUTH, options=MUTE),
]


@pytest.fixture(params=STATES, ids=lambda state: state.name)
def state(request):
    return request.param


@pytest.fixture
def server(start):
    server = start()
    server.plain.set("kept", "it")
    return server


def mixture(token):
    """Kinds, commands and values, when nothing is refused. The values tell what ran before."""
    return [
        ("read", ("GET", "kept"), "it"),
        ("write", ("INCR", f"n:{token}"), 1),
        ("other", ("ECHO", token), token),
        ("write", ("RPUSH", f"log:{token}", token), 1),
        ("read", ("STRLEN", "kept"), 2),
        ("other", ("ECHO", token * 2), token * 2),
    ]


def commands(mixed):
    return [command for _, command, _ in mixed]


def values(mixed):
    return [value for _, _, value in mixed]


def seen_in(state, mixed, *, aborted=None):
    """What the outcomes should look like: a value, or the kind of an error and a word of it."""
    return [getattr(state, kind) or aborted or value for kind, _, value in mixed]


def look_like(outcomes, expected):
    """Return outcomes in the form of those that are expected, for a comparison that tells."""
    return [
        want if isinstance(want, tuple) and matches(outcome, want) else outcome
        for outcome, want in zip(outcomes, expected, strict=True)
    ]


def matches(outcome, error):
    kind, words = error
    return isinstance(outcome, kind) and words in str(outcome)


def drain(caller):
    """Let the client notice that the server has closed its connection meanwhile, if it has.

    What only reads finds that out without a trace.
    """
    caller.batch(("ECHO", "are you there?"))
    caller.proxy.reset()


def test_a_refusal_lands_at_its_own_future(state, server, connect):
    """The first reply decides what becomes of the connection, so it is a read and another."""
    caller = connect(server, **state.options)
    warm, one, two = mixture("warm"), mixture("one"), mixture("two")[::-1]
    assert caller.batch(*commands(warm)) == values(warm)
    with state.enter(server):
        drain(caller)
        for mixed in (one, two):
            expected = seen_in(state, mixed)
            assert look_like(caller.batch(*commands(mixed)), expected) == expected
        assert caller.sent("INCR") == caller.sent("RPUSH") == 2
    for mixed in (one, two):
        assert caller.batch(*commands(mixed)) == values(mixed)
    assert server.plain.mget("n:warm", "n:one", "n:two") == ["1", "1", "1"]


def test_refusals_that_nobody_saw_are_raised_at_the_end(state, server, connect):
    caller = connect(server, **state.options)
    mixed = mixture("one")
    caller.batch(("ECHO", "a connection"))
    with state.enter(server):
        drain(caller)
        error = caller.unseen(*commands(mixed))
        refused = [
            (command[0], why)
            for command, why in zip(commands(mixed), seen_in(state, mixed))
            if isinstance(why, tuple)
        ]
        assert matches(error, refused[0][1])
        told = error.__notes__
        assert refused[0][0] in told[0]
        for (name, (_, words)), note in zip(refused[1:], told[1:], strict=True):
            assert note.startswith("Also failed: ")
            assert name in note
            assert words in note
    assert caller.batch(*commands(mixed)) == values(mixed)


def test_a_block_with_a_refusal_is_aborted(state, server, connect):
    """Nothing of it runs; what stands around it is none of its business."""
    caller = connect(server, **state.options)
    mixed, outside = mixture("one"), mixture("two")
    caller.batch(("ECHO", "a connection"))
    with state.enter(server):
        drain(caller)
        outcomes = caller.batch(*commands(outside[:3]), commands(mixed), *commands(outside[3:]))
        # Without memory Redis queues nothing at all.
        aborted = ((ExecAbortError, state.write[0]), "")
        expected = [
            *seen_in(state, outside[:3]),
            *seen_in(state, mixed, aborted=aborted),
            *seen_in(state, outside[3:]),
        ]
        assert look_like(outcomes, expected) == expected
        assert caller.sent("EXEC") == 1
    both = [*mixed, *outside]
    assert caller.batch(*commands(both)) == values(both)


@pytest.mark.parametrize(
    ("setting", "refusal"), [("maxmemory", OOM), ("min-replicas-to-write", NOREPLICAS)]
)
def test_a_state_in_the_middle_of_a_batch(setting, refusal, server, connect):
    outcomes = connect(server).batch(
        ("INCR", "n"),
        ("CONFIG SET", setting, 1),
        ("INCR", "n"),
        ("GET", "kept"),
        ("CONFIG SET", setting, 0),
        ("INCR", "n"),
    )
    expected = [1, True, refusal, "it", True, 2]
    assert look_like(outcomes, expected) == expected


# ---- commands that are wrong in themselves ----------------------------------------------

WRONG_WHEN_RUN = {
    ("LPUSH", "kept", "x"): (ResponseError, "WRONGTYPE"),
    ("INCR", "kept"): (ResponseError, "not an integer"),
}
WRONG_WHEN_READ = {
    ("NOSUCHCOMMAND",): (ResponseError, "unknown command"),
    ("GET",): (ResponseError, "wrong number of arguments"),
}


@pytest.mark.parametrize(
    "wrong", [WRONG_WHEN_RUN, WRONG_WHEN_READ, WRONG_WHEN_RUN | WRONG_WHEN_READ]
)
@pytest.mark.parametrize("atomic", [False, True])
def test_a_wrong_command_fails_alone(wrong, atomic, server, connect):
    """A transaction has what its commands do wrong when it runs, and no more than that."""
    caller = connect(server)
    asked = [("INCR", "n"), *wrong, ("GET", "kept")]
    expected = [1, *wrong.values(), "it"]
    if atomic and not wrong.keys().isdisjoint(WRONG_WHEN_READ):
        aborted = (ExecAbortError, "Transaction discarded")
        expected = [WRONG_WHEN_READ.get(command, aborted) for command in asked]
    outcomes = caller.batch(asked) if atomic else caller.batch(*asked)
    assert look_like(outcomes, expected) == expected
    assert caller.batch(("ECHO", "in step"), ("GET", "n")) == [
        "in step",
        "1" if expected[0] == 1 else None,
    ]


def test_registered_scripts_survive_their_being_forgotten(server, connect):
    caller = connect(server)
    script = caller.client.register_script("return redis.call('INCR', KEYS[1])")

    def call(_):
        return script(keys=["n"])

    assert caller.batch(call, ("GET", "n"), call) == [1, "1", 2]
    server.plain.script_flush()
    assert caller.batch(("INCR", "n"), call, ("GET", "n"), call) == [3, 4, "4", 5]


def test_a_digest_that_the_server_does_not_know(server, connect):
    caller = connect(server)
    outcomes = caller.batch(("INCR", "n"), ("EVALSHA", "0" * 40, 0), ("INCR", "n"))
    expected = [1, (NoScriptError, ""), 2]
    assert look_like(outcomes, expected) == expected


def test_a_script_that_is_killed_fails_alone(server, connect):
    caller = connect(server)

    def kill():
        eventually(lambda: not isinstance(attempt(server.plain.script_kill), Exception))

    with configured(server, busy_reply_threshold=1), meanwhile(kill):
        outcomes = caller.batch(("INCR", "n"), ("EVAL", LOOP, 0), ("GET", "kept"), ("INCR", "n"))
    expected = [1, (ResponseError, "killed by user"), "it", 2]
    assert look_like(outcomes, expected) == expected


# ---- a server that is loading refuses a whole batch -------------------------------------

ALL_REFUSED = [("GET", "kept"), ("INCR", "n"), ("RPUSH", "log", "x")]


def test_a_server_that_goes_on_loading_ran_nothing(server, connect):
    caller = connect(server, retries=2)
    with loading(server):
        outcomes = caller.batch(*ALL_REFUSED)
        assert [matches(one, LOADING) for one in outcomes] == [True] * 3
        assert [isinstance(one, NotSent) for one in outcomes] == [True] * 3
        assert caller.sent("INCR") == 3  # as often as the client's `retry` says, and once
        assert matches(caller.unseen(*ALL_REFUSED), LOADING)
    assert caller.batch(*ALL_REFUSED) == ["it", 1, 1]


def test_a_batch_waits_until_a_server_has_loaded(server, connect):
    caller = connect(server, retries=10_000, backoff=ConstantBackoff(0.01))

    def stop_loading():
        eventually(lambda: caller.sent("INCR") > 2)
        server.plain.config_set("key-load-delay", 0)

    with loading(server), meanwhile(stop_loading):
        assert caller.batch(*ALL_REFUSED) == ["it", 1, 1]
    assert server.plain.get("n") == "1"


# ---- another server takes over ----------------------------------------------------------


def follow(replica, primary):
    """Make a server a replica of another one; return when it has all that the other has."""
    replica.plain.replicaof("127.0.0.1", primary.port)
    eventually(lambda: replica.plain.info("replication")["master_link_status"] == "up")


def test_after_a_failover_calls_reach_the_new_primary(start, connect):
    """New connections lead there, as where a name is given to another address.

    As with redis-py, a client that Sentinel does not guide stays on its connection until somebody
    closes it, which is what tools for failovers do.
    """
    old, new = (start(repl_diskless_sync_delay=0) for _ in range(2))
    caller = connect(old)
    assert caller.batch(("INCR", "n")) == [1]
    follow(new, old)
    new.plain.replicaof("NO", "ONE")
    follow(old, new)
    caller.proxy.server = ("127.0.0.1", new.port)
    for token in ("x", "y"):
        outcomes = caller.batch(("ECHO", token), ("INCR", "n"), ("GET", "n"))
        expected = [token, READONLY, "1"]
        assert look_like(outcomes, expected) == expected
    disconnect_others(old)
    drain(caller)
    assert caller.batch(("INCR", "n"), ("ECHO", "z")) == [2, "z"]
    assert new.plain.get("n") == "2"


# ---- users and passwords ----------------------------------------------------------------

ALICE = ("ACL SETUSER", "alice", "on", "resetpass", ">right", "~*", "+@all")
AS_ALICE = {"username": "alice", "password": "right"}


@pytest.mark.parametrize(
    ("credentials", "lock", "unlock"),
    [
        ({}, ("CONFIG SET", "requirepass", "secret"), ("CONFIG SET", "requirepass", "")),
        (AS_ALICE, ("ACL SETUSER", "alice", "resetpass", ">other"), ALICE),
        (AS_ALICE, ("ACL SETUSER", "alice", "off"), ALICE),
        (AS_ALICE, ("ACL DELUSER", "alice"), ALICE),
    ],
    ids=["a password is set", "it is changed", "the user is locked", "the user is deleted"],
)
def test_who_is_not_let_in_sends_nothing(credentials, lock, unlock, server, connect):
    server.plain.execute_command(*ALICE)
    be_admin(server)
    caller = connect(server, protocol=3, **credentials)
    mixed = mixture("one")
    assert caller.batch(("INCR", "n")) == [1]
    server.plain.execute_command(*lock)
    disconnect_others(server)
    drain(caller)
    outcomes = caller.batch(*commands(mixed))
    assert [isinstance(one, AuthenticationError) for one in outcomes] == [True] * len(mixed)
    assert [isinstance(one, NotSent) for one in outcomes] == [True] * len(mixed)
    assert isinstance(caller.unseen(*commands(mixed)), AuthenticationError)
    assert caller.proxy.commands == 0
    server.plain.execute_command(*unlock)
    assert caller.batch(*commands(mixed), ("INCR", "n")) == [*values(mixed), 2]


def test_a_wrong_password_given_by_hand(server, connect):
    """It steps aside, so what waits is sent before it."""
    server.plain.execute_command(*ALICE)
    caller = connect(server)
    outcomes = caller.batch(("INCR", "n"), ("AUTH", "alice", "wrong"), ("INCR", "n"), ("ECHO", "x"))
    expected = [1, (AuthenticationError, ""), 2, "x"]
    assert look_like(outcomes, expected) == expected
    assert caller.batch(("ECHO", "y"), ("INCR", "n")) == ["y", 3]


# ---- limits -----------------------------------------------------------------------------


def test_a_server_that_is_full(server, connect):
    """Who has a connection keeps it; nobody else gets one."""
    inside, outside = connect(server), connect(server)
    assert inside.batch(("INCR", "n")) == [1]
    with configured(server, maxclients=1):
        assert inside.batch(("INCR", "n"), ("ECHO", "x")) == [2, "x"]
        outcomes = outside.batch(("INCR", "n"), ("GET", "kept"))
        assert [isinstance(one, NotSent) for one in outcomes] == [True, True]
        assert isinstance(outside.unseen(("INCR", "n")), NotSent)
    assert outside.batch(("INCR", "n"), ("ECHO", "y")) == [3, "y"]


@pytest.mark.parametrize(
    ("settings", "excess"),
    [
        ({"proto_max_bulk_len": MEGABYTE}, ("SET", "big", "x" * 2 * MEGABYTE)),
        ({"client_query_buffer_limit": MEGABYTE}, ("SET", "big", "x" * 4 * MEGABYTE)),
        ({"client_output_buffer_limit": f"normal {MEGABYTE} 0 0"}, ("LRANGE", "large", 0, -1)),
    ],
    ids=["of a value", "of the requests", "of the replies"],
)
def test_a_limit_that_ends_the_connection(settings, excess, server, connect):
    """How far the server came is not the client's to know, but what it says has to be true."""
    server.plain.rpush("large", *["x" * 1024] * 4096)
    caller = connect(server)
    with configured(server, **settings):
        outcomes = caller.batch(
            ("INCR", "before"), ("GET", "kept"), excess, ("INCR", "after"), ("GET", "kept")
        )
        before, read, exceeded, after, read_again = outcomes
        assert isinstance(exceeded, (ResponseError, NotSent, OutcomeUnknown))
        for outcome in (read, read_again):
            assert outcome == "it" or isinstance(outcome, (NotSent, OutcomeUnknown))
        for key, outcome in (("before", before), ("after", after)):
            ran = int(server.plain.get(key) or 0)
            assert ran in may_have_run(outcome)
            assert caller.batch(("ECHO", key), ("INCR", key)) == [key, ran + 1]
        assert isinstance(caller.unseen(("ECHO", "x"), excess), redis.RedisError)
    assert server.plain.exists("big") == 0
    assert caller.batch(("ECHO", "y"), ("GET", "kept")) == ["y", "it"]


def may_have_run(outcome):
    """How often an INCR of a new key has run, by what is said of it."""
    if isinstance(outcome, NotSent):
        return {0}
    if isinstance(outcome, OutcomeUnknown):
        return {0, 1}
    return {outcome}
