"""What valkey-py's connections need to carry batches: they are redis-py's of some years ago.

A connection gets a class of its own, whose errors are of both libraries: those of valkey-py, which
the program's `except` clauses name, and those of redis-py, which the rest of the house knows. The
pool, the socket, the greeting and the parser stay valkey-py's.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import redis.exceptions
import valkey.asyncio
import valkey.asyncio.cluster
import valkey.cluster
import valkey.exceptions
from valkey._parsers import _LibvalkeyParser, _RESP2Parser
from valkey._parsers.libvalkey import NOT_ENOUGH_DATA
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff, default_backoff
from valkey.cluster import PRIMARY
from valkey.utils import LIBVALKEY_AVAILABLE

from autobatch.wire import cluster, cluster_mux, mux, sync
from autobatch.wire import connection as link


def _counterparts() -> dict[type, type]:
    """Return which error of either library is which of the other."""
    pairs: dict[type, type] = {}
    for name, error in inspect.getmembers(valkey.exceptions, inspect.isclass):
        other = getattr(redis.exceptions, name.replace("Valkey", "Redis"), None)
        if other is not None and issubclass(error, Exception):
            pairs |= {error: other, other: error}
    return pairs


_COUNTERPARTS = _counterparts()


def adopt(error: BaseException) -> BaseException:
    """Make an error one of both libraries, if it is of one of them; return it."""
    own: Any = type(error)
    kind = _of_both(own)
    if kind is not own:
        error.__class__ = kind
        # What redis-py's constructors leave in an error, where valkey-py's do not.
        error.__dict__.update({**redis.ConnectionError().__dict__, **error.__dict__})
    return error


@functools.cache  # bounded by the number of error classes
def _of_both(kind: Any) -> Any:
    missing = [other for base in kind.__mro__ if (other := _COUNTERPARTS.get(base))]
    missing = [other for other in missing if not issubclass(kind, other)]
    # Those that no other one of them implies.
    bases = [a for a in missing if not any(a is not b and issubclass(b, a) for b in missing)]
    if not bases:
        return kind

    def reduce(error: Any) -> tuple[Any, ...]:
        plain = kind.__new__(kind, *error.args)
        plain.__dict__.update(error.__dict__)
        return adopt, (plain,)

    members = {
        name: getattr(kind, name) for name in ("__module__", "__doc__", "__repr__", "__str__")
    }
    members["__reduce__"] = reduce
    return type(kind.__name__, (kind, *dict.fromkeys(bases)), members)


def _adopting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose errors are of both libraries."""
    if inspect.iscoroutinefunction(function):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                adopt(error)
                raise

        return functools.update_wrapper(awaited, function)

    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            adopt(error)
            raise

    return functools.update_wrapper(called, function)


_FAILING = (
    "can_read",
    "check_health",
    "connect",
    "disconnect",
    "read_response",
    "send_command",
    "send_packed_command",
)


class _ManyReplies:
    """A parser for the replies of one exchange, on hiredis, in place of valkey-py's own."""

    _hiredis_PushNotificationType = link.PushNotification  # noqa: N815  # as redis-py calls it

    def __init__(self, connection: Any, sock: Any) -> None:
        parse_error = connection._parser.parse_error
        encoder = connection.encoder
        self._socket = sock
        self._reader = link.hiredis.Reader(
            encoding=encoder.encoding if encoder.decode_responses else None,
            errors=encoder.encoding_errors,
            notEnoughData=link.NOT_ENOUGH_DATA,
            protocolError=lambda text: adopt(valkey.exceptions.InvalidResponse(text)),
            replyError=lambda text: adopt(parse_error(text)),
        )

    def read_from_socket(self) -> None:
        data = self._socket.recv(_AT_ONCE)
        if not data:
            raise adopt(valkey.exceptions.ConnectionError("Connection closed by server."))
        self._reader.feed(data)

    def handle_push_response(self, _: Any) -> None:
        raise link.UnexpectedReply  # RESP2 knows none


def _parser_for_many(connection: Any) -> _ManyReplies | None:
    """Return what reads many replies fast, if valkey-py's own parser need not do it."""
    parser: Any = connection._parser
    sock = connection._sock  # another thread may close the connection
    if link.hiredis is None or sock is None or connection.protocol not in {2, "2"}:
        return None
    read_response = type(parser).read_response  # a cluster's parser knows more errors
    if read_response is _RESP2Parser.read_response:
        buffer: Any = parser._buffer
        unread = buffer.unread_bytes()
    elif read_response is _LibvalkeyParser.read_response:
        unread = parser._next_response is not NOT_ENOUGH_DATA or parser._reader.has_data()
    else:  # one of the program's own
        return None
    return None if unread else _ManyReplies(connection, sock)


_AT_ONCE = 64 * 1024  # bytes


@functools.cache  # as many as there are classes of connections
def _connection_class(kind: Any) -> Any:
    members: dict[str, Any] = {
        "__module__": kind.__module__,
        "__slots__": (),
        "should_reconnect": lambda _: False,  # newer than valkey-py
        "adopt": staticmethod(adopt),
        "parser_for_many": _parser_for_many,
    }
    for name in _FAILING:
        if hasattr(kind, name):
            members[name] = _adopting(getattr(kind, name))
    return type(kind.__name__, (kind,), members)


