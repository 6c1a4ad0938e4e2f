"""Scopes that tell the subscribers of `report` what their flushes did, and why.

Recording is a matter of subclasses: which class a scope is of is decided when it opens, so one
that is not recorded pays nothing for what others might want to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from autobatch import report, suggesting, switch
from autobatch.ambient import Scope, current, whole_of
from autobatch.batch import Batch, Entry, Transaction, commands_of
from autobatch.block import AtomicBlock
from autobatch.command import Command, ScriptCall, Travel
from autobatch.frames import NO_EDGE, Line, edge_around, lines_of, of_program, places_of, user_of
from autobatch.journeys import give_up
from autobatch.promise import PENDING, Failure, Promise, printable
from autobatch.report import CommandRecord, FlushRecord, Force, Place, Reason, ScopeRecord
from autobatch.scope import MAX_BYTES, MAX_COMMANDS, OwnScope, StrayScope
from autobatch.suggesting import SuggestingScope, suggesting_now
from autobatch.wire.tick import tick_of

T = TypeVar("T")


class _Call(NamedTuple):
    """When and from where a command was called."""

    when: float
    contexts: dict[report.Subscription, Any]
    lines: tuple[Line, ...]


class _Need(NamedTuple):
    """A value that was needed, and where."""

    promise: Promise
    use: str
    lines: tuple[Line, ...]


class _Cause(NamedTuple):
    """Why a scope is about to be flushed."""

    reason: Reason
    lines: tuple[Line, ...] = ()
    use: str | None = None
    promise: Promise | None = None
    contexts: Mapping[report.Subscription, Any] | None = None
    """What subscribers keep of it; None where it departs in the same context."""

    @property
    def place(self) -> Place | None:
        return Place.of(*self.lines[0]) if self.lines else None


class _Share(NamedTuple):
    """What one scope that only suggests has called of a flush."""

    scope: SuggestingScope
    record: FlushRecord
    commands: list[Command]


class _Departure:
    """One flush whose replies are not all there."""

    def __init__(self, record: FlushRecord, commands: list[Command], batches: int) -> None:
        self.record = record
        self.commands = commands
        self.left = batches
        # What scopes that only suggest have a share in.
        self.shares: list[_Share] = []


class Recorded(OwnScope):
    """What recorded scopes have in common."""

    recorded = True
    record: ScopeRecord
    _cause: _Cause | None = None
    _divided = False
    _ending = False

    def start(self, name: str) -> None:
        """Begin to record, under a name."""
        self.record = _new_record(name)
        self.edge = edge_around(sys._getframe(1))  # noqa: SLF001  # public in all but name
        # Threads may share a scope, so what is iterated here is copied first, in one step.
        self._called: dict[Entry, _Call] = {}
        self._departures: dict[Batch, _Departure] = {}
        self._records: dict[Promise, CommandRecord] = {}
        self._causes: dict[int, _Cause] = {}
        self._needs: list[_Need] = []
        self._landing = threading.Lock()

    # ---- what causes a flush -----------------------------------------------------------

    def because(self, reason: Reason) -> None:
        self._divide()
        self._note(reason)

    def _divide(self) -> None:
        """Note that what waits now would leave, also if nothing does."""
        self._divided = self._divided or not self._queue

    def _note(self, reason: Reason) -> None:
        """Note why what waits is about to be sent; what was noted first counts."""
        if self._cause is None and self._queue:
            self._cause = self._deferred(self._caused_by(reason))

    @staticmethod
    def _deferred(cause: _Cause) -> _Cause:
        """Keep with a cause what only its own context tells: another one may see to the flush."""
        return cause._replace(contexts=report.contexts_of_call())

    def _caused_by(self, reason: Reason, promise: Promise | None = None) -> _Cause:
        if self._ending:
            return _Cause(Reason.END)
        if reason not in _CAUSED_BY_A_LINE:
            return _Cause(reason)
        frame, use = user_of(sys._getframe(1))  # noqa: SLF001  # public in all but name
        lines = lines_of(frame, self.edge)
        return _Cause(reason, lines, use if reason is Reason.FORCED else None, promise)

    @contextlib.contextmanager
    def _causing(self, cause: _Cause) -> Iterator[None]:
        """Note why this thread flushes in the `with` block, as often as it does.

        Functions given to map() may call commands, which leave in further flushes.
        """
        thread = threading.get_ident()
        outer = self._causes.get(thread)
        need = None
        if cause.promise is not None:
            need = _Need(cause.promise, cause.use or "value", cause.lines)
            self._needs.append(need)
        if outer is None or need is not None:
            self._causes[thread] = cause
        try:
            yield
        finally:
            if outer is None:
                self._causes.pop(thread, None)
            else:
                self._causes[thread] = outer
            if need is not None:
                with contextlib.suppress(ValueError):  # a flush has taken it, of any thread
                    self._needs.remove(need)

    def force(self, promise: Promise) -> None:
        if promise.asynchronous:
            super().force(promise)  # which raises
        with self._causing(self._caused_by(Reason.FORCED, promise)):
            super().force(promise)

    def want(self, promise: Promise) -> None:
        if self._queue:
            cause = self._caused_by(Reason.FORCED, promise)
            if not cause.lines:  # an event loop does
                cause = cause._replace(use="await")
            self._cause = self._cause or self._deferred(cause)
            self._needs.append(_Need(promise, cause.use or "await", cause.lines))
        super().want(promise)

    def flush(self) -> None:
        self._divide()
        with self._causing(self._caused_by(Reason.EXPLICIT)):
            super().flush()

    async def aflush(self) -> None:
        self._divide()
        self._note(Reason.EXPLICIT)
        await super().aflush()

    def step_aside(self) -> None:
        self._divide()
        with self._causing(self._caused_by(Reason.ASIDE)):
            super().step_aside()

    async def astep_aside(self) -> None:
        self._divide()
        self._note(Reason.ASIDE)
        await super().astep_aside()

    def _overflow(self) -> None:
        reason = Reason.LIMIT if switch.batching else Reason.ALONE
        with self._causing(self._caused_by(reason)):
            super()._overflow()

    # ---- what a flush does -------------------------------------------------------------

    def add(self, command: Entry) -> None:
        self.note_call(command)
        super().add(command)

    def note_call(self, command: Entry) -> None:
        """Note when and from where something was called."""
        if command not in self._called:
            lines = lines_of(sys._getframe(1), self.edge)  # noqa: SLF001  # public in all but name
            self._called[command] = _Call(time.perf_counter(), report.contexts_of_call(), lines)

    def _depart(self) -> list[list[Batch]]:
        noted, self._cause = self._cause, None
        waves = super()._depart()
        if waves:
            cause = noted or self._causes.get(threading.get_ident())
            try:
                self._begin(waves, cause or _Cause(Reason.EXPLICIT))
            except Exception:  # what is sent and settled does not depend on it
                report.logger.exception("a flush could not be recorded")
            except BaseException as error:  # nobody else knows of what was taken away
                give_up(waves, error)
                raise
        return waves

    def _begin(self, waves: list[list[Batch]], cause: _Cause) -> None:
        batches = [batch for wave in waves for batch in wave]
        departing = {entry for batch in batches for entry in batch.entries}
        entries = [entry for entry in list(self._called) if entry in departing]
        records: list[CommandRecord] = []
        transactions = 0
        lines: tuple[Line, ...] = ()
        callers: tuple[Place, ...] = ()
        for entry in entries:
            at_end = self._called.pop(entry)
            transaction = None
            if isinstance(entry, Transaction):
                transaction = transactions
                transactions += 1
            for command in entry.commands if isinstance(entry, Transaction) else [entry]:
                call = self._called.pop(command, at_end)
                if call.lines[1:] != lines:
                    lines = call.lines[1:]
                    callers = places_of(lines)
                made = _record_of(command, call.when, call.contexts, transaction, callers)
                records.append(made)
        commands = commands_of(entries)
        numbers: dict[Promise, int] = {one: number for number, one in enumerate(commands)}
        record = FlushRecord(
            self.record,
            cause.reason,
            cause.place,
            cause.use,
            None if cause.promise is None else numbers.get(cause.promise.root()),
            records,
            time.perf_counter(),
            round_trips=len(waves),
            forces=self._take_needs(numbers),
            divided=self._divided,
            contexts=report.contexts_of_call() if cause.contexts is None else cause.contexts,
        )
        self._divided = False
        self.record.flushes.append(record)
        departure = _Departure(record, commands, len(batches))
        self._records.update(zip(commands, records, strict=True))
        self._departures.update(dict.fromkeys(batches, departure))
        self._forget_dropped()

    def _forget_dropped(self) -> None:
        if len(self._called) > len(self._queue):
            for entry in list(self._called):
                if all(command.outcome is not PENDING for command in commands_of([entry])):
                    self._called.pop(entry, None)

    def _take_needs(self, numbers: dict[Promise, int]) -> list[Force]:
        needs, self._needs = self._needs, []
        forces = []
        for promise, use, lines in needs:
            places = places_of(lines)
            number = numbers.get(promise.root())
            forces.append(Force(places[0] if places else None, use, number, places[1:]))
        return forces

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

    def _hand_over(self, batch: Batch, landed: Callable[[], None] | None = None) -> None:
        departure = self._departures.pop(batch, None)
        if departure is None:
            super()._hand_over(batch, landed)
            return
        exchanges = self.stats.exchanges

        def arrived() -> None:
            self._land(departure)
            if landed is not None:
                landed()

        super()._hand_over(batch, arrived)
        departure.record.exchanges += self.stats.exchanges - exchanges

    def _send(self) -> bool:
        try:
            return super()._send()
        except BaseException:
            # What was not sent was given up; nothing of it will land.
            for batch in [batch for batch in list(self._departures) if not batch.entries]:
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
        with self._landing:
            self.record.count(record)
        for command, made in zip(departure.commands, record.commands, strict=True):
            self._records.pop(command, None)
            _see_outcome(command, made)
        for share in departure.shares:
            share.record.finished = record.finished
            for command, made in zip(share.commands, share.record.commands, strict=True):
                share.scope.settled(command, made)
        report.publish(record)
        self._publish_if_over()

    def resent(self, promise: Promise) -> None:
        record = self._records.get(promise)
        if record is not None:
            record.sent += 1

    def ran_alone(self, record: FlushRecord) -> None:
        """Take over the record of a command that stepped aside."""
        with self._landing:
            self.record.add(record)

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
            if self._abandoned is None:
                self._over()

    def _tell_abandoned(self) -> None:
        super()._tell_abandoned()
        # Nobody waits for its end, but there is one.
        if self._abandoned is not None and not self.busy:
            self._over()

    def _over(self) -> None:
        self.record.closed = self.record.closed or time.perf_counter()
        self._forget_dropped()
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
        self._causes.clear()
        self._needs.clear()
        self._cause = None


def record_of(scope: OwnScope) -> ScopeRecord | None:
    """Return the record of a scope, if it is recorded."""
    return scope.record if isinstance(scope, (Recorded, SuggestingScope)) else None


class RecordedScope(Recorded):
    """A scope with a queue of its own, recorded."""


class RecordedStrayScope(Recorded, StrayScope):
    """What asyncio clients are called for outside any scope, recorded."""

    def start(self, name: str) -> None:
        super().start(name)
        self.edge = NO_EDGE
        self._suggesting: dict[Entry, SuggestingScope] = {}

    def note_call(self, command: Entry) -> None:
        scope = suggesting_now()
        if scope is None:
            super().note_call(command)
        else:
            self._suggesting[command] = scope
            lines = lines_of(sys._getframe(1), scope.edge)  # noqa: SLF001  # public in all but name
            self._called[command] = _Call(time.perf_counter(), report.contexts_of_call(), lines)

    def _begin(self, waves: list[list[Batch]], cause: _Cause) -> None:
        super()._begin(waves, cause)
        if self._suggesting:
            self._share(self._departures[waves[0][0]])

    def _share(self, departure: _Departure) -> None:
        """Tell the scopes that only suggest of their share in a flush."""
        suggesting, self._suggesting = self._suggesting, {}
        shares: dict[SuggestingScope, _Share] = {}
        for command, made in zip(departure.commands, departure.record.commands, strict=True):
            scope = suggesting.get(command)
            if scope is not None:
                if scope not in shares:
                    started = departure.record.started
                    flush = FlushRecord(
                        scope.record, Reason.EAGER, made.place, None, None, [], started, exchanges=1
                    )
                    shares[scope] = _Share(scope, flush, [])
                shares[scope].record.commands.append(made)
                shares[scope].commands.append(command)
        departure.shares = list(shares.values())
        for scope, flush, commands in departure.shares:
            scope.take(flush, commands)

    def want(self, promise: Promise) -> None:
        self._note(Reason.TICK)
        StrayScope.want(self, promise)


class RecordedAtomicBlock(AtomicBlock):
    """An atomic block of a recorded scope: its commands are noted when they are called."""

    def add(self, command: Entry) -> None:
        whole_of(self).note_call(command)
        super().add(command)


_CAUSED_BY_A_LINE = {Reason.FORCED, Reason.ASIDE, Reason.EXPLICIT}


def own_scope(
    naming: Callable[[T], str],
    about: T,
    max_commands: int = MAX_COMMANDS,
    max_bytes: int = MAX_BYTES,
    lane: int | None = None,
    *,
    suggest: bool | None = None,
    recorded: bool = False,
) -> OwnScope:
    """Return a new scope with a queue of its own, recorded if somebody listens.

    Args:
        naming: gives its name, if that is needed.
        about: what that is called with.
        max_commands: how many commands may wait.
        max_bytes: how many bytes may wait.
        lane: which of an asyncio client's connections it travels on; None for the next one.
        suggest: only suggest what batching would save; None as the environment says.
        recorded: record it, whoever listens.
    """
    if suggesting.by_default if suggest is None else suggest:
        return _suggesting_scope(naming(about), max_commands, max_bytes, lane)
    if not (recorded or report.listening):
        return OwnScope(max_commands, max_bytes, lane)
    scope = RecordedScope(max_commands, max_bytes, lane)
    scope.start(naming(about))
    return scope


def _suggesting_scope(name: str, *options: Any) -> SuggestingScope:
    scope = SuggestingScope(*options)
    edge = edge_around(sys._getframe(1))  # noqa: SLF001  # public in all but name
    scope.start(_new_record(name), edge)
    return scope


def _new_record(name: str) -> ScopeRecord:
    outer = getattr(whole_of(current()), "record", None)
    return ScopeRecord(name, None if outer is None else outer.name)


def atomic_block(parent: Scope) -> AtomicBlock:
    """Return a new atomic block of a scope, recorded if that is."""
    kind = RecordedAtomicBlock if isinstance(whole_of(parent), Recorded) else AtomicBlock
    return kind(parent)


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
    """Tell whoever listens of commands that did not wait, but ran by themselves, all at once.

    Args:
        commands: settled.
        began: when that was, in seconds of `time.perf_counter()`.
        through_redis_py: as in `FlushRecord`.
    """
    scope: Any = whole_of(current())
    eager = suggesting_now()
    if eager is None and not (isinstance(scope, Recorded) and not scope.closed):
        if not report.listening:
            return
        scope = None
    contexts = report.contexts_of_call()
    frame, _ = user_of(sys._getframe(1))  # noqa: SLF001  # public in all but name
    places = places_of(lines_of(frame, NO_EDGE if scope is None else scope.edge))
    place = places[0] if places else None
    records = [_record_of(command, began, contexts, None, places[1:]) for command in commands]
    for command, made in zip(commands, records, strict=True):
        made.place = made.place or place
        _see_outcome(command, made)
    exchanges = len({made.server for made in records})
    record = FlushRecord(
        _OUTSIDE if scope is None else scope.record,
        Reason.EAGER if eager is not None and all(map(_could_wait, commands)) else Reason.ALONE,
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
    if eager is not None:
        eager.take(record, list(commands))
        for command, made in zip(commands, records, strict=True):
            eager.settled(command, made)
    elif scope is not None:
        scope.ran_alone(record)
    report.publish(record)


def _could_wait(command: Command) -> bool:
    return command.traits.travel_of(command.args) is Travel.BATCHED


def _record_of(
    command: Command,
    called: float,
    contexts: dict[report.Subscription, Any],
    transaction: int | None,
    callers: tuple[Place, ...] = (),
) -> CommandRecord:
    code = command.code
    name = command.traits.name
    key = command.describe()[len(name) + 1 :]
    return CommandRecord(
        name,
        key or None,
        None
        if code is None or not of_program(code.co_filename)
        else Place.of(code, command.instruction),
        called,
        len(command.packed),
        _name_of_server(command.wire.server),
        command.read_only,
        transaction,
        contexts=contexts,
        callers=callers,
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
        record.error = printable(f"{record.error_type.__name__}: {outcome.text}")
