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
import contextvars
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from contextvars_extras import ContextVarExt

from autobatch.batch import Entry, Transaction, commands_of, plan
from autobatch.command import Command, calling_frame
from autobatch.errors import BlockingFlushWarning, NotReady
from autobatch.promise import PENDING, Failure, Promise
from autobatch.report import Stats
from autobatch.wire import sync

T = TypeVar("T")
logger = logging.getLogger("autobatch")

MAX_COMMANDS = 10_000
MAX_BYTES = 16 * 1024 * 1024

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
    held = False
    """Whether its commands are held back until a block ends, since they run together."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Send what waits, now, and settle its Futures. Errors stay in their Futures.

        Raises:
            NotReady: the scope is an atomic block, which is sent as a whole at its end.
        """

    async def aflush(self) -> None:
        """Do the same without blocking the event loop: synchronous clients flush in a thread."""
        if self.busy:
            await in_thread(self.flush)

    @abc.abstractmethod
    def discard(self) -> None:
        """Drop the commands of this scope that were not sent yet. Their Futures say so."""

    @abc.abstractmethod
    def add(self, command: Command) -> None:
        """Queue a plain command of one reply. If the scope has closed meanwhile, send it."""

    @abc.abstractmethod
    def add_unusual(self, entry: Entry) -> None:
        """Queue anything."""

    @abc.abstractmethod
    def drop(self, commands: list[Command], why: str) -> None:
        """Drop those of `commands` that were not sent yet."""

    @abc.abstractmethod
    def step_aside(self) -> None:
        """Send what waits, for something that goes another way and has to come after it."""

    @abc.abstractmethod
    def force(self, promise: Promise) -> None:
        """Settle `promise`, or raise `NotReady`."""

    @abc.abstractmethod
    def remember(self, failure: Failure) -> None:
        """Raise `failure` at the end, should nobody have looked at it by then."""

    @abc.abstractmethod
    def follow(self, promise: Promise) -> None:
        """Run the callbacks of `promise` after the flush that settles it."""

    @property
    @abc.abstractmethod
    def busy(self) -> bool:
        """Whether anything waits or is in flight."""


