"""The benchmarks run and say what they measured. Nothing here depends on how fast."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.harness import Benchmark, Unavailable, measure, repeated
from bench.report import table

ROOT = Path(__file__).parent.parent
ON_A_CLUSTER = {
    "autobatch",
    "redis-py, ClusterPipeline",
    "redis-py, one by one",
}
ASYNCIO_ON_A_CLUSTER = {
    "autobatch",
    "redis.asyncio, ClusterPipeline",
    "redis.asyncio, one by one",
    "coredis, pipeline",
    "valkey-glide, batch",
}
ON_A_FAR_CLUSTER = {
    "hiredis and a socket, one part",
    "autobatch, keys of one node",
    "autobatch",
    "redis-py, ClusterPipeline",
    "autobatch.asyncio",
    "redis.asyncio, ClusterPipeline",
    "coredis, pipeline",
    "valkey-glide, batch",
}
CONTENDERS = {
    "get50": {
        "autobatch",
        "redis-py, pipeline",
        "redis-py, one by one",
        "hiredis and a socket",
    },
    "set50ex": {
        "autobatch",
        "redis-py, pipeline",
        "redis-py, one by one",
        "hiredis and a socket",
    },
    "lone": {"autobatch", "redis-py"},
    "asyncio-get50": {
        "autobatch",
        "redis.asyncio, pipeline",
        "redis.asyncio, one by one",
        "coredis, pipeline",
        "valkey-glide, batch",
    },
    "asyncio-64x10": {
        "autobatch",
        "redis.asyncio, pipeline",
        "redis.asyncio, one by one",
        "coredis, pipeline",
        "valkey-glide, batch",
    },
    "asyncio-gather50": {"autobatch", "redis.asyncio", "coredis", "valkey-glide"},
    "asyncio-lone": {"autobatch", "redis.asyncio", "coredis", "valkey-glide"},
    "asgi": {"with BatchMiddleware", "bare application"},
    "wsgi": {"with BatchMiddleware", "bare application"},
    "records": {"off", "panel on", "recorded to a file", "records and advice", "records on"},
    "cluster-50": ON_A_CLUSTER,
    "cluster-500": ON_A_CLUSTER,
    "cluster-asyncio-50": ASYNCIO_ON_A_CLUSTER,
    "cluster-asyncio-500": ASYNCIO_ON_A_CLUSTER,
    "cluster-wall-50": ON_A_FAR_CLUSTER,
    "cluster-wall-500": ON_A_FAR_CLUSTER,
}


WAYS = {
    "autobatch, awaited one by one",
    "autobatch, gathered",
    "redis.asyncio, pipeline",
    "redis.asyncio, one by one",
}


@pytest.mark.server
def test_a_quick_run_writes_figures_of_every_contender_and_a_chart(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--out", tmp_path], cwd=ROOT, check=True
    )
    written = json.loads((tmp_path / "latest.json").read_text())
    assert written["machine"]["server"].startswith("valkey")
    benchmarks = {result["name"]: result for result in written["benchmarks"]}
    assert {
        name: result["contenders"].keys() | result["unavailable"].keys()
        for name, result in benchmarks.items()
    } == CONTENDERS
    for result in benchmarks.values():
        for name, why in result["unavailable"].items():  # `make bench` alone installs all of them
            assert name.startswith(("coredis", "valkey-glide"))
            assert why.startswith("No module named")
        for figures in result["contenders"].values():
            assert all(number > 0 for spread in figures.values() for number in spread.values())
        base = result["contenders"][result["base"]]
        assert base["client_ratio"] == base["wall_ratio"] == {"median": 1, "p10": 1, "p90": 1}

    [application] = written["applications"]
    assert set(application["ways"]) == WAYS
    for figures in application["ways"].values():
        assert figures["rate"] > 0
        assert figures["cpu"] > 0
        assert 0 < figures["p50"] <= figures["p99"]

    chart = ET.parse(tmp_path / "chart.svg")
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    for result in benchmarks.values():
        of_ours = "autobatch" in result["contenders"]  # and not of what hears of us
        assert (result["title"] in texts) == (result["unit"] == "command" and of_ours)


def test_a_contender_that_cannot_take_part_is_named_with_the_reason():
    """Nobody is left out silently."""

    @contextlib.contextmanager
    def works(port):
        yield repeated(lambda: port)

    @contextlib.contextmanager
    def fails(_):
        raise Unavailable("No module named 'peer'")
        yield

    contenders = {"works": works, "fails": fails}
    benchmark = Benchmark("name", "Title", "command", 1, 1000, "works", contenders)
    result = measure(benchmark, 0, 3)
    assert set(result.contenders) == {"works"}
    assert result.unavailable == {"fails": "No module named 'peer'"}
    assert "  fails: not measured: No module named 'peer'" in table(result).splitlines()


def test_contenders_that_do_other_work_are_not_compared():
    """A benchmark of clients that give different replies says nothing."""

    @contextlib.contextmanager
    def other(_):
        yield repeated(lambda: "other")

    @contextlib.contextmanager
    def base(_):
        yield repeated(lambda: "value")

    benchmark = Benchmark("name", "Title", "command", 1, 1, "base", {"base": base, "other": other})
    with pytest.raises(AssertionError, match="name: other gave other, not value"):
        measure(benchmark, 0, 1)
