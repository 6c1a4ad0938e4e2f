"""A scope for each request of an ASGI application."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from autobatch.ambient import ambient, open_scope
from autobatch.middleware import Middleware
from autobatch.promise import printable
from autobatch.recording import own_scope, record_of
from autobatch.report import Reason, server_timing
from autobatch.scope import OwnScope
from autobatch.unseen import log_unseen, surface

if TYPE_CHECKING:  # most applications have none, and it takes time to import
    from autobatch.panel import Panel

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# In the connection scope of ASGI: a request that is batched already, by a middleware outside a
# mounted application or by one that was installed twice.
_MARK = "autobatch.scope"


class BatchMiddleware(Middleware[App]):
    """Make every request a scope; pure ASGI, for any framework.

    What waits is sent before the response starts, so that an error can still become an error
    response; before each chunk of a streamed body; and at the end, background tasks included.
    A WebSocket flushes before each message that it sends or waits for. Errors that nobody has
    looked at are raised while the response can still change, and logged afterwards.

    The event loop is never blocked: synchronous clients flush in a thread.
    """

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI wants it."""
        connection = _CONNECTIONS.get(scope["type"])
        panel = self._panel
        if panel is not None and connection is _Http and panel.serves(_path_of(scope)):
            await _show(panel, scope, send)
            return
        if connection is None or _MARK in scope:
            await self.app(scope, receive, send)
            return
        outer = open_scope()
        if outer is not None:
            await outer.astep_aside()
        timed = self._server_timing and connection is _Http
        own = own_scope(
            _name_of,
            scope,
            self._max_commands,  # each by itself: a star costs as much as half a scope
            self._max_bytes,
            suggest=self._suggest,
            recorded=timed,
        )
        own.loop = asyncio.get_running_loop()  # for asyncio clients that are called in a thread
        scope[_MARK] = own
        if timed:
            send = functools.partial(_send_timed, send, own)
        await connection(scope, receive, send, own).run(self.app)


def _path_of(scope: MutableMapping[str, Any]) -> str:
    """Return the path inside the application, which may be mounted in another one."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    # Some servers leave out of the path what they were told that the application is mounted at.
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _show(panel: Panel, scope: MutableMapping[str, Any], send: Send) -> None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    client = (scope.get("client") or [None])[0]
    status, about, body = panel.answer(scope["method"], client, headers)
    raw = [(name.lower().encode(), value.encode()) for name, value in about.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _send_timed(send: Send, own: OwnScope, message: Message) -> None:
    """Send a message; a response's start tells how long what came before it took."""
    record = record_of(own)
    if message["type"] == "http.response.start" and record is not None and record.flushes:
        header = b"server-timing", server_timing(record).encode()
        message = {**message, "headers": [*message.get("headers", ()), header]}
    await send(message)


class _Answered(BaseException):
    """Ends an application whose response was replaced: nobody wants the rest of it."""


def _is_answered(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # what a TaskGroup has made of it
        return error.split(_Answered)[1] is None
    return isinstance(error, _Answered)


class _Connection:
    """One HTTP request, or one WebSocket."""

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, own: OwnScope
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._own = own
        self._started = False  # so much was sent that an error can only be logged

    async def run(self, app: App) -> None:
        token = ambient.set(self._own)
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            log_unseen(await self._close(), self._name)  # nobody will see its notes
            raise
        except BaseException as error:
            failures = await self._close()
            if not _is_answered(error):
                surface(failures, error)
                raise
            log_unseen(failures, self._name)
        else:
            failures = await self._close()
            if self._started:
                log_unseen(failures, self._name)
            else:
                surface(failures)
        finally:
            ambient.reset(token)

    async def receive(self) -> Message:
        return await self._receive()

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def _flush(self) -> None:
        own = self._own
        if own.recorded:
            own.because(Reason.RESPONSE)
        if own.busy:
            await own.aflush()

    async def _close(self) -> list[Any]:
        return await self._own.aclose(self._name)

    @property
    def _name(self) -> str:
        return _name_of(self.scope)


def _name_of(scope: MutableMapping[str, Any]) -> str:
    return printable(f"{scope.get('method', 'WEBSOCKET')} {scope['path']}")


class _Http(_Connection):
    async def send(self, message: Message) -> None:
        await self._flush()
        if not self._started and message["type"] == "http.response.start":
            try:
                surface(self._own.unseen())
            except Exception as error:
                await self._respond_to(error)
                return
            self._started = True
        elif self._started:
            log_unseen(self._own.unseen(), self._name)
        await self._send(message)

    async def _respond_to(self, error: Exception) -> None:
        """Send the application's own response to `error` in place of the one that it began.

        Starlette notes that a response has started before it calls us, so the handlers that the
        application registered would not be asked: we ask them. Without one for this error it
        goes up through the application to the server, and becomes a plain 500 on the way.
        """
        if "starlette.exception_handlers" not in self.scope:
            raise error
        # Here, since only what runs on Starlette has it.
        from autobatch.integrations.starlette import error_response  # noqa: PLC0415

        response = await error_response(self.scope, self._receive, error)
        if response is None:
            raise error
        self._started = True
        await response(self.scope, self._receive, self.send)
        raise _Answered


class _WebSocket(_Connection):
    async def receive(self) -> Message:
        await self._end_message()
        return await self._receive()

    async def send(self, message: Message) -> None:
        await self._end_message()
        self._started = True
        await self._send(message)

    async def _end_message(self) -> None:
        await self._flush()
        surface(self._own.unseen())


_CONNECTIONS: dict[str, type[_Connection]] = {"http": _Http, "websocket": _WebSocket}
