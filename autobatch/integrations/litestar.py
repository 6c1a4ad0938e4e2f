"""Litestar. One line of set-up: `Litestar(..., plugins=[BatchPlugin()])`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import Response
from litestar.config.app import AppConfig
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Template
from litestar.routes import BaseRoute, HTTPRoute
from litestar.utils.helpers import unwrap_partial
from litestar.utils.sync import AsyncCallable

from autobatch.asgi import BatchMiddleware
from autobatch.asyncio import resolve
from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.integrations.returning import settle


class BatchPlugin(InitPlugin, ReceiveRoutePlugin):
    """Makes every request a scope, and lets handlers return Futures."""

    def __init__(self, **options: Any) -> None:
        """Create the plugin; the options are those of `autobatch.asgi.BatchMiddleware`.

        But for `panel`: Litestar asks the middleware for its own routes alone, so the application
        is wrapped as a whole, `BatchMiddleware(app, panel=...)`, beside the plugin.
        """
        self._options = options

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, outside the application's own."""
        middleware: Any = BatchMiddleware
        app_config.type_encoders = {**_ENCODERS, **(app_config.type_encoders or {})}
        app_config.middleware.insert(0, DefineMiddleware(middleware, **self._options))
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Make what the handlers of a route return plain."""
        if not isinstance(route, HTTPRoute):
            return
        for handler in route.route_handlers:
            if not isinstance(handler.fn, _ReturningPlain):  # it has several paths
                handler._fn = _ReturningPlain(handler)  # noqa: SLF001  # no other way leads there
                handler.has_sync_callable = False


class _ReturningPlain(AsyncCallable):
    """A handler's function, which returns no Futures. Litestar looks at `func` for its names."""

    def __init__(self, handler: HTTPRouteHandler) -> None:
        super().__init__(unwrap_partial(handler.fn))
        self._function: Callable[..., Any] = handler.fn
        self._synchronous = handler.has_sync_callable

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        returned = self._function(*args, **kwargs)
        if not self._synchronous:
            returned = await returned
        await settle(_WAVES)  # an encoder cannot wait
        kind = type(returned)  # isinstance() would force a Future
        if issubclass(kind, Template):
            returned.context = await resolve(returned.context)
        elif issubclass(kind, Response):
            returned.content = unwrap(returned.content)
        return unwrap(returned)


def _encoder(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # Litestar asks for the encoder of what a Future says is its class.
    def encode(value: Any) -> Any:
        return unwrap(value) if type(value) in FUTURE_TYPES else kind(value)

    return encode


_ENCODERS: dict[Any, Any] = {
    **{kind: _encoder(kind) for kind in (bool, dict, list, tuple)},
    **dict.fromkeys((type(None), *FUTURE_TYPES), unwrap),
}
# A task that was left behind may never stop calling.
_WAVES = 32
