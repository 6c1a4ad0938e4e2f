"""The proxy: one thread, in which an event loop passes bytes on, counts, and lets faults happen."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import math
import random
import select
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
_WINDOW = 16 << 20  # bytes on their way through the network, in one direction of a connection
_OVERHEAD = 512  # bytes of memory, about, that a piece on its way takes beside its own
_BACKLOG = 1024  # of clients that connect at once: the next one would wait a second
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing does not wait, but sends a reset
_PORTS = range(20000, 32768)
# Not in the order of `random` itself, which whatever tests at random seeds alike in all processes.
_ports = itertools.cycle(random.Random().sample(_PORTS, len(_PORTS)))  # noqa: S311
_SELECTABLE = 1024  # what select() takes are descriptors below this


class _Selector(selectors.DefaultSelector):
    """The usual one, also for pauses of less than a millisecond, which epoll rounds up."""

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0 or not hasattr(selectors, "EpollSelector"):
            return super().select(timeout)
        if self.fileno() < _SELECTABLE:
            select.select([self], [], [], timeout)
            timeout = 0
        return super().select(timeout)


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

    An error in a fault of your own ends its connection, and is raised where the `with` block of
    the proxy ends.

    Attributes:
        port: where it listens, on the loopback address.
        exchanges: each a list of its commands, as tuples of bytes.
        connections: how many were accepted.
        links: those that are open.
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
        count: bool = True,
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
            count: keep what was sent, for `exchanges`, which grow until `reset`.

        Raises:
            OSError: the port is taken.
            ValueError: a delay or a jitter is less than 0, or no number.
        """
        if not (0 <= delay < math.inf and 0 <= jitter < math.inf):
            raise ValueError(f"seconds of a delay are 0 or more, not {delay} and {jitter}")
        self.port = listen or free_port()
        self._socket: socket.socket | None = _listening_socket(self.port)
        self.delay = delay
        self.jitter = jitter
        self.random = random.Random(seed)  # noqa: S311  # no secret
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.server = (host, port)
        self.links: set[Link] = set()
        self.counting = count
        self._armed: Iterator[Fault] = iter(())
        self._armed_for_greeting = False
        self._errors: list[BaseException] = []
        self._accepting: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.SelectorEventLoop(_Selector())
        self._serving = threading.Event()
        self._served_by: int | None = None
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

        def reset() -> None:
            self.exchanges.clear()
            for link in self.links:
                link.forget()

        self._call(reset)

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
        self._call(self._refuse)

    def accept(self) -> None:
        """Accept connections again."""
        if self._socket is None:
            self._socket = _listening_socket(self.port)
            self._call(self._listen)

    def disconnect(self) -> None:
        """Break all connections there are, now, with a TCP reset."""

        def disconnect() -> None:
            for link in list(self.links):
                link.disconnect()

        self._call(disconnect)

    def switch(self, port: int, host: str = "127.0.0.1") -> None:
        """Put another server behind the proxy, and break the connections to the one before."""
        self.server = (host, port)
        self.disconnect()

    def next_fault(self, *, greeting: bool) -> Fault:
        """Return what a connection has to suffer from now on; in the proxy's thread."""
        return next(self._armed, _NOTHING) if greeting is self._armed_for_greeting else _NOTHING

    def failed(self, error: BaseException) -> None:
        """Keep an error of a fault for the end of the `with` block; in the proxy's thread."""
        self._errors.append(error)

    # ---- running -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._serving.wait()  # or stopping it could come before it runs
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        # It explains an error of the block, but must not stand in for what is to end the program.
        if self._errors and (error is None or isinstance(error, Exception)):
            raise self._errors[0]

    def serve_forever(self) -> None:
        """Run in this thread, until interrupted."""
        loop = self._loop
        self._served_by = threading.get_ident()
        self._listen()
        loop.call_soon(self._serving.set)
        try:
            loop.run_forever()
        finally:
            self._refuse()
            loop.run_until_complete(self._wind_up())
            loop.close()

    # Not asyncio's server: one that is closed leaves a connection open that it was accepting.

    def _listen(self) -> None:
        assert self._socket is not None
        self._loop.add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                client, _ = listener.accept()
                accepting = self._loop.create_task(
                    self._loop.connect_accepted_socket(
                        lambda: _ClientSide(Link(self, self._loop)), client
                    )
                )
                self._accepting.add(accepting)
                accepting.add_done_callback(self._accepting.discard)

    def _refuse(self) -> None:
        if self._socket is not None:
            self._accept(self._socket)  # who came before
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def _wind_up(self) -> None:
        await asyncio.gather(*self._accepting, return_exceptions=True)
        connecting = [link.connecting for link in self.links if link.connecting is not None]
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for link in list(self.links):
            link.release()
            link.drop()
        await asyncio.sleep(0)  # closed transports tell their protocols in the loop's next turn

    def _call(self, function: Callable[[], object]) -> None:
        """Call a function in the proxy's thread, and wait for it."""
        if threading.get_ident() == self._served_by or not self._loop.is_running():
            function()
            return
        done: Future[None] = Future()

        def call() -> None:
            try:
                function()
            finally:
                # Sockets are closed, and faults are let go, in the loop's next turn.
                self._loop.call_soon(done.set_result, None)

        self._loop.call_soon_threadsafe(call)
        done.result()


