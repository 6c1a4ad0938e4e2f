"""The command line."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import faulthandler
import functools
import itertools
import logging
import operator
import os
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import redis

from soak.chaos import PATIENCE, Chaos, Server, eventually, servers
from soak.model import violations
from soak.programs import Run, Tasks, Threads, draw

HANGS = 6 * PATIENCE  # seconds after which a program will not end any more


@dataclasses.dataclass
class Report:
    """What came out of some programs."""

    programs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    calls: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    violations: list[str] = dataclasses.field(default_factory=list)
    hangs: bool = False

    def __str__(self) -> str:
        lines = [
            _line("programs", self.programs),
            _line("faults", self.faults),
            _line("commands", self.calls),
            _line("outcomes", self.outcomes),
            f"violations: {len(self.violations)}",
        ]
        return "\n".join(lines)


def _line(title: str, counts: collections.Counter[str]) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return f"{title}: {counts.total()} ({parts})"


def soak(
    seeds: Iterable[int], both: list[Server], report: Report, hangs: float = HANGS
) -> Iterator[int]:
    """Run the programs of some seeds; yield each seed after its program has ended."""
    for seed in seeds:
        found: list[str] = []
        thread = threading.Thread(
            target=_note, args=[found, seed, both, report], name="soak-program", daemon=True
        )
        thread.start()
        thread.join(hangs)
        if thread.is_alive():
            report.hangs = True
            found.append("it hangs")
            faulthandler.dump_traceback(all_threads=True)
        report.violations += [f"program {seed}: {text}" for text in found]
        yield seed
        if report.hangs:
            break


def _note(found: list[str], seed: int, both: list[Server], report: Report) -> None:
    try:
        found += _run(seed, both, report)
    except BaseException as error:
        found.append(f"it broke: {''.join(traceback.format_exception(error))}")


def _run(seed: int, both: list[Server], report: Report) -> list[str]:
    """Run one program; return the violations."""
    program = draw(seed)
    calm = not program.blows
    before = _held()
    for server in both:
        with server.client() as plain:
            plain.flushall()
            plain.rpush(f"{seed}:wrong", "no number")
    kind: type[Run] = Tasks if program.tasks else Threads
    with Chaos(both, list(program.blows), program.delay) as chaos:
        run = kind(program, str(seed), chaos)
        run.start()
    run.finish()
    found = run.violations + violations(run.calls, _state(both), calm=calm)
    if not eventually(lambda: all(map(operator.le, _held(), before))):
        found.append(f"threads and open files are left: {_held()}, before it {before}")
    report.programs["asyncio" if program.tasks else "synchronous"] += 1
    report.faults += chaos.counts
    report.calls += collections.Counter(call.kind.value[1] for call in run.calls)
    report.outcomes += collections.Counter(call.outcome.value for call in run.calls)
    return found


def _held() -> tuple[int, int]:
    """Return how many threads and open files this process has."""
    return threading.active_count(), sum(1 for _ in Path("/dev/fd").iterdir())


def _state(both: list[Server]) -> dict[tuple[int, str], Any]:
    """Return what the servers hold, once nothing is on its way to them any more."""
    state = {}
    for number, server in enumerate(both):
        with server.client() as plain:
            if not eventually(functools.partial(_is_alone, plain)):
                raise AssertionError(f"connections are left: {plain.client_list()}")
            for key in plain.scan_iter():
                state[number, key] = _READ[plain.type(key)](plain, key)
    return state


def _is_alone(plain: redis.Redis) -> bool:
    return len(plain.client_list()) == 1


_READ: dict[str, Callable[[redis.Redis, str], Any]] = {
    "string": lambda plain, key: plain.get(key),
    "list": lambda plain, key: plain.lrange(key, 0, -1),
    "hash": lambda plain, key: plain.hgetall(key),
}


def seeds_of(seed: int) -> Iterator[int]:
    """Return the seeds of a run's programs, without end."""
    rng = random.Random(seed)
    return (rng.getrandbits(32) for _ in itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m soak", description="Random programs under random faults."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; 10 by default")
    parser.add_argument("--seed", type=int, help="of the whole run; random by default")
    parser.add_argument("--program", type=int, action="append", help="run this program alone")
    parser.add_argument("--times", type=int, default=1, help="how often, each --program")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    seeds: Iterable[int] = seeds_of(seed)
    deadline = time.monotonic() + 60 * options.minutes
    if options.program:
        seeds = options.program * options.times
        deadline = float("inf")
    else:
        print(f"seed {seed}", flush=True)
    logging.getLogger("autobatch").disabled = True  # errors of what was cancelled
    warnings.simplefilter("error", ResourceWarning)
    report = Report()
    told = 0
    with servers() as both:
        for _ in soak(seeds, both, report):
            for text in report.violations[told:]:
                print(text, flush=True)
            told = len(report.violations)
            if time.monotonic() > deadline:
                break
        print(report, flush=True)
    if report.hangs:
        os._exit(1)  # nothing will end its threads
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
