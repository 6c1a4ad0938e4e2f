"""Task queues: what they have in common, which is all that one without its own module needs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from autobatch.boundary import batch
from autobatch.resolve import resolve

P = ParamSpec("P")
R = TypeVar("R")


def own_scope(function: Callable[P, R]) -> Callable[P, R]:
    """Return a task's function with a scope of its own around each call.

    What waits has been sent when the call ends. An error that nobody has looked at is the call's
    own, so the queue's retries work as they do for the function itself.

    Args:
        function: a function or a coroutine function.

    Returns:
        What takes the same arguments, and returns plain values where `function` returns Futures,
        in nested structures too: a task's result is serialised by code that knows no Futures.
    """
    wrapper: Any
    scoped: Any = batch(join=False)(function)
    if inspect.iscoroutinefunction(function):

        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resolve(await scoped(*args, **kwargs))

    else:

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resolve(scoped(*args, **kwargs))

    return functools.wraps(function)(wrapper)
