"""Batches without a connection: bytes out, replies in, and what a broken exchange means."""

from __future__ import annotations

import itertools

import hiredis
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.batch import Batch, Transaction, commands_of, plan
from autobatch.command import Command, Script, ScriptCall, traits_of
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.promise import PENDING, Failure
from pending import PAPER, Keeper, PaperWire

BROKEN = redis.ConnectionError("broken")


def command(*args, wire=PAPER, owner=None, callback=None, **options):
    """Return a command of `wire`."""
    packed = hiredis.pack_command(args)
    owner = owner or Keeper()
    return Command(traits_of(args), args, options, packed, callback, wire, owner, None)


def call_of(script, *args, wire=PAPER, digest_command="EVALSHA"):
    """Return a call of a script, as a client makes it."""
    args = (digest_command, script.digest, len(args), *args)
    packed = hiredis.pack_command(args)
    call = ScriptCall(traits_of(args), args, {}, packed, None, wire, Keeper(), None)
    call.script = script
    return call


def parsed(payload):
    """Return the commands in some bytes, as a server reads them."""
    reader = hiredis.Reader()
    reader.feed(payload)
    return list(itertools.takewhile(lambda one: one is not False, iter(reader.gets, object())))


def names(payload):
    return [one[0].decode() for one in parsed(payload)]


# ---- one exchange that works -----------------------------------------------------------------


def test_seal_keeps_the_order():
    """The bytes are the commands in program order, transactions between MULTI and EXEC."""
    wire = PaperWire()
    inside = [command("INCR", "b"), command("GET", "b")]
    batch = Batch(wire, [command("GET", "a"), Transaction(inside, wire), command("GET", "c")])
    expected = [b"GET a", b"MULTI", b"INCR b", b"GET b", b"EXEC", b"GET c"]
    assert [b" ".join(one) for one in parsed(batch.seal())] == expected
    assert batch.expected() == (6, frozenset())


def test_replies_settle_their_own_commands():
    """Each command gets its reply, in order; nothing is left to send."""
    wire = PaperWire()
    first, second, last = command("GET", "a"), command("INCR", "b"), command("GET", "c")
    batch = Batch(wire, [first, Transaction([second], wire), last])
    batch.settle([b"1", b"OK", b"QUEUED", [2], b"3"])
    assert [one.outcome for one in (first, second, last)] == [b"1", 2, b"3"]
    assert batch.entries == []


@pytest.mark.parametrize("usual", [True, False])
def test_a_callback_that_raises_fails_its_own_command(usual):
    """The others are settled all the same."""
    commands = [command("GET", "a"), command("GET", "b", callback=int), command("GET", "c")]
    Batch(PaperWire(), commands, usual=usual).settle([b"1", b"two", b"3"])
    assert commands[0].outcome == b"1"
    assert commands[2].outcome == b"3"
    assert isinstance(commands[1].outcome.error, ValueError)


@pytest.mark.parametrize("usual", [True, False])
def test_an_error_reply_fails_its_own_command(usual):
    """A server's error is one command's."""
    commands = [command("GET", "a"), command("GET", "b")]
    Batch(PaperWire(), commands, usual=usual).settle([redis.ResponseError("WRONGTYPE"), b"2"])
    assert isinstance(commands[0].outcome.error, redis.ResponseError)
    assert commands[1].outcome == b"2"


def test_replies_that_stay_bytes():
    """Their positions are known; of a transaction all replies are in the one of EXEC."""
    wire = PaperWire()
    wire.decodes = True
    dump = command("DUMP", "a", NEVER_DECODE=[])
    inside = [command("GET", "b"), command("DUMP", "b", NEVER_DECODE=[]), command("GET", "c")]
    batch = Batch(wire, [command("GET", "a"), dump, Transaction(inside, wire), command("GET", "d")])
    assert batch.expected() == (8, frozenset({1, 6}))
    batch.settle(["a", b"\xff", b"OK", b"", b"", b"", [b"b", b"\xfe", b"c"], "d"])
    assert dump.outcome == b"\xff"
    assert [one.outcome for one in inside] == ["b", b"\xfe", "c"]


