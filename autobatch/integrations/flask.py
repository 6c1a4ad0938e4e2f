"""Flask. One line of set-up: `autobatch.integrations.flask.install(app)`."""

from __future__ import annotations

import copy
import functools
from typing import Any

from flask import Flask, before_render_template, request
from flask.json.provider import DefaultJSONProvider
from flask.sessions import SessionInterface
from werkzeug.datastructures import Headers as PlainHeaders

from autobatch.ambient import open_scope
from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.integrations import encoding
from autobatch.promise import printable
from autobatch.report import Reason
from autobatch.resolve import resolve
from autobatch.scope import OwnScope
from autobatch.unseen import log_unseen, surface
from autobatch.wsgi import BatchMiddleware

_NAME = "autobatch"  # among the application's extensions


def install(app: Flask, **options: Any) -> None:
    """Make every request of `app` a batch, and let its views return Futures.

    What waits is sent when the view has returned, functions of `after_request` have run and the
    session was saved. Errors that nobody has looked at go to the application's own error handlers.

    Views may return Futures, and have them in dicts, lists, `jsonify`, sessions, the variables of
    templates, and the headers and cookies of the responses that Flask makes for them. If an
    extension replaces `app.json`, `app.response_class` or `app.session_interface`, call this after
    it. A second call does nothing.

    Args:
        app: the application.
        options: those of `autobatch.wsgi.BatchMiddleware`.
    """
    if _NAME in app.extensions:
        return
    app.extensions[_NAME] = install
    hooked: Any = app  # whose methods are replaced, which mypy does not like
    hooked.wsgi_app = BatchMiddleware(app.wsgi_app, **options)
    app.json = JSONProvider(app)
    hooked.response_class = type(
        app.response_class.__name__, (LazyHeaders, app.response_class), {"__module__": __name__}
    )
    app.session_interface = _resolving(app.session_interface)
    before_render_template.connect(_resolve_context, app)
    hooked.make_response = functools.partial(_make_response, app.make_response)
    hooked.dispatch_request = functools.partial(_dispatch_request, app.dispatch_request)
    hooked.handle_exception = functools.partial(_handle_exception, app.handle_exception)
    hooked.full_dispatch_request = functools.partial(
        _full_dispatch_request, hooked, app.full_dispatch_request
    )


class JSONProvider(DefaultJSONProvider):
    """Flask's JSON, for dicts, lists and `jsonify` that hold Futures anywhere."""

    @staticmethod
    def default(value: Any) -> Any:
        """Return what stands for a value that is no JSON: a Future's own value."""
        if type(value) in FUTURE_TYPES:
            return unwrap(value)
        return DefaultJSONProvider.default(value)

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Return `obj` as JSON."""
        if kwargs.get("indent") is not None:
            obj = resolve(obj)  # json's encoder in Python takes a Future for what it seems to be
        return encoding.encode(obj, functools.partial(super().dumps, **kwargs))


class Headers(PlainHeaders):
    """Werkzeug's headers, whose values may be Futures."""

    def add(self, key: str, value: Any, /, **kwargs: Any) -> None:
        """Add a header."""
        super().add(key, unwrap(value), **resolve(kwargs))

    def set(self, key: str, value: Any, /, **kwargs: Any) -> None:
        """Set a header, in place of those of its name."""
        super().set(key, unwrap(value), **resolve(kwargs))


class LazyHeaders:
    """A part of a class of responses: their headers and cookies may be Futures."""

    def __init__(
        self, response: Any = None, status: Any = None, headers: Any = None, *args: Any, **kwds: Any
    ) -> None:
        """Make a response, from what the class beside this one takes."""
        beside: Any = super()
        beside.__init__(response, status, Headers(headers), *args, **kwds)

    def set_cookie(self, key: str, value: Any = "", *args: Any, **kwargs: Any) -> None:
        """Set a cookie, as the class beside this one does."""
        beside: Any = super()
        beside.set_cookie(key, unwrap(value), *args, **kwargs)


def plain(returned: Any) -> Any:
    """Return what a view has returned, as far as Flask looks at its types, without Futures."""
    returned = unwrap(returned)
    if type(returned) is not tuple or not returned:
        return returned
    body, *rest = returned
    return unwrap(body), *map(resolve, rest)  # the status, the headers


def resolve_session(session: Any) -> None:
    """Replace the Futures in a session that is about to be saved."""
    if session.modified:
        held = dict(session)
        resolved = resolve(held)
        if resolved is not held:
            session.clear()
            session.update(resolved)


def resolve_variables(context: dict[str, Any]) -> None:
    """Replace the Futures in the variables of a template, which may ask what Python does not."""
    resolved = resolve(context)
    if resolved is not context:
        context.update(resolved)


# `args`: newer versions of Flask hand the request's context from method to method.


def _make_response(original: Any, *args: Any) -> Any:
    *context, returned = args
    return original(*context, plain(returned))


def _dispatch_request(original: Any, *args: Any) -> Any:
    """Call the view. What becomes a response by looking at its values does so in its own time.

    Flask does it after the last moment at which an error can go to a handler for its class.
    """
    returned = original(*args)
    body = returned[0] if type(returned) is tuple and returned else returned
    if type(body) in FUTURE_TYPES or isinstance(body, (dict, list)):
        _flush()
    return returned


def _full_dispatch_request(app: Any, original: Any, *args: Any) -> Any:
    response = original(*args)
    try:
        _flush()
    except Exception as error:
        # What Flask does with an error of the view. It has no other handler to call after that.
        answer = app.handle_user_exception(*args, error)
        response = app.finalize_request(*args, answer)
        _flush()
    return response


def _handle_exception(original: Any, *args: Any) -> Any:
    """Answer an error that has no handler: as a 500, which is Flask's last word."""
    scope = open_scope()
    if isinstance(scope, OwnScope):
        _send(scope)
        surface(scope.unseen(), args[-1])
    response = original(*args)
    if isinstance(scope, OwnScope):
        _send(scope)
        log_unseen(scope.unseen(), printable(f"{request.method} {request.path}"))
    return response


def _flush() -> None:
    scope = open_scope()
    if isinstance(scope, OwnScope):
        _send(scope)
        surface(scope.unseen())


def _send(scope: OwnScope) -> None:
    scope.because(Reason.RESPONSE)
    scope.flush()


def _resolve_context(_: Flask, context: dict[str, Any], **__: Any) -> None:
    resolve_variables(context)


def _resolving(interface: SessionInterface) -> SessionInterface:
    """Return a session interface that replaces Futures by their values before it saves them."""
    interface = copy.copy(interface)  # Flask's own is shared by all applications
    save: Any = interface.save_session

    def save_session(app: Flask, session: Any, response: Any) -> None:
        resolve_session(session)
        save(app, session, response)

    hooked: Any = interface
    hooked.save_session = save_session
    return interface
