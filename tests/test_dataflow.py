"""Whether a value reaches a call, in functions of every shape."""

from __future__ import annotations

import ast
import itertools
import textwrap

import pytest

from autobatch.dataflow import (
    Reach,
    Unseen,
    decides_to_raise,
    follows,
    goes_on,
    loop_of,
    reach,
    refresh,
)
from autobatch.report import Place

_numbers = itertools.count()


@pytest.fixture
def places(tmp_path):
    """Return what writes some code to a file, and gives the places of its calls by name."""

    def write(code):
        path = tmp_path / f"code{next(_numbers)}.py"
        path.write_text(textwrap.dedent(code))
        found = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                span = node.col_offset, node.end_lineno, node.end_col_offset
                found[name] = Place(str(path), node.lineno, "function", span)
        return found

    return write


ARGUMENTS = [
    "x = source()\ntarget(x)",
    "target(source())",
    "target(key=source())",
    "target(*source())",
    "x = source()\ny = x + 1\nz = [y]\ntarget(f'key:{z[0]}')",
    "x, y = 1, source()\ntarget(y)",
    "x, *y = source()\ntarget(y)",
    "x: int = source()\ntarget(x)",
    "x = 0\nx += source()\ntarget(x)",
    "if (x := source()):\n    pass\ntarget(x)",
    "found = []\nfound.append(source())\ntarget(found)",
    "found = {}\nfound['a'] = source()\ntarget(found)",
    "found = {}\nfound['a']['b'] = source()\ntarget(found)",
    "self.x = source()\ntarget(self.x.y)",
    "x = source()\ntarget(x.name)",
    "x = source()\nx.client().target()",
    "for x in source():\n    target(x)",
    "with source() as x:\n    target(x)",
    "x = source()\n[target(y) for y in x]",
    "x = source()\ntry:\n    pass\nfinally:\n    target(x)",
    "x = source()\nmatch x:\n    case [y, *z]:\n        target(y)",
    "source().map(lambda it: target(it))",
    "x = source()\nif a:\n    x = 1\ntarget(x)",
    "x = source()\ndef inner():\n    target(x)",
    "while True:\n    target(x)\n    x = source()",
    "for y in z:\n    if y:\n        target(x)\n    x = source()",
    # Which key it is was decided by the value.
    "if source():\n    key = 'a'\nelse:\n    key = 'b'\ntarget(key)",
    "for x in y:\n    if source():\n        break\ntarget(x)",
    "for x in y:\n    if source():\n        continue\n    z = x\ntarget(z)",
    "try:\n    if source():\n        raise Error\n    x = 1\nexcept Error:\n    pass\ntarget(x)",
]
CONDITIONS = [
    "if source():\n    target()",
    "if not source() == 1:\n    pass\nelse:\n    target()",
    "x = source()\nif x:\n    return\ntarget()",
    "x = source()\nif x is None:\n    raise KeyError\ntarget()",
    "while source():\n    target()",
    "for x in source():\n    target()",
    "for x in y:\n    if source():\n        break\n    target()",
    "for x in y:\n    target()\n    if source():\n        break",
    "for x in y:\n    if source():\n        continue\n    target()",
    "source() and target()",
    "a or source() or target()",
    "target() if source() else None",
    "[target() for x in y if source()]",
    "[target() for x in source()]",
    "x = source()\nmatch x:\n    case 1:\n        target()",
    "try:\n    if source():\n        raise Error\n    target()\nexcept Error:\n    pass",
    "try:\n    if source():\n        raise Error\nexcept Error:\n    target()",
    "try:\n    if source():\n        raise Error\nexcept Error:\n    return\ntarget()",
    # Whether it can be made use of is a decision if the program goes another way where it cannot.
    "try:\n    x = int(source())\nexcept ValueError:\n    return\ntarget()",
    "try:\n    x = source()['name']\nexcept KeyError:\n    return\ntarget()",
    "for x in y:\n    try:\n        int(source())\n    except Error:\n        break\n    target()",
    "try:\n    x = int(source())\nexcept ValueError:\n    x = 0\nelse:\n    target()",
]
NEITHER = [
    "source()\ntarget()",
    "x = source()\nprint(x)\ntarget()",
    "x = source()\nx = 1\ntarget(x)",
    "x = source()\ntarget(y)",
    "a.x = source()\ntarget(a.y)",
    "x = source()\nif x:\n    print(x)\ntarget()",
    "for y in z:\n    x = source(y)\n    print(x)\n    target(y)",
    "for y in z:\n    if source():\n        continue\n    pass\ntarget()",
    "for y in z:\n    x = source()\n    if not x:\n        continue\n    found.append(x)\ntarget()",
    "found = [source(y) for y in z]\ntarget()",
    "assert source() == 1\ntarget()",
    "target()\nx = source()",
    "try:\n    x = source()\nexcept KeyError:\n    pass\ntarget()",
    "redis.set('a', source())\nredis.target()",
    "for x in y:\n    if source():\n        continue\n    z = x\ntarget(x)",
    "try:\n    if source():\n        raise Error\nexcept Error:\n    pass\ntarget()",
    "try:\n    if a:\n        raise Error\n    source()\nexcept Error:\n    return\ntarget()",
    "try:\n    x = int(source())\nexcept ValueError:\n    x = 0\ntarget()",
    "try:\n    x = int(source())\nexcept ValueError as error:\n    raise Bad from error\ntarget()",
    "try:\n    found.append(source())\nexcept Error:\n    return\ntarget()",
]