# ---- transactions ----------------------------------------------------------------------------


def transaction(*replies):
    """Return the outcomes of a transaction's two commands after `replies`."""
    commands = [command("INCR", "a"), command("INCR", "b")]
    Transaction(commands, PaperWire()).settle(replies)
    return [one.outcome for one in commands]


def test_exec_gives_the_values():
    """The array of EXEC holds each command's reply, errors among them."""
    error = redis.ResponseError("not an integer")
    first, second = transaction(b"OK", b"QUEUED", b"QUEUED", [1, error])
    assert first == 1
    assert second.error is error


def test_an_aborted_exec_fails_all():
    """Each with an error of its own; the command that was refused with the server's reason."""
    refused = redis.ResponseError("wrong number of arguments")
    aborted = redis.exceptions.ExecAbortError("EXECABORT")
    first, second = transaction(b"OK", b"QUEUED", refused, aborted)
    assert second.error is refused
    assert type(first.error) is type(aborted)
    assert first.error.args == aborted.args
    assert first.error is not aborted


def test_a_refused_multi_fails_all():
    """For whatever reason the server does not start a transaction."""
    refused = redis.exceptions.NoPermissionError("NOPERM")
    replies = [type(refused)("NOPERM"), type(refused)("NOPERM")]
    outcomes = transaction(refused, *replies, redis.ResponseError("EXEC without MULTI"))
    assert [one.error for one in outcomes] == replies


def test_an_exec_without_a_result_fails_all():
    """A key was watched on this connection, and has changed: nothing ran."""
    outcomes = transaction(b"OK", b"QUEUED", b"QUEUED", None)
    assert [type(one.error) for one in outcomes] == [redis.WatchError] * 2


def test_what_a_transaction_reads():
    """It may be sent again only if nothing in it writes."""
    wire = PaperWire()
    assert Transaction([command("GET", "a"), command("LLEN", "b")], wire).read_only
    assert not Transaction([command("GET", "a"), command("INCR", "b")], wire).read_only


# ---- an exchange that breaks -----------------------------------------------------------------


@st.composite
def exchanges(draw):
    """A batch, how much of it was written and how much of the answer arrived; twice."""
    wire = PaperWire()
    number = itertools.count()

    def one(name):
        return command(name, f"key{next(number)}", wire=wire)

    kinds = st.sampled_from(["GET", "LLEN", "INCR", "LPOP"])
    entries = [
        Transaction([one(name) for name in shape], wire) if isinstance(shape, list) else one(shape)
        for shape in draw(st.lists(kinds | st.lists(kinds, min_size=1, max_size=3), max_size=8))
    ]
    return wire, entries, [(draw(st.floats(0, 1)), draw(st.floats(0, 1))) for _ in range(2)]


def replies_to(entries):
    """Return what a server would answer: each command its key."""
    replies = []
    for entry in entries:
        values = [one.args[1] for one in commands_of([entry])]
        if isinstance(entry, Transaction):
            replies += [b"OK", *[b"QUEUED"] * len(values), values]
        else:
            replies += values
    return replies


def cut(batch, share_written, share_answered):
    """Break an exchange: return what the batch is told, and which entries were fully written."""
    payload = batch.seal()
    written = round(share_written * len(payload))
    ends = itertools.accumulate(len(entry.packed) for entry in batch.entries)
    whole = [entry for entry, end in zip(batch.entries, ends, strict=True) if end <= written]
    possible = replies_to(whole)
    return possible[: round(share_answered * len(possible))], written, whole


@given(exchange=exchanges())
@settings(deadline=None, max_examples=300)
def test_abort_settles_what_can_be_told(exchange):
    """Answered: its reply. Written and a write: unknown. Unwritten or read-only: stays."""
    wire, entries, [(share_written, share_answered), _] = exchange
    batch = Batch(wire, list(entries))
    replies, written, whole = cut(batch, share_written, share_answered)
    batch.abort(list(replies), written, BROKEN)
    kept = []
    for entry in entries:
        outcomes = [one.outcome for one in commands_of([entry])]
        if len(replies) >= entry.reply_count:
            replies = replies[entry.reply_count :]
            assert outcomes == [one.args[1] for one in commands_of([entry])]
        elif entry in whole and not entry.read_only:
            replies = []
            assert all(isinstance(outcome.error, OutcomeUnknown) for outcome in outcomes)
        else:
            replies = []
            assert outcomes == [PENDING] * len(outcomes)
            kept.append(entry)
    assert batch.entries == kept


