"""The table of commands against a real server, spellings, and what a command tells of itself."""

from __future__ import annotations

import inspect

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

import autobatch
from autobatch.command import TABLE, Command, Travel, calling_frame, spelled_out, traits_of
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.future import promise_of
from pending import PAPER, Keeper

# Readonly for the server, and yet not in the table: it is a cluster's, and asks for a slot.
READS_OF_CLUSTERS = {"CLUSTERSCAN"}
# The server calls them blocking; whether they are is said by their arguments.
BLOCKING_BY_ARGUMENT = {"XREAD", "XREADGROUP"}


def traits(*args):
    """Return the traits of a call, spelled in any way."""
    return traits_of(spelled_out(args))


def alone(*args):
    """Return whether a call travels alone."""
    return traits(*args).travel_of(spelled_out(args)) is Travel.ALONE


def command(*args, caller=None):
    """Return a command that nobody will send."""
    return Command(traits(*args), spelled_out(args), {}, b"", None, PAPER, Keeper(), caller)


def spellings(name):
    """Return the ways to spell a command that redis-py accepts."""
    words = name.split()
    joined = [(name,), (name.lower(),), (name.encode(),), (name.title().encode(),)]
    split = [tuple(words), tuple(word.lower() for word in words), tuple(map(str.encode, words))]
    return joined + split


# ---- against COMMAND of the server -----------------------------------------------------------


@pytest.fixture(scope="module")
def served(server):
    """What the server says of each command: its flags and where its first key is."""
    commands = {}

    def add(entries):
        for name, _, flags, first_key, *_, subcommands in entries:
            commands[name.upper().replace("|", " ")] = (set(flags), first_key)
            add(subcommands)

    with redis.Redis(port=server, protocol=2, decode_responses=True) as client:
        client.response_callbacks.clear()
        add(client.execute_command("COMMAND"))
    return commands


def test_names_are_the_server_s(served):
    """No entry is misspelt; HIMPORT is of Redis 8.6."""
    assert set(TABLE) - set(served) <= {"HIMPORT"}


def test_what_reads_is_known_to(served):
    """Each command that only reads, says the server, may be sent again, or travels alone."""
    reads = {name for name, (flags, _) in served.items() if "readonly" in flags}
    missing = {name for name in reads if not (traits(name).read_only or alone(name))}
    assert missing == READS_OF_CLUSTERS
    assert len(reads) > 80


def test_no_write_is_sent_again(served):
    """Nothing that may be sent again writes, says the server."""
    assert [n for n in TABLE if TABLE[n].read_only and "write" in served[n][0]] == []


def test_what_blocks_travels_alone(served):
    """A command that makes the server wait must not hold up others."""
    blocking = {name for name, (flags, _) in served.items() if "blocking" in flags}
    assert {name for name in blocking if not alone(name)} == BLOCKING_BY_ARGUMENT
    assert blocking >= {"BLPOP", "WAIT"}


def test_what_cannot_be_in_a_transaction_travels_alone(served):
    """The server refuses it between MULTI and EXEC, so an atomic block must refuse it first."""
    refused = {name for name, (flags, _) in served.items() if "no_multi" in flags}
    assert {name for name in refused if not alone(name)} == set()
    assert refused >= {"WATCH", "SYNC"}


def test_the_first_argument_of_keyed_commands_is_a_key(served):
    """What is shown in messages is a key, never a value."""
    keyed = {name for name in TABLE if TABLE[name].keyed}
    assert {n for n in keyed if served[n][1] != 1 + n.count(" ")} == set()
    assert len(keyed) > 150


# ---- arguments that decide -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "blocks"),
    [
        (("XREAD", "STREAMS", "s", "0"), False),
        (("XREAD", "COUNT", 5, "STREAMS", "s", "0"), False),
        (("XREAD", "BLOCK", 0, "STREAMS", "s", "0"), True),
        (("xread", "count", 5, "block", 0, "streams", "s", "0"), True),
        ((b"XREAD", b"BLOCK", b"0", b"STREAMS", b"s", b"0"), True),
        (("XREAD", "STREAMS", "BLOCK", "0"), False),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), False),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 9, "STREAMS", "s", ">"), True),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "block", ">"), False),
        (("XREADGROUP", "GROUP", "streams", "c", "BLOCK", 9, "STREAMS", "s", ">"), True),
        (("XREADGROUP", "GROUP", "g", "streams", "BLOCK", 9, "STREAMS", "s", ">"), True),
        (("COPY", "a", "b"), False),
        (("COPY", "a", "b", "DB", 1), True),
        (("COPY", "a", "b", "REPLACE", b"db", 1), True),
        (("COPY", "DB", "db"), False),
    ],
    ids=lambda value: None if isinstance(value, bool) else " ".join(map(str, value)),
)
def test_arguments_decide(args, blocks):
    """XREAD and XREADGROUP travel alone if they block, COPY if it reaches another database."""
    assert alone(*args) is blocks


