"""What the shop's front page shows: all ways to get it fill in the same form.

A value is what redis-py returned, or autobatch's Future of it. Text is `Any`: redis-py's types
allow bytes, which a client with `decode_responses=True` never returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SHELF = ("assam", "sencha", "keemun", "dongding")
MINUTE, HOUR, DAY, WEEK = 60, 3600, 86_400, 604_800


@dataclass(frozen=True)
class Card:
    """One tea on the shelf."""

    details: dict[Any, Any]
    stock: Any
    views: int
    rating: Any
    rank: Any
    likes: int
    liked: int
    reviews: int
    latest_review: Any


@dataclass(frozen=True)
class Front:
    """The whole page, as one visitor sees it."""

    session: dict[Any, Any]
    requests: int
    visitors: int
    basket: dict[Any, Any]
    basket_seconds: int
    categories: set[Any]
    notice: Any
    bestsellers: list[Any]
    recently_seen: list[Any]
    cards: list[Card]
