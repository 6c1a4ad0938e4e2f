"""Settings of a Django project with a database, for its TestCase."""

from __future__ import annotations

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["shop"]
MIDDLEWARE = ["autobatch.integrations.django.BatchMiddleware"]
ROOT_URLCONF = "shop.urls"
SECRET_KEY = "for tests"
