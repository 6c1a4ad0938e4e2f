"""What a connection through `autobatch.testing.Proxy` can suffer.

A fault is told of all that passes, in the thread of the proxy, which must not be blocked: to wait
for something, use a `Signal`. Write your own by overriding `request` and `reply`: what they do not
pass on is lost.

    class LoseThePings(Fault):
        def request(self, link, data):
            if (b"PING",) not in link.arrived:
                link.to_server(data)
"""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable
from typing import Protocol


class Link(Protocol):
    """One client's connection, with its connection to the server, as a fault sees it.

    Attributes:
        arrived: the commands that the latest bytes of the client completed.
        requested: how many bytes of the requests went to the server under the fault.
        replied: how many bytes of the replies went to the client under the fault.
    """

    arrived: list[tuple[bytes, ...]]
    requested: int
    replied: int

    def to_server(self, data: bytes, after: float = 0.0) -> None:
        """Pass bytes on, `after` so many seconds; the order stays."""

    def to_client(self, data: bytes, after: float = 0.0) -> None:
        """The same in the other direction."""

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the proxy's thread; from any thread."""

    def stop_reading(self) -> None:
        """Take no more from the client: its writes block when the buffers on the way are full."""

    def end_replies(self) -> None:
        """Tell the client that no more replies will come, and go on passing its requests."""

    def cut(self) -> None:
        """Pass no more requests; close the connection when the server has run what it got."""

    def reset(self) -> None:
        """Break the connection with a TCP reset; the server still gets what was passed on."""


class Signal(threading.Event):
    """A `threading.Event` that a fault can wait for without blocking the proxy."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: collections.deque[tuple[Link, Callable[[], object]]] = collections.deque()
        self._calling = threading.Lock()

    def set(self) -> None:
        super().set()
        with self._calling:  # two threads at once would mix up the order
            while self._calls:
                link, function = self._calls.popleft()
                link.call_soon(function)

    def then(self, link: Link, function: Callable[[], object]) -> None:
        """Call `function` in the proxy's thread when this is set, perhaps now; in order."""
        self._calls.append((link, function))
        if self.is_set():
            self.set()


class Fault:
    """What a connection suffers. This one: nothing."""

    def request(self, link: Link, data: bytes) -> None:
        """Take what the client has sent; at least what a command of it takes."""
        link.to_server(data)

    def reply(self, link: Link, data: bytes) -> None:
        """Take what the server has sent."""
        link.to_client(data)

    def end(self) -> None:
        """Let go of what is held back."""


class _AtByte(Fault):
    """Something that happens after so many bytes of the requests, or of the replies."""

    def __init__(self, *, request: int | None = None, reply: int | None = None) -> None:
        """Prepare it.

        Args:
            request: pass so many bytes of the requests.
            reply: pass so many bytes of the replies.
        """
        self._request = request
        self._reply = reply

    def request(self, link: Link, data: bytes) -> None:
        left = len(data) if self._request is None else self._request - link.requested
        link.to_server(data[:left])
        if left <= len(data) and self._request is not None:
            self.strike(link)

    def reply(self, link: Link, data: bytes) -> None:
        left = len(data) if self._reply is None else self._reply - link.replied
        link.to_client(data[:left])
        if left <= len(data) and self._reply is not None:
            self.strike(link)

    def strike(self, link: Link) -> None:
        """Do it."""
        raise NotImplementedError


class Cut(_AtByte):
    """Close the connection after so many bytes, when the server has run what reached it."""

    def strike(self, link: Link) -> None:
        link.cut()


class Reset(_AtByte):
    """Break the connection after so many bytes, with a TCP reset."""

    def strike(self, link: Link) -> None:
        link.reset()


class HalfClose(_AtByte):
    """End the replies after so many bytes, while requests still reach the server."""

    def request(self, link: Link, data: bytes) -> None:
        link.to_server(data)
        if self._request is not None and self._request <= link.requested:
            self.strike(link)

    def strike(self, link: Link) -> None:
        link.end_replies()


class Delay(Fault):
    """Let everything take longer, in both directions."""

    def __init__(self, seconds: float, *, jitter: float = 0.0, seed: int = 0) -> None:
        """Prepare it.

        Args:
            seconds: how much longer.
            jitter: seconds that are added at random; what passes keeps its order.
            seed: of the randomness.
        """
        self._seconds = seconds
        self._jitter = jitter
        self._random = random.Random(seed)  # noqa: S311  # no secret

    def request(self, link: Link, data: bytes) -> None:
        link.to_server(data, self._draw())

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(data, self._draw())

    def _draw(self) -> float:
        return self._seconds + self._jitter * self._random.random()


class Drip(Fault):
    """Pass replies a few bytes at a time."""

    def __init__(self, size: int = 1, seconds: float = 0.0) -> None:
        """Prepare it.

        Args:
            size: bytes at a time.
            seconds: from one piece to the next.
        """
        self._size = size
        self._seconds = seconds

    def reply(self, link: Link, data: bytes) -> None:
        for number, start in enumerate(range(0, len(data), self._size), 1):
            link.to_client(data[start : start + self._size], number * self._seconds)


class Hold(Fault):
    """Withhold the replies until `released` is set.

    Attributes:
        requested: set when a command went on to the server.
        replied: set when the server has answered, so has run what it got.
        released: to be set by the program, or another fault's `requested` or `replied`.
    """

    def __init__(self) -> None:
        self.requested = Signal()
        self.replied = Signal()
        self.released = Signal()

    def request(self, link: Link, data: bytes) -> None:
        link.to_server(data)
        self.requested.set()

    def reply(self, link: Link, data: bytes) -> None:
        self.replied.set()
        self.released.then(link, lambda: link.to_client(data))

    def end(self) -> None:
        self.released.set()


class HoldRequests(Hold):
    """Withhold the requests until `released` is set; `requested` tells that one has come."""

    def request(self, link: Link, data: bytes) -> None:
        self.requested.set()
        self.released.then(link, lambda: link.to_server(data))


class Swallow(Hold):
    """Lose the replies, and keep the connection open."""

    def reply(self, link: Link, data: bytes) -> None:  # noqa: ARG002  # that is what it is for
        self.replied.set()


class Silence(Swallow):
    """Lose everything, and keep the connection open: a host that accepts and says nothing."""

    def request(self, link: Link, data: bytes) -> None:  # noqa: ARG002
        self.requested.set()


class Clog(Swallow):
    """Read no more than so many bytes of the requests, and lose the replies."""

    def __init__(self, after: int) -> None:
        """Prepare it to pass `after` bytes; set `released` to close the connection."""
        super().__init__()
        self._after = after

    def request(self, link: Link, data: bytes) -> None:
        super().request(link, data[: self._after - link.requested])
        if link.requested == self._after:
            link.stop_reading()
            self.released.then(link, link.cut)


class Answer(Fault):
    """Answer each command in the server's place, which hears of none."""

    def __init__(self, reply: bytes) -> None:
        """Prepare it; `reply` is what to answer, in the bytes of the protocol."""
        self._reply = reply

    def request(self, link: Link, data: bytes) -> None:  # noqa: ARG002
        link.to_client(self._reply * len(link.arrived))


class Insert(Fault):
    """Add bytes to the first replies that come together: in front of them, or behind."""

    def __init__(self, *, before: bytes = b"", behind: bytes = b"") -> None:
        self._before = before
        self._behind = behind

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(data if link.replied else self._before + data + self._behind)
