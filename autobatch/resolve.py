"""`resolve`: a nested structure with every Future replaced by its value."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

from autobatch.future import FUTURE_TYPES, unwrap

T = TypeVar("T")


def resolve(structure: T) -> T:
    """Return a nested structure with every Future in it replaced by its plain value.

    All of them take one flush: the first one that is forced sends the whole batch.

    Args:
        structure: dicts (keys too), lists, tuples, named tuples, sets, frozensets and instances
            of dataclasses, nested as deep as Python can recurse, also with cycles. Anything else
            counts as a leaf.

    Returns:
        The same object where nothing in it was a Future; otherwise a copy, in which the parts
        without a Future are shared. The originals stay as they are.

    Raises:
        Exception: the error of the first command that failed.
    """
    lazy = _containers_of_futures(structure)
    return structure if not lazy else _Copier(lazy).copy(structure)


def _children(thing: Any) -> list[Any]:
    kind = type(thing)
    if issubclass(kind, dict):
        return [*thing.keys(), *thing.values()]
    if issubclass(kind, (list, tuple, set, frozenset)):
        return list(thing)
    if dataclasses.is_dataclass(kind):
        return [
            getattr(thing, field.name)
            for field in dataclasses.fields(thing)
            if hasattr(thing, field.name)
        ]
    return []


def _containers_of_futures(structure: Any) -> set[int]:
    """Return the ids of the Futures, and of what contains one at any depth."""
    parents: dict[int, list[int]] = {}
    found: list[int] = []
    visited: set[int] = set()
    stack = [structure]
    while stack:
        thing = stack.pop()
        if id(thing) in visited:
            continue
        visited.add(id(thing))
        if type(thing) in FUTURE_TYPES:
            found.append(id(thing))
            continue
        for child in _children(thing):
            parents.setdefault(id(child), []).append(id(thing))
            stack.append(child)
    lazy: set[int] = set()
    while found:
        thing_id = found.pop()
        if thing_id not in lazy:
            lazy.add(thing_id)
            found.extend(parents.get(thing_id, ()))
    return lazy


class _Copier:
    def __init__(self, lazy: set[int]) -> None:
        self._lazy = lazy
        self._made: dict[int, Any] = {}

    def copy(self, thing: Any) -> Any:
        if id(thing) not in self._lazy:
            return thing
        if id(thing) not in self._made:
            made = self._copy_lazy(thing)
            # A cycle through something immutable has made it already, on the way.
            self._made.setdefault(id(thing), made)
        return self._made[id(thing)]

    def _copy_lazy(self, thing: Any) -> Any:
        kind = type(thing)
        if kind in FUTURE_TYPES:
            return resolve(unwrap(thing))  # map() may have made a structure of Futures
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
            for field in dataclasses.fields(thing):
                if hasattr(thing, field.name):
                    value = self.copy(getattr(thing, field.name))
                    object.__setattr__(made, field.name, value)  # a frozen one, too
        return made
