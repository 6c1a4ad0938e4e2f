"""One real server for all tests, and a proxy that counts what reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis

import autobatch
from autobatch.ambient import ambient
from autobatch.testing import Proxy
from clusters import Cluster

if TYPE_CHECKING:
    from autobatch.testing.valkey import Server


@pytest.fixture(scope="session")
def server(valkey_server: Server) -> int:
    """The port of a real Valkey: the plugin's own."""
    return valkey_server.port


@pytest.fixture(scope="session")
def second_server() -> Iterator[int]:
    """The port of another real Valkey."""
    from autobatch.testing.valkey import run

    with run() as valkey:
        yield valkey.port


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """A real cluster; tests take `cluster`."""
    with Cluster(proxied=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """A real cluster of three primaries and three replicas, empty, a proxy in front of each."""
    shared_cluster.reset()
    return shared_cluster


@pytest.fixture
def plain(server: int) -> Iterator[redis.Redis]:
    """redis-py's own client, straight to an empty server."""
    with redis.Redis(port=server, decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def data(plain: redis.Redis) -> None:
    """Something of every kind in Redis."""
    plain.set("text", "héllo")
    plain.set("count", 3)
    plain.hset("hash", mapping={"name": "Ada", "born": "1815"})
    plain.rpush("list", "a", "b")
    plain.sadd("set", "member")
    plain.zadd("scores", {"ada": 1.5})


@pytest.fixture
def proxy(server: int, plain: redis.Redis) -> Iterator[Proxy]:
    """The witness: it counts commands and exchanges on their way to the server."""
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[autobatch.Redis]:
    """A batching client, through the proxy."""
    with autobatch.Redis(port=proxy.port, decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def no_leaked_scope() -> Iterator[None]:
    """No test may leave a scope behind in its context."""
    yield
    assert ambient.get() is None


# What takes long, and tells no more with another version of redis-py.
ONCE = {
    "test_advice_programs",
    "test_bench",
    "test_bounds",
    "test_cluster_differential",
    "test_clusters_helper",
    "test_demo",
    "test_demo_cluster",
    "test_differential",
    "test_differential_asyncio",
    "test_gevent",
    "test_keys",
    "test_libraries",
    "test_lifetimes",
    "test_proxy",
    "test_pytest_plugin",
    "test_security",
    "test_server_errors",
    "test_soak",
    "test_storm",
    "test_valkey_cluster",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the server, directly or not, is a server test."""
    for item in items:
        if item.path.stem in ONCE:
            item.add_marker(pytest.mark.once)
        if {"server", "second_server", "shared_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)
