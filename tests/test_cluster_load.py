"""A cluster under load while it changes and breaks: nothing is lost, applied twice or mixed up.

Threads with a synchronous client, or tasks with an asyncio one, call in scopes what leaves traces:
counters, lists of numbered tokens, values that nobody else writes. Meanwhile slots move, replicas
take over, nodes come and go, connections break. Then the books are held against the cluster.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, RedisClusterException, TryAgainError
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Cut, Hold, HoldRequests, Reset, Swallow
from clusters import SLOTS, Cluster, eventually
from looping import in_loop, tidy

pytestmark = pytest.mark.server

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


def tag_of(slots: tuple[int, int], number: int) -> str:
    """A hash tag whose slot is among some."""
    found = (
        tag
        for tag in map("{{{}}}".format, itertools.count())
        if slots[0] <= key_slot(tag[1:-1].encode()) <= slots[1]
    )
    return next(itertools.islice(found, number, None))


# Two of each primary.
TAGS = [tag_of(slots, number) for number in range(2) for slots in SLOTS]


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with Cluster(proxied=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    shared_cluster.reset()
    return shared_cluster


def slot_of(tag: str) -> int:
    return key_slot(tag[1:-1].encode())


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
        return self.future.exception()

    @property
    def value(self) -> Any:
        return autobatch.unwrap(self.future)

    @property
    def was_refused(self) -> bool:
        """Whether it certainly did not run."""
        return isinstance(self.error, NotSent | redis.ResponseError)


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
    """

    def __init__(self) -> None:
        self.rounds: list[list[Round]] = [[] for _ in range(WORKERS)]
        self._count = 0
        self._progress = threading.Condition()
        self._lasts = True

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


def with_threads(cluster: Cluster, trouble: Trouble, **more: Any) -> Load:
    load = Load()

    def work(worker: int) -> None:
        for one in load.plan(client, worker):
            # What nobody has looked at is raised at the end: the books look at it.
            with contextlib.suppress(redis.RedisError, RedisClusterException), autobatch.batch():
                needed = one.first_half()
                needed.error  # forces it
                one.second_half()

    threads = our_threads()
    with autobatch.RedisCluster(**options(cluster, Retry, **more)) as client:
        with ThreadPoolExecutor(WORKERS + 1) as pool:
            jobs = [pool.submit(work, worker) for worker in range(WORKERS)]
            jobs.append(pool.submit(load.suffer, trouble, cluster))
        for job in jobs:
            job.result()
        for node in client.get_nodes():
            if node.redis_connection is not None:
                assert not node.redis_connection.connection_pool._in_use_connections
    assert our_threads() == threads
    return load


def with_tasks(cluster: Cluster, trouble: Trouble, **more: Any) -> Load:
    load = Load()

    async def work(client: Any, worker: int) -> None:
        for one in load.plan(client, worker):
            with contextlib.suppress(redis.RedisError, RedisClusterException):
                async with autobatch.batch():
                    needed = one.first_half()
                    with contextlib.suppress(redis.RedisError, RedisClusterException):
                        await needed.future
                    # The rest of the first half may be on its way still.
                    one.second_half()

    async def run() -> None:
        client = autobatch.asyncio.RedisCluster(**options(cluster, AsyncRetry, **more))
        await client.ping()
        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(work(client, worker))
            group.create_task(asyncio.to_thread(load.suffer, trouble, cluster))
        await client.aclose()

    asyncio.run(tidy(run()))
    return load


everyhow = pytest.mark.parametrize("under_load", [with_threads, with_tasks])


# ---- the books ---------------------------------------------------------------------------