# ---- spelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_spellings(name):
    """Bytes or text, any case, a subcommand in the name or after it: the traits are the same."""
    expected = TABLE[name]
    for spelling in spellings(name):
        found = traits(*spelling, "user:1")
        assert found.name == name
        assert found.travel is expected.travel
        assert found.read_only is expected.read_only
        assert found.keyed is expected.keyed
        assert found.script == expected.script


@pytest.mark.parametrize(
    "name", ["ACL WHOAMI", "CLIENT ID", "CLUSTER INFO", "DEBUG SLEEP", "MODULE LIST", "CLIENT NEW"]
)
def test_containers_that_travel_alone(name):
    """Every subcommand does, also one that did not exist when this was written."""
    assert all(alone(*spelling) for spelling in spellings(name))


@pytest.mark.parametrize(
    "line", ["SELECT 1", "blpop queue 0", "CLIENT REPLY OFF", "XREAD BLOCK 0 STREAMS s 0"]
)
def test_a_whole_line_in_the_name(line):
    """redis-py splits its first argument at spaces, whatever it holds; so it is judged split."""
    assert alone(line)
    assert alone(line.encode())


def test_unknown_commands_are_writes():
    """A module's command is batched, and is not sent again when its reply was lost."""
    found = traits("FT.SEARCH", "index", "*")
    assert (found.name, found.travel, found.read_only) == ("FT.SEARCH", Travel.BATCHED, False)


