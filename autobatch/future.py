"""The lazy value: a Future behaves as the value that it will have."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import logging
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, NoReturn, TypeVar

from autobatch.errors import NotReady, PendingAttribute
from autobatch.promise import PENDING, Failure, Origin, Promise, without_frame

T = TypeVar("T")


def _unary(operation: Callable[[Any], Any]) -> Any:
    def forward(self: Future) -> Any:
        return operation(_promise(self).get())

    return forward


def _binary(operation: Callable[[Any, Any], Any]) -> Any:
    def forward(self: Future, other: Any) -> Any:
        return operation(_promise(self).get(), unwrap(other))

    return forward


def _reflected(operation: Callable[[Any, Any], Any]) -> Any:
    def forward(self: Future, other: Any) -> Any:
        return operation(other, _promise(self).get())

    return forward


def _variadic(operation: Callable[..., Any]) -> Any:
    def forward(self: Future, *args: Any) -> Any:
        return operation(_promise(self).get(), *map(unwrap, args))

    return forward


class Future:
    """The value that a command will have.

    Using it in any way that needs the value forces it: the whole batch is sent, in one round
    trip. It behaves as the value in all that Python lets a class decide; what cannot be had is
    `is None`, `type(x) is`, and C code that looks at the real type: `unwrap` it there.

    Looking does not force: `repr`, `done()`, logging the object.
    """

    __slots__ = ("__weakref__", "_promise")

    def __init__(self, *_: Any, **__: Any) -> None:
        """Say what has gone wrong: `dataclasses.asdict` and its like call `type(value)(...)`.

        Raises:
            TypeError: always; `future_of` makes Futures.
        """
        raise TypeError(
            "something called type(value)(...) where the value is a Future: "
            "give it autobatch.unwrap(value), or autobatch.resolve(...) of what contains it"
        )

    # ---- its own interface -------------------------------------------------------------

    @property
    def value(self) -> Any:
        """The plain value; forces it.

        Raises:
            NotReady: the value cannot be had yet, as inside an open atomic block.
            Exception: the error of this command, such as redis-py's ResponseError.
        """
        promise = _promise(self)
        outcome = promise.outcome
        if outcome is PENDING or type(outcome) is Failure:
            return promise.get()
        return outcome

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

        Raises:
            TypeError: `function` is none, or a coroutine function, which nobody would await.
        """
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(
                "map() takes a plain function, which may call Redis and return the Future, not "
                f"{function!r}. For a coroutine function, await the value first"
            )
        promise = _promise(self)
        mapped = _Mapped(promise, function)
        promise.when_settled(mapped.run)
        return future_of(mapped, type(self))

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
        if _promise(self).outcome is PENDING and _is_logging(sys._getframe().f_back):  # noqa: SLF001
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
        if _promise(self).outcome is PENDING:
            caller = sys._getframe().f_back  # noqa: SLF001  # there may be none, or no other
            if caller is not None and _is_logging(caller.f_back):
                return Future  # a record asks whether its one argument is a mapping
        return type(_promise(self).get())

    @property
    def __pydantic_serializer__(self) -> Any:
        return _pydantic_serializer()  # only pydantic asks for it

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Whoever loads it gets the plain value, and needs no autobatch.
        return operator.getitem, ((_promise(self).get(),), 0)

    def __buffer__(self, flags: int) -> memoryview:  # Python 3.12 and newer ask for it
        return memoryview(_promise(self).get())

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
    __contains__ = _binary(operator.contains)
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

    def __radd__(self, other: Any) -> Any:
        value = _promise(self).get()
        if type(other) is list and type(value) is not list:
            return NotImplemented  # `items += value` takes anything that can be iterated
        return other + value

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


