"""The link to Valkey: a process of its own that delays, and tells what it has seen.

For a cluster it is the links to all of its nodes, and the cluster, too.

It delays what passes in each direction, as a network does, and answers on its standard output:
first with its port, then, for each line of input, with the round trips since the last one. It
ends when its input does, so it never outlives the demo.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from autobatch.testing import Cluster, Exchange, Proxy


@dataclass(frozen=True)
class RoundTrip:
    """One exchange on the wire; its times are in seconds, of `time.monotonic()`.

    Attributes:
        node: the number of the cluster's node.
    """

    commands: list[str]
    started: float
    ended: float
    node: int = 0


class Link:
    """The process, as a context manager.

    Attributes:
        port: where it listens, on the loopback address; of a cluster, for one of the nodes.
    """

    def __init__(self, server: int | None, delay: float) -> None:
        """Prepare a link to the port `server`, of `delay` milliseconds each way.

        Without a server it leads to a cluster, which it starts.
        """
        self.port = 0
        self._arguments = ["--delay", str(delay)]
        if server is not None:
            self._arguments += ["--server", str(server)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._read())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input

    def take(self) -> list[RoundTrip]:
        """Return the round trips since the last call, and forget them."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return [RoundTrip(**one) for one in json.loads(self._read())]

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the link to Valkey has ended")
        return line


def _describe(exchange: Exchange, node: int) -> dict[str, object]:
    commands = [b" ".join(command[:2]).decode(errors="replace") for command in exchange]
    times = {"started": exchange.started, "ended": exchange.ended}
    return {"commands": commands, **times, "node": node}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", type=int, help="its port; without it, a cluster is started")
    parser.add_argument("--delay", type=float, required=True, help="milliseconds each way")
    options = parser.parse_args()
    with _proxies(options.server, options.delay / 1000) as proxies:
        print(proxies[0].port, flush=True)
        for _ in sys.stdin:
            seen = [
                _describe(one, node)
                for node, proxy in enumerate(proxies)
                for one in proxy.exchanges
            ]
            for proxy in proxies:
                proxy.reset()
            print(json.dumps(seen), flush=True)  # last: what comes next is counted anew


@contextlib.contextmanager
def _proxies(server: int | None, delay: float) -> Iterator[list[Proxy]]:
    """Give the proxy of a server, or those of a cluster's nodes, the primaries first."""
    if server is not None:
        with Proxy(server, delay=delay) as proxy:
            yield [proxy]
    else:
        with Cluster(proxied=True, delay=delay) as cluster:
            yield [cluster.proxies[port] for port in cluster.primaries + cluster.replicas]


if __name__ == "__main__":
    main()
