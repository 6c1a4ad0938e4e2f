"""GraphQL: all Futures that the resolvers of one level return share a round trip.

graphql-core completes value after value, depth first, so a synchronous Future would be forced as
soon as it is returned, each in a round trip of its own. But what is awaitable it sets aside until
all of a level has been resolved. So Futures become awaitable here, and where the execution is
synchronous, its coroutines are run without an event loop: until all of them wait, then what waits
is flushed, and so on, level by level.

Futures of asyncio clients are awaitable as they are: where there are only those, nothing of this
module is needed.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import functools
from collections.abc import Callable, Coroutine, Generator, Iterator, ValuesView
from types import CoroutineType, NoneType
from typing import Any

from graphql import get_nullable_type, is_list_type

from autobatch.future import FUTURE_TYPES, AsyncFuture, future_of, promise_of
from autobatch.promise import PENDING, Failure, Promise

try:
    from graphql.execution.incremental import IncrementalExecutor as DefaultExecutor
except ImportError:  # graphql-core 3.2
    from graphql import (  # type: ignore[attr-defined, no-redef]
        ExecutionContext as DefaultExecutor,
    )

__all__ = ["BatchExecutor", "Batching", "DefaultExecutor"]

# For those who write event loops; the first one never raises.
_running_loop = asyncio._get_running_loop  # noqa: SLF001
_set_running_loop = asyncio._set_running_loop  # noqa: SLF001
_PLAIN = frozenset({NoneType, bool, int, float, str, dict})


class Batching:
    """What makes an executor of graphql-core collect levels.

    For an executor class of your own: `class Executor(Batching, TheExecutorYouHave)`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        executor: Any = self
        # graphql_sync() tells it to take nothing for awaitable.
        self._synchronous = not executor.is_awaitable(_Awaitable())
        executor.middleware_manager = _Resolvers(executor.middleware_manager)
        executor.is_awaitable = functools.partial(_is_awaitable, executor.is_awaitable)

    def execute_operation(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the operation; where no event loop runs, do all of it before returning."""
        result = super().execute_operation(*args, **kwargs)  # type: ignore[misc]  # a mixin
        if type(result) is CoroutineType and (self._synchronous or _running_loop() is None):
            return _Levels().run(result)  # type: ignore[abstract]
        return result


class BatchExecutor(Batching, DefaultExecutor):
    """The executor that graphql-core takes by default, collecting levels.

    Give it to `graphql.execute`, `graphql_sync` and the like: as `executor_class`, or with
    graphql-core 3.2 as `execution_context_class`.
    """


class _Resolvers:
    """Stands for the manager of graphql-core's middleware, and goes round all of that."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def get_field_resolver(self, resolver: Callable[..., Any]) -> Callable[..., Any]:
        if self._inner is not None:
            resolver = self._inner.get_field_resolver(resolver)
        return functools.partial(_resolve, resolver)


def _resolve(resolver: Callable[..., Any], source: Any, info: Any, /, **args: Any) -> Any:
    loop = _running_loop()
    if type(loop) is not _Levels:
        value = resolver(source, info, **args)
    else:  # synchronous code may refuse to work in an event loop, and there is none
        _set_running_loop(loop.around)
        try:
            value = resolver(source, info, **args)
        finally:
            _set_running_loop(loop)
    if type(value) in _PLAIN:
        return value
    returns_list = is_list_type(get_nullable_type(info.return_type))
    if type(value) is CoroutineType:
        return _following(value, returns_list=returns_list)
    return _awaitable(value, returns_list=returns_list)


async def _following(coroutine: Coroutine[Any, Any, Any], *, returns_list: bool) -> Any:
    value = _awaitable(await coroutine, returns_list=returns_list)
    return await value if type(value) is _Waiting else value


def _awaitable(value: Any, *, returns_list: bool) -> Any:
    """Return what graphql-core can wait for in the place of Futures."""
    if type(value) in FUTURE_TYPES:
        promise = promise_of(value)
        if promise.outcome is PENDING:
            return _Waiting(promise, returns_list=returns_list)
        value = promise.get()
    if returns_list and isinstance(value, (list, tuple, ValuesView)):
        return [_awaitable(item, returns_list=True) for item in value]  # of lists, perhaps
    if returns_list and isinstance(value, Iterator):  # which may be long: one after the other
        return map(functools.partial(_awaitable, returns_list=True), value)
    return value


class _Waiting:
    """Awaits the value of a Future."""

    __slots__ = ("_promise", "_returns_list")

    def __init__(self, promise: Promise, *, returns_list: bool) -> None:
        self._promise = promise
        self._returns_list = returns_list

    def __await__(self) -> Generator[Any, None, Any]:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(loop, _Levels):
                yield from loop.waiter(self._promise)
            else:
                yield from _settling(self._promise)
        except asyncio.CancelledError:
            # Its parent is null by the error of another field, and GraphQL tells of that alone.
            self._promise.when_settled(_look)
            raise
        return _awaitable(self._promise.get(), returns_list=self._returns_list)


def _settling(promise: Promise) -> Generator[Any, None, None]:
    while promise.outcome is PENDING:
        if promise.asynchronous:
            yield from future_of(promise, AsyncFuture).__await__()
        else:
            promise.want()  # it is sent when the tick ends, with all that was called by then
            yield
            # In a thread; but all who wait go on in one tick, so the next level stays together.
            owner: Any = promise.owner
            yield from owner.aflush().__await__()


def _look(promise: Promise) -> None:
    if type(promise.outcome) is Failure:
        promise.outcome.look()


class _Awaitable:
    def __await__(self) -> Generator[Any, None, None]:
        raise NotImplementedError


def _is_awaitable(is_awaitable: Callable[[Any], bool], value: Any) -> bool:
    # A synchronous execution may assume that nothing is: it does not know of us.
    return type(value) is _Waiting or type(value) is CoroutineType or is_awaitable(value)


class _Levels(asyncio.AbstractEventLoop):
    """Just so much of an event loop as graphql-core's coroutines need, which do no I/O.

    Attributes:
        around: the real one, where a synchronous execution takes place in it.
    """

    def __init__(self) -> None:
        self.around = _running_loop()
        self._ready: collections.deque[Callable[[], Any]] = collections.deque()
        self._waiters: list[tuple[Promise, asyncio.Future[None]]] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` to its end, and return its result."""
        task = self.create_task(coroutine)
        while True:
            self._run_until_all_wait()
            if task.done():
                return task.result()
            if not self._waiters:  # something awaits what only a real loop could give
                task.cancel()
                self._run_until_all_wait()
                raise RuntimeError("GraphQL execution failed to complete synchronously.")
            waiters, self._waiters = self._waiters, []
            for promise, waiter in waiters:
                with contextlib.suppress(Exception):  # which is raised where it is awaited
                    promise.settled()
                if not waiter.done():
                    waiter.set_result(None)

    def _run_until_all_wait(self) -> None:
        _set_running_loop(self)  # for gather() and the like
        try:
            while self._ready:
                self._ready.popleft()()
        finally:
            _set_running_loop(self.around)

    def waiter(self, promise: Promise) -> asyncio.Future[None]:
        """Return what is done when `promise` is settled."""
        waiter = self.create_future()
        self._waiters.append((promise, waiter))
        return waiter

    # ---- what asyncio's tasks and futures ask of their loop --------------------------------

    def call_soon(  # type: ignore[override]  # as they call it
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = context or contextvars.copy_context()
        self._ready.append(functools.partial(context.run, callback, *args))
        return asyncio.Handle(callback, args, self, context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Say nothing: what was left unfinished was so by an exception, which tells of it."""
