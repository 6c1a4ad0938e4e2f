"""What a handler returns, made plain: what the integrations of frameworks share."""

from __future__ import annotations

from typing import TypeVar

from autobatch.asyncio import resolve
from autobatch.scope import open_scope, surface

T = TypeVar("T")


async def plain(returned: T) -> T:
    """Flush, and return what a handler has returned with every Future replaced by its value.

    So a command that failed does it while the handler still runs, as far as its framework can
    tell: its exception handlers and the dependencies that it cleans up see the error.

    Raises:
        Exception: the first error of a command that nobody has looked at.
    """
    scope = open_scope()
    if scope is not None:
        if scope.busy:
            await scope.aflush()
        surface(scope.unseen())
    return await resolve(returned)