def judge(
    load: Load,
    cluster: Cluster,
    *,
    expected: Callable[[Call], bool] = lambda _: False,
    lossy: Callable[[str], bool] = lambda _: False,
) -> None:
    """Hold what the workers were told against what the cluster has.

    Args:
        load: the work.
        cluster: where it was done.
        expected: whether a call may have failed as it did.
        lossy: whether the cluster itself may have lost what was acknowledged of a tag.
    """
    calls = [[call for one in rounds for call in one.calls] for rounds in load.rounds]
    for call in itertools.chain(*calls):
        assert call.future.done(), call.kind
        if call.error is not None and not (ASKING_BREAKS and is_unknown(call)):
            assert expected(call), (call.kind, call.tag, call.error)
    with cluster.client(decode_responses=True) as plain:
        for tag in TAGS:
            of_tag = [[call for call in own if call.tag == tag] for own in calls]
            judge_list(of_tag, plain.lrange(f"{tag}:list", 0, -1), lossy=lossy(tag))
            judge_counter(of_tag, int(plain.get(f"{tag}:count") or 0), lossy=lossy(tag))
    for worker, own in enumerate(calls):
        judge_values(own, worker, lossy)


def is_unknown(call: Call) -> bool:
    return isinstance(call.error, OutcomeUnknown)


def judge_list(of_tag: list[list[Call]], tokens: list[str], *, lossy: bool) -> None:
    """Each token is there once, where its reply said, and in the order of its worker."""
    assert len(set(tokens)) == len(tokens), collections.Counter(tokens).most_common(3)
    pushed = [[call for call in own if call.kind == "push"] for own in of_tag]
    refused = {call.said for call in itertools.chain(*pushed) if call.was_refused}
    assert not refused & set(tokens)
    assert set(tokens) <= {call.said for call in itertools.chain(*pushed)}
    for own in pushed:
        done = [call for call in own if call.error is None]
        if not lossy:
            assert [tokens[call.value - 1 :][:1] for call in done] == [[call.said] for call in done]
        there = {call.said for call in done}
        in_order = [call.said for call in done if call.said in tokens]
        assert [token for token in tokens if token in there] == in_order


def judge_counter(of_tag: list[list[Call]], count: int, *, lossy: bool) -> None:
    """Each call has counted once, if at all, and those of a worker one after the other."""
    counted = [[call for call in own if call.kind == "count"] for own in of_tag]
    assert count <= sum(not call.was_refused for call in itertools.chain(*counted))
    if lossy:
        return
    values = [[call.value for call in own if call.error is None] for own in counted]
    told = sorted(itertools.chain(*values))
    assert len(set(told)) == len(told) <= count
    assert max(told, default=0) <= count
    assert values == [sorted(own) for own in values]


def judge_values(calls: list[Call], worker: int, lossy: Callable[[str], bool]) -> None:
    """Each value that was read is the one that was written last, of the same worker and key."""
    possible: dict[str, set[str | None]] = collections.defaultdict(lambda: {None})
    unknown: dict[str, set[str | None]] = collections.defaultdict(set)  # may arrive yet
    for call in calls:
        key = f"{call.tag}:{call.kind.rpartition(' ')[2]}"
        if not call.kind.startswith("set"):
            for read, value in values_of(call):
                assert value in possible[read], (worker, read, value)
        elif isinstance(call.error, OutcomeUnknown):
            unknown[key].add(call.said)
            possible[key].add(call.said)
        elif call.error is None:
            earlier = possible[key] if lossy(call.tag) else unknown[key]
            possible[key] = {call.said} | earlier


def values_of(call: Call) -> list[tuple[str, str | None]]:
    """What a call has read, each with whose value it is."""
    if call.error is not None:
        return []
    if call.kind == "get own":
        return [(f"{call.tag}:own", call.value)]
    if call.kind == "get pair":
        assert len(set(call.value)) == 1
        return [(f"{call.tag}:pair", call.value[0])]
    if call.kind == "get all":
        return [(f"{tag}:own", value) for tag, value in zip(TAGS, call.value, strict=True)]
    if call.kind == "delete":
        assert call.value <= call.said
    return []


# ---- the trouble -------------------------------------------------------------------------


