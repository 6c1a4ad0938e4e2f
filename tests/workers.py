"""Real workers of task queues: a subprocess each. What its tasks send to Redis goes past a witness.

The queue is on a server of its own, for a worker and its queue talk to Redis, too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autobatch.testing import Proxy
from common import PATIENCE, eventually
from serving import TESTS, end


class Worker:
    """A running worker.

    Attributes:
        proxy: what the commands of its tasks go through.
        queue: the URL of the queue.
    """

    def __init__(self, redis_port: int, queue_port: int, log: Path, cwd: Path) -> None:
        self.proxy = Proxy(redis_port)
        self.queue = f"redis://127.0.0.1:{queue_port}"
        self.environment = os.environ | {
            "PYTHONPATH": str(cwd),
            "PYTHONUNBUFFERED": "1",
            "QUEUE_URL": self.queue,
            "REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}",
        }
        self._log = log
        self._cwd = cwd

    @property
    def log(self) -> str:
        """What it wrote to its standard output and error."""
        return self._log.read_text()

    def run(self, module: str) -> str:
        """Run a program beside it, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", module],
            cwd=self._cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{done.stderr}\n{self.log}"
        return done.stdout

    def promised(self, module: str) -> str:
        """Return what its docstring says that it prints."""
        source = (self._cwd / module.replace(".", "/")).with_suffix(".py").read_text()
        return source.split('"""')[1].partition(f"$ python -m {module}\n")[2]


@contextlib.contextmanager
def work(
    *command: str, redis_port: int, queue_port: int, ready: str, cwd: Path = TESTS
) -> Iterator[Worker]:
    """Run `python -m command ...` until the block ends, when it and its children are ended too.

    It finds Redis in REDIS_URL, through a proxy that counts, and the queue in QUEUE_URL. It works
    as soon as `ready` is in its log.
    """
    with contextlib.ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        worker = Worker(redis_port, queue_port, log, cwd)
        stack.enter_context(worker.proxy)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=cwd,
                env=worker.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        stack.callback(end, process)

        def works() -> bool:
            assert process.poll() is None, f"the worker ended:\n{worker.log}"
            return ready in worker.log

        eventually(works, 3 * PATIENCE)  # a worker imports much
        yield worker
