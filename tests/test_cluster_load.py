"""A cluster under load while it changes and breaks: nothing is lost, applied twice or mixed up.

The load, the trouble and the books are `soak.cluster`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import TryAgainError
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Clog, Cut, Hold, HoldRequests
from autobatch.wire.cluster import Part
from clusters import Cluster, eventually
from looping import in_loop, tidy
from soak.cluster import (
    PATIENCE,
    TAGS,
    TROUBLES,
    Report,
    connections_break,
    judge,
    no_connection_is_left,
    options,
    slot_of,
    with_tasks,
    with_threads,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with Cluster(proxied=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    shared_cluster.reset()
    return shared_cluster


# ---- trouble under load --------------------------------------------------------------------

with_tidy_tasks = functools.partial(with_tasks, run=lambda work: asyncio.run(tidy(work)))


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("under_load", [with_threads, with_tidy_tasks], ids=["threads", "tasks"])
def test_under_load_nothing_is_lost_doubled_or_mixed_up(under_load, trouble, cluster):
    """But for what the trouble itself makes impossible, of which the client is told."""
    expected, more = TROUBLES[trouble]
    load = under_load(cluster, trouble, **more)
    assert judge(load, cluster, expected=expected) == []
    assert eventually(lambda: no_connection_is_left(cluster))
    report = Report()
    report.add(load)
    assert report.events.total() > 0
    assert set(report.outcomes) >= {"value"}


@pytest.mark.parametrize("under_load", [with_threads, with_tidy_tasks], ids=["threads", "tasks"])
def test_the_books_show_writes_that_were_sent_again(under_load, cluster):
    """With `retry_writes` a command runs at least once: here, now and then twice."""
    _, more = TROUBLES[connections_break]
    load = under_load(cluster, connections_break, retry_writes=True, **more)
    found = judge(load, cluster)
    assert {text.partition(":")[0] for text in found} >= {"doubled"}


def test_the_books_show_replies_that_were_mixed_up(cluster, monkeypatch):
    settle = Part.settle

    def swapped(self, replies):
        settle(self, [*replies[-2:], *replies[:-2]] if len(replies) == 5 else replies)

    monkeypatch.setattr(Part, "settle", swapped)
    load = with_threads(cluster, lambda _, load: load.advance())
    assert {text.partition(":")[0] for text in judge(load, cluster)} & {"mixed up", "failed"}


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
        hold = Clog(0)
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
