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
    """Each `print(...)  # value: why` prints that value; a comment in words is no value."""
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    told = re.findall(r"^\s*print\(.*\)\s+# (.*)$", "\n".join(BLOCKS), re.MULTILINE)
    assert len(printed) == len(told)
    values = [(line.split(": ")[0], out) for line, out in zip(told, printed, strict=True)]
    values = [(value, out) for value, out in values if not value[0].islower()]
    assert len(values) >= 9
    assert [value for value, _ in values] == [out for _, out in values]
    namespace["redis"].close()
    namespace["client"].close()


def test_every_public_name_is_told_of():
    text = README.read_text()
    for name in autobatch.__all__:
        assert name in text
