"""A guest book on Quart, with an asyncio client. Every request is a batch, and little is awaited.

$ python -m examples.quart_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X POST http://127.0.0.1:8000/guests/ada
{"name":"ada","visits":1}
$ curl http://127.0.0.1:8000
{"guests":["ada"],"views":1,"visits":{"ada":"1"}}
"""

from __future__ import annotations

import os
import signal
from typing import Any

import uvicorn
from quart import Quart

import autobatch.asyncio
from autobatch.integrations.quart import install
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)

app = Quart(__name__)
install(app)


@app.get("/")
async def show() -> dict[str, Any]:
    # None of them is awaited: the response is made when all are there.
    return {
        "views": redis.incr("example:views"),
        "guests": redis.lrange("example:guests", 0, -1),
        "visits": redis.hgetall("example:guest_visits"),
    }


@app.post("/guests/<name>")
async def add(name: str) -> dict[str, Any]:
    redis.lpush("example:guests", name)
    redis.ltrim("example:guests", 0, 9)
    return {"name": name, "visits": redis.hincrby("example:guest_visits", name)}


@app.after_serving
async def close() -> None:
    await redis.aclose()


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