def function(body, head="def function(a, y, z, self, x=None):"):
    return f"{head}\n{textwrap.indent(body, '    ')}\n"


@pytest.mark.parametrize("body", ARGUMENTS)
def test_arguments(places, body):
    found = places(function(body))
    assert reach(found["source"], found["target"]) is Reach.ARGUMENT


@pytest.mark.parametrize("body", CONDITIONS)
def test_conditions(places, body):
    found = places(function(body))
    assert reach(found["source"], found["target"]) is Reach.CONDITION


@pytest.mark.parametrize("body", NEITHER)
def test_what_does_not_reach(places, body):
    found = places(function(body))
    assert reach(found["source"], found["target"]) is None


ASYNC = [
    ("x = await source()\ntarget(x)", Reach.ARGUMENT),
    ("if await source():\n    await target()", Reach.CONDITION),
    ("async for x in source():\n    await target(x)", Reach.ARGUMENT),
    ("async with source() as x:\n    await target(x)", Reach.ARGUMENT),
    ("x = await source()\nprint(x)\nawait target()", None),
]


@pytest.mark.parametrize(("body", "how"), ASYNC)
def test_coroutines(places, body, how):
    found = places(function(body, "async def function():"))
    assert reach(found["source"], found["target"]) is how


LOOPS = [
    ("for x in y:\n    source(x)", None),
    ("while x:\n    x = source(x)", Reach.ARGUMENT),
    ("x = 0\nwhile True:\n    x, y = source(x)\n    if not x:\n        break", Reach.ARGUMENT),
    ("for x in y:\n    if source(x):\n        break", Reach.CONDITION),
    ("for x in y:\n    if source(x):\n        return", Reach.CONDITION),
    ("total = 0\nfor x in y:\n    total += source(x)", None),
    ("[source(x) for x in y]", None),
    ("sum(source(x) for x in y)", None),
    ("any([source(x) for x in y])", None),
    ("any(source(x) for x in y)", Reach.CONDITION),
    ("next((x for x in y if source(x)), None)", Reach.CONDITION),
    (
        "for x in y:\n    try:\n        int(source(x))\n    except Bad:\n        return",
        Reach.CONDITION,
    ),
]


@pytest.mark.parametrize(("body", "how"), LOOPS)
def test_the_next_turn_of_a_loop(places, body, how):
    """Whether a call depends on its own value, one turn earlier."""
    place = places(function(body))["source"]
    assert follows(place, place)
    assert loop_of(place) == (4 if body.startswith(("x = 0", "total")) else 2) - (
        body.startswith(("x = 0", "total")) and 1
    )
    assert reach(place, place) is how


