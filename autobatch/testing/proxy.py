"""The proxy: one thread, in which an event loop passes bytes on, counts, and lets faults happen."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Self

import hiredis

from autobatch.testing.faults import Fault

# What redis-py sends on a new connection, before the first command of the program.
_GREETING = {"AUTH", "CLIENT", "HELLO", "SELECT"}
_NOTHING = Fault()
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing does not wait, but sends a reset


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
    """A TCP proxy in front of a Redis server, in a thread of its own: it counts, and breaks.

    An exchange starts when a command arrives on a connection that owes its client no reply, and
    takes in all that arrives until nothing is owed. What redis-py sends to greet a server is
    not counted, and passes unharmed unless `arm` is told otherwise.

    Attributes:
        port: where it listens, on the loopback address.
        exchanges: each a list of its commands, as tuples of bytes.
        connections: how many were accepted.
        server: host and port of the server that new connections go to.
        delay, jitter: seconds, as given.
    """

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        delay: float = 0.0005,
        jitter: float = 0.0,
        seed: int = 0,
        listen: int = 0,
    ) -> None:
        """Prepare a proxy.

        Args:
            port: the server's port.
            host: the server's address.
            delay: seconds that everything takes in each direction. A little of it keeps a large
                write together, which arrives in pieces.
            jitter: seconds that are added to that at random. What passes keeps its order.
            seed: of the randomness.
            listen: the port to listen on; 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._socket = socket.create_server(("127.0.0.1", listen))
        self.port: int = self._socket.getsockname()[1]
        self.delay = delay
        self.jitter = jitter
        self.random = random.Random(seed)  # noqa: S311  # no secret
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.server = (host, port)
        self.links: set[Link] = set()
        self._armed: Iterator[Fault] = iter(())
        self._armed_for_greeting = False
        self._listener: asyncio.Server | None = None
        # Not epoll, whose timers are whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._serving = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, name="autobatch-proxy", daemon=True
        )

    # ---- counting ----------------------------------------------------------------------

    @property
    def names(self) -> list[list[str]]:
        """The names of the commands, exchange by exchange."""
        return [[_name(command) for command in one] for one in self.exchanges]

    @property
    def command_names(self) -> list[str]:
        """The names of the commands, one after the other."""
        return list(itertools.chain(*self.names))

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

    # ---- breaking ----------------------------------------------------------------------

    def arm(self, *faults: Fault, greeting: bool = False) -> None:
        """Let the next connections that are used suffer these, one each, and all others nothing.

        A connection takes its fault with its next command, and keeps it. What others suffer
        already comes to an end.

        Args:
            faults: of `autobatch.testing`, or your own.
            greeting: give them to the next connections that are opened, from their first byte
                on, instead.
        """

        def arm() -> None:
            self._armed = iter(faults)
            self._armed_for_greeting = greeting
            for link in self.links:
                link.release()

        self._call(arm)

    def refuse(self) -> None:
        """Accept no more connections, until `accept`."""

        def refuse() -> None:
            if self._listener is not None:
                self._listener.close()
                self._listener = None

        self._call(refuse)

    def accept(self) -> None:
        """Accept connections again."""
        if self._listener is None:
            self._socket = socket.create_server(("127.0.0.1", self.port))
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def disconnect(self) -> None:
        """Break all connections there are, with a TCP reset."""

        def disconnect() -> None:
            for link in list(self.links):
                link.reset()

        self._call(disconnect)

    def switch(self, port: int, host: str = "127.0.0.1") -> None:
        """Put another server behind the proxy, and break the connections to the one before."""
        self.server = (host, port)
        self.disconnect()

    def next_fault(self, *, greeting: bool) -> Fault:
        """Return what a connection has to suffer from now on; in the proxy's thread."""
        return next(self._armed, _NOTHING) if greeting is self._armed_for_greeting else _NOTHING

    # ---- running -----------------------------------------------------------------------

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
        loop.run_until_complete(self._listen())
        loop.call_soon(self._serving.set)
        try:
            loop.run_forever()
        finally:
            if self._listener is not None:
                self._listener.close()
            loop.run_until_complete(self._wind_up())
            loop.close()

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            lambda: _ClientSide(Link(self, self._loop)), sock=self._socket
        )

    async def _wind_up(self) -> None:
        connecting = {link.connecting for link in self.links}
        for task in connecting:
            task.cancel()
        # The others accept connections. A cancelled one could leave its socket open.
        await asyncio.gather(
            *asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True
        )
        for link in list(self.links):
            link.release()
            link.drop()
        await asyncio.sleep(0)  # closed transports tell their protocols in the loop's next turn

    def _call(self, function: Callable[[], object]) -> None:
        """Call a function in the proxy's thread, and wait for it."""
        if threading.current_thread() is self._thread or not self._loop.is_running():
            function()
            return
        done: Future[None] = Future()

        def call() -> None:
            try:
                function()
            finally:
                done.set_result(None)

        self._loop.call_soon_threadsafe(call)
        done.result()


