"""Scopes: who owns the commands that wait, and when they leave.

When does a batch flush?

A scope collects the commands of every client that is called inside it. They leave together when
the first of their values is needed: a Future forces its scope, not itself alone. So a program
that calls first and looks later pays one round trip, however many functions it is made of. They
leave at the latest when the scope ends; before that when a command has to step aside (it blocks,
or changes its connection), when a limit is reached, or when `flush` is called. A middleware adds
the start of the response, each chunk of its body, and each message of a WebSocket.

A flush takes the queue away before it does any I/O, so each command is sent by one flush only;
whoever needs a value that another thread has in flight waits for that flush to end. Flushes of
one scope follow one another, which keeps the program's order.
"""

from __future__ import annotations

import abc
import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

from contextvars_extras import ContextVarExt

from autobatch import switch
from autobatch.batch import Batch, Entry, commands_of, plan, reason_of
from autobatch.command import Command, calling_frame
from autobatch.errors import BlockingFlushWarning, NoLoop, NotReady
from autobatch.future import not_ready, wake
from autobatch.promise import PENDING, Failure, Promise, run_all
from autobatch.report import Reason, Stats
from autobatch.wire import sync
from autobatch.wire.server import wires_of
from autobatch.wire.tick import tick_of

T = TypeVar("T")
# What has to happen first: a thread has exchanged what was called before.
Gate: TypeAlias = concurrent.futures.Future[None]
# Waves, what they have to wait for, how many round trips to count, the number of their departure.
Entrusted: TypeAlias = tuple[list[list[Batch]], Gate | None, int, int]
logger = logging.getLogger("autobatch")

MAX_COMMANDS = 10_000
MAX_BYTES = 16 * 1024 * 1024
# Of what no scope waits for at its end.
STRAY_LANE = 0
PRUNE_AT = 64

ambient: ContextVarExt[Scope | None] = ContextVarExt("autobatch.scope", default=None)
# The bare variable: every call of a client reads it.
current: Callable[[], Scope | None] = ambient.context_var.get

# Another object in a forked child. What waits in a scope is sent by the process that called it.
_process = object()


class Scope(abc.ABC):
    """The boundary that owns the commands called inside it; `with batch() as scope` gives one.

    Attributes:
        stats: counts of what was called and sent, of the whole outermost scope.
        closed: it has ended. Commands that still meet it behave as outside any scope.
    """

    stats: Stats
    closed: bool
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop of the asyncio clients that are called in it."""
    lane = STRAY_LANE
    """Which of an asyncio client's connections it travels on."""
    parent: Scope | None = None
    """The scope that it is a block of."""
    held = False
    """Whether its commands are held back until a block ends, since they run together."""
    hears = False
    """Whether it is told of what runs, although it has closed: see suggesting.py."""

    @property
    @abc.abstractmethod
    def written_slots(self) -> set[int]:
        """The slots of clusters that were written in it, to be added to."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Send what waits, now, and settle its Futures. Errors stay in their Futures.

        The commands of asyncio clients are handed over, and settle when their replies come.

        Raises:
            NotReady: the scope is an atomic block, which is sent as a whole at its end.
        """

    @abc.abstractmethod
    async def aflush(self) -> None:
        """Send what waits, and wait until its Futures are settled, without blocking the loop.

        Synchronous clients flush in a thread. Being cancelled ends the wait, not the work.

        Raises:
            NotReady: the scope is an atomic block.
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Drop the commands of this scope that were not sent yet. Their Futures say so."""

    @abc.abstractmethod
    def add(self, command: Entry) -> None:
        """Queue a plain command of one reply. If the scope has closed meanwhile, send it."""

    @abc.abstractmethod
    def add_unusual(self, entry: Entry) -> None:
        """Queue anything."""

    @abc.abstractmethod
    def drop(self, part: Scope, why: str) -> None:
        """Drop the commands that belong to `part`, a block of this scope, and were not sent."""

    @abc.abstractmethod
    def forked(self) -> None:
        """Forget, in a forked child, what the parent process will send."""

    @abc.abstractmethod
    def unseen(self) -> list[Failure]:
        """Return, once, the errors that nobody has looked at so far, in program order."""

    @abc.abstractmethod
    def step_aside(self) -> None:
        """Send what waits, for something that goes another way and has to come after it."""

    @abc.abstractmethod
    async def astep_aside(self) -> None:
        """The same, without blocking the event loop."""

    @abc.abstractmethod
    def force(self, promise: Promise) -> None:
        """Settle `promise`, or raise `NotReady`."""

    @abc.abstractmethod
    def want(self, promise: Promise) -> None:
        """See to it that `promise` is settled soon: somebody awaits it."""

    @abc.abstractmethod
    def remember(self, failure: Failure) -> None:
        """Raise `failure` at the end, should nobody have looked at it by then."""

    @abc.abstractmethod
    def follow(self, promise: Promise) -> None:
        """Run the callbacks of `promise` after the flush that settles it."""

    @abc.abstractmethod
    def resent(self, promise: Promise) -> None:
        """Note that something is sent again."""

    @property
    @abc.abstractmethod
    def busy(self) -> bool:
        """Whether anything waits or is in flight."""


