"""Blocks inside a scope that share its queue, but not its fate."""

from __future__ import annotations

import abc
import asyncio
import threading
from typing import Any

from autobatch.ambient import Scope, belongs
from autobatch.batch import Entry, Transaction, commands_of
from autobatch.command import Command
from autobatch.errors import CrossSlot, NotReady
from autobatch.promise import Failure, Promise
from autobatch.scope import FORKED


class Block(Scope):
    """A block inside another scope that shares its queue, but not its fate."""

    parent: Scope

    def __init__(self, parent: Scope) -> None:
        self.parent = parent
        self.stats = parent.stats
        self.closed = False
        self.lane = parent.lane
        self.held = parent.held

    @property
    def written_slots(self) -> set[int]:
        return self.parent.written_slots

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self.parent.loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.parent.loop = loop

    def flush(self) -> None:
        self.parent.flush()

    def step_aside(self) -> None:
        self.parent.step_aside()

    async def astep_aside(self) -> None:
        await self.parent.astep_aside()

    async def aflush(self) -> None:
        await self.parent.aflush()

    def want(self, promise: Promise) -> None:
        self.parent.want(promise)

    def force(self, promise: Promise) -> None:
        self.parent.force(promise)

    def remember(self, failure: Failure) -> None:
        self.parent.remember(failure)

    def unseen(self) -> list[Failure]:
        return self.parent.unseen()

    def forked(self) -> None:
        self.parent.forked()

    def follow(self, promise: Promise) -> None:
        self.parent.follow(promise)

    def resent(self, promise: Promise) -> None:
        self.parent.resent(promise)

    @property
    def busy(self) -> bool:
        return self.parent.busy

    @abc.abstractmethod
    def leave(self, error: BaseException | None) -> None:
        """End the block; `error` is what ended it, if it failed."""


class DiscardingBlock(Block):
    """A joined block with `on_error="discard"`: its commands wait like others, until it fails."""

    def add(self, command: Entry) -> None:
        self.parent.add(command)

    def add_unusual(self, entry: Entry) -> None:
        self.parent.add_unusual(entry)

    def discard(self) -> None:
        self.drop(self, "its block was discarded")

    def drop(self, part: Scope, why: str) -> None:
        self.parent.drop(part, why)

    def leave(self, error: BaseException | None) -> None:
        self.closed = True
        if error is not None:
            self.drop(self, f"its block was ended by {type(error).__name__}")


class AtomicBlock(Block):
    """A block whose commands are held back, and leave together between MULTI and EXEC."""

    def __init__(self, parent: Scope) -> None:
        super().__init__(parent)
        self.held = True
        self._commands: list[Command] = []
        self._lock = threading.RLock()

    def add(self, command: Entry) -> None:
        with self._lock:
            if not self.closed:
                self._commands.extend(commands_of([command]))
                return
        self.parent.add_unusual(command)

    def add_unusual(self, entry: Entry) -> None:
        self.add(entry)

    def flush(self) -> None:
        raise NotReady(
            "an atomic block cannot be flushed: it is sent as a whole, at its end. "
            "Flush before the block, or after it"
        )

    async def aflush(self) -> None:
        self.flush()

    def want(self, promise: Promise) -> None:
        self._check_left(promise)
        self.parent.want(promise)

    def force(self, promise: Promise) -> None:
        self._check_left(promise)
        self.parent.force(promise)

    def _check_left(self, promise: Promise) -> None:
        if not self.closed:
            raise NotReady(
                f"the value of {promise.describe()} is needed inside its own atomic block, which "
                "is sent as a whole, at its end. Use the value after the block, compute with it "
                "through .map(), or read it before the block; to decide on what is read, use "
                "redis-py's own pipeline() and WATCH"
            )

    def discard(self) -> None:
        self.drop(self, "its atomic block was discarded")

    def drop(self, part: Scope, why: str) -> None:
        with self._lock:
            dropped = [command for command in self._commands if belongs(command, part)]
            self._commands = [c for c in self._commands if not belongs(c, part)]
        self.stats.took(len(dropped))
        for command in dropped:
            command.drop(why)

    def forked(self) -> None:
        self._lock = threading.RLock()
        self.drop(self, FORKED)
        super().forked()

    def leave(self, error: BaseException | None) -> None:
        with self._lock:
            self.closed = True
        if error is not None:
            self.drop(self, f"its atomic block was ended by {type(error).__name__}")
        by_wire: dict[Any, list[Command]] = {}
        for command in self._commands:
            by_wire.setdefault(command.wire, []).append(command)
        for wire, commands in by_wire.items():
            problem = wire.problem_of(commands)
            if problem is not None:
                self.drop(self, "its atomic block cannot be sent")
                raise CrossSlot(f"an atomic block cannot be sent: {problem}")
        self._commands = []
        for wire, commands in by_wire.items():
            self.parent.add_unusual(Transaction(commands, wire))
