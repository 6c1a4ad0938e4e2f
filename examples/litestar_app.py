"""A scoreboard on Litestar, with an asyncio client. What the handlers return is lazy.

$ python -m examples.litestar_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X POST http://127.0.0.1:8000/players/ada/3
{"name":"ada","score":3.0,"rank":0,"games":1}
$ curl http://127.0.0.1:8000
{"games":"1","best":[["ada",3.0]]}

Each request takes one round trip.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, get, post

import autobatch.asyncio
from autobatch.integrations.litestar import BatchPlugin
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


class Player(msgspec.Struct):
    name: str
    score: Any
    rank: Any
    games: Any


@get("/")
async def show() -> dict[str, Any]:
    return {
        "games": redis.get("example:games"),
        "best": redis.zrange("example:scores", 0, 9, desc=True, withscores=True),
    }


@post("/players/{name:str}/{points:int}", status_code=200)
async def play(name: str, points: int) -> Player:
    return Player(
        name=name,
        score=redis.zincrby("example:scores", points, name),
        rank=redis.zrevrank("example:scores", name),
        games=redis.incr("example:games"),
    )


async def close() -> None:
    await redis.aclose()


app = Litestar([show, play], plugins=[BatchPlugin()], on_shutdown=[close])


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
