"""The clients of a cluster: what they send where, and that it means what redis-py's means.

Most tests are written once and run with both kinds of clients: see `Way`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy
from redis.crc import key_slot
from redis.exceptions import RedisClusterException
from redis.retry import Retry

import autobatch
import autobatch.asyncio
from autobatch.errors import CrossSlot, NoLoop, NotReady, NotSent, OutcomeUnknown
from autobatch.testing import Answer, Cut, Fault, Hold, Signal
from clusters import HOST, SLOTS, Cluster, eventually
from looping import PATIENCE, tidy
from programs_of_steps import keyspace, told

INCREMENT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def _key_of(first: int, last: int) -> str:
    return next(k for k in (f"key{n}" for n in itertools.count()) if first <= slot_of(k) <= last)


def slot_of(key: str) -> int:
    return key_slot(key.encode())


# A key of each of the three primaries, in their order.
KEYS = [_key_of(*slots) for slots in SLOTS]
A, B, C = KEYS


class Way:
    """How a test uses clients: synchronously, or with asyncio.

    Test functions are coroutine functions either way. With synchronous clients nothing in them
    ever waits for a loop, and there is none.
    """

    def __init__(self, cluster: Cluster, *, asynchronous: bool) -> None:
        self.cluster = cluster
        self.asynchronous = asynchronous
        self.batching_type = (autobatch.asyncio if asynchronous else autobatch).RedisCluster
        self.plain_type = (redis.asyncio if asynchronous else redis).RedisCluster
        self._stack = contextlib.AsyncExitStack()

    async def client(self, kind: Any = None, **options: Any) -> Any:
        """Return a batching client that is connected to every node; then nothing is counted."""
        return await self.opened((kind or self.batching_type)(**self.options(**options)))

    def options(self, **options: Any) -> dict[str, Any]:
        """Return the arguments of a client's constructor."""
        return (
            {"host": HOST, "port": self.cluster.primaries[0], "decode_responses": True}
            | {"retry": _retry(5), "socket_timeout": PATIENCE}
            | options
        )

    async def plain(self, **options: Any) -> Any:
        """Return redis-py's client."""
        return await self.client(self.plain_type, **options)

    async def opened(self, client: Any) -> Any:
        self._stack.push_async_callback(self._close, client)
        await self.look(client.ping(target_nodes="all"))
        self.cluster.reset_counts()
        return client

    async def _close(self, client: Any) -> None:
        await self.look(client.aclose() if self.asynchronous else client.close())

    @contextlib.asynccontextmanager
    async def batch(self, **options: Any) -> AsyncIterator[Any]:
        block = autobatch.batch(**options)
        if self.asynchronous:
            async with block as scope:
                yield scope
        else:
            with block as scope:
                yield scope

    async def flush(self) -> None:
        if self.asynchronous:
            await autobatch.asyncio.flush()
        else:
            autobatch.flush()

    async def look(self, value: Any) -> Any:
        """Return a value, forced or awaited."""
        return await value if self.asynchronous else autobatch.unwrap(value)

    async def look_at_all(self, values: list[Any]) -> list[Any]:
        return [await self.look(value) for value in values]

    async def outcome(self, value: Any) -> Any:
        """Return a value, or the error it failed with."""
        try:
            return await self.look(value() if callable(value) else value)
        except Exception as error:  # redis-py's RedisClusterException is no RedisError
            return error

    async def in_background(self, function: Callable[[], Any]) -> Any:
        """Run what blocks without blocking the loop."""
        return await asyncio.to_thread(function) if self.asynchronous else function()

    async def run(self, test: Coroutine[Any, Any, None]) -> None:
        async with self._stack:
            await test


def _retry(times: int) -> Retry:
    return Retry(NoBackoff(), times)


