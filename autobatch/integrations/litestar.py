"""Litestar. One line of set-up: `Litestar(..., plugins=[BatchPlugin()])`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from litestar import Response
from litestar.config.app import AppConfig
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Template
from litestar.routes import BaseRoute, HTTPRoute

from autobatch.asgi import BatchMiddleware
from autobatch.integrations.returning import plain
from autobatch.scope import MAX_BYTES, MAX_COMMANDS


class BatchPlugin(InitPlugin, ReceiveRoutePlugin):
    """Makes every request a scope, and lets handlers return Futures."""

    def __init__(self, *, max_commands: int = MAX_COMMANDS, max_bytes: int = MAX_BYTES) -> None:
        """Create the plugin; the limits are those of `autobatch.batch`."""
        self._limits = {"max_commands": max_commands, "max_bytes": max_bytes}
        self._adopted: set[HTTPRouteHandler] = set()

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, outside the application's own."""
        middleware: Any = BatchMiddleware
        app_config.middleware.insert(0, DefineMiddleware(middleware, **self._limits))
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Make what the handlers of a route return plain."""
        if not isinstance(route, HTTPRoute):
            return
        for handler in route.route_handlers:
            if handler not in self._adopted:  # it has several paths
                self._adopted.add(handler)
                handler._fn = _returning_plain(handler.fn, synchronous=handler.has_sync_callable)  # noqa: SLF001
                handler.has_sync_callable = False


def _returning_plain(function: Callable[..., Any], *, synchronous: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        returned = function(*args, **kwargs) if synchronous else await function(*args, **kwargs)
        if isinstance(returned, Template):
            returned.context = await plain(returned.context)
        elif isinstance(returned, Response):
            returned.content = await plain(returned.content)
        else:
            returned = await plain(returned)
        return returned

    return wrapper
