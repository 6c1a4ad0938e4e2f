"""The demo, as `make run` starts it: real processes, real requests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")

ROOT = Path(__file__).parent.parent
WAYS = {
    "/plain": "plain redis-py",
    "/pipeline": "hand-written pipeline",
    "/autobatch": "autobatch",
    "/asyncio/plain": "plain redis.asyncio",
    "/asyncio/pipeline": "redis.asyncio pipeline",
    "/asyncio/autobatch": "autobatch.asyncio",
}

pytestmark = pytest.mark.server


def start(*arguments):
    """Start it in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "autobatch", "demo", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def demo():
    """A demo that serves, and the address of its index page."""
    process = start("--rtt", "0", "--port", "0")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    assert lines, process.stderr.read()
    try:
        yield process, re.search(r"http://\S+/$", "".join(lines), re.MULTILINE)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_is_gone(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_once_it_prints_the_table_and_ends():
    """Fifty calls cost fifty round trips, or one, with asyncio as without."""
    process = start("--rtt", "0.5", "--port", "0", "--once")
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    rows = re.findall(
        r"^(\S.*?) +(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)%$", output, re.MULTILINE
    )
    assert [name for name, *_ in rows] == list(WAYS.values())
    round_trips, commands = ([int(row[column]) for row in rows] for column in (1, 2))
    assert commands == [54] * 6
    assert round_trips == [54, 1, 1] * 2
    assert all(0 < float(p50) <= float(p99) for *_, p50, p99, _ in rows)
    assert [of_plain == "100.0" for *_, of_plain in rows] == [True, False, False] * 2
    assert group_is_gone(process)


def test_the_pages_show_the_same_and_the_index_draws_them(demo):
    """One bar a round trip, of a real request; the shop is the same in all six ways."""
    _, url = demo
    with httpx.Client(base_url=url, timeout=60) as browser:
        index = browser.get("/").raise_for_status().text
        shown, again = (
            [browser.get(path).raise_for_status().content for path in WAYS] for _ in "12"
        )
    assert len(set(shown)) == len(set(again)) == 1
    assert shown[0].count(b"<article>") == 4
    assert again != shown  # the visit was counted, so these are no pages from a cache
    lanes = re.findall(r'<section class="lane">.*?</section>', index, re.DOTALL)
    assert [lane.count('class="trip"') for lane in lanes] == [54, 1, 1] * 2
    links = re.findall(r'<h3><a href="(.*?)">(.*?)</a>', "".join(lanes))
    assert links == list(WAYS.items())
    assert all(index.count(f'href="{path}"') == 2 for path in WAYS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["itself", "its group"])
def test_a_signal_ends_every_process(demo, number, kill):
    """Without a word, also when all of them get it at once, as from a terminal."""
    process, url = demo
    httpx.get(url, timeout=60).raise_for_status()
    kill(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output.strip(), errors) == (0, "", "")
    assert group_is_gone(process)


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf"])
def test_a_delay_that_is_none_is_refused(wrong):
    """It would be measured, and shown, as if it were one."""
    process = start("--once", "--rtt", wrong)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("autobatch: --rtt is 0 or more")


def test_a_taken_port_is_explained():
    """The message says what to do, and nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("--port", str(port))
        output, errors = process.communicate()
    assert (process.returncode, output) == (1, "")
    assert errors.startswith(f"The demo cannot listen on port {port}: ")
    assert "make run PORT=" in errors
    assert "Traceback" not in errors