def both_ways(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Run a test with synchronous clients, and in a loop of its own with asyncio's."""

    @functools.wraps(test)
    def run(way: Way, *args: Any, **kwargs: Any) -> None:
        work = way.run(test(way, *args, **kwargs))
        if way.asynchronous:
            asyncio.run(tidy(work))
            gc.collect()  # what was not closed warns now, and not in another test
            return
        with contextlib.suppress(StopIteration):
            work.send(None)
            raise AssertionError("it waits for a loop")

    return run


@pytest.fixture(params=["sync", "asyncio"])
def way(request: pytest.FixtureRequest, cluster: Cluster) -> Way:
    return Way(cluster, asynchronous=request.param == "asyncio")


def sent(cluster: Cluster) -> list[list[list[str]]]:
    """What each primary was sent, exchange by exchange; nothing went to a replica."""
    names = {port: sent_to(cluster, port) for port in cluster.ports}
    primaries = [names.pop(port) for port in cluster.primaries]
    assert not any(names.values())
    return primaries


def sent_to(cluster: Cluster, port: int) -> list[list[str]]:
    return cluster.proxies[port].names


def values_of(cluster: Cluster, *keys: str) -> list[Any]:
    return [cluster.node(cluster.owner(slot_of(key))).get(key) for key in keys]


# ---- one round trip ---------------------------------------------------------------------


@both_ways
async def test_a_scope_is_one_round_trip_with_one_exchange_a_node(way, cluster):
    client = await way.client()
    async with way.batch() as scope:
        values = [call(key) for call in (client.incr, client.get, client.incr) for key in KEYS]
        assert await way.look_at_all(values) == [1, 1, 1, "1", "1", "1", 2, 2, 2]
        assert (scope.stats.commands, scope.stats.flushes) == (9, 1)
        assert (scope.stats.round_trips, scope.stats.exchanges) == (1, 3)
    assert sent(cluster) == [[["INCRBY", "GET", "INCRBY"]]] * 3


@both_ways
async def test_all_nodes_are_written_before_any_is_read(way, cluster):
    """Each node's replies are held back until the next node has its commands."""
    client = await way.client()
    holds = [Hold(), Hold(), Hold()]
    for port, hold, following in zip(cluster.primaries, holds, holds[1:] + holds[:1], strict=True):
        hold.released = following.requested
        cluster.proxies[port].arm(hold)
    async with way.batch():
        values = [client.set(key, 1) for key in KEYS]
        assert await way.look_at_all(values) == [True, True, True]
    assert sent(cluster) == [[["SET"]]] * 3


@both_ways
async def test_a_call_outside_a_scope_leaves_by_itself(way, cluster):
    client = await way.client()
    for key in KEYS:
        assert await way.look(client.incr(key)) == 1
    assert await way.look(client.delete(*KEYS)) == 3
    assert sent(cluster) == [[["INCRBY"], ["DEL"]]] * 3


def test_gathered_calls_outside_a_scope_share_an_exchange_a_node(cluster):
    async def run():
        way = Way(cluster, asynchronous=True)
        client = await way.client()
        async with way._stack:
            values = await asyncio.gather(*[client.incr(key) for key in KEYS * 3])
            assert values == [1, 1, 1, 2, 2, 2, 3, 3, 3]

    asyncio.run(tidy(run()))
    assert sent(cluster) == [[["INCRBY"] * 3]] * 3


@both_ways
async def test_a_lost_node_fails_its_own_commands_alone(way, cluster):
    client = await way.client(retry=_retry(0))
    cluster.proxies[cluster.primaries[1]].arm(Cut(reply=1), Cut(reply=1))
    async with way.batch():
        first, second, third = (client.incr(key) for key in KEYS)
        assert await way.look_at_all([first, third]) == [1, 1]
        with pytest.raises(OutcomeUnknown):
            await way.look(second)
    assert values_of(cluster, *KEYS) == ["1", "1", "1"]


# ---- where the keys are -----------------------------------------------------------------


def prepare_keys(node: redis.Redis) -> None:
    node.flushall()
    node.mset({"{k}s": "text", "{k}t": "texts"})
    node.rpush("{k}l", 3, 1, 2)
    node.zadd("{k}z", {"x": 1, "y": 2})
    node.xadd("{k}x", {"field": "value"}, id="1-1")
    node.xgroup_create("{k}x", "group", id="0")
    node.geoadd("{k}g", [13.36, 38.11, "Palermo"])


AT_REAL_POSITIONS = {
    "EVAL": lambda c: c.eval(INCREMENT, 1, "{k}n", 5),
    "EVAL of two keys": lambda c: c.eval("return KEYS", 2, "{k}1", "{k}2"),
    "XREADGROUP": lambda c: c.xreadgroup("group", "consumer", {"{k}x": ">"}, count=1),
    "OBJECT ENCODING": lambda c: c.object("ENCODING", "{k}l"),
    "BITOP": lambda c: c.bitop("OR", "{k}o", "{k}s", "{k}t"),
    "SORT STORE": lambda c: c.sort("{k}l", store="{k}o"),
    "ZUNIONSTORE": lambda c: c.zunionstore("{k}o", ["{k}z", "{k}u"]),
    "LMPOP": lambda c: c.lmpop(2, "{k}u", "{k}l", direction="LEFT"),
    "ZMPOP": lambda c: c.zmpop(1, ["{k}z"], min=True),
    "COPY": lambda c: c.copy("{k}s", "{k}o"),
    "RENAME": lambda c: c.rename("{k}s", "{k}o"),
    "GEOSEARCHSTORE": lambda c: c.geosearchstore(
        "{k}o", "{k}g", longitude=13, latitude=38, radius=99, unit="km"
    ),
    "MEMORY USAGE": lambda c: c.memory_usage("{k}s"),
    "MGET": lambda c: c.mget("{k}s", "{k}t", "{k}u"),
    "MSET": lambda c: c.mset({"{k}o": 1, "{k}p": 2}),
    "SINTERCARD": lambda c: c.sintercard(2, ["{k}u", "{k}v"]),
    "XGROUP CREATE": lambda c: c.xgroup_create("{k}x", "other"),
    "XINFO CONSUMERS": lambda c: c.xinfo_consumers("{k}x", "group"),
    "PUBLISH": lambda c: c.execute_command("PUBLISH", "{k}channel", "message"),
    "a wrong number of arguments": lambda c: c.execute_command("GET", "{k}s", "{k}t"),
    "a wrong type": lambda c: c.incr("{k}l"),
    "lower case": lambda c: c.execute_command("zcard", "{k}z"),
    "joined words": lambda c: c.execute_command("OBJECT REFCOUNT", "{k}l"),
}


@pytest.mark.parametrize("call", AT_REAL_POSITIONS.values(), ids=AT_REAL_POSITIONS)
@both_ways
async def test_a_command_goes_where_its_keys_are(way, cluster, call):
    """Batched, without asking the server for its keys; the value and the effect are redis-py's."""
    owner = cluster.owner(slot_of("{k}"))
    node = cluster.node(owner)
    seen = []
    plain, client = await way.plain(), await way.client()
    prepare_keys(node)
    seen.append((described(await way.outcome(lambda: call(plain))), keyspace(node)))
    prepare_keys(node)
    cluster.reset_counts()
    async with way.batch() as scope:
        value = await way.outcome(lambda: call(client))
        seen.append((described(value), keyspace(node)))
        if scope.stats.commands:
            assert scope.stats.round_trips == 1
    assert seen[1] == seen[0]
    assert [port for port in cluster.ports if sent_to(cluster, port)] == [owner]
    assert len(cluster.proxies[owner].command_names) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@both_ways
async def test_a_key_is_where_its_bytes_on_the_wire_are(way, cluster, encoding):
    """Synchronous connections write UTF-8 through hiredis, whatever the client reads."""
    client = await way.client(encoding=encoding, encoding_errors="replace", decode_responses=False)
    async with way.batch() as scope:
        values = [client.set(f"é{number}", number) for number in range(9)]
        assert await way.look_at_all(values) == [True] * 9
        assert scope.stats.round_trips == 1
    assert counted(cluster, "SET") == [9]


def described(value: Any) -> Any:
    return told(value) if isinstance(value, Exception) else value


@both_ways
async def test_several_such_calls_share_one_round_trip(way, cluster):
    client = await way.client()
    prepare_keys(cluster.node(cluster.owner(slot_of("{k}"))))
    async with way.batch() as scope:
        values = [
            client.bitop("OR", "{k}o", "{k}s", "{k}t"),
            client.eval(INCREMENT, 1, A, 5),
            client.object("ENCODING", "{k}l"),
            client.execute_command("PUBLISH", "channel", "message"),
            client.eval(INCREMENT, 1, C, 7),
            client.execute_command(b"STRLEN", b"{k}s"),
        ]
        assert [type(value) for value in values] == [
            autobatch.future.AsyncFuture if way.asynchronous else autobatch.Future
        ] * len(values)
        assert await way.look_at_all(values) == [5, 5, "listpack", 0, 7, 4]
        assert scope.stats.round_trips == 1


@both_ways
async def test_a_stream_is_read_where_it_is(way, cluster):
    """redis-py's own method looks at the reply, so it is forced at the call."""
    client = await way.client()
    for key in KEYS:
        await way.look(client.xadd(key, {"field": "value"}, id="1-1"))
    async with way.batch():
        for key in KEYS:
            assert await way.look(client.xread({key: 0})) == [[key, [("1-1", {"field": "value"})]]]
    assert sent(cluster) == [[["XADD"], ["XREAD"]]] * 3


@both_ways
async def test_the_server_is_asked_for_the_keys_of_a_command_that_nobody_knows(way, cluster):
    """Here only the server knows that there is no such command."""
    plain, client = await way.plain(), await way.client()
    expected = await way.outcome(lambda: plain.execute_command("UNHEARD", A))
    async with way.batch():
        value = await way.outcome(lambda: client.execute_command("UNHEARD", A))
        assert type(value) is type(expected)


# ---- several slots, several nodes ---------------------------------------------------------

MANY = [f"many{number}" for number in range(12)]

OVER_SLOTS = {
    "DEL": lambda c: c.delete(*MANY, "no such key"),
    "EXISTS": lambda c: c.exists(*MANY, MANY[0], "no such key"),
    "UNLINK": lambda c: c.unlink(*MANY),
    "TOUCH": lambda c: c.touch(*MANY),
    "mget_nonatomic": lambda c: c.mget_nonatomic(MANY, "no such key", MANY[0]),
    "mget_nonatomic of one list": lambda c: c.mget_nonatomic(MANY),
    "mset_nonatomic": lambda c: c.mset_nonatomic(dict.fromkeys(MANY, "new")),
    "DEL of nothing": lambda c: c.delete(),
    "mget_nonatomic of nothing": lambda c: c.mget_nonatomic([]),
}


@pytest.mark.parametrize("call", OVER_SLOTS.values(), ids=OVER_SLOTS)
@both_ways
async def test_a_call_over_many_slots_rides_in_the_batch(way, cluster, call):
    seen = []
    plain, client = await way.plain(), await way.client()
    for each in (plain, client):
        await way.look(plain.mset_nonatomic(dict(zip(MANY, map(str, range(12)), strict=True))))
        cluster.reset_counts()
        async with way.batch() as scope:
            value = await way.outcome(lambda c=each: call(c))
            seen.append((described(value), values_of(cluster, *MANY)))
            assert scope.stats.round_trips <= 1
    assert seen[1] == seen[0]
    assert all(len(exchanges) <= 1 for exchanges in sent(cluster))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.mget(A, B),
        lambda c: c.mset({A: 1, B: 2}),
        lambda c: c.msetnx({A: 1, B: 2}),
        lambda c: c.rename(A, B),
        lambda c: c.eval("return 1", 2, A, B),
        lambda c: c.zunionstore(A, [A, B]),
        lambda c: c.pfcount(A, B),
    ],
    ids=["MGET", "MSET", "MSETNX", "RENAME", "EVAL", "ZUNIONSTORE", "PFCOUNT"],
)
@both_ways
async def test_keys_of_several_slots_in_one_command_are_refused_at_the_call(way, cluster, call):
    plain, client = await way.plain(), await way.client()
    expected = await way.outcome(lambda: call(plain))
    assert isinstance(expected, RedisClusterException)
    cluster.reset_counts()
    for block in (way.batch(), contextlib.nullcontext()):
        async with block:
            with pytest.raises(RedisClusterException, match="same key slot"):
                call(client)
    assert sent(cluster) == [[], [], []]


