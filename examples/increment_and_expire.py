"""One building block: called alone, twice, and a hundred times.

$ python -m examples.increment_and_expire
alone: 1
twice: 1 and 5
Stats(commands=4, flushes=1, round_trips=1, exchanges=1)
100 times: 100 in all
Stats(commands=200, flushes=1, round_trips=1, exchanges=1)
"""

from __future__ import annotations

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


@autobatch.batch
def increment_and_expire(key: str, num: int = 1, expire: int = 60) -> int:
    total = redis.incrby(key, num)  # queued: a Future
    redis.expire(key, expire)  # queued
    return total


def alone() -> None:
    # With no scope around it, the decorator opens one: both commands leave when it returns.
    total = increment_and_expire("example:alone")
    print(f"alone: {total}")


def twice() -> None:
    # In a scope it joins in. Nothing is sent before the scope ends, or a value is needed.
    with autobatch.batch() as scope:
        first = increment_and_expire("example:first")
        second = increment_and_expire("example:second", num=5)
    print(f"twice: {first} and {second}")
    print(scope.stats)


def a_hundred_times() -> None:
    with autobatch.batch() as scope:
        totals = [increment_and_expire(f"example:{i}") for i in range(100)]
    print(f"100 times: {sum(totals)} in all")  # a Future behaves as its value
    print(scope.stats)


def main() -> None:
    alone()
    twice()
    a_hundred_times()


if __name__ == "__main__":
    main()
