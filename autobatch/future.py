"""The lazy value: a Future behaves as the value that it will have."""

from __future__ import annotations

import copy
import logging
import math
import operator
import reprlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from autobatch.promise import PENDING, Failure, Promise

T = TypeVar("T")


def _unary(operation: Callable[[Any], Any]) -> Any:
    def forward(self: Future) -> Any:
        return operation(_promise(self).get())

    return forward


def _binary(operation: Callable[[Any, Any], Any]) -> Any:
    def forward(self: Future, other: Any) -> Any:
        return operation(_promise(self).get(), other)

    return forward


def _reflected(operation: Callable[[Any, Any], Any]) -> Any:
    def forward(self: Future, other: Any) -> Any:
        return operation(other, _promise(self).get())

    return forward


def _variadic(operation: Callable[..., Any]) -> Any:
    def forward(self: Future, *args: Any) -> Any:
        return operation(_promise(self).get(), *args)

    return forward


class Future:
    """The value that a command will have.

    Using it in any way that needs the value forces it: the whole batch is sent, in one round
    trip. It behaves as the value in all that Python lets a class decide; what cannot be had is
    `is None`, `type(x) is`, and C code that looks at the real type: `unwrap` it there.

    Looking does not force: `repr`, `done()`, logging the object.
    """

    __slots__ = ("__weakref__", "_promise")

    # ---- its own interface -------------------------------------------------------------

    @property
    def value(self) -> Any:
        """The plain value; forces it.

        Raises:
            NotReady: the value cannot be had yet, as inside an open atomic block.
            Exception: the error of this command, such as redis-py's ResponseError.
        """
        return _promise(self).get()

    def done(self) -> bool:
        """Return whether the value, or the error, is known. Forces nothing."""
        return _promise(self).outcome is not PENDING

    def exception(self) -> BaseException | None:
        """Return the error of this command, or None where it has a value; forces it.

        Whoever asks has seen the error: it is not raised at the end of the scope any more.
        """
        outcome = _promise(self).settled()
        return outcome.look() if type(outcome) is Failure else None

    def map(self, function: Callable[[Any], Any]) -> Future:
        """Return the Future of `function(value)`, without forcing this one.

        Args:
            function: called once with the plain value, as soon as it is known. If it calls
                Redis and returns a Future, the result is that Future's value; commands called
                this way share the next round trip. If it raises, that is the result's error.

        Returns:
            A Future. If this one fails, so does the result, with the same error, and
            `function` is not called.
        """
        promise = _promise(self)
        mapped = _Mapped(promise, function)
        promise.when_settled(mapped.run)
        return future_of(mapped)

    # ---- looking is free ---------------------------------------------------------------

    def __repr__(self) -> str:
        promise = _promise(self)
        outcome = promise.outcome
        if outcome is PENDING:
            return f"<Future pending: {promise.describe()}>"
        if type(outcome) is Failure:
            return f"<Future failed: {promise.describe()}: {type(outcome.error).__name__}>"
        return f"<Future done: {_shorten.repr(outcome)}>"

    def __str__(self) -> str:
        # Logging must never flush: a record with a pending Future says that it is pending.
        if _promise(self).outcome is PENDING:
            caller = sys._getframe(1)  # noqa: SLF001  # public in all but name
            if caller.f_code is _LOG_MESSAGE:
                return repr(self)
        return str(_promise(self).get())

    def __getattr__(self, name: str) -> Any:
        # Asked by notebooks and pretty printers of every object that they show.
        if name.startswith(("_repr_", "_ipython_", "__rich")):
            raise AttributeError(name)
        return getattr(_promise(self).get(), name)

    # ---- it behaves as its value -------------------------------------------------------
    # Left off: __call__, __next__, __enter__, __exit__, __await__ and __get__, which no value
    # of Redis has. With them Django's templates call the value, Flask streams it, pydantic
    # takes it for an iterator. __fspath__ too, or every Future would be an os.PathLike.

    @property  # type: ignore[misc]  # isinstance() asks for it where type() says no
    def __class__(self) -> Any:
        return type(_promise(self).get())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _itself, (_promise(self).get(),)

    def __buffer__(self, flags: int) -> memoryview:  # Python 3.12 and newer ask for it
        return memoryview(_promise(self).get())

    def __contains__(self, item: Any) -> bool:
        return unwrap(item) in _promise(self).get()

    __setattr__ = _variadic(setattr)
    __delattr__ = _variadic(delattr)
    __dir__ = _unary(dir)
    __copy__ = _unary(copy.copy)
    __deepcopy__ = _binary(copy.deepcopy)
    __hash__ = _unary(hash)

    __bool__ = _unary(bool)
    __bytes__ = _unary(bytes)
    __format__ = _binary(format)
    __int__ = _unary(int)
    __float__ = _unary(float)
    __complex__ = _unary(complex)
    __index__ = _unary(operator.index)
    __round__ = _variadic(round)
    __trunc__ = _unary(math.trunc)
    __floor__ = _unary(math.floor)
    __ceil__ = _unary(math.ceil)

    __len__ = _unary(len)
    __iter__ = _unary(iter)
    __reversed__ = _unary(reversed)
    __getitem__ = _binary(operator.getitem)
    __setitem__ = _variadic(operator.setitem)
    __delitem__ = _binary(operator.delitem)

    __lt__ = _binary(operator.lt)
    __le__ = _binary(operator.le)
    __eq__ = _binary(operator.eq)
    __ne__ = _binary(operator.ne)
    __gt__ = _binary(operator.gt)
    __ge__ = _binary(operator.ge)

    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __abs__ = _unary(operator.abs)
    __invert__ = _unary(operator.invert)

    __add__ = _binary(operator.add)
    __sub__ = _binary(operator.sub)
    __mul__ = _binary(operator.mul)
    __matmul__ = _binary(operator.matmul)
    __truediv__ = _binary(operator.truediv)
    __floordiv__ = _binary(operator.floordiv)
    __mod__ = _binary(operator.mod)
    __divmod__ = _binary(divmod)
    __pow__ = _variadic(pow)
    __lshift__ = _binary(operator.lshift)
    __rshift__ = _binary(operator.rshift)
    __and__ = _binary(operator.and_)
    __xor__ = _binary(operator.xor)
    __or__ = _binary(operator.or_)

    __radd__ = _reflected(operator.add)
    __rsub__ = _reflected(operator.sub)
    __rmul__ = _reflected(operator.mul)
    __rmatmul__ = _reflected(operator.matmul)
    __rtruediv__ = _reflected(operator.truediv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __rmod__ = _reflected(operator.mod)
    __rdivmod__ = _reflected(divmod)
    __rpow__ = _reflected(pow)
    __rlshift__ = _reflected(operator.lshift)
    __rrshift__ = _reflected(operator.rshift)
    __rand__ = _reflected(operator.and_)
    __rxor__ = _reflected(operator.xor)
    __ror__ = _reflected(operator.or_)

    # The result is the plain value: `x += 1` leaves x an int, as it would be without batching.
    __iadd__ = _binary(operator.iadd)
    __isub__ = _binary(operator.isub)
    __imul__ = _binary(operator.imul)
    __imatmul__ = _binary(operator.imatmul)
    __itruediv__ = _binary(operator.itruediv)
    __ifloordiv__ = _binary(operator.ifloordiv)
    __imod__ = _binary(operator.imod)
    __ipow__ = _binary(operator.ipow)
    __ilshift__ = _binary(operator.ilshift)
    __irshift__ = _binary(operator.irshift)
    __iand__ = _binary(operator.iand)
    __ixor__ = _binary(operator.ixor)
    __ior__ = _binary(operator.ior)


# The slot's own accessors: attribute access on a Future is the value's.
_slot: Any = Future.__dict__["_promise"]
_promise: Callable[[Future], Promise] = _slot.__get__
set_promise: Callable[[Future, Promise], None] = _slot.__set__
_new = Future.__new__

_LOG_MESSAGE = logging.LogRecord.getMessage.__code__
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


def _itself(value: T) -> T:
    return value


def future_of(promise: Promise) -> Future:
    """Return a Future that shows `promise`."""
    future = _new(Future)
    set_promise(future, promise)
    return future


def promise_of(future: Future) -> Promise:
    """Return what stands behind `future`."""
    return _promise(future)


def unwrap(value: T) -> T:
    """Return the plain value of a Future, and anything else as it is.

    Use it where Python does not ask the object: `unwrap(x) is None`, `type(unwrap(x))`,
    `json.dumps(unwrap(x))`. For nested structures there is `resolve`.

    Raises:
        Exception: the error of the command, if it failed.
    """
    if type(value) is not Future:
        return value
    future: Any = value
    plain: T = _promise(future).get()
    return plain


class _Mapped(Promise):
    """The promise of a function of another promise's value."""

    __slots__ = ("_function", "_source")

    def __init__(self, source: Promise, function: Callable[[Any], Any]) -> None:
        super().__init__(source.owner)
        self._source = source
        self._function = function

    def run(self, source: Promise) -> None:
        if type(source.outcome) is Failure:
            self._finish(source.outcome)
            return
        try:
            result = self._function(source.outcome)
        except Exception as error:
            failure = Failure(error, self)
            self.owner.remember(failure)
            self._finish(failure)
            return
        if type(result) is Future:
            inner = promise_of(result)
            self.owner = inner.owner
            inner.when_settled(lambda promise: self._finish(promise.outcome))
        else:
            self._finish(result)

    def _finish(self, outcome: Any) -> None:
        self.outcome = outcome
        self.run_callbacks()

    def describe(self) -> str:
        return f"map of {self._source.describe()}"

    def note(self) -> str:
        return f"map of {self._source.note()}"