NODES = {
    "DBSIZE of all": lambda c: c.dbsize(target_nodes="all"),
    "DBSIZE": lambda c: c.dbsize(),
    "KEYS": lambda c: c.keys("many*"),
    "FLUSHALL": lambda c: c.flushall(),
    "FLUSHDB": lambda c: c.flushdb(),
    "SCRIPT LOAD": lambda c: c.script_load(INCREMENT),
    "SCRIPT EXISTS": lambda c: c.script_exists("0" * 40),
    "SCRIPT FLUSH": lambda c: c.script_flush(),
    "PING": lambda c: c.ping(),
    "ECHO": lambda c: c.echo("text"),
    "CONFIG GET": lambda c: c.config_get("maxmemory"),
    "CONFIG SET": lambda c: c.config_set("maxmemory-samples", 5),
    "CONFIG GET of all": lambda c: c.config_get("maxmemory", target_nodes="all"),
    "PING of primaries": lambda c: c.ping(target_nodes="primaries"),
    "PING of replicas": lambda c: c.ping(target_nodes="replicas"),
    "PING of random": lambda c: c.ping(target_nodes="random"),
    "PING of default": lambda c: c.ping(target_nodes="default-node"),
    "ECHO to a node": lambda c: c.execute_command(
        "ECHO", "text", target_nodes=c.get_primaries()[1]
    ),
    "ECHO to a list": lambda c: c.execute_command("ECHO", "text", target_nodes=c.get_primaries()),
    "ECHO to a list of one": lambda c: c.execute_command(
        "ECHO", "text", target_nodes=c.get_primaries()[:1]
    ),
    "ECHO to a dict": lambda c: c.execute_command(
        "ECHO", "text", target_nodes={n.name: n for n in c.get_primaries()}
    ),
    "DBSIZE of a node": lambda c: c.dbsize(target_nodes=c.get_primaries()[2]),
    "KEYS of nodes": lambda c: c.keys("many*", target_nodes=c.get_primaries()[:2]),
    "an unknown flag": lambda c: c.ping(target_nodes="nonsense"),
    "no node at all": lambda c: c.ping(target_nodes=5),
    "no keys": lambda c: c.execute_command("GET"),
    "PUBSUB CHANNELS": lambda c: c.pubsub_channels(),
    "PUBSUB NUMSUB": lambda c: c.pubsub_numsub("channel"),
    "PUBSUB NUMPAT": lambda c: c.pubsub_numpat(),
    "CLUSTER KEYSLOT": lambda c: c.cluster_keyslot("text"),
    "CLUSTER COUNTKEYSINSLOT": lambda c: c.cluster_countkeysinslot(slot_of(MANY[0])),
    "CLUSTER GETKEYSINSLOT": lambda c: c.cluster_get_keys_in_slot(slot_of(MANY[0]), 9),
    "CLIENT GETNAME": lambda c: c.client_getname(),
    "COMMAND COUNT": lambda c: c.command_count(),
    "FUNCTION LIST": lambda c: c.function_list(),
    "LASTSAVE": lambda c: c.lastsave(target_nodes=c.get_primaries()[0]),
    "EVAL without keys": lambda c: c.eval("return 5", 0),
    "SCAN of a node": lambda c: c.scan(target_nodes=c.get_primaries()[0], count=99),
    "SCAN": lambda c: c.scan(count=99),
}


def comparable(value: Any) -> Any:
    if isinstance(value, list):
        return sorted(value, key=str)
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    if isinstance(value, dict):
        return {name: comparable(each) for name, each in value.items()}
    return type(value) if isinstance(value, Exception) else value


@pytest.mark.parametrize("call", NODES.values(), ids=NODES)
@both_ways
async def test_what_goes_to_certain_nodes_gives_what_redis_py_gives(way, cluster, call):
    seen = []
    plain, client = await way.plain(), await way.client()
    for each, block in ((plain, None), (client, None), (client, way.batch())):
        cluster.node(cluster.primaries[0]).config_set("maxmemory-samples", 7)
        await way.look(plain.mset_nonatomic(dict.fromkeys(MANY, "value")))
        async with block or contextlib.nullcontext():
            value = await way.outcome(lambda c=each: call(c))
            seen.append((comparable(value), values_of(cluster, *MANY)))
    assert seen == [seen[0]] * 3


@both_ways
async def test_info_is_of_the_default_node_or_of_many(way, cluster):
    plain, client = await way.plain(), await way.client()
    for options in ({}, {"target_nodes": "all"}):
        expected = await way.look(plain.info("server", **options))
        async with way.batch():
            value = await way.look(client.info("server", **options))
            assert value.keys() == expected.keys()


@both_ways
async def test_a_call_to_all_nodes_rides_in_the_batch(way, cluster):
    client = await way.client()
    async with way.batch() as scope:
        before = client.dbsize(target_nodes="primaries")
        written = [client.set(key, 1) for key in KEYS]
        after = client.dbsize(target_nodes="primaries")
        found = client.keys("*", target_nodes="primaries")
        assert await way.look_at_all([before, *written, after]) == [0, True, True, True, 3]
        assert sorted(await way.look(found)) == sorted(KEYS)
        assert scope.stats.round_trips == 1
    assert sent(cluster) == [[["DBSIZE", "SET", "DBSIZE", "KEYS"]]] * 3


@both_ways
async def test_scan_iter_finds_what_the_scope_has_called(way, cluster):
    client = await way.client()
    async with way.batch():
        for key in MANY:
            client.set(key, 1)
        if way.asynchronous:
            found = [key async for key in client.scan_iter("many*", count=3)]
        else:
            found = list(client.scan_iter("many*", count=3))
    assert sorted(found) == sorted(MANY)


# ---- atomic blocks --------------------------------------------------------------------------


@both_ways
async def test_an_atomic_block_of_one_slot_rides_in_the_batch(way, cluster):
    client = await way.client()
    async with way.batch() as scope:
        before = client.set("{t}a", 10)
        async with way.batch(atomic=True):
            left = client.decrby("{t}a", 3)
            wrong = client.lpush("{t}a", 1)
            both = client.mget("{t}a", "{t}b")
        other = client.set("other", 1)
        assert await way.look_at_all([before, left, both, other]) == [True, 7, ["7", None], True]
        assert isinstance(await way.outcome(wrong), redis.ResponseError)
        assert scope.stats.round_trips == 1
    names = sent_to(cluster, cluster.owner(slot_of("t")))
    assert len(names) == 1
    assert [name for name in names[0] if name != "SET"] == [
        *("MULTI", "DECRBY", "LPUSH", "MGET", "EXEC")
    ]


