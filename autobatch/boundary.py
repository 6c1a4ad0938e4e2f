"""`batch`: the decorator and context manager that marks where a scope begins and ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, overload

from autobatch import report
from autobatch.ambient import STRAY_LANE, Scope, ambient, open_scope
from autobatch.block import AtomicBlock, DiscardingBlock
from autobatch.command import calling_frame
from autobatch.errors import AutobatchError
from autobatch.promise import Failure
from autobatch.recording import atomic_block, own_scope
from autobatch.report import shortened
from autobatch.scope import (
    MAX_BYTES,
    MAX_COMMANDS,
    OwnScope,
    check_limits,
    dispatch_stray,
    open_scopes,
)
from autobatch.suggesting import suggesting_now
from autobatch.unseen import surface

P = ParamSpec("P")
R = TypeVar("R")
OnError = Literal["flush", "discard"]


# The `with` blocks that this context is in, the innermost last.
_passages: ContextVar[tuple[_Entered, ...]] = ContextVar("autobatch.passages", default=())


class _Entered:
    """One passage through a boundary."""

    __slots__ = ("_discard", "_own", "_part", "_token", "left", "scope")

    def __init__(
        self,
        boundary: Boundary,
        outer: Scope | None,
        lane: int | None = None,
        function: Callable[..., Any] | None = None,
    ) -> None:
        self.left = False
        self._own: OwnScope | None = None
        self._part: AtomicBlock | DiscardingBlock | None = None
        self._discard = boundary.on_error == "discard"
        joined = outer
        suggest = boundary.suggest
        if outer is None and report.listening:
            suggesting = suggesting_now()
            if suggesting is not None:
                if not boundary.join:
                    suggesting.step_aside()
                elif not boundary.atomic:
                    joined = outer = suggesting
                suggest = suggest is not False
        if outer is None:
            dispatch_stray()
            outer = self._own = own_scope(
                _name_of,
                function,
                boundary.max_commands,
                boundary.max_bytes,
                lane,
                # A transaction is one also where batching is only suggested.
                suggest=False if boundary.atomic else suggest,
            )
            open_scopes.add(outer)
        if boundary.atomic:
            self._part = atomic_block(outer)
        elif self._discard and self._own is None and not outer.closed:
            self._part = DiscardingBlock(outer)
        self.scope: Scope = self._part or outer
        # A plain join changes nothing.
        self._token = None if self.scope is joined else ambient.set(self.scope)

    def leave(self, error: BaseException | None) -> None:
        """End it, and raise the errors that nobody has looked at."""
        failures: list[Failure] = []
        try:
            own = self._prepare_end(error)
            if own is not None:
                failures = own.close()
            elif self._part is not None and self._part.parent.closed:
                failures = self._part.unseen()  # nobody else would tell
        finally:
            self.suspend()
        surface(failures, error)

    async def aleave(self, error: BaseException | None) -> None:
        """The same, without blocking the event loop."""
        failures: list[Failure] = []
        try:
            own = self._prepare_end(error)
            if own is not None:
                failures = await own.aclose()
            elif self._part is not None and self._part.parent.closed:
                await self._part.parent.aflush()
                failures = self._part.unseen()
        finally:
            self.suspend()
        surface(failures, error)

    def suspend(self) -> None:
        """Take the scope out of the context, while a generator lends control to its consumer."""
        if self._token is not None:
            try:  # noqa: SIM105  # suppress() costs more than all of this
                ambient.reset(self._token)
            except ValueError:  # in another context than it was entered in: nothing to take out
                pass

    def resume(self) -> None:
        """Put it back, perhaps into the context of another task."""
        if self._token is not None:
            self._token = ambient.set(self.scope)

    def _prepare_end(self, error: BaseException | None) -> OwnScope | None:
        """Return the scope that has to be closed, if this passage opened one."""
        self.left = True
        if self._part is not None:
            try:
                self._part.leave(error)
            except BaseException:  # it cannot be sent, and there is nothing else in here
                if self._own is not None:
                    self._own.close()
                raise
        if self._own is not None and error is not None and self._discard:
            self._own.discard()
        return self._own


class Boundary:
    """What `batch(...)` returns: a decorator, and a context manager of both kinds.

    Attributes:
        join, atomic, on_error, max_commands, max_bytes, suggest: as given to `batch`.
    """

    def __init__(
        self,
        *,
        join: bool,
        atomic: bool,
        on_error: OnError,
        max_commands: int,
        max_bytes: int,
        suggest: bool | None,
    ) -> None:
        if on_error not in ("flush", "discard"):
            raise ValueError(f'on_error must be "flush" or "discard", not {on_error!r}')
        check_limits(max_commands, max_bytes)
        self.join = join
        self.atomic = atomic
        self.on_error = on_error
        self.max_commands = max_commands
        self.max_bytes = max_bytes
        self.suggest = suggest
        self._plain = join and not atomic and on_error == "flush"
        # Of the `with` blocks on this very object: they may be nested, and in several threads.
        self._entered: list[_Entered] = []

    def __enter__(self) -> Scope:
        return self._remember(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._recall().leave(error)

    async def __aenter__(self) -> Scope:
        return self._remember(await self._aenter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._recall().aleave(error)

    def _remember(self, entered: _Entered) -> Scope:
        self._entered.append(entered)
        _passages.set((*[one for one in _passages.get() if not one.left], entered))
        return entered.scope

    def _recall(self) -> _Entered:
        passages = _passages.get()
        for entered in reversed(passages):
            if entered in self._entered:
                self._entered.remove(entered)
                _passages.set(tuple([other for other in passages if other is not entered]))
                return entered
        if not self._entered:
            raise RuntimeError("this block was left, but never entered")
        return self._entered.pop()  # entered in another context, as fixtures and generators may

    def _enter(self, function: Callable[..., Any] | None = None) -> _Entered:
        outer = open_scope()
        if outer is not None and not self.join:
            _check_not_held(outer)
            outer.step_aside()
            return _Entered(self, None, outer.lane, function)
        # It may end without waiting for an event loop, so it stays in line with what comes after.
        return _Entered(self, outer, STRAY_LANE, function)

    async def _aenter(self, function: Callable[..., Any] | None = None) -> _Entered:
        outer = open_scope()
        if outer is not None and not self.join:
            _check_not_held(outer)
            await outer.astep_aside()
            return _Entered(self, None, outer.lane, function)
        return _Entered(self, outer, None, function)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return `function` with this boundary around each call of it."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                "batch decorates functions and methods, below @classmethod and @property. It takes "
                "no client: `with autobatch.batch():` is a scope of all of them. This is "
                f"{type(function).__module__}.{type(function).__qualname__}"
            )
        wrapper: Any
        if inspect.isasyncgenfunction(function):
            wrapper = self._around_async_generator(function)
        elif inspect.iscoroutinefunction(function):
            wrapper = self._around_coroutine(function)
        elif inspect.isgeneratorfunction(function):
            wrapper = self._around_generator(function)
        else:
            wrapper = self._around_function(function)
        return functools.wraps(function)(wrapper)

    def _around_function(self, function: Callable[P, R]) -> Callable[P, R]:
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._plain and open_scope() is not None:
                return function(*args, **kwargs)
            entered = self._enter(function)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                entered.leave(error)
                raise
            entered.leave(None)
            return result

        return wrapper

    def _around_coroutine(self, function: Callable[P, Any]) -> Callable[P, Any]:
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            if self._plain and open_scope() is not None:
                return await function(*args, **kwargs)
            entered = await self._aenter(function)
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                await entered.aleave(error)
                raise
            await entered.aleave(None)
            return result

        return wrapper

    def _around_generator(self, function: Callable[P, Any]) -> Callable[P, Any]:
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
            generator: Generator[Any, Any, Any] = function(*args, **kwargs)
            if self._plain and open_scope() is not None:
                return (yield from generator)
            entered = self._enter(function)
            step = functools.partial(next, generator)
            try:
                while True:
                    try:
                        item = step()
                    except StopIteration as stop:
                        result = stop.value
                        break
                    entered.suspend()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        entered.resume()
                        generator.close()
                        result = None
                        break
                    except BaseException as error:
                        entered.resume()
                        step = functools.partial(generator.throw, error)
                    else:
                        entered.resume()
                        step = functools.partial(generator.send, sent)
            except BaseException as error:
                entered.leave(error)
                raise
            entered.leave(None)
            return result

        return wrapper

    def _around_async_generator(self, function: Callable[P, Any]) -> Callable[P, Any]:
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
            generator: AsyncGenerator[Any, Any] = function(*args, **kwargs)
            entered = await self._aenter(function)
            step = functools.partial(anext, generator)
            try:
                while True:
                    try:
                        item = await step()
                    except StopAsyncIteration:
                        break
                    entered.suspend()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        entered.resume()
                        await generator.aclose()
                        break
                    except BaseException as error:
                        entered.resume()
                        step = functools.partial(generator.athrow, error)
                    else:
                        entered.resume()
                        step = functools.partial(generator.asend, sent)
            except BaseException as error:
                await entered.aleave(error)
                raise
            await entered.aleave(None)

        return wrapper


def _name_of(function: Callable[..., Any] | None) -> str:
    if function is not None:
        return f"{function.__module__}.{function.__qualname__}"
    frame = calling_frame()
    return f"{shortened(frame.f_code.co_filename)}:{frame.f_lineno}"


def _check_not_held(outer: Scope) -> None:
    if outer.held:
        raise AutobatchError(
            "a scope of its own (join=False) cannot be opened inside an atomic block, whose "
            "commands would have to be sent before it: open it before or after the block"
        )


@overload
def batch(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def batch(
    *,
    join: bool = True,
    atomic: bool = False,
    on_error: OnError = "flush",
    max_commands: int = MAX_COMMANDS,
    max_bytes: int = MAX_BYTES,
    suggest: bool | None = None,
) -> Boundary: ...


def batch(
    function: Callable[P, R] | None = None,
    /,
    *,
    join: bool = True,
    atomic: bool = False,
    on_error: OnError = "flush",
    max_commands: int = MAX_COMMANDS,
    max_bytes: int = MAX_BYTES,
    suggest: bool | None = None,
) -> Callable[P, R] | Boundary:
    """Mark where a scope begins and ends, as a decorator or as a context manager.

    Inside, every call of a batching client is queued and returns a Future; what waits is sent in
    one round trip when a value is needed, at the latest when the outermost scope ends. It works
    on functions, methods, generators, coroutine functions and async generators, and as
    `async with`. A generator's scope covers its body, not the code that consumes it.

    Args:
        function: what `@batch` without options decorates.
        join: become a part of the scope around it, if there is one. With False it opens its own,
            after what waits around it was sent, and has sent everything when it ends.
        atomic: run its own commands, those of each client, as one transaction (MULTI and EXEC,
            in the same round trip). Their values are known after the block. If the block raises,
            they are dropped. Pipelines, locks and `client.eager` in it run before them.
        on_error: "flush" sends what waits also when the block raises; "discard" drops those of
            its commands that still wait then.
        max_commands: a scope of its own is flushed early when so many commands wait.
        max_bytes: likewise, when they hold so many bytes.
        suggest: with True, a scope of its own batches nothing: every call runs as outside any
            scope, with a plain value, and the end of the scope logs, at level INFO of the logger
            `autobatch.report`, what batching would have saved. By default as the environment
            variable AUTOBATCH_SUGGEST says.

    Raises:
        ValueError: `on_error` is neither, or a limit is less than 1.
        TypeError: `function` is none.
        AutobatchError: a scope of its own was to be opened inside an atomic block.
        NotReady: a value was needed inside its own atomic block.
        Exception: at the end of the outermost scope, the first error of a command that nobody
            has looked at; the others are its notes.
    """
    boundary = Boundary(
        join=join,
        atomic=atomic,
        on_error=on_error,
        max_commands=max_commands,
        max_bytes=max_bytes,
        suggest=suggest,
    )
    return boundary if function is None else boundary(function)
