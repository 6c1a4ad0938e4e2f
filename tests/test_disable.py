"""AUTOBATCH_DISABLE=1: every command is sent by itself, and fails where it was called."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
import redis

import autobatch
from autobatch.testing import Cut, Proxy, unbatched
from common import connect


@pytest.fixture
def off():
    """Batching is turned off."""
    with unbatched():
        yield


def test_each_call_runs_at_once(client, proxy, plain, off):
    """Nothing waits: another client sees it at once."""
    with autobatch.batch() as scope:
        future = client.set("a", 1)
        assert plain.get("a") == "1"
        assert future.done()
        assert future.value is True
        assert client.incr("a") == 2
    assert proxy.names == [["SET"], ["INCRBY"]]
    assert scope.stats.round_trips == 2


def test_without_the_switch_they_share_a_round_trip(client, proxy, plain):
    """What the tests here tell apart."""
    with autobatch.batch():
        client.set("a", 1)
        assert plain.get("a") is None
        client.incr("a")
    assert proxy.names == [["SET", "INCRBY"]]


def test_what_was_called_is_still_a_future(client, off):
    """Code that is written for Futures goes on working."""
    with autobatch.batch():
        future = client.set("a", "x")
        assert type(future) is autobatch.Future
        assert client.get("a").map(str.upper) == "X"
        assert autobatch.resolve({"a": client.get("a")}) == {"a": "x"}
        assert autobatch.unwrap(client.get("missing")) is None


def test_errors_are_raised_at_the_call(client, plain, off):
    """As redis-py raises them, so an `except` around the call alone works."""
    plain.set("text", "x")
    with autobatch.batch():
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as caught:
            client.lpush("text", 1)
        assert "test_errors_are_raised_at_the_call" in caught.value.__notes__[0]
        client.set("after", 1)
    assert plain.get("after") == "1"


def test_it_does_not_surface_twice(client, plain, off):
    """What was raised at the call is nothing new at the end of the scope."""
    plain.set("text", "x")
    seen = []
    with autobatch.batch():
        try:
            client.lpush("text", 1)
        except redis.ResponseError as error:
            seen.append(error)
    assert len(seen) == 1


def test_a_block_that_is_atomic_is_a_transaction(client, proxy, off):
    """It is sent at its end, as one, with nothing else."""
    with autobatch.batch():
        client.set("a", 1)
        with autobatch.batch(atomic=True):
            client.incr("a")
            total = client.incr("a")
        assert total.done()
        assert total == 3
    assert proxy.names == [["SET"], ["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_a_transaction_fails_at_its_end(client, plain, off):
    """The block raises the first error, with the others as notes."""
    plain.set("text", "x")
    with autobatch.batch():
        with (
            pytest.raises(redis.ResponseError, match="WRONGTYPE") as caught,
            autobatch.batch(atomic=True),
        ):
            client.lpush("text", 1)
            client.sadd("text", 1)
            client.set("a", 1)
        assert any("SADD text" in note for note in caught.value.__notes__)
        assert client.get("a") == "1"


def test_an_atomic_block_that_raises_drops_its_commands(client, proxy, off):
    """Nothing of it is sent."""
    with autobatch.batch(), pytest.raises(KeyError), autobatch.batch(atomic=True):
        client.incr("a")
        raise KeyError
    assert proxy.names == []


def test_discarding_finds_nothing(client, plain, off):
    """What was called has run."""
    with autobatch.batch() as scope:
        client.set("a", 1)
        scope.discard()
    assert plain.get("a") == "1"


def test_scripts(client, proxy, plain, off):
    """Each call brings its source along if it is the first, as in a batch."""
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    with autobatch.batch():
        assert script(["a"]).done()
        assert script(["a"]) == 2
    assert [len(names) for names in proxy.names] == [1, 1]


def test_a_lost_write_is_not_repeated(proxy, plain, off):
    """The contract holds: the outcome is unknown, and the call says so."""
    with connect(proxy.port) as client:
        proxy.arm(Cut(reply=0))
        with autobatch.batch(), pytest.raises(autobatch.errors.OutcomeUnknown):
            client.incr("a")
    assert plain.get("a") == "1"


def test_on_a_loop_a_synchronous_client_does_not_warn(client, off):
    """It would have made the loop wait without us, too: warnings are errors here."""

    async def main():
        async with autobatch.batch():
            assert client.set("a", 1).done()
            assert client.get("a") == "1"

    asyncio.run(main())


def test_asyncio_each_command_is_an_exchange_of_its_own(proxy, plain, off):
    """Not even tasks that run at the same time share one, and the order of the calls is kept."""

    async def main():
        redis = autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)
        outside = await asyncio.gather(*[redis.rpush("outside", i) for i in range(5)])
        async with autobatch.batch() as scope:
            futures = [redis.rpush("inside", i) for i in range(5)]
            inside = await futures[4]
            assert [future.value for future in futures] == [1, 2, 3, 4, 5]
        await redis.aclose()
        return outside, inside, scope.stats.exchanges

    assert asyncio.run(main()) == ([1, 2, 3, 4, 5], 5, 5)
    assert [names for names in proxy.names if "RPUSH" in names] == [["RPUSH"]] * 10
    assert plain.lrange("inside", 0, -1) == plain.lrange("outside", 0, -1) == list("01234")


def test_asyncio_a_transaction_is_one_exchange(proxy, plain, off):
    """MULTI and EXEC are sent with what they hold."""

    async def main():
        redis = autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)
        async with autobatch.batch():
            redis.set("a", 1)
            async with autobatch.batch(atomic=True):
                redis.incr("a")
                total = redis.incr("a")
            assert await total == 3
        await redis.aclose()

    asyncio.run(main())
    sent = [names for names in proxy.names if {"SET", "INCRBY"} & set(names)]
    assert sent == [["SET"], ["MULTI", "INCRBY", "INCRBY", "EXEC"]]


def test_asyncio_errors_are_raised_by_await(server, plain, off):
    """A command cannot fail before it was sent."""
    plain.set("text", "x")

    async def main():
        client = autobatch.asyncio.Redis(port=server)
        async with autobatch.batch():
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                await client.lpush("text", 1)
        await client.aclose()

    asyncio.run(main())


def test_a_cluster(cluster, off):
    """Each command of each node by itself, too."""
    client = autobatch.RedisCluster(
        host="127.0.0.1", port=cluster.primaries[0], decode_responses=True
    )
    with client, autobatch.batch() as scope:
        assert [client.set(f"key{i}", i).done() for i in range(5)] == [True] * 5
        assert client.get("key3") == "3"
    assert scope.stats.round_trips == 6


PROGRAM = """
import sys
import autobatch
redis = autobatch.Redis(port=int(sys.argv[1]))
with autobatch.batch():
    redis.set("a", 1)
    redis.set("b", 1)
"""


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("1", [["SET"], ["SET"]]),
        ("yes", [["SET"], ["SET"]]),
        ("0", [["SET", "SET"]]),
        ("false", [["SET", "SET"]]),
        ("", [["SET", "SET"]]),
        (None, [["SET", "SET"]]),
    ],
)
def test_the_environment_variable(server, value, names):
    """It is read when autobatch is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "AUTOBATCH_DISABLE"}
    if value is not None:
        environment["AUTOBATCH_DISABLE"] = value
    with Proxy(server) as proxy:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(proxy.port)], env=environment, check=True
        )
        assert [sent for sent in proxy.names if "SET" in sent] == names
