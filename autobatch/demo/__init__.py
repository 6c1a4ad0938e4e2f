"""A shop page of 54 Redis calls, served in six ways: `make run`, or `make run CLUSTER=1`."""

REQUESTS = 50  # of each page are measured

GROUPS = {
    "Synchronous": {
        "/plain": "plain redis-py",
        "/pipeline": "hand-written pipeline",
        "/autobatch": "autobatch",
    },
    "asyncio": {
        "/asyncio/plain": "plain redis.asyncio",
        "/asyncio/pipeline": "redis.asyncio pipeline",
        "/asyncio/autobatch": "autobatch.asyncio",
    },
}
"""The address of each page, and how it calls Redis. The plain way comes first."""

WAYS = {path: name for ways in GROUPS.values() for path, name in ways.items()}
"""All of them. On one server each has a database of its own: 0, 1, 2, …"""
