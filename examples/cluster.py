"""A cluster: the commands of a scope go to their nodes, in one round trip.

$ python -m examples.cluster
5 visits
Stats(commands=10, flushes=1, round_trips=1, exchanges=3)
ada has 70 and grace has 30
CrossSlot: nothing was sent
"""

from __future__ import annotations

import autobatch
from autobatch.errors import CrossSlot
from examples.server import cluster_url

redis = autobatch.RedisCluster.from_url(cluster_url(), decode_responses=True)

VISITORS = ["ada", "alan", "barbara", "edsger", "grace"]


@autobatch.batch
def visit(visitor: str, page: str) -> int:
    redis.rpush(f"example:pages:{visitor}", page)
    return redis.incr(f"example:visits:{visitor}")


def on_three_nodes() -> None:
    # Each node gets its part: all are written before any is read.
    with autobatch.batch() as scope:
        visits = [visit(visitor, "/teas") for visitor in VISITORS]
    print(f"{sum(visits)} visits")
    print(scope.stats)


def in_one_slot() -> None:
    # A transaction runs on one node. Keys with the same part in braces are there together.
    redis.mset({"example:{shop}:ada": 100, "example:{shop}:grace": 0})
    with autobatch.batch(atomic=True):
        ada = redis.decrby("example:{shop}:ada", 30)
        grace = redis.incrby("example:{shop}:grace", 30)
    print(f"ada has {ada} and grace has {grace}")


def in_two_slots() -> None:
    try:
        with autobatch.batch(atomic=True):
            redis.decrby("example:ada", 30)
            redis.incrby("example:grace", 30)
    except CrossSlot as error:
        print(f"{type(error).__name__}: nothing was sent")


def main() -> None:
    on_three_nodes()
    in_one_slot()
    in_two_slots()


if __name__ == "__main__":
    main()
