"""A game's leaderboard: equal scores share a rank, and players see who is around them."""

from __future__ import annotations


class UnknownPlayer(Exception):
    """The player has no score."""


class Leaderboard:
    """The players of one game, by score."""

    def __init__(self, client, game):
        self.client = client
        self.key = f"leaderboard:{game}"

    def register(self, player, **profile):
        self.client.hset(f"player:{player}", mapping=profile)

    def submit(self, player, score):
        """Keep a player's best score."""
        self.client.zadd(self.key, {player: score}, gt=True)

    def award(self, player, points):
        return self.client.zincrby(self.key, points, player)

    def top(self, count):
        return self._page(0, count - 1)

    def around(self, player, radius):
        """Return the rows from `radius` places above a player to `radius` places below."""
        place = self.client.zrevrank(self.key, player)
        try:
            first = max(0, place - radius)
        except TypeError:  # no place
            raise UnknownPlayer(player) from None
        return self._page(first, place + radius)

    def remove(self, player):
        self.client.delete(f"player:{player}")
        return bool(self.client.zrem(self.key, player))

    def _page(self, first, last):
        rows = self.client.zrevrange(self.key, first, last, withscores=True)
        better = [self.client.zcount(self.key, f"({score}", "+inf") for _, score in rows]
        profiles = [self.client.hgetall(f"player:{player}") for player, _ in rows]
        return [
            {"rank": count + 1, "player": player, "score": score, **profile}
            for (player, score), count, profile in zip(rows, better, profiles, strict=True)
        ]