def slots_move_back_and_forth(cluster: Cluster, load: Load) -> None:
    for tag, to in zip(TAGS[:2], cluster.primaries[1:], strict=True):
        home = cluster.owner(slot_of(tag))
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


def replicas_take_over(cluster: Cluster, load: Load) -> None:
    primary = cluster.primaries[0]
    (replica,) = cluster.replicas_of(primary)
    for port in (replica, primary):
        load.advance()
        cluster.failover(port)
    load.advance()


def a_primary_is_killed(cluster: Cluster, load: Load) -> None:
    primary = cluster.primaries[0]
    (replica,) = cluster.replicas_of(primary)
    load.advance()
    cluster.kill(primary)
    cluster.failover(replica)
    load.advance()
    cluster.restart(primary)
    cluster.wait_until_ok()
    load.advance()


def a_node_comes_and_goes(cluster: Cluster, load: Load) -> None:
    home = cluster.primaries[0]
    new = cluster.add_node()
    for target in (new, home):
        move_slowly(cluster, load, slot_of(TAGS[0]), target)
    cluster.remove_node(new)
    load.advance()


def connections_break(cluster: Cluster, load: Load) -> None:
    rng = random.Random(5)
    proxies = list(cluster.proxies.values())
    for _ in range(8):
        hold = Hold()
        faults = [Cut(request=rng.randrange(2000)), Cut(reply=rng.randrange(2000)), hold]
        faults += [Reset(request=rng.randrange(2000)), Reset(reply=rng.randrange(2000)), Swallow()]
        rng.shuffle(faults)
        for proxy in proxies:
            proxy.arm(*faults[:2])
        load.advance(3)
        hold.released.set()
        rng.choice(proxies).disconnect()
        load.advance(3)
    for proxy in proxies:
        proxy.arm()


def has_keys_at_both_ends(call: Call) -> bool:
    """Whether nobody could run it, as long as the slot was half moved."""
    return call.kind.endswith("pair") and isinstance(call.error, TryAgainError | AskError)


@everyhow
def test_slots_that_move_lose_nothing(under_load, cluster):
    load = under_load(cluster, slots_move_back_and_forth)
    judge(load, cluster, expected=has_keys_at_both_ends)
    assert eventually(lambda: no_connection_is_left(cluster))


@everyhow
def test_replicas_that_take_over_lose_nothing(under_load, cluster):
    load = under_load(cluster, replicas_take_over)
    judge(load, cluster)
    assert eventually(lambda: no_connection_is_left(cluster))


@everyhow
def test_a_killed_primary_loses_no_more_than_its_replica_lacked(under_load, cluster):
    """Replication is asynchronous: what was acknowledged is checked on the other nodes only."""
    doomed = {tag for tag in TAGS if cluster.owner(slot_of(tag)) == cluster.primaries[0]}
    load = under_load(cluster, a_primary_is_killed)
    judge(load, cluster, expected=is_unknown, lossy=lambda tag: tag in doomed)
    assert eventually(lambda: no_connection_is_left(cluster))


@everyhow
def test_a_node_that_comes_and_goes_loses_nothing(under_load, cluster):
    load = under_load(cluster, a_node_comes_and_goes)
    judge(load, cluster, expected=has_keys_at_both_ends)
    assert eventually(lambda: no_connection_is_left(cluster))


@everyhow
def test_connections_that_break_lose_no_more_than_replies(under_load, cluster):
    load = under_load(cluster, connections_break, socket_timeout=TIMEOUT)
    judge(load, cluster, expected=is_unknown)
    assert eventually(lambda: no_connection_is_left(cluster))


# ---- a connection that is cut at each byte -------------------------------------------------

BATCH_TAGS = TAGS[:3]  # one a node; the first is on the node that is cut


