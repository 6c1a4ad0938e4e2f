"""What test_django.py serves: streams and failures, under servers for WSGI and for ASGI."""

from __future__ import annotations

import asyncio
import os
import time

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

import autobatch
import autobatch.asyncio

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["autobatch.integrations.django.BatchMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests",
)

URL = os.environ["REDIS_URL"]
redis = autobatch.Redis.from_url(URL, decode_responses=True)
aredis = autobatch.asyncio.Redis.from_url(URL, decode_responses=True)


def visit(request):
    redis.incr("visits")
    redis.expire("visits", 60)
    return HttpResponse("visited")


def fail(request):
    redis.set("text", "a string")
    redis.lpush("text", 1)
    return HttpResponse("all is well")


async def afail(request):
    aredis.set("text", "a string")
    aredis.lpush("text", 1)
    return HttpResponse("all is well")


def stream(request):
    def chunks():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} "

    return StreamingHttpResponse(chunks())


async def astream(request):
    async def chunks():
        for number in range(3):
            aredis.rpush("chunks", number)
            yield f"{number} "

    return StreamingHttpResponse(chunks())


def endless(request):
    def chunks():
        redis.set("stream", "open")
        try:
            while True:
                yield "more "
                time.sleep(0.001)
        finally:
            redis.set("stream", "closed")

    return StreamingHttpResponse(chunks())


async def aendless(request):
    async def chunks():
        aredis.set("stream", "open")
        try:
            while True:
                yield "more "
                await asyncio.sleep(0.001)
        finally:
            aredis.set("stream", "closed")

    return StreamingHttpResponse(chunks())


urlpatterns = [
    path("", visit),
    path("fail", fail),
    path("afail", afail),
    path("stream", stream),
    path("astream", astream),
    path("endless", endless),
    path("aendless", aendless),
]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
