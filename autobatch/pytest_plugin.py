"""What the pytest plugin knows: what a test has sent, and what the whole run has.

pytest itself loads `pytest_autobatch`, which is small, and takes this when a test needs it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from autobatch.advice import Advice, advise
from autobatch.report import (
    CommandRecord,
    FlushRecord,
    Place,
    Reason,
    ScopeRecord,
    Subscription,
    counted,
    subscribe,
)


class RedisBatches:
    """What was sent to Redis while it listened, by all of autobatch's clients in this process.

    A command that ran by itself, outside any scope or because it cannot wait, is a flush too. The
    records of the last 10,000 flushes are kept; the counts are of all.
    """

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._subscription: Subscription | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was sent so far."""
        with self._counting:
            self._flushes: collections.deque[FlushRecord] = collections.deque(maxlen=_KEPT)
            self._commands = 0
            self._round_trips = 0

    def listen(self) -> None:
        """Begin anew, and hear of what is sent from now on."""
        self.stop()
        self.reset()
        self._subscription = subscribe(self._hear)

    def stop(self) -> None:
        """Keep what is there, and hear of nothing any more."""
        if self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None

    def _hear(self, record: FlushRecord) -> None:
        with self._counting:
            self._flushes.append(record)
            self._commands += len(record.commands)
            self._round_trips += record.round_trips

    # ---- what was sent -----------------------------------------------------------------

    @property
    def flushes(self) -> list[FlushRecord]:
        """The flushes, in the order in which they began."""
        with self._counting:
            heard = list(self._flushes)
        return sorted(heard, key=lambda flush: flush.started)

    @property
    def commands(self) -> list[CommandRecord]:
        """The commands, in the order in which they were sent."""
        return [command for flush in self.flushes for command in flush.commands]

    @property
    def round_trips(self) -> int:
        """How often the program waited for the network."""
        return self._round_trips

    @property
    def scopes(self) -> list[ScopeRecord]:
        """The scopes that sent something, ended or not, each with the flushes heard of here.

        What was called outside any scope is together in one, "outside any scope".
        """
        scopes: dict[object, ScopeRecord] = {}
        for flush in self.flushes:
            # Of a command that ran outside any scope, the scope is of it alone.
            key = flush.scope.name if _outside(flush) else id(flush.scope)
            scope = scopes.get(key)
            if scope is None:
                scope = scopes[key] = dataclasses.replace(
                    flush.scope, flushes=collections.deque(), commands=0, round_trips=0
                )
            scope.flushes.append(flush)
            scope.commands += len(flush.commands)
            scope.round_trips += flush.round_trips
        return list(scopes.values())

    @property
    def advice(self) -> list[Advice]:
        """What could have saved round trips: in each scope, what saves most comes first."""
        return [advice for scope in self.scopes for advice in advise(scope)]

    def assert_round_trips(
        self,
        exactly: int | None = None,
        /,
        *,
        max: int | None = None,  # noqa: A002  # as the marker says it
    ) -> None:
        """Fail unless so many round trips were made.

        Args:
            exactly: how many, no more and no fewer.
            max: or how many at most.

        Raises:
            AssertionError: it were others; the message tells which, why, and what to do.
            TypeError: not just one of the two was given, or it is no integer.
        """
        __tracebackhide__ = True
        wanted = exactly if max is None else max
        if (exactly is None) is (max is None) or not isinstance(wanted, int):
            raise TypeError("round trips: say how many, as in (1), or how many at most: (max=1)")
        made = self.round_trips
        if made == exactly or (max is not None and made <= max):
            return
        expected = f"expected {exactly}" if max is None else f"expected at most {max}"
        raise AssertionError(f"{counted(made, 'round trip')} to Redis, {expected}\n{self}")

    def numbers(self) -> Numbers:
        """Return the counts, and what could be saved, as plain data."""
        missed = sorted((one for one in self.advice if one.saved), key=lambda one: -one.saved)
        return {
            "commands": self._commands,
            "round_trips": self._round_trips,
            "missed": [(str(one), one.saved) for one in missed[:_SHOWN]],
        }

    def __str__(self) -> str:
        """Return what was sent, as a table, with the advice."""
        flushes = self.flushes
        if not flushes:
            return (
                "Nothing was sent by a client of autobatch in this process: is the client "
                "autobatch's, and the code under test in the same process?"
            )
        lines = _columns(_rows(flushes))
        if len(flushes) > _SHOWN:
            lines.append(f"... {len(flushes) - _SHOWN} more flushes")
        lines += _hints(flushes)
        advice = self.advice
        if advice:
            lines += ["", "Advice:", *(f"- {one}" for one in advice[:_SHOWN])]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RedisBatches: {_counts(self._commands, self._round_trips)}>"


