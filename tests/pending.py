"""Promises that need no server: a test says beforehand what each will be."""

from __future__ import annotations

from typing import Any

import hiredis

from autobatch.future import Future, future_of
from autobatch.promise import PENDING, Failure, Promise


class Keeper:
    """An owner that keeps its promises, all of them as soon as one is forced.

    Attributes:
        forced: how often a value was needed.
        failures: what it was told to remember.
    """

    def __init__(self) -> None:
        self.forced = 0
        self.failures: list[Failure] = []
        self._waiting: list[tuple[Promise, Any]] = []

    def promise(self, outcome: Any) -> Promise:
        """Return a pending promise that will be a value, or fail if `outcome` is an exception."""
        promise = Promise(self)
        self._waiting.append((promise, outcome))
        return promise

    def future(self, outcome: Any) -> Future:
        """Return a pending Future."""
        return future_of(self.promise(outcome))

    def flush(self) -> None:
        """Settle what waits."""
        waiting, self._waiting = self._waiting, []
        for promise, outcome in waiting:
            if isinstance(outcome, Exception):
                promise.outcome = Failure(outcome, promise)
                self.failures.append(promise.outcome)
            else:
                promise.outcome = outcome
        for promise, _ in waiting:
            promise.run_callbacks()

    def force(self, promise: Promise) -> None:
        self.forced += 1
        while promise.outcome is PENDING:
            assert self._waiting, f"nobody will settle {promise!r}"
            self.flush()

    def remember(self, failure: Failure) -> None:
        self.failures.append(failure)

    def follow(self, promise: Promise) -> None:
        pass  # flush() runs the callbacks of all


def later(outcome: Any) -> Future:
    """Return a pending Future of a Keeper of its own."""
    return Keeper().future(outcome)


def now(outcome: Any) -> Future:
    """Return a settled Future."""
    keeper = Keeper()
    future = keeper.future(outcome)
    keeper.flush()
    return future


class PaperWire:
    """What a batch asks of a wire; nothing travels on it."""

    asynchronous = False
    divides = False
    retry_writes = False
    decodes = False
    pack = staticmethod(hiredis.pack_command)

    def __init__(self, server="server"):
        self.server = server

    def decode(self, reply):
        return reply.decode()


PAPER = PaperWire()
