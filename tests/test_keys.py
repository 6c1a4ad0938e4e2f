"""The keys of calls, as servers see them: COMMAND and COMMAND GETKEYS are the witnesses."""

from __future__ import annotations

import ast
import pathlib
import shlex

import pytest
import redis
import redis.commands
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.command import TABLE, spelled_out, traits_of
from autobatch.keys import ONE_KEY, keys_of
from engines import ENGINES, starting


def keys(*args):
    """Return the keys of a call, as the library asks for them."""
    args = spelled_out(args)
    return keys_of(traits_of(args).name, args)


def full(line):
    """Return the arguments of a call that is written as a line."""
    return tuple(shlex.split(line))


# ---- the servers -----------------------------------------------------------------------------


class Described:
    """What a server says of a command.

    Attributes:
        words: its name, a subcommand apart.
        specs: where its keys are, in the server's own terms.
    """

    def __init__(self, entry):
        name, self.arity, _, _, _, _, _, _, self.specs, *_ = entry
        self.words = name.upper().split("|")
        self.name = " ".join(self.words)

    @property
    def arguments_decide(self):
        """Whether it takes a look at the arguments to tell the keys."""
        searches = {
            (spec["begin_search"]["type"], spec["find_keys"]["type"]) for spec in self.specs
        }
        return not searches <= {("index", "range")}

    @property
    def one_key(self):
        """Whether the only key is what follows a name without a subcommand."""
        places = [(spec["begin_search"]["spec"], spec["find_keys"]["spec"]) for spec in self.specs]
        return places == [({"index": 1}, {"lastkey": 0, "keystep": 1, "limit": 0})]

    @property
    def routed_alike(self):
        """Whether the server routes it by something that is no key."""
        return any("not_key" in spec["flags"] for spec in self.specs)

    def calls(self):
        """Return calls of several lengths, of arguments that are all different."""
        lengths = [self.arity] if self.arity > 0 else range(2 - self.arity, 7 - self.arity)
        words = [f"argument{number}" for number in range(12)]
        return [(*self.words, *words[: length - len(self.words)]) for length in lengths]


class Served:
    """A real server, asked about its commands.

    Attributes:
        commands: what it says of each, by name; not of those that only contain others.
    """

    def __init__(self, client):
        self._client = client
        self.commands = {}
        self._add(client.execute_command("COMMAND"))

    def _add(self, entries):
        for *entry, subcommands in entries:
            described = Described(entry)
            self._add(subcommands)
            if not subcommands:
                self.commands[described.name] = described

    def keys(self, calls):
        """Return by call the keys of those that the server finds well-formed."""
        # Redis 7.0 refuses to be asked about a name alone, which cannot have keys.
        found = {call: () for call in calls if len(call) == 1}
        calls = [call for call in calls if len(call) > 1]
        with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command("COMMAND", "GETKEYS", *call)
            answers = zip(calls, pipeline.execute(raise_on_error=False), strict=True)
        for call, answer in answers:
            if not isinstance(answer, Exception):
                found[call] = tuple(answer)
            elif "no key arguments" in str(answer):
                found[call] = ()
        return found


@pytest.fixture(scope="module", params=ENGINES)
def served(request):
    """Valkey, then Redis."""
    with starting(request.param) as start:
        port = start().port
        with redis.Redis(port=port, protocol=3, decode_responses=True) as client:
            version = client.info("server")["redis_version"]
            if int(version.partition(".")[0]) < 7:
                pytest.skip(f"Redis {version} does not say where the keys are")
            client.response_callbacks.clear()
            yield Served(client)


# ---- against the servers ---------------------------------------------------------------------

