"""The examples print what their docstrings say, and take the round trips that they promise."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autobatch

ROOT = Path(__file__).parent.parent
NAMES = [
    "atomic",
    "errors",
    "generators",
    "heterogeneous",
    "increment_and_expire",
    "nesting",
]


def run(name: str, **environment: str) -> str:
    """Run an example as its reader does; return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}"],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def promised(name: str) -> str:
    """What an example's docstring says that it prints."""
    source = (ROOT / "examples" / f"{name}.py").read_text()
    docstring = source.split('"""')[1]
    return docstring.partition(f"$ python -m examples.{name}\n")[2]


@pytest.fixture
def example(proxy, client, monkeypatch):
    """Import an example by its name, with its client behind the counting proxy."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{proxy.port}")

    def load(name):
        module = importlib.import_module(f"examples.{name}")
        monkeypatch.setattr(module, "redis", client)
        return module

    return load


def test_these_are_all():
    modules = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # The applications are served by test_starlette.py, test_flask.py, test_panel.py and
    # test_asgi_asyncio.py.
    applications = {"asyncio_app", "flask_app", "panel_app", "starlette_app"}
    assert modules == {*NAMES, "cluster", "__init__", "server", *applications}


@pytest.mark.parametrize("name", NAMES)
def test_prints_what_its_docstring_says(name, proxy):
    assert run(name, REDIS_URL=f"redis://127.0.0.1:{proxy.port}") == promised(name) != ""
    assert proxy.commands > 0  # on the server of REDIS_URL


def test_brings_its_own_server_without_a_url(server):
    assert run("increment_and_expire") == promised("increment_and_expire")


@pytest.mark.server
def test_brings_its_own_cluster_without_a_url():
    assert run("cluster") == promised("cluster") != ""


def test_increment_and_expire_alone(example, proxy):
    example("increment_and_expire").alone()
    assert proxy.names == [["INCRBY", "EXPIRE"]]


def test_increment_and_expire_twice(example, proxy):
    example("increment_and_expire").twice()
    assert proxy.names == [["INCRBY", "EXPIRE"] * 2]


def test_increment_and_expire_a_hundred_times(example, proxy, plain):
    example("increment_and_expire").a_hundred_times()
    assert proxy.names == [["INCRBY", "EXPIRE"] * 100]
    keys = [f"example:{i}" for i in range(100)]
    assert plain.mget(keys) == ["1"] * 100
    assert all(0 < plain.ttl(key) <= 60 for key in keys)


def test_heterogeneous_commands_share_a_round_trip(example, proxy):
    example("heterogeneous").write_and_read()
    saving = ["HSET", "ZADD", "DEL", "LPUSH"]
    visiting = ["HGET", "INCRBY", "ZREVRANK"]
    assert proxy.names == [saving * 2 + visiting * 2 + ["ZCARD"]]


def test_a_nested_structure_resolves_in_one_round_trip(example, proxy):
    example("heterogeneous").as_json()
    assert proxy.names == [["HGET", "LRANGE"] * 2]


@pytest.fixture
def nesting(example, proxy):
    """The nesting example with its data in place, and nothing counted yet."""
    module = example("nesting")
    module.open_shop()
    assert proxy.round_trips == 1
    proxy.reset()
    return module


def test_blocks_made_of_blocks_join(nesting, proxy):
    nesting.joined()
    assert proxy.names == [["INCRBY", "EXPIRE", "HGET", "HGET", "HGET", "HGET", "LPUSH"]]


def test_a_block_on_its_own_leaves_after_what_waits(nesting, proxy):
    nesting.on_its_own()
    assert proxy.names == [["INCRBY", "EXPIRE"], ["INCRBY"]]


def test_a_future_as_an_argument_takes_a_round_trip(nesting, proxy, plain):
    nesting.as_an_argument()
    assert proxy.names == [["INCRBY", "EXPIRE"], ["SET"]]
    assert plain.get("example:last_visit") == plain.get("example:visits") == "1"


def test_chains_share_the_second_round_trip(nesting, proxy):
    nesting.chained()
    assert proxy.names == [["GET"] * 3, ["HGETALL"] * 3]


@pytest.fixture
def atomic(example, proxy):
    """The atomic example with its accounts open, and nothing counted yet."""
    module = example("atomic")
    module.open_accounts()
    proxy.reset()
    return module


def test_a_transaction_rides_with_the_rest(atomic, proxy):
    atomic.all_or_nothing()
    transfer = ["MULTI", "DECRBY", "INCRBY", "LPUSH", "EXEC"]
    assert proxy.names == [["SET", *transfer, "LLEN"]]


def test_an_atomic_block_that_fails_sends_nothing(atomic, proxy):
    atomic.no_values_inside()
    assert proxy.names == []


def test_a_decision_watches_its_key(atomic, proxy):
    atomic.withdraw("ada", 50)
    assert proxy.names == [["WATCH"], ["GET"], ["MULTI", "DECRBY", "EXEC"]]


@pytest.fixture
def errors(example, plain):
    """The errors example, with a word where a number is expected."""
    plain.set("example:word", "hello")
    return example("errors")


def test_an_error_leaves_the_rest_of_its_batch_alone(errors, proxy):
    errors.at_its_future()
    assert proxy.names == [["INCRBY", "GET"]]


def test_unseen_errors_leave_the_rest_of_their_batch_alone(errors, proxy, plain):
    errors.at_the_end()
    assert proxy.names == [["INCRBY", "DECRBY", "RPUSH"]]
    assert plain.lrange("example:orders", 0, -1) == ["tea"]


def test_a_failing_program_sends_what_it_called(errors, proxy):
    errors.flushed()
    assert proxy.names == [["RPUSH"]]


@pytest.mark.parametrize("dropped", ["discarded", "by_hand"])
def test_what_is_discarded_is_not_sent(errors, proxy, dropped):
    getattr(errors, dropped)()
    assert proxy.names == []


@pytest.fixture
def generators(example, proxy):
    """The generators example with its game going, and nothing counted yet."""
    module = example("generators")
    module.start_game()
    assert proxy.round_trips == 1
    proxy.reset()
    return module


def test_a_streamed_page_is_a_round_trip(generators, proxy):
    generators.streamed()
    assert proxy.names == [
        ["ZREVRANGE"],
        ["HGETALL", "HGETALL", "ZREVRANGE"],
        ["HGETALL", "HGETALL", "ZREVRANGE"],
        ["HGETALL", "ZREVRANGE"],
    ]


def test_a_generator_that_is_left_sends_what_waits(generators, proxy):
    generators.first_page()
    assert proxy.names == [["ZREVRANGE"], ["HGETALL", "HGETALL", "ZREVRANGE"]]


def test_a_generator_joins_the_scope_around_it(generators, proxy):
    generators.in_one_scope()
    assert [len(exchange) for exchange in proxy.exchanges] == [2, 3, 3, 2]
    assert proxy.names[0] == ["INCRBY", "ZREVRANGE"]


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    """The cluster example, its client behind the counting proxies."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("REDIS_CLUSTER_URL", f"redis://127.0.0.1:{cluster.ports[0]}")
    module = importlib.import_module("examples.cluster")
    with autobatch.RedisCluster("127.0.0.1", cluster.ports[0], decode_responses=True) as client:
        monkeypatch.setattr(module, "redis", client)
        cluster.reset_counts()
        yield module


def names_on(cluster):
    """What the primaries were sent, by node."""
    return [cluster.proxies[port].names for port in cluster.primaries]


def test_a_scope_is_an_exchange_with_each_node(on_cluster, cluster):
    on_cluster.on_three_nodes()
    names = names_on(cluster)
    assert [len(exchanges) for exchanges in names] == [1, 1, 1]
    sent = sorted(name for [exchange] in names for name in exchange)
    assert sent == ["INCRBY"] * 5 + ["RPUSH"] * 5


def test_keys_of_one_slot_can_be_a_transaction(on_cluster, cluster):
    on_cluster.in_one_slot()
    sent = [names for names in names_on(cluster) if names]
    assert sent == [[["MSET"], ["MULTI", "DECRBY", "INCRBY", "EXEC"]]]


def test_a_transaction_over_two_slots_is_not_sent(on_cluster, cluster):
    on_cluster.in_two_slots()
    assert names_on(cluster) == [[], [], []]
