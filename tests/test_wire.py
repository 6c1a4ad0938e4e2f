"""The wire is the witness: commands and exchanges are counted by a proxy."""

from __future__ import annotations

import redis

import autobatch
from autobatch.errors import OutcomeUnknown
from autobatch.scope import MAX_BYTES, MAX_COMMANDS
from autobatch.testing import Answer
from common import connect


def test_two_hundred_commands_take_one_round_trip(client, proxy):
    @autobatch.batch
    def increment_and_expire(key, num=1, expire=60):
        total = client.incrby(key, num)
        client.expire(key, expire)
        return total

    with autobatch.batch() as scope:
        totals = [increment_and_expire(f"key{i}") for i in range(100)]
    assert totals == [1] * 100
    assert proxy.names == [["INCRBY", "EXPIRE"] * 100]
    assert scope.stats.commands == 200
    assert scope.stats.round_trips == proxy.round_trips == 1


def test_a_batch_is_one_connection(client):
    """The pool gives one connection for each exchange and has it back after."""
    with autobatch.batch():
        ids = [client.incr("n") for _ in range(5)]
        assert not client.connection_pool._in_use_connections  # nothing is held while it waits
        assert ids[0] == 1
    assert client.connection_pool._created_connections == 1
    assert not client.connection_pool._in_use_connections


def test_large_commands_with_large_replies_do_not_deadlock(server, plain):
    """More than any buffer between client and server holds, in both directions at once."""
    value = "x" * (1 << 20)
    with connect(server) as client, autobatch.batch(max_bytes=1 << 26) as scope:
        futures = []
        for number in range(20):
            client.set(f"k{number}", value)
            futures.append(client.mget(f"k{number}", f"k{number}"))
        assert all(future == [value, value] for future in futures)
        assert scope.stats.round_trips == 1


def test_the_limit_of_bytes_by_default(server, plain):
    """20 MiB leave in two exchanges, the first of them as soon as it holds 16."""
    value = "x" * (1 << 20)
    with connect(server) as client, autobatch.batch() as scope:
        futures = [client.set(f"k{number}", value) for number in range(20)]
        assert [future.done() for future in futures] == [True] * 16 + [False] * 4
    assert MAX_BYTES == 16 * 1024 * 1024
    assert scope.stats.round_trips == 2


def test_the_limit_of_commands_by_default(server, plain):
    with connect(server) as client, autobatch.batch() as scope:
        futures = [client.incr("n") for _ in range(MAX_COMMANDS + 1)]
        assert futures[MAX_COMMANDS - 1].done()
        assert not futures[MAX_COMMANDS].done()
    assert MAX_COMMANDS == 10_000
    assert futures[MAX_COMMANDS] == MAX_COMMANDS + 1
    assert scope.stats.round_trips == 2


def test_a_callback_that_raises_fails_its_own_command(client):
    """Every reply was read before: the connection is in step, and stays open."""

    def fail(reply, **options):
        raise LookupError("callback")

    client.set_response_callback("GET", fail)
    connection = client.client_id()
    with autobatch.batch():
        before, failed, after = client.incr("n"), client.get("n"), client.incr("n")
        assert isinstance(failed.exception(), LookupError)
    assert (before, after) == (1, 2)
    assert client.echo("in step") == "in step"
    assert client.client_id() == connection


def test_a_reply_that_is_no_redis_protocol(proxy, plain):
    """What was written is unknown; the connection is closed."""
    with connect(proxy.port) as client:
        client.ping()
        proxy.arm(Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        with autobatch.batch():
            futures = [client.incr("n"), client.incr("n")]
            errors = [future.exception() for future in futures]
        assert [type(error).__name__ for error in errors] == ["OutcomeUnknown"] * 2
        assert isinstance(errors[0], OutcomeUnknown)
        assert isinstance(errors[0], redis.RedisError)
        assert client.echo("in step") == "in step"
    assert proxy.connections == 2


def test_a_reply_too_many_reaches_nobody(proxy, plain):
    """Whoever sent it: the next command gets its own."""
    with connect(proxy.port) as client:
        client.ping()
        proxy.arm(Answer(b"+one\r\n+one too many\r\n"))
        with autobatch.batch():
            assert client.get("k") == "one"
        proxy.arm()
        assert client.echo("in step") == "in step"
