"""Django. One line of set-up: `"autobatch.integrations.django.BatchMiddleware"`, in MIDDLEWARE.

Beside it stand drop-in parts for what would misread a Future: responses, templates, sessions and
the client of a cache.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from django import http
from django.conf import settings
from django.core import signing
from django.core.serializers.json import DjangoJSONEncoder
from django.template.backends import django as backend

from autobatch.ambient import ambient, open_scope
from autobatch.client import EagerRedis, Redis
from autobatch.future import unwrap
from autobatch.integrations import encoding
from autobatch.promise import Failure, printable
from autobatch.recording import own_scope
from autobatch.report import Reason
from autobatch.resolve import resolve
from autobatch.scope import OwnScope, step_aside
from autobatch.unseen import log_unseen, surface
from autobatch.wsgi import MARK, Body


class BatchMiddleware:
    """Make every request a batch, in synchronous and asynchronous projects: first in MIDDLEWARE.

    What waits is sent when the response has passed all other middleware, and before each chunk of
    a streamed one. Errors that nobody has looked at go to Django's own handling of exceptions,
    which calls `handler500` or shows its page for debugging. Later ones are logged.

    The setting AUTOBATCH may be a dict of `max_commands`, `max_bytes` and `suggest`, as for
    `autobatch.batch`.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        """Wrap `get_response`, as Django asks of a middleware."""
        self.get_response = get_response
        self._limits = getattr(settings, "AUTOBATCH", {})
        self._asynchronous = iscoroutinefunction(get_response)
        if self._asynchronous:
            markcoroutinefunction(self)
            self.process_template_response = self._aflush_first
        else:
            self.process_template_response = self._flush_first

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        outer = request.META.get(MARK) or getattr(request, "scope", {}).get(MARK)
        if self._asynchronous:
            return self._arespond(request) if outer is None else self._ajoin(request, outer)
        return self._respond(request) if outer is None else self._join(request, outer)

    def process_exception(self, request: Any, exception: Exception) -> None:  # noqa: ARG002
        """Tell of the commands that have failed before a view raises, as notes of its error."""
        scope = open_scope()
        if scope is not None and scope.loop is None:
            scope.flush()
            surface(scope.unseen(), exception)

    # A template is rendered in a thread, where nothing can be awaited: what it needs comes first.

    def _flush_first(self, request: Any, response: Any) -> Any:  # noqa: ARG002
        scope = open_scope()
        if isinstance(scope, OwnScope):
            _flush(scope)
        return response

    async def _aflush_first(self, request: Any, response: Any) -> Any:  # noqa: ARG002
        scope = open_scope()
        if isinstance(scope, OwnScope):
            scope.because(Reason.RESPONSE)
            await scope.aflush()
        return response

    # ---- a request, in a synchronous project and in an asynchronous one ----------------------

    def _respond(self, request: Any) -> Any:
        step_aside()
        request.META[MARK] = own = own_scope(_name, request, **self._limits)
        token = ambient.set(own)
        try:
            response = self.get_response(request)
            if _is_streamed(response):
                _flush(own)
                _answer(request, response, own.unseen())
                _batch_chunks(request, response, own)
            else:
                _answer(request, response, _close(own, _name(request)))
        except BaseException as error:
            surface(own.close(), error)
            raise
        finally:
            ambient.reset(token)
        return response

    async def _arespond(self, request: Any) -> Any:
        outer = open_scope()
        if outer is not None:
            await outer.astep_aside()
        request.META[MARK] = own = own_scope(_name, request, **self._limits)
        token = ambient.set(own)
        try:
            response = await self.get_response(request)
            if _is_streamed(response):
                own.because(Reason.RESPONSE)
                await own.aflush()
                _answer(request, response, own.unseen())
                _batch_chunks(request, response, own)
            else:
                _answer(request, response, await own.aclose(_name(request)))
        except BaseException as error:
            surface(await own.aclose(_name(request)), error)
            raise
        finally:
            ambient.reset(token)
        return response

    # ---- inside the middleware of the server's application, which does the rest --------------

    def _join(self, request: Any, outer: OwnScope) -> Any:
        response = self.get_response(request)
        _flush(outer)
        _answer(request, response, outer.unseen())
        return response

    async def _ajoin(self, request: Any, outer: OwnScope) -> Any:
        response = await self.get_response(request)
        outer.because(Reason.RESPONSE)
        await outer.aflush()
        _answer(request, response, outer.unseen())
        return response


def _name(request: Any) -> str:
    return printable(f"{request.method} {request.path}")


def _is_streamed(response: Any) -> bool:
    """Return whether sending `response` runs code of the application."""
    return response.streaming and getattr(response, "file_to_stream", None) is None


def _is_beside_a_loop(scope: OwnScope) -> bool:
    """Return whether this is a thread of synchronous middleware around an asynchronous view."""
    return scope.busy and scope.loop is not None and not scope.loop.is_closed()


def _flush(scope: OwnScope) -> None:
    scope.because(Reason.RESPONSE)
    if _is_beside_a_loop(scope):
        async_to_sync(scope.aflush)()
    else:
        scope.flush()


def _close(own: OwnScope, name: str) -> list[Failure]:
    if _is_beside_a_loop(own):
        failures: list[Failure] = async_to_sync(own.aclose)(name)
        return failures
    return own.close()


