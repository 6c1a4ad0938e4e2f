"""Asyncio's wire to a cluster: one shared connection a node.

Each node's part of a batch travels on that node's shared connection. What comes back to be sent
elsewhere holds back later commands of the same slots, and only those, until it has landed: so the
order of each slot holds, and the rest of the cluster goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException

from autobatch.batch import Batch, Entry, commands_of, resend, settle_lost
from autobatch.command import Command, Script
from autobatch.errors import NoLoop, NotSent, OutcomeUnknown
from autobatch.promise import PENDING, Failure
from autobatch.wire import connection as greeted
from autobatch.wire import mux
from autobatch.wire.cluster import NOT_HERE, Leftover, Part, Recovery, Router, Unsent
from autobatch.wire.shared import PORTION, LoopEnds
from autobatch.wire.tick import tick_of


class Wire:
    """Where the batches of one asyncio cluster client travel: a wire for each node.

    Attributes:
        router: which node a command goes to.
        lanes, server, retry_writes, pack, pack_fast, decodes, decode, scripts: as on a wire to
            one server.
    """

    asynchronous = True
    divides = True

    def __init__(self, client: Any, lanes: int = 1, *, retry_writes: bool = False) -> None:
        self.lanes = lanes
        self.retry_writes = retry_writes
        self.router = Router(client)
        self.pack, self.pack_fast = greeted.packers(client, own_encoding=True)
        encoder = client.encoder
        self.decodes: bool = encoder.decode_responses
        self.decode = greeted.decoder(encoder)
        self.scripts: dict[str, Script] = {}
        self._wires: dict[str, mux.Wire] = {}  # by the node's name
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None

    @property
    def server(self) -> object:
        names = [node.name for node in self.router.client.get_primaries()]
        return "cluster", min(names, default="")

    def problem_of(self, commands: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction, if they cannot."""
        return self.router.problem_of(commands)

    def submit(self, batch: Batch, lane: int, landed: Callable[[], None]) -> int:
        """Hand a batch over to the running loop's connections, as a wire to one server does."""
        try:
            home = self._home()
        except NoLoop as error:
            batch.drop(error)
            landed()
            return 0
        return home.submit(batch, lane, landed)

    async def call(self, command: Command) -> Any:
        """Run one command on a connection that it has for itself, and return its value."""
        self.at_home()
        recovery = Recovery(self.router)
        recovery.add(command, None)
        while left := recovery.take():
            stranded = await self.catch_up(left)
            for error in stranded:
                recovery.add(command, error)
            if stranded:
                continue
            divided, lost = self.router.divide_again(left)
            for _, cause in lost:
                recovery.add(command, cause)
            for node, _, ask in divided:
                await self.wire_to(node).run(command, ask=ask)
                reason = _may_run_again(command)
                if reason is None:
                    return await mux.value_of(command)
                command.outcome = PENDING
                recovery.add(command, reason)
        return await mux.value_of(command)

    def wire_to(self, node: Any) -> mux.Wire:
        """Return the wire to one node."""
        wire = self._wires.get(node.name)
        if wire is None:
            wire = self._wires[node.name] = self._new_wire(node)
        return wire

    def _new_wire(self, node: Any) -> mux.Wire:
        kwargs = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        pool = redis.asyncio.ConnectionPool(
            connection_class=node.connection_class,
            max_connections=node.max_connections,
            **kwargs,
        )
        return mux.Wire(pool, self.lanes, retry_writes=self.retry_writes)

    async def catch_up(self, left: Iterable[Leftover]) -> list[BaseException]:
        """Wait if need be, and learn what has changed; return why nothing could be learnt."""
        client = self.router.client
        pause = self.router.pause(left)
        if pause:
            await asyncio.sleep(pause)
        moved, lost = self.router.news(left)
        try:
            await self.initialize()
            if lost:
                await self._home().refresh()
        except (redis.RedisError, RedisClusterException, OSError) as error:
            return [error]
        if lost:
            for name in self._wires.keys() - client.nodes_manager.nodes_cache.keys():
                self._wires.pop(name).abandon()
        else:
            for one in moved:
                if (patching := self.router.move_slot(one)) is not None:
                    await patching
        self._home().learn()
        return []

    async def initialize(self) -> None:
        """Let redis-py look at the cluster, if it has not yet."""
        client = self.router.client
        if client.nodes_manager.default_node is None:
            await client.initialize()

    def looking(self) -> asyncio.Lock:
        """Return what to hold while redis-py looks at the cluster.

        Who waits for a lock of redis-py's binds it to the running loop, for good. Nobody needs to.
        """
        return self._home().looking

    async def landed(self) -> None:
        """Wait until everything that was handed over by now in the running loop has landed."""
        await self._home().landed()

    def doubt(self) -> None:
        """Watch the running loop's connections: somebody has stopped waiting for one."""
        for wire in list(self._wires.values()):
            wire.doubt()

    async def nodes_landed(self) -> None:
        """Wait until everything that is on its way to a node has landed."""
        for wire in list(self._wires.values()):
            await wire.landed()

    async def close(self) -> None:
        """Close the connections of the running loop, after what is on its way has landed."""
        await self.landed()
        for wire in list(self._wires.values()):
            await wire.close()
        self._wires.clear()  # their pools know redis-py's client: nobody may keep them for us
        home: _Home | None = tick_of(asyncio.get_running_loop()).homes.pop(self, None)
        if home is not None:
            await home.close()

    def abandoning(self) -> Callable[[], None]:
        """Return what closes the connections of a client that was forgotten; from any thread."""
        wires = self._wires  # and not this wire, which would keep the client

        def abandon() -> None:
            for wire in list(wires.values()):
                wire.abandon()

        return abandon

    async def disconnect(self) -> None:
        """Close redis-py's own connections to the nodes, which belong to the running loop."""
        manager = self.router.client.nodes_manager
        for node in [*manager.nodes_cache.values(), *manager.startup_nodes.values()]:
            # RuntimeError: it is another loop's, which has ended without a word.
            with contextlib.suppress(redis.RedisError, OSError, RuntimeError):
                await node.disconnect()

    def at_home(self) -> None:
        """See to it that redis-py's own connections are closed when the running loop ends."""
        self._home()

    def _home(self) -> _Home:
        """Return what this wire has in the running loop.

        Raises:
            NoLoop: it has something in another loop that runs, too.
        """
        tick = tick_of(asyncio.get_running_loop())
        home: _Home | None = tick.homes.get(self)
        if home is None:
            before = None if self._loop is None else self._loop()
            if before is not None and before.is_running() and self in tick_of(before).homes:
                # redis-py's connections to the nodes, where it asks for the map, are of that one.
                raise NoLoop(
                    "an asyncio client of a cluster belongs to one event loop at a time, and is in "
                    "use in another one: aclose() it there, or make a client for each loop"
                )
            self._loop = weakref.ref(tick.loop)
            home = tick.homes[self] = _Home(self, tick.loop)
        return home


