"""Commands of every kind in one round trip, and a nested structure of their values.

$ python -m examples.heterogeneous
Ada: visit 1, rank 1 of 2
Grace: visit 1, rank 2 of 2
Stats(commands=15, flushes=1, round_trips=1, exchanges=1)
{
  "ada": {
    "name": "Ada",
    "posts": [
      "notes",
      "engine"
    ]
  },
  "grace": {
    "name": "Grace",
    "posts": [
      "compiler"
    ]
  }
}
Stats(commands=4, flushes=1, round_trips=1, exchanges=1)
"""

from __future__ import annotations

import json
from typing import Any

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


@autobatch.batch
def save(user: str, name: str, points: int, posts: list[str]) -> None:
    redis.hset(f"example:user:{user}", mapping={"name": name})
    redis.zadd("example:points", {user: points})
    redis.delete(f"example:posts:{user}")
    redis.lpush(f"example:posts:{user}", *posts)


@autobatch.batch
def visit(user: str) -> dict[str, Any]:
    return {
        "name": redis.hget(f"example:user:{user}", "name"),
        "visits": redis.incr(f"example:visits:{user}"),
        "rank": redis.zrevrank("example:points", user),
    }


@autobatch.batch
def profile(user: str) -> dict[str, Any]:
    return {
        "name": redis.hget(f"example:user:{user}", "name"),
        "posts": redis.lrange(f"example:posts:{user}", 0, 4),
    }


def write_and_read() -> None:
    # Hashes, sorted sets, lists, counters. The order of the calls is the order on the server:
    # what is read here is what was written just above it.
    with autobatch.batch() as scope:
        save("ada", name="Ada", points=36, posts=["engine", "notes"])
        save("grace", name="Grace", points=12, posts=["compiler"])
        visits = [visit("ada"), visit("grace")]
        users = redis.zcard("example:points")
    for seen in visits:
        print(f"{seen['name']}: visit {seen['visits']}, rank {seen['rank'] + 1} of {users}")
    print(scope.stats)


def as_json() -> None:
    # A Future behaves as its value, but C code such as json's looks at the real type. resolve()
    # gives the same structure with plain values, all of them in one round trip.
    with autobatch.batch() as scope:
        profiles = autobatch.resolve({user: profile(user) for user in ("ada", "grace")})
    print(json.dumps(profiles, indent=2))
    print(scope.stats)


def main() -> None:
    write_and_read()
    as_json()


if __name__ == "__main__":
    main()
