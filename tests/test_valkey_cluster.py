"""valkey-py's clients of clusters: what test_cluster.py asks of redis-py's holds for them, too."""

from __future__ import annotations

from typing import Any

import pytest

import autobatch
from autobatch import instrument
from autobatch.errors import CrossSlot, NotSent, OutcomeUnknown
from autobatch.testing import Cut
from clusters import Cluster
from looping import in_loop
from test_cluster import (
    A,
    B,
    C,
    Way,
    both_ways,
    slot_of,
    test_a_killed_primary_costs_no_more_than_its_own_commands,
    test_a_lost_node_fails_its_own_commands_alone,
    test_a_node_that_refuses_for_good_fails_its_own_commands,
    test_a_read_whose_reply_was_lost_is_sent_again,
    test_a_write_whose_reply_was_lost_is_sent_again_only_if_asked_for,
    test_an_unseen_error_surfaces_at_the_end_of_the_scope,
    test_what_a_node_refuses_for_now_is_sent_again_in_order,
)

valkey = pytest.importorskip("valkey")

import valkey.asyncio.retry  # noqa: E402, F811
import valkey.backoff  # noqa: E402
import valkey.retry  # noqa: E402

from autobatch.valkey import AsyncValkeyCluster, ValkeyCluster  # noqa: E402

__all__ = [  # collected here once more, with this module's `way`
    "test_a_killed_primary_costs_no_more_than_its_own_commands",
    "test_a_lost_node_fails_its_own_commands_alone",
    "test_a_node_that_refuses_for_good_fails_its_own_commands",
    "test_a_read_whose_reply_was_lost_is_sent_again",
    "test_a_write_whose_reply_was_lost_is_sent_again_only_if_asked_for",
    "test_an_unseen_error_surfaces_at_the_end_of_the_scope",
    "test_what_a_node_refuses_for_now_is_sent_again_in_order",
]


class ValkeyWay(Way):
    """With clients of valkey-py's."""

    def __init__(self, cluster: Cluster, *, asynchronous: bool) -> None:
        super().__init__(cluster, asynchronous=asynchronous)
        self.batching_type = AsyncValkeyCluster if asynchronous else ValkeyCluster
        self.plain_type = (valkey.asyncio if asynchronous else valkey).ValkeyCluster

    def options(self, **options: Any) -> dict[str, Any]:
        """As valkey-py says it: how often to try again is an option of its own."""
        options = super().options(**options)
        times = options["retry"].get_retries()
        library = valkey.asyncio.retry if self.asynchronous else valkey.retry
        options["retry"] = library.Retry(valkey.backoff.NoBackoff(), times)
        return options | {"cluster_error_retry_attempts": times}


@pytest.fixture(params=["sync", "asyncio"])
def way(request, cluster):
    return ValkeyWay(cluster, asynchronous=request.param == "asyncio")


CALLS = {
    "get": lambda c: c.get(A),
    "set": lambda c: c.set(B, "x"),
    "wrong type": lambda c: c.lpush(B, 1),
    "delete": lambda c: c.delete(A, B, "missing"),
    "exists": lambda c: c.exists(A, B),
    "dbsize": lambda c: c.dbsize(),
    "ping": lambda c: c.ping(),
    "ping of all": lambda c: c.ping(target_nodes="all"),
    "keys": lambda c: c.keys("missing*"),
    "mget": lambda c: c.mget("{t}a", "{t}b"),
    "mget of slots": lambda c: c.mget_nonatomic(A, B, C),
    "script": lambda c: c.eval("return redis.call('SET', KEYS[1], 1)", 1, A),
    "hash": lambda c: c.hset(A, mapping={"f": "v"}),
    "hgetall": lambda c: c.hgetall("missing"),
    "smembers": lambda c: c.smembers("missing"),
    "zrange": lambda c: c.zrange("missing", 0, -1, withscores=True),
    "cluster": lambda c: c.cluster_keyslot(A),
}


@pytest.mark.parametrize("name", CALLS)
@both_ways
async def test_values_and_errors_are_valkey_pys(way, cluster, name):
    """Plain, batched, and outside a scope."""
    plain, client = await way.plain(), await way.client()
    cluster.node(cluster.owner(slot_of(A))).set(A, "a")
    seen = [told(await way.outcome(lambda: CALLS[name](plain)))]
    cluster.flush()
    cluster.node(cluster.owner(slot_of(A))).set(A, "a")
    async with way.batch():
        seen.append(told(await way.outcome(lambda: CALLS[name](client))))
    cluster.flush()
    cluster.node(cluster.owner(slot_of(A))).set(A, "a")
    seen.append(told(await way.outcome(lambda: CALLS[name](client))))
    assert seen == [seen[0]] * 3


