"""Replaying a recorded run, one command at a time and in batches, and comparing what comes of it.

Commands run in the order in which they were sent, whatever scopes and threads they came from. Each
server and database of the run has a database of one server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import redis

from autobatch.boundary import batch
from autobatch.client import Redis
from autobatch.command import Travel, traits_of
from autobatch.errors import AutobatchError
from autobatch.future import unwrap
from autobatch.recorded.file import Run
from autobatch.recorded.steady import Doubts, Ids, Tips, tips_of
from autobatch.report import CommandRecord

# Commands that belong together: alone, or as one transaction.
_Step: TypeAlias = list[CommandRecord]
_Flush: TypeAlias = list[_Step]
# What servers of Redis have, by server and key: the type, whether it expires, and the value.
Keyspace: TypeAlias = dict[tuple[str, bytes], tuple[bytes, bool, Any]]


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
        may_differ: how many of the commands may reply with something else each time, such as TIME,
            or look at what such commands, or a clock, have written: nothing of that is compared.
        keys: the keys that differ in the end, by server, with what each way left there.
    """

    commands: int
    left_out: list[tuple[CommandRecord, str]]
    eager_seconds: float
    batched_seconds: float
    eager_round_trips: int
    batched_round_trips: int
    differences: list[Difference]
    may_differ: int
    keys: dict[tuple[str, bytes], tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether both ways came to the same."""
        return not self.differences and not self.keys


@dataclasses.dataclass
class _Way:
    """What came of one way to run it."""

    seconds: float
    round_trips: int
    replies: list[list[Any]]  # of each step
    keys: Keyspace


def replay(run: Run, client: redis.Redis) -> Outcome:
    """Run what was recorded twice on an empty server, and empty that again.

    Args:
        run: recorded with arguments, "masked" or "values".
        client: of the server; other databases than its own are used if the run needs several.

    Raises:
        CannotReplay: the server is not empty, or has too few databases, or the run tells of no
            arguments.
        redis.RedisError: the server does not answer.
    """
    _refuse_what_is_not_empty(client)
    left_out: list[tuple[CommandRecord, str]] = []
    flushes = _flushes_of(run, left_out)
    if not flushes:
        raise CannotReplay(
            "the run tells of no arguments: record it with arguments='masked', or 'values'"
        )
    steps = [step for flush in flushes for step in flush]
    commands = [command for step in steps for command in step]
    names = list(dict.fromkeys(command.server for command in commands))
    tips = tips_of(client)
    began = time.time()
    with contextlib.ExitStack() as stack:
        databases = _databases(client, names, stack)
        eager = _measured(databases, _run_eagerly, flushes)
        batched = _measured(databases, _run_batched, flushes)
    doubts = Doubts(tips, began, time.time())
    doubtful = [[doubts.of(command) for command in step] for step in steps]
    return Outcome(
        len(commands),
        left_out,
        eager.seconds,
        batched.seconds,
        eager.round_trips,
        batched.round_trips,
        [
            difference
            for compared in zip(steps, doubtful, eager.replies, batched.replies, strict=True)
            for difference in _differences(tips, *compared)
        ],
        sum(map(sum, doubtful)),
        {
            key: (eager.keys.get(key), batched.keys.get(key))
            for key in sorted((eager.keys.keys() | batched.keys.keys()) - doubts.keys)
            if eager.keys.get(key) != batched.keys.get(key)
        },
    )


def _refuse_what_is_not_empty(client: redis.Redis) -> None:
    # FLUSHALL empties all databases, not only the client's.
    if any(name.startswith("db") for name in client.info("keyspace")):
        raise CannotReplay("the server has keys: a replay needs an empty one, which it empties")
    with contextlib.suppress(redis.ResponseError):  # an old server has no functions
        if client.function_list():
            raise CannotReplay("the server has functions: a replay needs an empty one")


def _flushes_of(run: Run, left_out: list[tuple[CommandRecord, str]]) -> list[_Flush]:
    """Return what to run; note what is left out, and why."""
    ids = Ids()
    flushes: list[_Flush] = []
    for flush in run.flushes:
        steps: _Flush = []
        transaction = None
        for command in flush.commands:
            why = _why_left_out(command)
            if why is not None:
                left_out.append((command, why))
                continue
            if command.transaction is None or command.transaction != transaction:
                steps.append([])
            arguments = ids.arguments(command, flush)
            steps[-1].append(dataclasses.replace(command, arguments=arguments))
            transaction = command.transaction
        if steps:
            flushes.append(steps)
    return flushes


def _why_left_out(command: CommandRecord) -> str | None:
    args = command.arguments
    if not args:
        return "its arguments were not recorded"
    if (command.error or "").startswith("NotSent"):
        return "it was not sent"
    if traits_of(args).travel_of(args) is Travel.ALONE and command.name not in _HARMLESS:
        return "it blocks, or changes its connection or the server"
    return None


def _databases(
    client: redis.Redis, names: Sequence[str], stack: contextlib.ExitStack
) -> dict[str, redis.Redis]:
    """Return a client for each server and database of a run: of a database of one server."""
    pool = client.connection_pool
    own = int(pool.connection_kwargs.get("db") or 0)
    others = (number for number in itertools.count() if number != own)
    databases = {}
    for name, number in zip(names, itertools.chain([own], others), strict=False):
        options = {**pool.connection_kwargs, "db": number, "decode_responses": False}
        one = redis.Redis(
            connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
        )
        databases[name] = one
        stack.callback(one.connection_pool.disconnect)
        try:
            one.ping()  # connected, so that neither way pays for it
        except redis.ResponseError as error:
            raise CannotReplay(
                f"the run uses {len(names)} servers and databases, for each of which a replay "
                f"needs a database: {error}"
            ) from error
    return databases


def _measured(
    databases: dict[str, redis.Redis],
    run: Callable[[dict[str, redis.Redis], list[_Flush]], tuple[int, list[list[Any]]]],
    flushes: list[_Flush],
) -> _Way:
    started = time.perf_counter()
    any_of_them = next(iter(databases.values()))
    try:
        round_trips, replies = run(databases, flushes)
        seconds = time.perf_counter() - started
        keys = {
            (name, key): value
            for name, client in databases.items()
            for key, value in _keyspace(client)
        }
        return _Way(seconds, round_trips, replies, keys)
    finally:
        any_of_them.flushall()
        any_of_them.script_flush()
        with contextlib.suppress(redis.ResponseError):  # an old server has none
            any_of_them.function_flush()


def _run_eagerly(
    databases: dict[str, redis.Redis], flushes: list[_Flush]
) -> tuple[int, list[list[Any]]]:
    replies = [_run_step(databases[step[0].server], step) for steps in flushes for step in steps]
    return len(replies), replies


def _run_step(client: redis.Redis, step: _Step) -> list[Any]:
    if step[0].transaction is None:
        return [_reply(client.execute_command, *_called(step[0]))]
    with client.pipeline() as pipe:
        for command in step:
            pipe.execute_command(*_called(command))
        try:
            replies: list[Any] = pipe.execute(raise_on_error=False)
        except redis.ResponseError as error:  # nothing of it has run
            return [error] * len(step)
    return replies


def _run_batched(
    databases: dict[str, redis.Redis], flushes: list[_Flush]
) -> tuple[int, list[list[Any]]]:
    batching = {
        name: Redis(connection_pool=client.connection_pool) for name, client in databases.items()
    }
    round_trips = 0
    replies: list[list[Any]] = []
    for steps in flushes:
        futures: list[list[Any]] = []
        with batch(join=False, max_commands=1 << 60, max_bytes=1 << 60) as scope:
            for step in steps:
                call = batching[step[0].server].execute_command
                with batch(atomic=step[0].transaction is not None):
                    futures.append([_reply(call, *_called(command)) for command in step])
            replies += [[_reply(unwrap, future) for future in step] for step in futures]
        # What steps aside is not counted there.
        round_trips += max(1, scope.stats.round_trips)
    return round_trips, replies


def _called(command: CommandRecord) -> tuple[Any, ...]:
    """Return a command as redis-py calls it, so that its reply gets its shape."""
    args = command.arguments or ()
    words = command.name.split(" ")
    # A script's call has brought its source along, under another name.
    return args if len(words) == 1 else (command.name, *args[len(words) :])


def _reply(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except Exception as error:  # the server's, or of what redis-py makes of its reply
        return error


def _differences(
    tips: Tips, step: _Step, doubtful: list[bool], eager: list[Any], batched: list[Any]
) -> Iterator[Difference]:
    # Which error each command of a transaction has that was aborted depends on the way.
    if all(isinstance(reply, Exception) for reply in (*eager, *batched)) and len(step) > 1:
        return
    for command, doubt, one, other in zip(step, doubtful, eager, batched, strict=True):
        if not doubt and _comparable(tips, command, one) != _comparable(tips, command, other):
            yield Difference(command, one, other)


def _comparable(tips: Tips, command: CommandRecord, reply: Any) -> Any:
    if isinstance(reply, Exception):
        # In a transaction redis-py says which command it was.
        return type(reply), str(reply).partition(" of pipeline caused error: ")[2] or str(reply)
    if isinstance(reply, list):
        parts = [_comparable(tips, command, part) for part in reply]
        return sorted(parts, key=repr) if command.name in tips.unordered else parts
    return reply


def _keyspace(client: redis.Redis) -> Iterator[tuple[bytes, tuple[bytes, bool, Any]]]:
    keys: list[bytes] = sorted(client.scan_iter(count=1000))
    for key in keys:
        kind: Any = client.type(key)
        read = _READERS.get(kind, lambda client, key: client.dump(key))
        yield key, (kind, client.pttl(key) >= 0, read(client, key))


def _stream(client: redis.Redis, key: bytes) -> tuple[Any, ...]:
    groups: Any = client.xinfo_groups(key)
    about = [(one["name"], one["pending"], one["last-delivered-id"]) for one in groups]
    return client.xrange(key), sorted(about)


_READERS: dict[bytes, Callable[[redis.Redis, bytes], Any]] = {
    b"string": lambda client, key: client.get(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"stream": _stream,
}
# They travel alone, but can be run again.
_HARMLESS = frozenset({"SCRIPT LOAD", "SCRIPT FLUSH"})
