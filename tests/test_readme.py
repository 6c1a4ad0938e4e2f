"""The README's code runs, and prints what its comments say."""

from __future__ import annotations

import pathlib
import re

import pytest

import autobatch

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def namespace(server, plain):
    """What the blocks share, as one session would."""
    return {"REDIS_URL": f"redis://127.0.0.1:{server}", "REDIS_PORT": server}


def test_the_tour_prints_what_it_says(namespace, capsys):
    expected = []
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
        expected += re.findall(r"^\s*print\(.*\)\s+# (.*)$", block, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(re.findall(r"^\s*print\(", "\n".join(BLOCKS), re.MULTILINE))
    told = [line for line in expected if line.startswith(("Stats", "[[", "ADA")) or line.isdigit()]
    assert told
    for line in told:
        assert line in printed
    namespace["redis"].close()
    namespace["client"].close()


def test_every_public_name_is_told_of():
    text = README.read_text()
    for name in autobatch.__all__:
        assert name in text
