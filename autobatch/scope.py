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

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

from autobatch import switch
from autobatch.ambient import STRAY_LANE, Scope, belongs, current, open_scope, whole_of
from autobatch.batch import Batch, Entry, commands_of, plan
from autobatch.command import Command, calling_frame
from autobatch.errors import BlockingFlushWarning, NotReady
from autobatch.future import not_ready
from autobatch.journeys import Gate, Journeys, all_asynchronous, all_synchronous, give_up
from autobatch.promise import PENDING, Failure, Promise, run_all
from autobatch.report import Reason, Stats
from autobatch.unseen import log_unseen, report_stray, surface_at_once
from autobatch.wire import sync
from autobatch.wire.server import wires_of
from autobatch.wire.tick import tick_of

MAX_COMMANDS = 10_000
MAX_BYTES = 16 * 1024 * 1024
# Of what no scope waits for at its end.
PRUNE_AT = 64


# Another object in a forked child. What waits in a scope is sent by the process that called it.
_process = object()


class OwnScope(Journeys):
    """A scope with a queue of its own: the outermost one, or one that does not join."""

    recorded = False
    """Whether its flushes are recorded."""
    # Every request makes a scope: what most of them leave as it is stands here.
    closed = False
    _usual = True
    _several_wires = False
    _bytes = 0  # threads may lose an addition to each other: the limit is no budget
    _prune_at = PRUNE_AT

    def __init__(
        self,
        max_commands: int = MAX_COMMANDS,
        max_bytes: int = MAX_BYTES,
        lane: int | None = None,
    ) -> None:
        # Appending at one end and taking from the other are atomic: the hot path needs no lock,
        # and a signal handler or the garbage collector may come between any two steps.
        self._queue = collections.deque()
        self.stats = Stats(self._queue)
        self._max_commands = max_commands if switch.batching else 1
        self._max_bytes = max_bytes
        self._failures: list[Failure] = []
        self._followed: list[Promise] = []
        self._process = _process
        self._flushing = threading.RLock()
        self._departing = threading.RLock()
        self.lane = next(_lanes) if lane is None else lane
        self._outstanding = {}
        self._newest = {}
        self._carried = []
        self._entrusted = []
        self._arrivals = []

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
                surface_at_once(commands_of([command]))

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
        entries = self._take()
        if not entries:
            return []
        self.stats.flushes += 1
        try:
            waves = plan(entries, usual=self._usual)
            wave = waves[0]
            if self._several_wires or len(waves) > 1 or len(wave) > 1 or wave[0].wire.divides:
                # Replies come in any order now, but errors are reported in the program's.
                self._several_wires = True
                commands: Any = entries if self._usual else commands_of(entries)
                first = self.stats.commands - len(self._queue) - len(commands)
                for number, command in enumerate(commands, first):
                    command.number = number
        except BaseException:  # interrupted
            self._put_back(entries)
            raise
        return waves

    def flush(self) -> None:
        if self._process is not _process:
            self.forked()
        if self._in_flight or self._carried or self._queue:
            if asyncio._get_running_loop() is not None:  # noqa: SLF001  # the one that never raises
                if (
                    not self._in_flight
                    and not self._carried
                    and all_asynchronous(self._queue.copy())
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
                if waves and self._home() is not None and not all_synchronous(waves):
                    gates = [concurrent.futures.Future() for _ in waves]
                    for wave, gate in zip(waves, gates, strict=True):
                        self._entrust(wave, gate)
            except BaseException as error:
                give_up(waves, error)
                raise
            return waves, gates

    def _take_over(self, carried: list[Batch]) -> list[Batch]:
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

    async def aclose(self, name: str = "a cancelled scope") -> list[Failure]:
        """End the scope as `close` does, without blocking the loop.

        Being cancelled ends the wait, not the work; errors are logged then, under `name`.
        """
        open_scopes.discard(self)
        try:
            await self._finish()
        except asyncio.CancelledError:
            self._abandoned = name
            if self._queue or self._carried or self._in_flight:
                work = asyncio.create_task(self._finish())
                work.add_done_callback(lambda _: self._tell_abandoned())
            else:  # what is on its way tells when it has landed
                self.closed = True
                self._tell_abandoned()
            raise
        return self.unseen()

    async def _finish(self) -> None:
        waves = 0
        while waves < _WAVES_AT_END:
            if not self.busy and self._failures:
                for _ in range(_TURNS_TO_LOOK):
                    await asyncio.sleep(0)
            if not self.busy:
                break
            waves += 1
            await self.aflush()
        self.closed = True
        if self.busy:  # by what another thread has called in the meantime
            await self.aflush()

    # ---- errors, dropping, closing -------------------------------------------------------

    def remember(self, failure: Failure) -> None:
        if self.closed and self._abandoned is None and self.loop is not None:
            failure.report = functools.partial(report_stray, self.loop)
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
            waves = 0
            while waves < _WAVES_AT_END and (self._in_flight or self._carried or self._queue):
                waves += 1
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
        if self._queue and self._wanted is None:  # nobody has seen to it in this tick
            self.want(command)  # type: ignore[arg-type]  # transactions have a scope around them

    def _depart(self) -> list[list[Batch]]:
        waves = super()._depart()
        # It lives as long as its loop, whose thread alone comes here. In this order: what comes
        # between, as from a finalizer, may call something unusual.
        self._usual = True
        if self._queue:
            self._usual = False
        return waves

    @property
    def written_slots(self) -> set[int]:  # nothing is remembered
        return set()

    def follow(self, promise: Promise) -> None:
        pass  # connections run the callbacks of all that is called here

    def remember(self, failure: Failure) -> None:
        assert self.loop is not None
        failure.report = functools.partial(report_stray, self.loop)


def check_limits(max_commands: int, max_bytes: int) -> None:
    """Refuse limits that let nothing wait.

    Raises:
        ValueError: one is below 1.
    """
    if max_commands < 1 or max_bytes < 1:
        raise ValueError("max_commands and max_bytes must be at least 1")


def dispatch_stray() -> None:
    """Hand over what was called outside any scope, before something that comes after it."""
    loop = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
    if loop is not None:
        stray = tick_of(loop).stray
        if stray is not None and stray.busy:
            stray.dispatch()


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
# What functions given to map() have called rides along at a scope's end, wave after wave. The rest,
# as of a task that was left behind and never stops calling, goes its way outside the scope.
_WAVES_AT_END = 32
# Of the event loop, until a task that awaits what has failed has looked at it: it is woken as the
# scope's own task is, and by another thread a turn later.
_TURNS_TO_LOOK = 2
_PATIENCE_AT_EXIT = 1.0  # seconds
FORKED = "it was called before os.fork(), so the parent process sends it"
_lanes = itertools.count()
