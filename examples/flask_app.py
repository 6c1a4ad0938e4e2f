"""A guest book on Flask. Every request is a batch, and what the views return is lazy.

$ python -m examples.flask_app
...
 * Running on http://127.0.0.1:8000

$ curl -X POST http://127.0.0.1:8000/guests/ada
{"name":"ada","visits":1}
$ curl http://127.0.0.1:8000
{"guests":["ada"],"views":1,"visits":{"ada":"1"}}

Or with a server for production: `gunicorn examples.flask_app:app`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from flask import Flask

import autobatch
from autobatch.integrations.flask import install
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)

app = Flask(__name__)
install(app)


def sign(name: str) -> int:
    redis.lpush("example:guests", name)
    redis.ltrim("example:guests", 0, 9)
    return redis.hincrby("example:guest_visits", name)


@app.get("/")
def show() -> dict[str, Any]:
    return {
        "views": redis.incr("example:views"),
        "guests": redis.lrange("example:guests", 0, -1),
        "visits": redis.hgetall("example:guest_visits"),
    }


@app.post("/guests/<name>")
def add(name: str) -> dict[str, Any]:
    return {"name": name, "visits": sign(name)}


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app.run(port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