@given(exchange=exchanges(), then=st.sampled_from(["settle", "give up"]))
@settings(deadline=None, max_examples=300)
def test_every_command_is_settled_once_and_truly(exchange, then):
    """However often an exchange breaks: one outcome each, and no claim that may be wrong."""
    wire, entries, cuts = exchange
    batch = Batch(wire, list(entries))
    ever_written, settled = set(), {}

    def check():
        for one in commands_of(entries):
            if one.outcome is not PENDING:
                assert settled.setdefault(one, one.outcome) is one.outcome

    for share_written, share_answered in cuts:
        replies, written, whole = cut(batch, share_written, share_answered)
        ever_written.update(commands_of(whole))
        batch.abort(replies, written, BROKEN)
        check()
    if then == "settle":
        again = list(batch.entries)
        batch.seal()
        batch.settle(replies_to(again))
    else:
        batch.give_up(BROKEN)
    check()
    assert batch.entries == []
    assert set(settled) == set(commands_of(entries))
    for one, outcome in settled.items():
        if type(outcome) is not Failure:
            assert outcome == one.args[1]
            continue
        assert one.owner.failures == [outcome]
        assert outcome.error.__cause__ is BROKEN
        if one in ever_written:
            assert isinstance(outcome.error, OutcomeUnknown)
        else:
            assert isinstance(outcome.error, NotSent)


def test_abort_remembers_failures_in_program_order():
    """A scope raises the first error of the program, not the first that was noticed."""
    keeper = Keeper()
    commands = [command("INCR", name, owner=keeper) for name in "abc"]
    batch = Batch(PaperWire(), list(commands))
    written = len(batch.seal())
    batch.abort([redis.ResponseError("not an integer")], written, BROKEN)
    assert [failure.origin.description for failure in keeper.failures] == [
        command.describe() for command in commands
    ]


