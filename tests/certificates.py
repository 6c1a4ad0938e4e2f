"""Certificates made on the spot, and a front that speaks TLS for a server that cannot."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import threading
from pathlib import Path
from typing import Any, Self

import pytest

trustme = pytest.importorskip("trustme")

HOST = "127.0.0.1"


class Authority:
    """A certificate authority that exists for the tests alone.

    Attributes:
        path: the file with its own certificate.
    """

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.path = str(directory / "authority.pem")
        self._ca.cert_pem.write_to_path(self.path)

    def server_context(
        self, name: str = HOST, *, expired: bool = False, mutual: bool = False
    ) -> ssl.SSLContext:
        """Return what a server named `name` needs; `mutual` lets it ask for a certificate, too."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        lifetime: dict[str, Any] = {}
        if expired:
            now = dt.datetime.now(dt.UTC)
            day = dt.timedelta(days=1)
            lifetime = {"not_before": now - 2 * day, "not_after": now - day}
        self._ca.issue_cert(name, **lifetime).configure_cert(context)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        return context

    def files_for(self, name: str) -> tuple[str, str]:
        """Return the paths of a certificate and of its private key."""
        made = self._ca.issue_cert(name)
        paths = str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(paths[0])
        made.private_key_pem.write_to_path(paths[1])
        return paths


class Front:
    """A server that ends TLS and passes on what it carries, in a thread of its own.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port = 0
        self._behind = port
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        # The loop alone would not keep them once their clients have left.
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._accept, HOST, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._pass_on(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(HOST, self._behind)
        requests = asyncio.create_task(_pass_requests(reader, behind_writer))
        try:
            await _copy(behind_reader, writer)
            writer.close()  # says goodbye, as TLS wants it
        except OSError:
            writer.transport.abort()
        finally:
            requests.cancel()
            behind_writer.close()


async def _pass_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await _copy(reader, writer)
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
