"""What many tests share: a client, a thread beside the test, waiting for what will happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch

T = TypeVar("T")

# Longer than anything here takes: who waits so long has met a bug, and fails instead of hanging.
PATIENCE = 10


@contextlib.contextmanager
def connect(port: int, **options: object) -> Iterator[autobatch.Redis]:
    """A client that retries once and at once. At the end no connection of its pool is in use."""
    defaults = {
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 1),
        "socket_timeout": PATIENCE,
    }
    with autobatch.Redis(port=port, **(defaults | options)) as client:
        yield client
        if client.connection is None:
            assert not client.connection_pool._in_use_connections


@contextlib.contextmanager
def meanwhile(function: Callable[[], object]) -> Iterator[None]:
    """Run `function` in a thread while the block runs; then wait for it, and raise its error."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(function)
        yield
        job.result(PATIENCE)


def eventually(condition: Callable[[], T]) -> T:
    """Return the result of `condition` as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return result