class OwnScope(Scope):
    """A scope with a queue of its own: the outermost one, or one that does not join."""

    recorded = False
    """Whether its flushes are recorded."""
    # Every request makes a scope: what most of them leave as it is stands here.
    closed = False
    _usual = True
    _several_wires = False
    _bytes = 0  # threads may lose an addition to each other: the limit is no budget
    _prune_at = PRUNE_AT
    _in_flight = False
    _wanted: asyncio.AbstractEventLoop | None = None  # whose tick sends what waits, at its end
    _orders_wires = True  # between several clients of one server
    _last_wire: Any = None
    _journey: asyncio.Task[None] | None = None
    _abandoned: str | None = None

    def __init__(
        self,
        max_commands: int = MAX_COMMANDS,
        max_bytes: int = MAX_BYTES,
        lane: int | None = None,
    ) -> None:
        # Appending at one end and taking from the other are atomic: the hot path needs no lock,
        # and a signal handler or the garbage collector may come between any two steps.
        self._queue: collections.deque[Entry] = collections.deque()
        self.stats = Stats(self._queue)
        self._max_commands = max_commands if switch.batching else 1
        self._max_bytes = max_bytes
        self._failures: list[Failure] = []
        self._followed: list[Promise] = []
        self._process = _process
        self._flushing = threading.RLock()  # as long as a thread waits for its servers
        # Never as long as that: what leaves the queue is handed over, or carried, in one step.
        self._departing = threading.RLock()
        # asyncio's part: see dispatch(). Threads change it, too, while they hold `_departing`.
        self.lane = next(_lanes) if lane is None else lane
        self._outstanding: dict[int, Sequence[Command]] = {}  # what has not landed, by departure
        self._newest: dict[object, Any] = {}  # by server, the wire that was used last
        self._carried: list[Batch] = []  # whoever comes first exchanges them: see _send()
        # What threads have left to the loop.
        self._entrusted: list[Entrusted] = []
        self._arrivals: list[tuple[set[int], asyncio.Future[None]]] = []  # of departures

    @functools.cached_property
    def written_slots(self) -> set[int]:
        return set()

    def add(self, command: Entry) -> None:
        queue = self._queue
        queue.append(command)
        self._bytes += len(command.packed)
        if (
            len(queue) >= self._max_commands
            or self._bytes >= self._max_bytes
            # It may have closed after the caller asked, and after its last look at the queue.
            or self.closed
        ):
            self._overflow()
            if not switch.batching:
                _surface_at_once(commands_of([command]))

    def _overflow(self) -> None:
        self.flush()

    def because(self, reason: Reason) -> None:
        """Say why what waits is about to be sent. Only a scope that is recorded keeps it."""

    def add_unusual(self, entry: Entry) -> None:
        self._usual = False
        self.add(entry)

    def _take(self) -> list[Entry]:
        """Take away what is in the queue now."""
        queue = self._queue
        entries: list[Entry] = []
        try:  # noqa: SIM105  # suppress() costs more than all of this
            # What was taken stays in the list whatever happens: a comprehension would lose it.
            entries.extend(map(_popleft, itertools.repeat(queue, len(queue))))
        except IndexError:  # somebody else takes, too
            pass
        self._bytes = 0
        try:
            self.stats.took(len(entries) if self._usual else len(commands_of(entries)))
        except BaseException:  # interrupted
            self._put_back(entries)
            raise
        return entries

    def _put_back(self, entries: list[Entry]) -> None:
        self._queue.extendleft(reversed(entries))

    def _depart(self) -> list[list[Batch]]:
        """Take the queue away and plan how it travels."""
        entries = self._take()
        if not entries:
            return []
        self.stats.flushes += 1
        try:
            waves = plan(entries, usual=self._usual)
        except BaseException:  # interrupted
            self._put_back(entries)
            raise
        if self._several_wires or len(waves) > 1 or len(waves[0]) > 1 or waves[0][0].wire.divides:
            # Replies come in any order now, but errors are reported in the program's.
            self._several_wires = True
            commands: Any = entries if self._usual else commands_of(entries)
            first = self.stats.commands - len(self._queue) - len(commands)
            for number, command in enumerate(commands, first):
                command.number = number
        return waves

    def flush(self) -> None:
        if self._process is not _process:
            self.forked()
        if self._in_flight or self._carried or self._queue:
            if asyncio._get_running_loop() is not None:  # noqa: SLF001  # the one that never raises
                if (
                    not self._in_flight
                    and not self._carried
                    and _all_asynchronous(self._queue.copy())
                ):
                    self.dispatch()  # there is nothing to wait for
                    return
                _warn_of_blocking()
            with self._flushing:
                self._send()

    def step_aside(self) -> None:
        self.flush()

    async def astep_aside(self) -> None:
        if self.busy:
            await self.aflush()

    def force(self, promise: Promise) -> None:
        if promise.asynchronous:
            raise not_ready(promise)
        if self._process is not _process:
            self.forked()
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  # the one that never raises
            _warn_of_blocking()
        with self._flushing:
            # A function given to map() may have made it the value of another scope's Future.
            while promise.outcome is PENDING and whole_of(promise.owner) is self:
                if not self._send() and promise.outcome is PENDING:
                    raise NotReady(
                        f"{promise.describe()} cannot be waited for here. Either this thread is "
                        "settling it (a response callback, or a function given to map(), cannot "
                        "wait for what it is part of), or it was in flight before os.fork()"
                    )

    def _send(self) -> bool:
        """Send what waits; return whether there was anything. The caller holds `_flushing`."""
        nested, self._in_flight = self._in_flight, True  # before the queue looks empty
        try:
            # What a thread was to exchange that has not started yet comes first.
            carried = False
            departed = self._depart_unless_carrying()
            while departed is None:
                carried = True
                for batch in self._take_over(self._carried[:]):
                    self._exchange([batch])  # one may have to come after another
                departed = self._depart_unless_carrying()
            waves, gates = departed
            try:
                for wave, gate in itertools.zip_longest(waves, gates):
                    if gate is None:
                        self._entrust(wave)
                    else:
                        gate.set_result(None)
                    self._exchange([batch for batch in wave if not batch.wire.asynchronous])
            except BaseException as error:
                give_up(waves, error)
                raise
            finally:
                for gate in gates:
                    if not gate.done():
                        gate.set_result(None)
        finally:
            self._in_flight = nested
            if self._followed:
                self._run_callbacks()
        return bool(carried or waves)

    def _depart_unless_carrying(self) -> tuple[list[list[Batch]], list[Gate]] | None:
        with self._departing:
            if self._carried:
                return None
            waves = self._depart()
            gates: list[Gate] = []
            try:
                # Not to be overtaken by what a loop takes away next.
                if waves and self._home() is not None and not _all_synchronous(waves):
                    gates = [concurrent.futures.Future() for _ in waves]
                    for wave, gate in zip(waves, gates, strict=True):
                        self._entrust(wave, gate)
            except BaseException as error:
                give_up(waves, error)
                raise
            return waves, gates

    def _take_over(self, carried: list[Batch]) -> list[Batch]:
        """Return what is left of some batches to exchange. The caller holds `_flushing`."""
        # The loop's thread may add to this list at any moment.
        for batch in carried:
            with contextlib.suppress(ValueError):
                self._carried.remove(batch)
        return [batch for batch in carried if batch.entries]  # others were here before

    def _exchange(self, batches: list[Batch]) -> None:
        if batches:
            round_trips, exchanges = sync.exchange(batches)
            self.stats.round_trips += round_trips
            self.stats.exchanges += exchanges

    def _run_callbacks(self) -> None:
        followed, self._followed = self._followed, []
        try:
            # Another thread may add to that list meanwhile, or take it away; or settle some.
            self._followed.extend([promise for promise in followed if promise.outcome is PENDING])
            settled = [promise for promise in followed if promise.outcome is not PENDING]
            run_all(Promise.run_callbacks, settled)
        except BaseException:  # interrupted; what has run does not run again
            self._followed.extend(followed)
            raise

    # ---- asyncio: nothing here waits, but aflush() and aclose() --------------------------

    def want(self, promise: Promise) -> None:  # noqa: ARG002  # everything is wanted at once
        loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
        if loop is None:
            return
        if self.loop is not loop and self.loop is not None:
            home = self._home()
            if home is not None:  # somebody in another thread awaits it
                home.call_soon_threadsafe(self.dispatch)
                return
            self._move(loop)
        if self._queue and self._wanted is not loop:
            self._wanted = loop
            tick_of(loop).at_end(self)

    def _home(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that carries what waits here, if that is not the running one."""
        loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
        home = self.loop
        if home is None or home is loop or home.is_closed():
            return None
        # One that has stopped may run again; but who runs now does not wait for it.
        return home if loop is None or home.is_running() else None

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go on in another event loop, since the one before does not run any more."""
        before, self.loop = self.loop, loop
        if before is None or not before.is_closed():
            return
        # What is on its way there does not arrive, unless the loop was told that it ends.
        with self._departing:
            waiting = {departure for *_, departure in self._entrusted}
            lost = {n: self._outstanding[n] for n in self._outstanding.keys() - waiting}
            self._journey = None
        cause = NoLoop("its event loop was closed")
        for departure, commands in lost.items():
            for command in commands:
                if command.outcome is PENDING:
                    command.outcome_unknown(reason_of(cause), cause)
            run_all(Command.run_callbacks, commands)
            self._landed(departure)

    def dispatch(self) -> None:
        """Hand what waits over to the connections, or to a task if there is more to do."""
        self._wanted = home = None
        loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
        if self.loop is not loop and self.loop is not None:
            home = self._home()
            if home is None and loop is not None:
                self._move(loop)
        with self._departing:
            waves = self._depart()
            self._carried += [b for wave in waves for b in wave if not b.wire.asynchronous]
            if home is None:
                if self._entrusted:
                    self._hand_on()
                if waves:
                    self._set_off(waves)
            elif waves:
                self._entrusted.append((waves, None, 1, self._set_out()))
        if home is not None:
            self._tell_home(home)

    def _entrust(self, wave: list[Batch], gate: Gate | None = None) -> None:
        """Leave what asyncio clients have in a wave to their event loop, in order."""
        batches = [batch for batch in wave if batch.wire.asynchronous]
        if not batches:
            return
        home = self._home()
        if home is None and asyncio._get_running_loop() is None:  # noqa: SLF001
            for batch in batches:
                self._hand_over(batch)  # which tells that there is no loop
            return
        for batch in batches:
            batch.handed_over = True
        with self._departing:
            # The thread counts the round trip.
            self._entrusted.append(([batches], gate, 0, self._set_out()))
        if home is None:
            self._hand_on()
        else:
            self._tell_home(home)

    def _tell_home(self, home: asyncio.AbstractEventLoop) -> None:
        """Let a loop hand over what was left to it."""
        try:
            home.call_soon_threadsafe(self._hand_on)
        except RuntimeError:  # it was closed just now
            self._hand_on()

    def _hand_on(self) -> None:
        """Hand over what was left to this loop."""
        with self._departing:
            entrusted, self._entrusted = self._entrusted, []
            for *_, departure in entrusted:  # none may wait for what comes after it
                self._outstanding.pop(departure, None)
            for waves, gate, round_trips, departure in entrusted:
                before = set(self._outstanding)
                self._set_off(waves, gate, round_trips)
                self._replace(departure, self._outstanding.keys() - before)

    def _set_off(
        self, waves: list[list[Batch]], gate: Gate | None = None, round_trips: int = 1
    ) -> None:
        """Hand some waves over, behind what is on its way; count so many round trips."""
        if (
            self._journey is None
            and (gate is None or gate.done())
            and len(waves) == 1
            and _all_asynchronous(waves[0])
            and not (self._outstanding and self._overtakes(waves[0]))
        ):
            for batch in waves[0]:
                self._hand_over(batch)
            self.stats.round_trips += round_trips
        else:
            # Synchronous clients take part, or an order has to be kept between connections.
            before: asyncio.Future[None] | None = self._journey
            if before is None or before.get_loop() is not asyncio.get_running_loop():
                before = self._arrival()
            gates = [asyncio.wrap_future(gate)] if gate is not None else []
            if before is not None:
                gates.append(before)
            commands = [c for batch in itertools.chain(*waves) for c in batch.commands()]
            departure = self._set_out(commands)
            landed = functools.partial(self._landed, departure)
            self._journey = asyncio.create_task(self._travel(waves, gates, landed))

    def _overtakes(self, batches: list[Batch]) -> bool:
        """Return whether a batch goes to a server where another client's may be on its way."""
        newest = self._newest
        if not newest:
            return False
        if len(newest) == len(batches) == 1 and batches[0].wire is self._last_wire:
            return False
        return any(newest.get(b.wire.server, b.wire) is not b.wire for b in batches)

    async def _travel(
        self,
        waves: list[list[Batch]],
        gates: list[asyncio.Future[None]],
        landed: Callable[[], None],
    ) -> None:
        left = list(waves)
        try:
            if gates:
                await asyncio.wait(gates)
            while left:
                await self._carry(left.pop(0))
        except asyncio.CancelledError:
            # By somebody who cancels every task there is. The rest leaves all the same.
            for wave in left:
                self._carry_on(wave)
            raise
        finally:
            if self._journey is asyncio.current_task():
                self._journey = None
            landed()

    async def _carry(self, wave: list[Batch]) -> None:
        synchronous = [batch for batch in wave if not batch.wire.asynchronous]
        arrivals = [self._hand_over_and_wait(b) for b in wave if b.wire.asynchronous]
        if synchronous:
            await in_thread(functools.partial(self._exchange_in_turn, synchronous))
        else:
            self.stats.round_trips += 1
        await asyncio.gather(*arrivals)

    def _carry_on(self, wave: list[Batch]) -> None:
        """Do the same without waiting for it."""
        synchronous = [batch for batch in wave if not self._hand_over(batch)]
        if synchronous:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self._exchange_in_turn, synchronous)

    def _exchange_in_turn(self, batches: list[Batch]) -> None:
        with self._flushing:
            self._exchange(self._take_over(batches))
            self._run_callbacks()
        self._tell_abandoned()

    def _tell_abandoned(self) -> None:
        """Log the errors that come up when nobody waits for this scope's end any more."""
        if self._abandoned is not None:
            log_unseen(self.unseen(), self._abandoned)

    def _hand_over(self, batch: Batch, landed: Callable[[], None] | None = None) -> bool:
        """Hand an asyncio client's batch over to its connection; say no to any other."""
        if not batch.wire.asynchronous:
            return False
        batch.handed_over = True
        if self._orders_wires and batch.wire is not self._last_wire:
            self._last_wire = self._newest[batch.wire.server] = batch.wire
        arrived = functools.partial(self._landed, self._set_out(batch.commands()))
        if landed is not None:
            arrived = functools.partial(_call_both, arrived, landed)
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  # the one that never raises
            self.stats.exchanges += batch.wire.submit(batch, self.lane, arrived)
        else:
            batch.drop(NoLoop("an asyncio client's command needs a running event loop"))
            arrived()
        return True

    def _hand_over_and_wait(self, batch: Batch) -> asyncio.Future[None]:
        arrival = asyncio.get_running_loop().create_future()

        def landed() -> None:
            if not arrival.done():
                arrival.set_result(None)

        self._hand_over(batch, landed)
        return arrival

    def _set_out(self, commands: Sequence[Command] = ()) -> int:
        """Note that something is on its way; return its number, for when it has landed."""
        number = next(_departures)
        self._outstanding[number] = commands
        return number

    def _landed(self, departure: int) -> None:
        self._outstanding.pop(departure, None)  # a fork forgets them
        if self._abandoned is not None:
            self._tell_abandoned()
        if self._arrivals:
            self._replace(departure, ())

    def _replace(self, departure: int, by: Iterable[int]) -> None:
        """Let whoever waits until something has landed wait for other things instead, if any."""
        with self._departing:
            for awaited, arrival in self._arrivals:
                if departure in awaited:
                    awaited.remove(departure)
                    awaited.update(by)
                    if not awaited:
                        wake(arrival)
            self._arrivals = [one for one in self._arrivals if one[0]]

    async def aflush(self) -> None:
        self.dispatch()
        in_thread_too = self._in_flight
        arrival = self._arrival()
        if arrival is not None:
            await arrival
        if in_thread_too and self._in_flight:
            await in_thread(self.flush)

    def _arrival(self) -> asyncio.Future[None] | None:
        """Return what is done when all that is on its way now has landed; None if nothing is."""
        with self._departing:
            if not self._outstanding:
                return None
            arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Not for what others call meanwhile.
            awaited = set(self._outstanding)
            self._arrivals.append((awaited, arrival))
            awaited.intersection_update(
                self._outstanding
            )  # some may have landed before they saw it
            if not awaited:
                self._arrivals.pop()
                return None
        return arrival

    async def aclose(self, name: str = "a cancelled scope") -> list[Failure]:
        """End the scope as `close` does, without blocking the loop.

        Being cancelled ends the wait, not the work; errors are logged then, under `name`.
        """
        open_scopes.discard(self)
        if self.busy:
            work = asyncio.create_task(self._finish())
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                self._abandoned = name
                work.add_done_callback(lambda _: self._tell_abandoned())
                raise
        self.closed = True
        return self.unseen()

    async def _finish(self) -> None:
        for _ in range(_WAVES_AT_END):
            if self.busy:
                await self.aflush()
        self.closed = True
        await self.aflush()

    # ---- errors, dropping, closing -------------------------------------------------------

    def remember(self, failure: Failure) -> None:
        if self.closed and self.loop is not None:
            failure.report = functools.partial(_report_stray, self.loop)
            return
        self._failures.append(failure)
        if len(self._failures) >= self._prune_at:  # a scope may live as long as a worker
            self._failures = [kept for kept in self._failures if not kept.seen]
            self._prune_at = max(PRUNE_AT, 2 * len(self._failures))

    def follow(self, promise: Promise) -> None:
        if not promise.asynchronous:  # its connection runs them as soon as its reply has landed
            self._followed.append(promise)

    def resent(self, promise: Promise) -> None:
        pass  # a scope that is recorded counts it

    def discard(self) -> None:
        for command in commands_of(self._take()):
            command.drop("its scope was discarded")

    def drop(self, part: Scope, why: str) -> None:
        dropped: list[Command] = []
        kept: list[Entry] = []
        with self._departing:  # or what is called later might leave before what is put back
            for entry in self._take():
                members = commands_of([entry])
                if belongs(members[0], part):  # a transaction belongs to one block, as a whole
                    dropped.extend(members)
                else:
                    kept.append(entry)
            self._put_back(kept)
        self.stats.took(-len(commands_of(kept)))
        for command in dropped:
            command.drop(why)

    @property
    def busy(self) -> bool:
        return self._in_flight or bool(self._queue) or bool(self._outstanding)

    def forked(self) -> None:
        if self._process is _process:
            return
        self._process = _process
        self._in_flight = False
        # The parent's event loop is not ours, nor is what it waits for.
        self.loop = None
        self._wanted = None
        self._outstanding = {}
        self._journey = None
        self._carried = []
        self._entrusted = []
        self._arrivals = []
        self._failures = []
        self._followed = []
        self._flushing = threading.RLock()
        self._departing = threading.RLock()
        for command in commands_of(self._take()):
            command.drop(FORKED)

    def close(self) -> list[Failure]:
        """End the scope: send what waits, until nothing does.

        Commands of asyncio clients are handed over, and not waited for.

        Returns:
            The errors that nobody has looked at, in program order.
        """
        open_scopes.discard(self)
        try:
            for _ in range(_WAVES_AT_END):
                if self._in_flight or self._carried or self._queue:
                    self.flush()
            self.closed = True
            self.flush()  # what another thread has called in the meantime
        finally:
            if not self.closed:  # interrupted
                self.closed = True
                self.discard()
        return self.unseen()

    def close_at_exit(self) -> None:
        """End a scope that the interpreter's end has left open, and log its unseen errors."""
        # A daemon thread that waits for its server must not keep the interpreter from ending.
        if self._flushing.acquire(timeout=_PATIENCE_AT_EXIT):
            try:
                log_unseen(self.close(), "a scope that was open at exit")
            finally:
                self._flushing.release()

    def unseen(self) -> list[Failure]:
        """Return, once, the errors that nobody has looked at so far, in program order."""
        if not self._failures:
            return []
        failures, self._failures = self._failures, []
        failures = [failure for failure in failures if not failure.seen]
        for failure in failures:
            failure.seen = True
        return sorted(failures, key=lambda failure: failure.origin.number)


