"""The synchronous client of a cluster, and what it shares with the asyncio one."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, overload

import redis
from redis.client import CaseInsensitiveDict
from redis.exceptions import RedisClusterException

from autobatch import report
from autobatch.ambient import Scope, ambient, current
from autobatch.batch import Batch
from autobatch.command import Command, PinnedCommand, Traits, Travel, spelled_out, traits_of
from autobatch.errors import AutobatchError, CrossSlot
from autobatch.funnel import Eager, Funnel, names_himport, without_futures
from autobatch.future import FUTURE_TYPES, combine, future_of, unwrap
from autobatch.keys import ONE_KEY
from autobatch.promise import Failure
from autobatch.recording import ran_alone
from autobatch.scope import step_aside
from autobatch.sync_funnel import SyncFunnel
from autobatch.wire import sync
from autobatch.wire.cluster import Wire
from autobatch.wire.server import wires_of

if TYPE_CHECKING:
    from autobatch.funnel import constructed_as

# How the values of several nodes become one.
Finish = Callable[[list[Any]], Any]

TARGET = "target_nodes"


class Clustered(Funnel):
    """What the clients of clusters have in common: where the commands of a call go."""

    execute_command: Any
    nodes_manager: Any
    command_flags: Any
    result_callbacks: Any
    encoder: Any

    def _queue_routed(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Queue what has several keys, or none, or is for certain nodes; return its Future."""
        call = Call(self, args, options)
        if call.alone:
            return self._call_unusual(scope, args, options)
        if call.unknown:
            return self._queue_unknown(scope, call)
        return self._queue_call(scope, call)

    def _queue_unknown(self, scope: Scope, call: Call) -> Any:
        """Queue a command whose keys only the server knows."""
        raise NotImplementedError

    def _queue_call(self, scope: Scope, call: Call) -> Any:
        if call.nodes is None and not call.pinned:
            return self._queue(scope, call.args, call.options)
        if scope.held:
            raise AutobatchError(
                f"{call.traits.name} goes to certain nodes, so it cannot be part of an atomic "
                "block, which runs where its keys are: call it before or after the block"
            )
        commands = call.commands(scope)
        for command in commands:
            scope.add_unusual(command)
        futures = [future_of(command, self._future_type) for command in commands]
        return call.finish_later(futures)

    def delete(self, *names: Any) -> Any:
        """Delete keys, whatever their slots: one DEL a slot. Returns how many there were."""
        return self._split("DEL", names)

    def exists(self, *names: Any) -> Any:
        """Count the keys that exist, whatever their slots: one EXISTS a slot."""
        return self._split("EXISTS", names)

    def touch(self, *names: Any) -> Any:
        """Touch keys, whatever their slots: one TOUCH a slot. Returns how many there were."""
        return self._split("TOUCH", names)

    def unlink(self, *names: Any) -> Any:
        """Unlink keys, whatever their slots: one UNLINK a slot. Returns how many there were."""
        return self._split("UNLINK", names)

    def mget_nonatomic(self, keys: Any, *args: Any) -> Any:
        """Get the values of keys, whatever their slots: one MGET a slot."""
        keys = unwrap(keys)
        first = [keys] if isinstance(keys, (str, bytes)) else keys
        names = list(without_futures((*first, *args)))
        by_slot = self._by_slot((name, [name]) for name in names)
        values = self._call_all([("MGET", *of_slot) for of_slot in by_slot])

        def in_order(replies: list[Any]) -> list[Any]:
            by_name = {
                name: value
                for of_slot, reply in zip(by_slot, replies, strict=True)
                for name, value in zip(of_slot, reply, strict=True)
            }
            return [by_name[name] for name in names]

        return self._together(values, in_order)

    def mset_nonatomic(self, mapping: Mapping[Any, Any]) -> Any:
        """Set keys, whatever their slots: one MSET a slot. Returns a list of their replies."""
        names = without_futures(tuple(mapping))
        pairs = zip(names, mapping.values(), strict=True)
        by_slot = self._by_slot((name, [name, value]) for name, value in pairs)
        return self._together(self._call_all([("MSET", *of_slot) for of_slot in by_slot]), list)

    def _split(self, name: str, keys: Iterable[Any]) -> Any:
        by_slot = self._by_slot((key, [key]) for key in without_futures(tuple(keys)))
        return self._together(self._call_all([(name, *of_slot) for of_slot in by_slot]), sum)

    def _call_all(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Call several commands, and return their values or Futures."""
        return [self.execute_command(*args) for args in calls]

    def _together(self, values: list[Any], function: Finish) -> Any:
        """Return `function` of what `_call_all` gave, a Future if that are Futures."""
        if values and type(values[0]) in FUTURE_TYPES:
            return combine(values, function)
        return function(values)

    def _by_slot(self, items: Iterable[tuple[Any, list[Any]]]) -> list[list[Any]]:
        """Return the arguments of each slot; each item is a key and its arguments."""
        by_slot: dict[int, list[Any]] = {}
        for key, arguments in items:
            by_slot.setdefault(self._wire.router.slot_of_key(key), []).extend(arguments)
        return list(by_slot.values())


class Call:
    """One call that does not simply go to the slot of its one key.

    Attributes:
        args, options: what was called, without what only says where.
        nodes: where it goes, None for the node of its slot.
        pinned: whether its slot cannot be told from its keys.
        unknown: whether only the server can tell what its keys are.
    """

    def __init__(self, client: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._client = client
        self.args = without_futures(args)
        self.options = {name: value for name, value in options.items() if name != TARGET}
        spelled = spelled_out(self.args)
        self.traits: Traits = traits_of(spelled)
        self._slot: int | None = None
        self.pinned = self.unknown = False
        self.nodes: list[Any] | None = None
        target = options.get(TARGET)
        self._name, flag = _flag_of(client, spelled)
        if target is not None:
            self.nodes = _nodes_of(client, target)
        elif flag is not None and flag in client.NODE_FLAGS:
            if flag == client.DEFAULT_NODE:
                self.pinned = True  # whichever it is when the batch leaves
            else:
                self.nodes = _nodes_of(client, flag)
        elif flag is not None:  # an argument is the slot
            self.pinned = True
            self._slot = int(spelled[len(self._name.split())])
        else:
            self._find_slot(spelled)

    def _find_slot(self, spelled: tuple[Any, ...]) -> None:
        slots = self._client._wire.router.slots_of(spelled, self.traits.name)
        if slots is None:
            self.unknown = True
        elif not slots and self.traits.name.removesuffix("_RO") not in _ANYWHERE:
            raise RedisClusterException(
                "No way to dispatch this command to Redis Cluster. Missing key.\n"
                "You can execute the command by specifying target nodes.\n"
                f"Command: {self.traits.name}"
            )
        elif len(set(slots)) > 1:
            raise CrossSlot(
                f"{self.traits.name} - all keys must map to the same key slot: give them a hash "
                "tag, the same part in braces, as in {user:1}:name and {user:1}:age"
            )

    @property
    def of_search(self) -> bool:
        """Whether redis-py has rules of its own for where it goes: it is of the search module."""
        return self.unknown and self._name.startswith("FT.")

    def place(self, slot: int | None) -> None:
        """Let it go to a slot, which was found out."""
        self.unknown = False
        self.pinned = True
        self._slot = slot

    @property
    def alone(self) -> bool:
        """Return whether it steps aside."""
        return self.traits.travel_of(spelled_out(self.args)) is Travel.ALONE

    def commands(self, scope: Scope | None) -> list[Command]:
        """Return the commands to send, one for each node."""
        if self.nodes is None and not self.pinned:
            return [self._client._command(Command, self.args, self.options, scope)]
        commands: list[Command] = []
        for node in self.nodes if self.nodes is not None else [None]:
            command = self._client._command(PinnedCommand, self.args, self.options, scope)
            command.node = node
            command.slot = self._slot
            commands.append(command)
        return commands

    def finish(self, values: list[Any]) -> Any:
        """Return the value of the call from those of its nodes, as redis-py does."""
        callback = self._client.result_callbacks.get(self._name)
        if callback is None and len(values) == 1:
            return values[0]
        nodes = self.nodes or [self._client.get_default_node()]
        by_node = {node.name: value for node, value in zip(nodes, values, strict=True)}
        options = {name: value for name, value in self.options.items() if name != "keys"}
        if callback is not None:
            return callback(self._name, by_node, **options)
        return by_node

    def finish_later(self, futures: list[Any]) -> Any:
        """Return the Future of that."""
        if len(futures) == 1 and self._name not in self._client.result_callbacks:
            return futures[0]
        return combine(futures, self.finish)


# Scripts and functions without keys run on any node.
_ANYWHERE = frozenset({"EVAL", "EVALSHA", "FCALL"})


def _flag_of(client: Any, spelled: tuple[Any, ...]) -> tuple[str, str | None]:
    """Return a command's name in redis-py's tables, and what they say of the nodes it goes to."""
    words = [_word(word) for word in spelled[:2]]
    for name in (" ".join(words), words[0]):
        if name in client.command_flags:
            return name, client.command_flags[name]
    return words[0], None


def _word(arg: Any) -> str:
    text: str = arg.decode("latin-1") if isinstance(arg, bytes) else str(arg)
    return text.upper()


def needs_nodes(client: Any, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether a call goes to nodes that have to be known when it is called."""
    if TARGET in options:
        return True
    _, flag = _flag_of(client, spelled_out(without_futures(args)))
    return flag in client.NODE_FLAGS and flag != client.DEFAULT_NODE


def _nodes_of(client: Any, target: Any) -> list[Any]:
    """Return the nodes that redis-py's option `target_nodes` means."""
    if isinstance(target, str):
        by_flag: dict[str, Callable[[], list[Any]]] = {
            client.PRIMARIES: client.get_primaries,
            client.REPLICAS: client.get_replicas,
            client.ALL_NODES: client.get_nodes,
            client.RANDOM: lambda: [client.get_random_node()],
            client.DEFAULT_NODE: lambda: [client.get_default_node()],
        }
        if target not in by_flag:
            raise TypeError(f"target_nodes: there are no nodes called {target!r}")
        nodes = by_flag[target]()
    elif isinstance(target, Mapping):
        nodes = list(target.values())
    elif isinstance(target, (list, tuple, set)):
        nodes = list(target)
    else:
        nodes = [target]
    if not nodes or not all(hasattr(node, "name") for node in nodes):
        raise TypeError("target_nodes: give nodes of the cluster, or one of its flags")
    return nodes


class ClusteredSynchronous(SyncFunnel, Clustered):
    """What makes a cluster's synchronous client batch, whichever library it is of."""

    _wire_type: ClassVar[type[Any]] = Wire

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create a client, with redis-py's arguments, and `retry_writes` as `autobatch.Redis`."""
        token = ambient.set(None)  # it asks the cluster at once, whatever scope it is made in
        try:
            super().__init__(*args, **kwargs)
        finally:
            ambient.reset(token)
        self.__dict__.pop("_wire", None)  # which that has used already

    @functools.cached_property
    def _wire(self) -> Wire:
        retry_writes = self.retry_writes
        wire: Wire = wires_of(self.root).setdefault(
            retry_writes, self._wire_type(self, retry_writes=retry_writes)
        )
        return wire

    @functools.cached_property
    def response_callbacks(self) -> dict[str, Callable[..., Any]]:
        """What makes values of replies, by command: a node's own, then the cluster's."""
        client: Any = self
        root = self.root
        callbacks = root.cluster_response_callbacks
        if not isinstance(callbacks, _Callbacks):
            node = client.get_redis_connection(client.get_default_node())
            callbacks = _Callbacks(callbacks, node.response_callbacks)
            root.cluster_response_callbacks = callbacks
        client.cluster_response_callbacks = callbacks
        return callbacks.all

    @functools.cached_property
    def _caches(self) -> bool:
        client: Any = self
        node = client.get_redis_connection(client.get_default_node())
        return getattr(node.connection_pool, "cache", None) is not None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command and return its Future; outside a scope run it and return its value.

        Args:
            args: the command and its arguments.
            options: redis-py's, such as `target_nodes`.

        Raises:
            redis.DataError: an argument cannot be sent.
            redis.exceptions.RedisClusterException: its keys belong to different slots.
        """
        scope = current()
        if scope is None or scope.closed:
            return self._run_now(Call(self, args, options))
        if args[0] in ONE_KEY and len(args) > 1 and TARGET not in options:
            return self._queue(scope, args, options)
        return self._queue_routed(scope, args, options)

    def _run_alone(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        scope.step_aside()
        return self._run_now(Call(self, args, options))

    def _queue_unknown(self, scope: Scope, call: Call) -> Any:
        if call.of_search:
            scope.step_aside()
            plain: Any = super(Funnel, self)
            return plain.execute_command(*call.args, **call.options)
        client: Any = self
        call.place(client.determine_slot(*call.args))
        return self._queue_call(scope, call)

    def _run_now(self, call: Call) -> Any:
        # What a cache has not redis-py asks for, again and again if need be: only what reads.
        cached = self._caches and call.traits.read_only and call.nodes is None
        if call.of_search or cached or names_himport(call.args[0]):
            plain: Any = super(Funnel, self)
            return plain.execute_command(*call.args, **call.options)
        if call.unknown:
            client: Any = self
            call.place(client.determine_slot(*call.args))
        (values,) = self._run_together([call.commands(None)])
        if call.traits.name == "SCRIPT LOAD":
            self._know_script(call.args[-1])
        return call.finish(values)

    def _run_together(self, calls: list[list[Command]]) -> list[list[Any]]:
        """Run commands in one round trip; return the values of each call, or raise an error."""
        commands = [command for call in calls for command in call]
        began = time.perf_counter()
        sync.exchange([Batch(self._wire, list(commands))])
        if report.listening or current() is not None:
            ran_alone(commands, began)
        for command in commands:
            if type(command.outcome) is Failure:
                raise command.outcome.error
        return [[command.outcome for command in call] for call in calls]

    def _call_all(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        scope = current()
        if scope is None or scope.closed:
            ready = [Call(self, args, {}).commands(None) for args in calls]
            return [value for (value,) in self._run_together(ready)]
        return super()._call_all(calls)

    if not TYPE_CHECKING:

        def set_response_callback(self, command, callback):
            _ = self.response_callbacks  # so that the other views hear of it
            super().set_response_callback(command, callback)


class ClusteredSynchronousEager(Eager, ClusteredSynchronous):
    """What makes a cluster's synchronous client the eager view of one that batches."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        step_aside()
        return self._run_now(Call(self, args, options))

    def _call_all(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        step_aside()
        ready = [Call(self, args, {}).commands(None) for args in calls]
        return [value for (value,) in self._run_together(ready)]


class _Callbacks(CaseInsensitiveDict):
    """redis-py's response callbacks of a cluster; all views of its client hear of a new one.

    Attributes:
        all: those of the nodes, followed by these.
    """

    def __init__(self, callbacks: dict[str, Any], of_nodes: dict[str, Any]) -> None:
        self._of_nodes = of_nodes
        self.all: dict[str, Callable[..., Any]] = dict(of_nodes)
        super().__init__(callbacks)

    def __setitem__(self, name: str, callback: Any) -> None:
        super().__setitem__(name, callback)
        first = self._of_nodes.get(name)
        last = callback if first is None else _one_after_the_other(first, callback)
        self.all[name.upper()] = last


class RedisCluster(ClusteredSynchronous, redis.RedisCluster):
    """redis-py's client of a cluster, batching: inside a scope every call returns a Future at once.

    A batch is divided by node, and all nodes are written before any is read: it takes the time of
    the slowest one. Constructor, `from_url`, methods and types are redis-py's. Outside a scope a
    call runs at once and returns the plain value. What the cluster sends on to another node is
    sent there, and only that; a write whose reply was lost is never sent again, unless
    `retry_writes=True` asks for it.

    Attributes:
        retry_writes: as given to the constructor.
    """

    if TYPE_CHECKING:  # redis-py's arguments, and ours

        @overload
        @constructed_as(redis.RedisCluster.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, retry_writes: bool, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class EagerRedisCluster(ClusteredSynchronousEager, RedisCluster):
    """The plain view of a batching cluster client: `client.eager`."""


RedisCluster._eager_type = EagerRedisCluster


def _one_after_the_other(first: Callable[..., Any], last: Callable[..., Any]) -> Callable[..., Any]:
    return lambda reply, **options: last(first(reply, **options), **options)