def test_given_up_before_it_was_sent():
    """Whatever kept the batch from its connection: each command says that it did not run."""
    wire = PaperWire()
    commands = [command("GET", "a"), command("INCR", "b"), command("INCR", "c")]
    batch = Batch(wire, [*commands[:2], Transaction(commands[2:], wire)])
    batch.give_up(KeyboardInterrupt())
    assert [type(one.outcome.error) for one in commands] == [NotSent] * 3
    assert str(commands[0].outcome.error).startswith("GET a was not sent: KeyboardInterrupt")
    assert batch.entries == []


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (redis.TimeoutError("x"), "timeout"),
        (redis.ConnectionError("x"), "connection failure"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_reason_is_told(cause, reason):
    """The message tells a slow server from a broken connection and an interrupted program."""
    one = command("INCR", "a")
    batch = Batch(PaperWire(), [one])
    batch.abort([], len(batch.seal()), cause)
    assert f"its reply was lost ({reason})" in str(one.outcome.error)


# ---- scripts ---------------------------------------------------------------------------------

ADD = Script("a" * 40, "return 1 + 1")
READ = Script("b" * 40, "return 2")


def test_the_first_call_of_a_script_brings_its_source():
    """EVAL with the source, then EVALSHA; the arguments are the same."""
    wire = PaperWire()
    batch = Batch(wire, [call_of(ADD, "x"), command("GET", "a"), call_of(ADD, "y"), call_of(READ)])
    assert parsed(batch.seal()) == [
        [b"EVAL", ADD.source.encode(), b"1", b"x"],
        [b"GET", b"a"],
        [b"EVALSHA", ADD.digest.encode(), b"1", b"y"],
        [b"EVAL", READ.source.encode(), b"0"],
    ]


def test_read_only_calls_bring_it_too():
    """EVALSHA_RO has EVAL_RO; what one has brought the other finds."""
    wire = PaperWire()
    batch = Batch(wire, [call_of(READ, digest_command="EVALSHA_RO"), call_of(READ)])
    assert names(batch.seal()) == ["EVAL_RO", "EVALSHA"]


def test_calls_inside_a_transaction_bring_it_too():
    """A script that is first called in an atomic block is known there."""
    wire = PaperWire()
    batch = Batch(wire, [Transaction([call_of(ADD), call_of(ADD)], wire)])
    assert names(batch.seal()) == ["MULTI", "EVAL", "EVALSHA", "EXEC"]


def test_what_a_transaction_brought_may_not_have_arrived():
    """An aborted transaction runs nothing, so the next call brings the source again."""
    wire = PaperWire()
    batch = Batch(wire, [Transaction([call_of(ADD)], wire), call_of(ADD), call_of(ADD)])
    assert names(batch.seal()) == ["MULTI", "EVAL", "EXEC", "EVAL", "EVALSHA"]


@pytest.mark.parametrize("answered", [0, 1])
def test_after_an_abort_the_source_travels_again(answered):
    """It may be another server that the rest is sent to."""
    wire = PaperWire()
    batch = Batch(wire, [call_of(ADD) for _ in range(3)])
    batch.seal()
    first = len(batch.entries[0].packed)
    batch.abort([1] * answered, first, BROKEN)
    assert names(batch.seal()) == ["EVAL", "EVALSHA"]


def test_a_call_that_is_sent_again_after_its_like():
    """A call that brought the source once goes by its digest if another one brings it now."""
    wire = PaperWire()
    batch = Batch(wire, [call_of(READ, digest_command="EVALSHA_RO") for _ in range(2)])
    payload = batch.seal()
    batch.abort([], len(payload), BROKEN)
    assert names(batch.seal()) == ["EVAL_RO", "EVALSHA_RO"]


# ---- several wires ---------------------------------------------------------------------------


@st.composite
def programs(draw):
    """Commands of several clients, some of them of one server."""
    wires = [PaperWire(server) for server in ("one", "one", "two", "three")]
    order = draw(st.lists(st.sampled_from(wires), min_size=1, max_size=12))
    return [command("GET", str(number), wire=wire) for number, wire in enumerate(order)]


@given(entries=programs(), usual=st.booleans())
@settings(deadline=None)
def test_plan(entries, usual):
    """Waves keep each server's order, hold each server once, and are as few as that allows."""
    waves = plan(list(entries), usual=usual)
    for wave in waves:
        assert all(entry.wire is batch.wire for batch in wave for entry in batch.entries)
        servers = [batch.wire.server for batch in wave]
        assert len(set(servers)) == len(servers)
    for server in {entry.wire.server for entry in entries}:
        planned = [
            entry
            for wave in waves
            for batch in wave
            if batch.wire.server == server
            for entry in batch.entries
        ]
        assert planned == [entry for entry in entries if entry.wire.server == server]
    turns = [
        len(list(itertools.groupby(e.wire for e in entries if e.wire.server == server)))
        for server in ("one", "two", "three")
    ]
    assert len(waves) == max(turns)


def test_two_servers_share_a_wave():
    """All are written before any is read."""
    here, there = PaperWire("here"), PaperWire("there")
    entries = [command("GET", name, wire=wire) for name in "ab" for wire in (here, there)]
    (wave,) = plan(entries, usual=True)
    assert [batch.wire for batch in wave] == [here, there]


def test_two_clients_of_one_server_take_turns():
    """Each has a connection of its own, so the order needs waves where they alternate."""
    first, second = PaperWire(), PaperWire()
    entries = [command("GET", "x", wire=wire) for wire in (first, first, second, first)]
    waves = plan(entries, usual=True)
    assert [[batch.wire for batch in wave] for wave in waves] == [[first], [second], [first]]
    assert [len(wave[0].entries) for wave in waves] == [2, 1, 1]


def test_commands_of():
    """The commands, those inside transactions too, in program order."""
    wire = PaperWire()
    commands = [command("GET", str(number)) for number in range(4)]
    assert commands_of([commands[0], Transaction(commands[1:3], wire), commands[3]]) == commands
