"""Starlette, and what is built on it.

One line of set-up where a handler returns Futures: import `JSONResponse`, or another response, from
here. Templates and sessions are in `starlette_templates` and `starlette_sessions`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterable, AsyncIterator, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse as PlainHTMLResponse
from starlette.responses import JSONResponse as PlainJSONResponse
from starlette.responses import PlainTextResponse as PlainPlainTextResponse
from starlette.responses import Response
from starlette.responses import StreamingResponse as PlainStreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from autobatch.ambient import open_scope, whole_of
from autobatch.asyncio import resolve
from autobatch.future import FUTURE_TYPES
from autobatch.integrations import encoding
from autobatch.report import Reason

_LATER = b"rendered when it is sent"


class LateResponse(Response):
    """A response that is rendered when it is sent: a constructor cannot wait for Futures.

    By then what waits was flushed, without blocking the loop.
    """

    def render(self, content: Any) -> bytes:
        """Keep `content` for later."""
        self._content = content
        return _LATER

    async def render_late(self, content: Any) -> bytes | memoryview:
        """Return the body."""
        return super().render(await resolve(content))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Flush, render, and send."""
        if self.body is _LATER:  # nobody has replaced it
            batching = open_scope()
            if batching is not None and batching.busy:
                whole_of(batching).because(Reason.RESPONSE)
                await batching.aflush()
            self.body = await self.render_late(self._content)
            if "content-length" in self.headers:
                self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


class JSONResponse(LateResponse, PlainJSONResponse):
    """Starlette's JSONResponse, whose content may hold Futures anywhere."""

    async def render_late(self, content: Any) -> bytes | memoryview:
        """Return the body."""
        if type(content) in FUTURE_TYPES:
            content = await resolve(content)
        try:
            return encoding.encode(content, _dumps).encode()
        except _StillPending:  # what a function given to map() has called comes in a later wave
            return _dumps(await resolve(content)).encode()


class PlainTextResponse(LateResponse, PlainPlainTextResponse):
    """Starlette's PlainTextResponse, whose content may be a Future."""


class HTMLResponse(LateResponse, PlainHTMLResponse):
    """Starlette's HTMLResponse, whose content may be a Future."""


class StreamingResponse(PlainStreamingResponse):
    """Starlette's StreamingResponse, whose chunks may be Futures."""

    def __init__(self, content: Any, *args: Any, **kwargs: Any) -> None:
        """Create a response; the arguments are Starlette's."""
        super().__init__(content, *args, **kwargs)
        self.body_iterator = _plain(self.body_iterator)


async def _plain(chunks: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for chunk in chunks:
        yield await resolve(chunk) if type(chunk) in FUTURE_TYPES else chunk


class _StillPending(Exception):
    """A Future is not settled after the first flush."""


def _default(value: Any) -> Any:
    if type(value) in FUTURE_TYPES and not value.done():
        raise _StillPending
    return encoding.default(value)


_dumps = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
).encode


async def error_response(
    scope: MutableMapping[str, Any], receive: Receive, error: Exception
) -> ASGIApp | None:
    """Return the response of the application's own handler for `error`, if it has one.

    The handlers are where Starlette's ExceptionMiddleware keeps them, in the connection's scope;
    the one for the nearest base class is taken, as there.
    """
    handlers, by_status = scope["starlette.exception_handlers"]
    handler = by_status.get(error.status_code) if isinstance(error, HTTPException) else None
    if handler is None:
        handler = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
    if handler is None:
        return None
    request = Request(scope, receive)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        response: ASGIApp = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    return response
