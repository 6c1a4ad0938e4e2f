"""The shop: small functions that call Redis where they need it. None of them takes a pipe.

This one class serves three pages. With redis-py's client every call is a round trip; with
autobatch's, also with the one for asyncio, they all share one.
"""

from __future__ import annotations

from typing import Any

from redis import Redis

from autobatch import batch
from autobatch.demo.front import DAY, HOUR, MINUTE, SHELF, WEEK, Card, Front


class Shop:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    @batch
    def front(self, visitor: str) -> Front:
        basket, basket_seconds = self.basket(visitor)
        return Front(
            session=self.session(visitor),
            requests=self.count(f"requests:{visitor}", MINUTE),
            visitors=self.visitors_today(visitor),
            basket=basket,
            basket_seconds=basket_seconds,
            categories=self.categories(),
            notice=self.notice(),
            bestsellers=self.bestsellers(),
            recently_seen=self.recently_seen(visitor),
            cards=[self.card(tea, visitor) for tea in SHELF],
        )

    @batch
    def card(self, tea: str, visitor: str) -> Card:
        rating, rank = self.rating(tea)
        likes, liked = self.likes(tea, visitor)
        reviews, latest_review = self.reviews(tea)
        return Card(
            details=self.details(tea),
            stock=self.stock(tea),
            views=self.count(f"views:{tea}", DAY),
            rating=rating,
            rank=rank,
            likes=likes,
            liked=liked,
            reviews=reviews,
            latest_review=latest_review,
        )

    @batch
    def count(self, key: str, seconds: int) -> int:
        total = self.redis.incr(key)
        self.redis.expire(key, seconds)
        return total

    @batch
    def session(self, visitor: str) -> dict[Any, Any]:
        session = self.redis.hgetall(f"session:{visitor}")
        self.redis.expire(f"session:{visitor}", HOUR)
        return session

    @batch
    def visitors_today(self, visitor: str) -> int:
        self.redis.sadd("visitors", visitor)
        self.redis.expire("visitors", DAY)
        return self.redis.scard("visitors")

    @batch
    def basket(self, visitor: str) -> tuple[dict[Any, Any], int]:
        self.redis.expire(f"basket:{visitor}", WEEK)
        return self.redis.hgetall(f"basket:{visitor}"), self.redis.ttl(f"basket:{visitor}")

    @batch
    def categories(self) -> set[Any]:
        return self.redis.smembers("categories")

    @batch
    def notice(self) -> Any:
        return self.redis.get("notice")

    @batch
    def bestsellers(self) -> list[Any]:
        return self.redis.zrange("sales", 0, 2, desc=True, withscores=True)

    @batch
    def recently_seen(self, visitor: str) -> list[Any]:
        return self.redis.lrange(f"seen:{visitor}", 0, 2)

    @batch
    def details(self, tea: str) -> dict[Any, Any]:
        return self.redis.hgetall(f"tea:{tea}")

    @batch
    def stock(self, tea: str) -> Any:
        return self.redis.get(f"stock:{tea}")

    @batch
    def rating(self, tea: str) -> tuple[Any, Any]:
        return self.redis.zscore("ratings", tea), self.redis.zrevrank("ratings", tea)

    @batch
    def likes(self, tea: str, visitor: str) -> tuple[int, int]:
        return self.redis.scard(f"likes:{tea}"), self.redis.sismember(f"likes:{tea}", visitor)

    @batch
    def reviews(self, tea: str) -> tuple[int, Any]:
        return self.redis.llen(f"reviews:{tea}"), self.redis.lindex(f"reviews:{tea}", 0)