# Calls of the commands whose arguments decide, each with what makes it special.
CALLS = [
    "BLMPOP 0 2 a b LEFT COUNT 3",
    "BZMPOP 0 2 a b MIN",
    "EVAL return 2 a b 1 2",
    "EVAL return 0 a",
    "EVAL_RO return 1 a",
    "EVALSHA digest 2 a a",
    "EVALSHA_RO digest 0",
    "FCALL function 2 a b 1",
    "FCALL_RO function 1 a",
    "GEORADIUS a 1 2 3 m",
    "GEORADIUS a 1 2 3 m WITHDIST COUNT 5 STORE b",
    "GEORADIUS a 1 2 3 m storedist b",
    "GEORADIUS a 1 2 3 m STORE STORE DESC",
    "GEORADIUSBYMEMBER a STORE 3 m",
    "GEORADIUSBYMEMBER a member 3 m STORE b",
    "LMPOP 2 a b RIGHT",
    "MIGRATE host 6379 a 0 9",
    "MIGRATE host 6379 a 0 9 COPY REPLACE AUTH KEYS",
    "MIGRATE host 6379 '' 0 9 KEYS a b KEYS",
    "MIGRATE host 6379 '' 0 9 AUTH keys keys a",
    "MIGRATE host 6379 '' 0 9 AUTH2 KEYS KEYS KEYS a b",
    "MSETEX 2 a 1 b 2 EX 9",
    "SINTERCARD 2 a b LIMIT 1",
    "SORT a",
    "SORT a BY b_* LIMIT 0 9 GET c_* GET # ALPHA STORE d",
    "SORT a STORE b BY STORE DESC",
    "SORT a STORE b GET STORE DESC",
    "SORT a STORE b LIMIT 0 STORE DESC",
    "SORT a STORE store DESC",
    "SORT a store b STORE c STORE",
    "SORT_RO a BY b_* GET c_*",
    "XREAD STREAMS a b 0 0",
    "XREAD COUNT 9 BLOCK 9 streams STREAMS 0",
    "XREADGROUP GROUP g c NOACK STREAMS a b > >",
    "XREADGROUP GROUP STREAMS STREAMS COUNT 9 STREAMS a >",
    "ZDIFF 2 a b WITHSCORES",
    "ZDIFFSTORE a 2 b c",
    "ZINTER 2 a b WEIGHTS 1 2",
    "ZINTERCARD 1 a LIMIT 9",
    "ZINTERSTORE a 1 b AGGREGATE MAX",
    "ZMPOP 1 a MAX COUNT 9",
    "ZUNION 2 a b",
    "ZUNIONSTORE a 2 b c WEIGHTS 1 2",
]
# Without a key that GETKEYS would tell, and yet routed by these words.
ROUTED_ALIKE = {
    "CLUSTERSCAN cursor COUNT 9": "cursor",
    "SPUBLISH a message": "a",
    "SSUBSCRIBE a b": "a b",
    "SUNSUBSCRIBE a b": "a b",
}


@pytest.mark.server
def test_places_are_the_server_s(served):
    """Each command whose keys are always in the same places, or that has none, is known."""
    calls = {
        call: described.name
        for described in served.commands.values()
        if not (described.arguments_decide or described.routed_alike)
        for call in described.calls()
    }
    expected = served.keys(calls)
    assert {call: keys(*call) for call in calls} == expected
    # Also by the whole name, where the table of commands knows the container alone.
    assert {call: keys_of(name, call) for call, name in calls.items()} == expected
    assert len(set(calls.values())) > 300


@pytest.mark.server
def test_arguments_decide_as_the_server_says(served):
    """Each command whose keys take a look is known, and looked at in the same way."""
    calls = [call for call in map(full, CALLS) if call[0] in served.commands]
    decided = {name for name, command in served.commands.items() if command.arguments_decide}
    assert decided <= {call[0] for call in calls}
    assert {call: keys(*call) for call in calls} == served.keys(calls)


@pytest.mark.server
def test_what_is_routed_alike(served):
    """Only what is listed here has words that are no keys and count as such."""
    alike = {name for name, command in served.commands.items() if command.routed_alike}
    assert alike <= {full(line)[0] for line in ROUTED_ALIKE}


@pytest.mark.server
def test_one_key_is_what_the_server_says(served):
    """The fast path is for those with one key, and for all of them."""
    one_key = {name for name, command in served.commands.items() if command.one_key}
    # Of SORT_RO the server says that it might read other keys, by its patterns.
    assert ONE_KEY & set(served.commands) == one_key | {"SORT_RO"}


# Words that mean something to one of them, and are a key, a value or out of place to the others.
WORDS = """
a b c 0 1 2 3 -1 STORE store STOREDIST BY Get LIMIT COUNT KEYS keys AUTH auth2 COPY REPLACE
STREAMS streams BLOCK GROUP NOACK EX
"""
words = st.sampled_from(["", *WORDS.split()])
soups = st.tuples(
    st.sampled_from(sorted({full(line)[0] for line in CALLS})),
    st.sampled_from([(), ("a", "2"), ("2", "a"), ("", "2", "", "0", "9"), ("GROUP", "g", "c")]),
    st.lists(words, min_size=1, max_size=9),
).map(lambda parts: (parts[0], *parts[1], *parts[2]))


def agreed(call):
    """Tell whether Redis and Valkey agree: where it is malformed, GEORADIUS has two readings."""
    stores = [at for at, word in enumerate(call) if word.upper().startswith("STORE")]
    return not call[0].startswith("GEO") or (len(stores) < 2 and stores != [5])


@pytest.mark.server
@given(calls=st.lists(soups.filter(agreed), max_size=50))
@settings(deadline=None)
def test_any_call_as_the_server_says(served, calls):
    """Whatever the server takes for a call, however odd: the keys are the same, also as bytes."""
    for call, expected in served.keys(calls).items():
        assert keys(*call) == expected
        assert keys(*map(str.encode, call)) == tuple(map(str.encode, expected))


