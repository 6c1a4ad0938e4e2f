"""The same page with a hand-written pipeline.

Every function takes the pipe, and none can return what it asks for: the replies come at the
end, in one list, to be matched by position. Whoever adds a call to one of these functions has
to find the place in that list, and to count again.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.client import Pipeline

from autobatch.demo.front import DAY, HOUR, MINUTE, SHELF, WEEK, Card, Front

REPLIES_OF_FRONT = 14
REPLIES_OF_CARD = 10


def front(redis: Redis, visitor: str) -> Front:
    pipe = redis.pipeline(transaction=False)
    queue_front(pipe, visitor)
    return read_front(pipe.execute())


def queue_front(pipe: Pipeline, visitor: str) -> None:
    queue_basket(pipe, visitor)
    queue_session(pipe, visitor)
    queue_count(pipe, f"requests:{visitor}", MINUTE)
    queue_visitors_today(pipe, visitor)
    pipe.smembers("categories")
    pipe.get("notice")
    pipe.zrange("sales", 0, 2, desc=True, withscores=True)
    pipe.lrange(f"seen:{visitor}", 0, 2)
    for tea in SHELF:
        queue_card(pipe, tea, visitor)


def read_front(replies: list[Any]) -> Front:
    _, basket, basket_seconds, session, _, requests, _, _, _, visitors = replies[:10]
    categories, notice, bestsellers, recently_seen = replies[10:REPLIES_OF_FRONT]
    return Front(
        session=session,
        requests=requests,
        visitors=visitors,
        basket=basket,
        basket_seconds=basket_seconds,
        categories=categories,
        notice=notice,
        bestsellers=bestsellers,
        recently_seen=recently_seen,
        cards=[
            read_card(replies[start : start + REPLIES_OF_CARD])
            for start in range(REPLIES_OF_FRONT, len(replies), REPLIES_OF_CARD)
        ],
    )


def queue_card(pipe: Pipeline, tea: str, visitor: str) -> None:
    pipe.zscore("ratings", tea)
    pipe.zrevrank("ratings", tea)
    pipe.scard(f"likes:{tea}")
    pipe.sismember(f"likes:{tea}", visitor)
    pipe.llen(f"reviews:{tea}")
    pipe.lindex(f"reviews:{tea}", 0)
    pipe.hgetall(f"tea:{tea}")
    pipe.get(f"stock:{tea}")
    queue_count(pipe, f"views:{tea}", DAY)


def read_card(replies: list[Any]) -> Card:
    rating, rank, likes, liked, reviews, latest_review, details, stock, views, _ = replies
    return Card(
        details=details,
        stock=stock,
        views=views,
        rating=rating,
        rank=rank,
        likes=likes,
        liked=liked,
        reviews=reviews,
        latest_review=latest_review,
    )


def queue_count(pipe: Pipeline, key: str, seconds: int) -> None:
    pipe.incr(key)
    pipe.expire(key, seconds)


def queue_session(pipe: Pipeline, visitor: str) -> None:
    pipe.hgetall(f"session:{visitor}")
    pipe.expire(f"session:{visitor}", HOUR)


def queue_visitors_today(pipe: Pipeline, visitor: str) -> None:
    pipe.sadd("visitors", visitor)
    pipe.expire("visitors", DAY)
    pipe.scard("visitors")


def queue_basket(pipe: Pipeline, visitor: str) -> None:
    pipe.expire(f"basket:{visitor}", WEEK)
    pipe.hgetall(f"basket:{visitor}")
    pipe.ttl(f"basket:{visitor}")
