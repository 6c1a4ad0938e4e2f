"""What the program itself gives to redis-py, and that raises: only what it is for fails."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis._parsers import Encoder
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

import autobatch
from autobatch import batch
from autobatch.errors import NotSent
from clusters import HOST
from common import connect
from looping import eventually, in_loop


class OwnError(Exception):
    """One that is neither redis-py's nor the system's."""


class Greeting:
    """Greets connections; some it leaves in the middle of it, with a reply unread."""

    def __init__(self, *bad):
        self.count = 0
        self._bad = bad

    def __call__(self, connection):
        self.count += 1
        if self.count in self._bad:
            connection.send_command("ECHO", "to nobody")
            raise OwnError
        connection.on_connect()

    async def in_loop(self, connection):
        self.count += 1
        if self.count in self._bad:
            await connection.send_command("ECHO", "to nobody")
            raise OwnError
        await connection.on_connect()


def test_a_greeting_that_raises(server, second_server, plain):
    """What goes elsewhere goes on, and nobody gets what the greeting has left unread."""
    options = {"db": 3, "redis_connect_func": Greeting(1)}
    with connect(second_server) as other, connect(server, **options) as client:
        with batch():
            pushed = client.rpush("a", 1)
            assert other.echo("elsewhere") == "elsewhere"
            with pytest.raises(OwnError) as raised:  # as with redis-py
                pushed.value
            assert isinstance(raised.value, NotSent)
        assert client.echo("in step") == "in step"
        assert client.rpush("b", 1) == 1
    assert plain.exists("a", "b") == 0  # which are of another database


@in_loop
async def test_a_greeting_that_raises_in_a_loop(server, plain):
    greeting = Greeting(1, 2)
    client = autobatch.asyncio.Redis(
        port=server, db=3, decode_responses=True, redis_connect_func=greeting.in_loop
    )
    with pytest.raises(NotSent) as raised:
        await client.execute_command("CLIENT", "GETNAME")  # on a connection of its own
    assert type(raised.value.__cause__) is OwnError
    with pytest.raises(NotSent):
        await client.rpush("a", 1)  # on the shared one
    assert await client.execute_command("CLIENT", "GETNAME") is None
    assert await client.rpush("a", 1) == 1
    assert plain.exists("a") == 0
    await client.aclose()


@in_loop
async def test_cancelled_in_a_greeting(server, plain):
    """Whoever is next gets none of the replies that nobody has read."""
    asked = asyncio.Event()

    async def greet(connection):
        if not asked.is_set():
            await connection.send_command("ECHO", "to nobody")
            asked.set()
            await asyncio.Event().wait()
        await connection.on_connect()

    client = autobatch.asyncio.Redis(port=server, decode_responses=True, redis_connect_func=greet)
    task = asyncio.create_task(client.execute_command("CLIENT", "GETNAME"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.execute_command("CLIENT", "GETNAME") is None
    await client.aclose()


@in_loop
async def test_a_connection_that_cannot_be_opened_again_is_given_back(proxy, plain):
    """One that its server has closed while it was idle."""
    client = autobatch.asyncio.Redis(
        port=proxy.port, max_connections=1, retry=AsyncRetry(NoBackoff(), 0)
    )
    await client.execute_command("CLIENT", "GETNAME")
    (connection,) = client.connection_pool._available_connections
    proxy.refuse()
    plain.client_kill_filter(_type="normal", skipme=True)
    await eventually(connection._reader.at_eof)
    with pytest.raises(NotSent):
        await client.execute_command("CLIENT", "GETNAME")
    proxy.accept()
    assert await client.execute_command("CLIENT", "GETNAME") is None
    await client.aclose()


class Careless(redis.ConnectionPool):
    """Raises when it has taken a connection back."""

    careless = False

    def release(self, connection):
        super().release(connection)
        if self.careless:
            raise OwnError


def test_a_pool_that_raises_takes_back_all(server, second_server, plain):
    pools = [Careless(port=port) for port in (server, second_server)]
    clients = [autobatch.Redis(connection_pool=pool) for pool in pools]
    with batch() as scope:
        futures = [client.echo("x") for client in clients]
        for pool in pools:
            pool.careless = True
        with pytest.raises(OwnError):
            scope.flush()
        assert futures == [b"x"] * 2
    assert [list(pool._in_use_connections) for pool in pools] == [[], []]
    for pool in pools:
        pool.disconnect()


class Picky(Encoder):
    """Decodes everything but "bad", and encodes the script so many times."""

    left = 10

    def decode(self, value, force=False):  # noqa: FBT002  # redis-py's
        if value == b"bad":
            raise OwnError
        return super().decode(value, force)

    def encode(self, value):
        if value == SCRIPT:
            Picky.left -= 1
            if Picky.left < 0:
                raise OwnError
        return super().encode(value)


SCRIPT = "return 'bad'"


def pools_of(server):
    options = {"port": server, "decode_responses": True, "encoder_class": Picky}
    return redis.asyncio.ConnectionPool(**options)


@in_loop
async def test_an_encoder_that_cannot_decode(server, plain):
    """In a transaction, whose replies it decodes."""
    plain.set("a", "bad")
    async with autobatch.asyncio.Redis(connection_pool=pools_of(server)) as client:
        async with batch() as scope:
            async with batch(atomic=True):
                futures = [client.set("b", 1), client.get("a"), client.get("b")]
            await scope.aflush()
            assert type(futures[1].exception()) is OwnError
        assert futures[0]
        assert futures[2] == "1"
        await client.connection_pool.aclose()


@in_loop
async def test_an_encoder_that_cannot_encode_a_script_again(server, plain):
    """It is asked once more when the script leaves: an error of that batch, and no hang."""
    async with autobatch.asyncio.Redis(connection_pool=pools_of(server)) as client:
        script = client.register_script(SCRIPT)
        Picky.left = 1  # at the call
        with pytest.raises(NotSent) as raised:
            await script()
        assert type(raised.value.__cause__) is OwnError
        assert await client.echo("x") == "x"
        await client.connection_pool.aclose()


class Undecided(autobatch.asyncio.RedisCluster):
    """Does not say where commands without a key go."""

    def get_default_node(self):
        raise OwnError


@in_loop
async def test_a_cluster_s_client_that_does_not_know_where_a_command_goes(cluster):
    """It and what was to leave with it fail, and do not hang."""
    async with Undecided(HOST, cluster.primaries[0]) as client:
        async with batch():
            futures = [client.rpush("a", 1), client.execute_command("LASTSAVE")]
            with pytest.raises(NotSent):
                await futures[1]
            assert type(futures[0].exception().__cause__) is OwnError
        assert await client.rpush("a", 1) == 1
