"""Results for people and for programs: a table and JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import redis

from bench import web
from bench.harness import Result, Spread


def machine(port: int) -> dict[str, str]:
    """Return what the figures depend on."""
    with redis.Redis(port=port, decode_responses=True) as client:
        server = client.info("server")
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "autobatch": version("redis-autobatch"),
        "redis-py": version("redis"),
        "hiredis": version("hiredis"),
        "coredis": _version("coredis"),
        "valkey-glide": _version("valkey-glide"),
        "starlette": version("starlette"),
        "uvicorn": version("uvicorn"),
        "server": f"{server['server_name']} {server['valkey_version']}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    with Path("/proc/cpuinfo").open() as lines:
        model = next((line.partition(":")[2] for line in lines if "model name" in line), "")
    return model.strip() or platform.machine()


def as_json(
    command: str,
    machine: dict[str, str],
    results: Sequence[Result],
    applications: Sequence[web.Result],
) -> str:
    document = {
        "command": command,
        "machine": machine,
        "benchmarks": [dataclasses.asdict(result) for result in results],
        "applications": [dataclasses.asdict(result) for result in applications],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def heading(machine: dict[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in machine.items())


def table(result: Result) -> str:
    """Return a benchmark's figures: medians, with the 10th to the 90th percentile."""
    rows = [("", "client µs", "", "wall µs", "client ratio", "", "wall ratio")]
    for name, figures in result.contenders.items():
        rows.append(
            (
                name,
                f"{figures.client.median:.2f}",
                _range(figures.client),
                f"{figures.wall.median:.2f}",
                f"{figures.client_ratio.median:.2f}",
                _range(figures.client_ratio),
                f"{figures.wall_ratio.median:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{result.title}: µs a {result.unit}, and ratios to {result.base}"]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]))
    lines += [f"  {name}: not measured: {why}" for name, why in result.unavailable.items()]
    return "\n".join(lines)


def _range(spread: Spread) -> str:
    return f"{spread.p10:.2f} to {spread.p90:.2f}"
