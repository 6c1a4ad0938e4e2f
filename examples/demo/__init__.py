"""A shop page of 54 Redis calls, served in three ways: `make run`."""

REQUESTS = 50  # of each page are measured

WAYS = {
    "/plain": "plain redis-py",
    "/pipeline": "hand-written pipeline",
    "/autobatch": "autobatch",
}
"""The address of each page, and how it calls Redis. Each has a database of its own: 0, 1, 2."""
