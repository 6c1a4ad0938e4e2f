"""A guest book on Django, in one file. Every request is a batch, and what the views return is lazy.

$ python -m examples.django_app
...
Starting development server at http://127.0.0.1:8000/

$ curl -X POST http://127.0.0.1:8000/guests/ada
{"name": "ada", "visits": 1}
$ curl http://127.0.0.1:8000
{"views": 1, "guests": ["ada"], "visits": {"ada": "1"}}
$ curl http://127.0.0.1:8000/last/ada
ada: 1 visit, from nobody knows where

Or with a server for production: `gunicorn examples.django_app:application`, or
`uvicorn examples.django_app:asgi_application`, where `/live` is a view that never blocks the loop.
Other arguments go to Django, as those of `manage.py`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_POST

import autobatch.asyncio
from autobatch.integrations.django import JsonResponse  # in place of Django's own
from examples.server import server_url

PORT = os.environ.get("PORT", "8000")
PAGE = (
    "{{ name }}: {{ visits }} visit{{ visits|pluralize }}, "
    "{% if city is None %}from nobody knows where{% else %}from {{ city }}{% endif %}\n"
)

settings.configure(
    ALLOWED_HOSTS=["*"],
    CACHES={
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": server_url(),
            "OPTIONS": {"REDIS_CLIENT_CLASS": "autobatch.integrations.django.cache_client"},
        }
    },
    MIDDLEWARE=[
        "autobatch.integrations.django.BatchMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not for production",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    SESSION_SERIALIZER="autobatch.integrations.django.JSONSerializer",
    TEMPLATES=[
        {
            "BACKEND": "autobatch.integrations.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"last.txt": PAGE})]},
        }
    ],
)

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)
aredis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


def sign(name: str) -> int:
    redis.lpush("example:guests", name)
    redis.ltrim("example:guests", 0, 9)
    return redis.hincrby("example:guest_visits", name)


def show(_: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "views": redis.incr("example:views"),
            "guests": redis.lrange("example:guests", 0, -1),
            "visits": redis.hgetall("example:guest_visits"),
        }
    )


def add(request: HttpRequest, name: str) -> HttpResponse:
    visits = sign(name)
    request.session["visits"] = visits
    return JsonResponse({"name": name, "visits": visits})


def last(request: HttpRequest, name: str) -> HttpResponse:
    visits = redis.hget("example:guest_visits", name)
    city = redis.hget("example:cities", name)
    return render(request, "last.txt", {"name": name, "visits": visits, "city": city})


async def live(_: HttpRequest) -> HttpResponse:
    # Neither is awaited: the response is rendered when both are there.
    views = aredis.incr("example:views")
    return JsonResponse({"views": views, "guests": aredis.lrange("example:guests", 0, -1)})


urlpatterns: list[Any] = [
    path("", show),
    path("guests/<name>", require_POST(add)),
    path("last/<name>", last),
    path("live", live),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()


def main() -> None:
    arguments = sys.argv[1:] or ["runserver", "--noreload", f"127.0.0.1:{PORT}"]
    execute_from_command_line([sys.argv[0], *arguments])


if __name__ == "__main__":
    main()
