"""The demo on a cluster, as `make run CLUSTER=1` starts it: real processes, real requests."""

from __future__ import annotations

import os
import re
import signal

import pytest

from test_demo import WAYS, group_is_gone, start

httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def demo():
    """A demo that serves: what it has printed, and the address of its index page."""
    process = start("--cluster", "--rtt", "1", "--port", "0")
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        printed = "".join(lines)
        assert printed, process.stderr.read()
        yield printed, re.search(r"http://\S+/$", printed, re.MULTILINE)[0]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output.strip(), errors) == (0, "", "")
        assert group_is_gone(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_the_table_counts_once_what_went_to_several_nodes_at_a_time(demo):
    """Fifty calls cost fifty round trips, or one, on three nodes as on one."""
    printed, _ = demo
    rows = re.findall(r"^(\S.*?) +(\d+) +(\d+) +[\d.]+ +[\d.]+ +[\d.]+%$", printed, re.MULTILINE)
    assert rows == list(zip(WAYS.values(), ["54", "1", "1"] * 2, ["54"] * 6, strict=True))


def test_the_index_has_a_row_for_each_node(demo):
    """One bar an exchange of a real request; those of one round trip stand above each other."""
    _, url = demo
    index = httpx.get(url, timeout=60).raise_for_status().text
    lanes = re.findall(r'<section class="lane">.*?</section>', index, re.DOTALL)
    rows = [re.findall(r'class="trip" x="\S+" y="(\d+)" height="8"', lane) for lane in lanes]
    assert [len(of_lane) for of_lane in rows] == [54, 3, 3] * 2
    assert [sorted(set(of_lane)) for of_lane in rows] == [["10", "18", "26"]] * 6


def test_all_pages_show_one_shop(demo):
    """A cluster has one database, so each of them counts a visit of the same cards."""
    _, url = demo
    with httpx.Client(base_url=url, timeout=60) as browser:
        pages = [browser.get(path).raise_for_status().text for path in WAYS]
    views = [[int(count) for count in re.findall(r"(\d+) views? today", page)] for page in pages]
    first = views[0][0]
    assert views == [[first + number] * 4 for number in range(6)]
