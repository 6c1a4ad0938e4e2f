"""Recorded runs: what their files tell, how a terminal shows them, and what a replay finds."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

import autobatch
from autobatch import report
from autobatch.advice import advise
from autobatch.command import Travel, traits_of
from autobatch.recorded import Arguments, Recorder, load
from autobatch.recorded.file import Unreadable
from autobatch.recorded.masking import Mask, told_of
from autobatch.recorded.replay import CannotReplay, replay
from common import meanwhile

SECRET = "a secret text"
INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def raw(second_server):
    """A client of an empty server, where a replay can run."""
    with redis.Redis(port=second_server) as client:
        client.flushall()
        client.function_flush()
        yield client


@autobatch.batch
def visit(client, number):
    """Do a little of everything."""
    client.set(f"user:{number}", SECRET, ex=100)
    if client.get(f"user:{number}"):
        client.hset(f"profile:{number}", mapping={"name": SECRET, "born": 1815})
    client.register_script(INCREMENT)(keys=["visits"], args=[2])
    client.zadd("scores", {f"member:{number}": 1.5})
    client.sadd("members", "b", "a", f"member:{number}")
    client.smembers("members")
    with autobatch.batch(atomic=True):
        client.incr("count")
        client.lpush("count", 1).map(str)
    client.time()
    client.set("binary", b"\xff\x00")
    client.blpop("nothing", timeout=0.01)


def visits(client):
    for number in range(3):
        with pytest.raises(redis.ResponseError):
            visit(client, number)
    client.get("alone")


def record(client, path, arguments):
    """Record three visits and a lone command."""
    with Recorder(path, arguments=arguments):
        visits(client)
    assert not report.listening


# ---- the file ----------------------------------------------------------------------------


def test_a_run_is_what_was_heard(client, path):
    """Reading a file gives the records that subscribers had."""
    flushes, scopes = [], []
    with Recorder(path), report.subscribe(flushes.append, on_scope=scopes.append):
        visits(client)
    run = load(path)
    assert run.arguments is Arguments.NONE
    assert len(run.flushes) == len(flushes) > 9

    def told(flush):
        commands = [
            (c.name, c.key, c.place, c.callers, c.size, c.error, c.called) for c in flush.commands
        ]
        about = flush.scope.name, flush.reason, flush.place, flush.use, flush.forced, flush.forces
        return *about, flush.started, flush.finished, flush.round_trips, flush.exchanges, commands

    assert list(map(told, run.flushes)) == list(map(told, flushes))
    batched = [scope for scope in run.scopes if scope.name != "outside any scope"]
    assert [(s.name, s.commands, s.round_trips, s.opened, s.closed, s.at) for s in batched] == [
        (s.name, s.commands, s.round_trips, s.opened, s.closed, s.at) for s in scopes
    ]


def test_advice_on_a_run_is_what_it_was(client, path):
    """All that it needs is in the file, but for the source."""

    @autobatch.batch
    def one_by_one():
        return [str(client.get(f"user:{number}")) for number in range(5)]

    scopes = []
    with Recorder(path), report.subscribe(on_scope=scopes.append):
        one_by_one()
    (advice,) = advise(scopes[0])
    assert "5" in str(advice)
    assert list(map(str, advise(load(path).scopes[0]))) == [str(advice)]


@pytest.mark.parametrize("arguments", ["none", "masked"])
def test_values_are_not_written_unless_asked_for(arguments, client, path):
    record(client, path, arguments)
    text = path.read_text()
    assert "secret" not in text
    assert "user:0" in text
    assert ("arguments" in json.loads(text.splitlines()[2])["commands"][0]) is (arguments != "none")


def test_values_are_written_where_they_are_asked_for(client, path):
    record(client, path, "values")
    commands = [command for flush in load(path).flushes for command in flush.commands]
    assert commands[0].arguments == ("SET", "user:0", SECRET, "EX", 100)
    assert ("SET", "binary", b"\xff\x00") in [command.arguments for command in commands]


def test_passwords_are_never_written(server, path, plain):
    with autobatch.Redis(port=server) as client, Recorder(path, arguments="values"):
        with autobatch.batch():
            client.config_set("maxmemory", 0)
            client.acl_setuser("ada", enabled=True, passwords=["+" + SECRET])
        client.acl_deluser("ada")
    assert "secret" not in path.read_text()
    assert len(load(path).flushes) >= 2


def test_memory_is_not_kept_by_scopes_that_have_ended(client, path):
    with Recorder(path) as recorder:
        for _ in range(10):
            with autobatch.batch():
                client.get("a")
        assert not recorder._begun


def test_only_its_owner_can_read_it(client, path):
    record(client, path, "values")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_its_owner_can_read_what_is_in_place_of_another_file(client, path):
    path.write_text("")
    path.chmod(0o644)
    record(client, path, "values")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_file_stays_as_it_is(client):
    before = stat.S_IMODE(Path(os.devnull).stat().st_mode)
    record(client, os.devnull, "values")
    assert stat.S_IMODE(Path(os.devnull).stat().st_mode) == before


FULL = """
import resource
import sys
import autobatch
from autobatch.recorded import Recorder

