"""The fault proxy, as plain sockets and redis-py's own client see it."""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import hiredis
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from autobatch.testing import (
    Answer,
    Clog,
    Cut,
    Delay,
    Drip,
    Fault,
    HalfClose,
    Hold,
    HoldRequests,
    Insert,
    Proxy,
    Reset,
    Signal,
    Silence,
    Swallow,
    free_port,
)
from common import PATIENCE

MB = 1 << 20
INCR = ("INCR", "n")
ENDS = (ConnectionResetError, BrokenPipeError)


@pytest.fixture
def proxy(server, plain):
    with Proxy(server, delay=0) as proxy:
        yield proxy


class Peer:
    """A client that does no more than it is told."""

    def __init__(self, proxy):
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *commands):
        self.socket.sendall(b"".join(hiredis.pack_command(command) for command in commands))

    def read(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(min(count - len(data), 1 << 16))
            assert piece, f"the connection ended after {bytes(data)!r}"
            data += piece
        return bytes(data)

    def rest(self):
        """Return all until the connection is closed."""
        data = b""
        while piece := self.socket.recv(1 << 16):
            data += piece
        return data

    def is_reset(self):
        """Wait for the end of the connection: is it a reset?"""
        try:
            self.rest()
        except ConnectionResetError:
            return True
        return False

    def has_nothing(self):
        self.socket.settimeout(0)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)


def round_trip(proxy):
    """When this is over, the proxy has passed on all that it had before."""
    with Peer(proxy) as peer:
        peer.send(("PING",))
        assert peer.read(7) == b"+PONG\r\n"


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- faults ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(5))
def test_cut_in_the_replies(count, proxy, plain):
    """The server has run the command, whatever of its reply arrives."""
    proxy.arm(Cut(reply=count))
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert peer.rest() == b":1\r\n"[:count]
    assert plain.get("n") == "1"


SIZE = len(hiredis.pack_command(INCR))


