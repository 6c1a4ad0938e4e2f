"""Asyncio's wire to a cluster: one shared connection a node.

Each node's part of a batch travels on that node's shared connection. What comes back to be sent
elsewhere holds back later commands of the same slots, and only those, until it has landed: so the
order of each slot holds, and the rest of the cluster goes on.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException

from autobatch.batch import Batch, Entry, commands_of
from autobatch.command import Command, Script
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.promise import PENDING, Failure
from autobatch.wire import connection as greeted
from autobatch.wire import mux
from autobatch.wire.cluster import NOT_HERE, Leftover, Part, Recovery, Router
from autobatch.wire.tick import tick_of


class Wire:
    """Where the batches of one asyncio cluster client travel: a wire for each node.

    Attributes:
        router: which node a command goes to.
        lanes, server, retry_writes, pack, pack_fast, decodes, decode, scripts: as on a wire to
            one server.
    """

    asynchronous = True

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

    @property
    def server(self) -> object:
        names = [node.name for node in self.router.client.get_primaries()]
        return "cluster", min(names, default="")

    def problem_of(self, commands: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction, if they cannot."""
        return self.router.problem_of(commands)

    def submit(self, batch: Batch, lane: int, landed: Callable[[], None]) -> int:
        """Hand a batch over to the running loop's connections, as a wire to one server does."""
        return self._home().submit(batch, lane, landed)

    async def call(self, command: Command) -> Any:
        """Run one command on a connection that it has for itself, and return its value."""
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
            kwargs = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
            pool = redis.asyncio.ConnectionPool(
                connection_class=node.connection_class,
                max_connections=node.max_connections,
                **kwargs,
            )
            wire = mux.Wire(pool, self.lanes, retry_writes=self.retry_writes)
            self._wires[node.name] = wire
        return wire

    async def catch_up(self, left: Iterable[Leftover]) -> list[BaseException]:
        """Wait if need be, and learn what has changed; return why nothing could be learnt."""
        client = self.router.client
        pause = self.router.pause(left)
        if pause:
            await asyncio.sleep(pause)
        moved, lost = self.router.news(left)
        try:
            await client.initialize()
            if lost:
                await client.nodes_manager.initialize()
        except (redis.RedisError, RedisClusterException, OSError) as error:
            return [error]
        if lost:
            for name in self._wires.keys() - client.nodes_manager.nodes_cache.keys():
                self._wires.pop(name).abandon()
        else:
            for one in moved:
                await client.nodes_manager.move_slot(one)
        return []

    async def landed(self) -> None:
        """Wait until everything that was handed over by now in the running loop has landed."""
        await self._home().landed()

    async def nodes_landed(self) -> None:
        """Wait until everything that is on its way to a node has landed."""
        for wire in list(self._wires.values()):
            await wire.landed()

    async def close(self) -> None:
        """Close the connections of the running loop, after what is on its way has landed."""
        await self.landed()
        for wire in list(self._wires.values()):
            await wire.close()

    def abandon(self) -> None:
        """Close the connections of a client that was forgotten; from any thread."""
        for wire in list(self._wires.values()):
            wire.abandon()

    def at_home(self) -> None:
        """Nothing is to be done before a connection of a node is opened."""

    def _home(self) -> _Home:
        """Return what this wire has in the running loop."""
        tick = tick_of(asyncio.get_running_loop())
        home: _Home | None = tick.homes.get(self)
        if home is None:
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

    __slots__ = ("_landed", "lane", "left")

    def __init__(self, lane: int, landed: Callable[[], None]) -> None:
        self.lane = lane
        self.left = 1  # until everything is on its way
        self._landed = landed

    def arrive(self) -> None:
        """Note that one of what is left has arrived."""
        self.left -= 1
        if not self.left:
            self._landed()


