"""Building blocks made of building blocks.

$ python -m examples.nesting
joined: visit 1, tea at 4, pot at 30
Stats(commands=7, flushes=1, round_trips=1, exchanges=1)
on its own: payment 1, after visit 2
Stats(commands=2, flushes=1, round_trips=1, exchanges=1) and a round trip of pay()
as an argument: visit 3
Stats(commands=3, flushes=2, round_trips=2, exchanges=2)
chained: ada bought tea, bob bought pot, cy bought tea
Stats(commands=6, flushes=2, round_trips=2, exchanges=2)
"""

from __future__ import annotations

from typing import Any

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)

PRICES = {"tea": 4, "pot": 30}
ORDERS = {"ada": "tea", "bob": "pot", "cy": "tea"}


@autobatch.batch
def open_shop() -> None:
    for item, price in PRICES.items():
        redis.hset(f"example:product:{item}", mapping={"name": item, "price": price})
    redis.delete("example:visits", "example:payments")
    for number, (user, item) in enumerate(ORDERS.items()):
        redis.set(f"example:last_order:{user}", number)
        redis.hset(f"example:order:{number}", mapping={"user": user, "item": item})


@autobatch.batch
def visit() -> int:
    visits = redis.incr("example:visits")
    redis.expire("example:visits", 3600)
    return visits


@autobatch.batch
def product(item: str) -> dict[str, Any]:
    name, price = (redis.hget(f"example:product:{item}", field) for field in ("name", "price"))
    return {"name": name, "price": price}


@autobatch.batch
def front_page() -> dict[str, Any]:
    return {"visit": visit(), "products": [product(item) for item in PRICES]}


@autobatch.batch(join=False)
def pay() -> int:
    return redis.incr("example:payments")


@autobatch.batch
def last_order(user: str) -> Any:
    number: Any = redis.get(f"example:last_order:{user}")
    return number.map(lambda number: redis.hgetall(f"example:order:{number}"))


def joined() -> None:
    # A block joins the scope around it, at any depth: the page is one round trip.
    with autobatch.batch() as scope:
        page = front_page()
        redis.lpush("example:log", "front page")
    products = ", ".join(f"{one['name']} at {one['price']}" for one in page["products"])
    print(f"joined: visit {page['visit']}, {products}")
    print(scope.stats)


def on_its_own() -> None:
    # With join=False a block has done its work when it returns, and its errors are raised
    # there. What waits around it leaves first, so the order holds.
    with autobatch.batch() as scope:
        visits = visit()
        payments = pay()
        print(f"on its own: payment {payments}, after visit {visits}")
    print(scope.stats, "and a round trip of pay()")


def as_an_argument() -> None:
    # Redis has to be told the number itself, so a Future that is passed as an argument is
    # forced: one more round trip.
    with autobatch.batch() as scope:
        visits = visit()
        redis.set("example:last_visit", visits)
    print(f"as an argument: visit {visits}")
    print(scope.stats)


def chained() -> None:
    # map() says what to do with a value without needing it now. The first round trip brings
    # all three numbers, the second one all three orders.
    with autobatch.batch() as scope:
        orders = [last_order(user) for user in ORDERS]
    print("chained:", ", ".join(f"{order['user']} bought {order['item']}" for order in orders))
    print(scope.stats)


def main() -> None:
    open_shop()
    joined()
    on_its_own()
    as_an_argument()
    chained()


if __name__ == "__main__":
    main()
