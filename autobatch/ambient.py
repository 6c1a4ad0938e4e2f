"""The ambient scope: what a scope is, and which one is open where the program is."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from typing import Any

from contextvars_extras import ContextVarExt

from autobatch.batch import Entry
from autobatch.command import Command
from autobatch.promise import Failure, Promise
from autobatch.report import Stats

STRAY_LANE = 0

ambient: ContextVarExt[Scope | None] = ContextVarExt("autobatch.scope", default=None)
# The bare variable: every call of a client reads it.
current: Callable[[], Scope | None] = ambient.context_var.get


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
