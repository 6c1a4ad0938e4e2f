"""What encoders need to know of Futures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.resolve import resolve

Encoded = TypeVar("Encoded", str, bytes)


def default(value: Any) -> Any:
    """Return the plain value of a Future: the `default=` of `json.dumps` and its like.

    Raises:
        TypeError: it is no Future, and no JSON either.
        NotReady: it is a Future of an asyncio client, and was not awaited yet.
    """
    if type(value) in FUTURE_TYPES:
        return unwrap(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def encode(content: Any, dumps: Callable[[Any], Encoded]) -> Encoded:
    """Return `dumps(content)` where `dumps` calls `default` for Futures.

    Encoders ask it for values only. Where a Future stands elsewhere, as the key of a dict, the
    whole structure is resolved first, which takes longer than encoding it.
    """
    content = unwrap(content)
    try:
        return dumps(content)
    except TypeError:
        resolved = resolve(content)
        if resolved is content:
            raise
        return dumps(resolved)


class JSONEncoder(json.JSONEncoder):
    """json's encoder for what holds Futures, indented or not: `json.dumps(data, cls=JSONEncoder)`.

    It goes together with another one: `class Encoder(JSONEncoder, TheOtherOne)`.
    """

    def default(self, o: Any) -> Any:
        """Return what stands for a value that is no JSON: a Future's own value."""
        return unwrap(o) if type(o) in FUTURE_TYPES else super().default(o)

    def encode(self, o: Any) -> str:
        """Return `o` as JSON."""
        return encode(o, super().encode)

    def iterencode(self, o: Any, _one_shot: bool = False) -> Iterator[str]:  # noqa: FBT001, FBT002  # json's own
        """Return the parts of `o` as JSON."""
        return super().iterencode(o if _one_shot else resolve(o), _one_shot)