class StrayScope(OwnScope):
    """The commands of asyncio clients outside any scope: they leave when the tick ends."""

    _orders_wires = False  # whoever cares about the order awaits

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(lane=STRAY_LANE)
        self.loop = loop

    def add(self, command: Entry) -> None:
        super().add(command)
        if self._queue:
            self.want(commands_of([command])[0])

    @property
    def written_slots(self) -> set[int]:  # nothing is remembered
        return set()

    def remember(self, failure: Failure) -> None:
        assert self.loop is not None
        failure.report = functools.partial(_report_stray, self.loop)


def dispatch_stray() -> None:
    """Hand over what was called outside any scope, before something that comes after it."""
    loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
    if loop is not None:
        stray = tick_of(loop).stray
        if stray is not None:
            stray.dispatch()


def _report_stray(loop: asyncio.AbstractEventLoop, failure: Failure) -> None:
    if loop.is_closed():
        log_unseen([failure], "an event loop that has ended")
    else:
        message = f"nobody looked at the error of a Redis command: {failure.summary()}"
        context = {"message": message, "exception": failure.for_log()}
        loop.call_soon_threadsafe(loop.call_exception_handler, context)


def _all_synchronous(waves: list[list[Batch]]) -> bool:
    return not any(batch.wire.asynchronous for batch in itertools.chain(*waves))


