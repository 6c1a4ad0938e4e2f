"""The benchmark of the records: what it costs that somebody hears of every flush."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from autobatch import Redis, report
from autobatch.advice import advise
from autobatch.panel import Panel
from autobatch.recorded import Recorder
from bench.calls import get_batch, with_client
from bench.harness import Benchmark, Run, Setup

_batches = with_client(Redis, get_batch)


def heard_by(subscribe: Callable[[], contextlib.AbstractContextManager[object]]) -> Setup:
    """Return the set-up of a contender that is listened to while it works, and only then."""

    @contextlib.contextmanager
    def setup(port: int) -> Iterator[Run]:
        with _batches(port) as work:

            def run(times: int) -> object:
                with subscribe():
                    return work(times)

            yield run

    return setup


RECORDS = Benchmark(
    name="records",
    title="50 GETs, and who hears of them",
    unit="command",
    units=50,
    times=10,
    base="off",
    contenders={
        "off": _batches,
        "records on": heard_by(lambda: report.subscribe(lambda _: None)),
        "records and advice": heard_by(lambda: report.subscribe(on_scope=advise)),
        "panel on": heard_by(lambda: contextlib.closing(Panel())),
        "recorded to a file": heard_by(lambda: Recorder(os.devnull, arguments="masked")),
    },
)
