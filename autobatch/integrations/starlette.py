"""Starlette, and what is built on it.

One line of set-up where a handler returns Futures: import `JSONResponse` from here.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse as PlainJSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from autobatch.integrations import encoding
from autobatch.scope import open_scope


class JSONResponse(PlainJSONResponse):
    """Starlette's JSONResponse, whose content may hold Futures anywhere.

    It is rendered when it is sent, after what waits was flushed without blocking the loop.
    """

    def render(self, content: Any) -> bytes:
        """Keep `content` for later: a constructor cannot wait for it."""
        self._content = content
        return b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Flush, render, and send."""
        batching = open_scope()
        if batching is not None:
            await batching.aflush()
        dumps = functools.partial(
            json.dumps,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            default=encoding.default,
        )
        self.body = encoding.encode(self._content, dumps).encode()
        if "content-length" in self.headers:
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


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
