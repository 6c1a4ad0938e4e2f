"""A cluster behind delays, in a process of its own: its proxies take no time of the clients'."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from autobatch.testing import Cluster


@contextlib.contextmanager
def delayed_cluster(delay: float) -> Iterator[int]:
    """Give a node's port. It takes `delay` seconds to each node, and as long back."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(delay)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # which ends when its input does
        assert process.stdout is not None
        yield int(process.stdout.readline())


def main() -> None:
    with Cluster(proxied=True, delay=float(sys.argv[1])) as cluster:
        for proxy in cluster.proxies.values():
            proxy.counting = False
        print(cluster.ports[0], flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # a terminal's, which goes to all
            sys.stdin.read()


if __name__ == "__main__":
    main()