@both_ways
async def test_an_atomic_block_over_slots_is_refused_before_anything_is_sent(way, cluster):
    client = await way.client()
    async with way.batch():
        with pytest.raises(RedisClusterException) as caught:
            async with way.batch(atomic=True):
                client.set(A, 1)
                kept = client.set(B, 1)
        assert isinstance(caught.value, autobatch.errors.AutobatchError)
        for part in (A, B, "{user:1}"):
            assert part in str(caught.value)
        assert isinstance(await way.outcome(kept), NotSent)
        assert await way.look(client.get(A)) is None
    assert sent(cluster) == [[["GET"]], [], []]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.time(),
        lambda c: c.flushall(),
        lambda c: c.ping(target_nodes="primaries"),
        lambda c: c.blpop("{t}l"),
    ],
    ids=["TIME", "FLUSHALL", "target_nodes", "BLPOP"],
)
@both_ways
async def test_what_cannot_be_in_an_atomic_block_says_so_at_the_call(way, cluster, call):
    client = await way.client()
    async with way.batch():
        async with way.batch(atomic=True):
            value = client.incr("{t}a")
            with pytest.raises(autobatch.errors.AutobatchError, match="atomic block"):
                await way.look(call(client))
        assert await way.look(value) == 1


@both_ways
async def test_a_value_is_not_there_inside_its_atomic_block(way, cluster):
    client = await way.client()
    async with way.batch(atomic=True):
        value = client.incr("{t}a")
        with pytest.raises(NotReady):
            await way.look(value)
    assert sent_to(cluster, cluster.owner(slot_of("t"))) in (
        [["MULTI", "INCRBY", "EXEC"]],
        [],  # asyncio's scope has not ended its journey
    )


# ---- scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("forgotten", ["SCRIPT FLUSH", "a failover", "nothing"])
@both_ways
async def test_a_registered_script_is_known_on_every_node(way, cluster, forgotten):
    client = await way.client()
    script = client.register_script(INCREMENT)
    for expected in (1, 2):
        cluster.reset_counts()
        async with way.batch() as scope:
            values = [script(keys=[key], args=[1]) for key in KEYS]
            assert await way.look_at_all(values) == [expected] * 3
            if expected == 1 or forgotten != "a failover":
                assert scope.stats.round_trips == 1
                assert sent(cluster) == [[["EVAL"]]] * 3
        if forgotten == "SCRIPT FLUSH":
            for port in cluster.primaries:
                cluster.node(port).script_flush()
        elif forgotten == "a failover":
            (replica,) = cluster.replicas_of(cluster.primaries[0])
            await way.in_background(lambda r=replica: cluster.failover(r))


@both_ways
async def test_a_script_is_known_where_the_call_that_brings_it_along_is_refused(way, cluster):
    """The first call's slot has moved, so its node has not looked at the source."""
    client = await way.client()
    stays = next(k for k in MANY if cluster.owner(slot_of(k)) == cluster.primaries[0] and k != A)
    script = client.register_script(INCREMENT)
    target = cluster.primaries[1]
    await way.in_background(lambda: cluster.migrate_slot(slot_of(A), target))
    async with way.batch():
        values = [script(keys=[key], args=[1]) for key in (A, stays, A, stays)]
        values += [client.incr(A), client.incr(B)]
        read = client.get(stays)
        assert await way.look_at_all(values) == [1, 1, 2, 2, 3, 1]
        assert await way.look(read) == "2"


@both_ways
async def test_a_block_brings_its_script_along_if_a_call_in_front_of_it_is_refused(way, cluster):
    client = await way.client()
    stays = next(k for k in MANY if cluster.owner(slot_of(k)) == cluster.primaries[0] and k != A)
    script = client.register_script(INCREMENT)
    target = cluster.primaries[1]
    await way.in_background(lambda: cluster.migrate_slot(slot_of(A), target))
    async with way.batch():
        values = [script(keys=[A], args=[1])]
        async with way.batch(atomic=True):
            values += [script(keys=[stays], args=[1]), client.incr(stays)]
        assert await way.look_at_all(values) == [1, 1, 2]


@both_ways
async def test_a_digest_of_an_unknown_source_runs_at_once(way, cluster):
    client = await way.client()
    async with way.batch():
        with pytest.raises(redis.exceptions.NoScriptError):
            await way.look(client.evalsha("0" * 40, 1, A))
        digest = await way.look(client.script_load(INCREMENT))
        assert await way.look(client.evalsha(digest, 1, B, 5)) == 5


# ---- reading from replicas ------------------------------------------------------------------

FROM_REPLICAS = {
    "read_from_replicas": {"read_from_replicas": True},
    "round robin over replicas": {
        "load_balancing_strategy": LoadBalancingStrategy.ROUND_ROBIN_REPLICAS
    },
    "random replica": {"load_balancing_strategy": LoadBalancingStrategy.RANDOM_REPLICA},
}


@pytest.mark.filterwarnings("ignore:.*'read_from_replicas':DeprecationWarning")
@pytest.mark.parametrize("options", FROM_REPLICAS.values(), ids=FROM_REPLICAS)
@both_ways
async def test_reads_go_to_replicas_but_for_what_the_scope_has_written(way, cluster, options):
    writer, client = await way.plain(), await way.client(**options)
    for key in KEYS:
        await way.look(writer.set(key, "old"))
    for port in cluster.primaries:
        await way.in_background(lambda p=port: cluster.node(p).wait(1, 0))
    cluster.reset_counts()
    async with way.batch() as scope:
        early = client.get(A)
        client.set(A, "new")
        late, others = client.get(A), [client.get(key) for key in (B, C) * 2]
        assert await way.look_at_all([early, late, *others]) == ["old", "new", *["old"] * 4]
        again = client.get(A)  # in the next flush
        assert await way.look(again) == "new"
        assert scope.stats.round_trips == 2
    names = {port: cluster.proxies[port].command_names for port in cluster.ports}
    assert names[cluster.primaries[0]] == ["GET", "SET", "GET", "GET"]
    on_replicas = [name for port in cluster.replicas for name in names[port]]
    on_primaries = [name for port in cluster.primaries[1:] for name in names[port]]
    assert set(on_replicas + on_primaries) == {"GET"}
    # redis-py's `read_from_replicas` takes turns between all nodes of a slot.
    assert len(on_replicas) == (2 if "read_from_replicas" in options else 4)


@both_ways
async def test_another_scope_may_read_what_this_one_wrote_from_a_replica(way, cluster):
    client = await way.client(load_balancing_strategy=LoadBalancingStrategy.RANDOM_REPLICA)
    async with way.batch():
        client.set(A, 1)
        await way.flush()
    cluster.reset_counts()
    async with way.batch():
        await way.look(client.get(A))
    assert sent_to(cluster, cluster.replicas[0]) == [["GET"]]


# ---- a cluster that changes -------------------------------------------------------------------


def counted(cluster: Cluster, *names: str) -> list[int]:
    """How often each of these commands was sent to any node."""
    sent = [name for proxy in cluster.proxies.values() for name in proxy.command_names]
    return [sent.count(name) for name in names]


@both_ways
async def test_only_what_has_moved_is_sent_again(way, cluster):
    """The slot moved while the client did not look: it patches its map, and asks for nothing."""
    client = await way.client()
    source, target = cluster.primaries[:2]
    await way.in_background(lambda: cluster.migrate_slot(slot_of(A), target))
    cluster.reset_counts()
    async with way.batch() as scope:
        values = [client.rpush(key, n) for n in range(3) for key in KEYS]
        assert await way.look_at_all(values) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert await way.look(client.lrange(A, 0, -1)) == ["0", "1", "2"]
        if not way.asynchronous:
            assert scope.stats.round_trips == 3
    assert sent_to(cluster, source) == [["RPUSH"] * 3]
    assert cluster.proxies[target].command_names == ["RPUSH"] * 6 + ["LRANGE"]
    assert sent_to(cluster, cluster.primaries[2]) == [["RPUSH"] * 3]
    assert counted(cluster, "CLUSTER") == [0]


