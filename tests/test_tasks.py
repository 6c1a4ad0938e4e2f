"""What all task queues share, and the documentation of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import redis

import autobatch
import autobatch.asyncio
from autobatch.integrations.tasks import own_scope
from common import code_of
from looping import in_loop

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "tasks.md"


def test_a_call_is_a_scope_of_its_own(client, proxy):
    """It gives plain values, and has sent everything."""

    @own_scope
    def task(key, *, by=1):
        client.expire(key, 60)
        return {key: [client.incrby(key, by)]}

    assert task("a") == {"a": [1]}
    with autobatch.batch():
        client.get("a")
        result = task("a", by=2)
        assert type(result["a"][0]) is int
        client.get("a")
    assert proxy.names == [["EXPIRE", "INCRBY"], ["GET"], ["EXPIRE", "INCRBY"], ["GET"]]


@in_loop
async def test_a_coroutine_is_a_scope_of_its_own(proxy):
    """So is a call of a coroutine function, which remains one."""
    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:

        @own_scope
        async def task(key):
            client.set(key, "b")
            client.set("b", "value")
            return [client.get(key).map(client.get)]

        assert inspect.iscoroutinefunction(task)
        assert await task("a") == ["value"]
    assert proxy.names == [["SET", "SET", "GET"], ["GET"]]


def test_errors_are_those_of_the_call(client, plain):
    """Inside a scope, too: they do not wait for its end."""
    plain.set("text", "a string")
    task = own_scope(lambda: [client.lpush("text", 1), None][1])
    with autobatch.batch(), pytest.raises(redis.ResponseError):
        task()


def test_it_looks_like_its_function():
    """Queues read the name and the signature off it."""

    def task(number: int, more: str = "") -> None:
        """Do something."""

    assert own_scope(task).__name__ == "task"
    assert inspect.signature(own_scope(task)) == inspect.signature(task)


def test_the_documentation(server, plain, client, capsys):
    """Its code runs, and prints what its comments say."""
    for needed in ("celery", "rq", "taskiq", "apscheduler"):
        pytest.importorskip(needed)
    plain.hset("stock", "tea", 5)
    code = "".join(code_of(DOCUMENTATION))
    url = f"redis://127.0.0.1:{server}"
    namespace = {
        "REDIS_URL": url,
        "autobatch": autobatch,
        "redis": redis,
        "client": client,
        "async_client": None,
        "__name__": __name__,
    }
    exec(compile(code, str(DOCUMENTATION), "exec"), namespace)
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)
    namespace["app"].close()
    namespace["queue"].connection.close()
