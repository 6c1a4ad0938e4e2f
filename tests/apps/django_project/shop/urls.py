"""Where the views are, and what they do."""

from __future__ import annotations

import os

from django.http import HttpRequest
from django.urls import path

import autobatch
from autobatch.integrations.django import JsonResponse

redis = autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


def buy(request: HttpRequest, thing: str) -> JsonResponse:
    """Count what was sold, and tell what is left."""
    redis.incr("sold")
    return JsonResponse({thing: redis.hincrby("stock", thing, -1)})


urlpatterns = [path("buy/<thing>", buy)]