@both_ways
async def test_many_slots_that_have_moved_cost_one_question_at_most(way, cluster):
    """A failover: all slots of the old primary belong to its replica, at once."""
    client = await way.client()
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    keys = [k for k in MANY if cluster.owner(slot_of(k)) == primary]
    assert len(keys) > 1
    await way.in_background(lambda: cluster.failover(replica))
    cluster.reset_counts()
    async with way.batch():
        values = [client.rpush(key, n) for n in range(3) for key in [*keys, B]]
        expected = [n for n in (1, 2, 3) for _ in [*keys, B]]
        assert await way.look_at_all(values) == expected
    assert cluster.proxies[primary].command_names.count("RPUSH") == 3 * len(keys)
    assert counted(cluster, "CLUSTER")[0] <= 1
    assert cluster.proxies[replica].command_names.count("RPUSH") == 3 * len(keys)
    assert sent_to(cluster, cluster.owner(slot_of(B))) == [["RPUSH"] * 3]


@both_ways
async def test_a_killed_primary_costs_no_more_than_its_own_commands(way, cluster):
    client = await way.client(retry=_retry(20))
    primary, replica = cluster.primaries[0], cluster.replicas[0]

    def kill():
        cluster.kill(primary)
        cluster.failover(replica)

    await way.in_background(kill)
    cluster.reset_counts()
    async with way.batch():
        read, written = client.get(A), client.set(B, 1)
        assert await way.look_at_all([read, written]) == [None, True]
        assert await way.look(client.set(A, 1)) is True
    assert values_of(cluster, A, B) == ["1", "1"]
    assert sent_to(cluster, cluster.owner(slot_of(B))).count(["SET"]) == 1


HALF = ["{h}a", "{h}b", "{h}c", "{h}d"]  # of which a and b are moved


@pytest.fixture
def half_moved(way):
    """A slot that is half moved: its owner, and its owner to be."""
    cluster, slot = way.cluster, slot_of("h")
    source = cluster.owner(slot)
    target = next(port for port in cluster.primaries if port != source)
    for number, key in enumerate(HALF):
        cluster.node(source).set(key, number)
    cluster.migrate_slot(slot, target, stop_half_way=True)
    yield source, target
    cluster.move_keys(slot, target, cluster.keys_in(slot))
    cluster.end_migration(slot, target)


@both_ways
async def test_a_key_that_was_moved_ahead_is_asked_for_where_it_is(way, cluster, half_moved):
    """ASKING goes right in front of each command, on its connection; the map stays as it is."""
    _, target = half_moved
    client = await way.client()
    async with way.batch() as scope:
        values = [client.incr(key) for key in HALF]
        new = [client.rpush("{h}new", 1), client.rpush("{h}new", 2)]
        others = [client.incr(key) for key in KEYS]
        assert await way.look_at_all([*values, *new]) == [1, 2, 3, 4, 1, 2]
        assert await way.look_at_all(others) == [1, 1, 1]
        if not way.asynchronous:
            assert scope.stats.round_trips == 2
    asked = "ASKING INCRBY ASKING INCRBY ASKING RPUSH ASKING RPUSH"
    assert asked in " ".join(cluster.proxies[target].command_names)
    assert counted(cluster, "CLUSTER") == [0]
    assert counted(cluster, "INCRBY", "RPUSH") == [7 + 2, 2 + 2]


@both_ways
async def test_a_command_alone_asks_too(way, cluster, half_moved):
    client = await way.client()
    await way.look(client.rpush("{h}new", 1))
    async with way.batch():
        assert list(await way.look(client.blpop("{h}new", timeout=9))) == ["{h}new", "1"]


@both_ways
async def test_a_transaction_is_asked_for_as_a_whole(way, cluster, half_moved):
    client = await way.client()
    async with way.batch():
        async with way.batch(atomic=True):
            values = [client.incr(HALF[0]), client.incr(HALF[0])]
        async with way.batch(atomic=True):
            here = [client.incr(HALF[2]), client.incr(HALF[2])]
        assert await way.look_at_all([*values, *here]) == [1, 2, 3, 4]


@both_ways
async def test_a_node_that_the_map_does_not_name_yet_is_asked_on_one_connection(way, cluster):
    """It is new, and its first slot is on its way to it; closing the client closes that, too."""
    client = await way.client(reinitialize_steps=1)
    new = await way.in_background(cluster.add_node)
    slot, home = slot_of(A), cluster.owner(slot_of(A))
    await way.in_background(lambda: cluster.begin_migration(slot, new))
    async with way.batch():
        assert await way.look_at_all([client.incr(A), client.incr(A)]) == [1, 2]
    await way.in_background(lambda: cluster.end_migration(slot, new))
    async with way.batch():
        assert await way.look(client.incr(A)) == 3  # which asks for the map
    async with way.batch():
        assert await way.look(client.incr(A)) == 4
    assert client.get_node_from_key(A).port == new
    await way.in_background(lambda: eventually(lambda: len(cluster.proxies[new].links) == 1))
    await way._close(client)
    await way.in_background(lambda: eventually(lambda: not cluster.proxies[new].links))
    await way.in_background(lambda: cluster.migrate_slot(slot, home))
    await way.in_background(lambda: cluster.remove_node(new))


@both_ways
async def test_keys_on_both_sides_are_tried_again_until_they_are_together(way, cluster, half_moved):
    source, target = half_moved
    client = await way.client()
    cluster.proxies[source].arm(AfterTryAgain(cluster, slot_of("h"), target))
    async with way.batch():
        together = client.mget(HALF)
        other = client.set(A, 1)
        assert await way.look(together) == ["0", "1", "2", "3"]
        assert await way.look(other) is True
    assert counted(cluster, "SET") == [1]


class AfterTryAgain(Fault):
    """Moves the other keys, too, before the client hears of TRYAGAIN."""

    def __init__(self, cluster: Cluster, slot: int, target: int) -> None:
        self._arguments = (cluster, slot, target)
        self.moved = Signal()

    def reply(self, link: Any, data: bytes) -> None:
        self.moved.then(link, lambda: link.to_client(data))
        if b"TRYAGAIN" in data:
            threading.Thread(target=self._move).start()
        else:
            self.moved.set()

    def _move(self) -> None:
        cluster, slot, target = self._arguments
        cluster.move_keys(slot, target, cluster.keys_in(slot))
        self.moved.set()


REFUSALS = {
    redis.exceptions.ClusterDownError: b"-CLUSTERDOWN The cluster is down\r\n",
    redis.exceptions.BusyLoadingError: b"-LOADING Redis is loading the dataset in memory\r\n",
    redis.exceptions.TryAgainError: b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=lambda reply: reply[1:8].decode())
@both_ways
async def test_what_a_node_refuses_for_now_is_sent_again_in_order(way, cluster, refusal):
    client = await way.client()
    proxy = cluster.proxies[cluster.primaries[0]]
    proxy.arm(Once(refusal))
    async with way.batch():
        values = [client.rpush(key, n) for n in range(2) for key in KEYS]
        assert await way.look_at_all(values) == [1, 1, 1, 2, 2, 2]
        assert await way.look(client.lrange(A, 0, -1)) == ["0", "1"]
    assert proxy.command_names.count("RPUSH") == 4
    assert sent_to(cluster, cluster.primaries[1]).count(["RPUSH"] * 2) == 1
    assert counted(cluster, "CLUSTER")[0] <= 1


