"""slowapi: a limited endpoint of Starlette, asked as a client would."""

from __future__ import annotations

from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from . import limits_strategies

NAME = "slowapi"
DISTRIBUTION = "slowapi"
GIVEN = "limiter._storage = limiter._limiter.storage = storage  # of limits"


def given(client):
    limiter = Limiter(key_func=lambda request: "somebody", headers_enabled=True)
    limiter._storage = limiter._limiter.storage = limits_strategies.given(client)
    return limiter


def use(client, record):
    limiter = given(client)

    @limiter.limit("2/hour")
    def limited(request):
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", limited)])
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    browser = TestClient(app)
    for number in range(3):

        def ask():
            response = browser.get("/")
            return response.status_code, response.headers["x-ratelimit-remaining"]

        record(f"request {number}", ask)
    record("reset", limiter.reset)
