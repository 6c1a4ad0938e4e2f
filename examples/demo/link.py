"""The link to Valkey: a process of its own that delays, and tells what it has seen.

It delays what passes in each direction, as a network does, and answers on its standard output:
first with its port, then, for each line of input, with the round trips since the last one. It
ends when its input does, so it never outlives the demo.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Self

from autobatch.testing import Exchange, Proxy


@dataclass(frozen=True)
class RoundTrip:
    """One exchange on the wire; its times are in seconds, of `time.monotonic()`."""

    commands: list[str]
    started: float
    ended: float


class Link:
    """The process, as a context manager.

    Attributes:
        port: where it listens, on the loopback address.
    """

    def __init__(self, server: int, delay: float) -> None:
        """Prepare a link to the port `server`, of `delay` milliseconds each way."""
        self.port = 0
        self._arguments = ["--server", str(server), "--delay", str(delay)]

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


def _describe(exchange: Exchange) -> dict[str, object]:
    commands = [b" ".join(command[:2]).decode(errors="replace") for command in exchange]
    return {"commands": commands, "started": exchange.started, "ended": exchange.ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", type=int, required=True, help="the server's port")
    parser.add_argument("--delay", type=float, required=True, help="milliseconds each way")
    options = parser.parse_args()
    with Proxy(options.server, delay=options.delay / 1000) as proxy:
        print(proxy.port, flush=True)
        for _ in sys.stdin:
            print(json.dumps([_describe(one) for one in proxy.exchanges]), flush=True)
            proxy.reset()


if __name__ == "__main__":
    main()