def call_batch(client: Any, token: str) -> list[list[Any]]:
    """Call the same of each node."""
    return [
        [
            client.incr(f"{tag}:count"),
            client.get(f"{tag}:read"),
            client.rpush(f"{tag}:list", token),
            client.get(f"{tag}:read"),
        ]
        for tag in BATCH_TAGS
    ]


def batch_in_thread(cluster: Cluster, tokens: Iterator[str]) -> Iterator[list[list[Any]]]:
    with autobatch.RedisCluster(**options(cluster, Retry)) as client:
        for token in tokens:
            with contextlib.suppress(OutcomeUnknown), autobatch.batch():
                futures = call_batch(client, token)
            yield futures


def batch_in_loop(cluster: Cluster, tokens: Iterator[str]) -> Iterator[list[list[Any]]]:
    async def call(token: str) -> list[list[Any]]:
        with contextlib.suppress(OutcomeUnknown):
            async with autobatch.batch():
                futures = call_batch(client, token)
        return futures

    async def connect() -> Any:
        client = autobatch.asyncio.RedisCluster(**options(cluster, AsyncRetry))
        await client.ping()
        return client

    with asyncio.Runner() as runner:
        client = runner.run(connect())
        for token in tokens:
            yield runner.run(tidy(call(token)))
        runner.run(client.aclose())


CUTS = [{"request": count} for count in range(0, 190, 7)]
CUTS += [{"reply": count} for count in range(30)]


@pytest.mark.parametrize("batches", [batch_in_thread, batch_in_loop])
def test_a_node_that_is_cut_at_any_byte_harms_no_other_and_runs_nothing_twice(batches, cluster):
    proxy = cluster.proxies[cluster.primaries[0]]
    nodes = {tag: cluster.node(port) for tag, port in zip(BATCH_TAGS, cluster.primaries)}
    for tag, node in nodes.items():
        node.set(f"{tag}:read", tag)

    def tokens() -> Iterator[str]:
        for cut in CUTS:
            proxy.arm(Cut(**cut))
            yield str(cut)

    errors = 0
    before = dict.fromkeys(BATCH_TAGS, (0, 0))
    for futures, cut in zip(batches(cluster, tokens()), CUTS, strict=True):
        for tag, (count, read, push, again) in zip(BATCH_TAGS, futures, strict=True):
            assert (read.value, again.value) == (tag, tag), cut
            counted, pushed = before[tag]
            now = int(nodes[tag].get(f"{tag}:count") or 0), nodes[tag].llen(f"{tag}:list")
            for future, old, new in ((count, counted, now[0]), (push, pushed, now[1])):
                if future.exception() is None:
                    assert (future.value, new) == (old + 1, old + 1), cut
                else:
                    assert tag == BATCH_TAGS[0]
                    assert isinstance(future.exception(), OutcomeUnknown)
                    assert new in {old, old + 1}, cut
                    errors += 1
            before[tag] = now
    assert 0 < errors < 2 * len(CUTS)


# ---- order, cancellation, ends ---------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected(cluster: Cluster, **more: Any) -> AsyncIterator[Any]:
    """An asyncio client that knows the cluster and is connected to each primary."""
    client = autobatch.asyncio.RedisCluster(**options(cluster, AsyncRetry, **more))
    await asyncio.gather(*[client.get(f"{tag}:nothing") for tag in BATCH_TAGS])
    yield client
    await client.aclose()


async def move(cluster: Cluster, tag: str, to: int) -> None:
    await asyncio.to_thread(cluster.migrate_slot, slot_of(tag), to)


async def happened(signal: threading.Event) -> None:
    assert await asyncio.to_thread(signal.wait, PATIENCE)