@pytest.mark.parametrize("count", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE])
def test_cut_in_the_requests(count, proxy, plain):
    """What reached the server whole is run, and answered."""
    proxy.arm(Cut(request=count))
    with Peer(proxy) as peer:
        peer.send(INCR, INCR, INCR)
        assert peer.rest() == b":1\r\n:2\r\n"[: count // SIZE * 4]
    assert int(plain.get("n") or 0) == count // SIZE


def test_cut_in_a_request_that_arrives_in_pieces(proxy, plain):
    """What the client writes later is counted, too."""
    proxy.arm(Cut(request=SIZE + 2))
    with Peer(proxy) as peer:
        for number in range(1, 3):
            peer.send(INCR)
            assert (peer.read(4) if number == 1 else peer.rest()) == (b":1\r\n" * (2 - number))
    assert plain.get("n") == "1"


@pytest.mark.parametrize("where", [{"reply": 0}, {"reply": 2}, {"request": SIZE}])
def test_reset(where, proxy, plain):
    """A broken connection, not one that was closed; what was passed on is run."""
    proxy.arm(Reset(**where))
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert peer.is_reset()
    until(lambda: plain.get("n") == "1")


@pytest.mark.parametrize("where", [{"reply": 2}, {"request": 5}])
def test_half_close(where, proxy, plain):
    """The client reads the end, and is heard all the same."""
    proxy.arm(HalfClose(**where))
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert peer.rest() == b":1\r\n"[: where.get("reply", 0)]
        peer.send(INCR)
        until(lambda: plain.get("n") == "2")
        proxy.arm()
        peer.send(INCR)
        until(lambda: plain.get("n") == "3")


def test_hold(proxy, plain):
    """The server has run the commands; the replies come later, in their order."""
    hold = Hold()
    proxy.arm(hold)
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert hold.requested.wait(PATIENCE)
        assert hold.replied.wait(PATIENCE)
        peer.send(INCR)
        until(lambda: plain.get("n") == "2")
        round_trip(proxy)
        assert peer.has_nothing()
        hold.released.set()
        assert peer.read(8) == b":1\r\n:2\r\n"
        peer.send(INCR)
        assert peer.read(4) == b":3\r\n"


def test_hold_requests(proxy, plain):
    """The server does not hear of them yet."""
    hold = HoldRequests()
    proxy.arm(hold)
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert hold.requested.wait(PATIENCE)
        peer.send(INCR)
        round_trip(proxy)
        assert plain.get("n") is None
        hold.released.set()
        assert peer.read(8) == b":1\r\n:2\r\n"


@pytest.mark.parametrize("kind", [Hold, HoldRequests])
def test_what_was_held_keeps_its_order(kind, proxy):
    """Also while it is let go."""
    count = 2000
    expected = b"".join(b"$4\r\n%04d\r\n" % number for number in range(count))
    hold = kind()
    proxy.arm(hold)

    with Peer(proxy) as peer:
        for number in range(count):
            peer.send(("ECHO", f"{number:04}"))
            if number == count // 3:
                assert hold.requested.wait(PATIENCE)
                released = threading.Thread(target=hold.released.set)
                released.start()
            if number == count // 2:
                proxy.arm()
        assert peer.read(len(expected)) == expected
        released.join()


def test_swallow(proxy, plain):
    """The command is run, its reply is lost, and the connection goes on."""
    swallow = Swallow()
    proxy.arm(swallow)
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert swallow.replied.wait(PATIENCE)
        proxy.arm()
        peer.send(INCR)
        assert peer.read(4) == b":2\r\n"


def test_silence(proxy, plain):
    """The server does not even hear."""
    silence = Silence()
    proxy.arm(silence)
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert silence.requested.wait(PATIENCE)
        proxy.arm()
        peer.send(INCR)
        assert peer.read(4) == b":1\r\n"


def test_clog(proxy, plain):
    """The client's write stands still, until the connection is closed."""
    clog = Clog(SIZE)
    proxy.arm(clog)
    with Peer(proxy) as peer:
        peer.send(INCR)
        assert clog.replied.wait(PATIENCE)
        peer.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.socket.sendall(bytes(64 * MB))
        peer.socket.settimeout(PATIENCE)
        clog.released.set()
        with pytest.raises(ENDS):
            peer.socket.sendall(bytes(64 * MB))
    assert plain.get("n") == "1"


def test_answer(proxy, plain):
    """Each command gets it; the server hears of none."""
    proxy.arm(Answer(b"+mine\r\n"))
    with Peer(proxy) as peer:
        peer.send(INCR, INCR)
        assert peer.read(14) == b"+mine\r\n" * 2
        peer.send(INCR)
        assert peer.read(7) == b"+mine\r\n"
    assert plain.get("n") is None
    assert proxy.names == [["INCR", "INCR"], ["INCR"]]


def test_insert(proxy, plain):
    """Once for each connection that suffers it."""
    insert = Insert(before=b"<", behind=b">")
    proxy.arm(insert, insert)
    for _ in range(2):
        with Peer(proxy) as peer:
            peer.send(("ECHO", "a"))
            assert peer.read(9) == b"<$1\r\na\r\n>"
            peer.send(("PING",))
            assert peer.read(7) == b"+PONG\r\n"


# Only lower bounds: nothing comes sooner than it is told to.


def test_delay(proxy):
    proxy.arm(Delay(0.02))
    with Peer(proxy) as peer:
        before = time.monotonic()
        peer.send(("PING",))
        assert peer.read(7) == b"+PONG\r\n"
        assert time.monotonic() - before >= 2 * 0.02


def test_drip(proxy):
    """The last of three pieces is the third."""
    proxy.arm(Drip(3, 0.01))
    with Peer(proxy) as peer:
        peer.send(("PING",))
        assert peer.read(7) == b"+PONG\r\n"
    (exchange,) = proxy.exchanges
    assert exchange.ended - exchange.started >= 3 * 0.01


def test_the_delay_of_the_proxy_is_for_each_direction(server):
    with Proxy(server, delay=0.02) as proxy:
        before = time.monotonic()
        round_trip(proxy)
        assert time.monotonic() - before >= 2 * 0.02
        (exchange,) = proxy.exchanges
        assert exchange.ended - exchange.started >= 2 * 0.02


def test_no_reply_waits_for_the_acknowledgement_of_another(proxy):
    """Nagle's algorithm is off on both sides: it would add 40 ms that no network has."""
    with Peer(proxy) as peer:
        peer.send(("PING",))
        assert peer.read(7) == b"+PONG\r\n"
        (link,) = proxy.links
        for side in (link.to_client_side, link.to_server_side):
            connection = side._transport.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("fault", [Fault(), Drip(), Delay(0, jitter=0.002)])
def test_jitter_keeps_the_order(fault, server):
    """Of the bytes as of the commands."""
    numbers = [f"{number:04}" for number in range(500)]
    expected = b"".join(b"$4\r\n%s\r\n" % number.encode() for number in numbers)
    with Proxy(server, delay=0, jitter=0.003) as proxy, Peer(proxy) as peer:
        proxy.arm(fault)
        for number in numbers:
            peer.send(("ECHO", number))
        assert peer.read(len(expected)) == expected


# ---- faults of one's own ---------------------------------------------------------------


def test_a_fault_sees_commands_and_bytes(proxy):
    seen = []

    class Watch(Fault):
        def request(self, link, data):
            super().request(link, data)
            seen.append((link.arrived, link.requested))

        def reply(self, link, data):
            super().reply(link, data)
            seen.append((data, link.replied))

    proxy.arm(Watch())
    with Peer(proxy) as peer:
        peer.send(("ECHO", "a"))
        assert peer.read(7) == b"$1\r\na\r\n"
    size = len(hiredis.pack_command(("ECHO", "a")))
    assert seen == [([(b"ECHO", b"a")], size), (b"$1\r\na\r\n", 7)]


def test_a_fault_that_waits_for_a_signal(proxy, plain):
    """What it wants done happens in order when the signal is set, or at once if it was."""
    go = Signal()
    done = []

    class Wait(Fault):
        def reply(self, link, data):
            go.then(link, lambda: done.append(data))
            go.then(link, lambda: link.to_client(data))

    proxy.arm(Wait())
    with Peer(proxy) as peer:
        peer.send(INCR)
        until(lambda: plain.get("n") == "1")
        round_trip(proxy)
        assert done == []
        go.set()
        assert peer.read(4) == b":1\r\n"
        peer.send(INCR)
        assert peer.read(4) == b":2\r\n"
    assert done == [b":1\r\n", b":2\r\n"]


class Wrong(Fault):
    """A fault with an error in it."""

    def __init__(self, where):
        self._where = where

    def request(self, link, data):
        if self._where == "request":
            raise LookupError(self._where)
        if self._where == "signal":
            go = Signal()
            go.then(link, self.fail)
            go.set()
        link.to_server(data)

    def reply(self, link, data):
        if self._where == "reply":
            raise LookupError(self._where)
        if self._where == "exit":
            sys.exit("exit")
        link.to_client("text" if self._where == "type" else data)

    def end(self):
        if self._where == "end":
            raise LookupError(self._where)

    def fail(self):
        raise LookupError(self._where)


@pytest.mark.parametrize("where", ["request", "reply", "signal", "type", "exit", "end"])
def test_an_error_in_a_fault(where, server, plain):
    """It ends the connection, leaves others alone, and is raised at the end of the block."""
    expected = {"type": TypeError, "exit": SystemExit}.get(where, LookupError)
    with pytest.raises(expected), Proxy(server) as proxy, Peer(proxy) as peer:
        proxy.arm(Wrong(where))
        peer.send(INCR)
        if where == "end":
            assert peer.read(4) == b":1\r\n"
            proxy.arm()
        with contextlib.suppress(ConnectionResetError):
            assert peer.rest() in (b"", b":1\r\n")
        round_trip(proxy)


@pytest.mark.parametrize("own", [AssertionError, KeyboardInterrupt])
def test_an_error_in_a_fault_and_one_of_the_block(own, server):
    """The first explains the second, unless that one is to end the program."""
    with pytest.raises(BaseException) as raised, Proxy(server) as proxy, Peer(proxy) as peer:
        proxy.arm(Wrong("request"))
        peer.send(INCR)
        with contextlib.suppress(ConnectionResetError):
            assert peer.rest() == b""
        raise own
    if own is KeyboardInterrupt:
        assert raised.type is KeyboardInterrupt
    else:
        assert raised.type is LookupError
        assert isinstance(raised.value.__context__, AssertionError)


# ---- who suffers -----------------------------------------------------------------------


def test_each_fault_is_for_one_connection(proxy):
    """That is used next, not opened next; all others suffer nothing."""
    with Peer(proxy) as first, Peer(proxy) as second, Peer(proxy) as third:
        proxy.arm(Answer(b"+a\r\n"), Answer(b"+b\r\n"))
        for _ in range(2):
            third.send(("PING",))
            assert third.read(4) == b"+a\r\n"
        first.send(("PING",))
        assert first.read(4) == b"+b\r\n"
        second.send(("PING",))
        assert second.read(7) == b"+PONG\r\n"
        proxy.arm()
        third.send(("PING",))
        assert third.read(7) == b"+PONG\r\n"


def test_arming_lets_go_of_what_is_held(proxy):
    hold = Hold()
    proxy.arm(hold)
    with Peer(proxy) as peer:
        peer.send(("PING",))
        assert hold.replied.wait(PATIENCE)
        proxy.arm()
        assert peer.read(7) == b"+PONG\r\n"


NO_RETRY = {"retry": Retry(NoBackoff(), 0), "socket_timeout": PATIENCE}


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_greeting_passes_and_is_not_counted(protocol, proxy, plain):
    proxy.arm(Cut(reply=0))
    with redis.Redis(port=proxy.port, db=1, protocol=protocol, **NO_RETRY) as client:
        with pytest.raises(redis.ConnectionError):
            client.incr("n")
        assert client.incr("n") == 2
    assert proxy.names == [["INCRBY"], ["INCRBY"]]
    assert proxy.connections == 2


def test_a_greeting_suffers_what_is_meant_for_it(proxy):
    """The connections that are open do not."""
    with (
        redis.Redis(port=proxy.port, db=1, **NO_RETRY) as before,
        redis.Redis(port=proxy.port, db=1, **NO_RETRY) as after,
    ):
        before.ping()
        proxy.arm(Answer(b"-ERR no\r\n"), Cut(reply=1), greeting=True)
        before.ping()
        with pytest.raises(redis.ResponseError, match="no"):
            after.ping()
        with pytest.raises(redis.ConnectionError):
            after.ping()
        assert after.ping()


# ---- connections -----------------------------------------------------------------------


def test_refuse_and_accept(proxy):
    """What is open goes on meanwhile. Twice is as good as once."""
    with Peer(proxy) as peer:
        for _ in range(2):
            for _ in range(2):
                proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                Peer(proxy)
            peer.send(("PING",))
            assert peer.read(7) == b"+PONG\r\n"
            for _ in range(2):
                proxy.accept()
            round_trip(proxy)


def test_disconnect(proxy):
    """It is over when the call returns: a client knows before it sends anything."""
    with Peer(proxy) as one, Peer(proxy) as two:
        for peer in (one, two):
            peer.send(("PING",))
            peer.read(7)
        proxy.disconnect()
        for peer in (one, two):
            peer.socket.settimeout(0)
            with pytest.raises(ConnectionResetError):
                peer.socket.recv(1)
        round_trip(proxy)
        until(lambda: not proxy.links)


def test_switch(proxy, second_server):
    with redis.Redis(port=second_server) as second, Peer(proxy) as peer:
        second.set("who", "second")
        peer.send(("PING",))
        peer.read(7)
        proxy.switch(second_server)
        assert peer.is_reset()
        with Peer(proxy) as other:
            other.send(("GET", "who"))
            assert other.read(12) == b"$6\r\nsecond\r\n"


def test_a_free_port_stays_free():
    """Each is another one, and none is given to connections that go out."""
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    assert max(ports) < 32768
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_server_that_is_not_there():
    """Its clients are cut off."""
    with Proxy(free_port()) as proxy, Peer(proxy) as peer:
        assert peer.rest() == b""
        until(lambda: not proxy.links)
        assert proxy.connections == 1


def test_clients_that_leave_at_once(proxy):
    """Nothing of them is left behind."""
    for _ in range(100):
        with Peer(proxy) as peer:
            peer.send(("PING",))
    until(lambda: not proxy.links)
    round_trip(proxy)


def test_what_a_client_wrote_before_it_left_is_run(server, plain):
    with Proxy(server, delay=0.01) as proxy:
        with Peer(proxy) as peer:
            peer.send(INCR)
        until(lambda: plain.get("n") == "1")


def test_many_connections(proxy):
    """More than select() can watch."""
    count = 700
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * count + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip("the system does not allow so many sockets")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(proxy)) for _ in range(count)]
            for peer in peers:
                peer.send(("PING",))
            assert {peer.read(7) for peer in peers} == {b"+PONG\r\n"}
            assert proxy.connections == len(proxy.links) == count
        until(lambda: not proxy.links)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("fault", [Fault(), Hold(), Clog(0)])
