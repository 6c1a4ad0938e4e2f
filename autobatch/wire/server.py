"""What a connection pool leads to."""

from __future__ import annotations

from typing import Any

import redis


def server_of(pool: Any) -> object:
    """Return a value that is equal for pools whose connections reach the same data.

    Two databases of a server count as two servers: commands that reach across travel alone.
    """
    kwargs = pool.connection_kwargs
    database = int(kwargs.get("db") or 0)
    if "path" in kwargs:
        return kwargs["path"], database
    service = getattr(pool, "service_name", None)  # a pool of Sentinel's
    if service is not None:
        return service, getattr(pool, "is_master", True), database
    return kwargs.get("host", "localhost"), int(kwargs.get("port", 6379)), database  # the defaults


def wires_of(home: Any) -> dict[bool, Any]:
    """Return the wires of a connection pool, or of a cluster's client, by `retry_writes`.

    They are kept on it: clients that share it share them, and they live as long.
    """
    wires: dict[bool, Any] = home.__dict__.setdefault("_autobatch_wires", {})
    return wires


def follows_primary(pool: Any) -> bool:
    """Return whether connections of a pool go where Sentinel says that the primary is."""
    return getattr(pool, "service_name", None) is not None and bool(pool.is_master)


def demotion(replies: list[Any]) -> redis.ConnectionError | None:
    """Return what redis-py says if some replies are those of a primary that is none any more."""
    if any(isinstance(reply, redis.ReadOnlyError) for reply in replies):
        return redis.ConnectionError("The previous master is now a slave")
    return None