def cancel_all_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@in_loop
async def test_what_comes_later_does_not_overtake_what_is_on_its_way_to_the_old_node(cluster):
    """The client learns that a slot has moved while the old node has not looked at a command."""
    first, second, third = cluster.primaries
    slow, moved, other = TAGS[:3]
    async with connected(cluster, reinitialize_steps=1) as client:
        hold = HoldRequests()
        cluster.proxies[first].arm(hold)
        async with autobatch.batch():
            sizes = [client.rpush(f"{slow}:list", "a")]
            await client.get(f"{other}:nothing")
            await happened(hold.requested)
            await move(cluster, slow, second)
            await move(cluster, moved, third)
            await client.get(f"{moved}:nothing")  # so the client asks for the whole map
            assert client.get_node_from_key(slow[1:-1]).port == second
            sizes.append(client.rpush(f"{slow}:list", "b"))
            await client.get(f"{other}:nothing")
            await client.get(f"{TAGS[4]}:nothing")  # of the new node
            hold.released.set()
            assert [await size for size in sizes] == [1, 2]
        assert await client.lrange(f"{slow}:list", 0, -1) == ["a", "b"]


@in_loop
async def test_what_comes_later_does_not_overtake_though_nobody_served_the_slot_meanwhile(cluster):
    first, second, third = cluster.primaries
    slot, slow, moved, other = slot_of(TAGS[0]), f"{TAGS[0]}:list", TAGS[1], f"{TAGS[2]}:nothing"

    def tell(port: int, *words: object) -> None:
        with contextlib.suppress(redis.ResponseError):  # a node may have heard of it already
            cluster.node(port).execute_command("CLUSTER", *words)

    def take_away() -> None:
        for port in cluster.ports:
            cluster.node(port).config_set("cluster-require-full-coverage", "no")
            tell(port, "DELSLOTS", slot)

    def give_to_second() -> None:
        tell(second, "ADDSLOTS", slot)
        name = cluster.node(second).execute_command("CLUSTER MYID")
        for port in (first, third):
            tell(port, "SETSLOT", slot, "NODE", name)

    kwargs = {"reinitialize_steps": 1, "require_full_coverage": False}
    async with connected(cluster, **kwargs) as client:
        hold = HoldRequests()
        cluster.proxies[first].arm(hold)
        async with autobatch.batch():
            early = client.rpush(slow, "early")
            await client.get(other)
            await happened(hold.requested)
            await move(cluster, moved, third)
            await asyncio.to_thread(take_away)
            await client.get(f"{moved}:nothing")  # so the client asks for the whole map
            assert slot not in client.nodes_manager.slots_cache
            late = client.rpush(slow, "late")
            await client.get(other)
            await asyncio.to_thread(give_to_second)
            await client.nodes_manager.initialize()
            client.get(f"{TAGS[4]}:nothing")
            await client.get(other)
            assert client.get_node_from_key(slow).port == second
            hold.released.set()
            assert (await early, await late) == (1, 2)


@in_loop
@pytest.mark.parametrize("retry_writes", [False, True], ids=["a read", "a write"])
async def test_what_was_not_written_yet_does_not_overtake_what_a_broken_connection_has_lost(
    cluster, retry_writes
):
    """The node takes no more, so what is called last waits when the connection breaks."""
    first = cluster.primaries[0]
    slow, other = f"{TAGS[0]}:list", f"{TAGS[2]}:nothing"
    cluster.node(first).rpush(slow, "old")
    async with connected(cluster, retry_writes=retry_writes) as client:
        hold = HoldRequests()
        cluster.proxies[first].arm(hold)
        async with autobatch.batch():
            lost = client.rpush(slow, "lost") if retry_writes else client.lrange(slow, 0, -1)
            await client.get(other)
            filler = client.set(f"{TAGS[0]}:filler", bytes(30_000_000))
            await client.get(other)
            late = client.rpush(slow, "late")
            await client.get(other)
            await happened(hold.requested)
            await asyncio.to_thread(cluster.proxies[first].disconnect)
            with contextlib.suppress(OutcomeUnknown):
                await filler
            expected: tuple[Any, int] = (2, 3) if retry_writes else (["old"], 2)
            assert (await lost, await late) == expected
        kept = ["old", "lost", "late"] if retry_writes else ["old", "late"]
        assert await client.lrange(slow, 0, -1) == kept


