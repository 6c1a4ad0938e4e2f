"""A scope for each request of a WSGI application."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from autobatch.ambient import ambient
from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.middleware import Middleware
from autobatch.promise import printable
from autobatch.recording import own_scope, record_of
from autobatch.report import Reason, server_timing
from autobatch.scope import OwnScope, step_aside
from autobatch.unseen import log_unseen, surface

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from autobatch.panel import Panel

App: TypeAlias = "WSGIApplication"

# In the request's environment: it is batched already, by a middleware outside this one.
MARK = "autobatch.scope"


class BatchMiddleware(Middleware[App]):
    """Make every request a scope, for any WSGI application.

    What waits is sent when the application returns, while an error can still become an error
    response; before each chunk of a streamed body; and when the body is closed. Errors that
    nobody has looked at are raised until the first chunk was handed out, and logged afterwards.

    Each request runs in a context of its own: WSGI servers reuse theirs from one request to the
    next, and so would leak context variables.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, as WSGI wants it."""
        panel = self._panel
        if panel is not None and panel.serves(_text(environ.get("PATH_INFO", ""))):
            return _show(panel, environ, start_response)
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
        timed = self._server_timing
        own = own_scope(
            _name_of,
            environ,
            self._max_commands,  # each by itself: a star costs as much as half a scope
            self._max_bytes,
            suggest=self._suggest,
            recorded=timed,
        )
        environ[MARK] = own
        late = _LateStart(start_response, own) if timed else None
        ambient.set(own)  # in the request's own context, which ends with it
        try:
            body = self.app(environ, late or start_response)
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
        if late is not None:
            late.start()
        if complete:
            return body
        start = _nothing if late is None else late.start
        return Body(body, context, own, _name_of(environ), start=start)


def _show(panel: Panel, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    method, client = environ["REQUEST_METHOD"], environ.get("REMOTE_ADDR")
    status, about, body = panel.answer(method, client, headers)
    start_response(f"{status.value} {status.phrase}", list(about.items()))
    return [body]


class _LateStart:
    """A `start_response` that waits for the flush, whose time a header is to tell."""

    def __init__(self, start_response: StartResponse, own: OwnScope) -> None:
        self._start_response = start_response
        self._own = own
        self._given: tuple[Any, ...] | None = None
        self._write: Callable[[bytes], object] | None = None

    def __call__(
        self, status: str, headers: list[tuple[str, str]], *exc_info: Any
    ) -> Callable[[bytes], object]:
        if self._write is not None:  # the server decides whether it is too late
            self._write = self._start_response(status, headers, *exc_info)
            return self.write
        if self._given is not None and not any(exc_info):
            raise AssertionError("start_response() was called twice, and without exc_info")
        self._given = status, headers, *exc_info
        return self.write

    def write(self, data: bytes) -> None:
        self.start()
        assert self._write is not None
        self._write(data)

    def start(self) -> None:
        """Start the response, if the application has said how and it is not started."""
        if self._given is not None:
            (status, headers, *exc_info), self._given = self._given, None
            record = record_of(self._own)
            if record is not None and record.flushes:
                headers = [*headers, ("Server-Timing", server_timing(record))]
            self._write = self._start_response(status, headers, *exc_info)


def _name_of(environ: WSGIEnvironment) -> str:
    path = _text(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
    return printable(f"{environ.get('REQUEST_METHOD')} {path}")


def _text(native: str) -> str:
    """Return a text of the environment, which has its bytes as characters of Latin-1."""
    return native.encode("latin-1", "replace").decode("utf-8", "replace")


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
        start: Callable[[], None] = _nothing,
    ) -> None:
        """Wrap `body`.

        Args:
            body: what the application has returned.
            context: the request's.
            own: the request's scope.
            name: what to call the request in the log.
            started: the response cannot change any more, so errors are logged.
            start: starts the response, if that has waited for the first flush.
        """
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._run = context.run
        self._own = own
        self._name = name
        self._started = started
        self._start = start

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
            self._start()

    def close(self) -> None:
        self._run(self._close)

    def _close(self) -> None:
        try:
            getattr(self._body, "close", _nothing)()
        finally:
            log_unseen(self._own.close(), self._name)