with autobatch.Redis(port=int(sys.argv[1])) as client, Recorder(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    for number in range(100):
        if number == 80:  # there is room again
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
        with autobatch.batch():
            client.incr("visits")
"""


def test_a_full_disk_ends_the_recording_alone(client, server, path):
    """It is told of once, the program goes on, and what was written can be read."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(server), path], check=True, capture_output=True, text=True
    )
    assert done.stderr.count("Traceback") == 1
    assert "OSError" in done.stderr
    assert client.get("visits") == "100"
    assert 0 < len(load(path).flushes) < 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_file_that_cannot_be_begun_is_closed():
    with pytest.raises(OSError, match="No space left"):
        Recorder("/dev/full")
    assert not report.listening


def test_what_was_done_is_written_at_once(client, path):
    """So that it is there when the program is killed."""
    with Recorder(path), autobatch.batch():
        assert client.get("a") == None  # noqa: E711  # forces
        assert [str(flush.commands[0]) for flush in load(path).flushes] == ["GET a"]


FORKING = """
import os
import sys
import autobatch
from autobatch.recorded import Recorder

with autobatch.Redis(port=int(sys.argv[1])) as client, Recorder(sys.argv[2]):
    client.get("parent")
    child = os.fork()
    with autobatch.batch():
        client.get("both")
    if child:
        os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_is_not_recorded(server, path):
    """Its scopes have the numbers of its parent's."""
    subprocess.run([sys.executable, "-W", "error", "-c", FORKING, str(server), path], check=True)
    commands = [str(command) for flush in load(path).flushes for command in flush.commands]
    assert commands == ["GET parent", "GET both"]


def test_threads_write_whole_lines(client, path):
    def work():
        for number in range(50):
            visit_quietly(client, number)

    def visit_quietly(client, number):
        with autobatch.batch():
            client.set(f"user:{number}", SECRET)
            assert client.get(f"user:{number}") == SECRET

    with Recorder(path), contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(meanwhile(work))
    run = load(path)
    assert [scope.commands for scope in run.scopes] == [2] * 200
    assert len(run.flushes) == 200


def test_an_unfinished_line_does_not_count(client, path):
    """As when the program was killed."""
    record(client, path, "none")
    whole = len(load(path).flushes)
    text = path.read_text()
    path.write_text(text[: text.rindex('"commands"')])
    assert len(load(path).flushes) == whole - 1


@pytest.mark.parametrize("text", ["", "{}\n", "nothing\n", '{"autobatch":99,"arguments":"none"}\n'])
def test_what_is_no_run_is_refused(text, path):
    path.write_text(text)
    with pytest.raises(Unreadable, match=r"run\.jsonl is no recorded run"):
        load(path)


