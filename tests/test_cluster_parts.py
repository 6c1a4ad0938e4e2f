"""A cluster's batches without a connection: how they are divided, and what is left of a part."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import redis
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, ExecAbortError, MovedError

from autobatch.batch import Transaction
from autobatch.promise import PENDING
from autobatch.wire.cluster import Part, Router
from pending import PAPER
from test_batch import command

BROKEN = redis.ConnectionError("broken")
NODES = [ClusterNode("127.0.0.1", port) for port in (7000, 7001, 7002)]


class Topology:
    """As much of redis-py's client of a cluster as tells where a command goes."""

    read_from_replicas = False
    load_balancing_strategy = None
    encoder = redis.connection.Encoder("utf-8", "strict", decode_responses=False)

    def __init__(self, slots=range(16384)):
        self.nodes_manager = SimpleNamespace(
            slots_cache={slot: [NODES[slot * len(NODES) >> 14]] for slot in slots}
        )

    def get_default_node(self):
        return NODES[0]


ROUTER = Router(Topology())


def part_of(*entries, usual=False):
    return Part(PAPER, list(entries), ROUTER, NODES[0], usual=usual)


def moved(key, kind=MovedError):
    return kind(f"{key_slot(key.encode())} 127.0.0.1:7002")


# ---- dividing ----------------------------------------------------------------------------------


KEYS = ["a", b"a", 7, 1.5, "", "é", b"\xff", "{a}b", "b{a}", "b{a}c{d}"]
KEYS += ["{a", "a}", "}a{", "{}a", "{}{a}", "{{a}}", b"{a}\xff"]


@pytest.mark.parametrize("usual", [False, True])
@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_a_command_goes_to_the_node_of_its_key(key, usual):
    """Hash tags count, and a key's type does not: the slot is that of the bytes on the wire."""
    entry = command("GET", key)
    slot = key_slot(ROUTER.client.encoder.encode(key))
    [(node, entries)], stranded = ROUTER.divide([entry], usual=usual)
    assert node is NODES[slot * len(NODES) >> 14]
    assert (entries, stranded) == ([entry], [])


@pytest.mark.parametrize("usual", [False, True])
def test_each_node_has_its_commands_in_order(usual):
    """What is usual is divided in another way, to the same parts."""
    called = [command("SET" if number % 2 else "GET", f"key{number}") for number in range(30)]
    divided, _ = ROUTER.divide(called, usual=usual)
    assert sorted(node.port for node, _ in divided) == [7000, 7001, 7002]
    for node, entries in divided:
        expected = [entry for entry in called if ROUTER.divide([entry])[0][0][0] is node]
        assert entries == expected


@pytest.mark.parametrize("args", [("MGET", "a", "{a}b"), ("BITOP", "AND", "a", "{a}b")])
def test_a_plain_command_of_several_keys_goes_to_their_node(args):
    """Nothing about it is unusual but where its keys are."""
    divided, stranded = ROUTER.divide([command("GET", "b"), command(*args)], usual=True)
    assert [node for node, _ in divided] == [NODES[0], NODES[2]]  # slots 3300 and 15495
    assert stranded == []


@pytest.mark.parametrize("usual", [False, True])
def test_what_no_node_is_known_for_is_told_apart(usual):
    """The rest of its batch leaves."""
    router = Router(Topology(slots={key_slot(b"a")}))
    known, unknown = command("GET", "a"), command("GET", "b")
    divided, [(entry, cause)] = router.divide([unknown, known], usual=usual)
    assert divided == [(NODES[2], [known])]
    assert entry is unknown
    assert "no node is known for slot 3300" in str(cause)


# ---- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [False, True])
def test_what_a_node_has_not_run_is_left(usual):
    """Only that, with the reason; errors of the command itself are its value."""
    entries = [command("SET", key, 1) for key in "abc"]
    part = part_of(*entries, usual=usual)
    reason = moved("b", AskError)
    part.settle([b"OK", reason, redis.ResponseError("WRONGTYPE")])
    assert part.leftovers() == [(entries[1], reason, False)]
    assert entries[0].outcome == b"OK"
    assert str(entries[2].outcome.error) == "WRONGTYPE"


def test_a_write_that_would_come_too_late_is_not_left():
    """A later one of its key was let through: its key alone counts, not what they share else."""
    first, other, later = (command("SET", key, 1, "EX", 60) for key in ("{a}1", "{a}2", "{a}1"))
    part = part_of(first, other, later)
    part.settle([moved("a", AskError), moved("a", AskError), b"OK"])
    assert [entry for entry, *_ in part.leftovers()] == [other]
    assert isinstance(first.outcome.error, AskError)
    assert later.outcome == b"OK"


@pytest.mark.parametrize("usual", [False, True])
@pytest.mark.parametrize("answered", range(4))
def test_a_connection_that_breaks_behind_a_redirection(answered, usual):
    """All that has to be sent again is left, in the program's order."""
    entries = [command("GET", key) for key in "abcd"]
    reason = moved("a")
    replies = [reason, b"1", b"2", b"3"][:answered]
    part = part_of(*entries, usual=usual)
    part.abort(replies, 1 << 62, BROKEN)
    causes = [reason][:answered] + [BROKEN] * (4 - max(answered, 1))
    left = [entry for entry in entries if entry.outcome is PENDING]
    assert [entry for entry, *_ in part.leftovers()] == left
    assert len(left) == len(causes) + (answered == 0)


def test_a_transaction_is_left_as_a_whole():
    """One command of it that has moved is enough: EXEC ran nothing."""
    inside = [command("SET", "a", 1), command("GET", "a")]
    transaction = Transaction(inside, PAPER)
    part = part_of(transaction, command("GET", "b"))
    reason = moved("a")
    part.settle([b"OK", reason, reason, ExecAbortError("EXECABORT"), b"b"])
    assert [entry for entry, *_ in part.leftovers()] == [transaction]
    assert all(one.outcome is PENDING for one in inside)


@pytest.mark.parametrize("usual", [False, True])
def test_portions_share_a_part_out(usual):
    """Each goes to the same node, and all of it leaves."""
    entries = [command("GET", f"{number}") for number in range(10)]
    portions = part_of(*entries, usual=usual).portions(4)
    assert [len(portion.entries) for portion in portions] == [4, 4, 2]
    assert list(itertools.chain(*[portion.entries for portion in portions])) == entries
    assert {(portion.node.port, portion.usual) for portion in portions} == {(7000, usual)}