def _all_asynchronous(travelling: Iterable[Batch | Entry]) -> bool:
    for one in travelling:  # noqa: SIM110  # all() costs more, at every flush
        if not one.wire.asynchronous:
            return False
    return True


def _call_both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


def give_up(waves: list[list[Batch]], error: BaseException) -> None:
    """Settle what was not handed over: it will not be sent, because of `error`."""
    for batch in itertools.chain(*waves):
        if not batch.handed_over:
            batch.drop(error)


def whole_of(owner: Any) -> Any:
    """Return the scope that a block is a part of."""
    while isinstance(owner, Scope) and owner.parent is not None:
        owner = owner.parent
    return owner


def belongs(command: Command, part: Scope) -> bool:
    """Return whether a command was called in `part`, or in a block inside it."""
    owner: Any = command.owner
    while owner is not part:
        if owner is None:
            return False
        owner = owner.parent
    return True


def open_scope() -> Scope | None:
    """Return the ambient scope, if there is one and it has not ended."""
    scope = current()
    return None if scope is None or scope.closed else scope


def flush() -> None:
    """Send what waits in the ambient scope; do nothing outside a scope.

    Raises:
        NotReady: inside an atomic block.
    """
    scope = open_scope()
    if scope is not None:
        scope.flush()


async def aflush() -> None:
    """Send what waits in the ambient scope, or outside one, and wait until it is settled.

    Raises:
        NotReady: inside an atomic block.
    """
    scope = open_scope() or tick_of(asyncio.get_running_loop()).stray
    if scope is not None:
        await scope.aflush()