def test_unknown_arguments_are_refused(path):
    with pytest.raises(ValueError, match="'none', 'masked', 'values': 'everything'"):
        Recorder(path, arguments="everything")
    assert not path.exists()
    assert not report.listening


# ---- stand-ins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        (("SET", "key", "value", "EX", 100, "NX"), {0, 1, 3, 4, 5}),
        (("GET", "key"), {0, 1}),
        (("INCRBY", "key", "15"), {0, 1, 2}),
        (("ZADD", "key", 1.5, "member"), {0, 1, 2}),
        (("ZRANGEBYLEX", "key", "[a", "-", "LIMIT", 0, 5), {0, 1, 3, 4, 5, 6}),
        (("XADD", "key", "*", "field", b"value"), {0, 1, 2}),
        (("EVAL", "return 1", 1, "key", "value"), {0, 1, 2, 3}),
        (("MSET", "a", "value", "b", "1"), {0, 1, 3, 4}),
        (("SORT", "key", "BY", "weight_*", "LIMIT", 0, 5, "GET", "#"), {0, 1, 2, 4, 5, 6, 7, 8}),
        (("XRANGE", "key", "(1-1", "+", "COUNT", "2"), {0, 1, 2, 3, 4, 5}),
        (("LPUSH", "key", "555-1234", "u8"), {0, 1}),
        (("GEOADD", "key", "NX", 1.5, 2.5, "member"), {0, 1, 2, 3, 4}),
        (("GEOSEARCH", "key", "FROMLONLAT", 1, 2, "BYRADIUS", 3, "km", "ASC"), set(range(9))),
        (("JSON.SET", "key", "$", '{"a": "secret"}'), {0, 1, 2}),
        (("HSETEX", "key", "EX", 10, "FIELDS", 1, "field", "value"), {0, 1, 2, 3, 4, 5}),
        (("SET", "key", "value", "IFEQ", "other"), {0, 1, 3}),
        (("FUNCTION", "LOAD", "REPLACE", "#!lua name=lib"), {0, 1, 2, 3}),
        (("FCALL", "function", 1, "key", "value"), {0, 1, 2, 3}),
        (("FOO", "what", "this", "is"), {0}),
        (("BITFIELD", "key", "SET", "u8", "0", "255"), {0, 1, 2, 3, 4, 5}),
        (("SET", b"key", b"\xff\xfe"), {0, 1}),
    ],
)
def test_stand_ins(args, kept):
    """Keys, options and numbers stay; other values are replaced by ones of the same length."""
    name = " ".join(args[:2]) if args[0] == "FUNCTION" else args[0]
    masked = Mask().arguments(name, args)
    assert {number for number, arg in enumerate(masked) if arg == args[number]} == kept
    for number in set(range(len(args))) - kept:
        assert len(masked[number]) == max(16, len(args[number]))


@pytest.mark.parametrize(
    ("args", "at"),
    [
        (("SET", "pin", "482913"), 2),
        (("SET", "pin", 482913), 2),
        (("SETEX", "phone", 60, "+4915112345678"), 3),
        (("HSET", "user", "1815", "0042"), 3),
        (("MSET", "a", "4111111111111111"), 2),
        (("SADD", "users", b"12.50"), 2),
        (("LPUSH", "key", -17.25), 2),
        (("XADD", "key", "MAXLEN", "~", 10, "*", "7", "+4915112345678"), 7),
        (("HSETEX", "key", "EX", 10, "FIELDS", 1, "7", "4915112345678"), 7),
    ],
)
def test_numbers_that_are_values_are_replaced(args, at):
    """By numbers of the same form, so that INCR can still count, and of as many digits."""
    masked = Mask().arguments(args[0], args)
    assert masked[:at] == args[:at]
    old, new = (
        one.decode() if isinstance(one, bytes) else str(one) for one in (args[at], masked[at])
    )
    assert float(new)
    assert [char.isdigit() for char in old] == [char.isdigit() for char in new] or "." in old
    assert (old.lstrip("+-")[0] == "0") is (new.lstrip("+-")[0] == "0")
    if len(old) > 5:  # two digits may come out as they were
        assert old != new