class _Home:
    """What is on its way to a cluster in one event loop."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self._recovery = Recovery(wire.router)
        self._recovering: asyncio.Task[None] | None = None
        self._troubled: dict[str, mux.Wire] = {}  # to nodes that something came back from
        self._held_slots: set[int | None] = set()
        self._held: dict[Entry, None] = {}  # in order
        self._journeys: dict[Entry, _Journey] = {}  # of what is held, or has to be sent again

    def submit(self, batch: Batch, lane: int, landed: Callable[[], None]) -> int:
        journey = _Journey(lane, landed)
        entries, batch.entries = batch.entries, []
        if not self._wire.router.client.nodes_manager.slots_cache:
            self._take_back(journey, [(entry, None, False) for entry in entries])
            entries = []
        elif self._held_slots:
            entries = [entry for entry in entries if not self._hold(entry, journey)]
        parts = self._send(entries, journey, usual=batch.usual)
        journey.arrive()
        return parts

    def _hold(self, entry: Entry, journey: _Journey) -> bool:
        if self._wire.router.slot_of(entry) not in self._held_slots:
            return False
        journey.left += 1
        self._journeys[entry] = journey
        self._held[entry] = None
        return True

    def _send(self, entries: list[Entry], journey: _Journey, *, usual: bool = False) -> int:
        router = self._wire.router
        divided, stranded = router.divide(entries, usual=usual)
        if stranded:
            self._take_back(journey, [(entry, cause, False) for entry, cause in stranded])
        count = 0
        for node, of_node in divided:
            wire = self._wire.wire_to(node)
            link = wire.at_home().link(journey.lane % self._wire.lanes)
            for part in Part(wire, of_node, router, node, usual=usual).portions(mux.PORTION):
                count += 1
                journey.left += 1
                link.submit(part, functools.partial(self._part_landed, part, journey))
        return count

    def _part_landed(self, part: Part, journey: _Journey) -> None:
        if part.entries:
            self._troubled[part.node.name] = part.wire
            self._take_back(journey, part.leftovers())
        journey.arrive()

    def _take_back(
        self, journey: _Journey, left: list[tuple[Entry, BaseException | None, bool]]
    ) -> None:
        for entry, cause, sent in left:
            journey.left += 1
            self._journeys[entry] = journey
            self._held_slots.add(self._wire.router.slot_of(entry))
            self._recovery.add(entry, cause, sent=sent)
        if self._loop.is_closed() or any(isinstance(cause, mux.LoopEnds) for _, cause, _ in left):
            self._give_up(redis.ConnectionError("the event loop ends"))
        elif self._recovering is None:
            self._recovering = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        try:
            await self._send_again()
        except BaseException as error:  # somebody cancels every task there is
            self._give_up(error)
            raise
        finally:
            self._recovering = None
            self._release()

    async def _send_again(self) -> None:
        recovery = self._recovery
        while True:
            # What was written behind it comes back, too, and has to come after it.
            while self._troubled:
                _, wire = self._troubled.popitem()
                await wire.landed()
            left = recovery.take()
            self._arrive()
            if not left:
                return
            for error in await self._wire.catch_up(left):
                for one in left:
                    recovery.add(one.entry, error)
                break
            else:
                await self._send_once_more(left)

    async def _send_once_more(self, left: list[Leftover]) -> None:
        divided, stranded = self._wire.router.divide_again(left)
        for entry, cause in stranded:
            self._recovery.add(entry, cause)
        parts = []
        arrivals = []
        for node, entries, ask in divided:
            wire = self._wire.wire_to(node)
            link = wire.at_home().link(0)
            for part in Part(wire, entries, self._wire.router, node, ask=ask).portions(mux.PORTION):
                arrival = self._loop.create_future()
                link.submit(part, functools.partial(_arrived, arrival))
                parts.append(part)
                arrivals.append(arrival)
        try:
            await asyncio.gather(*arrivals)
        finally:
            self._recovery.settled()
            self._recovery.collect(parts)
            self._arrive()

    def _arrive(self) -> None:
        """Tell of what has been settled."""
        for entry, journey in list(self._journeys.items()):
            commands = commands_of([entry])
            if commands[0].outcome is not PENDING:
                del self._journeys[entry]
                for command in commands:
                    command.run_callbacks()
                journey.arrive()

    def _release(self) -> None:
        """Let go of what was held back meanwhile, in order."""
        held, self._held = self._held, {}
        self._held_slots.clear()
        for journey, entries in itertools.groupby(held, self._journeys.__getitem__):
            together = list(entries)
            # Sending what comes first may have met trouble again.
            self._send([entry for entry in together if not self._hold(entry, journey)], journey)
            for entry in together:
                if entry not in self._held:
                    del self._journeys[entry]
                journey.arrive()

    def _give_up(self, error: BaseException) -> None:
        self._recovery.give_up(error)
        self._arrive()

    async def landed(self) -> None:
        """Wait until everything that was handed over by now has landed."""
        await self._wire.nodes_landed()
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
            await self._wire.nodes_landed()


def _arrived(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)
