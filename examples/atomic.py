"""Transactions: with others in one round trip, and what WATCH is still for.

$ python -m examples.atomic
30 from ada to bob: 70 and 30, transfer 1
Stats(commands=5, flushes=1, round_trips=1, exchanges=1)
inside the block: NotReady
50 from ada: taken
50 from ada: only 20 left
"""

from __future__ import annotations

from redis.client import Pipeline

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


@autobatch.batch
def open_accounts() -> None:
    redis.mset({"example:account:ada": 100, "example:account:bob": 0})
    redis.delete("example:transfers")


@autobatch.batch(atomic=True)
def transfer(source: str, target: str, amount: int) -> tuple[int, int]:
    taken = redis.decrby(f"example:account:{source}", amount)
    given = redis.incrby(f"example:account:{target}", amount)
    redis.lpush("example:transfers", f"{amount} from {source} to {target}")
    return taken, given


def all_or_nothing() -> None:
    # MULTI, the three commands and EXEC travel in the round trip of what is around them.
    # Nobody sees the money in neither account, or in both.
    with autobatch.batch() as scope:
        redis.set("example:clerk", "eve")
        taken, given = transfer("ada", "bob", 30)
        transfers = redis.llen("example:transfers")
    print(f"30 from ada to bob: {taken} and {given}, transfer {transfers}")
    print(scope.stats)


def no_values_inside() -> None:
    # The block is sent as a whole, so there are no values inside it to decide on. If it
    # raises, as here, none of its commands is sent.
    try:
        with autobatch.batch(atomic=True):
            if redis.decrby("example:account:ada", 50) < 0:
                redis.incrby("example:account:ada", 50)
    except autobatch.errors.NotReady as error:
        print(f"inside the block: {type(error).__name__}")


def withdraw(account: str, amount: int) -> None:
    # To decide on a value and to write in one transaction takes WATCH: if somebody else writes
    # the key in between, it starts again. That is redis-py's own transaction(), which works as
    # ever: in a scope, what waits is sent before it.
    key = f"example:account:{account}"

    def decide(pipe: Pipeline) -> None:
        balance = int(pipe.get(key) or 0)
        if balance < amount:
            raise ValueError(f"only {balance} left")
        pipe.multi()
        pipe.decrby(key, amount)

    redis.transaction(decide, key)


def decide_on_a_value() -> None:
    for _ in range(2):
        try:
            withdraw("ada", 50)
            print("50 from ada: taken")
        except ValueError as error:
            print(f"50 from ada: {error}")


def main() -> None:
    open_accounts()
    all_or_nothing()
    no_values_inside()
    decide_on_a_value()


if __name__ == "__main__":
    main()
