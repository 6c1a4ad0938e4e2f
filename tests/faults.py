"""A TCP proxy in front of a real server that breaks connections as a test tells it to.

    with FaultyProxy(port) as faults, connect(faults.port) as client:
        client.ping()
        faults.arm(Cut(reply=5))        # for the next connection that is used
        ...

What redis-py sends to greet a server passes unharmed and is not counted.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import hiredis
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch

# Longer than anything here takes: who waits so long has met a bug, and fails instead of hanging.
PATIENCE = 10

# What redis-py sends on a new connection, before the first command of the program.
GREETING = {"AUTH", "CLIENT", "HELLO", "SELECT"}


class Fault:
    """What a connection suffers, from the next command on. This one: nothing."""

    def request(self, link: Link, data: bytes) -> None:
        link.to_server(data)

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(data)

    def end(self) -> None:
        """Let go of the threads that wait here."""


PASS = Fault()


class Cut(Fault):
    """Pass so many bytes of the requests, or of the replies, then close the connection.

    The server has run what reached it before the client sees the end.
    """

    def __init__(self, *, request: int | None = None, reply: int | None = None) -> None:
        self._request = request
        self._reply = reply

    def request(self, link: Link, data: bytes) -> None:
        part = data if self._request is None else data[: self._request - link.requested]
        link.to_server(part)
        if link.requested == self._request:
            link.cut()

    def reply(self, link: Link, data: bytes) -> None:
        part = data if self._reply is None else data[: self._reply - link.replied]
        link.to_client(part)
        if link.replied == self._reply:
            link.cut()


class Hold(Fault):
    """Withhold the replies until `released` is set.

    Attributes:
        requested: set when a command went on to the server.
        replied: set when the server has answered, so has run what it got.
        released: set by the test, or shared with what should happen first.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.replied = threading.Event()
        self.released = threading.Event()

    def request(self, link: Link, data: bytes) -> None:
        link.to_server(data)
        self.requested.set()

    def reply(self, link: Link, data: bytes) -> None:
        self.replied.set()
        self.released.wait(PATIENCE)
        link.to_client(data)

    def end(self) -> None:
        self.released.set()


class Swallow(Hold):
    """Lose the replies, and keep the connection open."""

    def reply(self, link: Link, data: bytes) -> None:
        self.replied.set()


class Clog(Swallow):
    """Lose the replies, and read no more than so many bytes of the requests."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def request(self, link: Link, data: bytes) -> None:
        super().request(link, data[: self._after - link.requested])
        if link.requested == self._after:
            self.released.wait(PATIENCE)
            link.cut()


class Answer(Fault):
    """Answer each command in the server's place; it hears of none."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def request(self, link: Link, data: bytes) -> None:
        link.to_client(self._reply * len(link.arrived))


class FaultyProxy:
    """The proxy. Each connection takes the next armed fault with its next command, and keeps it.

    Attributes:
        port: where it listens.
        connections: how many were accepted.
        names: the names of the commands that arrived, whether they were passed on or not.
    """

    def __init__(self, port: int) -> None:
        self.connections = 0
        self.names: list[str] = []
        self._server = port
        self._armed: Iterator[Fault] = iter(())
        self._links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._refusing = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def arm(self, *faults: Fault) -> None:
        """Let the next connections that are used suffer these, one each, and others nothing."""
        self._armed = iter(faults)
        for link in self._links:
            link.fault.end()
            link.fault = PASS

    def next_fault(self) -> Fault:
        return next(self._armed, PASS)

    def refuse(self) -> None:
        """Accept no more connections."""
        if self._refusing:
            return
        self._refusing = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # ends the wait for one
        self._accepting.join()
        self._listener.close()

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for link in self._links:
            link.end()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._refusing:
                client.close()
                return
            self.connections += 1
            self._links.append(Link(self, client, self._server))


class Link:
    """One client's connection, with its connection to the server.

    Attributes:
        fault: what it suffers.
        arrived: the commands that the latest bytes of the client completed.
        requested: how many bytes of the requests went to the server under the fault.
        replied: how many bytes of the replies went to the client under the fault.
    """

    def __init__(self, proxy: FaultyProxy, client: socket.socket, port: int) -> None:
        self.arrived: list[list[bytes]] = []
        self.requested = 0
        self.replied = 0
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(("127.0.0.1", port))
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fault = PASS
        self._greeting = True
        self._is_cut = False
        self._reader = hiredis.Reader()
        self._threads = [
            threading.Thread(target=self._pass_requests),
            threading.Thread(target=self._pass_replies),
        ]
        for thread in self._threads:
            thread.start()

    def to_server(self, data: bytes) -> None:
        self.requested += len(data)
        self._server.sendall(data)

    def to_client(self, data: bytes) -> None:
        self.replied += len(data)
        self._client.sendall(data)

    def cut(self) -> None:
        """Send nothing more to the server; when it has run what it got, close."""
        self._is_cut = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        self.fault.end()
        self._shut()
        for thread in self._threads:
            thread.join()

    def _pass_requests(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_cut and (data := self._client.recv(1 << 16)):
                if self._greets(data):
                    self._server.sendall(data)
                    continue
                if self.fault is PASS:
                    self.fault = self._proxy.next_fault()
                    self.requested = self.replied = 0
                self.fault.request(self, data)
        self.cut()

    def _pass_replies(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(1 << 16):
                self.fault.reply(self, data)
        self._shut()
        self._threads[0].join()
        self._client.close()  # with what it did not read: the client's write fails at once
        self._server.close()

    def _shut(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _greets(self, data: bytes) -> bool:
        self._reader.feed(data)
        self.arrived = []
        while (command := self._reader.gets()) is not False:
            self.arrived.append(command)
        names = [command[0].decode().upper() for command in self.arrived]
        self._greeting = self._greeting and bool(names) and set(names) <= GREETING
        if not self._greeting:
            self._proxy.names.extend(names)
        return self._greeting


@contextlib.contextmanager
def connect(port: int, **options: object) -> Iterator[autobatch.Redis]:
    """A client that retries once and at once. At the end no connection of its pool is in use."""
    defaults = {
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 1),
        "socket_timeout": PATIENCE,
    }
    with autobatch.Redis(port=port, **(defaults | options)) as client:
        yield client
        if client.connection is None:
            assert not client.connection_pool._in_use_connections


@contextlib.contextmanager
def meanwhile(function: Callable[[], object]) -> Iterator[None]:
    """Run `function` in a thread while the block runs; then wait for it, and raise its error."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(function)
        yield
        job.result(PATIENCE)