@in_loop
async def test_a_node_that_does_not_answer_holds_up_nothing_of_other_nodes(cluster):
    """Two slots have moved away from one node, one of them to a node that is silent."""
    first, _, third = cluster.primaries
    to_silent, to_other = TAGS[1], TAGS[4]
    async with connected(cluster) as client:
        await move(cluster, to_silent, first)
        await move(cluster, to_other, third)
        hold = Hold()
        cluster.proxies[first].arm(hold)
        late, count = client.incr(f"{to_silent}:count"), client.incr(f"{to_other}:count")
        assert await count == 1
        await happened(hold.replied)
        async with autobatch.batch():
            assert await client.incr(f"{to_other}:count") == 2
            held = client.incr(f"{to_other}:count")
        assert held.value == 3
        assert not late.done()
        hold.released.set()
        assert await late == 1


@in_loop
async def test_who_cancels_all_tasks_is_told_the_truth_of_what_is_sent_again(cluster):
    """It has run by then, and what was held back behind it still does."""
    second = cluster.primaries[1]
    async with connected(cluster) as client:
        await move(cluster, TAGS[0], second)
        hold = Hold()
        cluster.proxies[second].arm(hold)
        async with autobatch.batch():
            counts = [client.incr(f"{TAGS[0]}:count")]
            await client.get(f"{TAGS[2]}:nothing")
            await happened(hold.replied)
            counts.append(client.incr(f"{TAGS[0]}:count"))
            await client.get(f"{TAGS[2]}:nothing")
            cancel_all_others()
            await asyncio.sleep(0)
            hold.released.set()
            assert [await count for count in counts] == [1, 2]


@in_loop
async def test_who_cancels_all_tasks_before_anything_was_sent_again_leaves_nothing_open(cluster):
    second = cluster.primaries[1]
    async with connected(cluster) as client:
        await move(cluster, TAGS[0], second)
        async with autobatch.batch():
            count = client.incr(f"{TAGS[0]}:count")
            await client.get(f"{TAGS[3]}:nothing")  # of the same node: it tells of both together
            cancel_all_others()
            with pytest.raises((NotSent, redis.ResponseError)):
                await count
            assert await client.incr(f"{TAGS[0]}:count") == 1


def pair_at_both_ends(cluster: Cluster, tag: str) -> list[str]:
    """Move half of a slot to the second primary; return keys of which each end has one."""
    keys = [f"{tag}:a", f"{tag}:b"]
    for key in keys:
        cluster.node(cluster.primaries[0]).set(key, "old")
    cluster.migrate_slot(slot_of(tag), cluster.primaries[1], stop_half_way=True)
    return keys


def end_migration(cluster: Cluster, tag: str) -> None:
    to = cluster.primaries[1]
    cluster.move_keys(slot_of(tag), to, cluster.keys_in(slot_of(tag)))
    cluster.end_migration(slot_of(tag), to)


def test_a_loop_may_end_while_something_waits_to_be_sent_again(cluster):
    """Nobody could run it meanwhile. Every Future is settled, also of what waits behind it."""
    keys = pair_at_both_ends(cluster, TAGS[0])
    client = autobatch.asyncio.RedisCluster(**options(cluster, AsyncRetry))

    async def run() -> list[Any]:
        await client.ping()
        futures = [client.mset(dict.fromkeys(keys, "new"))]
        await client.get(f"{TAGS[3]}:nothing")  # of the same node: it tells of both together
        futures += [client.get(key) for key in keys]
        await client.get(f"{TAGS[3]}:nothing")
        return futures

    pair, *behind = asyncio.run(run())
    assert isinstance(pair.exception(), TryAgainError)
    for future in behind:
        assert future.exception() is not None or future.value == "old"
    assert eventually(lambda: no_connection_is_left(cluster))
    end_migration(cluster, TAGS[0])
    assert asyncio.run(in_another_loop(client, keys)) == ["old", "old"]