def told(outcome):
    """A value, or which of valkey-py's errors it is."""
    if isinstance(outcome, Exception):
        kinds = [k for k in type(outcome).__mro__ if k.__module__ == "valkey.exceptions"]
        return kinds[-1], str(outcome)
    return type(outcome), outcome


@both_ways
async def test_it_is_one_round_trip_to_all_nodes(way, cluster):
    """Of a subclass of valkey-py's client; the twin of one that exists."""
    client = await way.opened(autobatch.wrap(await way.plain()))
    assert isinstance(client, way.plain_type)
    assert isinstance(client, way.batching_type)
    async with way.batch() as scope:
        futures = [client.incr(key) for key in (A, B, C, A)]
        assert await way.look_at_all(futures) == [1, 1, 1, 2]
    assert scope.stats.commands == 4
    assert scope.stats.exchanges == 3
    assert [cluster.proxies[port].names for port in cluster.primaries] == [
        [["INCRBY", "INCRBY"]],
        [["INCRBY"]],
        [["INCRBY"]],
    ]


@both_ways
async def test_a_moved_slot_and_one_on_its_way(way, cluster):
    """Only what was redirected is sent again; a new node may be the target."""
    client = await way.client()
    source = cluster.owner(slot_of(A))
    target = next(port for port in cluster.primaries if port != source)
    await way.look(client.set(A, 1))
    await way.in_background(lambda: cluster.begin_migration(slot_of(A), target))
    await way.in_background(lambda: cluster.move_keys(slot_of(A), target, [A]))
    cluster.reset_counts()
    async with way.batch():
        assert await way.look_at_all([client.incr(A), client.set(B, 1)]) == [2, True]  # ASK
    assert "ASKING" in cluster.proxies[target].command_names
    await way.in_background(lambda: cluster.end_migration(slot_of(A), target))
    async with way.batch():
        assert await way.look_at_all([client.incr(A), client.set(B, 1)]) == [3, True]  # MOVED
    cluster.reset_counts()
    assert await way.look(client.incr(A)) == 4
    assert cluster.proxies[source].command_names == []


@both_ways
async def test_errors_are_valkey_pys(way, cluster):
    """At the call, of the wire, and of an atomic block."""
    client = await way.client()
    async with way.batch():
        error = await way.outcome(lambda: client.mget(A, B))
        assert isinstance(error, CrossSlot)
        assert isinstance(error, valkey.exceptions.ValkeyClusterException)
        assert isinstance(await way.outcome(lambda: client.set(A, object())), valkey.DataError)
        cluster.proxies[cluster.primaries[0]].arm(Cut(reply=0))
        error = await way.outcome(client.incr(A))
        assert isinstance(error, OutcomeUnknown)
        assert isinstance(error, valkey.ConnectionError)
    async with way.batch() as scope:
        future = client.set(A, 1)
        scope.discard()
    assert isinstance(future.exception(), NotSent)
    assert isinstance(future.exception(), valkey.ConnectionError)


@both_ways
async def test_what_takes_a_connection_or_looks_at_replies(way, cluster):
    """Transactions, pipelines, locks, scripts, the eager view."""
    client = await way.client()
    script = client.register_script("return redis.call('INCRBY', KEYS[1], 2)")
    async with way.batch():
        client.set(A, 1)
        async with way.batch(atomic=True):
            client.incr(A)
            total = client.incr(A)
        assert await way.look(total) == 3
        assert await way.look(script([A])) == 5
        client.set(A, 7)
        pipe = client.pipeline()
        pipe.get(A)
        assert await way.look(pipe.execute()) == ["7"]
        lock = client.lock("lock", timeout=9)
        assert await way.look(lock.locked()) is False
        assert await way.look(lock.acquire())
        assert await way.look(lock.locked()) is True
        await way.look(lock.release())
        client.set(A, 8)
        assert await way.look(client.eager.get(A)) == "8"


def test_instrumented(cluster):
    """valkey-py's own client batches inside scopes."""
    with instrument(), autobatch.batch() as scope:
        client = valkey.ValkeyCluster(
            host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
        )
        assert [client.set(key, 1) for key in (A, B, C)] == [True] * 3
        assert client.delete(A, B) == 2
        assert client.lock("l").locked() is False
    assert scope.stats.commands == 5
    assert type(client.get(C)) is str
    client.close()


@in_loop
async def test_instrumented_asyncio(cluster):
    """The same."""
    with instrument():
        client = valkey.asyncio.ValkeyCluster(
            host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
        )
        async with autobatch.batch() as scope:
            for key in (A, B, C):
                client.set(key, 1)
            assert await client.get(C) == "1"
            assert await client.lock("l").locked() is False
        assert scope.stats.commands == 4
        assert await client.get(C) == "1"
        await client.aclose()