@pytest.mark.parametrize("digits", [2, 3])
def test_different_numbers_stay_different(digits):
    numbers = [str(number) for number in range(10 ** (digits - 1), 10**digits)]
    masked = Mask().arguments("SADD", ("SADD", "key", *numbers))[2:]
    assert sorted(masked) == numbers
    assert list(masked) != numbers


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("AUTH", False),
        ("ACL SETUSER", False),
        ("CONFIG SET", False),
        ("CLIENT SETNAME", False),
        ("HELLO", False),
        ("MIGRATE", False),
        ("MODULE LOADEX", False),
        ("SENTINEL SET", False),
        ("SET", True),
        ("CLIENTS", True),
    ],
)
def test_what_is_never_told_of(name, told):
    assert told_of(name) is told


def test_packed_values_have_no_stand_ins():
    assert Mask().arguments("RESTORE", ("RESTORE", "key", 0, b"\x00")) is None


def test_options_are_the_servers(raw):
    """Every word of the syntax of what can be recorded is known, and those that are stay as is."""
    with redis.Redis(
        port=raw.connection_pool.connection_kwargs["port"], decode_responses=True, protocol=2
    ) as client:
        docs = client.execute_command("COMMAND DOCS")
    words = set()

    def fields(pairs):
        return pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))

    def walk(name, about):
        about = fields(about)
        for subcommand, more in fields(about.get("subcommands") or {}).items():
            walk(subcommand.replace("|", " "), more)
        if told_of(name.upper()) and can_wait(name.upper()):
            collect(about.get("arguments") or ())

    def collect(arguments):
        for argument in map(fields, arguments):
            words.add(argument.get("token", "").upper())
            collect(argument.get("arguments") or ())

    def can_wait(name):
        args = tuple(name.split())
        return traits_of(args).travel_of(args) is Travel.BATCHED

    for name, about in fields(docs).items():
        walk(name, about)
    words -= {"", "REDIS", "AUTH", "AUTH2", "KEYS"}
    assert len(words) > 100
    masked = Mask().arguments("FOO", ("FOO", *sorted(words)))[1:]
    assert {word for word in words if word not in masked} == set()


def test_stand_ins_of_equal_values_are_equal():
    mask = Mask()
    first = mask.arguments("SADD", ("SADD", "key", "value", "other"))
    second = mask.arguments("SISMEMBER", ("SISMEMBER", "key", b"value"))
    assert first[2] == second[2] != first[3]
    assert Mask().arguments("SADD", ("SADD", "key", "value"))[2] != first[2]


# ---- replay ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["masked", "values"])
def test_a_replay_comes_to_the_same(arguments, client, path, raw):
    record(client, path, arguments)
    outcome = replay(load(path), raw)
    assert outcome.same, (outcome.differences, outcome.keys)
    assert (outcome.commands, outcome.eager_round_trips, outcome.batched_round_trips) == (34, 31, 7)
    assert outcome.may_differ == 3  # TIME
    assert {why for _, why in outcome.left_out} == {
        "it blocks, or changes its connection or the server"
    }
    assert raw.dbsize() == 0


def test_a_replay_counts_on_the_wire(client, path, proxy, raw, second_server):
    from autobatch.testing import Proxy

    record(client, path, "values")
    run = load(path)
    with Proxy(second_server) as witness, redis.Redis(port=witness.port) as through:
        outcome = replay(run, through)
        batches = [names for names in witness.names if "MULTI" in names and "TIME" in names]
        assert len(batches) == 3
        assert outcome.batched_round_trips < witness.round_trips


