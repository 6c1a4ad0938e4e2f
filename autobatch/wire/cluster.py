"""Routing: which node of a cluster a command belongs to, and what to do when that has changed.

A batch for a cluster is divided by node, each part travels on that node's own wire, and what a
node sends on to another one, or loses, is sent again: only that, in the program's order for each
slot. The topology, the map of the slots and the connections are redis-py's `NodesManager`'s.
"""

from __future__ import annotations

import codecs
import dataclasses
import time
from binascii import crc_hqx
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as _SLOTS
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    NoScriptError,
    RedisClusterException,
    SlotNotCoveredError,
    TryAgainError,
)

from autobatch.batch import (
    EVERYTHING,
    Batch,
    Entry,
    Transaction,
    commands_of,
    copy_of,
    places_of,
    reason_of,
    resend,
)
from autobatch.command import Command, PinnedCommand, Script, ScriptCall
from autobatch.keys import ONE_KEY, keys_of
from autobatch.promise import PENDING, run_all
from autobatch.wire import connection as greeted
from autobatch.wire import sync
from autobatch.wire.server import wires_of

# Commands that have no key and yet are routed by an argument, as redis-py does.
_LIKE_KEYS = frozenset({"PUBLISH"})
# With these a node says that it has not run the command, and that it can run elsewhere or later.
NOT_HERE: tuple[type[Exception], ...] = (
    MovedError,
    AskError,
    TryAgainError,
    ClusterDownError,
    BusyLoadingError,
)
_ELSEWHERE = (AskError, TryAgainError, NoScriptError)  # and MOVED, which is a kind of ASK
_NO_NEWS = (*_ELSEWHERE, MaxConnectionsError)  # of the map of the slots, but for MOVED
# How often a command follows the cluster's redirections. redis-py does it as often.
MAX_REDIRECTIONS = 16
_TRY_AGAIN_PAUSE = 0.05  # seconds, as redis-py's
_CLUSTER_DOWN_PAUSE = 0.25  # likewise
_ASKING = b"*1\r\n$6\r\nASKING\r\n"


@dataclasses.dataclass(slots=True, eq=False)
class Leftover:
    """A command, or a transaction, that has to be sent again.

    Attributes:
        entry: what it is.
        cause: why; None for a read that has to stay behind such a command.
        sent: it may have run.
        redirections, failures: how often it was told to go elsewhere, or got no answer.
    """

    entry: Entry
    cause: BaseException | None = None
    sent: bool = False
    redirections: int = 0
    failures: int = 0


