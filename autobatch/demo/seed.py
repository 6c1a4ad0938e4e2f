"""What the shop has on its first day."""

from __future__ import annotations

from autobatch import Redis, RedisCluster, batch

VISITOR = "ada"

TEAS = {
    "assam": ("Assam Mangalam", "India", "malty, brisk, good with milk", 1150, "#8a3b12"),
    "sencha": ("Sencha Yabukita", "Japan", "fresh grass and a little sea", 1480, "#b7c25a"),
    "keemun": ("Keemun Hao Ya", "China", "cocoa, plum, a trace of smoke", 1620, "#9c4a1d"),
    "dongding": ("Dong Ding Oolong", "Taiwan", "roasted, with honey and lilac", 2190, "#d39a3a"),
}
STOCK = {"assam": 42, "sencha": 7, "keemun": 0, "dongding": 18}
RATINGS = {"assam": 4.4, "sencha": 4.7, "keemun": 4.1, "dongding": 4.9}
LIKES = {
    "assam": ["ada", "grace", "alan"],
    "sencha": ["barbara", "edsger"],
    "keemun": ["grace", "tony", "frances", "edsger"],
    "dongding": ["ada", "barbara", "alan", "tony", "frances"],
}
REVIEWS = {
    "assam": ["Stands up to any breakfast.", "Strong!"],
    "sencha": ["Keep the water below 70 °C & it sings."],
    "keemun": ["Quiet, then suddenly not.", "My rainy-day tea.", "A little smoke."],
    "dongding": ["Seven infusions, all of them different."],
}
SALES = {"Earl Grey": 310, "Assam Mangalam": 274, "Mint": 190, "Dong Ding Oolong": 121}


# What a visit changes.
COUNTERS = [f"requests:{VISITOR}", *(f"views:{tea}" for tea in TEAS)]


@batch
def seed(redis: Redis | RedisCluster) -> None:
    for tea, (name, origin, taste, cents, colour) in TEAS.items():
        redis.hset(
            f"tea:{tea}",
            mapping={
                "name": name,
                "origin": origin,
                "taste": taste,
                "cents": cents,
                "colour": colour,
            },
        )
        redis.set(f"stock:{tea}", STOCK[tea])
        redis.sadd(f"likes:{tea}", *LIKES[tea])
        redis.rpush(f"reviews:{tea}", *REVIEWS[tea])
    redis.zadd("ratings", RATINGS)
    redis.zadd("sales", SALES)
    redis.sadd("categories", "Black", "Green", "Oolong", "White", "Herbal")
    redis.set("notice", "The new harvest is in: Sencha, picked in May.")
    redis.hset(f"session:{VISITOR}", mapping={"name": "Ada", "city": "London"})
    redis.hset(f"basket:{VISITOR}", mapping={"Earl Grey": 2, "Mint": 1})
    redis.rpush(f"seen:{VISITOR}", "Keemun Hao Ya", "Mint", "Earl Grey")
    redis.sadd("visitors", "grace", "alan", "barbara")
