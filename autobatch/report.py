"""What flushes did and why: counts for everybody, records for those who subscribe.

Nothing is recorded unless somebody has subscribed when a scope opens: a scope that is not recorded
runs no code of this.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sized
from types import CodeType, TracebackType
from typing import Any, Self

logger = logging.getLogger("autobatch.report")


class Stats:
    """Counts of one scope.

    Attributes:
        flushes: how often something was sent.
        round_trips: how often the program waited for the network. A flush over several servers
            writes to all before it reads from any: one.
        exchanges: the writes with the reading of their replies, on all connections.
    """

    __slots__ = ("_taken", "_waiting", "exchanges", "flushes", "round_trips")

    def __init__(self, waiting: Sized) -> None:
        self._waiting = waiting
        self._taken = 0
        self.flushes = 0
        self.round_trips = 0
        self.exchanges = 0

    @property
    def commands(self) -> int:
        """The commands that were called, those of a finished atomic block included."""
        return self._taken + len(self._waiting)

    def took(self, commands: int) -> None:
        """Count commands that do not wait any more."""
        self._taken += commands

    def __repr__(self) -> str:
        return (
            f"Stats(commands={self.commands}, flushes={self.flushes}, "
            f"round_trips={self.round_trips}, exchanges={self.exchanges})"
        )


class Reason(enum.StrEnum):
    """Why a batch left."""

    FORCED = "forced"
    """A value was needed."""
    END = "end"
    """The scope ended."""
    LIMIT = "limit"
    """As many commands waited, or bytes, as may."""
    RESPONSE = "response"
    """A response started, or a chunk of it, or a WebSocket's message was to be sent or awaited."""
    ASIDE = "stepped aside"
    """Something came that goes another way, and has to come after what waits."""
    EXPLICIT = "explicit"
    """The program has said `flush()`."""
    TICK = "tick"
    """Outside any scope, the tick of the event loop ended."""
    ALONE = "alone"
    """A command that cannot wait: it stepped aside, was called outside any scope, or batching is
    turned off."""
    EAGER = "eager"
    """It could have waited, but batching is only suggested."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A line of the program.

    Attributes:
        file: the path of the source.
        line: in it, from 1.
        function: the qualified name of what the line is in.
        span: the column, the last line and its last column of what was called there, as `ast`
            counts them; None if that is not known.
    """

    file: str
    line: int
    function: str
    span: tuple[int, int, int] | None = dataclasses.field(default=None, repr=False)

    @staticmethod
    def of(code: CodeType, instruction: int) -> Place:
        """Return where an instruction of some code comes from."""
        key = id(code), instruction  # its hash would be one of all that it consists of
        known = _places.get(key)
        if known is None:
            if len(_places) >= _KNOWN_PLACES:
                _places.clear()
            known = _places[key] = code, _place_of(code, instruction)
        return known[1]

    def __str__(self) -> str:
        return f"{shortened(self.file)}:{self.line}"


# With the code itself, so that no other code can have its id meanwhile.
_places: dict[tuple[int, int], tuple[CodeType, Place]] = {}
_KNOWN_PLACES = 4096


