"""Libraries that take a Redis client do what docs/libraries.md says of each.

The modules in tests/libraries use them on a real server, three ways. A library listed with the
client does the same with it as with redis-py's own; one listed with `client.eager` differs with
the batching client in what the table names, and with `client.eager` in nothing.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import pytest

import autobatch
from autobatch.client import EagerRedis
from autobatch.lint.finder import find
from libraries.running import differences, run
from libraries.table import CLIENT, DOCUMENT, EAGER, documented, parsed, rendered

TESTS = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def fresh():
    """The table as it comes out now; in a process of its own, since libraries have settings."""
    done = subprocess.run(
        [sys.executable, "-m", "libraries"],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {row.name: row for row in parsed(done.stdout)}


ROWS = parsed(documented())


@pytest.mark.server
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_table_says_what_comes_out(fresh, row):
    found = fresh[row.name]
    if sys.version_info >= (3, 12):  # a Future is a buffer there, so less differs
        assert set(found.differs.split("; ")) <= {"", *row.differs.split("; ")}
    elif found.version == row.version:
        assert found == row
    else:  # another version may take other round trips
        assert (found.takes, found.like) == (row.takes, row.like)


@pytest.mark.server
def test_the_table_is_complete(fresh):
    assert [row.name for row in ROWS] == list(fresh)
    assert {row.takes for row in ROWS} == {CLIENT, EAGER}


def test_the_table_reads_back():
    assert rendered(ROWS) == documented()
    assert documented() in DOCUMENT.read_text()


# ---- that a difference would be seen ---------------------------------------------------


def none_is_tested(client, record):
    record("found", lambda: client.get("missing") is None)


def none_is_handed_on(client, record):
    record("found", client.get, "missing")


def none_is_handed_on_in_a_list(client, record):
    record("found", lambda: [client.get("missing")])


def an_error_comes_later(client, record):
    client.lpush("list", 1)
    record("found", client.get, "list")


def a_write_is_lost(client, record):
    record("found", bool)
    if client.get("missing") is None:
        client.set("a", 1)


def nothing_differs(client, record):
    client.rpush("list", 1)
    record("a value", client.rpush, "list", 2)
    record("values", lambda: [client.lrange("list", 0, -1), client.lpop("list")])
    record("an error", lambda: int(client.get("list")))


DIFFERENT = {
    none_is_tested: ["found"],
    none_is_handed_on: ["found"],
    none_is_handed_on_in_a_list: ["found"],
    an_error_comes_later: ["found"],
    a_write_is_lost: ["the keyspace"],
    nothing_differs: [],
}


@pytest.mark.parametrize("use", DIFFERENT)
def test_what_differs_is_seen(server, use):
    usage = types.SimpleNamespace(use=use)
    plain, batching, eager = (run(usage, way, server) for way in ("plain", "batching", "eager"))
    assert differences(batching, plain) == DIFFERENT[use]
    assert differences(eager, plain) == []
    assert plain.round_trips == eager.round_trips > 0


# ---- what the linter says of them ------------------------------------------------------

# As docs/lint.md tells: whether it points at an identity test in what misreads a lazy value.
POINTED_AT = {
    "cachelib": False,
    "django_redis": True,
    "flask_session": False,
    "pottery": True,
    "redis.lock": True,
    "rq": True,
    "walrus": False,
}


def origin_of(package):
    """Return the file of a package that is installed; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return pathlib.Path(spec.origin)


@pytest.mark.parametrize("package", POINTED_AT)
def test_where_the_linter_points(package):
    origin = origin_of(package)
    paths = origin.parent.rglob("*.py") if origin.name == "__init__.py" else [origin]
    codes = {finding.code for path in paths for finding in find(path.read_text())}
    assert ("AB101" in codes) == POINTED_AT[package]


def test_the_linter_finds_more_if_it_is_told_what_a_client_is_called():
    containers = origin_of("walrus").with_name("containers.py")
    assert find(containers.read_text(), names=["database"])


# ---- a library that is told the class of its client ------------------------------------


def test_the_eager_class_can_be_named_in_settings(proxy, client):
    """As in django-redis's OPTIONS: what waits goes first, and values are plain."""
    with EagerRedis(connection_pool=client.connection_pool) as eager, autobatch.batch():
        client.set("a", "1")
        assert eager.get("a") == "1"
        assert eager.get("missing") is None
        assert proxy.names == [["SET"], ["GET"], ["GET"]]
        assert eager.eager is eager


def test_what_such_a_class_makes_can_batch(proxy, client):
    with EagerRedis(connection_pool=client.connection_pool) as eager:
        batching = autobatch.wrap(eager)
        with autobatch.batch():
            values = [batching.set("a", "1"), batching.get("a")]
        assert values == [True, "1"]
        assert proxy.names == [["SET", "GET"]]
        assert autobatch.wrap(batching) is batching