def step_aside() -> None:
    """Send what waits in the ambient scope, before something that goes another way."""
    scope = open_scope()
    if scope is not None:
        scope.step_aside()


async def astep_aside(home: Any = None) -> None:
    """The same without blocking the event loop, and outside a scope, too.

    Args:
        home: what has the wires of the asyncio client that steps aside: what is on its way on
            them has to land first.
    """
    dispatch_stray()
    scope = open_scope()
    if scope is not None:
        await scope.astep_aside()
    if home is not None:
        for wire in list(wires_of(home).values()):
            await wire.landed()


def surface(failures: list[Failure], error: BaseException | None = None) -> None:
    """Raise the first of the errors that nobody has looked at, the rest as its notes.

    Args:
        failures: in program order.
        error: what already ends the scope, if anything does: it gets all of them as notes.
    """
    if not failures:
        return
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, SystemExit)):
        # Nobody will see its notes.
        log_unseen(failures, f"a scope that was ended by {type(error).__name__}")
        return
    first = failures[0].error if error is None else error
    rest = failures if error is not None else failures[1:]
    if error is None:
        failures[0].look()
    for failure in rest[:_SHOWN_FAILURES]:
        first.add_note(f"Also failed: {failure.summary()}")
    if len(rest) > _SHOWN_FAILURES:
        first.add_note(f"And {len(rest) - _SHOWN_FAILURES} more commands failed.")
    if error is None:
        failures[0].throw()


