"""Scopes that tell the subscribers of `report` what their flushes did, and why.

Recording is a matter of subclasses: which class a scope is of is decided when it opens, so one
that is not recorded pays nothing for what others might want to know.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple, TypeVar

from autobatch import report
from autobatch.batch import Batch, Entry, Transaction, commands_of
from autobatch.command import IN_LIBRARY, Command, ScriptCall
from autobatch.promise import PENDING, Failure, Promise
from autobatch.report import CommandRecord, FlushRecord, Place, Reason, ScopeRecord
from autobatch.scope import MAX_BYTES, MAX_COMMANDS, OwnScope, StrayScope, current, whole_of
from autobatch.wire.tick import tick_of

T = TypeVar("T")


class _Cause(NamedTuple):
    """Why a scope is about to be flushed."""

    reason: Reason
    place: Place | None = None
    use: str | None = None
    promise: Promise | None = None
    contexts: Mapping[report.Subscription, Any] = MappingProxyType({})


class _Departure:
    """One flush whose replies are not all there."""

    def __init__(self, record: FlushRecord, commands: list[Command], batches: int) -> None:
        self.record = record
        self.commands = commands
        self.left = batches


class Recorded(OwnScope):
    """What recorded scopes have in common."""

    recorded = True
    record: ScopeRecord
    _cause: _Cause | None = None
    _ending = False

    def start(self, name: str) -> None:
        """Begin to record, under a name."""
        outer = current()
        outer_record = getattr(whole_of(outer), "record", None)
        self.record = ScopeRecord(name, None if outer_record is None else outer_record.name)
        self._called: dict[Entry, tuple[float, dict[report.Subscription, Any]]] = {}
        self._departures: dict[Batch, _Departure] = {}
        self._records: dict[Promise, CommandRecord] = {}
        self._landing = threading.Lock()

    # ---- what causes a flush -----------------------------------------------------------

    def because(self, reason: Reason) -> None:
        self._note(reason)

    def _note(self, reason: Reason, promise: Promise | None = None) -> None:
        """Note why what waits is about to be sent; what was noted first counts."""
        if self._cause is None and self._queue:
            if self._ending:
                reason = Reason.END
            place = use = None
            if reason in _CAUSED_BY_A_LINE:
                frame, use = _user(sys._getframe(2))  # noqa: SLF001  # public in all but name
                place = None if frame is None else Place.of(frame.f_code, frame.f_lasti)
                use = use if reason is Reason.FORCED else None
            self._cause = _Cause(reason, place, use, promise, report.contexts_of_call())

    def force(self, promise: Promise) -> None:
        self._note(Reason.FORCED, promise)
        super().force(promise)

    def want(self, promise: Promise) -> None:
        self._note(Reason.FORCED, promise)
        super().want(promise)

    def flush(self) -> None:
        self._note(Reason.EXPLICIT)
        super().flush()

    async def aflush(self) -> None:
        self._note(Reason.EXPLICIT)
        await super().aflush()

    def step_aside(self) -> None:
        self._note(Reason.ASIDE)
        super().step_aside()

    async def astep_aside(self) -> None:
        self._note(Reason.ASIDE)
        await super().astep_aside()

    def _overflow(self) -> None:
        self._note(Reason.LIMIT)
        super()._overflow()

    # ---- what a flush does -------------------------------------------------------------

    def add(self, command: Entry) -> None:
        self._called[command] = time.perf_counter(), report.contexts_of_call()
        super().add(command)

    def _depart(self) -> list[list[Batch]]:
        cause, self._cause = self._cause, None
        waves = super()._depart()
        if waves:
            self._begin(waves, cause or _Cause(Reason.EXPLICIT))
        return waves

    def _begin(self, waves: list[list[Batch]], cause: _Cause) -> None:
        batches = [batch for wave in waves for batch in wave]
        departing = {entry for batch in batches for entry in batch.entries}
        entries = [entry for entry in self._called if entry in departing]
        records: list[CommandRecord] = []
        transactions = 0
        for entry in entries:
            called, contexts = self._called.pop(entry)
            transaction = None
            if isinstance(entry, Transaction):
                transaction = transactions
                transactions += 1
            for command in commands_of([entry]):
                made = _record_of(command, called, contexts, transaction)
                records.append(made)
                self._records[command] = made
        if not self._queue:
            self._called.clear()  # of what was dropped
        commands = commands_of(entries)
        forced = None
        if cause.promise in commands:
            forced = commands.index(cause.promise)
        record = FlushRecord(
            self.record,
            cause.reason,
            cause.place,
            cause.use,
            forced,
            records,
            time.perf_counter(),
            round_trips=len(waves),
            contexts=cause.contexts,
        )
        self.record.flushes.append(record)
        departure = _Departure(record, commands, len(batches))
        self._departures.update(dict.fromkeys(batches, departure))

    def _exchange(self, batches: list[Batch]) -> None:
        departures = [self._departures.pop(b) for b in batches if b in self._departures]
        round_trips, exchanges = self.stats.round_trips, self.stats.exchanges
        try:
            super()._exchange(batches)
        finally:
            # The first wait of each wave is counted already.
            again = max(0, self.stats.round_trips - round_trips - 1)
            exchanges = self.stats.exchanges - exchanges
            for number, departure in enumerate(departures):
                self._land(departure, 0 if number else again, 0 if number else exchanges)

    def _hand_over(self, batch: Batch, landed: Callable[[], None] | None = None) -> bool:
        departure = self._departures.pop(batch, None) if batch.wire.asynchronous else None
        if departure is None:
            return super()._hand_over(batch, landed)
        exchanges = self.stats.exchanges

        def arrived() -> None:
            self._land(departure)
            if landed is not None:
                landed()

        handed_over = super()._hand_over(batch, arrived)
        departure.record.exchanges += self.stats.exchanges - exchanges
        return handed_over

    def _send(self) -> bool:
        try:
            return super()._send()
        except BaseException:
            # What was not sent was given up; nothing of it will land.
            for batch in [batch for batch in self._departures if not batch.entries]:
                self._land(self._departures.pop(batch))
            raise

    def _land(self, departure: _Departure, again: int = 0, exchanges: int = 0) -> None:
        record = departure.record
        with self._landing:
            record.round_trips += again
            record.exchanges += exchanges
            departure.left -= 1
            if departure.left:
                return
        record.finished = time.perf_counter()
        self.record.commands += len(record.commands)
        self.record.round_trips += record.round_trips
        for command, made in zip(departure.commands, record.commands, strict=True):
            self._records.pop(command, None)
            _see_outcome(command, made)
        report.publish(record)
        self._publish_if_over()

    def resent(self, promise: Promise) -> None:
        record = self._records.get(promise)
        if record is not None:
            record.sent += 1

    def ran_alone(self, record: FlushRecord) -> None:
        """Take over the record of a command that stepped aside."""
        self.record.flushes.append(record)
        self.record.commands += len(record.commands)
        self.record.round_trips += record.round_trips

    # ---- how it ends -------------------------------------------------------------------

    def close(self) -> list[Failure]:
        self._ending = True
        try:
            return super().close()
        finally:
            self._over()

    async def aclose(self, name: str = "a cancelled scope") -> list[Failure]:
        self._ending = True
        try:
            return await super().aclose(name)
        finally:
            self._over()

    def _over(self) -> None:
        self.record.closed = time.perf_counter()
        self._publish_if_over()

    def _publish_if_over(self) -> None:
        # What was called in the last wave of a cancelled scope may be on its way still.
        with self._landing:
            over = self.record.closed and not self._records and not self._published
            self._published = self._published or bool(over)
        if over:
            report.publish(self.record)

    _published = False

    def forked(self) -> None:
        super().forked()
        self._landing = threading.Lock()
        self._called.clear()
        self._departures.clear()
        self._records.clear()


def record_of(scope: OwnScope) -> ScopeRecord | None:
    """Return the record of a scope, if it is recorded."""
    return scope.record if isinstance(scope, Recorded) else None


class RecordedScope(Recorded):
    """A scope with a queue of its own, recorded."""


class RecordedStrayScope(Recorded, StrayScope):
    """What asyncio clients are called for outside any scope, recorded."""

    def want(self, promise: Promise) -> None:
        self._note(Reason.TICK)
        StrayScope.want(self, promise)


_CAUSED_BY_A_LINE = {Reason.FORCED, Reason.ASIDE, Reason.EXPLICIT}


def own_scope(
    naming: Callable[[T], str],
    about: T,
    max_commands: int = MAX_COMMANDS,
    max_bytes: int = MAX_BYTES,
    lane: int | None = None,
    *,
    recorded: bool = False,
) -> OwnScope:
    """Return a new scope with a queue of its own, recorded if somebody listens.

    Args:
        naming: gives its name, if that is needed.
        about: what that is called with.
        max_commands: how many commands may wait.
        max_bytes: how many bytes may wait.
        lane: which of an asyncio client's connections it travels on; None for the next one.
        recorded: record it, whoever listens.
    """
    if not (recorded or report.listening):
        return OwnScope(max_commands, max_bytes, lane)
    scope = RecordedScope(max_commands, max_bytes, lane)
    scope.start(naming(about))
    return scope


def stray_scope(loop: asyncio.AbstractEventLoop) -> StrayScope:
    """Return the scope of what is called outside any scope in a loop."""
    tick = tick_of(loop)
    stray: StrayScope | None = tick.stray
    if stray is None or stray.recorded is not report.listening:
        if stray is not None:
            stray.dispatch()  # what waits in it comes first
        stray = tick.stray = _new_stray(loop)
    return stray


def _new_stray(loop: asyncio.AbstractEventLoop) -> StrayScope:
    if not report.listening:
        return StrayScope(loop)
    recorded = RecordedStrayScope(loop)
    recorded.start("outside any scope")
    return recorded


_OUTSIDE = ScopeRecord("outside any scope")


def ran_alone(commands: Sequence[Command], began: float, *, through_redis_py: bool = False) -> None:
    """Tell of commands that did not wait, but ran by themselves, all at once.

    Args:
        commands: settled.
        began: when that was, in seconds of `time.perf_counter()`.
        through_redis_py: as in `FlushRecord`.
    """
    contexts = report.contexts_of_call()
    frame, _ = _user(sys._getframe(1))  # noqa: SLF001  # public in all but name
    place = None if frame is None else Place.of(frame.f_code, frame.f_lasti)
    scope = whole_of(current())
    inside = isinstance(scope, Recorded) and not scope.closed
    of_scope = scope.record if inside else _OUTSIDE
    records = [_record_of(command, began, contexts, None) for command in commands]
    for command, made in zip(commands, records, strict=True):
        made.place = made.place or place
        _see_outcome(command, made)
    exchanges = len({made.server for made in records})
    record = FlushRecord(
        of_scope,
        Reason.ALONE,
        place,
        None,
        None,
        records,
        began,
        time.perf_counter(),
        exchanges=exchanges,
        contexts=contexts,
        through_redis_py=through_redis_py,
    )
    if inside:
        scope.ran_alone(record)
    report.publish(record)


def _record_of(
    command: Command,
    called: float,
    contexts: dict[report.Subscription, Any],
    transaction: int | None,
) -> CommandRecord:
    code = command.code
    name = command.traits.name
    key = command.describe()[len(name) + 1 :]
    return CommandRecord(
        name,
        key or None,
        None if code is None else Place.of(code, command.instruction),
        called,
        len(command.packed),
        _name_of_server(command.wire.server),
        command.read_only,
        transaction,
        contexts=contexts,
        arguments=_arguments_of(command) if report.wants_arguments() else None,
    )


def _arguments_of(command: Command) -> tuple[Any, ...]:
    return command.with_source() if isinstance(command, ScriptCall) else command.args


@functools.lru_cache(1024)
def _name_of_server(server: Any) -> str:
    if server[0] == "cluster":
        return str(server[1])
    *address, database = server
    if len(address) == 1:  # a Unix socket
        return f"{address[0]}/{database}"
    return f"{address[0]}:{address[1]}/{database}"


def _see_outcome(command: Command, record: CommandRecord) -> None:
    outcome = command.outcome
    if outcome is PENDING:
        record.error = "not settled"
    elif type(outcome) is Failure:
        record.error_type = type(outcome.error)
        record.error = f"{record.error_type.__name__}: {outcome.text}"


def _user(frame: FrameType | None) -> tuple[FrameType | None, str]:
    """Return the frame of the program that needs a value, and what for.

    The innermost frame of a library that the program called tells what for. There is none of the
    program where an event loop itself drives a Future.
    """
    inner = None
    while frame is not None and IN_LIBRARY[frame.f_code.co_filename]:
        inner, frame = frame, frame.f_back
    if frame is not None and frame.f_code.co_filename == asyncio.events.__file__:
        frame = None
    return frame, _use_of(inner)


def _use_of(frame: FrameType | None) -> str:
    if frame is None:
        return "value"
    name = frame.f_code.co_name
    if name == "forward":  # of the table in future.py
        operation = frame.f_locals.get("operation")
        return str(getattr(operation, "__name__", "value"))
    return _USES.get(name, "argument" if "redis" in frame.f_globals["__name__"] else "value")


# By the function of the library that the program called.
_USES = {
    "__await__": "await",
    "send": "await",
    "execute_command": "argument",
    "exception": "exception",
    "__str__": "str",
    "__class__": "class",
    "__getattr__": "attribute",
    "__radd__": "add",
}
