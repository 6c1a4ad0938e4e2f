"""`resolve` replaces Futures at any depth, and leaves everything else as it is."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import types
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch import Future, resolve
from pending import Keeper, later, now


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any = 0


@dataclasses.dataclass
class Order:
    """A dataclass with fields that the constructor does not take."""

    user: Any
    items: list[Any] = dataclasses.field(default_factory=list)
    total: Any = dataclasses.field(init=False, default=0)
    late: Any = dataclasses.field(init=False, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Its fields cannot be set."""

    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    """It has no `__dict__` either."""

    x: Any
    y: Any = 0


@dataclasses.dataclass(eq=False)
class Node:
    """It can hold itself, also in a set."""

    value: Any
    links: Any = None


# ---- what it goes through --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda f: f(1), 1),
        (lambda f: f(None), None),
        (lambda f: [f(1), 2], [1, 2]),
        (lambda f: (f(1), 2), (1, 2)),
        (lambda f: {f(1), 2}, {1, 2}),
        (lambda f: frozenset([f(1), 2]), frozenset([1, 2])),
        (lambda f: {"a": f(1)}, {"a": 1}),
        (lambda f: {f("a"): f(1), "b": 2}, {"a": 1, "b": 2}),
        (lambda f: {(f("a"), 1): 2}, {("a", 1): 2}),
        (lambda f: Point(f(1), 2), Point(1, 2)),
        (lambda f: Order(f(1), [f(2)]), Order(1, [2])),
        (lambda f: Frozen(f(1), 2), Frozen(1, 2)),
        (lambda f: Slotted(f(1), 2), Slotted(1, 2)),
        (lambda f: [{"a": (Point([f(1)]),)}], [{"a": (Point([1]),)}]),
        (lambda f: f([f(1), {"a": f(2)}]), [1, {"a": 2}]),
    ],
)
@pytest.mark.parametrize("lazy", [later, now])
def test_replaces_futures(make, expected, lazy):
    """Each kind of container, with a Future in it, becomes one with the value."""
    resolved = resolve(make(lazy))
    assert type(resolved) is type(expected)
    assert resolved == expected
    assert "Future" not in repr(resolved)


@pytest.mark.parametrize(
    "container",
    [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, b=1, a=2),
        collections.Counter(b=1, a=2),
        type("Registry", (dict,), {})(b=1, a=2),
        type("Rows", (list,), {})([1, 2]),
        type("Pair", (tuple,), {})((1, 2)),
        type("Tags", (set,), {})({1, 2}),
        type("Fixed", (frozenset,), {})({1, 2}),
    ],
    ids=lambda container: type(container).__name__,
)
def test_subclasses_keep_their_type(container):
    """What stands in for a builtin container stays what it was, its order too."""
    if isinstance(container, dict):
        lazy = container.copy() if hasattr(container, "__missing__") else type(container)(container)
        for key, value in container.items():
            lazy[key] = later(value)
    else:
        lazy = type(container)(map(later, container))
    resolved = resolve(lazy)
    assert type(resolved) is type(container)
    assert resolved == container
    assert list(map(type, resolved)) == list(map(type, container))
    if isinstance(container, dict):
        assert list(resolved.items()) == list(container.items())
    assert getattr(resolved, "default_factory", None) is getattr(container, "default_factory", None)


def test_fields_that_the_constructor_does_not_take():
    """A dataclass is copied, not constructed: set fields are replaced, unset ones stay unset."""
    order = Order("ada")
    order.total = later(7)
    order.note = "kept"
    resolved = resolve(order)
    assert resolved.total == 7
    assert type(resolved.total) is int
    assert resolved.note == "kept"
    assert not hasattr(resolved, "late")


def test_one_force_for_all():
    """The first Future that is forced settles the others with it."""
    keeper = Keeper()
    structure = {"a": [keeper.future(n) for n in range(5)], "b": keeper.future("x").map(str.upper)}
    assert resolve(structure) == {"a": [0, 1, 2, 3, 4], "b": "X"}
    assert keeper.forced == 1


def test_the_first_error_is_raised():
    """A Future that failed fails the whole."""
    with pytest.raises(ZeroDivisionError):
        resolve([later(1), {"a": later(ZeroDivisionError())}])


# ---- what it leaves alone --------------------------------------------------------------------


def leaves():
    cycle: list[Any] = [1]
    cycle.append(cycle)
    return [
        1,
        "text",
        None,
        [1, [2]],
        {"a": {"b": (1,)}},
        {1, 2},
        Point(1, 2),
        Order("ada"),
        Order,
        Slotted(1),
        Future,
        iter([1]),
        types.MappingProxyType({"a": 1}),
        cycle,
    ]


