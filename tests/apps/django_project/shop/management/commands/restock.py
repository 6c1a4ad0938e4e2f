"""A command that is a batch."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

import autobatch
from shop import urls


class Command(BaseCommand):
    """Put more of each thing into the stock."""

    def add_arguments(self, parser: Any) -> None:
        """Take the names of things."""
        parser.add_argument("things", nargs="+")

    @autobatch.batch
    def handle(self, *_: Any, **options: Any) -> str:
        """Do it, in one round trip."""
        stock = {thing: urls.redis.hincrby("stock", thing, 10) for thing in options["things"]}
        urls.redis.incr("restocked")
        return "\n".join(f"{thing}: {left}" for thing, left in stock.items())