class Numbers(TypedDict):
    """What one test did, as it travels from xdist's workers."""

    commands: int
    round_trips: int
    missed: Sequence[Sequence[Any]]


class Summary:
    """What the whole run did: a plugin of pytest's, for `--autobatch-report`."""

    def __init__(self) -> None:
        self._tests: dict[str, Numbers] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take the numbers of a test, be it one that ran in a worker of xdist."""
        if report.when == "call" and hasattr(report, "autobatch"):
            self._tests[report.nodeid] = report.autobatch

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell of all."""
        terminalreporter.section("round trips to Redis")
        for line in self._lines():
            terminalreporter.line(line)

    def _lines(self) -> list[str]:
        tests = {name: numbers for name, numbers in self._tests.items() if numbers["commands"]}
        commands = sum(numbers["commands"] for numbers in tests.values())
        round_trips = sum(numbers["round_trips"] for numbers in tests.values())
        called = f"{len(tests)} of {counted(len(self._tests), 'test')} called Redis"
        lines = [f"{called}: {_counts(commands, round_trips)}"]
        worst = sorted(tests.items(), key=lambda test: (-test[1]["round_trips"], test[0]))
        if worst:
            rows = [["round trips", "commands", "saved", "tests with the most round trips"]]
            for name, one in worst[:_SHOWN]:
                saved = one["commands"] - one["round_trips"]
                rows.append([*map(str, (one["round_trips"], one["commands"], saved)), name])
            lines += ["", *_columns(rows)]
        missed: collections.Counter[str] = collections.Counter()
        for one in tests.values():
            for text, saved in one["missed"]:
                missed[text] += saved
        if missed:
            lines += ["", "Missed batches, what saves most first:"]
            lines += [f"- {text}" for text, _ in missed.most_common(_SHOWN)]
        return lines


def _counts(commands: int, round_trips: int) -> str:
    return (
        f"{counted(commands, 'command')} in {counted(round_trips, 'round trip')}, "
        f"{commands - round_trips} saved"
    )


def _outside(flush: FlushRecord) -> bool:
    return flush.scope.name == "outside any scope"


def _hints(flushes: Iterable[FlushRecord]) -> list[str]:
    alone = [flush for flush in flushes if _outside(flush) and flush.reason is Reason.ALONE]
    if len(alone) < _FEW:
        return []
    told = f"{len(alone)} commands were called outside any scope, each a round trip"
    return ["", f"{told}: @autobatch.batch, or `with autobatch.batch():`, makes a scope."]


def _rows(flushes: Sequence[FlushRecord]) -> list[list[str]]:
    rows = [["#", "why", "where", "commands", "called at"]]
    number = 1
    for flush in flushes[:_SHOWN]:
        last = number + flush.round_trips - 1
        numbers = str(number) if last <= number else f"{number}-{last}"
        number = max(last, number) + 1
        why = f"{flush.reason} ({flush.use})" if flush.use else str(flush.reason)
        start = [numbers, why, str(flush.place or flush.scope.name)]
        by_place = itertools.groupby(flush.commands, key=lambda command: _where(command.place))
        groups = [(place, list(commands)) for place, commands in by_place]
        for place, commands in groups[:_SHOWN]:
            rows.append([*start, _listed(commands), place])
            start = ["", "", ""]
        if len(groups) > _SHOWN:
            left = sum(len(commands) for _, commands in groups[_SHOWN:])
            rows.append([*start, f"... {counted(left, 'command')} more", ""])
    return rows


def _where(place: Place | None) -> str:
    return "" if place is None else str(place)


def _listed(commands: Sequence[CommandRecord]) -> str:
    shown = [
        str(one) if one.error is None else f"{one} ({one.error.partition(':')[0]})"
        for one in commands[:_FEW]
    ]
    if len(commands) > _FEW:
        shown.append(f"... {len(commands) - _FEW} more")
    return ", ".join(shown)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


_KEPT = 10_000
_SHOWN = 20
_FEW = 3
