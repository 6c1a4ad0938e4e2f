"""Starlette's templates: their contexts may hold Futures."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.templating import Jinja2Templates as PlainJinja2Templates
from starlette.types import Receive, Scope, Send

from autobatch.asyncio import resolve
from autobatch.integrations import jinja
from autobatch.integrations.starlette import HTMLResponse
from autobatch.resolve import resolve as resolve_now


class Jinja2Templates(PlainJinja2Templates):
    """Starlette's Jinja2Templates, which take Futures: import it from here.

    A response that is made in a coroutine is rendered when it is sent, after what waits was
    flushed without blocking the loop. One that is made in a thread is rendered there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create them; the arguments are Starlette's."""
        super().__init__(*args, **kwargs)
        jinja.install(self.env)

    def TemplateResponse(  # type: ignore[override]  # noqa: N802  # Starlette's own
        self,
        request: Request,
        name: str,
        context: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> HTMLResponse:
        """Return the response that shows a template; the arguments are Starlette's."""
        context = {"request": request, **(context or {})}
        for processor in self.context_processors:
            context.update(processor(request))
        return _TemplateResponse(self.get_template(name), context, **kwargs)


class _TemplateResponse(HTMLResponse):
    def __init__(self, template: Any, context: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.template = template
        self.context = context
        super().__init__(context, *args, **kwargs)

    def render(self, content: dict[str, Any]) -> bytes:
        if asyncio._get_running_loop() is None:  # noqa: SLF001  # the one that never raises
            html: str = self.template.render(resolve_now(content))
            return html.encode(self.charset)
        return super().render(content)

    async def render_late(self, content: dict[str, Any]) -> bytes:
        html: str = self.template.render(await resolve(content))
        return html.encode(self.charset)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "http.response.debug" in scope.get("extensions", {}):  # for Starlette's TestClient
            info = {"template": self.template, "context": self.context}
            await send({"type": "http.response.debug", "info": info})
        await super().__call__(scope, receive, send)
