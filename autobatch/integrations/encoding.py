"""What JSON encoders need to know of Futures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.resolve import resolve


def default(value: Any) -> Any:
    """Return the plain value of a Future: the `default=` of `json.dumps` and its like.

    Raises:
        TypeError: it is no Future, and no JSON either.
    """
    if type(value) in FUTURE_TYPES:
        return unwrap(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def encode(content: Any, dumps: Callable[[Any], str]) -> str:
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
