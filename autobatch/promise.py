"""What stands behind a Future: a cell that is settled once."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, TracebackType
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


class _Pending:
    __slots__ = ()

    def __repr__(self) -> str:
        return "PENDING"


PENDING: Final = _Pending()

# Guards the callbacks of every promise. They are rare and taking them is short: one lock does.
_callbacks_lock = threading.RLock()


# It may return a promise that it has settled, whose own callbacks come next.
Callback: TypeAlias = "Callable[[Promise], Promise | None]"


class Owner(Protocol):
    """Who can settle a promise: a scope."""

    @property
    def written_slots(self) -> set[int]:
        """The slots of clusters that were written in it, to be added to."""

    def force(self, promise: Promise) -> None:
        """Settle `promise`, or raise `NotReady`."""

    def want(self, promise: Promise) -> None:
        """See to it that `promise` is settled soon: somebody awaits it."""

    def remember(self, failure: Failure) -> None:
        """Raise `failure` at the end, should nobody have looked at it by then."""

    def follow(self, promise: Promise) -> None:
        """Run the callbacks of `promise` after it was settled."""

    def resent(self, promise: Promise) -> None:
        """Note that something is sent again."""


def run_all(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Call `function` with every item, also if one call is interrupted; that is raised then."""
    interrupted: BaseException | None = None
    for item in items:
        try:
            function(item)
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def without_frame(error: BaseException) -> None:
    """Take the frame that caught an error out of its traceback: it holds what holds the error."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def printable(text: str) -> str:
    """Return a text that can neither break a line nor command a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Origin:
    """Where a promise comes from: what can be told of it when it is gone.

    Attributes:
        description: of what it is the value, without values that may be secret.
        code, instruction: where the program called it. The line is looked up if it is asked for.
        number: its place in the program's order.
    """

    __slots__ = ("code", "description", "instruction", "number")

    def __init__(
        self, description: str, number: int, code: CodeType | None = None, instruction: int = 0
    ) -> None:
        self.description = description
        self.number = number
        self.code = code
        self.instruction = instruction

    def note(self) -> str:
        """Return what to tell of it in an error: where it was called, above all."""
        code = self.code
        if code is None:
            return self.description
        line = next(itertools.islice(code.co_positions(), self.instruction // 2, None))[0]
        return f"{self.description}, queued at {code.co_filename}:{line} in {code.co_qualname}"


class Failure:
    """The outcome of a promise that failed.

    Attributes:
        error: what to raise.
        origin: what failed first.
        seen: somebody was told, so it need not surface at the end of the scope.
        report: what to do if nobody was told until this is forgotten.
        text: of the error, without what may be secret.
    """

    __slots__ = ("_noted", "_traceback", "error", "origin", "report", "seen", "text")

    def __init__(self, error: BaseException, promise: Promise) -> None:
        self.seen = False
        self.report: Callable[[Failure], None] | None = None
        self.error = error
        self.origin = promise.origin()
        try:
            self.text = promise.text_of(error)
        except Exception:  # the error's own __str__: no reason not to settle
            self.text = "an error without a text"
        self._noted = False
        self._traceback: TracebackType | None = error.__traceback__

    def __del__(self) -> None:
        report = getattr(self, "report", None)  # it may not have been made whole
        if report is not None and not self.seen:
            report(self)

    def look(self) -> BaseException:
        """Return the error, which counts as seen from now on."""
        self.seen = True
        if not self._noted:
            self._noted = True
            self.error.add_note(self.origin.note())
        return self.error

    def summary(self) -> str:
        """Return the error and where it comes from, in one line."""
        return f"{type(self.error).__name__}: {printable(self.text)} ({self.origin.note()})"

    def for_log(self) -> BaseException:
        """Return an error of the same type that tells no more than `summary` does."""
        error = self.error
        if str(error) == self.text or error.__traceback__ is not None:
            return error
        masked = type(error).__new__(type(error), self.text)
        masked.args = (self.text,)
        return masked

    def throw(self) -> NoReturn:
        """Raise a copy of the error.

        Raising adds the frames it passes to an error, and they hold this: a stored error would
        be part of a reference cycle. It also would keep the frames of whoever raised it before.
        """
        error = fresh = self.look()
        kind = type(error)
        with contextlib.suppress(TypeError):  # a class that makes its instances in another way
            native = next(base for base in kind.__mro__ if base.__module__ == "builtins")
            if native.__basicsize__ == Exception.__basicsize__:
                # Not through the constructor, which may have changed its arguments already.
                fresh = kind.__new__(kind, *error.args)
            elif not isinstance(kind.__init__, FunctionType):
                fresh = kind(*error.args)  # UnicodeDecodeError and the like keep them elsewhere
        if fresh is not error:
            fresh.__dict__.update(error.__dict__)
            fresh.__notes__ = list(error.__notes__)
        fresh.__cause__ = error.__cause__
        fresh.__context__ = error.__context__
        fresh.__suppress_context__ = error.__suppress_context__
        try:
            raise fresh.with_traceback(self._traceback)
        finally:
            del error, fresh, self


class Promise:
    """A value that will be known later.

    Attributes:
        outcome: PENDING, then for good a plain value or a `Failure`.
        owner: who settles it.
        callbacks: what to call once it is settled.
        number: its place in the program's order, where that needs to be known.
    """

    __slots__ = ("__weakref__", "callbacks", "number", "outcome", "owner")

    def __init__(self, owner: Owner) -> None:
        self.outcome: Any = PENDING
        self.owner = owner
        self.number = 0
        self.callbacks: list[Callback] | None = None

    def get(self) -> Any:
        """Return the value, forcing it if need be.

        Raises:
            NotReady: it cannot be had yet.
            Exception: whatever the promise failed with.
        """
        outcome = self.outcome
        if outcome is PENDING:
            outcome = self.settled()
        if type(outcome) is Failure:
            outcome.throw()
        return outcome

    def settled(self) -> Any:
        """Return the outcome, forcing it if need be."""
        while self.outcome is PENDING:  # its owner may have changed meanwhile
            self.owner.force(self)
        return self.outcome

    def want(self) -> None:
        """See to it that this is settled soon: somebody awaits it."""
        self.owner.want(self)

    def when_settled(self, callback: Callback) -> None:
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
        """Run the callbacks of a settled promise, each once, and those of what they settle."""
        interrupted: BaseException | None = None
        settled: list[Promise] = [self]
        for promise in settled:  # which grows meanwhile; chains may be long: no recursion
            with _callbacks_lock:
                callbacks, promise.callbacks = promise.callbacks, None
            for callback in callbacks or ():
                try:
                    next_settled = callback(promise)
                except BaseException as error:  # nobody else may miss it
                    interrupted = error
                    continue
                if next_settled is not None:
                    settled.append(next_settled)
        if interrupted is not None:
            raise interrupted

    def describe(self) -> str:
        """Return what this is the value of, without values that may be secret."""
        return "value"

    def text_of(self, error: BaseException) -> str:
        """Return what to tell of an error elsewhere than where it is raised."""
        return str(error)

    def root(self) -> Promise:
        """Return what this is made from: a command's promise; this one, if it is none of map()."""
        return self

    @property
    def asynchronous(self) -> bool:
        """Whether it can only be awaited, since no thread may wait for it."""
        return False

    def doubt(self) -> None:
        """Note that somebody waits no longer: its connection may have gone silent."""

    def origin(self) -> Origin:
        """Return what can be told of this when it is gone."""
        return Origin(self.describe(), self.number)