class Unsent:
    """What nodes have refused to run, by key: what was called later has to come after it.

    Attributes:
        late: some of it was settled meanwhile, since it would have come too late.
    """

    def __init__(self, router: Router) -> None:
        self.late = False
        self._router = router
        self._reasons: dict[Entry, BaseException] = {}
        self._by_name: dict[bytes, dict[Entry, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(self, entry: Entry, reason: BaseException) -> None:
        """Note something, and why it has not run."""
        self._reasons[entry] = reason
        for name in self._router.names_of(entry):
            self._by_name.setdefault(name, {})[entry] = None

    def discard(self, entry: Entry) -> None:
        """Forget something: it is on its way again, or settled."""
        if self._reasons.pop(entry, None) is not None:
            for name in self._router.names_of(entry):
                of_name = self._by_name[name]
                del of_name[entry]
                if not of_name:
                    del self._by_name[name]

    def in_front_of(self, entry: Entry) -> dict[Entry, BaseException]:
        """Return what is of the same scope and has a key of something, with the reasons."""
        lane = _lane_of(entry)
        return {
            earlier: self._reasons[earlier]
            for name in self._router.names_of(entry)
            for earlier in self._by_name.get(name, ())
            if _lane_of(earlier) == lane
        }


def _lane_of(entry: Entry) -> int:
    lane: int = getattr(commands_of([entry])[0].owner, "lane", 0)
    return lane


class Part(Batch):
    """The commands of a cluster's batch for one node. What has to be sent again stays in it.

    Attributes:
        node: where it goes.
        ask: the node takes its commands only with ASKING in front of each.
        unsent: what was refused, also of parts that travel in front of this one.
    """

    __slots__ = ("_causes", "_order", "ask", "node", "router", "unsent")

    divided = True

    def __init__(
        self,
        wire: Any,
        entries: list[Entry],
        router: Router,
        node: Any,
        *,
        ask: bool = False,
        usual: bool = False,
        unsent: Unsent | None = None,
    ) -> None:
        super().__init__(wire, entries, usual=usual)
        self.unsent = unsent
        self.router = router
        self.node = node
        self.ask = ask
        self._order = entries
        self._causes: dict[Entry, BaseException] = {}

    def portions(self, size: int) -> list[Part]:  # type: ignore[override]  # a list of its own
        if len(self.entries) <= size:
            return [self]
        portions = [self.entries[i : i + size] for i in range(0, len(self.entries), size)]
        options: dict[str, Any] = {"ask": self.ask, "usual": self.usual, "unsent": self.unsent}
        return [Part(self.wire, each, self.router, self.node, **options) for each in portions]

    def seal(self) -> bytes:
        sealed = super().seal()
        if self.ask:
            return b"".join([_ASKING + entry.packed for entry in self.entries])
        return sealed

    def expected(self) -> tuple[int, frozenset[int]]:
        if not self.ask:
            return super().expected()
        count = 0
        raw = []
        for entry in self.entries:
            count += 1 + entry.reply_count
            if entry.never_decode:
                raw.append(count - 1)
        return count, frozenset(raw)

    def settle(self, replies: list[Any]) -> None:
        if self.ask:
            replies = self._without_asking(replies)
        # By their kinds, of which there are few, instead of one by one.
        refused = any(issubclass(kind, NOT_HERE) for kind in set(map(type, replies)))
        if not refused and not self.unsent:
            super().settle(replies)
            return
        entries, self.entries = self.entries, []
        run_all(
            lambda one: self._settle(one[0], replies[one[1] : one[1] + one[0].reply_count]),
            places_of(entries),
        )

    def abort(
        self,
        replies: list[Any],
        written: int,
        cause: BaseException,
        later: Any = None,
    ) -> None:
        if self.ask:
            replies = self._without_asking(replies)
            written = EVERYTHING if written else 0  # how much of it was ASKING does not matter
        entries, self.entries = self.entries, []
        answered = position = 0
        for entry in entries:
            if position + entry.reply_count > len(replies):
                break
            self._settle(entry, replies[position : position + entry.reply_count])
            written -= len(entry.packed)
            position += entry.reply_count
            answered += 1
        refused, self.entries = self.entries, entries[answered:]
        try:
            super().abort(replies[position:], written, cause, later)
        except BaseException:  # interrupted, nobody can tell which of them have been written
            self._sent.update(self.entries)
            raise
        again, self.entries = self.entries, refused + self.entries
        for entry in again:
            self._causes[entry] = cause
        if refused:
            for entry in set(entries[answered:]).difference(again):
                self._give_up_before(entry)

    def hand_back(self, cause: BaseException) -> None:
        for entry in self.entries:
            self._causes.setdefault(entry, cause)

    def leftovers(self) -> list[tuple[Entry, BaseException | None, bool]]:
        """Take away what is left: each with the reason, and whether it may have run."""
        order = {entry: number for number, entry in enumerate(self._order)}
        entries, self.entries = sorted(self.entries, key=order.__getitem__), []
        return [(entry, self._causes.get(entry), entry in self._sent) for entry in entries]

    def _settle(self, entry: Entry, replies: Sequence[Any]) -> None:
        cause = _not_here(entry, replies)
        if cause is not None:
            self._causes[entry] = cause
            self._keep(entry, cause)
            return
        if self.unsent:
            if entry.read_only:
                # It has run, but too early if a command of its keys in front of it has not.
                for reason in self.unsent.in_front_of(entry).values():
                    self._keep(entry, reason)
                    return
            self._give_up_before(entry)
        if isinstance(entry, Transaction):
            entry.settle(replies)
        else:
            entry.settle(replies[0])

    def _keep(self, entry: Entry, reason: BaseException) -> None:
        if self.unsent is None:
            self.unsent = Unsent(self.router)
        self.unsent.add(entry, reason)
        self.entries.append(entry)

    def _give_up_before(self, entry: Entry) -> None:
        """Do not send again what would now come after a write of the same key that was later."""
        if entry.read_only or not self.unsent:
            return
        for kept, reason in self.unsent.in_front_of(entry).items():
            self.unsent.discard(kept)
            self._causes.pop(kept, None)
            if kept in self.entries:
                self.entries.remove(kept)
            else:  # a part in front of this one has had it
                self.unsent.late = True
            _give_up(Leftover(kept), reason)

    def _without_asking(self, replies: list[Any]) -> list[Any]:
        kept: list[Any] = []
        position = 0
        for entry in self._order:
            kept += replies[position + 1 : position + 1 + entry.reply_count]
            position += 1 + entry.reply_count
        return kept


def _tells_nothing(cause: BaseException) -> bool:
    """Return whether a reason says nothing of the map of the slots."""
    return isinstance(cause, _NO_NEWS) and not isinstance(cause, MovedError)


def _not_here(entry: Entry, replies: Sequence[Any]) -> BaseException | None:
    """Return why a node has not run something that can run elsewhere, if that is so."""
    if isinstance(entry, Transaction) and not all(isinstance(r, Exception) for r in replies):
        alone = isinstance(replies[0], Exception)  # MULTI was refused, so some ran by themselves
        if alone or not isinstance(replies[-1], Exception):  # or EXEC has run it
            return None
    kinds: tuple[type[Exception], ...] = NOT_HERE
    if isinstance(entry, ScriptCall) and not entry.brings_source:
        kinds = (*NOT_HERE, NoScriptError)  # what brings it along was not run here
    return next((reply for reply in replies if isinstance(reply, kinds)), None)


class Router:
    """Which node each command goes to.

    Attributes:
        client: redis-py's client of the cluster, synchronous or asyncio: it has the topology.
    """

    def __init__(self, client: Any, encoder: Any = None) -> None:
        """Route the commands of `client`; `encoder` is of what is written, if not the client's."""
        self.client = client
        encoder = encoder or client.encoder
        self._encode = encoder.encode
        utf8 = (
            codecs.lookup(encoder.encoding).name == "utf-8" and encoder.encoding_errors == "strict"
        )
        self._encode_text: Callable[[Any], bytes] = str.encode if utf8 else encoder.encode

    def slot_of_key(self, key: Any) -> int:
        """Return the slot of a key."""
        return int(key_slot(self._encode(key)))

    def slot_of(self, entry: Entry) -> int | None:
        """Return the slot of a command or a transaction, or None if it has no key."""
        if isinstance(entry, Transaction):
            slots = (self.slot_of(command) for command in entry.commands)
            return next((slot for slot in slots if slot is not None), None)
        if isinstance(entry, PinnedCommand):
            return entry.slot
        name = entry.traits.name
        if name in ONE_KEY and len(entry.args) > 1:
            return key_slot(self._encode(entry.args[1]))
        keys = entry.args[1:2] if name in _LIKE_KEYS else keys_of(name, entry.args)
        return self.slot_of_key(keys[0]) if keys else None

    def names_of(self, entry: Entry) -> set[bytes]:
        """Return the keys of a command or a transaction."""
        names: set[bytes] = set()
        for command in commands_of([entry]):
            keys = keys_of(command.traits.name, command.args)
            # Where only the server knows them, each argument may be one.
            names.update(map(self._encode, command.args[1:] if keys is None else keys))
        return names

    def slots_of(self, args: tuple[Any, ...], name: str) -> list[int] | None:
        """Return the slots of a command's keys, in order; None if nobody here knows its keys."""
        keys = args[1:2] if name in _LIKE_KEYS else keys_of(name, args)
        return None if keys is None else [self.slot_of_key(key) for key in keys]

    def problem_of(self, commands: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction, if they cannot."""
        slots = {self.slot_of(command): command for command in commands}
        slots.pop(None, None)
        one, *others = [command.describe() for command in slots.values()] or [""]
        if not others:
            return None
        return (
            f"its commands belong to different slots of the cluster ({one}; {others[0]}). Give "
            "their keys a hash tag, the same part in braces, as in {user:1}:name and {user:1}:age"
        )

    def divide(
        self, entries: Iterable[Entry], *, usual: bool = False
    ) -> tuple[list[tuple[Any, list[Entry]]], list[tuple[Entry, BaseException]]]:
        """Return the commands of each node, in order, and those that no node is known for.

        Args:
            entries: what to divide.
            usual: each is a plain command of one reply.
        """
        client = self.client
        if usual and not (client.read_from_replicas or client.load_balancing_strategy):
            try:
                return self._divide_usual(entries), []
            except (KeyError, IndexError, AttributeError):
                pass  # something is unusual all the same: one by one, then
        slots_cache = client.nodes_manager.slots_cache
        by_name: dict[str, tuple[Any, list[Entry]]] = {}
        stranded: list[tuple[Entry, BaseException]] = []
        placed = [(entry, self.slot_of(entry)) for entry in entries]
        on_primary = self._to_be_read_on_primary(placed)
        for entry, slot in placed:
            try:
                if slot is None:
                    node = getattr(entry, "node", None) or client.get_default_node()
                elif on_primary is None or slot in on_primary or not entry.read_only:
                    node = slots_cache[slot][0]
                else:
                    node = client.nodes_manager.get_node_from_slot(
                        slot, client.read_from_replicas, client.load_balancing_strategy
                    )
                of_node = by_name.get(node.name)
            except (KeyError, IndexError, AttributeError, SlotNotCoveredError) as error:
                cause = SlotNotCoveredError(f"no node is known for slot {slot}")
                cause.__cause__ = error
                stranded.append((entry, cause))
                continue
            if of_node is None:
                by_name[node.name] = node, [entry]
            else:
                of_node[1].append(entry)
        return list(by_name.values()), stranded

    def _divide_usual(self, entries: Iterable[Any]) -> list[tuple[Any, list[Entry]]]:
        """Do the same for plain commands: nearly all, so this is the hot path."""
        slots_cache = self.client.nodes_manager.slots_cache
        encode = self._encode_text
        nodes: dict[str, Any] = {}
        by_name: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.traits.name in ONE_KEY:
                key = entry.args[1]
                key = encode(key) if type(key) is str else self._encode(key)
                # key_slot(), spelled out:
                slot: int | None = key_slot(key) if b"{" in key else crc_hqx(key, 0) % _SLOTS
            else:
                slot = self.slot_of(entry)
            node = slots_cache[slot][0]
            try:
                by_name[node.name].append(entry)
            except KeyError:
                by_name[node.name] = [entry]
                nodes[node.name] = node
        return [(nodes[name], of_node) for name, of_node in by_name.items()]

    def _to_be_read_on_primary(self, placed: list[tuple[Entry, int | None]]) -> set[int] | None:
        """Return the slots whose reads must see what their scope has written; None: all slots.

        A replica may be behind its primary, or ahead of a write that was called later.
        """
        client = self.client
        if not (client.read_from_replicas or client.load_balancing_strategy):
            return None
        slots: set[int] = set()
        for entry, slot in placed:
            owner: Any = commands_of([entry])[0].owner
            written = owner.written_slots
            if not entry.read_only and slot is not None:
                written.add(slot)
                slots.add(slot)
            slots |= written
        return slots

    def pause(self, leftovers: Iterable[Leftover]) -> float:
        """Return how many seconds to wait before some are sent again."""
        seconds = 0.0
        for one in leftovers:
            if isinstance(one.cause, TryAgainError):
                seconds = max(seconds, _TRY_AGAIN_PAUSE)
            elif isinstance(one.cause, (ClusterDownError, SlotNotCoveredError)):
                seconds = max(seconds, _CLUSTER_DOWN_PAUSE)
            elif one.failures:
                seconds = max(seconds, greeted.backoff(self.client, one.failures))
        return seconds

    def news(self, leftovers: Iterable[Leftover]) -> tuple[list[MovedError], bool]:
        """Return what has moved, once a slot, and whether to ask for the whole topology."""
        moved: dict[int, MovedError] = {}
        lost = False
        slots_cache = self.client.nodes_manager.slots_cache
        for one in leftovers:
            if isinstance(one.cause, MovedError) and one.cause.slot_id in slots_cache:
                moved[one.cause.slot_id] = one.cause
            elif one.cause is not None and not _tells_nothing(one.cause):
                lost = True
        if moved:
            # As redis-py does: the map is patched, and asked for at every so many redirections.
            client = self.client
            client.reinitialize_counter += 1
            steps = client.reinitialize_steps
            if steps and client.reinitialize_counter % steps == 0:
                client.reinitialize_counter = 0
                lost = True
        return list(moved.values()), lost

    def move_slot(self, error: MovedError) -> Any:
        """Let redis-py patch its map; return what has to be awaited, if that takes it."""
        manager = self.client.nodes_manager
        if hasattr(manager, "move_slot"):
            return manager.move_slot(error)
        nodes = manager.slots_cache.get(error.slot_id)
        if nodes and (nodes[0].host, nodes[0].port) == (error.host, error.port):
            return None  # it would take the primary for a replica
        manager.update_moved_exception(error)  # redis-py 7.0
        manager.get_node_from_slot(error.slot_id)  # which takes it into account
        return None

    def divide_again(
        self, leftovers: Iterable[Leftover]
    ) -> tuple[list[tuple[Any, list[Entry], bool]], list[tuple[Entry, BaseException]]]:
        """Return what to send where, and whether with ASKING, and what no node is known for."""
        asked: dict[str, tuple[Any, list[Entry], bool]] = {}
        others: list[Entry] = []
        leftovers = list(leftovers)
        # What was sent after a slot on its way finds it where the others learnt that it is now.
        moved = {one.cause.slot_id for one in leftovers if isinstance(one.cause, MovedError)}
        ways: dict[int, str | None] = {}
        for one in leftovers:
            node = None
            if isinstance(one.entry, PinnedCommand) and isinstance(one.cause, MovedError):
                one.entry.node, one.entry.slot = None, one.cause.slot_id  # as redis-py does
            if isinstance(one.cause, AskError) and one.cause.slot_id not in moved:
                node = self._node_of(one.cause)
            way = None if node is None else node.name
            slot = self.slot_of(one.entry)
            if slot is not None and ways.setdefault(slot, way) != way:
                one.cause = None  # on another way it could overtake: the next time
            elif node is None:
                others.append(one.entry)
            else:
                asked.setdefault(node.name, (node, [], True))[1].append(one.entry)
        divided, stranded = self.divide(others)
        return [*asked.values(), *((node, of_node, False) for node, of_node in divided)], stranded

    def _node_of(self, ask: AskError) -> Any:
        if not ask.host:
            return None
        manager = self.client.nodes_manager
        node = manager.get_node(host=ask.host, port=ask.port)
        if node is None:
            # It is new: the map of the slots names it when its first slot has arrived. redis-py
            # makes one that MOVED tells of known in the same way, and closes its connections.
            node = self._new_node(ask.host, ask.port)
            manager.nodes_cache = {**manager.nodes_cache, node.name: node}
        return node

    def _new_node(self, host: str, port: int) -> Any:
        if isinstance(self.client, redis.RedisCluster):
            return redis.cluster.ClusterNode(host, port, redis.cluster.PRIMARY)
        kwargs = self.client.nodes_manager.connection_kwargs
        return redis.asyncio.cluster.ClusterNode(host, port, redis.cluster.PRIMARY, **kwargs)


class Recovery:
    """What has to be sent again, in the program's order for each slot, and how often it may be."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._left: dict[Entry, Leftover] = {}

    def collect(self, parts: Iterable[Part]) -> None:
        """Take over what is left of some parts that have landed."""
        for part in parts:
            for entry, cause, sent in part.leftovers():
                self.add(entry, cause, sent=sent)

    def add(self, entry: Entry, cause: BaseException | None, *, sent: bool = False) -> None:
        """Take over something; what was here before keeps its place."""
        one = self._left.setdefault(entry, Leftover(entry))
        one.cause = cause
        one.sent = one.sent or sent
        if isinstance(cause, _ELSEWHERE):
            one.redirections += 1
        elif cause is not None:
            one.failures += 1

    def take(self) -> list[Leftover]:
        """Return what may be sent once more; settle the others with their reason."""
        self.settled()  # what came behind it may have made it too late
        retries = self._router.client.retry.get_retries()
        for one in list(self._left.values()):
            if one.redirections > MAX_REDIRECTIONS or one.failures > retries >= 0:
                del self._left[one.entry]
                _give_up(one, one.cause)
        return list(self._left.values())

    def settled(self) -> None:
        """Forget what was settled."""
        self._left = {
            entry: one
            for entry, one in self._left.items()
            if commands_of([entry])[0].outcome is PENDING
        }

    def left(self) -> list[Entry]:
        """Return what it has, also what is on its way again."""
        return list(self._left)

    def give_up(self, cause: BaseException, away: Container[Entry] = ()) -> None:
        """Settle everything but what is `away`: it will not be sent again."""
        self.settled()
        for entry, one in list(self._left.items()):
            if entry not in away:
                del self._left[entry]
                _give_up(one, cause)


def _give_up(one: Leftover, cause: BaseException | None) -> None:
    reason = one.cause or cause
    if isinstance(reason, redis.ResponseError):
        for command in commands_of([one.entry]):
            command.fail(copy_of(reason))
        return
    assert reason is not None
    if one.sent:
        one.entry.outcome_unknown(reason_of(reason), reason)
    else:
        one.entry.not_sent(reason_of(reason), reason)


class Wire:
    """Where the batches of one synchronous cluster client travel: a connection for each node.

    Attributes:
        server, retry_writes, pack, pack_fast, decodes, decode, scripts: as on a wire to one
            server.
    """

    asynchronous = False
    divides = True

    def __init__(self, client: Any, *, retry_writes: bool = False) -> None:
        self.retry_writes = retry_writes
        pool = client.get_redis_connection(client.get_default_node()).connection_pool
        self.router = Router(client, greeted.encoder_of(pool))
        self.pack, self.pack_fast = greeted.packers(pool)
        encoder = client.encoder
        self.decodes: bool = encoder.decode_responses
        self.decode = greeted.decoder(encoder)
        self.scripts: dict[str, Script] = {}

    def problem_of(self, commands: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction, if they cannot."""
        return self.router.problem_of(commands)

    @property
    def server(self) -> object:
        names = [node.name for node in self.router.client.get_primaries()]
        return "cluster", min(names, default="")

    def divide(self, batch: Batch) -> list[Part]:
        """Return the parts of a batch, which take over its commands."""
        usual = batch.usual
        divided, stranded = self.router.divide(batch.entries, usual=usual)
        parts = [self._part(node, of_node, usual=usual) for node, of_node in divided]
        parts += [Part(_Nowhere(cause), [entry], self.router, None) for entry, cause in stranded]
        batch.entries = []  # not before: until here it is the batch that is given up
        return parts

    def send_again(self, flights: list[sync.Flight]) -> tuple[int, int]:
        """Send what has to be sent again, after finding out where to.

        Returns:
            How often the network was waited for, and how many exchanges that took.
        """
        recovery = Recovery(self.router)
        round_trips = exchanges = 0
        try:
            recovery.collect([flight.batch for flight in flights])  # type: ignore[misc]  # divided
            while left := recovery.take():
                self._catch_up(left)
                divided, stranded = self.router.divide_again(left)
                resend(one.entry for one in left)
                flights = [sync.Flight(self._part(*one)) for one in divided]
                sync.fly(flights)
                recovery.settled()
                recovery.collect([flight.batch for flight in flights])  # type: ignore[misc]
                for entry, cause in stranded:
                    recovery.add(entry, cause)
                round_trips += 1
                exchanges += len(flights)
        except BaseException as error:
            recovery.give_up(error)
            raise
        return round_trips, exchanges

    def _catch_up(self, left: list[Leftover]) -> None:
        """Wait if need be, and learn what has changed."""
        pause = self.router.pause(left)
        if pause:
            time.sleep(pause)
        moved, lost = self.router.news(left)
        manager = self.router.client.nodes_manager
        if lost:
            try:
                manager.initialize()
            except (redis.RedisError, RedisClusterException, OSError):
                return  # the next attempt tells
            except BaseException:
                # Interrupted: redis-py takes connections back as they are then, perhaps with the
                # reply unread.
                client = self.router.client
                for node in [*manager.nodes_cache.values(), *manager.startup_nodes.values()]:
                    greeted.close_idle(client.get_redis_connection(node).connection_pool)
                raise
        else:
            for error in moved:
                self.router.move_slot(error)

    def _part(
        self,
        node: Any,
        entries: list[Entry],
        ask: bool = False,  # noqa: FBT001, FBT002  # as divided
        *,
        usual: bool = False,
    ) -> Part:
        pool = self.router.client.get_redis_connection(node).connection_pool
        wires = wires_of(pool)
        wire = wires.get(self.retry_writes)
        if wire is None:
            made = sync.Wire(pool, retry_writes=self.retry_writes)
            wire = wires.setdefault(self.retry_writes, made)
        return Part(wire, entries, self.router, node, ask=ask, usual=usual)


class _Nowhere:
    """The wire of what no node is known for."""

    retry_writes = False
    place = 0

    def __init__(self, cause: BaseException) -> None:
        self._cause = cause

    def acquire(self) -> Any:
        raise redis.ConnectionError(str(self._cause)) from self._cause