@pytest.mark.parametrize("structure", leaves(), ids=lambda structure: type(structure).__name__)
def test_the_same_object_where_nothing_is_lazy(structure):
    """No copy is made for nothing."""
    assert resolve(structure) is structure


def test_parts_without_a_future_are_shared():
    """Only the way to a Future is copied."""
    rows, point = [1, 2], Point([1], 2)
    resolved = resolve({"rows": rows, "point": point, "lazy": [later(1), rows]})
    assert resolved == {"rows": rows, "point": point, "lazy": [1, rows]}
    assert resolved["rows"] is resolved["lazy"][1] is rows
    assert resolved["point"] is point


def test_the_originals_stay_as_they_are():
    """Whoever holds the structure still has its Futures."""
    future = later(1)
    inner, order = [future], Order(future)
    structure = {"inner": inner, "set": {future}, "order": order, future: (future,)}
    keys = list(structure)
    resolve(structure)
    assert inner[0] is structure["order"].user is future
    assert all(new is old for new, old in zip(structure, keys, strict=True))
    assert next(iter(structure["set"])) is future


# ---- cycles and shared parts -----------------------------------------------------------------


def test_shared_parts_stay_shared():
    """Two references to one list are two references to one copy; a value is one object, too."""
    shared = [later([1])]
    first, second, both = resolve([shared, shared, (shared, Frozen(shared))])
    assert first == [[1]]
    assert first is second is both[0] is both[1].x
    future = later([1])
    left, right = resolve([future, future])
    assert left is right


def cyclic_list(value):
    cycle = [value]
    cycle.append(cycle)
    return cycle, lambda made: made[1]


def cyclic_dict(value):
    cycle = {"value": value}
    cycle["self"] = cycle
    return cycle, lambda made: made["self"]


def cyclic_object(value):
    cycle = Node(value)
    cycle.links = [cycle]
    return cycle, lambda made: made.links[0]


def through_a_tuple(value):
    cycle = [value]
    cycle.append((cycle, value))
    return cycle, lambda made: made[1][0]


def from_a_tuple(value):
    inner = [value]
    cycle = (value, inner)
    inner.append(cycle)
    return cycle, lambda made: made[1][1]


def through_a_set(value):
    cycle = Node(value)
    cycle.links = {cycle}
    return cycle, lambda made: next(iter(made.links))


def from_a_frozenset(value):
    node = Node(value)
    cycle = frozenset({node})
    node.links = Point(cycle)
    return cycle, lambda made: next(iter(made)).links.x


@pytest.mark.parametrize(
    "make",
    [
        cyclic_list,
        cyclic_dict,
        cyclic_object,
        through_a_tuple,
        from_a_tuple,
        through_a_set,
        from_a_frozenset,
    ],
)
def test_cycles_end_and_stay_cycles(make):
    """A structure that holds itself is copied to one that holds itself."""
    cycle, follow = make(later(1))
    made = resolve(cycle)
    assert made is not cycle
    assert type(made) is type(cycle)
    assert follow(made) is made
    assert "Future" not in repr(made)


# ---- whatever the structure ------------------------------------------------------------------

keys = st.one_of(st.integers(), st.text(max_size=3), st.binary(max_size=3), st.none())
hashable_structures = st.recursive(
    keys,
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Frozen, inner),
        st.frozensets(inner, max_size=3),
    ),
    max_leaves=5,
)
structures = st.recursive(
    hashable_structures,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.sets(hashable_structures, max_size=3),
        st.dictionaries(hashable_structures, inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Order, inner, st.lists(inner, max_size=2)),
        st.builds(Slotted, inner),
    ),
    max_leaves=10,
)


def lazify(thing, choose):
    """Return a copy with some of its parts, on any level, behind Futures."""
    if isinstance(thing, dict):
        made = {lazify(key, choose): lazify(value, choose) for key, value in thing.items()}
    elif isinstance(thing, Point):
        made = Point(*[lazify(part, choose) for part in thing])
    elif isinstance(thing, (list, tuple, set, frozenset)):
        made = type(thing)([lazify(part, choose) for part in thing])
    elif isinstance(thing, Order):
        made = Order(lazify(thing.user, choose), lazify(thing.items, choose))
    elif isinstance(thing, (Frozen, Slotted)):
        made = type(thing)(lazify(thing.x, choose))
    else:
        made = thing
    return choose()(made)


def itself(thing):
    return thing


@given(structure=structures, wraps=st.lists(st.sampled_from([itself, later, now]), min_size=1))
@settings(deadline=None)
def test_resolve_undoes_any_laziness(structure, wraps):
    """Whatever is behind Futures, on whatever level, the plain structure comes back."""
    resolved = resolve(lazify(structure, itertools.cycle(wraps).__next__))
    assert resolved == structure
    assert type(resolved) is type(structure)
    assert "Future" not in repr(resolved)