class Link:
    """One client's connection, with its connection to the server; see `faults.Link`."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived: list[tuple[bytes, ...]] = []
        self.requested = 0
        self.replied = 0
        self.connecting: asyncio.Task[None] | None = None
        self.dropped = False
        self.to_client_side = _Side(proxy, loop)
        self.to_server_side = _Side(proxy, loop)
        self.to_client_side.source = self.to_server_side
        self.to_server_side.source = self.to_client_side
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
            self.to_client_side.close()
        self.connecting = None
        self._leave()

    def take_request(self, data: bytes) -> None:
        """Pass on what the client has sent, if its fault lets it through."""
        if self._is_cut:
            return
        self._requests.feed(data)
        self.arrived = []
        with contextlib.suppress(hiredis.ProtocolError):  # inline commands are not counted
            while (command := self._requests.gets()) is not False:
                if isinstance(command, list) and command and isinstance(command[0], bytes):
                    self.arrived.append(tuple(command))
        names = {_name(command) for command in self.arrived}
        self._greeting = self._greeting and bool(names) and names <= _GREETING
        if self._greeting:
            self._owed += len(self.arrived)
        else:
            if self._proxy.counting:
                self._count()
            if self._fault is _NOTHING:
                self._take_fault(greeting=False)
        self._guard(self._fault.request, self, data)

    def take_reply(self, data: bytes) -> None:
        """Pass on what the server has sent, if its fault lets it through."""
        self._guard(self._fault.reply, self, data)

    def release(self) -> None:
        """Suffer nothing any more."""
        fault = self._fault

        def pass_everything() -> None:
            if self._fault is fault:
                self._fault = _NOTHING

        self._guard(fault.end)
        self._loop.call_soon(pass_everything)  # behind what was held back

    def forget(self) -> None:
        """Count what comes as a new exchange."""
        self._exchange = None

    def close(self) -> None:
        """Close both connections, when what was passed on has left."""
        self.to_client_side.close()
        self.to_server_side.close()
        self._leave()

    def drop(self) -> None:
        """Close both connections at once."""
        self.dropped = True
        self.to_client_side.drop()
        self.to_server_side.drop()

    def disconnect(self) -> None:
        """Break the connection with a TCP reset, at once."""
        self.to_client_side.reset_now()
        self.cut()

    def _guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function of a fault."""
        try:
            function(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit, and pytest's outcomes
            self._proxy.failed(error)
            self.drop()

    def _leave(self) -> None:
        """Be forgotten, if nothing is open any more."""
        if not (self.connecting or self.to_client_side.connected or self.to_server_side.connected):
            self._proxy.links.discard(self)

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
                if not isinstance(reply, hiredis.PushNotification) and self._owed:
                    self._owed -= 1

    # ---- for faults --------------------------------------------------------------------

    def to_server(self, data: bytes, after: float = 0.0) -> None:
        self.requested += len(data)
        self.to_server_side.write(bytes(memoryview(data)), after)

    def to_client(self, data: bytes, after: float = 0.0) -> None:
        self.replied += len(data)
        exchange = self._exchange
        data = bytes(memoryview(data))
        self.to_client_side.write(data, after, lambda: self._count_replies(data, exchange))

    def call_soon(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the proxy has ended
            self._loop.call_soon_threadsafe(self._guard, function)

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
    """One of a link's two connections: what is to be written to it, and when.

    Attributes:
        connected: whether it is open.
        source: the other one, from which comes what is written here.
    """

    source: _Side

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self.connected = False
        self._proxy = proxy
        self._loop = loop
        self._transport: Any = None
        self._stopped = False  # nothing more is read
        self._ended = False  # nothing more is written
        self._full = False  # the transport takes no more for now
        self._due = 0.0
        self._on_its_way = 0
        self._waiting: collections.deque[Callable[[], object]] = collections.deque()
        self._early: collections.deque[Callable[[], object]] = collections.deque()

    def connect(self, transport: Any) -> None:
        self._transport = transport
        self.connected = True
        while self._early:
            self._early.popleft()()

    def write(
        self, data: bytes, after: float, before_writing: Callable[[], object] | None = None
    ) -> None:
        size = len(data) + _OVERHEAD

        def write() -> None:
            self._on_its_way -= size
            if not self._ended:
                if before_writing is not None:
                    before_writing()
                self._transport.write(data)
            self._throttle()

        if data:
            self._on_its_way += size
            self._later(write, after)
            self._throttle()

    def end(self) -> None:
        def end() -> None:
            self._ended = True
            self._transport.write_eof()

        self._later(end)

    def close(self) -> None:
        self._later(lambda: self._transport.close())  # noqa: PLW0108  # there may be none yet

    def stop_reading(self) -> None:
        """Read no more, for good."""
        self._stopped = True
        self._transport.pause_reading()

    def fill(self, *, full: bool) -> None:
        """Learn whether the transport takes more for now."""
        self._full = full
        self._throttle()

    def _throttle(self) -> None:
        """Read from the other side only as long as this one takes it."""
        self.source.keep_reading(not self._full and self._on_its_way <= _WINDOW)

    def keep_reading(self, wanted: bool) -> None:  # noqa: FBT001
        if self._transport is None:
            return
        if wanted and not self._stopped:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def reset(self) -> None:
        self._later(self.reset_now)

    def reset_now(self) -> None:
        if self.connected:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

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
        # The loop calls what is due at the same time in any order; what passes keeps its own.
        self._waiting.append(function)
        self._loop.call_at(self._due, self._call_next)

    def _call_next(self) -> None:
        function = self._waiting.popleft()
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
        self._link.to_client_side.fill(full=True)

    def resume_writing(self) -> None:
        self._link.to_client_side.fill(full=False)

    def connection_lost(self, _: Exception | None) -> None:
        self._link.to_client_side.connected = False
        self._link.close()


class _ServerSide(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connection_made(self, transport: Any) -> None:
        self._link.to_server_side.connect(transport)
        if self._link.dropped:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._link.take_reply(data)

    def pause_writing(self) -> None:
        self._link.to_server_side.fill(full=True)

    def resume_writing(self) -> None:
        self._link.to_server_side.fill(full=False)

    def connection_lost(self, _: Exception | None) -> None:
        self._link.to_server_side.connected = False
        self._link.close()


def _name(command: tuple[bytes, ...]) -> str:
    return command[0].decode("latin-1").upper()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on, another one each time.

    Connections that go out are given ports from 32768 on (Linux) or 49152 on (RFC 6335): one below
    stays free until it is used, and while a server that had it is started again.

    Raises:
        OSError: there is none.
    """
    for port in itertools.islice(_ports, len(_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"all ports from {_PORTS.start} to {_PORTS.stop - 1} are taken")


def _listening_socket(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003  # as it is
    # What it accepts inherits this, which asyncio gives to what it connects alone. Without it a
    # reply that follows another waits for the client's acknowledgement of that: 40 ms on Linux.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
