"""The index page: where the time of each request went, as a picture."""

from __future__ import annotations

import math
from html import escape

from autobatch.demo import REQUESTS, WAYS
from autobatch.demo.link import RoundTrip
from autobatch.demo.measure import Row, Visit
from autobatch.demo.page import document, plural

_MOST_TICKS = 7
_LANE = 24  # the height of its bars
_SIDE_BY_SIDE = """
Each node has a row of its own; what is on its way to several of them at a time counts once."""


def render(groups: dict[str, list[Row]], server: str) -> str:
    """Return the page; `server` says what is how far away."""
    rows = [row for group in groups.values() for row in group]
    nodes = 1 + max(one.node for row in rows for one in row.median.exchanges)
    scale = _Scale(max(1000 * row.median.seconds for row in rows))
    lanes = "".join(
        f'<section class="group"><h2>{escape(name)}</h2>'
        f"{''.join(_lane(row.path, row.median, scale, nodes) for row in group)}</section>"
        for name, group in groups.items()
    )
    return document(
        "One page, six ways",
        f"""
<header>
<h1>One page, six ways to call Redis</h1>
<p>The same shop page of {rows[0].commands} Redis calls, with {server} away. Each bar is
one round trip of a real request, the median one of {REQUESTS}.{_SIDE_BY_SIDE * (nodes > 1)}</p>
</header>
{lanes}
{scale.axis()}
<p class="legend"><i class="trip"></i> a round trip <i class="request"></i> the request around
it</p>
{_table(groups)}
<footer>Round trips are counted on the wire. The {REQUESTS} requests of each page were made
in turn, when the demo started.</footer>
""",
    )


class _Scale:
    """The time axis that the lanes share: milliseconds to percents of the width."""

    def __init__(self, longest: float) -> None:
        self.step = _round_up(longest / _MOST_TICKS)
        self.end = self.step * math.ceil(longest / self.step)
        self.ticks = [self.step * number for number in range(round(self.end / self.step) + 1)]

    def percent(self, milliseconds: float) -> str:
        return f"{100 * milliseconds / self.end:.3f}%"

    def grid(self) -> str:
        return "".join(
            f'<line x1="{x}" x2="{x}" y1="0" y2="100%"/>' for x in map(self.percent, self.ticks)
        )

    def axis(self) -> str:
        anchors = ["start", *["middle"] * (len(self.ticks) - 2), "end"]
        labels = "".join(
            f'<text x="{self.percent(tick)}" y="14" text-anchor="{anchor}">{tick:g}'
            f"{' ms' if anchor == 'end' else ''}</text>"
            for tick, anchor in zip(self.ticks, anchors, strict=True)
        )
        return f'<svg class="axis" height="20" aria-hidden="true">{labels}</svg>'


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50, … that is not smaller."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value)


def _lane(path: str, visit: Visit, scale: _Scale, nodes: int) -> str:
    facts = (
        f"{plural(visit.round_trips, 'round trip')} · {plural(visit.commands, 'command')} · "
        f"{1000 * visit.seconds:.1f} ms"
    )
    height = _LANE // nodes
    bars = "".join(
        f'<rect class="trip" x="{scale.percent(1000 * one.started)}" '
        f'y="{10 + one.node * height}" height="{height}" '
        f'width="{scale.percent(1000 * (one.ended - one.started))}">'
        f"<title>{escape(_tooltip(one))}</title></rect>"
        for one in visit.exchanges
    )
    return f"""
<section class="lane">
<h3><a href="{path}">{escape(WAYS[path])}</a> <span>{facts}</span></h3>
<svg height="44" role="img" aria-label="{escape(facts)}">{scale.grid()}
<rect class="request" x="0" y="5" height="34" width="{scale.percent(1000 * visit.seconds)}"/>
{bars}</svg>
</section>"""


def _tooltip(one: RoundTrip) -> str:
    first, *others = one.commands
    more = f" and {len(others)} more" if others else ""
    return f"{first}{more}: {1000 * (one.ended - one.started):.2f} ms"


def _table(groups: dict[str, list[Row]]) -> str:
    bodies = "".join(f"<tbody>{_lines(rows)}" for rows in groups.values())
    return (
        "<table><thead><tr><th><th>round trips<th>commands<th>p50 ms<th>p99 ms<th>of plain"
        f"{bodies}</table>"
    )


def _lines(rows: list[Row]) -> str:
    return "".join(
        f"<tr><th>{escape(row.name)}<td>{row.round_trips}<td>{row.commands}<td>{row.p50:.1f}"
        f"<td>{row.p99:.1f}<td>{row.p50 / rows[0].p50:.1%}"
        for row in rows
    )
