"""Tests that run in an event loop, which must be clean when they end."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any

# Longer than anything here takes: who waits so long has met a bug, and fails instead of hanging.
PATIENCE = 20

_reports: contextvars.ContextVar[list[dict[str, Any]]] = contextvars.ContextVar("reports")


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of its own. Neither a task nor an unexpected report may be left."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(tidy(test(*args, **kwargs)))
        gc.collect()  # what was not closed warns now, and not in another test

    return run


async def tidy(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work`, and see that it leaves neither a task nor a report to the loop's handler."""
    reports: list[dict[str, Any]] = []
    _reports.set(reports)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with asyncio.timeout(PATIENCE):
        result = await work
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
    assert reports == []
    return result


async def reports() -> list[dict[str, Any]]:
    """Return, once, what the loop's exception handler was told since the test began."""
    gc.collect()
    await asyncio.sleep(0)
    told = list(_reports.get())
    _reports.get().clear()
    return told


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    while not condition():  # noqa: ASYNC110  # what threads and servers do sets no Event
        await asyncio.sleep(0.001)