def _place_of(code: CodeType, instruction: int) -> Place:
    start, end, column, last_column = next(
        itertools.islice(code.co_positions(), instruction // 2, None)
    )
    span = None
    if end is not None and column is not None and last_column is not None:
        span = column, end, last_column
    return Place(code.co_filename, start or code.co_firstlineno, code.co_qualname, span)


def shortened(file: str) -> str:
    """Return a path from the working directory on, if it is in there."""
    try:
        here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118  # of strings, and often
    except OSError:  # it is gone, or may not be looked at
        return file
    return file.removeprefix(here)


def counted(number: int, what: str) -> str:
    """Return a number with what it counts, as in "2 commands"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclasses.dataclass(slots=True)
class CommandRecord:
    """One command of a flush.

    Attributes:
        name: in upper case, a subcommand after one space.
        key: its key, shortened, if it has one first. Values are never recorded.
        place: the line that called it; None if no line of the program did.
        called: when, in seconds of `time.perf_counter()`.
        size: of its request, in bytes.
        server: where it went, as "host:port/database" or a path.
        read_only: it changes nothing.
        transaction: which of the flush's transactions it is a part of, from 0; None: of none.
        sent: how often it was sent; more than 1 if it had to be sent again.
        error: what it failed with, without what may be secret; None if it has a value.
        error_type: the class of that.
        contexts: what `on_call` of each subscription returned when it was called.
        callers: the lines that led to `place`, the nearest first; a few of them.
        needs: those whose values were passed to it, as far as that was seen: where batching is
            only suggested.
        arguments: all of it, if a subscription asked for that; a registered script's source stands
            in place of its digest.
    """

    name: str
    key: str | None
    place: Place | None
    called: float
    size: int
    server: str
    read_only: bool
    transaction: int | None = None
    sent: int = 1
    error: str | None = None
    error_type: type[BaseException] | None = None
    contexts: dict[Subscription, Any] = dataclasses.field(default_factory=dict, repr=False)
    callers: tuple[Place, ...] = dataclasses.field(default=(), repr=False)
    needs: tuple[CommandRecord, ...] = dataclasses.field(default=(), repr=False)
    arguments: tuple[Any, ...] | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        return self.name if self.key is None else f"{self.name} {self.key}"


@dataclasses.dataclass(frozen=True, slots=True)
class Force:
    """A need of a value that was not there.

    Attributes:
        place: the line that needed it; None if an event loop did.
        use: what for, as in `FlushRecord`.
        command: the place in the flush's `commands` of what was needed; None if that is not one
            of them.
        callers: the lines that led to `place`, the nearest first; a few of them.
    """

    place: Place | None
    use: str
    command: int | None
    callers: tuple[Place, ...] = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(slots=True)
class FlushRecord:
    """What one flush did, and why.

    Attributes:
        scope: whose it is.
        reason: why it happened.
        place: the line that forced it, or made it step aside, or asked for it; None otherwise.
        use: for FORCED, what needed the value: "await", "argument", the name of an operation such
            as "bool", "eq" or "iter", or "value" for anything else; None for other reasons.
        forced: the place in `commands` of what was forced; None if that is not one of them.
        commands: in the order in which they were called.
        started, finished: when it began and when the last reply was there, in seconds of
            `time.perf_counter()`; `finished` is 0 until then.
        round_trips: how often the program waited for the network.
        exchanges: the writes with the reading of their replies, on all connections.
        forces: what needed values by then. With asyncio these may be several: each task that
            awaits one in the same tick.
        divided: whether something that sends what waits, such as `flush()`, came between the
            flush before and the first of these commands.
        contexts: what `on_call` of each subscription returned when the flush was caused.
        through_redis_py: it went through redis-py's own `execute_command`, where other libraries
            may have seen it.
    """

    scope: ScopeRecord = dataclasses.field(repr=False)
    reason: Reason
    place: Place | None
    use: str | None
    forced: int | None
    commands: list[CommandRecord]
    started: float
    finished: float = 0.0
    round_trips: int = 1
    exchanges: int = 0
    forces: list[Force] = dataclasses.field(default_factory=list, repr=False)
    divided: bool = dataclasses.field(default=False, repr=False)
    contexts: Mapping[Subscription, Any] = dataclasses.field(default_factory=dict, repr=False)
    through_redis_py: bool = False

    @property
    def size(self) -> int:
        """The bytes of all requests."""
        return sum(command.size for command in self.commands)

    @property
    def queued(self) -> float:
        """How many seconds the first of the commands has waited."""
        return self.started - self.commands[0].called

    @property
    def duration(self) -> float:
        """The seconds from the first write to the last reply; 0 until that is there."""
        return self.finished - self.started if self.finished else 0.0

    @property
    def saved(self) -> int:
        """How many round trips were saved, against one for each command."""
        return len(self.commands) - self.round_trips

    @property
    def retries(self) -> int:
        """How often a command was sent again."""
        return sum(command.sent - 1 for command in self.commands)

    @property
    def errors(self) -> list[CommandRecord]:
        """The commands that failed."""
        return [command for command in self.commands if command.error is not None]

    def __str__(self) -> str:
        why = str(self.reason) if self.place is None else f"{self.reason} by {self.place}"
        shown = ", ".join(map(str, self.commands[:_SHOWN]))
        if len(self.commands) > _SHOWN:
            shown += f", and {len(self.commands) - _SHOWN} more"
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return (
            f"{self.scope.name}: {counted(len(self.commands), 'command')} in "
            f"{counted(self.round_trips, 'round trip')}, "
            f"{1000 * self.duration:.1f} ms, {why}{failed}: {shown}"
        )


class _LastFlushes(collections.deque[FlushRecord]):
    """Forgets the first ones for the sake of memory: a scope may have a million commands."""

    _commands = 0  # at least so many are kept

    def append(self, flush: FlushRecord) -> None:
        super().append(flush)
        self._commands += len(flush.commands)
        if self._commands > _KEPT_COMMANDS:
            self._commands = sum(len(one.commands) for one in list(self))
            while self._commands > _KEPT_COMMANDS and len(self) > 1:
                self._commands -= len(self.popleft().commands)


@dataclasses.dataclass(slots=True)
class ScopeRecord:
    """One scope, with what its flushes did.

    Attributes:
        name: the request, as in "GET /users", the decorated function, or the line of a `with`.
        parent: the name of the scope around it, if it has one.
        opened, closed: when, in seconds of `time.perf_counter()`; `closed` is 0 while it is open.
        at: when it was opened, in seconds of `time.time()`.
        flushes: the last thousand of them, in order; fewer if these have very many commands.
        commands, round_trips: of all its flushes.
        number: another one for each scope of a process.
    """

    name: str
    parent: str | None = None
    opened: float = dataclasses.field(default_factory=time.perf_counter)
    closed: float = 0.0
    at: float = dataclasses.field(default_factory=time.time)
    flushes: collections.deque[FlushRecord] = dataclasses.field(
        default_factory=lambda: _LastFlushes(maxlen=_KEPT)
    )
    commands: int = 0
    round_trips: int = 0
    number: int = dataclasses.field(default_factory=itertools.count(1).__next__)

    def add(self, flush: FlushRecord) -> None:
        """Count a flush that has ended, and keep it."""
        self.flushes.append(flush)
        self.count(flush)

    def count(self, flush: FlushRecord) -> None:
        """Count a flush that has ended."""
        self.commands += len(flush.commands)
        self.round_trips += flush.round_trips

    @property
    def duration(self) -> float:
        """How many seconds it was open."""
        return self.closed - self.opened

    @property
    def saved(self) -> int:
        """How many round trips were saved, against one for each command."""
        return self.commands - self.round_trips


def server_timing(scope: ScopeRecord) -> str:
    """Return what a response's `Server-Timing` header tells of a scope up to now.

    Source of the form: https://www.w3.org/TR/server-timing/.
    """
    # One may be on its way: of another thread, or of a task that was not awaited.
    flushes = [flush for flush in list(scope.flushes) if flush.finished]
    milliseconds = 1000 * sum(flush.duration for flush in flushes)
    commands = counted(sum(len(flush.commands) for flush in flushes), "command")
    round_trips = counted(sum(flush.round_trips for flush in flushes), "round trip")
    return f'redis;dur={milliseconds:.2f};desc="{commands}, {round_trips}"'


class Subscription:
    """Somebody who hears of flushes, until `cancel()`, or until the end of a `with` block."""

    def __init__(
        self,
        on_flush: Callable[[FlushRecord], object] | None,
        on_scope: Callable[[ScopeRecord], object] | None,
        on_call: Callable[[], Any] | None,
        *,
        arguments: bool,
    ) -> None:
        self.on_flush = on_flush
        self.on_scope = on_scope
        self.on_call = on_call
        self.arguments = arguments

    def cancel(self) -> None:
        """Hear of nothing any more."""
        _change(lambda before: tuple(one for one in before if one is not self))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.cancel()


# Both are replaced as a whole. `listening` is what the hot paths ask.
subscriptions: tuple[Subscription, ...] = ()
listening = False
_changing = threading.RLock()


def _change(change: Callable[[tuple[Subscription, ...]], tuple[Subscription, ...]]) -> None:
    global subscriptions, listening  # noqa: PLW0603  # read by everybody, written here alone
    with _changing:
        while True:
            before = subscriptions
            after = change(before)
            heard = bool(after)
            # The garbage collector may have ended one in between, in this very thread.
            if subscriptions is before:
                subscriptions = after
                listening = heard
                return


def _after_fork() -> None:
    global _changing  # noqa: PLW0603  # a thread that is not here any more may have held it
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def subscribe(
    on_flush: Callable[[FlushRecord], object] | None = None,
    *,
    on_scope: Callable[[ScopeRecord], object] | None = None,
    on_call: Callable[[], Any] | None = None,
    arguments: bool = False,
) -> Subscription:
    """Hear of the flushes of all scopes that are opened from now on.

    What is subscribed is called where the flush ends: in the thread that waited for it, or in the
    event loop. It should be quick. If it raises, that is logged, by the logger
    `autobatch.report`, and changes nothing.

    Args:
        on_flush: called with the record of each flush when its last reply is there.
        on_scope: called with the record of each scope when it has ended and all is settled.
        on_call: called when a command is called in such a scope, and when something causes a
            flush. What it returns is kept in the `contexts` of the records, under the subscription.
        arguments: keep the arguments of commands, values included, in `CommandRecord.arguments`.

    Returns:
        The subscription, which can be cancelled; it is a context manager, too.

    Raises:
        TypeError: nothing was given that could be called.
    """
    given = [one for one in (on_flush, on_scope, on_call) if one is not None]
    if not given or not all(map(callable, given)):
        raise TypeError("subscribe() takes what to call with each record, such as print")
    subscription = Subscription(on_flush, on_scope, on_call, arguments=arguments)
    _change(lambda before: (*before, subscription))
    return subscription


def publish(record: FlushRecord | ScopeRecord) -> None:
    """Tell the subscribers of what has happened."""
    for one in subscriptions:
        call: Any = one.on_flush if isinstance(record, FlushRecord) else one.on_scope
        if call is not None:
            try:
                call(record)
            except Exception:
                logger.exception("a subscriber failed")


def contexts_of_call() -> dict[Subscription, Any]:
    """Return what the subscribers want to keep with a command that is called now."""
    contexts = {}
    for one in subscriptions:
        if one.on_call is not None:
            try:
                contexts[one] = one.on_call()
            except Exception:
                logger.exception("a subscriber failed")
    return contexts


def wants_arguments() -> bool:
    """Return whether a subscriber wants the arguments of commands."""
    return any(one.arguments for one in subscriptions)


def log(record: FlushRecord) -> None:
    """Log a flush at level DEBUG, by the logger `autobatch.report`: `subscribe(log)`."""
    logger.debug("%s", record)


class Ring:
    """The records of the last flushes, for as long as it is subscribed."""

    def __init__(self, limit: int = 100) -> None:
        """Start to keep the last `limit` records."""
        self._records: collections.deque[FlushRecord] = collections.deque(maxlen=limit)
        self._subscription = subscribe(self._records.append)

    def records(self) -> list[FlushRecord]:
        """Return them, the oldest first."""
        return list(self._records)

    def cancel(self) -> None:
        """Keep what is there, and hear of nothing any more."""
        self._subscription.cancel()


_SHOWN = 10
_KEPT = 1000
_KEPT_COMMANDS = 50_000
