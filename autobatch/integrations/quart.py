"""Quart. One line of set-up: `autobatch.integrations.quart.install(app)`.

The twin of the module for Flask, on which Quart is built: here what is needed is awaited first.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from quart import Quart, before_render_template, request
from quart.sessions import SessionInterface

from autobatch.ambient import open_scope
from autobatch.asgi import BatchMiddleware
from autobatch.future import FUTURE_TYPES
from autobatch.integrations.flask import (
    JSONProvider,
    LazyHeaders,
    plain,
    resolve_session,
    resolve_variables,
)
from autobatch.promise import printable
from autobatch.report import Reason
from autobatch.scope import OwnScope, aflush
from autobatch.unseen import log_unseen, surface

_NAME = "autobatch"  # among the application's extensions
# Since Quart 0.23.
_CONTEXT_COMES_FIRST = "ctx" in inspect.signature(Quart.finalize_request).parameters


def install(app: Quart, **options: Any) -> None:
    """Make every request and every message of a WebSocket a batch; let views return Futures.

    What waits is sent when the view has returned, functions of `after_request` have run and the
    session was saved. Errors that nobody has looked at go to the application's own error handlers.

    Views may return Futures without awaiting them, and have them in dicts, lists, the headers of a
    tuple, sessions and the variables of templates. If an extension replaces `app.json`,
    `app.response_class` or `app.session_interface`, call this after it. A second call does nothing.

    Args:
        app: the application.
        options: those of `autobatch.asgi.BatchMiddleware`.
    """
    if _NAME in app.extensions:
        return
    app.extensions[_NAME] = install
    hooked: Any = app  # whose methods are replaced, which mypy does not like
    hooked.asgi_app = BatchMiddleware(hooked.asgi_app, **options)
    app.json = JSONProvider(app)
    hooked.response_class = type(
        app.response_class.__name__, (LazyHeaders, app.response_class), {"__module__": __name__}
    )
    hooked.session_interface = _resolving(app.session_interface)
    before_render_template.connect(_resolve_context, app)
    hooked.make_response = functools.partial(_make_response, app.make_response)
    hooked.dispatch_request = functools.partial(_dispatch_request, app.dispatch_request)
    hooked.handle_exception = functools.partial(_handle_exception, app.handle_exception)
    hooked.full_dispatch_request = functools.partial(
        _full_dispatch_request, hooked, app.full_dispatch_request
    )


async def _make_response(original: Any, returned: Any) -> Any:
    if type(returned) is tuple or type(returned) in FUTURE_TYPES:
        await aflush()
    return await original(plain(returned))


async def _dispatch_request(original: Any, *context: Any) -> Any:
    """Call the view. What becomes a response by looking at its values does so in its own time.

    Quart does it after the last moment at which an error can go to a handler for its class.
    """
    returned = await original(*context)
    body = returned[0] if type(returned) is tuple and returned else returned
    if type(body) in FUTURE_TYPES or isinstance(body, (dict, list)):
        await _flush()
    return returned


async def _full_dispatch_request(app: Any, original: Any, *context: Any) -> Any:
    response = await original(*context)
    try:
        await _flush()
    except Exception as error:
        # What Quart does with an error of the view. It has no other handler to call after that.
        response = await _answer(app, context, error)
        await _flush()
    return response


async def _answer(app: Any, context: tuple[Any, ...], error: Exception) -> Any:
    if _CONTEXT_COMES_FIRST:
        answer = await app.handle_user_exception(*context, error)
        return await app.finalize_request(*context, answer)
    answer = await app.handle_user_exception(error)
    return await app.finalize_request(answer, *context)


async def _handle_exception(original: Any, *args: Any) -> Any:
    """Answer an error that has no handler: as a 500, which is Quart's last word."""
    scope = open_scope()
    if isinstance(scope, OwnScope):
        await _send(scope)
        surface(scope.unseen(), args[-1])
    response = await original(*args)
    if isinstance(scope, OwnScope):
        await _send(scope)
        log_unseen(scope.unseen(), printable(f"{request.method} {request.path}"))
    return response


async def _flush() -> None:
    scope = open_scope()
    if isinstance(scope, OwnScope):
        await _send(scope)
        surface(scope.unseen())


async def _send(scope: OwnScope) -> None:
    scope.because(Reason.RESPONSE)
    await scope.aflush()


async def _resolve_context(_: Quart, context: dict[str, Any], **__: Any) -> None:
    await aflush()
    resolve_variables(context)


def _resolving(interface: SessionInterface) -> SessionInterface:
    """Return a session interface that replaces Futures by their values before it saves them."""
    interface = copy.copy(interface)  # Quart's own is shared by all applications
    save: Any = interface.save_session

    async def save_session(app: Quart, session: Any, response: Any) -> None:
        if session.modified:
            await aflush()
            resolve_session(session)
        await app.ensure_async(save)(app, session, response)

    hooked: Any = interface
    hooked.save_session = save_session
    return interface