def test_a_replay_finds_what_differs(client, path, raw):
    """A script may do something else each time."""
    with Recorder(path, arguments="values"), autobatch.batch():
        client.set("a", 1)
        client.get("a")
        assert client.get("a") == "1"
    run = load(path)
    commands = run.flushes[0].commands
    commands[1].arguments = ("EVAL", _TWICE_DIFFERENT, 1, "a")
    commands[1].name = "EVAL"
    outcome = replay(run, raw)
    assert not outcome.same
    assert [str(one.command.name) for one in outcome.differences] == ["EVAL", "GET"]
    assert [key for _, key in outcome.keys] == [b"a"]


# Its reply, and what it writes, depend on the time.
_TWICE_DIFFERENT = """
local time = redis.call('TIME')
redis.call('SET', KEYS[1], time[1] .. '.' .. time[2])
return time[1] .. '.' .. time[2]
"""


def test_a_replay_needs_an_empty_server(client, path, raw):
    record(client, path, "values")
    raw.set("precious", 1)
    with pytest.raises(CannotReplay, match="needs an empty one"):
        replay(load(path), raw)
    assert raw.get("precious") == b"1"


def test_a_replay_empties_no_other_database(client, path, raw, second_server):
    """FLUSHALL is for all of them."""
    record(client, path, "values")
    with redis.Redis(port=second_server, db=7) as other:
        other.set("precious", 1)
        with pytest.raises(CannotReplay, match="needs an empty one"):
            replay(load(path), raw)
        assert other.get("precious") == b"1"


LIBRARY = """#!lua name=counting
server.register_function('add', function(keys, args)
    return server.call('INCRBY', keys[1], args[1])
end)
"""


def test_a_replay_removes_no_functions(client, path, raw):
    record(client, path, "values")
    raw.function_load(LIBRARY)
    try:
        with pytest.raises(CannotReplay, match="has functions"):
            replay(load(path), raw)
        assert raw.function_list()
    finally:
        raw.function_flush()


def recorded(path, program, arguments="values"):
    """Run a program in a scope, and return what was recorded of it."""
    with Recorder(path, arguments=arguments), autobatch.batch():
        program()
    return load(path)


def replayed(path, raw, program, arguments="values"):
    """Record a program, replay it, and return what came of it: the same, nothing left out."""
    outcome = replay(recorded(path, program, arguments), raw)
    assert outcome.same, (outcome.differences, outcome.keys)
    assert outcome.left_out == []
    return outcome


@pytest.mark.parametrize("arguments", ["masked", "values"])
def test_servers_and_databases_are_kept_apart(arguments, client, server, path, raw, second_server):
    """The same key is something else in each of them."""

    def program():
        for number, one in enumerate([client, other, third]):
            one.lpush("key", number)
            one.set(f"only:{number}", 1)
        client.incr("only:0")
        third.set("key", "text")

    with (
        autobatch.Redis(port=second_server, db=3) as other,
        autobatch.Redis(port=server, db=1) as third,
    ):
        run = recorded(path, program, arguments)
        assert not run.flushes[0].errors
        other.flushdb()
        raw.config_resetstat()
        outcome = replay(run, raw)
    assert "errorstat_WRONGTYPE" not in raw.info("errorstats")
    assert outcome.same
    assert outcome.commands == 8
    assert not any(raw.info("keyspace"))


def test_a_replay_needs_a_database_for_each(client, path, raw):
    run = recorded(path, lambda: [client.get("a") for _ in range(17)])
    for number, command in enumerate(run.flushes[0].commands):
        command.server = f"localhost:6379/{number}"
    with pytest.raises(CannotReplay, match="17 servers and databases"):
        replay(run, raw)


def test_a_replay_knows_transactions_that_abort(client, path, raw):
    def program():
        with autobatch.batch(atomic=True):
            futures = [client.set("a", 1), client.execute_command("GET"), client.incr("a")]
        assert all(future.exception() for future in futures)
        with autobatch.batch(atomic=True):
            alone = client.execute_command("GET")
        assert alone.exception()

    outcome = replayed(path, raw, program)
    assert (outcome.commands, outcome.eager_round_trips, outcome.batched_round_trips) == (4, 2, 2)


