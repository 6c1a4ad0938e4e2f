"""The cluster of the tests: what it promises to those that use it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, TryAgainError
from redis.retry import Retry

from autobatch.testing import Silence
from clusters import HOST, PATIENCE, Cluster, eventually

pytestmark = pytest.mark.server

SLOT = key_slot(b"a")


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def shared_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    binary = None
    if request.param == "redis-server" and (binary := shutil.which("redis-server")) is None:
        pytest.skip("there is no redis-server")
    with Cluster(binary, proxied=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    shared_cluster.reset()
    return shared_cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[redis.RedisCluster]:
    with cluster.client(decode_responses=True) as client:
        yield client


def direct(port: int, **options: object) -> redis.Redis:
    """A client of one node, as others see it, that does not retry."""
    return redis.Redis(port=port, decode_responses=True, retry=Retry(NoBackoff(), 0), **options)


def refuses(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def other_primary(cluster: Cluster) -> int:
    """A primary that does not serve SLOT."""
    return next(port for port in cluster.primaries if port != cluster.owner(SLOT))


def test_three_primaries_share_the_keys_and_each_has_a_replica(cluster, client):
    for number in range(30):
        client.set(f"key{number}", number)
    sizes = [cluster.node(port).dbsize() for port in cluster.primaries]
    assert len(sizes) == 3
    assert all(sizes)
    assert sum(sizes) == 30
    for port in cluster.primaries:
        cluster.node(port).wait(1, 0)
    assert [cluster.node(port).dbsize() for port in cluster.replicas] == sizes


def test_the_proxies_count_what_clients_send_and_nothing_else(cluster, client):
    client.ping()
    cluster.reset_counts()
    owner = cluster.owner(SLOT)
    client.set("a", 1)
    cluster.node(owner).set("{a}", 1)
    cluster.node(owner).wait(1, 0)
    counted = {port: proxy.names for port, proxy in cluster.proxies.items()}
    assert counted == {port: [["SET"]] if port == owner else [] for port in cluster.ports}


def test_a_killed_primary_refuses_and_its_replica_takes_over(cluster, client):
    owner = cluster.owner(SLOT)
    (replica,) = cluster.replicas_of(owner)
    client.set("a", 1)
    cluster.node(owner).wait(1, 0)
    cluster.kill(owner)
    assert refuses(owner)
    cluster.failover(replica)
    assert cluster.owner(SLOT) == replica
    assert owner not in cluster.primaries
    assert client.get("a") == "1"
    cluster.restart(owner)
    cluster.wait_until_ok()
    assert cluster.replicas_of(replica) == [owner]
    assert cluster.node(owner).dbsize() == 1


def test_nodes_find_out_themselves_that_a_primary_was_killed(cluster):
    owner = cluster.owner(SLOT)
    replicas = cluster.replicas_of(owner)
    cluster.kill(owner)
    cluster.wait_until_ok()
    assert [cluster.owner(SLOT)] == replicas


def test_a_paused_node_says_nothing_until_it_is_resumed(cluster):
    port = cluster.primaries[0]
    cluster.pause(port)
    with direct(port, socket_timeout=0.1) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    cluster.resume(port)
    with direct(port) as client:
        assert client.ping()


def test_primary_and_replica_change_places_and_back(cluster, client):
    ports = cluster.ports
    owner = cluster.owner(SLOT)
    (replica,) = cluster.replicas_of(owner)
    client.set("a", 1)
    cluster.failover(replica)
    assert cluster.owner(SLOT) == replica
    assert client.get("a") == "1"
    cluster.failover(owner)
    assert cluster.owner(SLOT) == owner
    cluster.reset()
    assert cluster.ports == ports


def test_a_slot_that_is_half_moved_asks_to_ask_or_to_try_again(cluster, client):
    source, target = cluster.owner(SLOT), other_primary(cluster)
    client.mset({"{a}1": "one", "{a}2": "two"})
    cluster.migrate_slot(SLOT, target, stop_half_way=True)
    assert cluster.owner(SLOT) == source
    with direct(source) as node:
        assert node.get("{a}2") == "two"
        with pytest.raises(AskError, match=rf"^{SLOT} {HOST}:{target}$"):
            node.get("{a}1")
        with pytest.raises(TryAgainError):
            node.mget("{a}1", "{a}2")
    assert client.get("{a}1") == "one"

    cluster.move_keys(SLOT, target, cluster.keys_in(SLOT))
    cluster.end_migration(SLOT, target)
    assert cluster.owner(SLOT) == target
    with direct(source) as node, pytest.raises(MovedError, match=rf"^{SLOT} {HOST}:{target}$"):
        node.get("{a}1")
    assert client.mget("{a}1", "{a}2") == ["one", "two"]


def test_a_slot_moves_with_all_its_keys_and_back(cluster, client):
    ports = cluster.ports
    source, target = cluster.owner(SLOT), other_primary(cluster)
    client.mset({f"{{a}}{number}": number for number in range(250)})
    cluster.migrate_slot(SLOT, target)
    assert [cluster.node(port).dbsize() for port in (source, target)] == [0, 250]
    cluster.migrate_slot(SLOT, source)
    assert [cluster.node(port).dbsize() for port in (source, target)] == [250, 0]
    cluster.reset()
    assert cluster.ports == ports


def test_a_node_joins_serves_and_leaves(cluster, client):
    ports = cluster.ports
    source = cluster.owner(SLOT)
    client.set("a", 1)
    added = cluster.add_node()
    assert cluster.primaries[-1] == added
    cluster.migrate_slot(SLOT, added)
    assert client.get("a") == "1"
    assert cluster.node(added).dbsize() == 1
    cluster.migrate_slot(SLOT, source)
    cluster.remove_node(added)
    assert refuses(added)
    assert cluster.ports == ports
    assert client.get("a") == "1"


def test_reset_empties_all_nodes_and_calms_the_proxies(cluster, client):
    owner = cluster.owner(SLOT)
    client.set("a", 1)
    cluster.node(owner).wait(1, 0)
    cluster.proxies[owner].arm(Silence(), greeting=True)
    cluster.proxies[owner].refuse()
    ports = cluster.ports
    cluster.reset()
    assert cluster.ports == ports
    assert not any(cluster.node(port).dbsize() for port in ports)
    assert not any(proxy.round_trips for proxy in cluster.proxies.values())
    with direct(owner, socket_timeout=PATIENCE) as node:
        assert node.ping()


@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: cluster.kill(cluster.replicas[0]),
        lambda cluster: cluster.begin_migration(SLOT, other_primary(cluster)),
    ],
    ids=["a killed node", "an open slot"],
)
def test_reset_forms_a_new_cluster_where_there_is(cluster, change):
    ports = cluster.ports
    change(cluster)
    cluster.reset()
    assert cluster.ports != ports
    cluster.wait_until_ok()


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Cluster() as cluster:
        ports = cluster.ports
        assert not cluster.proxies
        assert not any(map(refuses, ports))
        assert list(tmp_path.iterdir())
        cluster.pause(ports[0])
    assert all(map(refuses, ports))
    assert not list(tmp_path.iterdir())


def test_servers_end_with_a_program_that_is_killed(tmp_path):
    program = (
        "import clusters; c = clusters.Cluster().__enter__(); print(c.ports, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        ports = [int(port) for port in process.stdout.readline().strip("[]\n").split(",")]
        assert not any(map(refuses, ports))
        process.kill()
    eventually(lambda: all(map(refuses, ports)) and not list(tmp_path.iterdir()))
