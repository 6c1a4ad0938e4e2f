"""Real requests, and what each of them did on the wire."""

from __future__ import annotations

import gc
import http.client
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from autobatch.demo import GROUPS, WAYS
from autobatch.demo.link import Link, RoundTrip


@dataclass(frozen=True)
class Visit:
    """One request; its times are in seconds, those of the exchanges since its start."""

    body: bytes
    seconds: float
    exchanges: list[RoundTrip]

    @property
    def commands(self) -> int:
        return sum(len(one.commands) for one in self.exchanges)

    @property
    def round_trips(self) -> int:
        """How often the request waited: for what is on its way at the same time, once."""
        count = 0
        end = 0.0
        for one in sorted(self.exchanges, key=lambda one: one.started):
            count += one.started >= end
            end = max(end, one.ended)
        return count


@dataclass(frozen=True)
class Row:
    """What many visits of one page say; times in milliseconds."""

    path: str
    round_trips: int
    commands: int
    p50: float
    p99: float
    median: Visit

    @property
    def name(self) -> str:
        return WAYS[self.path]


def visit(path: str, port: int, link: Link) -> Visit:
    """Ask for a page over HTTP, and look at the link meanwhile."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with closing(connection):
        connection.connect()
        link.take()
        start = time.monotonic()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        seconds = time.monotonic() - start
        exchanges = link.take()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{path} answered {response.status}: {body.decode()}")
    return Visit(
        body,
        seconds,
        [replace(one, started=one.started - start, ended=one.ended - start) for one in exchanges],
    )


def measure(
    port: int, link: Link, times: int, prepare: Callable[[], object]
) -> dict[str, list[Row]]:
    """Visit the pages in turn, so that all of them meet the same machine.

    Args:
        port: where they are served.
        link: what their calls go through.
        times: how often to visit each.
        prepare: called before each visit.

    Returns:
        The rows of each group.

    Raises:
        RuntimeError: they do not show the same.
    """
    rounds = [_visit_each(port, link, prepare)]  # connects, warms up
    gc.freeze()  # or a full collection, of all that was imported, adds 25 ms to some request
    rounds += [_visit_each(port, link, prepare) for _ in range(times)]
    return {
        group: [_summary(path, [visits[path] for visits in rounds[1:]]) for path in ways]
        for group, ways in GROUPS.items()
    }


def _visit_each(port: int, link: Link, prepare: Callable[[], object]) -> dict[str, Visit]:
    visits = {}
    for path in WAYS:
        prepare()
        visits[path] = visit(path, port, link)
    for path in WAYS:
        if visits[path].body != visits["/plain"].body:
            raise RuntimeError(f"{path} does not show what /plain shows")
    return visits


def _summary(path: str, visits: list[Visit]) -> Row:
    visits = sorted(visits, key=lambda visit: visit.seconds)
    percentiles = statistics.quantiles(
        [1000 * visit.seconds for visit in visits], n=100, method="inclusive"
    )
    return Row(
        path,
        # Most often: a machine that is busy may write to a node after another one has answered.
        round_trips=statistics.mode(visit.round_trips for visit in visits),
        commands=max(visit.commands for visit in visits),
        p50=percentiles[49],
        p99=percentiles[98],
        median=visits[len(visits) // 2],
    )


def table(groups: dict[str, list[Row]]) -> str:
    """Return the rows as text; the last column compares the p50 with the plain one's."""
    lines = [
        f"{'':24}{'round trips':>12}{'commands':>10}{'p50 ms':>9}{'p99 ms':>9}{'of plain':>10}"
    ]
    lines += [
        f"{row.name:24}{row.round_trips:12}{row.commands:10}{row.p50:9.1f}{row.p99:9.1f}"
        f"{row.p50 / rows[0].p50:10.1%}"
        for rows in groups.values()
        for row in rows
    ]
    return "\n".join(lines)
