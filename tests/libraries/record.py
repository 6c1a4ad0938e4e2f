"""What a library gave, so that it can be held against what it gave with another client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import autobatch

_DATA = (type(None), bool, int, float, str, bytes)


class Record:
    """Keeps what calls of a library give, or raise.

    Nothing is looked at before the end, as a program that calls first would do it: the batching
    client's round trips are those that the library itself needs.
    """

    def __init__(self) -> None:
        self._given: list[tuple[str, Any]] = []

    def __call__(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call the function, and keep what it gives."""
        try:
            self._given.append((name, function(*args, **kwargs)))
        except Exception as error:
            self._given.append((name, _Raised(error)))

    async def awaited(
        self, name: str, awaitable: Awaitable[Any], look: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Await it, and keep what `look` sees in it."""
        try:
            self._given.append((name, look(await awaitable)))
        except Exception as error:
            self._given.append((name, _Raised(error)))

    def results(self) -> dict[str, list[Any]]:
        """Return by name what calls gave; equal only where a caller sees no difference.

        That is: values and their types, errors and where they are raised, and whether `is None`
        says the same of a value, also inside of lists and dicts.
        """
        found: dict[str, list[Any]] = {}
        for name, given in self._given:
            try:
                found.setdefault(name, []).append(_seen(given))
            except TypeError as error:
                error.add_note(f"as {name!r} gives it")
                raise
        return found


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.seen = "raised", type(error), str(error)


def _seen(given: Any) -> Any:
    kind = type(given)  # isinstance is what a Future answers for its value
    if kind is _Raised:
        return given.seen
    if issubclass(kind, autobatch.Future):
        try:
            value = given.value
        except Exception as error:
            return "raised when it was looked at", type(error), str(error)
        return "a Future of None" if value is None else _seen(value)
    if kind in (list, tuple):
        return kind, [_seen(part) for part in given]
    if kind is dict:
        return kind, {key: _seen(value) for key, value in given.items()}
    if kind in _DATA:
        return kind, given
    raise TypeError(f"{kind.__name__} is not data, and cannot be compared")