class OwnScope(Scope):
    """A scope with a queue of its own: the outermost one, or one that does not join."""

    def __init__(self, max_commands: int = MAX_COMMANDS, max_bytes: int = MAX_BYTES) -> None:
        # Appending to a list, slicing it and deleting a slice are atomic, and flushes take from
        # the front while others append: so the hot path needs no lock.
        self._queue: list[Entry] = []
        self._usual = True
        self.stats = Stats(self._queue)
        self.closed = False
        self._max_commands = max_commands
        self._max_bytes = max_bytes
        self._bytes = 0  # threads may lose an addition to each other: the limit is no budget
        self._failures: list[Failure] = []
        self._followed: list[Promise] = []
        self._in_flight = False
        self._process = _process
        self._flushing = threading.RLock()

    def add(self, command: Command) -> None:
        queue = self._queue
        queue.append(command)
        self._bytes += len(command.packed)
        if (
            len(queue) >= self._max_commands
            or self._bytes >= self._max_bytes
            # It may have closed after the caller asked, and after its last look at the queue.
            or self.closed
        ):
            self.flush()

    def add_unusual(self, entry: Entry) -> None:
        self._usual = False
        for command in commands_of([entry]):
            self._bytes += len(command.packed)
        self._queue.append(entry)
        if self.closed:
            self.flush()

    def _take(self) -> list[Entry]:
        """Take the queue away; the caller holds `_flushing`."""
        queue = self._queue
        count = len(queue)
        entries = queue[:count]
        self._bytes = 0
        self.stats.took(len(entries) if self._usual else len(commands_of(entries)))
        del queue[:count]
        return entries

    def flush(self) -> None:
        if self._process is not _process:
            self.forked()
        if self.busy:
            with self._flushing:
                self._send()

    def step_aside(self) -> None:
        self.flush()

    def force(self, promise: Promise) -> None:
        if self._process is not _process:
            self.forked()
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  # the one that never raises
            _warn_of_blocking(promise)
        with self._flushing:
            while promise.outcome is PENDING:
                if not self._send():
                    raise NotReady(
                        f"{promise.describe()} is being settled by this very thread: a response "
                        "callback or a function given to map() cannot wait for what it is part of"
                    )

    def _send(self) -> bool:
        """Send what waits; return whether there was anything. The caller holds `_flushing`."""
        self._in_flight = True  # before the queue looks empty
        entries = self._take()
        if not entries:
            self._in_flight = False
            return False
        self.stats.flushes += 1
        waves = plan(entries, usual=self._usual)
        known = len(self._failures)
        try:
            for wave in waves:
                round_trips, exchanges = sync.exchange(wave)
                self.stats.round_trips += round_trips
                self.stats.exchanges += exchanges
        except BaseException as error:
            for batch in itertools.chain(*waves):
                batch.never_sent(error)
            raise
        finally:
            self._in_flight = False
            if len(self._failures) > known and (len(waves) > 1 or len(waves[0]) > 1):
                self._sort_failures(known, entries)
            if self._followed:
                self._run_callbacks()
        return True

    def _sort_failures(self, start: int, entries: list[Entry]) -> None:
        """Bring the failures of several batches into program order."""
        order: dict[Promise, int] = {c: number for number, c in enumerate(commands_of(entries))}
        failures = self._failures[start:]
        failures.sort(key=lambda failure: order.get(failure.origin, len(order)))
        self._failures[start:] = failures

    def _run_callbacks(self) -> None:
        followed, self._followed = self._followed, []
        for promise in followed:
            if promise.outcome is PENDING:
                self._followed.append(promise)
            else:
                promise.run_callbacks()

    def remember(self, failure: Failure) -> None:
        self._failures.append(failure)

    def follow(self, promise: Promise) -> None:
        self._followed.append(promise)

    def discard(self) -> None:
        with self._flushing:
            entries = self._take()
        for command in commands_of(entries):
            command.drop("its scope was discarded")

    def drop(self, commands: list[Command], why: str) -> None:
        unwanted = set(commands)
        with self._flushing:
            count = len(self._queue)
            kept: list[Entry] = []
            dropped: list[Command] = []
            for entry in self._queue[:count]:
                members = commands_of([entry])
                if members[0] in unwanted:  # a transaction belongs to one block, as a whole
                    dropped.extend(members)
                else:
                    kept.append(entry)
            self._queue[:count] = kept
            self.stats.took(len(dropped))
        for command in dropped:
            command.drop(why)

    @property
    def busy(self) -> bool:
        return self._in_flight or bool(self._queue)

    def forked(self) -> None:
        """Forget, in a forked child, what the parent process will send."""
        self._process = _process
        self._flushing = threading.RLock()
        for command in commands_of(self._take()):
            command.drop("it was called before os.fork(), so the parent process sends it")

    def close(self) -> list[Failure]:
        """End the scope: send what waits, until nothing does.

        Returns:
            The errors that nobody has looked at, in program order.
        """
        try:
            while self.busy:  # again for what functions given to map() have called
                self.flush()
            self.closed = True
            self.flush()  # what another thread has called in the meantime
        finally:
            if not self.closed:  # interrupted
                self.closed = True
                self.discard()
        return self.unseen()

    def unseen(self) -> list[Failure]:
        """Return, once, the errors that nobody has looked at so far, in program order."""
        if not self._failures:
            return []
        failures, self._failures = self._failures, []
        distinct = {id(failure): failure for failure in failures if not failure.seen}
        for failure in distinct.values():
            failure.seen = True
        return list(distinct.values())


class _Part(Scope):
    """A block inside another scope that shares its queue, but not its fate."""

    def __init__(self, parent: Scope) -> None:
        self._parent = parent
        self.stats = parent.stats
        self.closed = False
        self.held = parent.held

    def flush(self) -> None:
        self._parent.flush()

    def step_aside(self) -> None:
        self._parent.step_aside()

    def force(self, promise: Promise) -> None:
        self._parent.force(promise)

    def remember(self, failure: Failure) -> None:
        self._parent.remember(failure)

    def follow(self, promise: Promise) -> None:
        self._parent.follow(promise)

    @property
    def busy(self) -> bool:
        return self._parent.busy

    @abc.abstractmethod
    def leave(self, error: BaseException | None) -> None:
        """End the block; `error` is what ended it, if it failed."""