# ---- what a command tells of itself ----------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (("GET", "user:1"), "GET user:1"),
        (("get", b"user:1"), "GET user:1"),
        (("SET", "user:1", "Ada", "EX", 60), "SET user:1"),
        (("MSET", "a", "1", "b", "2"), "MSET a"),
        (("GET", 7), "GET 7"),
        (("GET", b"\xff"), "GET \\xff"),
        (("GET",), "GET"),
        (("GET", "k" * 61), "GET " + "k" * 60 + "..."),
        (("MEMORY USAGE", "a"), "MEMORY USAGE a"),
        (("MEMORY", "USAGE", "a"), "MEMORY USAGE a"),
        (("OBJECT", "ENCODING", "a"), "OBJECT ENCODING a"),
        (("PING", "hello"), "PING"),
        (("FT.SEARCH", "index", "*"), "FT.SEARCH"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_describe(args, shown):
    """A command is known by its name, and by its key if it has one."""
    assert command(*args).describe() == shown


SECRET = "hunter2"
secretive = st.sampled_from(
    [
        ("AUTH", SECRET),
        ("AUTH", "user", SECRET),
        ("HELLO", 3, "AUTH", "user", SECRET),
        ("CONFIG", "SET", "requirepass", SECRET),
        ("CONFIG SET", "requirepass", SECRET),
        ("ACL", "SETUSER", "user", f">{SECRET}"),
        ("ACL SETUSER", "user", f">{SECRET}"),
        ("EVAL", f"return '{SECRET}'", 1, "key", SECRET),
        ("EVALSHA", "digest", 1, "key", SECRET),
        ("FCALL", "function", 1, "key", SECRET),
        ("MIGRATE", "host", 6379, "key", 0, 10, "AUTH", SECRET),
        ("SET", "key", SECRET),
        ("GETSET", "key", SECRET),
        ("SETRANGE", "key", 0, SECRET),
        ("HSET", "key", "field", SECRET),
        ("LPUSH", "key", SECRET),
        ("SADD", "key", SECRET),
        ("ZADD", "key", 1, SECRET),
        ("XADD", "key", "*", "field", SECRET),
        ("MSET", "key", SECRET, "other", SECRET),
        ("PUBLISH", "channel", SECRET),
        ("ECHO", SECRET),
        ("SCRIPT LOAD", f"return '{SECRET}'"),
        ("JSON.SET", "key", "$", SECRET),
        ("NEWCOMMAND", SECRET),
        (f"AUTH {SECRET}",),
        (f"SET key {SECRET}",),
        (f"CONFIG SET requirepass {SECRET}",),
    ]
)


@given(args=secretive, spell=st.sampled_from([str.upper, str.lower, str.title, str.encode]))
@settings(deadline=None)
def test_describe_shows_no_secret(args, spell):
    """Whatever may be a secret stays out of messages, in any spelling of the command."""
    name, *rest = args
    spelt = command(spell(name), *rest)
    for text in (spelt.describe(), spelt.origin().note()):
        assert SECRET not in text.lower()


@given(rest=st.text(max_size=80), value=st.text(), name=st.sampled_from(sorted(TABLE)))
@settings(deadline=None)
def test_describe_shows_at_most_the_name_and_the_key(rest, value, name):
    """Nothing that follows the first argument has a part in it, nor one that is no key."""
    first = f"user:{rest}"  # no subcommand
    assert command(name, first, value).describe() == command(name, first).describe()
    if not TABLE[name].keyed:
        assert command(name, first).describe() == name


# ---- how it settles --------------------------------------------------------------------------


def settled(reply, callback=None, **options):
    """Return a command that got `reply`."""
    args = ("INCR", "a", b"hunter2")
    one = Command(traits_of(args), args, options, b"", callback, None, Keeper(), None)
    one.settle(reply)
    return one


def test_a_reply_is_the_value():
    """Without a callback, as it came."""
    assert settled(b"7").get() == b"7"
    assert settled(None).get() is None


def test_a_reply_goes_through_the_callback():
    """With the options of the call, but for those that are redis-py's own."""
    one = settled(7, lambda reply, **options: (reply, options), a=1, keys=["a"], NEVER_DECODE=True)
    assert one.get() == (7, {"a": 1})
    assert one.never_decode
    assert not settled(7).never_decode


def test_an_error_reply_is_the_error():
    """It is raised as it came, skips the callback, and the scope is told."""
    error = redis.ResponseError("WRONGTYPE")
    one = settled(error, pytest.fail)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        one.get()
    assert [failure.error for failure in one.owner.failures] == [error]


def test_an_error_reply_that_means_nothing():
    """redis-py's option EMPTY_RESPONSE says what stands for an error of the server."""
    assert settled(redis.ResponseError(), EMPTY_RESPONSE=[]).get() == []
    assert settled([1], EMPTY_RESPONSE=[]).get() == [1]
    with pytest.raises(UnicodeDecodeError):
        settled(UnicodeDecodeError("utf-8", b"", 0, 1, "no"), EMPTY_RESPONSE=[]).get()


def test_a_callback_that_raises_fails_its_own_command():
    """Its error is the command's."""
    with pytest.raises(ZeroDivisionError):
        settled(0, lambda reply: 1 / reply).get()


def test_not_sent():
    """The message says why, and the cause is kept; no argument shows."""
    one = command("SET", "a", SECRET)
    cause = redis.ConnectionError("refused")
    one.not_sent("connection failure", cause)
    error = one.outcome.error
    assert str(error) == "SET a was not sent: connection failure: refused"
    assert type(error) is NotSent
    assert error.__cause__ is cause
    assert one.owner.failures == [one.outcome]


def test_dropped():
    """What the program dropped itself is no error that has to surface."""
    one = command("SET", "a", SECRET)
    one.drop("its scope was discarded")
    assert str(one.outcome.error) == "SET a was not sent: its scope was discarded"
    assert one.outcome.seen


@pytest.mark.parametrize(("name", "warned"), [("INCR", True), ("GET", False)])
def test_outcome_unknown(name, warned):
    """A write may have run; a read does no harm."""
    one = command(name, "a")
    one.outcome_unknown("timeout", redis.TimeoutError("Timeout reading from socket"))
    assert isinstance(one.outcome.error, OutcomeUnknown)
    assert str(one.outcome.error).startswith(f"{name} a was sent, but its reply was lost (timeout)")
    assert ("may have run" in str(one.outcome.error)) is warned


# ---- where it was called ---------------------------------------------------------------------


def line_here():
    return inspect.currentframe().f_back.f_lineno


def noted(future):
    """Return where the command behind `future` says that it was called."""
    return promise_of(future).origin().note().partition(" queued at ")[2]


def test_the_note_names_the_line_that_called():
    """The line of the program, not one of redis-py's or ours, without a server."""
    client = autobatch.Redis()
    with autobatch.batch() as scope:
        future = client.get("a")
        line = line_here() - 1
        nested = [client.hset("h", mapping={"a": 1}) for _ in range(1)]
        spread = client.set(
            "a",
            "b",
        )
        unusual = client.execute_command("get", "a")
        scope.discard()
    name = inspect.currentframe().f_code.co_qualname
    assert noted(future) == f"{__file__}:{line} in {name}"
    assert noted(nested[0]).startswith(f"{__file__}:{line + 2} in {name}")
    assert noted(spread) == f"{__file__}:{line + 3} in {name}"
    assert noted(unusual) == f"{__file__}:{line + 7} in {name}"


def test_a_command_without_a_caller_has_a_note():
    """One that ran outside a scope raises right there; its note is its description."""
    assert command("GET", "a").origin().note() == "GET a"
    here = command("GET", "a", caller=inspect.currentframe())
    assert here.origin().note().startswith("GET a, queued at ")


def test_the_calling_frame_is_the_first_outside_the_libraries():
    """Frames of redis-py and autobatch are passed over, the program's own are not."""
    here = inspect.currentframe()
    assert calling_frame() is here
    seen = []

    class Client(autobatch.Redis):
        """Asks from below redis-py's `get`."""

        def execute_command(self, *args, **options):
            seen.append(calling_frame(inspect.currentframe().f_back))

    Client().get("a")
    assert seen == [here]