def test_the_end_of_the_proxy(fault, server):
    """Connections are closed, whatever they suffer; then there is no thread, and no listener."""
    before = threading.enumerate()  # a cluster of other tests has proxies, too
    with Proxy(server) as proxy:
        proxy.arm(fault)
        peer = Peer(proxy)
        peer.send(("PING",))
        until(lambda: proxy.names == [["PING"]])
    with peer, contextlib.suppress(ConnectionResetError):
        assert peer.rest() in (b"", b"+PONG\r\n")
    with pytest.raises(ConnectionRefusedError):
        Peer(proxy)
    assert set(threading.enumerate()) <= set(before)


# ---- counting --------------------------------------------------------------------------


def test_exchanges(proxy):
    """What arrives while a reply is owed belongs to it; each connection has its own."""
    hold = Hold()
    with Peer(proxy) as one, Peer(proxy) as two:
        one.send(("PING",), ("ECHO", "a"))
        one.read(14)
        proxy.arm(hold)
        one.send(INCR)
        assert hold.replied.wait(PATIENCE)
        two.send(("DBSIZE",))
        two.read(4)
        one.send(("GET", "n"))
        until(lambda: proxy.commands == 5)
        hold.released.set()
        one.read(4 + 7)
    assert proxy.exchanges == [
        [(b"PING",), (b"ECHO", b"a")],
        [(b"INCR", b"n"), (b"GET", b"n")],
        [(b"DBSIZE",)],
    ]
    assert proxy.names == [["PING", "ECHO"], ["INCR", "GET"], ["DBSIZE"]]
    assert proxy.command_names == ["PING", "ECHO", "INCR", "GET", "DBSIZE"]
    assert (proxy.round_trips, proxy.commands) == (3, 5)
    first, second, third = proxy.exchanges
    assert first.started <= first.ended <= second.started
    assert second.started <= third.started <= third.ended <= second.ended