def test_what_follows(places):
    """Later lines do, and any line of a loop does."""
    found = places(function("first()\nfor x in y:\n    second()\n    third()"))
    assert follows(found["first"], found["second"])
    assert not follows(found["second"], found["first"])
    assert follows(found["third"], found["second"])
    assert not follows(found["first"], found["first"])


def test_what_a_loop_repeats(places):
    """Not what it runs over."""
    found = places(
        function("for x in once():\n    again()\nwhile each():\n    pass\n[one for x in single()]")
    )
    assert loop_of(found["once"]) is None
    assert loop_of(found["again"]) == 2
    assert loop_of(found["each"]) == 4
    assert loop_of(found["single"]) is None


def test_nested_functions_and_modules(places):
    """The innermost function counts."""
    found = places("x = source()\ntarget(x)\n")
    assert reach(found["source"], found["target"]) is Reach.ARGUMENT
    found = places(
        "def outer():\n  x = other()\n  def function():\n    x = source()\n    target(x)"
    )
    assert reach(found["source"], found["target"]) is Reach.ARGUMENT


def test_a_method_on_another_line(places):
    """Python says where the method's name is."""
    found = places(function("(\n    client\n    .source()\n)\ntarget()"))
    place = found["source"]
    moved = Place(place.file, place.line + 1, place.function, (5, *place.span[1:]))
    assert reach(moved, found["target"]) is None
    assert loop_of(moved) is None


def test_without_columns(places):
    """One call in a line is that; of several nobody can tell."""
    found = places(function("x = source()\ntarget(x)\nf(g())"))
    bare = {name: Place(p.file, p.line, p.function) for name, p in found.items()}
    assert reach(bare["source"], bare["target"]) is Reach.ARGUMENT
    with pytest.raises(Unseen):
        loop_of(bare["f"])


RAISES = [
    ("if source() > 9:\n    raise Error", True),
    ("if source():\n    return 1\nraise Error", True),
    ("x = source()\nif y:\n    raise Error(x)", False),
    ("assert source()", False),
    ("if source():\n    y = 1", False),
    ("try:\n    if source():\n        raise Error\nexcept Error:\n    pass", False),
    ("try:\n    source()\nexcept Error:\n    raise", False),
    ("def inner():\n    if x:\n        raise Error\nx = source()", False),
]


@pytest.mark.parametrize(("body", "raises"), RAISES)
def test_whether_a_value_decides_that_a_function_raises(places, body, raises):
    assert decides_to_raise(places(function(body))["source"]) is raises


GOES_ON = [
    ("try:\n    call()\nexcept Error:\n    pass\ntarget()", True),
    ("try:\n    call()\nexcept Error:\n    return\ntarget()", False),
    ("try:\n    call()\n    target()\nexcept Error:\n    pass", False),
    ("for x in y:\n  try:\n    target()\n    call()\n  except Error:\n    continue", True),
    ("with suppress(Error):\n    call()\ntarget()", True),
    ("with suppress(Error):\n    call()\n    target()", False),
    ("call()\ntarget()", False),
    ("try:\n    call()\nfinally:\n    pass\ntarget()", False),
]


@pytest.mark.parametrize(("body", "on"), GOES_ON)
def test_whether_a_function_goes_on_where_a_call_raises(places, body, on):
    found = places(function(body))
    assert goes_on(found["call"], found["target"]) is on


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(Unseen):
        loop_of(Place(str(tmp_path / "missing.py"), 1, "f", (0, 1, 1)))
    (tmp_path / "bad.py").write_text("this is no Python")
    with pytest.raises(Unseen):
        loop_of(Place(str(tmp_path / "bad.py"), 1, "f", (0, 1, 1)))


def test_a_file_that_was_edited(tmp_path):
    """It is read again when that is asked for."""
    path = tmp_path / "code.py"
    place = Place(str(path), 2, "function", (4, 2, 11))
    path.write_text("def function():\n    call(1)\n")
    assert loop_of(place) is None
    path.write_text("for each in these:\n    call(1)\n # edited\n")
    assert loop_of(place) is None
    refresh()
    assert loop_of(place) == 1
