"""Flask: views that return Futures respond as views that return plain values."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import uuid
from pathlib import Path

import pytest
import redis

import autobatch
from autobatch.wsgi import BatchMiddleware

for needed in ("flask", "httpx"):
    pytest.importorskip(needed)

import flask  # noqa: E402
from flask.json.provider import DefaultJSONProvider  # noqa: E402

from autobatch.integrations.flask import JSONProvider  # noqa: E402
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


def application(view, *, lazy=True, debug=False, **settings):
    """Return a Flask application of one view, with our provider or with Flask's."""
    app = flask.Flask(__name__)
    if lazy:
        app.wsgi_app = BatchMiddleware(app.wsgi_app)
        app.json = JSONProvider(app)
    app.debug = debug
    app.testing = True  # errors reach the test
    for name, value in settings.items():
        setattr(app.json, name, value)
    app.get("/")(view)
    return app


def respond(app):
    """Return the status, headers and body of a response."""
    with app.test_client().get("/") as response:
        return response.status, list(response.headers), response.data


@dataclasses.dataclass
class Thing:
    """Something that Flask knows how to show."""

    name: str
    count: int


ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
DATE = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)

# Each is called with the batching client, and with redis-py's.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "count": redis.incr("other")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "keys": lambda redis: {redis.get("text"): 1, "b": {redis.get("count"): None}},
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "None": lambda redis: {"missing": redis.get("missing"), "none": None},
    "a dict": lambda redis: redis.hgetall("hash"),
    "a list": lambda redis: redis.lrange("list", 0, -1),
    "scores": lambda redis: {"scores": redis.zrange("scores", 0, -1, withscores=True)},
    "without Futures": lambda redis: {"é": [1, 2.5, None, True, {"b": "c"}], "d": ("e",)},
    "jsonify": lambda redis: flask.jsonify(b=redis.get("text"), a=redis.get("count")),
    "jsonify one": lambda redis: flask.jsonify(redis.get("text")),
    "jsonify several": lambda redis: flask.jsonify(redis.get("text"), redis.get("missing")),
    "jsonify None": lambda redis: flask.jsonify(redis.get("missing")),
    "other types": lambda redis: {
        "date": DATE,
        "id": ID,
        "number": decimal.Decimal("1.50"),
        "thing": Thing("name", 2),
        "text": redis.get("text"),
    },
    "in a dataclass": lambda redis: {"thing": Thing(redis.get("text"), redis.incr("other"))},
    "mapped": lambda redis: {
        "thing": redis.get("text").map(lambda text: Thing(text, 2))
        if isinstance(redis, autobatch.Redis)
        else Thing(redis.get("text"), 2)
    },
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"debug": True}, {"sort_keys": False}, {"compact": False}, {"ensure_ascii": False}],
    ids=str,
)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_response_is_as_flasks(client, plain, proxy, data, content, settings):
    """The same status, headers and body, in one round trip, whatever is a Future in it."""
    plainly = respond(application(lambda: content(plain), lazy=False, **settings))
    plain.delete("other")
    assert respond(application(lambda: content(client), **settings)) == plainly
    assert proxy.round_trips == any(proxy.exchanges)


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        lambda redis: {"bytes": b"bytes"},
        lambda redis: {"set": redis.smembers("set")},
        lambda redis: {("a", "tuple"): redis.get("text")},
    ],
)
def test_what_is_no_json_fails_as_with_flask(client, plain, data, content, debug):
    """With the same error."""
    with pytest.raises(TypeError) as expected:
        respond(application(lambda: content(plain), lazy=False, debug=debug))
    with pytest.raises(TypeError) as raised:
        respond(application(lambda: content(client), debug=debug))
    assert str(raised.value) == str(expected.value)


def test_templates_show_futures_as_json(client, data):
    """Flask's `tojson` asks the provider, too."""

    def view():
        return flask.render_template_string(
            "{{ user|tojson }} {{ user.name }}", user=client.hgetall("hash")
        )

    assert respond(application(view))[2] == b'{"born": "1815", "name": "Ada"} Ada'


def test_the_providers_default_may_be_replaced(client, data):
    """As Flask's documentation says."""

    def default(value):
        if isinstance(value, set):
            return sorted(value)
        return DefaultJSONProvider.default(value)

    app = application(
        lambda: {"set": client.smembers("set"), "text": client.get("text")}, default=default
    )
    assert app.test_client().get("/").json == {"set": ["member"], "text": "héllo"}


def test_loads_is_flasks():
    """What a client posts holds no Futures."""
    assert application(lambda: "").json.loads('{"a": [1]}') == {"a": [1]}


def test_a_failed_future_is_an_error_of_its_view(client, data):
    """`jsonify` needs the value, so the application's handler is asked."""
    app = application(lambda: flask.jsonify(length=client.llen("text")))

    @app.errorhandler(redis.ResponseError)
    def sorry(error):
        return {"sorry": str(error).split()[0], "notes": len(error.__notes__)}, 503

    response = app.test_client().get("/")
    assert (response.status_code, response.json) == (503, {"sorry": "WRONGTYPE", "notes": 1})


def test_a_failed_future_in_a_dict_is_a_500(client, data):
    """Flask makes a response of it after the view, where its handlers of last resort answer."""
    app = application(lambda: {"length": client.llen("text")})
    app.testing = False

    @app.errorhandler(500)
    def sorry(error):
        return {"sorry": type(error.original_exception).__name__}, 503

    response = app.test_client().get("/")
    assert (response.status_code, response.json) == (503, {"sorry": "ResponseError"})


def test_an_unseen_error_is_the_servers(client, data):
    """It surfaces when the application has returned, so none of Flask's handlers is asked."""

    def view():
        client.llen("text")
        return "all is well"

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        respond(application(view))


def test_a_streamed_response_is_in_its_requests_scope(client, proxy, data):
    """A round trip a chunk."""

    def view():
        def chunks():
            for number in range(3):
                client.rpush("chunks", number)
                yield f"{number} {flask.request.path} "

        return flask.stream_with_context(chunks())

    assert respond(application(view))[2] == b"0 / 1 / 2 / "
    assert proxy.names == [["RPUSH"]] * 3


def test_what_runs_after_a_request_is_in_its_scope(client, proxy, plain):
    """Functions for its teardown, and for when the response is closed."""

    def view():
        client.rpush("log", "view")
        response = flask.Response("done")
        response.call_on_close(lambda: client.rpush("log", "closed"))
        return response

    app = application(view)
    app.teardown_request(lambda error: client.rpush("log", "teardown"))
    response = app.test_client().get("/")
    assert response.data == b"done"
    response.close()
    assert plain.lrange("log", 0, -1) == ["view", "teardown", "closed"]
    assert proxy.names == [["RPUSH", "RPUSH"], ["RPUSH"]]


def test_a_file_is_sent(client, plain, tmp_path):
    """Flask hands it to the server."""
    path = tmp_path / "file.txt"
    path.write_text("a file")

    def view():
        client.set("called", "yes")
        return flask.send_file(path)

    assert respond(application(view))[2] == b"a file"
    assert plain.get("called") == "yes"


def test_the_example(server, plain):
    """Its docstring tells what it answers; each request is one round trip."""
    with serve("examples.flask_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        assert site.http.post("/guests/ada").text == '{"name":"ada","visits":1}\n'
        assert site.get("/").text == '{"guests":["ada"],"views":1,"visits":{"ada":"1"}}\n'
        assert site.proxy.names == [["LPUSH", "LTRIM", "HINCRBY"], ["INCRBY", "LRANGE", "HGETALL"]]