def adapted(connection: Any) -> Any:
    """Make the errors of a connection those of both libraries; return it."""
    if not hasattr(connection, "adopt"):
        kind: Any = type(connection)
        connection.__class__ = _connection_class(kind)
        # What our own reading and writing raises, too.
        connection.retry.update_supported_errors([redis.ConnectionError, redis.TimeoutError])
    return connection


class Pool:
    """A pool of valkey-py's, as redis-py's are used."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.get_connection = self._get_in_loop if _asynchronous(pool) else self._get

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def make_connection(self) -> Any:
        """Return a new connection, which is not open yet."""
        return adapted(_adopting(self._pool.make_connection)())

    def _get(self) -> Any:
        return adapted(_adopting(self._pool.get_connection)("_"))

    async def _get_in_loop(self) -> Any:
        return adapted(await _adopting(self._pool.get_connection)("_"))


def _asynchronous(pool: Any) -> bool:
    return inspect.iscoroutinefunction(pool.get_connection)


class Wire(sync.Wire):
    """Where the batches of one client of valkey-py's travel."""

    def __init__(self, pool: Any, connection: Any = None, *, retry_writes: bool = False) -> None:
        ours: Any = Pool(pool)
        lock = None if connection is None else threading.RLock()
        if connection is not None:
            adapted(connection)
        super().__init__(ours, connection, lock, retry_writes=retry_writes)
        self.place = id(lock or pool)
        # Without libvalkey, it writes text in the client's encoding.
        self.pack, self.pack_fast = link.packers(pool, own_encoding=not LIBVALKEY_AVAILABLE)

    adopt = staticmethod(adopt)


class _Facade:
    """What stands before an object of valkey-py's: what is here is its own, the rest is that's."""

    def __init__(self, behind: Any) -> None:
        self.__dict__["_behind"] = behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._behind, name, value)


class _Manager(_Facade):
    """The keeper of a cluster's topology."""

    def initialize(self) -> Any:
        return _adopting(self._behind.initialize)()

    def get_node_from_slot(self, slot: int, read_from_replicas: bool = False, *_: Any) -> Any:  # noqa: FBT001, FBT002  # valkey-py's
        return _adopting(self._behind.get_node_from_slot)(slot, read_from_replicas)

    def update_moved_exception(self, error: Any) -> None:
        self._behind._moved_exception = error  # asyncio's has no method for it


class _Node:
    """The client of one node, as far as a wire asks."""

    def __init__(self, client: Any) -> None:
        self.connection_pool = client.connection_pool.__dict__.setdefault(
            "_autobatch_pool", Pool(client.connection_pool)
        )


class _Retries:
    """How often a cluster's client tries again, and with which pauses."""

    def __init__(self, client: Any) -> None:
        self._client = client
        own = getattr(client, "retry", None)
        self._backoff = default_backoff() if own is None else own._backoff

    def get_retries(self) -> int:
        times: int = self._client.cluster_error_retry_attempts
        return times


class _Cluster(_Facade):
    """A cluster's client, as redis-py's are used."""

    load_balancing_strategy = None

    @property
    def in_loop(self) -> bool:
        """Whether it is asyncio's."""
        return isinstance(self._behind, valkey.asyncio.ValkeyCluster)

    @property
    def nodes_manager(self) -> Any:
        return _Manager(self._behind.nodes_manager)

    @property
    def retry(self) -> Any:
        return _Retries(self._behind)

    def get_redis_connection(self, node: Any) -> Any:
        return _Node(_adopting(self._behind.get_valkey_connection)(node))

    async def initialize(self) -> None:  # asyncio's
        await _adopting(self._behind.initialize)()


class _Router(cluster.Router):
    def _new_node(self, host: str, port: int) -> Any:
        if self.client.in_loop:
            kwargs = self.client.nodes_manager.connection_kwargs
            return valkey.asyncio.cluster.ClusterNode(host, port, PRIMARY, **kwargs)
        return valkey.cluster.ClusterNode(host, port, PRIMARY)


class ClusterWire(cluster.Wire):
    """Where the batches of one client of a cluster, of valkey-py's, travel."""

    def __init__(self, client: Any, *, retry_writes: bool = False) -> None:
        ours = _Cluster(client)
        super().__init__(ours, retry_writes=retry_writes)
        self.router = _Router(ours)
        pool = ours.get_redis_connection(client.get_default_node()).connection_pool
        self.pack, self.pack_fast = link.packers(pool, own_encoding=not LIBVALKEY_AVAILABLE)

    adopt = staticmethod(adopt)


class MuxWire(mux.Wire):
    """Where the batches of one asyncio client of valkey-py's travel."""

    def __init__(self, pool: Any, lanes: int = 1, *, retry_writes: bool = False) -> None:
        ours: Any = Pool(pool)
        super().__init__(ours, lanes, retry_writes=retry_writes)

    adopt = staticmethod(adopt)


class MuxClusterWire(cluster_mux.Wire):
    """Where the batches of one asyncio client of a cluster, of valkey-py's, travel."""

    def __init__(self, client: Any, lanes: int = 1, *, retry_writes: bool = False) -> None:
        ours = _Cluster(client)
        super().__init__(ours, lanes, retry_writes=retry_writes)
        self.router = _Router(ours)

    adopt = staticmethod(adopt)

    def _new_wire(self, node: Any) -> mux.Wire:
        kwargs = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        pool = valkey.asyncio.ConnectionPool(
            connection_class=node.connection_class,
            max_connections=node.max_connections,
            **kwargs,
        )
        return MuxWire(pool, self.lanes, retry_writes=self.retry_writes)
