"""valkey-py's clients, batching. `wrap` gives them for a client of valkey-py's."""

from __future__ import annotations

import functools
from types import CoroutineType
from typing import Any

import valkey
import valkey.asyncio
import valkey.asyncio.cluster
from valkey.commands.core import AsyncScript

from autobatch import aside, client, cluster, command
from autobatch import asyncio as asynchronous
from autobatch import asyncio_cluster as asynchronous_cluster
from autobatch.funnel import Funnel, ScriptAtOnce
from autobatch.wire.server import wires_of
from autobatch.wire.valkey import ClusterWire, MuxClusterWire, MuxWire, Wire, adopt

__all__ = ["AsyncValkey", "AsyncValkeyCluster", "Valkey", "ValkeyCluster"]

command.add_library(valkey.__file__)
aside.add_library("valkey")


class _OfValkey:
    """What is the same for all of its clients."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            answer = super().execute_command(*args, **options)  # type: ignore[misc]
        except Exception as error:  # such as a DataError, at the call
            adopt(error)
            raise
        return _adopting(answer) if type(answer) is CoroutineType else answer

    def set(self, *args: Any, **options: Any) -> Any:
        return super(Funnel, self).set(*args, **options)  # type: ignore[misc]


async def _adopting(answer: Any) -> Any:
    try:
        return await answer
    except Exception as error:
        adopt(error)
        raise


class Valkey(_OfValkey, client.Synchronous, valkey.Valkey):
    """valkey-py's client, batching: inside a scope every call returns a Future at once.

    As `autobatch.Redis`, with valkey-py's constructors, methods, types and errors.
    """

    @functools.cached_property
    def _wire(self) -> Any:
        pool, retry_writes = self.connection_pool, self.retry_writes
        if self.connection is not None:
            return Wire(pool, self.connection, retry_writes=retry_writes)
        return wires_of(pool).setdefault(retry_writes, Wire(pool, retry_writes=retry_writes))

    def _run_now(self, args: Any, options: Any) -> Any:
        if self._from_cache(args):
            return valkey.Valkey.execute_command(self, *args, **options)
        return self._execute_command(*args, **options)

    @property
    def _caches(self) -> bool:
        kwargs = self.connection_pool.connection_kwargs
        return bool(kwargs.get("cache_enabled") or kwargs.get("client_cache"))


class EagerValkey(client.SynchronousEager, Valkey):
    """The plain view of a batching client: `client.eager`."""


Valkey._eager_type = EagerValkey  # noqa: SLF001  # ours


class ValkeyCluster(_OfValkey, cluster.ClusteredSynchronous, valkey.ValkeyCluster):
    """valkey-py's client of a cluster, batching: inside a scope calls return Futures at once.

    As `autobatch.RedisCluster`, with valkey-py's constructors, methods, types and errors.
    """

    _wire_type = ClusterWire

    def get_redis_connection(self, node: Any) -> Any:
        """Return the client of a node, by redis-py's name for that."""
        return self.get_valkey_connection(node)


class EagerValkeyCluster(cluster.ClusteredSynchronousEager, ValkeyCluster):
    """The plain view of a batching client of a cluster: `client.eager`."""


ValkeyCluster._eager_type = EagerValkeyCluster  # noqa: SLF001  # ours


class BatchingScript(ScriptAtOnce, AsyncScript):  # type: ignore[misc]  # as redis-py's
    """valkey-py's script; called with a batching client, it gives a Future at once."""


class AsyncValkey(  # type: ignore[misc]  # valkey-py's own bases
    _OfValkey, asynchronous.Asynchronous, valkey.asyncio.Valkey
):
    """valkey-py's asyncio client, batching: every call returns a Future at once.

    As `autobatch.asyncio.Redis`, with valkey-py's constructors, methods, types and errors.
    """

    _plain_type = valkey.asyncio.Valkey
    _script_type = BatchingScript
    _wire_type = MuxWire


class EagerAsyncValkey(asynchronous.AsynchronousEager, AsyncValkey):  # type: ignore[misc]
    """The plain view of a batching asyncio client: `client.eager`."""


AsyncValkey._eager_type = EagerAsyncValkey  # noqa: SLF001  # ours


class AsyncValkeyCluster(  # type: ignore[misc]  # valkey-py's own bases
    _OfValkey, asynchronous_cluster.ClusteredAsynchronous, valkey.asyncio.ValkeyCluster
):
    """valkey-py's asyncio client of a cluster, batching: every call returns a Future at once.

    As `autobatch.asyncio.RedisCluster`, with valkey-py's constructors, methods, types and errors.
    """

    _plain_type = valkey.asyncio.ValkeyCluster
    _script_type = BatchingScript
    _wire_type = MuxClusterWire


class EagerAsyncValkeyCluster(  # type: ignore[misc]
    asynchronous_cluster.ClusteredAsynchronousEager, AsyncValkeyCluster
):
    """The plain view of a batching asyncio client of a cluster: `client.eager`."""


AsyncValkeyCluster._eager_type = EagerAsyncValkeyCluster  # noqa: SLF001  # ours

PIPELINES: tuple[type, ...] = (
    valkey.client.Pipeline,
    valkey.cluster.ClusterPipeline,
    valkey.asyncio.client.Pipeline,
    valkey.asyncio.cluster.ClusterPipeline,
)
TWINS: dict[type, type] = {
    valkey.Valkey: Valkey,
    valkey.ValkeyCluster: ValkeyCluster,
    valkey.asyncio.Valkey: AsyncValkey,
    valkey.asyncio.ValkeyCluster: AsyncValkeyCluster,
}
