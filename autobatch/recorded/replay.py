"""Replaying a recorded run, one command at a time and in batches, and comparing what comes of it.

Commands run in the order in which they were sent, whatever scopes and threads they came from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import redis

from autobatch.boundary import batch
from autobatch.client import Redis
from autobatch.command import Travel, traits_of
from autobatch.errors import AutobatchError
from autobatch.future import unwrap
from autobatch.recorded.file import Run
from autobatch.report import CommandRecord, FlushRecord

# Commands that belong together: alone, or as one transaction.
_Step: TypeAlias = list[CommandRecord]
# What a server of Redis has, by key: the type, whether it expires, and the value.
Keyspace: TypeAlias = dict[bytes, tuple[bytes, bool, Any]]


class CannotReplay(AutobatchError):
    """A run cannot be replayed, or not here; the message says why."""


@dataclasses.dataclass
class Difference:
    """A command whose replies differ.

    Attributes:
        command: what it was.
        eager: what came of it when each command ran by itself.
        batched: what came of it in a batch.
    """

    command: CommandRecord
    eager: Any
    batched: Any


@dataclasses.dataclass
class Outcome:
    """What came of a replay.

    Attributes:
        commands: how many were run.
        left_out: those that were not, with the reason.
        eager_seconds, batched_seconds: what each way took.
        eager_round_trips, batched_round_trips: and how often it waited.
        differences: the replies that differ.
        may_differ: how many of the commands may reply with something else each time, such as TIME;
            their replies are not compared.
        keys: the keys that differ in the end, with what each way left there.
    """

    commands: int
    left_out: list[tuple[CommandRecord, str]]
    eager_seconds: float
    batched_seconds: float
    eager_round_trips: int
    batched_round_trips: int
    differences: list[Difference]
    may_differ: int
    keys: dict[bytes, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether both ways came to the same."""
        return not self.differences and not self.keys


def replay(run: Run, client: redis.Redis) -> Outcome:
    """Run what was recorded twice on an empty server, and empty that again.

    Args:
        run: recorded with arguments, "masked" or "values".
        client: of the server; it must not decode responses.

    Raises:
        CannotReplay: the server is not empty, or the run tells of no arguments.
        redis.RedisError: the server does not answer.
    """
    if client.dbsize():
        raise CannotReplay("the server has keys: a replay needs an empty one, which it empties")
    left_out: list[tuple[CommandRecord, str]] = []
    flushes = [_steps_of(flush, left_out) for flush in run.flushes]
    flushes = [steps for steps in flushes if steps]
    if not flushes:
        raise CannotReplay(
            "the run tells of no arguments: record it with arguments='masked', or 'values'"
        )
    unsteady = _unsteady_commands(client)
    eager_seconds, eager, eager_keys = _measured(client, _run_eagerly, flushes)
    batched_seconds, batched, batched_keys = _measured(client, _run_batched, flushes)
    commands = [command for steps in flushes for step in steps for command in step]
    compared = [
        (command, one, other)
        for command, one, other in zip(commands, eager, batched, strict=True)
        if command.name not in unsteady
    ]
    return Outcome(
        len(commands),
        left_out,
        eager_seconds,
        batched_seconds,
        sum(len(steps) for steps in flushes),
        len(flushes),
        [
            Difference(command, one, other)
            for command, one, other in compared
            if _comparable(command, one) != _comparable(command, other)
        ],
        len(commands) - len(compared),
        {
            key: (eager_keys.get(key), batched_keys.get(key))
            for key in sorted(eager_keys.keys() | batched_keys.keys())
            if eager_keys.get(key) != batched_keys.get(key)
        },
    )


def _steps_of(flush: FlushRecord, left_out: list[tuple[CommandRecord, str]]) -> list[_Step]:
    """Return what to run of a flush; note what is left out, and why."""
    steps: list[_Step] = []
    transaction = None
    for command in flush.commands:
        args = command.arguments
        if not args:
            left_out.append((command, "its arguments were not recorded"))
        elif traits_of(args).travel_of(args) is Travel.ALONE:
            left_out.append((command, "it blocks, or changes its connection"))
        elif command.transaction is not None and command.transaction == transaction:
            steps[-1].append(command)
        else:
            steps.append([command])
            transaction = command.transaction
            continue
    return steps