def test_a_command_that_arrives_in_pieces(proxy):
    with Peer(proxy) as peer:
        for byte in hiredis.pack_command(("ECHO", "a")):
            peer.socket.send(bytes([byte]))
        assert peer.read(7) == b"$1\r\na\r\n"
    assert proxy.names == [["ECHO"]]


def test_reset_while_a_reply_is_owed(proxy):
    """What comes later counts, as an exchange that starts there."""
    swallow = Swallow()
    proxy.arm(swallow)
    with Peer(proxy) as peer:
        peer.send(("PING",))
        assert swallow.replied.wait(PATIENCE)
        proxy.reset()
        assert proxy.exchanges == []
        proxy.arm()
        peer.send(("ECHO", "a"))
        assert peer.read(7) == b"$1\r\na\r\n"
    assert proxy.names == [["ECHO"]]


def test_what_nobody_asked_for_is_no_reply(proxy, plain):
    """Messages of a subscription, and pushes of RESP3: exchanges stay apart."""
    with Peer(proxy) as peer:
        peer.send(("SUBSCRIBE", "news"))
        peer.read(len(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"))
        plain.publish("news", "a")
        plain.publish("news", "b")
        peer.read(2 * len(b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\na\r\n"))
        for _ in range(2):
            peer.send(("PING",))
            peer.read(len(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"))
    with Peer(proxy) as peer:
        peer.send(("HELLO", "3"), ("CLIENT", "TRACKING", "ON", "BCAST"), ("PING",))
        greeting = b""
        while not greeting.endswith(b"+PONG\r\n"):
            greeting += peer.read(1)
        plain.set("k", 1)
        peer.read(len(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"))
        for _ in range(2):
            peer.send(("ECHO", "a"))
            assert peer.read(7) == b"$1\r\na\r\n"
    assert proxy.names == [
        ["SUBSCRIBE"],
        ["PING"],
        ["PING"],
        ["HELLO", "CLIENT", "PING"],
        ["ECHO"],
        ["ECHO"],
    ]


@pytest.mark.parametrize("data", [b"PING\r\n", b"*0\r\nPING\r\n", b"+OK\r\n", b"*1\r\n:1\r\n"])
def test_what_is_no_command_passes_uncounted(data, proxy, server):
    """The server's answer is the client's."""
    with Peer(proxy) as peer, socket.create_connection(("127.0.0.1", server)) as direct:
        peer.socket.sendall(data)
        direct.sendall(data)
        answer = direct.recv(100)
        assert peer.read(len(answer)) == answer
    assert proxy.names == []


def test_counting_can_be_left_out(server):
    """Faults know their commands all the same."""
    with Proxy(server, count=False) as proxy:
        round_trip(proxy)
        proxy.arm(Answer(b"+mine\r\n"))
        with Peer(proxy) as peer:
            peer.send(("PING",))
            assert peer.read(7) == b"+mine\r\n"
        assert proxy.exchanges == []


# ---- memory ----------------------------------------------------------------------------


@contextlib.contextmanager
def at_most(limit):
    """Fail if Python's objects, so the proxy's buffers, take more at the worst moment."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


DELAYS = pytest.mark.parametrize("delay", [0, 0.1])


@DELAYS
def test_a_client_that_does_not_read_fills_no_memory(delay, server, plain):
    """Its replies wait in the server, and come when it reads."""
    plain.set("big", bytes(MB))
    reply = len(b"$1048576\r\n") + MB + 2
    with at_most(64 * MB), Proxy(server, delay=delay) as proxy, Peer(proxy) as peer:
        peer.send(("CLIENT", "SETNAME", "slow"), *[("GET", "big")] * 256)
        written = []  # by the server: until that is all it can
        while len(written) < 5 or written[-1] != written[-5]:
            round_trip(proxy)
            slow = [one for one in plain.client_list() if one["name"] == "slow"]
            written += [int(one["tot-net-out"]) for one in slow]
        assert written[-1] < 64 * MB
        peer.read(len(b"+OK\r\n"))
        for _ in range(256):
            assert len(peer.read(reply)) == reply


@DELAYS
def test_a_server_that_does_not_read_fills_no_memory(delay):
    """The client's write stands still."""
    with (
        at_most(64 * MB),
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname()[1], delay=delay, count=False) as proxy,
        Peer(proxy) as peer,
    ):
        command = hiredis.pack_command(("SET", "k", bytes(MB)))
        peer.socket.settimeout(4 * delay + 0.2)
        sent = 0
        with pytest.raises(TimeoutError):
            for _ in range(256):
                peer.socket.sendall(command)
                sent += 1
        assert sent < 128


# ---- from the command line -------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_a_delay_that_is_none(wrong, server):
    """It would look as if there was no network at all."""
    with pytest.raises(ValueError, match="0 or more"):
        Proxy(server, delay=wrong)
    with pytest.raises(ValueError, match="0 or more"):
        Proxy(server, jitter=wrong)


def proxy_process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "autobatch.testing", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("given", [True, False], ids=["port", "any port"])
def test_the_command(given, server):
    """It says where it listens, delays, and ends with Ctrl-C."""
    port = free_port()
    arguments = ["--listen", port] if given else []
    with proxy_process("--server", server, "--delay", 10, "--jitter", 1, *arguments) as process:
        try:
            place, _, listening = process.stdout.readline().strip().rpartition(":")
            assert place == "listening on 127.0.0.1"
            assert not given or int(listening) == port
            with redis.Redis(port=int(listening), **NO_RETRY) as client:
                client.ping()
                before = time.monotonic()
                assert client.ping()
                assert time.monotonic() - before >= 2 * 0.01
        finally:
            process.send_signal(signal.SIGINT)
            ended = process.communicate(timeout=PATIENCE)
    assert (process.returncode, ended) == (0, ("", ""))


@pytest.mark.parametrize("wrong", [["--delay", -1], ["--jitter", "nan"], ["--listen", 70000]])
def test_the_command_with_a_number_that_makes_no_sense(wrong, server):
    with proxy_process("--server", server, *wrong) as process:
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert told.startswith("python -m autobatch.testing: ")
    assert "Traceback" not in told


def test_the_command_and_a_port_that_is_taken(server):
    with proxy_process("--server", server, "--listen", server) as process:
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert told.startswith("python -m autobatch.testing: ")
    assert "in use" in told