class Link:
    """One client's connection, with its connection to the server; see `faults.Link`."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived: list[tuple[bytes, ...]] = []
        self.requested = 0
        self.replied = 0
        self.closed = False
        self.to_client_side = _Side(proxy, loop)
        self.to_server_side = _Side(proxy, loop)
        self._proxy = proxy
        self._loop = loop
        self._fault = _NOTHING
        self._requests = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._owed = 0
        self._greeting = True
        self._is_cut = False
        self._exchange: Exchange | None = None

    # ---- for the protocols of its two sides ----------------------------------------------

    def open(self, transport: Any) -> None:
        """Start with the client's connection, whose server is not connected yet."""
        self._proxy.connections += 1
        self._proxy.links.add(self)
        self.to_client_side.connect(transport)
        self._take_fault(greeting=True)
        self.connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: _ServerSide(self), *self._proxy.server)
        except OSError:
            self.close()

    def take_request(self, data: bytes) -> None:
        """Pass on what the client has sent, if its fault lets it through."""
        if self._is_cut:
            return
        self._requests.feed(data)
        self.arrived = []
        while (command := self._requests.gets()) is not False:
            self.arrived.append(tuple(command))
        names = {_name(command) for command in self.arrived}
        self._greeting = self._greeting and bool(names) and names <= _GREETING
        if self._greeting:
            self._owed += len(self.arrived)
        else:
            self._count()
            if self._fault is _NOTHING:
                self._take_fault(greeting=False)
        self._fault.request(self, data)

    def take_reply(self, data: bytes) -> None:
        """Pass on what the server has sent, if its fault lets it through."""
        self._fault.reply(self, data)

    def release(self) -> None:
        """Suffer nothing any more."""
        self._fault.end()
        self._fault = _NOTHING

    def close(self) -> None:
        """Close both connections, when what was passed on has left."""
        self.closed = True
        self.to_client_side.close()
        self.to_server_side.close()
        if not (self.to_client_side.connected or self.to_server_side.connected):
            self._proxy.links.discard(self)

    def drop(self) -> None:
        """Close both connections at once."""
        self.closed = True
        self.to_client_side.drop()
        self.to_server_side.drop()

    def _take_fault(self, *, greeting: bool) -> None:
        self._fault = self._proxy.next_fault(greeting=greeting)
        self.requested = self.replied = 0

    def _count(self) -> None:
        for command in self.arrived:
            if self._owed == 0 or self._exchange is None:
                self._exchange = Exchange(self._loop.time())
                self._proxy.exchanges.append(self._exchange)
            self._exchange.append(command)
            self._owed += 1

    def _count_replies(self, data: bytes, exchange: Exchange | None) -> None:
        if exchange is not None:
            exchange.ended = self._loop.time()  # before the client can ask for it
        with contextlib.suppress(hiredis.ProtocolError):  # a fault sends what it likes
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                if not isinstance(reply, hiredis.PushNotification):
                    self._owed -= 1

    # ---- for faults --------------------------------------------------------------------

    def to_server(self, data: bytes, after: float = 0.0) -> None:
        self.requested += len(data)
        self.to_server_side.write(data, after)

    def to_client(self, data: bytes, after: float = 0.0) -> None:
        self.replied += len(data)
        exchange = self._exchange
        self.to_client_side.write(data, after, lambda: self._count_replies(data, exchange))

    def call_soon(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the proxy has ended
            self._loop.call_soon_threadsafe(function)

    def stop_reading(self) -> None:
        self.to_client_side.stop_reading()

    def end_replies(self) -> None:
        self.to_client_side.end()

    def cut(self) -> None:
        self._is_cut = True
        self.stop_reading()
        self.to_server_side.end()  # which closes its side when it has run everything: see close()

    def reset(self) -> None:
        self.to_client_side.reset()
        self.cut()


class _Side:
    """One of a link's two connections: what is to be written to it, and when."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop
        self.connected = False
        self._transport: Any = None
        self._stopped = False
        self._due = 0.0
        self._early: collections.deque[Callable[[], object]] = collections.deque()

    def connect(self, transport: Any) -> None:
        self._transport = transport
        self.connected = True
        while self._early:
            self._early.popleft()()

    def write(
        self, data: bytes, after: float, before_writing: Callable[[], object] | None = None
    ) -> None:
        def write() -> None:
            if before_writing is not None:
                before_writing()
            self._transport.write(data)

        if data:
            self._later(write, after)

    def end(self) -> None:
        # There is a transport only when the server is connected.
        self._later(lambda: self._transport.write_eof())  # noqa: PLW0108

    def close(self) -> None:
        if self._transport is not None:
            self._later(self._transport.close)

    def stop_reading(self) -> None:
        """Read no more, for good."""
        self._stopped = True
        self._transport.pause_reading()

    def pause_reading(self) -> None:
        """Read no more for now: the other side takes no more."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._stopped:
            self._transport.resume_reading()

    def reset(self) -> None:
        def reset() -> None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

        self._later(reset)

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _later(self, function: Callable[[], object], after: float = 0.0) -> None:
        """Call a function when the network has passed it on, in the order of the calls."""
        proxy = self._proxy
        delay = proxy.delay + after
        if proxy.jitter:
            delay += proxy.jitter * proxy.random.random()
        self._due = max(self._due, self._loop.time() + delay)
        self._loop.call_at(self._due, self._call, function)

    def _call(self, function: Callable[[], object]) -> None:
        if self._transport is None:
            self._early.append(function)
        elif not self._transport.is_closing():
            function()


class _ClientSide(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: Any) -> None:
        self._link.open(transport)

    def data_received(self, data: bytes) -> None:
        self._link.take_request(data)

    def pause_writing(self) -> None:
        self._link.to_server_side.pause_reading()

    def resume_writing(self) -> None:
        self._link.to_server_side.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._link.to_client_side.connected = False
        self._link.close()


class _ServerSide(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: Any) -> None:
        if self._link.closed:  # the client left meanwhile
            transport.close()
        else:
            self._link.to_server_side.connect(transport)

    def data_received(self, data: bytes) -> None:
        self._link.take_reply(data)

    def pause_writing(self) -> None:
        self._link.to_client_side.pause_reading()

    def resume_writing(self) -> None:
        self._link.to_client_side.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._link.to_server_side.connected = False
        self._link.close()


def _name(command: tuple[bytes, ...]) -> str:
    return command[0].decode("latin-1").upper()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
