"""The tests of a project, which `manage.py test` runs."""

from __future__ import annotations

import asyncio
import io
import os
from unittest.mock import patch

from django.core.management import call_command
from django.test import AsyncClient, SimpleTestCase, TestCase
from redis.exceptions import ResponseError

import autobatch
from autobatch.testing import Proxy
from shop import urls


class ShopCase(SimpleTestCase):
    """What the tests have in common: an empty server, and a witness of what is sent to it."""

    def setUp(self) -> None:
        """Put a proxy that counts in front of the server."""
        port = int(os.environ["REDIS_URL"].rpartition(":")[2])
        self.proxy = self.enterContext(Proxy(port))
        client = autobatch.Redis(port=self.proxy.port, decode_responses=True)
        client.flushall()
        self.proxy.reset()
        self.addCleanup(client.close)
        self.enterContext(patch.object(urls, "redis", client))


class BuyTest(ShopCase, TestCase):
    """Of the view, with a database."""

    def test_buying_is_one_round_trip(self) -> None:
        """Through Django's client."""
        self.assertEqual(self.client.get("/buy/tea").json(), {"tea": -1})
        self.assertEqual(self.proxy.names, [["INCRBY", "HINCRBY"]])

    def test_asynchronously(self) -> None:
        """Through its asynchronous one."""
        response = asyncio.run(AsyncClient().get("/buy/tea"))
        self.assertEqual(response.json(), {"tea": -1})
        self.assertEqual(self.proxy.names, [["INCRBY", "HINCRBY"]])

    def test_a_failure_is_raised(self) -> None:
        """A test sees it."""
        urls.redis.set("sold", "no number")
        with self.assertRaisesRegex(ResponseError, "not an integer"):
            self.client.get("/buy/tea")


class RestockTest(ShopCase):
    """Of the command."""

    def test_restocking_is_one_round_trip(self) -> None:
        """However many things."""
        output = io.StringIO()
        call_command("restock", "tea", "coffee", stdout=output)
        self.assertEqual(output.getvalue(), "tea: 10\ncoffee: 10\n")
        self.assertEqual(self.proxy.names, [["HINCRBY", "HINCRBY", "INCRBY"]])
