"""Starlette's sessions: `request.session` may hold Futures."""

from __future__ import annotations

from typing import Any

from starlette.middleware.sessions import SessionMiddleware as PlainSessionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autobatch.asyncio import resolve


class SessionMiddleware(PlainSessionMiddleware):
    """Starlette's SessionMiddleware, which takes Futures: import it from here.

    They are flushed and replaced by their values before the session is written into its cookie.
    """

    def __init__(self, app: ASGIApp, *args: Any, **kwargs: Any) -> None:
        """Wrap `app`; the arguments are Starlette's."""
        super().__init__(_Resolving(app), *args, **kwargs)


class _Resolving:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def resolving_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                session = scope["session"]
                resolved = await resolve(dict(session))
                for key, value in resolved.items():
                    if value is not session.get(key):
                        session[key] = value
            await send(message)

        await self._app(scope, receive, resolving_send)