def _answer(request: Any, response: Any, failures: list[Failure]) -> None:
    """Raise what nobody has looked at; where the response tells of an error already, log it."""
    if response.status_code >= http.HttpResponseServerError.status_code:
        log_unseen(failures, _name(request))
    elif failures:
        if response.streaming and getattr(response, "file_to_stream", None) is not None:
            response.file_to_stream.close()  # nobody else would
        surface(failures)


def _batch_chunks(request: Any, response: Any, own: OwnScope) -> None:
    chunks, name = response.streaming_content, _name(request)
    if response.is_async:
        response.streaming_content = _AsyncBody(chunks, own, name)
    else:
        context, started = contextvars.copy_context(), hasattr(request, "scope")  # of ASGI
        response.streaming_content = Body(chunks, context, own, name, started=started)


class _AsyncBody:
    """A body whose chunks are made inside the request's scope."""

    def __init__(self, chunks: AsyncIterator[bytes], own: OwnScope, name: str) -> None:
        self._chunks = chunks
        self._own = own
        self._name = name

    def __aiter__(self) -> _AsyncBody:
        return self

    async def __anext__(self) -> bytes:
        token = ambient.set(self._own)
        try:
            chunk = await anext(self._chunks)
            self._own.because(Reason.RESPONSE)
            await self._own.astep_aside()
        except StopAsyncIteration:
            log_unseen(await self._own.aclose(self._name), self._name)
            raise
        except BaseException as error:
            surface(await self._own.aclose(self._name), error)
            raise
        finally:
            ambient.reset(token)
        log_unseen(self._own.unseen(), self._name)
        return chunk

    def close(self) -> None:
        log_unseen(self._own.close(), self._name)


# ---- what takes Futures ------------------------------------------------------------------


class HttpResponse(http.HttpResponse):
    """Django's response, whose content may be any Future, also of a number or of None."""

    @property
    def content(self) -> Any:
        """The body."""
        return super().content

    @content.setter
    def content(self, value: Any) -> None:
        http.HttpResponse.content.fset(self, unwrap(value))


class JSONEncoder(encoding.JSONEncoder, DjangoJSONEncoder):
    """Django's encoder, for what holds Futures anywhere."""


class JsonResponse(http.JsonResponse):
    """Django's JsonResponse, whose data may be a Future, and hold Futures anywhere.

    On an event loop, where it cannot wait for its data, it is rendered as a TemplateResponse is:
    after the view, when BatchMiddleware has awaited what is missing.
    """

    def __init__(
        self,
        data: Any,
        encoder: type[DjangoJSONEncoder] = JSONEncoder,
        safe: bool = True,  # noqa: FBT001, FBT002  # Django's signature
        json_dumps_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make a response, as Django's does."""
        self._encode: Callable[[], bytes] | None = None
        self._callbacks: list[Callable[[Any], Any]] = []
        if _must_wait():
            super().__init__({}, encoder, safe, json_dumps_params, **kwargs)
            self._encode = lambda: (
                http.JsonResponse(unwrap(data), encoder, safe, json_dumps_params).content
            )
            self.render = self._render
        else:
            super().__init__(unwrap(data), encoder, safe, json_dumps_params, **kwargs)

    @property
    def content(self) -> Any:
        """The body."""
        if self._encode is not None:
            self.content = self._encode()
        return super().content

    @content.setter
    def content(self, value: Any) -> None:
        self._encode = None
        http.HttpResponse.content.fset(self, value)

    def add_post_render_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback` when this is rendered: what decorators ask of a TemplateResponse."""
        self._callbacks.append(callback)

    def _render(self) -> Any:
        _ = self.content
        del self.render
        response: Any = self
        for callback in self._callbacks:
            response = callback(response) or response
        return response


def _must_wait() -> bool:
    scope = open_scope()
    running = asyncio._get_running_loop()  # noqa: SLF001  # the one that never raises
    return running is not None and scope is not None and scope.busy


class JSONSerializer(signing.JSONSerializer):
    """Django's serializer of sessions, for those that hold Futures: a SESSION_SERIALIZER."""

    def dumps(self, obj: Any) -> bytes:
        """Return a session as JSON."""
        plain: bytes = super().dumps(resolve(obj))
        return plain


class _Template(backend.Template):
    def render(self, context: Any = None, request: Any = None) -> Any:
        return super().render(resolve(context), request)


class DjangoTemplates(backend.DjangoTemplates):
    """Django's template engine, whose context may hold Futures: a BACKEND of TEMPLATES.

    Its templates see plain values, also in `{% if value is None %}`, `|default_if_none` and
    `|json_script`. Rendering begins with sending what waits.
    """

    def from_string(self, template_code: str) -> _Template:
        """Return a template, as Django's engine does."""
        return _Template(self.engine.from_string(template_code), self)

    def get_template(self, template_name: str) -> _Template:
        """Return a template, as Django's engine does."""
        return _Template(super().get_template(template_name).template, self)


def cache_client(**options: Any) -> EagerRedis:
    """Return a client for django-redis: the REDIS_CLIENT_CLASS of a cache's OPTIONS.

    It is the plain view of a batching client: the cache gets plain values, after what waits was
    sent. `get_redis_connection(alias).batching` is the client that batches, on the same pool.

    Args:
        options: of the client, from django-redis.
    """
    eager: Any = Redis(**options).eager
    client: EagerRedis = eager
    return client
