"""What many tests share: a client, a thread beside the test, waiting for what will happen."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import redis
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


def eventually(condition: Callable[[], T], patience: float = PATIENCE) -> T:
    """Return the result of `condition` as soon as it is true, within so many seconds."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return result


def keyspace(client: redis.Redis) -> dict[Any, Any]:
    """Every key with its type and value, and whether it expires; read by a plain client."""
    read: dict[str, Callable[[Any], Any]] = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda key: client.lrange(key, 0, -1),
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": functools.partial(_stream, client),
    }
    found = {}
    for key in sorted(client.scan_iter()):
        kind = client.type(key)
        kind = kind if isinstance(kind, str) else kind.decode()
        found[key] = kind, read[kind](key), client.ttl(key) >= 0
    return found


def _stream(client: redis.Redis, key: Any) -> Any:
    # Without the ids and idle times, which are the server's clock.
    entries = [fields for _, fields in client.xrange(key)]
    groups = [(group["name"], group["pending"]) for group in client.xinfo_groups(key)]
    return entries, groups


def code_of(page: Path) -> list[str]:
    """Return the blocks of Python in a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run_documentation(name: str, **namespace: object) -> dict[str, object]:
    """Run the Python code of a page in docs/, block by block; return the names that it makes."""
    namespace["__name__"] = "__main__"
    page = Path(__file__).parent.parent / "docs" / f"{name}.md"
    for block in code_of(page):
        exec(compile(block, str(page), "exec"), namespace)
    return namespace
