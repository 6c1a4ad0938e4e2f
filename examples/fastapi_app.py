"""A shop on FastAPI, with an asyncio client. What the endpoints return is lazy.

$ python -m examples.fastapi_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl -X PUT "http://127.0.0.1:8000/products/tea?price=3"
{"name":"tea","price":3,"views":0,"buyers":[]}
$ curl -X POST "http://127.0.0.1:8000/products/tea/buyers?user=ada"
{"bought":"tea","orders":1}
$ curl http://127.0.0.1:8000/products
[{"name":"tea","price":3,"views":1,"buyers":["ada"]},{"name":"cake","price":null,"views":1,"buyers":[]}]

Each request takes one round trip, whatever it is made of.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from pydantic import BaseModel

import autobatch.asyncio
from autobatch.integrations.fastapi import install
from autobatch.integrations.pydantic import Lazy
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with redis:
        yield


app = FastAPI(lifespan=lifespan)
install(app)


class Product(BaseModel):
    """Its fields are validated when Redis has answered: a price is an int, not the text "3"."""

    name: str
    price: Lazy[int | None]
    views: Lazy[int]
    buyers: Lazy[list[str]]


def product(name: str, view: int = 1) -> Product:
    return Product(
        name=name,
        price=redis.hget("example:prices", name),
        views=redis.hincrby("example:views", name, view),
        buyers=redis.lrange(f"example:buyers:{name}", 0, 9),
    )


@app.get("/products")
async def products() -> list[Product]:
    return [product(name) for name in ("tea", "cake")]


@app.put("/products/{name}")
async def add(name: str, price: int) -> Product:
    redis.hset("example:prices", name, price)
    return product(name, view=0)


async def orders(user: str) -> Any:
    return redis.hincrby("example:orders", user)  # a dependency may be lazy, too


@app.post("/products/{name}/buyers")
async def buy(name: str, user: str, orders: Annotated[Any, Depends(orders)]) -> dict[str, Any]:
    redis.lpush(f"example:buyers:{name}", user)
    return {"bought": name, "orders": orders}


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