def _may_run_again(command: Command) -> BaseException | None:
    """Return why a command that was settled can be sent again, if it can."""
    if type(command.outcome) is not Failure:
        return None
    error = command.outcome.error
    again = command.read_only or command.wire.retry_writes
    if isinstance(error, NotSent) or (isinstance(error, OutcomeUnknown) and again):
        return error.__cause__
    return error if isinstance(error, NOT_HERE) else None


class _Journey:
    """One batch that was handed over.

    Attributes:
        lane: the connection of each node that it travels on.
        left: how many of its parts are on their way, and commands that have to be sent again.
    """

    __slots__ = ("_landed", "_out", "_waiter", "lane", "left")

    def __init__(self, lane: int, landed: Callable[[], None], out: dict[_Journey, None]) -> None:
        self.lane = lane
        self.left = 1  # until everything is on its way
        self._landed = landed
        self._waiter: asyncio.Future[None] | None = None
        self._out = out
        out[self] = None

    def arrive(self) -> None:
        """Note that one of what is left has arrived."""
        self.left -= 1
        if not self.left:
            del self._out[self]
            if self._waiter is not None:
                _arrived(self._waiter)
            self._landed()

    async def end(self) -> None:
        """Wait until everything has arrived."""
        if self.left:
            self._waiter = self._waiter or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)