class Once(Answer):
    """Answers the first commands in the server's place, and lets the next ones through."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply)
        self._done = False

    def request(self, link: Any, data: bytes) -> None:
        if self._done:
            link.to_server(data)
        else:
            self._done = True
            super().request(link, data)


@pytest.mark.parametrize("kind", REFUSALS)
@both_ways
async def test_a_node_that_refuses_for_good_fails_its_own_commands(way, cluster, kind):
    client = await way.client(retry=_retry(2))
    cluster.proxies[cluster.primaries[0]].arm(*[Answer(REFUSALS[kind])] * 40)
    async with way.batch():
        values = [client.incr(key) for key in KEYS]
        assert await way.look_at_all(values[1:]) == [1, 1]
        error = await way.outcome(values[0])
        assert isinstance(error, kind)
        assert any("INCRBY" in note for note in error.__notes__)
    assert values_of(cluster, A) == [None]


# ---- what a connection can suffer -----------------------------------------------------------


@pytest.mark.parametrize("retry_writes", [False, True])
@both_ways
async def test_a_write_whose_reply_was_lost_is_sent_again_only_if_asked_for(
    way, cluster, retry_writes
):
    client = await way.client(retry_writes=retry_writes)
    cluster.proxies[cluster.primaries[0]].arm(Cut(reply=0))
    async with way.batch():
        read, written = client.get(B), client.incr(A)
        reads = client.get(C)
        assert await way.look_at_all([read, reads]) == [None, None]
        if retry_writes:
            assert await way.look(written) == 2
        else:
            error = await way.outcome(written)
            assert isinstance(error, OutcomeUnknown)
            assert "INCRBY" in str(error)
    assert values_of(cluster, A) == ["2" if retry_writes else "1"]


@both_ways
async def test_a_read_whose_reply_was_lost_is_sent_again(way, cluster):
    client = await way.client()
    cluster.node(cluster.primaries[0]).set(A, "value")
    cluster.proxies[cluster.primaries[0]].arm(Cut(reply=3))
    async with way.batch():
        assert await way.look_at_all([client.get(key) for key in KEYS]) == ["value", None, None]
    assert [cluster.proxies[p].command_names.count("GET") for p in cluster.primaries] == [2, 1, 1]


@pytest.mark.parametrize("first_call", ["PING", "GET"], ids=["unusual", "moved"])
def test_a_callback_that_is_interrupted_leaves_no_future_open(cluster, first_call):
    """Neither of its node, nor of another one, nor what would have been sent again."""
    stays = next(k for k in MANY if cluster.owner(slot_of(k)) == cluster.primaries[0] and k != A)

    def interrupt(_):
        raise KeyboardInterrupt

    with autobatch.RedisCluster(host=HOST, port=cluster.primaries[0]) as client:
        client.set_response_callback("PTTL", interrupt)
        if first_call == "GET":
            cluster.migrate_slot(slot_of(A), cluster.primaries[1])
        with pytest.raises(KeyboardInterrupt), autobatch.batch():
            futures = [client.get(A) if first_call == "GET" else client.ping()]
            futures += [client.pttl(stays), client.incr(stays), client.incr(B), client.incr(C)]
        assert [future.done() for future in futures] == [True] * 5
    assert values_of(cluster, stays, B, C) == ["1", "1", "1"]


def test_a_pool_that_has_no_connection_left_is_no_reason_to_ask_for_the_map(cluster):
    """Nothing is wrong with the node; redis-py does not ask either."""
    options = {"max_connections": 1, "retry": _retry(3)}
    with autobatch.RedisCluster(host=HOST, port=cluster.primaries[0], **options) as client:
        pool = client.get_redis_connection(client.get_node_from_key(A)).connection_pool
        held = pool.get_connection()
        cluster.reset_counts()
        with autobatch.batch():
            refused, other = client.incr(A), client.incr(B)
            assert isinstance(refused.exception(), NotSent)
            assert other == 1
        pool.release(held)
        assert client.incr(A) == 1
    assert counted(cluster, "CLUSTER") == [0]


@both_ways
async def test_an_unseen_error_surfaces_at_the_end_of_the_scope(way, cluster):
    """The first in the program's order, whichever node is faster."""
    client = await way.client()
    with pytest.raises(redis.ResponseError) as caught:
        async with way.batch():
            for key in KEYS:
                client.set(key, "text")
            client.incr(C)
            client.lpush(B, 1)
            client.sadd(A, 1)
    for name, note in zip(("INCRBY", "LPUSH", "SADD"), caught.value.__notes__, strict=True):
        assert name in note


# ---- what steps aside ---------------------------------------------------------------------------


@both_ways
async def test_blocking_commands_come_after_what_waits(way, cluster):
    client = await way.client()
    async with way.batch():
        for number, key in enumerate(KEYS):
            client.rpush(key, number)
            popped = await way.look(client.blpop(key, timeout=5))
            assert list(popped) == [key, str(number)]
    assert sent(cluster) == [[["RPUSH"], ["BLPOP"]]] * 3


@both_ways
async def test_consumer_groups_work_as_in_redis_py(way, cluster):
    client = await way.client()
    async with way.batch():
        client.xgroup_create(A, "group", id="0", mkstream=True)
        added = client.xadd(A, {"field": "value"}, id="1-1")
        read = await way.look(client.xreadgroup("group", "one", {A: ">"}))
        assert read == [[A, [("1-1", {"field": "value"})]]]
        waiting = await way.look(client.xreadgroup("group", "one", {A: ">"}, block=1))
        assert waiting in ([], None)
        assert await way.look_at_all([added, client.xack(A, "group", "1-1")]) == ["1-1", 1]


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
@both_ways
async def test_explicit_pipelines_come_after_what_waits(way, cluster, transaction):
    client = await way.client()
    async with way.batch():
        waiting = client.incr("{t}a")
        pipe = client.pipeline(transaction=transaction)
        pipe.incr("{t}a").incr("{t}a")
        assert await way.look(pipe.execute()) == [2, 3]
        assert waiting.done()
        assert await way.look(client.incr("{t}a")) == 4


@both_ways
async def test_watch_sees_what_waits_and_notices_a_change(way, cluster):
    client = await way.client()
    async with way.batch():
        client.set("{t}a", 1)
        pipe = client.pipeline(transaction=True)
        await way.look(pipe.watch("{t}a"))
        assert await way.look(pipe.get("{t}a")) == "1"
        cluster.node(cluster.owner(slot_of("t"))).set("{t}a", 5)
        pipe.multi()
        pipe.incr("{t}a")
        with pytest.raises(redis.WatchError):
            await way.look(pipe.execute())
        await way.look(pipe.reset())
        assert await way.look(client.get("{t}a")) == "5"


@both_ways
async def test_a_lock_works_as_in_redis_py(way, cluster):
    client = await way.client()
    async with way.batch():
        before = client.set(A, 1)
        lock, other = (client.lock("lock", timeout=9, blocking=False) for _ in range(2))
        assert await way.look(lock.acquire())
        assert before.done() or way.asynchronous
        assert await way.look(lock.locked()) is True
        assert not await way.look(other.acquire())
        assert await way.look(lock.extend(9))
        await way.look(lock.release())
        assert await way.look(lock.locked()) is False
        with pytest.raises(redis.exceptions.LockError):
            await way.look(lock.release())


@both_ways
async def test_what_waits_is_published_before_a_message_is_waited_for(way, cluster):
    client = await way.client()
    if not hasattr(way.plain_type, "pubsub"):
        pytest.skip("this redis-py has no pub/sub for asyncio's clusters")
    async with way.batch():
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await way.look(pubsub.subscribe("channel"))
        await message_of(way, pubsub.get_message)  # the subscription
        client.publish("channel", "hello")
        message = None
        while message is None:
            message = await message_of(way, pubsub.get_message)
        assert (message["channel"], message["data"]) == ("channel", "hello")
        await way.look(pubsub.aclose() if way.asynchronous else pubsub.close())


@both_ways
async def test_sharded_messages_arrive(way, cluster):
    client = await way.client()
    if not hasattr(way.plain_type, "pubsub"):
        pytest.skip("this redis-py has no pub/sub for asyncio's clusters")
    pubsub = client.pubsub()
    async with way.batch():
        for key in KEYS:
            await way.look(pubsub.ssubscribe(key))
        for key in KEYS:
            client.spublish(key, key)
        await way.flush()
        heard = []
        while len(heard) < len(KEYS):
            message = await message_of(way, pubsub.get_sharded_message)
            if message is not None and message["type"] == "smessage":
                heard.append((message["channel"], message["data"]))
        assert sorted(heard) == sorted(zip(KEYS, KEYS, strict=True))
        await way.look(pubsub.aclose() if way.asynchronous else pubsub.close())


