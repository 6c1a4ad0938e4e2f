"""Interruptions, and other threads, at every step of a cluster's flush that is sent again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import MovedError
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Cut
from clusters import HOST, SLOTS
from moments import Elsewhere, InterruptAt

KEYS = [
    next(k for k in (f"key{n}" for n in itertools.count()) if first <= key_slot(k.encode()) <= last)
    for first, last in SLOTS
]


def misroute(cluster, client):
    """Let the client take another node for the one that serves two of the keys."""
    client.nodes_manager.initialize()
    slots_cache = client.nodes_manager.slots_cache
    nodes = [slots_cache[key_slot(key.encode())][0] for key in KEYS]
    for key, wrong in zip(KEYS[:2], nodes[1:], strict=True):
        slots_cache[key_slot(key.encode())] = [wrong]


def cut(cluster, client):
    """Lose the replies of every node."""
    for port in cluster.primaries:
        cluster.proxies[port].arm(Cut(reply=5))


def connections_of(client):
    for node in client.nodes_manager.nodes_cache.values():
        if node.redis_connection is not None:
            pool = node.redis_connection.connection_pool
            yield from [*pool._in_use_connections, *pool._available_connections]


def flushes(cluster, trouble, moments):
    """Flush with something that happens at each of some moments; see what became of it.

    The moments are asked for until one comes after the end of a flush; return their number.
    """
    nodes = {key: cluster.node(cluster.owner(key_slot(key.encode()))) for key in KEYS}
    options = {"decode_responses": True, "retry": Retry(NoBackoff(), 2)}
    with autobatch.RedisCluster(HOST, cluster.primaries[0], **options) as client:
        number = 0
        at = None
        while at is None or at.left <= 0:
            number += 1
            for port in cluster.primaries:
                cluster.proxies[port].delay = 0
                cluster.proxies[port].arm()
            for key, node in nodes.items():
                node.delete(key)
                assert client.llen(key) == 0  # no reply of anybody else
            trouble(cluster, client)
            at = next(moments)(client)
            flush(client, nodes, at)
    return number


def flush(client, nodes, at):
    with contextlib.suppress(redis.ConnectionError, MovedError), autobatch.batch() as scope:
        pushed = {(key, n): client.rpush(key, n) for n in range(1, 4) for key in KEYS}
        sys.setprofile(at)
        with contextlib.suppress(KeyboardInterrupt):
            scope.flush()
        sys.setprofile(None)
    sent = {key: node.lrange(key, 0, -1) for key, node in nodes.items()}
    for (key, count), future in pushed.items():
        assert future.done()
        error = future.exception()
        assert sent[key] == sorted(set(sent[key]))  # in order, once
        if error is None:
            assert sent[key][future - 1] == str(count)
        elif isinstance(error, (NotSent, MovedError)):
            assert str(count) not in sent[key]
        else:
            assert isinstance(error, OutcomeUnknown)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of generators
@pytest.mark.parametrize("trouble", [misroute, cut])
def test_an_interrupt_anywhere(cluster, trouble):
    """No Future stays open, or says that what ran has not."""
    moments = (lambda _, n=n: InterruptAt(n) for n in itertools.count(1, 2))
    assert flushes(cluster, trouble, moments) > 50


@pytest.mark.parametrize("trouble", [misroute, cut])
def test_connections_closed_by_another_thread_anywhere(cluster, trouble):
    """As redis-py 7.0 does whenever it looks at the cluster."""

    def closing(client, number):
        def close():
            for connection in connections_of(client):
                connection.disconnect()

        return Elsewhere(number, close)

    moments = (functools.partial(closing, number=n) for n in itertools.count(1, 29))
    assert flushes(cluster, trouble, moments) > 30