@pytest.mark.parametrize("arguments", ["masked", "values"])
def test_a_replay_gives_entries_of_streams_the_same_ids(arguments, client, path, raw):
    """Whatever their server would choose for them at the time."""

    def program():
        client.xadd("stream", {"field": "*"})
        client.xgroup_create("stream", "group", "0")
        client.xadd("stream", {"field": "two"}, maxlen=10, approximate=True, limit=100)
        client.xadd("other", {"*": "one"}, id="7-1", minid="1", nomkstream=False)
        client.execute_command("XADD", "other", "MAXLEN", "=", 5, b"*", "*", "*")
        assert client.xread({"stream": 0}) != None  # noqa: E711  # forces
        client.xreadgroup("group", "consumer", {"stream": ">"}, count=1)
        client.xrange("stream")
        assert client.xrevrange("other") != None  # noqa: E711  # forces

    outcome = replayed(path, raw, program, arguments)
    assert (outcome.commands, outcome.may_differ) == (9, 0)


def test_what_chance_has_written_is_not_compared(client, path, raw):
    def program():
        client.sadd("set", *range(100))
        client.smembers("set")
        client.spop("set")
        client.smembers("set")
        client.sunionstore("other", "set")
        client.scard("other")
        client.sadd("steady", 1)
        client.srandmember("steady")
        client.smembers("steady")
        client.memory_usage("steady")
        client.xgroup_create("stream", "group", "0", mkstream=True)
        client.xadd("stream", {"a": 1}, id="1-1")
        client.xreadgroup("group", "one", {"stream": ">"})
        client.xautoclaim("stream", "group", "two", 0)
        client.xinfo_stream("stream", full=True)

    outcome = replayed(path, raw, program)
    assert (outcome.commands, outcome.may_differ) == (15, 8)


def test_what_expires_on_the_way_is_not_compared(client, path, raw):
    """It may be there in one way, and gone in the other."""
    soon = time.time() + 0.5

    def program():
        client.set("short", 1, px=1)
        client.get("short")
        client.execute_command("SET", "at", 1, "PXAT", int(1000 * soon))
        client.psetex("third", 1, "value")
        client.hset("hash", "field", 1)
        client.hpexpire("hash", 1, "field")
        client.hgetall("hash")
        client.dbsize()
        client.set("long", 1, ex=1000)
        client.expireat("long", 10**10)
        client.get("long")
        client.ttl("long")

    outcome = replayed(path, raw, program)
    assert (outcome.commands, outcome.may_differ) == (12, 4)  # GET, HGETALL, DBSIZE, TTL


def test_scripts_and_functions_are_brought_along(client, path, raw):
    def program():
        digest = client.script_load(INCREMENT)
        client.evalsha(digest, 1, "visits", 2)
        client.function_load(LIBRARY, replace=True)
        client.fcall("add", 1, "visits", 3)
        assert client.get("visits") == "5"
        client.eager.function_flush()

    for arguments in ("masked", "values"):
        client.delete("visits")
        outcome = replayed(path, raw, program, arguments)
        assert outcome.commands == 6
        assert raw.function_list() == []


def test_what_was_not_sent_is_left_out(client, path, raw):
    run = recorded(path, lambda: [client.set("a", 1), client.get("a")])
    run.flushes[0].commands[0].error = "NotSent: SET a was not sent: discarded"
    outcome = replay(run, raw)
    assert [why for _, why in outcome.left_out] == ["it was not sent"]
    assert outcome.commands == 1


def test_errors_inside_replies_are_compared_by_what_they_say(client, path, raw):
    """Two of them are never equal, as Python has it."""
    script = "return {1, {err = 'MYERR text'}}"
    replayed(path, raw, lambda: client.eval(script, 0))