class AsyncFuture(Future):
    """The value that a command of an asyncio client will have: `await` it.

    Awaiting sends what waits at the end of the event loop's tick, together with whatever else is
    ready by then, and gives the plain value, any number of times. It passes for a coroutine, so
    `asyncio.gather`, `wait_for`, `create_task` and the like take it. Touching the value before it
    is there raises `NotReady`; once it is there, this behaves as the value, without `await`.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        promise = _promise(self)
        if promise.outcome is PENDING:
            try:
                yield from _waiter(promise)
            except asyncio.CancelledError:
                promise.root().doubt()
                raise
        outcome = promise.outcome
        if outcome is PENDING or type(outcome) is Failure:
            return promise.get()
        return outcome

    # A task drives a coroutine by these. Each call answers from the state of the promise alone,
    # so several tasks may drive the same Future.

    def send(self, _: None) -> Any:
        """Return what to wait for, or raise StopIteration with the value."""
        promise = _promise(self)
        if promise.outcome is not PENDING:
            raise StopIteration(promise.get())
        waiter = _waiter(promise)
        waiter._asyncio_future_blocking = True  # noqa: SLF001  # what `yield from` sets, too
        return waiter

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> NoReturn:
        """Raise what was thrown in: there is nothing here to clean up."""
        error = value if value is not None else kind
        error = error() if isinstance(error, type) else error
        if isinstance(error, asyncio.CancelledError):
            _promise(self).root().doubt()
        raise error if traceback is None else error.with_traceback(traceback)

    def close(self) -> None:
        """Do nothing: the command goes its way."""

    def __getattr__(self, name: str) -> Any:
        promise = _promise(self)
        if promise.outcome is PENDING:
            raise not_ready(promise, PendingAttribute)
        # A task's repr asks what its coroutine is, which must not raise a command's error.
        if name.startswith(("cr_", "gi_", "ag_", "__")) and not self._has_value():
            raise AttributeError(name)
        return Future.__getattr__(self, name)

    def __hash__(self) -> int:
        # gather() and the like put awaitables into sets and dicts. There each stands for itself,
        # whatever its value is, and whether it has one.
        # Anywhere else it would be lost in the dict when its value, with another hash, is there.
        if sys._getframe(1).f_code.co_filename == asyncio.tasks.__file__:  # noqa: SLF001
            return object.__hash__(self)
        return hash(_promise(self).get())

    @property  # type: ignore[misc]  # as in Future
    def __class__(self) -> Any:
        return type(_promise(self).get()) if self._has_value() else AsyncFuture

    def _has_value(self) -> bool:
        # A failed one raises where it is awaited, not where somebody asks what it is.
        outcome = _promise(self).outcome
        return outcome is not PENDING and type(outcome) is not Failure


FUTURE_TYPES = frozenset({Future, AsyncFuture})


def _waiter(promise: Promise) -> asyncio.Future[None]:
    waiter = asyncio.get_running_loop().create_future()
    promise.want()
    promise.when_settled(functools.partial(wake, waiter))
    return waiter


def wake(waiter: asyncio.Future[None], _: Promise | None = None) -> None:
    """Wake whoever awaits `waiter`, in any event loop; from any thread."""
    loop = waiter.get_loop()
    if loop is asyncio._get_running_loop():  # noqa: SLF001  # the one that never raises
        if not waiter.done():
            waiter.set_result(None)
    elif not loop.is_closed():  # somebody in another thread awaits it
        loop.call_soon_threadsafe(wake, waiter)


def not_ready(promise: Promise, kind: type[NotReady] = NotReady) -> NotReady:
    """Return what to raise where the value of an asyncio client's Future is touched too early."""
    return kind(
        f"the value of {promise.describe()} is not there yet: await it, or await "
        "autobatch.asyncio.flush() before you use it"
    )


# The slot's own accessors: attribute access on a Future is the value's.
_slot: Any = Future.__dict__["_promise"]
_promise: Callable[[Future], Promise] = _slot.__get__
set_promise: Callable[[Future, Promise], None] = _slot.__set__
_new = Future.__new__

_LOGGING = {logging.LogRecord.getMessage.__code__, logging.LogRecord.__init__.__code__}
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


