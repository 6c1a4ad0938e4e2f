"""What a handler returns, made plain: what the integrations of frameworks share."""

from __future__ import annotations

from typing import TypeVar

from autobatch.ambient import open_scope, whole_of
from autobatch.asyncio import resolve
from autobatch.report import Reason
from autobatch.unseen import surface

T = TypeVar("T")


async def plain(returned: T) -> T:
    """Settle what waits, and return what a handler has returned without any Future in it.

    Raises:
        Exception: the first error of a command that nobody has looked at.
    """
    await settle()
    return await resolve(returned)


async def settle(waves: int = 1) -> None:
    """Send what waits, without blocking the event loop.

    So a command that failed does it while the handler still runs, as far as its framework can
    tell: its exception handlers and the dependencies that it cleans up see the error.

    Args:
        waves: how often at most. What functions given to map() have called waits afterwards.

    Raises:
        Exception: the first error of a command that nobody has looked at.
    """
    scope = open_scope()
    if scope is not None:
        while scope.busy and waves:
            waves -= 1
            whole_of(scope).because(Reason.RESPONSE)
            await scope.aflush()
        surface(scope.unseen())
