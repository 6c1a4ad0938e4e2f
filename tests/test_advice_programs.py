"""Random programs: what the advice promises is what their data flow allows."""

from __future__ import annotations

import random
import textwrap

import pytest

import autobatch
from autobatch.advice import advise, possible
from autobatch.report import Reason
from recorded import recording

NAMES = list("abcdefgh")
TURNS = 3


class Program:
    """Statements, each a tuple of its kind and what it is about; blocks hold statements."""

    def __init__(self, seed, *, loops):
        self._random = random.Random(seed)
        self._names = []
        self._blocks = ["if", "for"] if loops else ["if"]
        self._body = [("call", "a", None)]
        self._names.append("a")
        self._body += [self._statement(0) for _ in range(self._random.randint(4, 20))]

    def _statement(self, depth):
        kinds = ["call", "call", "call with", "look", "assign", *self._blocks]
        kind = self._random.choice(kinds[: -len(self._blocks)] if depth == 2 else kinds)
        held = self._random.choice(self._names)
        if kind in self._blocks:
            inside = [self._statement(depth + 1) for _ in range(self._random.randint(1, 3))]
            return kind, held, inside
        if kind == "look":
            return kind, held
        name = self._random.choice(NAMES)
        if name not in self._names:
            self._names.append(name)
        return (kind, name, held) if kind == "assign" else ("call", name, held * ("w" in kind))

    def source(self):
        return f"def work(client):\n{textwrap.indent(self._written(self._body), '    ')}"

    def _written(self, body):
        text = ""
        for kind, *about in body:
            if kind == "call":
                name, held = about
                argument = f"f'key:{{{held}}}'" if held else "'key'"
                text += f"{name} = client.get({argument})\n"
            elif kind == "look":
                text += f"str({about[0]})\n"
            elif kind == "assign":
                text += f"{about[0]} = [str({about[1]})]\n"
            else:
                # No value is what is said here, so the block runs.
                head = f"if {about[0]} != 'x'" if kind == "if" else f"for _ in range({TURNS})"
                text += f"{head}:\n{textwrap.indent(self._written(about[1]), '    ')}"
        return text

    def needs(self):
        """Return, call by call, which calls' values it needs."""
        needs = []
        self._run(self._body, {}, frozenset(), needs)
        return needs

    def _run(self, body, values, deciding, needs):
        for kind, *about in body:
            if kind == "call":
                name, held = about
                needs.append(deciding | values.get(held, frozenset()))
                values[name] = deciding | {len(needs) - 1}
            elif kind == "assign":
                name, held = about
                values[name] = deciding | values[held]
            elif kind == "if":
                held, inside = about
                before = dict(values)
                self._run(inside, values, deciding | values[held], needs)
                # Who reads it cannot know that it runs: names may hold what they held before.
                for name, of in before.items():
                    values[name] |= of
            elif kind == "for":
                for _ in range(TURNS):
                    self._run(about[1], values, deciding, needs)


def least(needs):
    """Return in how few round trips the calls can be made, each behind those it needs."""
    levels = []
    for of in needs:
        levels.append(max((levels[one] + 1 for one in of), default=0))
    return max(levels) + 1


@pytest.fixture
def ran(client, proxy, plain, tmp_path):
    """Return what runs a program, and gives the record of its scope."""

    def run(program, *, suggest=False):
        path = tmp_path / "program.py"
        path.write_text(program.source())
        names = {}
        proxy.reset()
        exec(compile(path.read_text(), str(path), "exec"), names)
        with recording() as records, autobatch.batch(suggest=suggest):
            names["work"](client)
        (scope,) = records.scopes
        assert scope.round_trips == proxy.round_trips
        assert scope.commands == len(program.needs())
        assert all(advice.certain for advice in advise(scope))
        reasons = {flush.reason for flush in scope.flushes}
        assert reasons <= ({Reason.EAGER} if suggest else {Reason.FORCED, Reason.END})
        return scope

    return run


@pytest.mark.parametrize("suggest", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_without_loops(ran, seed, suggest):
    """Just what is needed is promised, no more and no less."""
    program = Program(seed, loops=False)
    scope = ran(program, suggest=suggest)
    assert possible(scope) == least(program.needs()), program.source()


@pytest.mark.parametrize("seed", range(60))
def test_with_loops(ran, seed):
    """No more is promised than can be had."""
    program = Program(seed, loops=True)
    scope = ran(program)
    assert least(program.needs()) <= possible(scope) <= scope.round_trips, program.source()


def test_with_loops_much_is_found(ran):
    """Nearly all that can be had is promised."""
    saved = could = 0
    for seed in range(100, 160):
        program = Program(seed, loops=True)
        scope = ran(program)
        saved += scope.round_trips - possible(scope)
        could += scope.round_trips - least(program.needs())
    assert 0.95 * could < saved <= could
