"""A proxy that counts: what a program really sends to its server, on a real connection.

    with Proxy(port=6379) as proxy:
        client = autobatch.Redis(port=proxy.port)
        ...
        assert proxy.names == [["GET", "SET"]]      # one exchange of two commands

It can also delay, to stand for a network: `python -m autobatch.testing --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import selectors
import socket
import threading
from typing import Any, Self

import hiredis

# What redis-py sends on a new connection, before the first command of the program.
_GREETING = {"AUTH", "CLIENT", "HELLO", "SELECT"}


class Exchange(list[tuple[bytes, ...]]):
    """The commands of one round trip, as tuples of bytes, and when it took place.

    Attributes:
        started: when the first of its commands arrived from the client, in the seconds of
            `time.monotonic()`.
        ended: when the last of its replies so far was handed to the client.
    """

    def __init__(self, started: float) -> None:
        super().__init__()
        self.started = self.ended = started


class Proxy:
    """A TCP proxy in front of a Redis server, in a thread of its own.

    An exchange starts when a command arrives on a connection that owes its client no reply, and
    takes in all that arrives until nothing is owed. What redis-py sends to greet a server is
    not counted.

    Attributes:
        port: where it listens, on the loopback address.
        exchanges: each a list of its commands, as tuples of bytes.
    """

    def __init__(
        self, port: int, host: str = "127.0.0.1", *, delay: float = 0.0005, listen: int = 0
    ) -> None:
        """Prepare a proxy.

        Args:
            port: the server's port.
            host: the server's address.
            delay: seconds that everything takes in each direction. A little of it keeps a large
                write together, which arrives in pieces.
            listen: the port to listen on; 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._socket = socket.create_server(("127.0.0.1", listen))
        self.port: int = self._socket.getsockname()[1]
        self.delay = delay
        self.exchanges: list[Exchange] = []
        self.server = (host, port)
        self.links: set[_Link] = set()
        # Not epoll, whose timers are whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._serving = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, name="autobatch-proxy", daemon=True
        )

    @property
    def names(self) -> list[list[str]]:
        """The names of the commands, exchange by exchange."""
        return [[command[0].decode().upper() for command in one] for one in self.exchanges]

    @property
    def round_trips(self) -> int:
        """How many exchanges there were."""
        return len(self.exchanges)

    @property
    def commands(self) -> int:
        """How many commands there were."""
        return sum(map(len, self.exchanges))

    def reset(self) -> None:
        """Forget what was counted."""
        self.exchanges.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self._serving.wait()  # or stopping it could come before it runs
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def serve_forever(self) -> None:
        """Run in this thread, until interrupted."""
        loop = self._loop
        server = loop.run_until_complete(
            loop.create_server(lambda: _ClientSide(self, loop), sock=self._socket)
        )
        loop.call_soon(self._serving.set)
        try:
            loop.run_forever()
        finally:
            server.close()
            for link in list(self.links):
                link.close()
            # Closed transports tell their protocols in the loop's next turn.
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


class _Link:
    """One client's connection, with its connection to the server."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self.proxy = proxy
        self.loop = loop
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self.closed = False
        self.early: list[bytes] = []  # came before the server was connected
        self._requests = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._owed = 0
        self._greeting = True
        self._exchange: Exchange | None = None

    def count_requests(self, data: bytes) -> None:
        self._requests.feed(data)
        while (command := self._requests.gets()) is not False:
            if self._greeting and command[0].decode().upper() in _GREETING:
                self._owed += 1
                continue
            self._greeting = False
            if self._owed == 0 or self._exchange is None:
                self._exchange = Exchange(self.loop.time())
                self.proxy.exchanges.append(self._exchange)
            self._exchange.append(tuple(command))
            self._owed += 1

    def count_replies(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            if not isinstance(reply, hiredis.PushNotification):
                self._owed -= 1

    def to_server(self, transport: asyncio.Transport, data: bytes) -> None:
        self.loop.call_later(self.proxy.delay, transport.write, data)

    def to_client(self, transport: asyncio.Transport, data: bytes) -> None:
        self.loop.call_later(self.proxy.delay, self._hand_over, transport, data, self._exchange)

    def _hand_over(
        self, transport: asyncio.Transport, data: bytes, exchange: Exchange | None
    ) -> None:
        if exchange is not None:
            exchange.ended = self.loop.time()  # before the client can ask for it
        transport.write(data)

    def close(self) -> None:
        self.closed = True
        self.proxy.links.discard(self)
        for transport in (self.client, self.server):
            if transport is not None:
                transport.close()


class _ClientSide(asyncio.Protocol):
    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self._link = _Link(proxy, loop)

    def connection_made(self, transport: Any) -> None:
        link = self._link
        link.client = transport
        link.proxy.links.add(link)
        self._connecting = link.loop.create_task(self._connect())

    async def _connect(self) -> None:
        link = self._link
        try:
            await link.loop.create_connection(lambda: _ServerSide(link), *link.proxy.server)
        except OSError:
            link.close()

    def data_received(self, data: bytes) -> None:
        link = self._link
        link.count_requests(data)
        if link.server is None:
            link.early.append(data)
        else:
            link.to_server(link.server, data)

    def connection_lost(self, _: Exception | None) -> None:
        self._link.close()


class _ServerSide(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link

    def connection_made(self, transport: Any) -> None:
        self._link.server = transport
        if self._link.closed:  # the client left meanwhile
            transport.close()
        for data in self._link.early:
            self._link.to_server(transport, data)

    def data_received(self, data: bytes) -> None:
        link = self._link
        link.count_replies(data)
        if link.client is not None:
            link.to_client(link.client, data)

    def connection_lost(self, _: Exception | None) -> None:
        self._link.close()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Run a proxy from the command line."""
    parser = argparse.ArgumentParser(description="A proxy that stands for a network.")
    parser.add_argument("--server", type=int, required=True, help="the server's port")
    parser.add_argument("--listen", type=int, default=0, help="the port to listen on")
    parser.add_argument("--delay", type=float, default=1.0, help="milliseconds each way")
    options = parser.parse_args()
    proxy = Proxy(options.server, listen=options.listen, delay=options.delay / 1000)
    with contextlib.suppress(KeyboardInterrupt):
        proxy.serve_forever()


if __name__ == "__main__":
    main()
