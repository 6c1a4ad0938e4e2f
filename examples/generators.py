"""Generators: a scope that covers the body of one, and pages that stream.

$ python -m examples.generators
page: Eve 50, Dan 40
page: Cy 30, Bob 20
page: Ada 10
the first page alone: Eve 50, Dan 40
all in one scope: Eve 50, Dan 40, Cy 30, Bob 20, Ada 10
Stats(commands=10, flushes=4, round_trips=4, exchanges=4)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


@autobatch.batch
def start_game() -> None:
    redis.delete("example:scores")
    for number, name in enumerate(["Ada", "Bob", "Cy", "Dan", "Eve"], start=1):
        score = 10 * number
        redis.zadd("example:scores", {f"player{number}": score})
        redis.hset(f"example:player{number}", mapping={"name": name, "score": score})


@autobatch.batch
def pages(size: int = 2) -> Iterator[list[Any]]:
    # The scope covers this body, not the code of whoever takes the pages. The ids of the next
    # page travel together with the rows of this one: a page is a round trip.
    start = 0
    players: Any = redis.zrevrange("example:scores", start, start + size - 1)
    while players:
        rows = [redis.hgetall(f"example:{player}") for player in players]
        start += size
        players = redis.zrevrange("example:scores", start, start + size - 1)
        yield rows


def shown(rows: list[Any]) -> str:
    return ", ".join(f"{row['name']} {row['score']}" for row in rows)


def streamed() -> None:
    for rows in pages():
        print("page:", shown(rows))


def first_page() -> None:
    # A generator that is not used up ends its scope when it is closed: what waits is sent.
    print("the first page alone:", shown(next(pages())))


def in_one_scope() -> None:
    # In a scope the generator joins in, like any building block.
    with autobatch.batch() as scope:
        redis.incr("example:games_seen")
        print("all in one scope:", ", ".join(shown(rows) for rows in pages()))
    print(scope.stats)


def main() -> None:
    start_game()
    streamed()
    first_page()
    in_one_scope()


if __name__ == "__main__":
    main()
