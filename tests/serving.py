"""Real web servers: a subprocess each, on a free port of the loopback address."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx

from autobatch.testing import Proxy, free_port
from common import PATIENCE, eventually

T = TypeVar("T")

TESTS = Path(__file__).parent


class Site:
    """A running application, and a witness of what it sends to Redis.

    Attributes:
        url: where it is served.
        http: a client of it.
        proxy: what its Redis commands go through.
    """

    def __init__(self, url: str, proxy: Proxy, log: Path) -> None:
        self.url = url
        # A connection for each request: servers close theirs after an error, sooner or later.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, limits=limits)
        self.get = self.http.get
        self.proxy = proxy
        self._log = log
        self._forgotten = 0

    @property
    def log(self) -> str:
        """What the server wrote to its standard output and error, since `forget`."""
        return self._log.read_text()[self._forgotten :]

    def logs(self, text: str) -> bool:
        """Return True as soon as `text` is in the log."""
        try:
            return eventually(lambda: text in self.log)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    def answers(self) -> bool:
        """Return whether it answers, whatever it says: granian tells its port before it listens."""
        try:
            self.get("/")
        except httpx.ConnectError:
            return False
        return True

    def forget(self) -> None:
        """Begin anew: forget the log, and what was counted on the wire."""
        self._forgotten = len(self._log.read_text())
        self.proxy.reset()


@contextlib.contextmanager
def serve(*command: str, redis_port: int, cwd: Path = TESTS) -> Iterator[Site]:
    """Run `python -m command ...` until the block ends, when it and its children are ended too.

    It finds Redis in REDIS_URL, through a proxy that counts, and has to say the address that it
    listens on: all servers do, where they were asked for port 0.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxy = stack.enter_context(Proxy(redis_port))
        log = directory / "log"
        environment = {
            "PORT": "0",
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": f"redis://127.0.0.1:{proxy.port}",
            "XDG_RUNTIME_DIR": str(directory),  # gunicorn's control socket, one for each server
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=cwd,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        stack.callback(end, process)
        site = Site(_address(process, log), proxy, log)
        stack.enter_context(site.http)
        eventually(site.answers)
        yield site


# By name: what runs an application there.
ASGI_SERVERS: dict[str, Callable[[str], list[str]]] = {
    "uvicorn": lambda app: ["uvicorn", app, "--port", "0"],
    "hypercorn": lambda app: ["hypercorn", app, "--bind", "127.0.0.1:0"],
    # It says the port that it was asked for, so that cannot be 0.
    "granian": lambda app: ["granian", "--interface", "asgi", "--port", str(free_port()), app],
}


def serve_asgi(
    server: str, app: str, *, redis_port: int
) -> contextlib.AbstractContextManager[Site]:
    """Run an application under one of `ASGI_SERVERS`, as `serve` does."""
    return serve(*ASGI_SERVERS[server](app), redis_port=redis_port)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    def found() -> re.Match[str] | None:
        text = log.read_text()
        assert process.poll() is None, f"the server ended:\n{text}"
        return re.search(r"http://127\.0\.0\.1:\d+", text)

    return eventually(found).group()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and whatever it has started."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        # Whatever it has left behind is in its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
