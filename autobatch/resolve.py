"""`resolve`: a nested structure with every Future replaced by its value."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from autobatch.future import FUTURE_TYPES, Future, unwrap

T = TypeVar("T")


def resolve(structure: T) -> T:
    """Return a nested structure with every Future in it replaced by its plain value.

    All of them take one flush: the first one that is forced sends the whole batch.

    Args:
        structure: dicts (keys too), lists, tuples, named tuples, sets, frozensets and instances
            of dataclasses, pydantic models, msgspec Structs and attrs classes, nested as deep as
            Python can recurse, also with cycles. Anything else counts as a leaf.

    Returns:
        The same object where nothing in it was a Future; otherwise a copy, in which the parts
        without a Future are shared. The originals stay as they are.

    Raises:
        Exception: the error of the first command that failed.
    """
    return replace(structure, survey(structure))


class Survey(NamedTuple):
    """What there is of Futures in a structure.

    Attributes:
        futures: each of them once.
        lazy: the ids of them, and of what contains one at any depth.
    """

    futures: list[Future]
    lazy: set[int]


def survey(structure: Any) -> Survey:
    """Look for Futures in a structure, and force none."""
    parents: dict[int, list[int]] = {}
    futures: list[Future] = []
    visited: set[int] = set()
    stack = [structure]
    while stack:
        thing = stack.pop()
        if id(thing) in visited:
            continue
        visited.add(id(thing))
        if type(thing) in FUTURE_TYPES:
            futures.append(thing)
            continue
        children = _children(thing)
        if _LEAVES.issuperset(map(type, children)):
            continue
        for child in children:
            if type(child) not in _LEAVES:
                parents.setdefault(id(child), []).append(id(thing))
                stack.append(child)
    lazy: set[int] = set()
    found = [id(future) for future in futures]
    while found:
        thing_id = found.pop()
        if thing_id not in lazy:
            lazy.add(thing_id)
            found.extend(parents.get(thing_id, ()))
    return Survey(futures, lazy)


def replace(structure: T, found: Survey) -> T:
    """Return a structure that was surveyed with every Future in it replaced by its value."""
    return _Copier(found.lazy).copy(structure) if found.lazy else structure


def _children(thing: Any) -> Iterable[Any]:
    kind = type(thing)
    if issubclass(kind, dict):
        return [*thing.keys(), *thing.values()]
    if issubclass(kind, (list, tuple, set, frozenset)):
        return list(thing)
    return [getattr(thing, name) for name in _fields_of(thing)]


def _fields_of(thing: Any) -> list[str]:
    """Return the names of the attributes that an instance of a class of fields has."""
    kind = type(thing)
    names: Iterable[str] = ()
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__pydantic_fields_set__"):
        names = [*vars(thing), "__pydantic_extra__"]
    elif hasattr(kind, "__struct_fields__"):  # msgspec's
        names = kind.__struct_fields__
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    return [name for name in names if hasattr(thing, name)]


def _set_field(thing: Any, name: str, value: Any) -> None:
    """Set an attribute of an instance of a class of fields, of a frozen one, too."""
    kind = type(thing)
    if hasattr(kind, "__struct_fields__"):
        getattr(kind, name).__set__(thing, value)
    else:
        object.__setattr__(thing, name, value)


# Most of what is met: it would cost more to look at each.
_LEAVES = frozenset({str, bytes, int, float, bool, type(None)})


class _Copier:
    def __init__(self, lazy: set[int]) -> None:
        self._lazy = lazy
        self._made: dict[int, Any] = {}

    def copy(self, thing: Any) -> Any:
        if type(thing) in _LEAVES or id(thing) not in self._lazy:
            return thing
        if id(thing) not in self._made:
            made = self._copy_lazy(thing)
            # A cycle through something immutable has made it already, on the way.
            self._made.setdefault(id(thing), made)
        return self._made[id(thing)]

    def _copy_lazy(self, thing: Any) -> Any:
        kind = type(thing)
        if kind in FUTURE_TYPES:
            value = unwrap(thing)
            # map() may have made a structure of Futures.
            return value if type(value) in _LEAVES else resolve(value)
        if issubclass(kind, tuple):
            items = [self.copy(item) for item in thing]
            return kind._make(items) if hasattr(kind, "_make") else kind(items)
        if issubclass(kind, frozenset):
            return kind(self.copy(item) for item in thing)
        # The rest can hold itself: it is made before its parts.
        made = copy.copy(thing)
        self._made[id(thing)] = made
        if issubclass(kind, dict):
            made.clear()
            for key, value in thing.items():
                made[self.copy(key)] = self.copy(value)
        elif issubclass(kind, list):
            made[:] = [self.copy(item) for item in thing]
        elif issubclass(kind, set):
            made.clear()
            made.update(self.copy(item) for item in thing)
        else:
            for name in _fields_of(thing):
                _set_field(made, name, self.copy(getattr(thing, name)))
        return made