class DiscardingPart(_Part):
    """A joined block with `on_error="discard"`: its commands wait like others, until it fails."""

    def __init__(self, parent: Scope) -> None:
        super().__init__(parent)
        self._commands: list[Command] = []

    def add(self, command: Command) -> None:
        self._commands.append(command)
        self._parent.add(command)

    def add_unusual(self, entry: Entry) -> None:
        self._commands.extend(commands_of([entry]))
        self._parent.add_unusual(entry)

    def discard(self) -> None:
        self.drop(self._commands, "its block was discarded")

    def drop(self, commands: list[Command], why: str) -> None:
        self._parent.drop(commands, why)

    def leave(self, error: BaseException | None) -> None:
        self.closed = True
        if error is not None:
            self.drop(self._commands, f"its block was ended by {type(error).__name__}")
        self._commands = []


class AtomicPart(_Part):
    """A block whose commands are held back, and leave together between MULTI and EXEC."""

    def __init__(self, parent: Scope) -> None:
        super().__init__(parent)
        self.held = True
        self._commands: list[Command] = []
        self._lock = threading.Lock()

    def add(self, command: Command) -> None:
        with self._lock:
            if not self.closed:
                self._commands.append(command)
                return
        self._parent.add(command)

    def add_unusual(self, entry: Entry) -> None:
        for command in commands_of([entry]):
            self.add(command)

    def flush(self) -> None:
        raise NotReady(
            "an atomic block cannot be flushed: it is sent as a whole, at its end. "
            "Flush before the block, or after it"
        )

    def force(self, promise: Promise) -> None:
        if not self.closed:
            raise NotReady(
                f"the value of {promise.describe()} is needed inside its own atomic block, which "
                "is sent as a whole, at its end. Use the value after the block, compute with it "
                "through .map(), or read it before the block; to decide on what is read, use "
                "redis-py's own pipeline() and WATCH"
            )
        self._parent.force(promise)

    def discard(self) -> None:
        self.drop(self._commands, "its atomic block was discarded")

    def drop(self, commands: list[Command], why: str) -> None:
        unwanted = set(commands)
        with self._lock:
            dropped = [command for command in self._commands if command in unwanted]
            self._commands = [command for command in self._commands if command not in unwanted]
        for command in dropped:
            command.drop(why)

    def leave(self, error: BaseException | None) -> None:
        with self._lock:
            self.closed = True
        if error is not None:
            self.drop(self._commands, f"its atomic block was ended by {type(error).__name__}")
        by_wire: dict[Any, list[Command]] = {}
        for command in self._commands:
            by_wire.setdefault(command.wire, []).append(command)
        for wire, commands in by_wire.items():
            self._parent.add_unusual(Transaction(commands, wire))


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


def step_aside() -> None:
    """Send what waits in the ambient scope, before something that goes another way."""
    scope = open_scope()
    if scope is not None:
        scope.step_aside()


def surface(failures: list[Failure], error: BaseException | None = None) -> None:
    """Raise the first of the errors that nobody has looked at, the rest as its notes.

    Args:
        failures: in program order.
        error: what already ends the scope, if anything does: it gets all of them as notes.
    """
    if not failures:
        return
    if isinstance(error, asyncio.CancelledError):
        log_unseen(failures)  # nobody will see its notes
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


def log_unseen(failures: list[Failure], where: str = "a cancelled scope") -> None:
    """Log errors that nobody has looked at, where they cannot be raised any more."""
    for failure in failures:
        logger.error("unseen error in %s: %s", where, failure.summary(), exc_info=failure.error)


async def in_thread(function: Callable[[], T], abandoned: Callable[[T], None] | None = None) -> T:
    """Run `function` in a thread, in this context, and return its result.

    Being cancelled ends the wait, not the work: the result then goes to `abandoned`.
    """
    loop = asyncio.get_running_loop()
    work = loop.run_in_executor(None, contextvars.copy_context().run, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if abandoned is not None:
            deliver = abandoned
            work.add_done_callback(lambda done: deliver(done.result()))
        raise


def _warn_of_blocking(promise: Promise) -> None:
    frame = calling_frame()
    warnings.warn_explicit(
        f"{promise.describe()} was forced on a thread that runs an event loop, which waits for "
        "the server meanwhile. Await scope.aflush() first, or use an asyncio client",
        BlockingFlushWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _after_fork() -> None:
    global _process  # noqa: PLW0603  # the scopes of this process compare theirs with it
    _process = object()


os.register_at_fork(after_in_child=_after_fork)

_SHOWN_FAILURES = 20