def test_a_cluster_is_replayed_on_one_server(cluster, path, raw):
    with autobatch.RedisCluster("127.0.0.1", cluster.ports[0]) as client:

        def program():
            for number in range(20):
                client.set(f"key:{number}", number)
            client.exists("key:1", "key:2")
            with autobatch.batch(atomic=True):
                client.incr("key:1")

        outcome = replayed(path, raw, program)
    assert (outcome.commands, outcome.batched_round_trips) == (23, 1)  # EXISTS is sent by slots


def test_a_replay_needs_arguments(client, path, raw):
    record(client, path, "none")
    with pytest.raises(CannotReplay, match="arguments='masked'"):
        replay(load(path), raw)


# ---- the command line --------------------------------------------------------------------


def autobatch_command(*arguments, **environment):
    """Run `python -m autobatch` as a user does."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "autobatch", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "120", "PATH": ""} | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_report_prints_a_run(client, path):
    pytest.importorskip("rich")
    record(client, path, "none")
    status, printed, errors = autobatch_command("report", str(path))
    assert (status, errors) == (0, "")
    assert "4 scopes" in printed
    assert "test_recorded.visit" in printed
    assert "forced (bool)" in printed
    assert "SET user:0" in printed
    assert "WRONGTYPE" in printed
    assert "█" in printed
    few = autobatch_command("report", str(path), "--worst", "0")[1]
    assert "█" not in few


def test_report_fits_a_narrow_terminal(client, path):
    pytest.importorskip("rich")
    record(client, path, "none")
    _, printed, _ = autobatch_command("report", str(path), COLUMNS="80")
    assert max(map(len, printed.splitlines())) <= 80


def test_report_fits_a_terminal_that_knows_ascii_alone(client, path):
    pytest.importorskip("rich")
    with Recorder(path), autobatch.batch():
        assert client.get("ключ") == None  # noqa: E711  # forces
    status, printed, errors = autobatch_command("report", str(path), PYTHONIOENCODING="ascii")
    assert (status, errors) == (0, "")
    assert "GET ????" in printed
    assert "#" in printed


def test_report_counts_what_it_leaves_out(client, path):
    """The worst of the scopes of a name stands for them; many flushes are counted."""
    pytest.importorskip("rich")

    @autobatch.batch
    def look(times):
        for number in range(times):
            assert client.get(f"number:{number}") == None  # noqa: E711  # forces

    with Recorder(path):
        look(2)
        look(45)
    _, printed, _ = autobatch_command("report", str(path))
    assert printed.count("forced (eq)") == 40
    assert "and 5 more" in printed


def test_replay_prints_what_came_of_it(client, path, second_server, raw):
    record(client, path, "masked")
    url = f"redis://127.0.0.1:{second_server}"
    status, printed, errors = autobatch_command("replay", str(path), "--url", url)
    assert (status, errors) == (0, "")
    assert printed.startswith("34 commands: one at a time 31 round trips, ")
    assert printed.endswith("the same\n")


def test_replay_starts_a_server_of_its_own(client, path):
    record(client, path, "masked")
    assert autobatch_command("replay", str(path))[0] == 0


def test_what_is_no_url_is_told(client, path):
    record(client, path, "masked")
    status, printed, errors = autobatch_command("replay", str(path), "--url", "nonsense")
    assert (status, printed) == (2, "")
    assert errors.startswith("autobatch: Redis URL must specify")


def test_bytes_of_a_broken_file_are_not_shown(path):
    path.write_bytes(b"a secret text \xff\n")
    with pytest.raises(Unreadable) as caught:
        load(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("command", ["report", "replay"])
def test_a_missing_file_is_told(command, tmp_path):
    pytest.importorskip("rich")
    status, printed, errors = autobatch_command(command, str(tmp_path / "missing"))
    assert (status, printed) == (2, "")
    assert "missing" in errors
    assert "Traceback" not in errors
