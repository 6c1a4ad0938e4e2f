"""The table in docs/libraries.md: made of what running the usages did."""

from __future__ import annotations

import importlib.metadata
import inspect
import pathlib
import re
from types import ModuleType
from typing import NamedTuple

from .running import WAYS, differences, run

DOCUMENT = pathlib.Path(__file__).parent.parent.parent / "docs" / "libraries.md"
BEGIN, END = "<!-- made by `make libraries` -->\n", "<!-- end -->\n"
CLIENT, EAGER = "the client", "`client.eager`"
_HEAD = (
    "| library | version | give it | like this | round trips: plain / batching / eager "
    "| what differs with the batching client |\n|---|---|---|---|---:|---|\n"
)


class Row(NamedTuple):
    """What the table says of a library, as text.

    Attributes:
        name: the library.
        version: that of its distribution.
        takes: CLIENT or EAGER.
        like: how it is given the client.
        round_trips: in the order of WAYS.
        differs: names of results.
    """

    name: str
    version: str
    takes: str
    like: str
    round_trips: str
    differs: str


def row_of(usage: ModuleType, port: int) -> Row:
    """Run a usage in all ways, and return its row.

    Raises:
        AssertionError: it does not even do the same with `client.eager`.
    """
    ran = {way: run(usage, way, port) for way in WAYS}
    eager = differences(ran["eager"], ran["plain"])
    assert not eager, f"{usage.NAME} differs with client.eager: {eager}"
    differs = differences(ran["batching"], ran["plain"])
    like = getattr(usage, "GIVEN", None) or _last_line(usage.given)
    if differs and EAGER.strip("`") not in like:
        like = re.sub(r"(?<![.\w])client\b", "client.eager", like)
    return Row(
        usage.NAME,
        importlib.metadata.version(usage.DISTRIBUTION),
        EAGER if differs else CLIENT,
        f"`{like}`".replace("|", "\\|"),
        " / ".join(str(ran[way].round_trips) for way in WAYS),
        "; ".join(differs),
    )


def _last_line(function: object) -> str:
    return inspect.getsource(function).strip().splitlines()[-1].strip().removeprefix("return ")


def rendered(rows: list[Row]) -> str:
    """Return the table."""
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def parsed(text: str) -> list[Row]:
    """Return the rows of a table."""
    lines = text.strip().splitlines()[2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines]


def documented() -> str:
    """Return the table in the document."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def write(table: str) -> None:
    """Put the table into the document."""
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    DOCUMENT.write_text(before + begin + table + end + after)
