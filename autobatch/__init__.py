"""Redis calls in one round trip, without a pipe argument.

Inside a scope every call of a client is queued and returns a Future at once; the first value
that is needed, or the end of the scope, sends the whole batch.
"""

from __future__ import annotations

from autobatch import asgi, asyncio, errors, instrumenting, report, wsgi
from autobatch.boundary import batch
from autobatch.client import Redis
from autobatch.cluster import RedisCluster
from autobatch.future import Future, unwrap
from autobatch.instrumenting import instrument, uninstrument
from autobatch.resolve import resolve
from autobatch.scope import flush
from autobatch.wrapping import wrap

__all__ = [
    "Future",
    "Redis",
    "RedisCluster",
    "asgi",
    "asyncio",
    "batch",
    "errors",
    "flush",
    "instrument",
    "report",
    "resolve",
    "uninstrument",
    "unwrap",
    "wrap",
    "wsgi",
]

instrumenting.from_environment()