# ---- what no server here knows ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *ROUTED_ALIKE.items(),
        ("PUBLISH channel message", ""),
        ("DEBUG OBJECT a", "a"),
        ("GEORADIUS a 1 2 3 m STORE b STOREDIST c", "a c"),
        # Redis 8
        ("ARMSET a 1 b 2 c", "a"),
        ("BLMOVEM a b LEFT RIGHT 0", "a b"),
        ("HIMPORT PREPARE fieldset a b", ""),
        ("HIMPORT SET a fieldset b", "a"),
        ("HOTKEYS GET", ""),
        ("MSETEX 2 a 1 b 2 EX 9", "a b"),
        ("SUNIONCARD 2 a b APPROX LIMIT 0", "a b"),
        ("VADD a VALUES 2 1 2 b", "a"),
        ("XACKDEL a g KEEPREF IDS 1 0-1", "a"),
        # modules
        ("BF.ADD a b", "a"),
        ("CMS.MERGE a 2 b c WEIGHTS 1 2", "a b c"),
        ("JSON.DEBUG MEMORY a $", "a"),
        ("JSON.DEBUG HELP", ""),
        ("JSON.MGET a b $", "a b"),
        ("JSON.MSET a $ 1 b $ 2", "a b"),
        ("JSON.SET a $ 1", "a"),
        ("TDIGEST.MERGE a 2 b c COMPRESSION 9", "a b c"),
        ("TS.CREATERULE a b AGGREGATION avg 9", "a b"),
        ("TS.MADD a 1 2 b 3 4", "a b"),
        ("TS.MRANGE - + FILTER a=b", ""),
        ("TS.NRANGE 2 a b - +", "a b"),
    ],
)
def test_documented(line, expected):
    """What the documentation says of commands that the servers here do not have."""
    assert keys(*full(line)) == full(expected)


@pytest.mark.parametrize("line", ["FT.SEARCH index *", "NEW a", "OBJECT NEW a", "OBJECT"])
def test_unknown(line):
    """The server has to be asked, also about a new subcommand of those that have keys."""
    assert keys(*full(line)) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET", ""),
        ("RENAME a", "a"),
        ("OBJECT ENCODING", ""),
        ("BLPOP", ""),
        ("EVAL return", ""),
        ("EVAL return many a", ""),
        ("EVAL return 2 a", ""),
        ("EVAL return -1 a", ""),
        ("MSETEX 2 a 1 b", "a b"),
        ("MSETEX 3 a 1 b 2", ""),
        ("ZUNIONSTORE a 2 b", "a"),
        ("XREAD COUNT 9", ""),
        ("SORT a STORE", "a"),
        ("MIGRATE host 6379 a 0 9 KEYS", "a"),
        ("MIGRATE host 6379 a 0 9 KEYS b", ""),
    ],
)
def test_malformed(line, expected):
    """What is there, or nothing."""
    assert keys(*full(line)) == full(expected)


def test_arguments_of_any_type():
    """Numbers and options come as redis-py takes them; what it would refuse means nothing."""
    for number in (2, "2", b"2"):
        assert keys("EVAL", "return", number, "a", b"b", 3) == ("a", b"b")
    for number in (float("inf"), None, [2]):
        assert keys("EVAL", "return", number, "a") == ()
    for option in ("store", b"store", bytearray(b"store"), memoryview(b"store")):
        assert keys("SORT", 1, option, 2) == (1, 2)
    for option in ("\udcff", "\N{LATIN SMALL LIGATURE ST}ore", None):
        assert keys("SORT", 1, option, 2) == (1,)
    assert keys("MIGRATE", "host", 6379, b"", 0, 9, b"keys", 1, 2) == (1, 2)


@given(
    name=st.sampled_from(sorted(TABLE.keys() | ONE_KEY | {full(line)[0] for line in CALLS})),
    rest=st.lists(
        words
        | words.map(str.encode)
        | st.text()
        | st.binary()
        | st.binary().map(memoryview)
        | st.integers()
        | st.floats()
        | st.none()
        | st.lists(st.none())
    ),
)
@settings(max_examples=1000, deadline=None)
def test_random_arguments(name, rest):
    """None makes it raise, and keys are always arguments, in their order."""
    args = (*name.split(), *rest)
    found = keys_of(name, args)
    remaining = iter(rest)
    assert all(any(key is arg for arg in remaining) for key in found or ())
    if name in ONE_KEY:
        assert found == args[1:2]


# ---- redis-py --------------------------------------------------------------------------------


def commands_of_redis_py():
    """Return the names that redis-py's methods send, where the source says them outright."""
    names = set()
    for path in pathlib.Path(redis.commands.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "execute_command":
                first = node.args[0]
                names.add(getattr(first, "value", constants.get(getattr(first, "id", ""))))
    return {name for name in names if isinstance(name, str)}


def test_commands_of_redis_py_are_known():
    """But for those of the search, where redis-py decides, and one that Redis 7 has removed."""
    names = commands_of_redis_py()
    unknown = {name for name in names if keys(name, "HELP", "a") is None}
    assert {name for name in unknown if not name.startswith("FT.")} <= {"STRALGO"}
    assert len(names) > 350
