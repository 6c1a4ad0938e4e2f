"""What the linter says: its codes, and a finding."""

from __future__ import annotations

import ast
import dataclasses
import enum
import re

CODES = {
    "AB101": "an identity test sees the Future, not its value",
    "AB102": "type() of a Future is Future",
    "AB103": "this function wants the real type, which a Future is not",
    "AB104": "before Python 3.12 a Future is no buffer",
    "AB105": "a mapping, sequence or singleton pattern does not match a Future",
    "AB106": "the error of a call that waits comes later than its except clause",
}


class Wrapper(enum.Enum):
    """What makes plain values of lazy ones."""

    UNWRAP = "unwrap"
    RESOLVE = "resolve"
    RESOLVE_LIST = "resolve(list)"
    """For what can be iterated over once: `resolve` leaves that as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """An expression that has to be wrapped, and in what."""

    node: ast.expr
    wrapper: Wrapper


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One place where a lazy value would be misread.

    Attributes:
        line: from 1.
        column: from 1, in characters.
        code: one of CODES.
        message: why, and the rewrite.
        targets: what `--fix` wraps; empty where that needs a human.
    """

    line: int
    column: int
    code: str
    message: str
    targets: tuple[Target, ...]


def lines_of(source: str) -> list[str]:
    """Return the lines of a module as Python's parser counts them: a form feed ends none."""
    return re.split(r"\r\n|\r|\n", source)


def column_of(line: str, offset: int) -> int:
    """Return how many characters are before the parser's offset in a line, which counts bytes."""
    return len(line.encode()[:offset].decode(errors="replace"))
