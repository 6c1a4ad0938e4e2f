"""A scope for each request of a WSGI application."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.promise import printable
from autobatch.recording import own_scope
from autobatch.report import Reason
from autobatch.scope import (
    MAX_BYTES,
    MAX_COMMANDS,
    OwnScope,
    ambient,
    log_unseen,
    step_aside,
    surface,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# In the request's environment: it is batched already, by a middleware outside this one.
MARK = "autobatch.scope"


class BatchMiddleware:
    """Make every request a scope, for any WSGI application.

    What waits is sent when the application returns, while an error can still become an error
    response; before each chunk of a streamed body; and when the body is closed. Errors that
    nobody has looked at are raised until the first chunk was handed out, and logged afterwards.

    Each request runs in a context of its own: WSGI servers reuse theirs from one request to the
    next, and so would leak context variables.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        max_commands: int = MAX_COMMANDS,
        max_bytes: int = MAX_BYTES,
        suggest: bool | None = None,
    ) -> None:
        """Wrap `app`; the limits and `suggest` are those of `autobatch.batch`."""
        self.app = app
        self._limits = max_commands, max_bytes
        self._suggest = suggest

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, as WSGI wants it."""
        if MARK in environ:
            return self.app(environ, start_response)
        context = contextvars.copy_context()
        return context.run(self._respond, context, environ, start_response)

    def _respond(
        self,
        context: contextvars.Context,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        step_aside()
        own = own_scope(_name_of, environ, *self._limits, suggest=self._suggest)
        environ[MARK] = own
        ambient.set(own)  # in the request's own context, which ends with it
        try:
            body = self.app(environ, start_response)
            if type(body) is list and not FUTURE_TYPES.isdisjoint(map(type, body)):
                body = [unwrap(chunk) for chunk in body]
        except BaseException as error:
            surface(own.close(), error)
            raise
        complete = _is_complete(body, environ)
        if complete:
            failures = own.close()
        else:
            own.because(Reason.RESPONSE)
            own.flush()
            failures = own.unseen()
        if failures:
            # The server never sees the body, so closing it is up to us.
            try:
                getattr(body, "close", _nothing)()
            except BaseException as error:
                surface(failures + own.close(), error)
                raise
            surface(failures + own.close())
        if complete:
            return body
        return Body(body, context, own, _name_of(environ))


def _name_of(environ: WSGIEnvironment) -> str:
    return printable(f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')}")


def _is_complete(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Return whether handing out `body` runs no code of the application.

    Such a body goes to the server as it is: it may send a file, or compute a length.
    """
    if isinstance(body, (list, tuple)):
        return True
    file_wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(file_wrapper, type) and isinstance(body, file_wrapper)


def _nothing() -> None:
    pass


class Body:
    """A body whose chunks are made inside the request's context and scope."""

    def __init__(
        self,
        body: Iterable[bytes],
        context: contextvars.Context,
        own: OwnScope,
        name: str,
        *,
        started: bool = False,
    ) -> None:
        """Wrap `body`.

        Args:
            body: what the application has returned.
            context: the request's.
            own: the request's scope.
            name: what to call the request in the log.
            started: the response cannot change any more, so errors are logged.
        """
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._run = context.run
        self._own = own
        self._name = name
        self._started = started

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        return self._run(self._next)

    def _next(self) -> bytes:
        if self._chunks is None:
            self._chunks = iter(self._body)
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._flush()
            raise
        except BaseException as error:
            self._own.step_aside()
            surface(self._own.unseen(), error)
            raise
        self._flush()
        return unwrap(chunk)

    def _flush(self) -> None:
        self._own.because(Reason.RESPONSE)
        self._own.step_aside()
        if self._started:
            log_unseen(self._own.unseen(), self._name)
        else:
            surface(self._own.unseen())
            self._started = True

    def close(self) -> None:
        self._run(self._close)

    def _close(self) -> None:
        try:
            getattr(self._body, "close", _nothing)()
        finally:
            log_unseen(self._own.close(), self._name)
