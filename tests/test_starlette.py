"""Starlette: responses of Futures are what the same responses of plain values are."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import pytest
import redis

import autobatch
from autobatch.asgi import BatchMiddleware

for needed in ("httpx", "starlette", "uvicorn"):
    pytest.importorskip(needed)

from starlette.background import BackgroundTask  # noqa: E402
from starlette.responses import JSONResponse as PlainJSONResponse  # noqa: E402

from autobatch.integrations.starlette import JSONResponse  # noqa: E402
from serving import serve  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(plain):
    """Something of every kind in Redis."""
    plain.set("text", "héllo")
    plain.set("count", 3)
    plain.hset("hash", mapping={"name": "Ada", "born": "1815"})
    plain.rpush("list", "a", "b")
    plain.sadd("set", "member")
    plain.zadd("scores", {"ada": 1.5})


def send(response, calls=1):
    """Return the messages of a response that is made and sent inside a request.

    It is made in a thread, as by an endpoint that is no coroutine. Forcing a value on the event
    loop would warn, and so fail the test.
    """

    async def app(scope, receive, send):
        made = await asyncio.to_thread(response)
        for _ in range(calls):
            sent.clear()
            await made(scope, receive, send)

    async def keep(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(BatchMiddleware(app)(scope, None, keep))
    return sent


# Each is called with the batching client, and with redis-py's.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "count": redis.incr("other")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "tuple": lambda redis: (redis.get("count"), redis.zrange("scores", 0, -1, withscores=True)),
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "str": lambda redis: redis.get("text"),
    "int": lambda redis: redis.incr("other"),
    "float": lambda redis: redis.zscore("scores", "ada"),
    "bool": lambda redis: redis.set("other", 1),
    "None": lambda redis: redis.get("missing"),
    "None inside": lambda redis: {"missing": redis.get("missing"), "none": None},
    "a dict": lambda redis: redis.hgetall("hash"),
    "a list": lambda redis: redis.lrange("list", 0, -1),
    "without Futures": lambda redis: {"é": [1, 2.5, None, True, {"b": "c"}], "d": ("e",)},
    "nothing": lambda redis: None,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_response_is_as_starlettes(client, plain, data, content):
    """The same status, headers and body, whatever is a Future in it."""
    plainly = send(lambda: PlainJSONResponse(content(plain)))
    plain.delete("other")
    lazily = send(lambda: JSONResponse(content(client)))
    assert lazily == plainly
    headers = dict(lazily[0]["headers"])
    assert int(headers[b"content-length"]) == len(lazily[1]["body"])


def test_keys_may_be_futures(client, plain, data):
    """A dict forces its keys when it is made; they are Futures all the same."""

    def content(redis):
        return {redis.get("text"): 1, redis.strlen("text"): [{redis.get("count"): None}]}

    plainly = send(lambda: PlainJSONResponse(content(plain)))
    assert send(lambda: JSONResponse(content(client))) == plainly


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_response_is_one_round_trip(client, data, proxy, content):
    """At most: a response without Futures takes none."""
    send(lambda: JSONResponse(content(client)))
    assert proxy.round_trips == any(proxy.exchanges)


@pytest.mark.parametrize(
    "arguments",
    [
        {"status_code": 201},
        {"status_code": 204},
        {"status_code": 304},
        {"headers": {"X-Name": "value"}},
        {"headers": {"Content-Type": "application/problem+json"}},
        {"media_type": "application/problem+json"},
    ],
    ids=str,
)
def test_a_response_takes_starlettes_arguments(client, plain, data, arguments):
    """With the same effect."""
    plainly = send(lambda: PlainJSONResponse([plain.get("count")], **arguments))
    assert send(lambda: JSONResponse([client.get("count")], **arguments)) == plainly


def test_headers_may_be_set_before_it_is_sent(client, data):
    """Cookies, too."""

    def respond():
        response = JSONResponse({"count": client.get("count")})
        response.headers["X-Name"] = "value"
        response.set_cookie("name", "value")
        return response

    headers = dict(send(respond)[0]["headers"])
    assert headers[b"x-name"] == b"value"
    assert headers[b"set-cookie"].startswith(b"name=value")
    assert headers[b"content-length"] == b"13"


def test_a_response_may_be_sent_twice(client, data):
    """As Starlette's, which may be a constant of a program."""
    once = send(lambda: JSONResponse({"count": client.get("count")}))
    assert send(lambda: JSONResponse({"count": client.get("count")}), calls=2) == once


@dataclasses.dataclass
class Thing:
    """Something that is no JSON."""

    name: str


@pytest.mark.parametrize(
    "content",
    [
        lambda redis: b"bytes",
        lambda redis: {"bytes": b"bytes"},
        lambda redis: redis.smembers("set"),
        lambda redis: {"set": redis.smembers("set")},
        lambda redis: Thing("name"),
        lambda redis: {("a", "tuple"): redis.get("text")},
        lambda redis: {"nan": math.nan, "text": redis.get("text")},
    ],
)
def test_what_is_no_json_fails_as_with_starlette(client, plain, data, content):
    """With the same error."""
    with pytest.raises((TypeError, ValueError)) as expected:
        PlainJSONResponse(content(plain))
    with pytest.raises(type(expected.value)) as raised:
        send(lambda: JSONResponse(content(client)))
    assert str(raised.value) == str(expected.value)


def test_bytes_of_redis_fail_as_with_starlette(proxy, data):
    """A client that does not decode replies has values that are no JSON."""
    with (
        autobatch.Redis(port=proxy.port) as client,
        pytest.raises(TypeError, match="Object of type bytes is not JSON serializable"),
    ):
        send(lambda: JSONResponse({"text": client.get("text")}))


def test_a_failed_future_raises_its_error_before_the_response_starts(client, data):
    """It is not an unseen one: it is raised once, where the value is needed."""
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised:
        send(lambda: JSONResponse({"length": client.llen("text"), "count": client.get("count")}))
    [note] = raised.value.__notes__
    assert note.startswith("LLEN text, queued at ")


def test_a_background_task_is_kept(client, plain, data):
    """It runs after the response, in the request's scope."""

    def respond():
        task = BackgroundTask(client.set, "background", "done")
        return JSONResponse({"count": client.get("count")}, background=task)

    assert send(respond)[1]["body"] == b'{"count":"3"}'
    assert plain.get("background") == "done"


def test_a_response_needs_no_scope():
    """What has no Futures, or only settled ones, can be sent anywhere."""

    async def keep(message):
        sent.append(message)

    sent = []
    asyncio.run(JSONResponse({"a": 1})({"type": "http"}, None, keep))
    assert sent[1]["body"] == b'{"a":1}'


def test_the_example(server, plain):
    """Its docstring tells what it answers; each request is one round trip."""
    with serve("examples.starlette_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        assert site.http.post("/guests/ada").text == '{"name":"ada","visits":1}'
        assert site.get("/").text == '{"views":1,"guests":["ada"],"visits":{"ada":"1"}}'
        assert site.proxy.names == [["LPUSH", "LTRIM", "HINCRBY"], ["INCRBY", "LRANGE", "HGETALL"]]