async def message_of(way: Way, get: Callable[..., Any]) -> Any:
    return await way.look(get(timeout=1))


# ---- views of a client, and its life ----------------------------------------------------------


@both_ways
async def test_wrap_shares_what_the_client_has(way, cluster):
    class Subclass(way.plain_type):
        def double(self, key):
            return self.incrby(key, 2)

    wrapped = await way.client(Subclass)
    client = autobatch.wrap(wrapped)
    assert isinstance(client, (Subclass, way.batching_type))
    assert isinstance(client, Subclass)
    assert client.nodes_manager is wrapped.nodes_manager
    assert autobatch.wrap(client) is client
    await way.look(client.ping(target_nodes="all"))
    cluster.reset_counts()
    async with way.batch() as scope:
        assert await way.look_at_all([client.double(key) for key in KEYS]) == [2, 2, 2]
        assert scope.stats.round_trips == 1
    assert await way.look(wrapped.double(A)) == 4
    assert sent(cluster)[1:] == [[["INCRBY"]]] * 2


@both_ways
async def test_all_views_of_a_client_hear_of_a_new_response_callback(way, cluster):
    wrapped = await way.plain()
    client = autobatch.wrap(wrapped)
    eager = client.eager
    await way.look(eager.incr(A))
    for setter in (wrapped, client, eager):
        setter.set_response_callback("GET", lambda reply, said=setter: (said, reply))
        async with way.batch():
            assert await way.look(client.get(A)) == (setter, "1")
        assert await way.look(eager.get(A)) == (setter, "1")
        assert await way.look(wrapped.get(A)) == (setter, "1")


@both_ways
async def test_wrap_of_a_client_nobody_has_used(way, cluster):
    made = way.plain_type(host=HOST, port=cluster.primaries[0], decode_responses=True)
    client = autobatch.wrap(made)
    async with way.batch():
        values = [client.incr(key) for key in KEYS]
        assert await way.look_at_all(values) == [1, 1, 1]
    await way._close(client)


def test_what_redis_py_itself_looks_at_means_the_same(cluster):
    """`client[key]` raises KeyError where there is nothing, and a lock knows whether it is held."""
    with autobatch.RedisCluster(host=HOST, port=cluster.primaries[0]) as client:
        client.set(A, "here")
        with autobatch.batch() as scope:
            client.set(B, "as well")
            assert client[A] == b"here"
            assert client[B] == b"as well"
            with pytest.raises(KeyError, match=C):
                client[C]
            assert scope.stats.round_trips == 3
            lock = client.lock("lock")
            assert lock.acquire(blocking=False)
            assert lock.locked()
            lock.release()
            assert not lock.locked()
        with pytest.raises(KeyError, match=C):
            client[C]


@both_ways
async def test_the_eager_view_sends_what_waits_and_gives_plain_values(way, cluster):
    client = await way.client()
    async with way.batch():
        waiting = client.incr(A)
        value = await way.look(client.eager.incr(A))
        assert (type(value), value) == (int, 2)
        assert waiting.done()
        assert await way.look(client.eager.mget_nonatomic([A, B])) == ["2", None]
        assert await way.look(client.eager.delete(A, B)) == 1
        assert client.eager.batching is client


@pytest.mark.parametrize("scoped", [True, False], ids=["in a scope", "outside"])
@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.ping(),
        lambda c: c.incr(A),
        lambda c: c.delete(A, B),
        lambda c: c.mget_nonatomic(A, B),
        lambda c: c.mget("{t}a", "{t}b"),
        lambda c: c.execute_command("CLUSTER INFO"),
        lambda c: c.blpop(A, timeout=0.01),
        lambda c: c.dbsize(target_nodes="primaries"),
        lambda c: c.eval("return 5", 0),
        lambda c: c.script_load(INCREMENT),
        lambda c: c.execute_command("UNHEARD", A),
    ],
    ids=[
        *("PING", "INCR", "DEL", "mget_nonatomic", "MGET", "CLUSTER INFO", "BLPOP", "DBSIZE"),
        *("EVAL", "SCRIPT LOAD", "unheard"),
    ],
)
def test_the_first_call_of_all_of_an_asyncio_client(cluster, call, scoped):
    """It has not looked at the cluster yet."""

    async def run():
        way = Way(cluster, asynchronous=True)
        options = {"host": HOST, "port": cluster.primaries[0], "decode_responses": True}
        plain = redis.asyncio.RedisCluster(**options)
        client = autobatch.asyncio.RedisCluster(**options)
        async with plain, way.batch() if scoped else contextlib.nullcontext():
            expected = await way.outcome(lambda: call(plain))
            await plain.delete(A)
            value = await way.outcome(lambda: call(client))
            assert type(value) is type(expected)
            if not isinstance(value, dict):
                assert str(value) == str(expected)
        await client.aclose()

    asyncio.run(tidy(run()))


def test_a_client_serves_one_event_loop_after_the_other(cluster):
    client = autobatch.asyncio.RedisCluster(host=HOST, port=cluster.primaries[0])

    async def run(expected):
        async with autobatch.batch():
            values = [client.incr(key) for key in KEYS]
            assert await asyncio.gather(*values) == [expected] * 3
        async with autobatch.batch():
            await client.blpop("list", timeout=0.01)
            client.incr("left at the end")

    for expected in (1, 2, 3):
        asyncio.run(tidy(run(expected)))
    assert values_of(cluster, "left at the end") == ["3"]


def test_a_closed_client_may_begin_again_in_another_event_loop(cluster):
    """With several calls that all need to know the cluster first."""
    client = autobatch.asyncio.RedisCluster(host=HOST, port=cluster.primaries[0])

    async def run():
        calls = client.incr(A), client.cluster_info(), client.blpop(B, timeout=0.01)
        async with client:
            await client.get(C)
        return await asyncio.gather(*calls, client.dbsize(target_nodes="primaries"))

    async def run_and_close():
        result = await run()
        await client.aclose()
        return result

    for expected in (1, 2, 3):
        value, *_ = asyncio.run(tidy(run_and_close()))
        assert value == expected


def test_the_cluster_is_looked_at_again_in_another_event_loop(cluster):
    """redis-py asks on connections of its own, which must not be those of the first loop."""
    client = autobatch.asyncio.RedisCluster(host=HOST, port=cluster.primaries[0])

    async def run():
        async with client.pipeline() as pipe:
            await pipe.set(A, 1).set(B, 1).execute()
        assert await client.get(A) == b"1"

    asyncio.run(tidy(run()))
    cluster.failover(cluster.replicas[0])
    cluster.proxies[cluster.primaries[1]].disconnect()
    asyncio.run(tidy(run()))

    async def run_and_close():
        await run()
        await client.aclose()

    asyncio.run(tidy(run_and_close()))


def test_a_second_running_event_loop_is_told_what_to_do(cluster):
    """And the first goes on."""
    client = autobatch.asyncio.RedisCluster(host=HOST, port=cluster.primaries[0])

    async def elsewhere():
        with pytest.raises(NotSent, match="one event loop at a time"):
            await client.incr(A)
        with pytest.raises(NotSent, match="aclose"):
            async with autobatch.batch():
                client.incr(A)
        with pytest.raises(NoLoop, match="for each loop"):
            await client.blpop(B, timeout=0.01)

    async def run():
        await client.incr(A)
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert await client.incr(A) == 2
        await client.aclose()

    async def closed():
        assert await client.incr(A) == 3
        await client.aclose()

    async def run_and_let_go():
        await run()
        await asyncio.to_thread(asyncio.run, closed())

    asyncio.run(tidy(run_and_let_go()))


