"""The wire is the witness: commands and exchanges are counted by a proxy."""

from __future__ import annotations

import autobatch


def test_two_hundred_commands_take_one_round_trip(client, proxy):
    @autobatch.batch
    def increment_and_expire(key, num=1, expire=60):
        total = client.incrby(key, num)
        client.expire(key, expire)
        return total

    with autobatch.batch() as scope:
        totals = [increment_and_expire(f"key{i}") for i in range(100)]
    assert totals == [1] * 100
    assert proxy.names == [["INCRBY", "EXPIRE"] * 100]
    assert scope.stats.commands == 200
    assert scope.stats.round_trips == proxy.round_trips == 1
