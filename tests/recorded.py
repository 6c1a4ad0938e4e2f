"""What tests of records share: a subscriber that keeps them, and lines found by their marks."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
import sys
from collections.abc import Iterator

from autobatch import report


class Records:
    """What was told to a subscriber.

    Attributes:
        flushes, scopes: the records, in the order in which they came.
        calls: how often a call was told of.
    """

    def __init__(self) -> None:
        self.flushes: list[report.FlushRecord] = []
        self.scopes: list[report.ScopeRecord] = []
        self.calls = 0
        self.subscription = report.subscribe(
            self.flushes.append, on_scope=self.scopes.append, on_call=self._count
        )

    def _count(self) -> int:
        self.calls += 1
        return self.calls

    @property
    def names(self) -> list[list[str]]:
        return [[command.name for command in flush.commands] for flush in self.flushes]

    @property
    def reasons(self) -> list[str]:
        return [flush.reason.value for flush in self.flushes]


@contextlib.contextmanager
def recording() -> Iterator[Records]:
    records = Records()
    try:
        yield records
    finally:
        records.subscription.cancel()


def marked(mark: str, file: str | None = None) -> int:
    """Return the line of a file, by default the caller's, that ends with the comment `mark`."""
    if file is None:
        file = inspect.getsourcefile(sys._getframe(1))
    lines = pathlib.Path(file).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    assert len(found) == 1, f"{len(found)} lines are marked {mark!r}"
    return found[0]
