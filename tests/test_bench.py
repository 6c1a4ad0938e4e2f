"""The benchmarks run and say what they measured. Nothing here depends on how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parent.parent
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
    "asgi": {"with BatchMiddleware", "bare application"},
    "wsgi": {"with BatchMiddleware", "bare application"},
}


@pytest.mark.server
def test_a_quick_run_writes_figures_of_every_contender_and_a_chart(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--out", tmp_path], cwd=ROOT, check=True
    )
    written = json.loads((tmp_path / "latest.json").read_text())
    assert written["machine"]["server"].startswith("valkey")
    benchmarks = {result["name"]: result for result in written["benchmarks"]}
    assert {name: set(result["contenders"]) for name, result in benchmarks.items()} == CONTENDERS
    for result in benchmarks.values():
        for figures in result["contenders"].values():
            assert all(number > 0 for spread in figures.values() for number in spread.values())
        base = result["contenders"][result["base"]]
        assert base["client_ratio"] == base["wall_ratio"] == {"median": 1, "p10": 1, "p90": 1}

    chart = ET.parse(tmp_path / "chart.svg")
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    for result in benchmarks.values():
        assert (result["title"] in texts) == (result["unit"] == "command")