def _is_logging(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code in _LOGGING


def future_of(promise: Promise, kind: type[Future] = Future) -> Future:
    """Return a Future that shows `promise`."""
    future = _new(kind)
    set_promise(future, promise)
    return future


def promise_of(future: Future) -> Promise:
    """Return what stands behind `future`."""
    return _promise(future)


async def arrival(future: Future) -> None:
    """Wait until an asyncio client's Future is settled. Its error, if it failed, stays in it."""
    promise = _promise(future)
    while promise.outcome is PENDING:
        await _waiter(promise)


def unwrap(value: T) -> T:
    """Return the plain value of a Future, and anything else as it is.

    Use it where Python does not ask the object: `unwrap(x) is None`, `type(unwrap(x))`,
    `json.dumps(unwrap(x))`. For nested structures there is `resolve`.

    Raises:
        Exception: the error of the command, if it failed.
    """
    if type(value) not in FUTURE_TYPES:
        return value
    future: Any = value
    plain: T = _promise(future).get()
    return plain


@functools.cache
def _pydantic_serializer() -> Any:
    """Return what serialises a Future as its value, by the rules for values of any type."""
    from pydantic_core import SchemaSerializer, core_schema  # noqa: PLC0415  # it has asked for this

    plainly = core_schema.plain_serializer_function_ser_schema(unwrap)
    return SchemaSerializer(core_schema.any_schema(serialization=plainly))


class _Mapped(Promise):
    """The promise of a function of another promise's value."""

    __slots__ = ("_context", "_function", "_source", "_wanted")

    def __init__(self, source: Promise, function: Callable[[Any], Any]) -> None:
        super().__init__(source.owner)
        self._source = source
        self._function = function
        self._wanted = False
        # Replies may arrive in another context, but what the function calls belongs to this one.
        self._context = contextvars.copy_context()

    def run(self, source: Promise) -> Promise | None:
        """Settle with the function's result; return what is settled by that."""
        if type(source.outcome) is Failure:
            return self._settle(source.outcome)
        try:
            result = self._context.run(self._function, source.outcome)
        except BaseException as error:
            without_frame(error)
            failure = Failure(error, self)
            self.owner.remember(failure)
            self._settle(failure)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.run_callbacks()
                raise
            return self
        if type(result) not in FUTURE_TYPES:
            return self._settle(result)
        inner = self._source = promise_of(result)
        self.owner = inner.owner
        if self._wanted and inner.outcome is PENDING:
            inner.want()
        inner.when_settled(lambda promise: self._settle(promise.outcome))
        return None

    def _settle(self, outcome: Any) -> Promise:
        self.outcome = outcome
        return self

    def want(self) -> None:
        # Chains may be long: no recursion.
        promise: Promise = self
        while isinstance(promise, _Mapped):
            promise._wanted = True  # noqa: SLF001  # one of its kind
            promise = promise._source  # noqa: SLF001
        if promise.outcome is PENDING:
            promise.want()

    @property
    def asynchronous(self) -> bool:
        return self.root().asynchronous

    def root(self) -> Promise:
        promise: Promise = self
        while isinstance(promise, _Mapped):
            promise = promise._source  # noqa: SLF001  # one of its kind
        return promise.root()

    def describe(self) -> str:
        return f"map of {self.root().describe()}"

    def origin(self) -> Origin:
        origin = self.root().origin()
        origin.description = f"map of {origin.description}"
        return origin


def combine(futures: list[Future], function: Callable[[list[Any]], Any]) -> Future:
    """Return the Future of `function([values])`, without forcing any.

    Args:
        futures: at least one; all of one scope.
        function: called once with the plain values, when all of them are known. If any of them
            failed, the first such error is the result's.
    """
    combined = _Combined([_promise(future) for future in futures], function)
    return future_of(combined, type(futures[0]))


class _Combined(Promise):
    """The promise of a function of several promises' values."""

    __slots__ = ("_function", "_parts", "_turn")

    def __init__(self, parts: list[Promise], function: Callable[[list[Any]], Any]) -> None:
        super().__init__(parts[0].owner)
        self._parts = parts
        self._function = function
        self._turn = [self]  # whoever takes it settles this: replies may come in several threads
        for part in parts:
            part.when_settled(self._try)

    def _try(self, _: Promise) -> Promise | None:
        if not self._turn or any(part.outcome is PENDING for part in reversed(self._parts)):
            return None
        try:
            self._turn.pop()
        except IndexError:
            return None
        outcomes = [part.outcome for part in self._parts]
        failures: list[Failure] = [one for one in outcomes if type(one) is Failure]
        failed = failures[0] if failures else None
        for other in failures[1:]:  # nobody can look at them: they are told with the first
            if not other.seen:
                other.seen = True
                failures[0].error.add_note(f"Also failed: {other.summary()}")
        if failed is None:
            try:
                self.outcome = self._function(outcomes)
            except BaseException as error:
                without_frame(error)
                failed = Failure(error, self)
                self.owner.remember(failed)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    self.outcome = failed
                    raise
        if failed is not None:
            self.outcome = failed
        return self

    def want(self) -> None:
        for part in self._parts:
            if part.outcome is PENDING:
                part.want()

    @property
    def asynchronous(self) -> bool:
        return self._parts[0].asynchronous

    def root(self) -> Promise:
        return self._parts[0].root()

    def describe(self) -> str:
        return self._parts[0].describe()

    def origin(self) -> Origin:
        return self._parts[0].origin()