def _measured(
    client: redis.Redis,
    run: Callable[[redis.Redis, list[list[_Step]]], list[Any]],
    flushes: list[list[_Step]],
) -> tuple[float, list[Any], Keyspace]:
    """Return the seconds that a way to run takes, the replies, and what it leaves on the server."""
    client.ping()  # connected, so that neither way pays for it
    started = time.perf_counter()
    try:
        replies = run(client, flushes)
        seconds = time.perf_counter() - started
        return seconds, replies, dict(_keyspace(client))
    finally:
        client.flushall()
        client.script_flush()
        client.function_flush()


def _run_eagerly(client: redis.Redis, flushes: list[list[_Step]]) -> list[Any]:
    return [reply for steps in flushes for step in steps for reply in _run_step(client, step)]


def _run_step(client: redis.Redis, step: _Step) -> list[Any]:
    if step[0].transaction is None:
        return [_reply(client.execute_command, *_called(step[0]))]
    with client.pipeline() as pipe:
        for command in step:
            pipe.execute_command(*_called(command))
        try:
            replies: list[Any] = pipe.execute(raise_on_error=False)
        except redis.exceptions.ExecAbortError as error:
            return [error] * len(step)
    return replies


def _run_batched(client: redis.Redis, flushes: list[list[_Step]]) -> list[Any]:
    batching = Redis(connection_pool=client.connection_pool)
    replies: list[Any] = []
    for steps in flushes:
        futures: list[Any] = []
        with batch(max_commands=1 << 60, max_bytes=1 << 60):
            for step in steps:
                with batch(atomic=step[0].transaction is not None):
                    futures += [_reply(batching.execute_command, *_called(one)) for one in step]
            replies += [_reply(unwrap, future) for future in futures]
    return replies


def _called(command: CommandRecord) -> tuple[Any, ...]:
    """Return a command as redis-py calls it, so that its reply gets its shape."""
    args = command.arguments or ()
    words = command.name.split(" ")
    # A script's call has brought its source along, under another name.
    return args if len(words) == 1 else (command.name, *args[len(words) :])


def _reply(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except redis.ResponseError as error:
        return error


def _comparable(command: CommandRecord, reply: Any) -> Any:
    if isinstance(reply, Exception):
        # In a transaction redis-py says which command it was.
        return type(reply), str(reply).partition("Command # ")[2] or str(reply)
    if isinstance(reply, list) and command.name in _UNORDERED:
        return sorted(reply, key=repr)
    return reply


def _unsteady_commands(client: redis.Redis) -> set[str]:
    """Return the commands of which the server says that they may reply something else each time."""
    found: set[str] = set()
    for about in client.execute_command("COMMAND").values():
        for one in (about, *about.get("subcommands", ())):
            name, tips = (
                (one["name"], one.get("tips", ()))
                if isinstance(one, dict)
                else (
                    one[0],
                    one[7],
                )
            )
            if any(_text(tip) == "nondeterministic_output" for tip in tips):
                found.add(_text(name).upper().replace("|", " "))
    return found | {"XADD", "SPOP"}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _keyspace(client: redis.Redis) -> Iterator[tuple[bytes, tuple[bytes, bool, Any]]]:
    keys: list[bytes] = sorted(client.scan_iter(count=1000))
    for key in keys:
        kind: Any = client.type(key)
        read = _READERS.get(kind, lambda client, key: client.dump(key))
        yield key, (kind, client.pttl(key) >= 0, read(client, key))


_READERS: dict[bytes, Callable[[redis.Redis, bytes], Any]] = {
    b"string": lambda client, key: client.get(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"stream": lambda client, key: [one[1] for one in client.xrange(key) or ()],
}
# The server gives them in whatever order they have.
_UNORDERED = frozenset({"HKEYS", "HVALS", "KEYS", "SDIFF", "SINTER", "SMEMBERS", "SUNION"})
