"""The part of a scope that carries what asyncio clients have called, and keeps it in order.

Nothing here waits, but `aflush`. What leaves the queue is handed over to the connections of the
event loop that the scope belongs to. Where something has to land first (what synchronous clients
have called before, or another client of the same server), a task does it: a journey. Other threads
and loops that use the scope entrust what they take away to that loop.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import concurrent.futures
import contextvars
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

from autobatch.ambient import Scope
from autobatch.batch import Batch, Entry, reason_of
from autobatch.command import Command
from autobatch.errors import NoLoop
from autobatch.future import wake
from autobatch.promise import PENDING, Promise, run_all
from autobatch.unseen import log_unseen
from autobatch.wire.tick import tick_of

T = TypeVar("T")
# What has to happen first: a thread has exchanged what was called before.
Gate: TypeAlias = concurrent.futures.Future[None]
# Waves, what they have to wait for, how many round trips to count, the number of their departure.
Entrusted: TypeAlias = tuple[list[list[Batch]], Gate | None, int, int]


class Journeys(Scope):
    """What a scope has to do with event loops. Threads take part while they hold `_departing`."""

    # Every request makes a scope: what most of them leave as it is stands here.
    _in_flight = False
    _wanted: asyncio.AbstractEventLoop | None = None  # whose tick sends what waits, at its end
    _orders_wires = True  # between several clients of one server
    _last_wire: Any = None
    _journey: asyncio.Task[None] | None = None
    _abandoned: str | None = None

    _queue: collections.deque[Entry]
    _flushing: threading.RLock  # as long as a thread waits for its servers
    # Never as long as that: what leaves the queue is handed over, or carried, in one step.
    _departing: threading.RLock
    _outstanding: dict[int, Sequence[Command]]  # what has not landed, by departure
    _newest: dict[object, Any]  # by server, the wire that was used last
    _carried: list[Batch]  # whoever comes first exchanges them
    _entrusted: list[Entrusted]  # what threads have left to the loop
    _arrivals: list[tuple[set[int], asyncio.Future[None]]]  # of departures

    @abc.abstractmethod
    def _depart(self) -> list[list[Batch]]:
        """Take the queue away and plan how it travels."""

    @abc.abstractmethod
    def _take_over(self, carried: list[Batch]) -> list[Batch]:
        """Return what is left of some batches to exchange. The caller holds `_flushing`."""

    @abc.abstractmethod
    def _run_callbacks(self) -> None:
        """Run the callbacks of what synchronous clients have settled."""

    @abc.abstractmethod
    def _exchange(self, batches: list[Batch]) -> None:
        """Exchange batches of synchronous clients."""

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
            and all_asynchronous(waves[0])
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
            journey = self._travel(waves, gates, landed)
            journey.send(None)  # or to cancel a task that has not begun would be its end
            self._journey = asyncio.create_task(journey)

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
        # Whoever cancels every task there is, as asyncio.run() does at its end, cancels this one,
        # too. The rest leaves all the same, and in order as long as there are answers.
        patience: float | None = None
        carried: list[asyncio.Future[Any]] = []
        try:
            try:
                await asyncio.sleep(0)  # up to here it has come before it is a task
            except asyncio.CancelledError:
                patience = _PATIENCE
            patience = await _outlast(gates, patience)
            for wave in waves:
                arrivals = self._carry(wave)
                carried += arrivals
                patience = await _outlast(arrivals, patience)
        finally:
            if self._journey is asyncio.current_task():
                self._journey = None
            landed()
        for one in carried:
            if one.done():
                one.result()

    def _carry(self, wave: list[Batch]) -> list[asyncio.Future[Any]]:
        """Let a wave leave; return what is done when it has landed."""
        synchronous = [batch for batch in wave if not batch.wire.asynchronous]
        arrivals = [self._hand_over_and_wait(b) for b in wave if b.wire.asynchronous]
        if synchronous:
            exchange = functools.partial(self._exchange_in_turn, synchronous)
            arrivals.append(in_thread(exchange))
        else:
            self.stats.round_trips += 1
        return arrivals

    def _exchange_in_turn(self, batches: list[Batch]) -> None:
        with self._flushing:
            self._exchange(self._take_over(batches))
            self._run_callbacks()
        self._tell_abandoned()

    def _tell_abandoned(self) -> None:
        """Log the errors that come up when nobody waits for this scope's end any more."""
        if self._abandoned is not None:
            log_unseen(self.unseen(), self._abandoned)

    def _hand_over(self, batch: Batch, landed: Callable[[], None] | None = None) -> None:
        """Hand an asyncio client's batch over to its connection."""
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

    def _hand_over_and_wait(self, batch: Batch) -> asyncio.Future[None]:
        arrival = asyncio.get_running_loop().create_future()
        self._hand_over(batch, functools.partial(wake, arrival))
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
            try:
                await arrival
            except asyncio.CancelledError:
                for command in itertools.chain(*list(self._outstanding.values())):
                    command.doubt()
                raise
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
            # Some may have landed before they saw it.
            awaited.intersection_update(self._outstanding)
            if not awaited:
                self._arrivals.pop()
                return None
        return arrival


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run `function` in a thread, in this context; return the Future of its result."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(None, contextvars.copy_context().run, function)


async def _outlast(awaited: Sequence[asyncio.Future[Any]], patience: float | None) -> float | None:
    """Wait until all is done, also if this task is cancelled meanwhile.

    Args:
        awaited: for what.
        patience: how many seconds it may take; None while nobody has cancelled this task.

    Returns:
        The patience for what comes next.
    """
    while awaited:
        try:
            _, late = await asyncio.wait(awaited, timeout=patience)
        except asyncio.CancelledError:
            patience = _PATIENCE if patience is None else 0.0
        else:
            return 0.0 if late else patience
    return patience


def all_synchronous(waves: list[list[Batch]]) -> bool:
    """Return whether no asyncio client takes part."""
    return not any(batch.wire.asynchronous for batch in itertools.chain(*waves))


def all_asynchronous(travelling: Iterable[Batch | Entry]) -> bool:
    """Return whether asyncio clients alone take part."""
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


_departures = itertools.count()
# What is cancelled and cancelled again waits no more for an order to be kept.
_PATIENCE = 5.0  # seconds
