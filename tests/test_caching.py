"""redis-py's client-side cache answers outside scopes; what it does not hold keeps the contract."""

from __future__ import annotations

import pytest
import redis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

import autobatch
from autobatch.testing import Cut

CACHING = {"protocol": 3, "cache_config": CacheConfig(), "decode_responses": True}


@pytest.fixture(autouse=True)
def allowed(server, monkeypatch):
    """redis-py caches for Redis 7.4 or newer only, though other servers know how, too."""
    connection = redis.Connection(port=server, protocol=3)
    connection.connect()
    name = connection.handshake_metadata[b"server"].decode()
    connection.disconnect()
    monkeypatch.setattr(CacheProxyConnection, "DEFAULT_SERVER_NAME", name)
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "7.0.0")


@pytest.fixture
def cached(proxy):
    with autobatch.Redis(port=proxy.port, **CACHING) as client:
        yield client


def test_a_cached_value_costs_no_round_trip(cached, proxy, plain):
    cached.set("a", 1)
    assert cached.get("a") == "1"
    proxy.reset()
    assert cached.get("a") == "1"
    assert proxy.names == []
    with autobatch.batch():
        assert cached.get("a") == "1"
        cached.set("a", 2)
    assert proxy.names == [["GET"], ["SET"]]
    assert cached.get("a") == cached.eager.get("a") == "2"


def test_a_write_whose_reply_was_lost_is_not_sent_again(cached, proxy, plain):
    proxy.arm(Cut(reply=0))
    with pytest.raises(autobatch.errors.OutcomeUnknown):
        cached.incr("a")
    assert plain.get("a") == "1"


def test_a_cluster_answers_from_its_cache(cluster):
    with autobatch.RedisCluster("127.0.0.1", cluster.ports[0], **CACHING) as client:
        client.set("a", 1)
        assert client.get("a") == "1"
        cluster.reset_counts()
        assert client.get("a") == client.eager.get("a") == "1"
        assert not any(proxy.names for proxy in cluster.proxies.values())
        with autobatch.batch():
            client.set("a", 2)
        assert client.get("a") == "2"