async def in_another_loop(client: Any, keys: list[str]) -> list[str]:
    values = await client.mget(keys)
    await client.aclose()
    return values


@in_loop
async def test_a_read_behind_a_write_that_was_refused_sees_what_it_wrote(cluster):
    keys = pair_at_both_ends(cluster, TAGS[0])
    async with connected(cluster) as client:
        hold = Hold()
        cluster.proxies[cluster.primaries[0]].arm(hold)
        async with autobatch.batch():
            wrote = client.mset(dict.fromkeys(keys, "new"))
            await client.get(f"{TAGS[2]}:nothing")
            read = client.get(keys[1])  # in another exchange, in flight at the same time
            await client.get(f"{TAGS[2]}:nothing")
            hold.released.set()
            await asyncio.to_thread(end_migration, cluster, TAGS[0])
            assert await wrote
            assert await read == "new"


@in_loop
async def test_a_write_behind_one_that_was_refused_is_not_overwritten_by_it(cluster):
    keys = pair_at_both_ends(cluster, TAGS[0])
    async with connected(cluster) as client:
        hold = Hold()
        cluster.proxies[cluster.primaries[0]].arm(hold)
        async with autobatch.batch():
            early = client.mset(dict.fromkeys(keys, "early"))
            await client.get(f"{TAGS[2]}:nothing")
            late = client.set(keys[1], "late")
            await client.get(f"{TAGS[2]}:nothing")
            hold.released.set()
            assert await late
            await asyncio.to_thread(end_migration, cluster, TAGS[0])
            with pytest.raises(TryAgainError):
                await early
        assert await client.mget(keys) == ["old", "late"]


class Attempts(ConstantBackoff):
    """A pause; when it is asked for the third time, something happens."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__(0)
        self._left = 3
        self._then = then

    def compute(self, failures: int) -> float:
        self._left -= 1
        if not self._left:
            self._then()
        return super().compute(failures)


def lone_in_thread(cluster: Cluster, retry: tuple[Any, int], call: Callable[[Any], Any]) -> Any:
    with autobatch.RedisCluster(**options(cluster, Retry, retry=Retry(*retry))) as client:
        client.get(f"{TAGS[0]}:nothing")
        cut_off(cluster)
        with autobatch.batch():
            future = call(client)
            return future.exception() or future.value


def lone_in_loop(cluster: Cluster, retry: tuple[Any, int], call: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with connected(cluster, retry=AsyncRetry(*retry)) as client:
            cut_off(cluster)
            async with autobatch.batch() as scope:
                future = call(client)
                await scope.aflush()
                return future.exception() or future.value

    return asyncio.run(tidy(run()))


def cut_off(cluster: Cluster) -> None:
    for proxy in cluster.proxies.values():
        proxy.refuse()
        proxy.disconnect()


def accept(cluster: Cluster) -> None:
    for proxy in cluster.proxies.values():
        proxy.accept()


@pytest.mark.parametrize("run", [lone_in_thread, lone_in_loop])
def test_all_nodes_may_be_out_of_reach_for_a_moment(run, cluster):
    cluster.node(cluster.primaries[0]).set(f"{TAGS[0]}:read", "it")
    pause = Attempts(lambda: accept(cluster))
    assert run(cluster, (pause, 5), lambda client: client.get(f"{TAGS[0]}:read")) == "it"


@pytest.mark.parametrize("run", [lone_in_thread, lone_in_loop])
def test_when_retries_are_used_up_the_error_says_whether_it_was_sent(run, cluster):
    pause = ConstantBackoff(0)
    error = run(cluster, (pause, 2), lambda client: client.get(f"{TAGS[0]}:read"))
    assert isinstance(error, NotSent | OutcomeUnknown)
    accept(cluster)
    assert cluster.node(cluster.primaries[0]).ping()
