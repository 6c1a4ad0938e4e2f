"""How contenders are compared: interleaved in one run, by medians, with the spread.

A machine's speed drifts while a benchmark runs. So all contenders take turns, in many short
rounds and in another order each time, and a ratio is one between neighbours in time.

Two clocks: wall time, and client time, the CPU time of this process (in the kernel too). The
server is another process, and all wait for it alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

# Does the work so many times, and returns the last result: all contenders' are the same.
Run: TypeAlias = Callable[[int], object]
# Takes the server's port.
Setup: TypeAlias = Callable[[int], AbstractContextManager[Run]]


class Unavailable(Exception):
    """A contender cannot take part here; its message says why."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Contenders that do the same work.

    Attributes:
        name: for the command line and the results.
        title: what is done, for people.
        unit: what the figures are given for.
        units: how many of them the work takes.
        times: how often a contender does the work in a round.
        base: the contender that the others are held against.
        contenders: by name.
    """

    name: str
    title: str
    unit: str
    units: int
    times: int
    base: str
    contenders: dict[str, Setup]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median, with the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(deciles[4], deciles[0], deciles[8])


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of a contender: microseconds a unit, and ratios to the base.

    A ratio is one of medians; its percentiles are those of the ratios in each round.
    """

    client: Spread
    wall: Spread
    client_ratio: Spread
    wall_ratio: Spread


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a benchmark.

    Attributes:
        contenders: in the benchmark's order.
        unavailable: who could not take part, and why.
    """

    name: str
    title: str
    unit: str
    base: str
    rounds: int
    contenders: dict[str, Figures]
    unavailable: dict[str, str]


def repeated(work: Callable[[], object]) -> Run:
    """Return what does `work` so many times."""

    def run(times: int) -> object:
        result = None
        for _ in range(times):
            result = work()
        return result

    return run


def measure(benchmark: Benchmark, port: int, rounds: int) -> Result:
    """Run all contenders of a benchmark in turns."""
    client: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    scale = 1e6 / (benchmark.times * benchmark.units)
    shuffle = random.Random(benchmark.name).shuffle
    gc.collect()
    with contextlib.ExitStack() as stack:
        runs, unavailable = _set_up(benchmark, port, stack)
        _warm_up(benchmark, runs)
        order = list(runs)
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                run = runs[name]
                wall_start, client_start = time.perf_counter(), time.process_time()
                run(benchmark.times)
                client_end, wall_end = time.process_time(), time.perf_counter()
                client.setdefault(name, []).append((client_end - client_start) * scale)
                wall.setdefault(name, []).append((wall_end - wall_start) * scale)
    return Result(
        benchmark.name,
        benchmark.title,
        benchmark.unit,
        benchmark.base,
        rounds,
        {
            name: Figures(
                Spread.of(client[name]),
                Spread.of(wall[name]),
                _ratio(client[name], client[benchmark.base]),
                _ratio(wall[name], wall[benchmark.base]),
            )
            for name in runs
        },
        unavailable,
    )


def _set_up(
    benchmark: Benchmark, port: int, stack: contextlib.ExitStack
) -> tuple[dict[str, Run], dict[str, str]]:
    """Return what is there to run, and why others are not."""
    runs: dict[str, Run] = {}
    unavailable: dict[str, str] = {}
    for name, setup in benchmark.contenders.items():
        try:
            runs[name] = stack.enter_context(setup(port))
        except Unavailable as reason:
            unavailable[name] = str(reason)
    return runs, unavailable


def _warm_up(benchmark: Benchmark, runs: dict[str, Run]) -> None:
    expected = runs[benchmark.base](benchmark.times)
    for name, run in runs.items():
        result = run(benchmark.times)
        if result != expected:
            raise AssertionError(f"{benchmark.name}: {name} gave {result}, not {expected}")


def _ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    in_rounds = Spread.of([value / other for value, other in zip(values, base, strict=True)])
    median = statistics.median(values) / statistics.median(base)
    return dataclasses.replace(in_rounds, median=median)
