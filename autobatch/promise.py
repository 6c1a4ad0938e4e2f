"""What stands behind a Future: a cell that is settled once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol


class _Pending:
    __slots__ = ()

    def __repr__(self) -> str:
        return "PENDING"


PENDING: Final = _Pending()

# Guards the callbacks of every promise. They are rare and taking them is short: one lock does.
_callbacks_lock = threading.Lock()


class Owner(Protocol):
    """Who can settle a promise: a scope."""

    def force(self, promise: Promise) -> None:
        """Settle `promise`, or raise `NotReady`."""

    def remember(self, failure: Failure) -> None:
        """Raise `failure` at the end, should nobody have looked at it by then."""

    def follow(self, promise: Promise) -> None:
        """Run the callbacks of `promise` after it was settled."""


class Failure:
    """The outcome of a promise that failed.

    Attributes:
        error: what to raise.
        origin: the promise that failed first.
        seen: somebody was told, so it need not surface at the end of the scope.
    """

    __slots__ = ("_noted", "_traceback", "error", "origin", "seen")

    def __init__(self, error: BaseException, origin: Promise) -> None:
        self.error = error
        self.origin = origin
        self.seen = False
        self._noted = False
        self._traceback: TracebackType | None = error.__traceback__

    def look(self) -> BaseException:
        """Return the error, which counts as seen from now on."""
        self.seen = True
        if not self._noted:
            self._noted = True
            self.error.add_note(self.origin.note())
        return self.error

    def summary(self) -> str:
        """Return the error and where it comes from, in one line."""
        return f"{type(self.error).__name__}: {self.error} ({self.origin.note()})"

    def throw(self) -> NoReturn:
        """Raise the error as it was when it was stored.

        Raising adds to an error's traceback, and a frame there that holds the error is a
        reference cycle; the `outcome` library's Error.unwrap breaks it in the same way.
        """
        error = self.look()
        try:
            raise error.with_traceback(self._traceback)
        finally:
            del error, self


class Promise:
    """A value that will be known later.

    Attributes:
        outcome: PENDING, then for good a plain value or a `Failure`.
        owner: who settles it.
        callbacks: what to call once it is settled.
    """

    __slots__ = ("__weakref__", "callbacks", "outcome", "owner")

    def __init__(self, owner: Owner) -> None:
        self.outcome: Any = PENDING
        self.owner = owner
        self.callbacks: list[Callable[[Promise], None]] | None = None

    def get(self) -> Any:
        """Return the value, forcing it if need be.

        Raises:
            NotReady: it cannot be had yet.
            Exception: whatever the promise failed with.
        """
        outcome = self.settled()
        if type(outcome) is Failure:
            outcome.throw()
        return outcome

    def settled(self) -> Any:
        """Return the outcome, forcing it if need be."""
        if self.outcome is PENDING:
            self.owner.force(self)
        return self.outcome

    def when_settled(self, callback: Callable[[Promise], None]) -> None:
        """Call `callback` with this promise as soon as it is settled: once, perhaps now."""
        with _callbacks_lock:
            if self.callbacks is None:
                self.callbacks = []
            self.callbacks.append(callback)
        if self.outcome is PENDING:
            self.owner.follow(self)
        if self.outcome is not PENDING:  # perhaps only since then; they run once all the same
            self.run_callbacks()

    def run_callbacks(self) -> None:
        """Run the callbacks of a settled promise, each once."""
        with _callbacks_lock:
            callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            callback(self)

    def describe(self) -> str:
        """Return what this is the value of, without values that may be secret."""
        return "value"

    def note(self) -> str:
        """Return what to tell of it in an error: where it was called, above all."""
        return self.describe()