# What keeps its order: a slot, or a node that commands without a key are for.
_Place: TypeAlias = int | str | None


class _Rescue:
    """Places of which something came back, and has to be sent again before what comes later.

    Attributes:
        places: those; later commands of theirs are held back.
        recovery: what came back.
        journeys: whose it is.
        troubled: to the nodes that it came back from.
        away: what of it is on its way again.
        held: what is held back, in order, and whose it is.
        over: why nothing is sent again any more.
    """

    __slots__ = ("away", "held", "journeys", "over", "places", "recovery", "troubled")

    def __init__(self, router: Router) -> None:
        self.places: set[_Place] = set()
        self.recovery = Recovery(router)
        self.journeys: dict[Entry, _Journey] = {}
        self.troubled: set[mux.Wire] = set()
        self.away: set[Entry] = set()
        self.held: dict[Entry, _Journey] = {}
        self.over: BaseException | None = None


class _Home:
    """What is on its way to a cluster in one event loop.

    What comes back from a node is sent again by a task, a rescue; each node's trouble has one of
    its own, so that none waits for another one's node.
    """

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._router = wire.router
        self._loop = loop
        self._out: dict[_Journey, None] = {}
        self._flying: dict[Part, None] = {}
        self._rescues: dict[_Place, _Rescue] = {}
        self._gathering: dict[mux.Wire | None, _Rescue] = {}  # which have not sent anything yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent = Unsent(self._router)
        self._map: object = None
        self.looking = asyncio.Lock()
        self._refreshed = 0
        self._ended = False
        # As a shared connection's home does, it hears so that the loop ends.
        self._keeper = self._keep()
        with contextlib.suppress(StopIteration):
            anext(self._keeper).__await__().send(None)

    # ---- sending -----------------------------------------------------------------------

    def submit(self, batch: Batch, lane: int, landed: Callable[[], None]) -> int:
        journey = _Journey(lane, landed, self._out)
        entries, batch.entries = batch.entries, []
        try:
            parts = self._set_off(entries, journey, usual=batch.usual)
        except Exception as error:  # such as of a client that is the program's own
            parts = 0
            self._give_up_lost(entries, error)
        journey.arrive()
        return parts

    def _set_off(self, entries: list[Entry], journey: _Journey, *, usual: bool) -> int:
        slots_cache = self._router.client.nodes_manager.slots_cache
        if slots_cache is not self._map:
            self.learn()
        if not slots_cache:
            self._take_back(journey, [(entry, None, False) for entry in entries])
            entries = []
        elif self._rescues:
            entries = [entry for entry in entries if not self._hold(entry, journey)]
        return self._send(entries, journey, usual=usual)

    def _give_up_lost(self, entries: list[Entry], error: Exception) -> None:
        """Settle those of some commands that are neither on their way nor held back."""
        known = {entry for part in self._flying for entry in part.entries}
        for rescue in self._rescues.values():
            known.update(rescue.held, rescue.journeys)
        lost = [entry for entry in entries if entry not in known]
        settle_lost(lost, error, sent=False)
        for command in commands_of(lost):
            command.run_callbacks()

    def _hold(self, entry: Entry, journey: _Journey) -> bool:
        rescue = self._rescues.get(self._place_of(entry))
        if rescue is None:
            return False
        journey.left += 1
        rescue.held[entry] = journey
        return True

    def _place_of(self, entry: Entry) -> _Place:
        slot = self._router.slot_of(entry)
        if slot is None:
            node = getattr(entry, "node", None)
            return None if node is None else str(node.name)
        return slot

    def _send(self, entries: list[Entry], journey: _Journey, *, usual: bool = False) -> int:
        router = self._router
        divided, stranded = router.divide(entries, usual=usual)
        if stranded:
            self._take_back(journey, [(entry, cause, False) for entry, cause in stranded])
        count = 0
        for node, of_node in divided:
            wire = self._wire.wire_to(node)
            link = wire.at_home().link(journey.lane % self._wire.lanes)
            whole = Part(wire, of_node, router, node, usual=usual, unsent=self._unsent)
            for part in whole.portions(PORTION):
                count += 1
                journey.left += 1
                self._flying[part] = None
                link.submit(part, functools.partial(self._part_landed, part, journey))
        return count

    def _part_landed(self, part: Part, journey: _Journey) -> None:
        self._flying.pop(part, None)
        if part.entries:
            self._take_back(journey, part.leftovers(), part.wire)
        if self._unsent.late:
            self._unsent.late = False
            for rescue in set(self._rescues.values()):
                self._arrive(rescue)
        journey.arrive()

    async def refresh(self) -> None:
        """Ask for the whole map, unless somebody else has asked since this was called."""
        refreshed = self._refreshed
        async with self.looking:
            if self._refreshed == refreshed:
                await self._router.client.nodes_manager.initialize()
                self._refreshed += 1

    def learn(self) -> None:
        """See who serves which slot now: what comes next must not overtake what is on its way.

        The node that does not serve a slot any more may not have looked at commands of it yet,
        and will send them on.
        """
        slots_cache = self._router.client.nodes_manager.slots_cache
        self._map = slots_cache
        for part in self._flying:
            for entry in part.entries:
                slot = self._router.slot_of(entry)
                nodes = [node.name for node in slots_cache.get(slot, ())]
                served = nodes if entry.read_only else nodes[:1]
                if (
                    slot is not None
                    and part.node.name not in served  # perhaps nobody serves it for a moment
                    and slot not in self._rescues
                ):
                    rescue = self._rescue_from(part.wire)
                    rescue.troubled.add(part.wire)
                    rescue.places.add(slot)
                    self._rescues[slot] = rescue

    # ---- what came back ----------------------------------------------------------------

    def _take_back(
        self,
        journey: _Journey,
        left: list[tuple[Entry, BaseException | None, bool]],
        wire: mux.Wire | None = None,
    ) -> None:
        if self._loop.is_closed() or any(isinstance(cause, LoopEnds) for _, cause, _ in left):
            self._ended = True
        if self._ended:
            recovery = Recovery(self._router)
            for entry, cause, sent in left:
                recovery.add(entry, cause, sent=sent)
            recovery.give_up(_the_loop_ends())
            for command in commands_of([entry for entry, _, _ in left]):
                command.run_callbacks()
            return
        for entry, cause, sent in left:
            place = self._place_of(entry)
            rescue = self._rescues.get(place)
            if rescue is None:
                rescue = self._rescues[place] = self._rescue_from(wire)
                rescue.places.add(place)
            if wire is not None:
                rescue.troubled.add(wire)
            journey.left += 1
            rescue.journeys[entry] = journey
            rescue.recovery.add(entry, cause, sent=sent)

    def _rescue_from(self, wire: mux.Wire | None) -> _Rescue:
        """Return a rescue that has not started yet, for what comes back from one node."""
        rescue = self._gathering.get(wire)
        if rescue is None:
            rescue = self._gathering[wire] = _Rescue(self._router)
            task = self._loop.create_task(self._send_again(rescue, wire))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._end, rescue, wire))
        return rescue

    async def _send_again(self, rescue: _Rescue, wire: mux.Wire | None) -> None:
        recovery = rescue.recovery
        while True:
            # What was written behind it comes back, too, and has to come after it.
            while rescue.troubled:
                await rescue.troubled.pop().landed()
            if self._gathering.get(wire) is rescue:
                del self._gathering[wire]
            left = recovery.take()
            self._arrive(rescue)
            self._release(rescue)
            if not left:
                return
            for error in await self._wire.catch_up(left):
                for one in left:
                    recovery.add(one.entry, error)
                break
            else:
                if not rescue.troubled:
                    await self._send_once_more(rescue, left)

    async def _send_once_more(self, rescue: _Rescue, left: list[Leftover]) -> None:
        divided, stranded = self._router.divide_again(left)
        resend(one.entry for one in left if one.cause is not None)
        for entry, cause in stranded:
            rescue.recovery.add(entry, cause)
        arrivals = []
        for node, entries, ask in divided:
            wire = self._wire.wire_to(node)
            link = wire.at_home().link(0)
            for part in Part(wire, entries, self._router, node, ask=ask).portions(PORTION):
                arrival = self._loop.create_future()
                arrivals.append(arrival)
                sent = list(part.entries)
                rescue.away.update(sent)
                for entry in sent:
                    self._unsent.discard(entry)
                self._flying[part] = None
                link.submit(part, functools.partial(self._came, rescue, part, sent, arrival))
        await asyncio.gather(*arrivals)

    def _came(
        self, rescue: _Rescue, part: Part, sent: list[Entry], arrival: asyncio.Future[None]
    ) -> None:
        """Take note of what became of something that was sent again."""
        self._flying.pop(part, None)
        rescue.away.difference_update(sent)
        rescue.recovery.collect([part])
        if rescue.over is not None:
            rescue.recovery.give_up(rescue.over, rescue.away)
        self._arrive(rescue)
        self._release(rescue)
        _arrived(arrival)

    def _end(self, rescue: _Rescue, wire: mux.Wire | None, task: asyncio.Task[None]) -> None:
        """Settle what is left, if somebody cancels every task there is."""
        self._tasks.discard(task)
        if self._gathering.get(wire) is rescue:
            del self._gathering[wire]
        rescue.over = asyncio.CancelledError() if task.cancelled() else task.exception()
        if rescue.over is not None:
            if self._ended:
                rescue.over = _the_loop_ends()
            rescue.troubled.clear()
            rescue.recovery.give_up(rescue.over, rescue.away)
            self._arrive(rescue)
            self._release(rescue)

    def _arrive(self, rescue: _Rescue) -> None:
        """Tell of what has been settled."""
        rescue.recovery.settled()
        for entry, journey in list(rescue.journeys.items()):
            commands = commands_of([entry])
            if commands[0].outcome is not PENDING:
                del rescue.journeys[entry]
                self._unsent.discard(entry)
                for command in commands:
                    command.run_callbacks()
                journey.arrive()

    def _release(self, rescue: _Rescue) -> None:
        """Let go of what was held back behind something that is settled now, in order."""
        if rescue.troubled:  # more of it may come back
            return
        free = rescue.places - set(map(self._place_of, rescue.recovery.left()))
        if not free:
            return
        rescue.places -= free
        for place in free:
            del self._rescues[place]
        released = [one for one in rescue.held.items() if self._place_of(one[0]) in free]
        for entry, _ in released:
            del rescue.held[entry]
        for journey, together in itertools.groupby(released, lambda one: one[1]):
            # Sending what comes first may have met trouble again.
            entries = [entry for entry, _ in together if not self._hold(entry, journey)]
            self._send(entries, journey)
        for _, journey in released:
            journey.arrive()

    # ---- ending ------------------------------------------------------------------------

    async def landed(self) -> None:
        """Wait until everything that was handed over by now has landed."""
        for journey in list(self._out):
            if journey.left:
                await self._wire.nodes_landed()  # where a task that was connecting was cancelled
                await journey.end()

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._ended = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._wire.disconnect()
            await asyncio.sleep(0)  # transports close their sockets in the next turn

    async def close(self) -> None:
        """Send nothing again any more, and hear no more of the loop."""
        await self._keeper.aclose()


def _the_loop_ends() -> redis.ConnectionError:
    return redis.ConnectionError("its event loop ends")


def _arrived(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)