def log_unseen(failures: list[Failure], where: str) -> None:
    """Log errors that nobody has looked at, where they cannot be raised any more."""
    for failure in failures:
        logger.error("unseen error in %s: %s", where, failure.summary(), exc_info=failure.for_log())


async def in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread, in this context, and return its result."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, contextvars.copy_context().run, function)


def _surface_at_once(commands: list[Command]) -> None:
    """Raise what the call of some commands has failed with, as redis-py does: without batching."""
    failures = [command.outcome for command in commands if type(command.outcome) is Failure]
    for failure in failures:
        failure.seen = True
    surface(failures)


def _warn_of_blocking() -> None:
    if not switch.batching:  # it would have waited without us, too
        return
    frame = calling_frame()
    warnings.warn_explicit(
        "a synchronous client flushed on a thread that runs an event loop, which waits for its "
        "server meanwhile. Await scope.aflush() first, or use an asyncio client",
        BlockingFlushWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


# Entered and not left: the interpreter may end before they do.
open_scopes: set[OwnScope] = set()


@atexit.register
def _at_exit() -> None:
    while open_scopes:
        open_scopes.pop().close_at_exit()


def _after_fork() -> None:
    open_scopes.clear()  # they are the parent's
    global _process  # noqa: PLW0603  # the scopes of this process compare theirs with it
    _process = object()
    scope = current()
    if scope is not None:
        scope.forked()  # what is called in it from now on is the child's


os.register_at_fork(after_in_child=_after_fork)

_popleft: Callable[[collections.deque[Entry]], Entry] = collections.deque.popleft
_SHOWN_FAILURES = 20
# What functions given to map() have called rides along at a scope's end, wave after wave. The rest,
# as of a task that was left behind and never stops calling, goes its way outside the scope.
_WAVES_AT_END = 32
_PATIENCE_AT_EXIT = 1.0  # seconds
FORKED = "it was called before os.fork(), so the parent process sends it"
_lanes = itertools.count()
_departures = itertools.count()
