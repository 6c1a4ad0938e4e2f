"""A shop: carts, a check-out that never sells what is not there, and prices kept in memory."""

from __future__ import annotations


class OutOfStock(Exception):
    """Somebody else was faster."""


class Prices:
    """Prices, kept in this process until somebody publishes that one has changed."""

    CHANNEL = "prices:changed"

    def __init__(self, client):
        self.client = client
        self.known = {}
        self.changes = client.pubsub(ignore_subscribe_messages=True)
        self.changes.subscribe(self.CHANNEL)
        self.changes.get_message(timeout=5)  # the confirmation

    def change(self, item, cents):
        self.client.hset("prices", item, cents)
        self.client.publish(self.CHANNEL, item)

    def of(self, items):
        unknown = [item for item in items if item not in self.known]
        if unknown:
            cents = self.client.hmget("prices", unknown)
            self.known.update(zip(unknown, map(int, cents), strict=True))
        return {item: self.known[item] for item in items}

    def notice(self, timeout):
        """Forget one price that has changed, waiting for the news so long; return its item."""
        message = self.changes.get_message(timeout=timeout)
        if message is None:
            return None
        self.known.pop(message["data"], None)
        return message["data"]

    def close(self):
        self.changes.close()


class Cart:
    """What one user is about to buy."""

    def __init__(self, client, user, prices):
        self.client = client
        self.key = f"cart:{user}"
        self.user = user
        self.prices = prices

    def add(self, item, count=1):
        total = self.client.hincrby(self.key, item, count)
        self.client.expire(self.key, 7 * 24 * 3600)
        return total

    def remove(self, item):
        self.client.hdel(self.key, item)

    def view(self):
        items = self.client.hgetall(self.key)
        prices = self.prices.of(items)
        lines = {item: (int(count), int(count) * prices[item]) for item, count in items.items()}
        return {"lines": lines, "total": sum(cents for _, cents in lines.values())}

    def check_out(self, authorize):
        """Take the items from the stock, all or none, and return the order's number."""
        order = self.client.incr("orders:last")  # the numbers may have gaps

        def sell(pipe):
            items = {item: int(count) for item, count in pipe.hgetall(self.key).items()}
            pipe.watch(*(f"stock:{item}" for item in items))
            for item, count in items.items():
                if int(pipe.get(f"stock:{item}") or 0) < count:
                    raise OutOfStock(item)
            authorize(self.user)
            pipe.multi()
            for item, count in items.items():
                pipe.decrby(f"stock:{item}", count)
            pipe.hset(f"order:{order}", mapping={"user": self.user, **items})
            pipe.delete(self.key)

        self.client.transaction(sell, self.key)
        return order