@both_ways
async def test_closing_sends_what_waits(way, cluster):
    client = await way.client()
    async with way.batch():
        value = client.incr(A)
        await way._close(client)
        assert await way.look(value) == 1


# redis-py's client is a part of cycles: the collector may come to a socket before its connection.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_forgotten_client_closes_its_connections(cluster):
    client = autobatch.RedisCluster(host=HOST, port=cluster.primaries[0])
    with autobatch.batch():
        assert [client.incr(key) for key in KEYS] == [1, 1, 1]
    eager = client.eager
    del client
    assert eager.incr(A) == 2
    del eager
    gc.collect()
    eventually(lambda: not any(proxy.links for proxy in cluster.proxies.values()))


@both_ways
async def test_a_closed_client_is_let_go(way, cluster):
    client = way.batching_type(host=HOST, port=cluster.primaries[0])
    async with way.batch():
        assert await way.look(client.incr(A)) == 1
    await way._close(client)
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("atomic", [False, True], ids=["a scope", "an atomic block"])
@both_ways
async def test_a_client_can_be_made_inside(way, cluster, atomic):
    async with way.batch() as scope, way.batch(atomic=atomic):
        client = way.batching_type(host=HOST, port=cluster.primaries[0])
        value = client.incr(A)
        assert scope.stats.round_trips == 0
    assert await way.look(value) == 1
    await way._close(client)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.delete(A),
        lambda c: c.delete(A, B, C),
        lambda c: c.rename(A, f"{{{A}}}new"),
        lambda c: c.mset({A: "new"}),
        lambda c: c.mset_nonatomic({A: "new", B: "new"}),
        lambda c: c.eval("redis.call('DEL', KEYS[1])", 1, A),
    ],
    ids=["DEL", "DEL of several", "RENAME", "MSET", "mset_nonatomic", "EVAL"],
)
@both_ways
async def test_the_first_call_of_all_is_sent_though_nobody_awaits_it(way, cluster, call):
    cluster.node(cluster.primaries[0]).set(A, "old")
    client = way.batching_type(host=HOST, port=cluster.primaries[0])
    async with way.batch():
        call(client)
    await way.flush()
    if way.asynchronous:
        await client.aclose()
    else:
        client.close()
    assert values_of(cluster, A) != ["old"]


def test_threads_share_a_client(cluster):
    with autobatch.RedisCluster(host=HOST, port=cluster.primaries[0]) as client:

        def work(number):
            with autobatch.batch() as scope:
                for key in KEYS:
                    client.incr(key)
                own = [client.rpush(f"{number}{key}", number) for key in KEYS]
                assert own == [1, 1, 1]
                assert scope.stats.round_trips == 1

        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(work, range(40)):
                pass
    assert values_of(cluster, *KEYS) == ["40"] * 3


@both_ways
async def test_a_scope_with_a_cluster_and_a_server_takes_one_round_trip(way, cluster, server):
    client = await way.client()
    other = (autobatch.asyncio if way.asynchronous else autobatch).Redis(port=server)
    async with way.batch() as scope:
        values = [client.incr(A), other.echo(b"text"), client.incr(B)]
        assert await way.look_at_all(values) == [1, b"text", 1]
        assert (scope.stats.round_trips, scope.stats.flushes) == (1, 1)
    await way._close(other)


def test_a_web_request_is_a_scope(cluster):
    client = autobatch.RedisCluster(host=HOST, port=cluster.primaries[0])
    client.ping(target_nodes="all")
    cluster.reset_counts()

    def app(environ, start_response):
        for key in KEYS:
            client.incr(key)
        start_response("200 OK", [])
        return [b"done"]

    with client:
        body = autobatch.wsgi.BatchMiddleware(app)({}, lambda *_: None)
        assert list(body) == [b"done"]
        assert sent(cluster) == [[["INCRBY"]]] * 3


def test_an_asgi_request_is_a_scope(cluster):
    async def run():
        way = Way(cluster, asynchronous=True)
        client = await way.client()

        async def app(scope, receive, send):
            for key in KEYS:
                client.incr(key)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        async def send(message):
            told.append((message["type"], sent(cluster)))

        told = []
        async with way._stack:
            await autobatch.asgi.BatchMiddleware(app)({"type": "http", "path": "/"}, None, send)
        assert told[0] == ("http.response.start", [[["INCRBY"]]] * 3)

    asyncio.run(tidy(run()))


# ---- what a strict reader has found -------------------------------------------------------


@pytest.mark.parametrize("mutable", [bytearray, lambda text: memoryview(bytearray(text))])
@both_ways
async def test_a_key_that_changes_after_the_call_is_captured(way, cluster, mutable):
    client = await way.client()
    key = mutable(KEYS[0].encode())
    async with way.batch():
        written, neighbour = client.set(key, "x"), client.set(KEYS[1], "y")
        key[:] = bytes(reversed(bytes(key)))
        assert await way.look_at_all([written, neighbour]) == [True, True]
    assert values_of(cluster, *KEYS[:2]) == ["x", "y"]


@both_ways
async def test_errors_of_several_nodes_are_looked_at_together(way, cluster):
    """They are one call's: the others are notes of the first, and nothing comes up at the end."""
    client = await way.client()
    async with way.batch():
        error = await way.outcome(client.config_set("nonsense", "x", target_nodes="primaries"))
        assert isinstance(error, redis.ResponseError)
        assert sum(note.startswith("Also failed: ") for note in error.__notes__) == 2


@both_ways
async def test_a_named_node_that_is_the_wrong_one_sends_on(way, cluster):
    client = await way.client()
    await way.look(client.set(KEYS[0], "x"))
    wrong = next(port for port in cluster.primaries if port != cluster.owner(slot_of(KEYS[0])))
    node = client.get_node(HOST, wrong)
    assert await way.look(client.execute_command("GET", KEYS[0], target_nodes=node)) == "x"


@both_ways
async def test_a_block_that_cannot_be_sent_ends_its_scope(way, cluster):
    client = await way.client()
    with pytest.raises(CrossSlot):
        async with way.batch(atomic=True) as block:
            futures = [client.incr(key) for key in KEYS]
    assert block.closed
    assert block.parent.closed
    assert all(future.done() for future in futures)


@both_ways
async def test_many_keys_take_no_time_of_their_own(way, cluster):
    """Each key is a command here; none of them looks at all the others when it settles."""
    client = await way.client()
    keys = [f"key{number}" for number in range(3000)]
    async with way.batch() as scope:
        count = client.delete(*keys)
        assert await way.look(count) == 0
        assert scope.stats.round_trips == 1


@both_ways
async def test_watching_sees_what_was_called_before(way, cluster):
    client = await way.client()
    key = KEYS[0]
    async with way.batch():
        await way.look(client.set(key, "1"))
        pipeline = client.pipeline(transaction=True)
        pipeline = await pipeline if way.asynchronous else pipeline
        watching = pipeline.watch(key)
        if way.asynchronous:
            await watching
        client.set(key, "2")
        seen = pipeline.get(key)
        assert (await seen if way.asynchronous else seen) == "2"
        resetting = pipeline.reset()
        if way.asynchronous:
            await resetting


@both_ways
async def test_redis_py_prepares_the_connection_for_an_import(way, cluster):
    """Its own way alone finds that this server knows no HIMPORT; ours would ask a node."""
    client, plain = await way.client(), await way.plain()
    call = "HIMPORT SET", KEYS[0], "fields", "1"
    expected = await way.outcome(lambda: plain.execute_command(*call))
    assert isinstance(expected, redis.RedisError)
    outside = await way.outcome(lambda: client.execute_command(*call))
    async with way.batch():
        client.set(KEYS[0], "1")
        inside = await way.outcome(lambda: client.execute_command(*call))
        assert ["SET"] in [names for proxy in cluster.proxies.values() for names in proxy.names]
    assert repr(outside) == repr(inside) == repr(expected)
