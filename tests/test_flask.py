"""Flask: views that return Futures respond as views that return plain values."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import functools
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

import autobatch
import autobatch.asyncio
from autobatch.wsgi import BatchMiddleware

for needed in ("flask", "httpx"):
    pytest.importorskip(needed)

import flask  # noqa: E402
import itsdangerous  # noqa: E402
from flask.json.provider import DefaultJSONProvider  # noqa: E402
from redis.backoff import NoBackoff  # noqa: E402
from redis.retry import Retry  # noqa: E402

from autobatch.integrations.flask import JSONProvider, install  # noqa: E402
from autobatch.report import Reason, subscribe  # noqa: E402
from autobatch.testing import free_port  # noqa: E402
from common import run_documentation  # noqa: E402
from serving import serve  # noqa: E402

ROOT = Path(__file__).parent.parent


def application(view, *, lazy=True, by_hand=False, debug=False, **settings):
    """Return a Flask application of one view, as set up by one line, by hand, or not at all."""
    app = flask.Flask(__name__)
    app.secret_key = "for sessions"
    if by_hand:
        app.wsgi_app = BatchMiddleware(app.wsgi_app)
        app.json = JSONProvider(app)
    elif lazy:
        install(app)
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


def test_by_hand_a_response_is_as_flasks(client, plain, proxy, data):
    """The two lines that were all of it before there was `install`."""
    for content in CONTENTS.values():
        plain.delete("other")
        plainly = respond(application(lambda content=content: content(plain), lazy=False))
        plain.delete("other")
        view = functools.partial(content, client)
        view.__name__ = "view"
        assert respond(application(view, by_hand=True)) == plainly
    assert set(map(len, proxy.exchanges)) == {1, 2}


def with_headers(redis):
    name, count, number = redis.get("name"), redis.get("count"), redis.incr("other")
    response = flask.make_response("text")
    response.headers["X-Name"] = name
    response.headers.add("X-Count", count)
    response.headers.setdefault("X-Number", number)
    return response


def with_cookies(redis):
    response = flask.make_response("text")
    response.set_cookie("text", redis.get("name"))
    return response


def with_a_session(redis):
    flask.session["text"] = redis.get("text")
    flask.session["nested"] = {"scores": [redis.zscore("scores", "ada")]}
    flask.session[redis.get("count")] = (redis.get("missing"), redis.llen("list"))
    return "text"


# A view of the client may return each of these. (Without an error; with one they are below.)
RETURNED = {
    "str": lambda redis: redis.get("text"),
    "bytes": lambda redis: redis.dump("count"),
    "dict": lambda redis: redis.hgetall("hash"),
    "list": lambda redis: redis.lrange("list", 0, -1),
    "status": lambda redis: (redis.get("text"), redis.strlen("long")),
    "status of an answer": lambda redis: (flask.Response("text"), redis.strlen("long")),
    "text of a status": lambda redis: ("text", redis.get("status")),
    "dict of headers": lambda redis: ("text", {"X-Name": redis.get("name")}),
    "list of headers": lambda redis: ("text", [("X-Name", redis.get("name"))]),
    "headers of Flask's own response": lambda redis: (
        flask.Response("text"),
        {"X-Name": redis.get("name")},
    ),
    "a hash of headers": lambda redis: ("text", redis.hgetall("hash")),
    "all of it": lambda redis: (
        {"text": redis.get("text")},
        redis.strlen("long"),
        {"X-Name": redis.get("name"), "X-Other": [redis.incr("other"), "b"]},
    ),
    "response of str": lambda redis: flask.Response(redis.get("text")),
    "response of bytes": lambda redis: flask.Response(redis.dump("count")),
    "response of a list": lambda redis: flask.Response(redis.lrange("list", 0, -1)),
    "made response": lambda redis: flask.make_response(redis.get("text"), redis.strlen("long")),
    "redirection": lambda redis: flask.redirect(redis.get("name")),
    "chunks": lambda redis: iter([redis.get("text"), redis.get("name"), redis.dump("count")]),
    "headers of a response": with_headers,
    "cookies": with_cookies,
    "session": with_a_session,
    "template": lambda redis: flask.render_template_string(
        "{{ a is none }} {{ b|default('c') }} {{ d|tojson }} {{ e.born }} {{ f|join(', ') }}"
        "{% for g in h %}{{ loop.index }}{{ g }}{% endfor %} {{ i.j is none }} {{ i.k + 1 }}",
        a=redis.get("missing"),
        b=redis.get("text"),
        d=[redis.hgetall("hash")],
        e=redis.hgetall("hash"),
        f=[redis.get("text"), redis.get("count")],
        h=redis.lrange("list", 0, -1),
        i={"j": redis.get("missing"), "k": redis.incr("other")},
    ),
    "template of one": lambda redis: flask.render_template_string("{{ a }}", a=redis.get("text")),
    "streamed template": lambda redis: flask.stream_template_string(
        "{{ a is none }}, {{ b }}", a=redis.get("missing"), b=redis.get("text")
    ),
}


@pytest.fixture
def one_second(monkeypatch):
    """Cookies tell when they were signed: here always at the same time."""
    monkeypatch.setattr(itsdangerous.TimestampSigner, "get_timestamp", lambda _: 0)


@pytest.fixture
def more(plain, data):
    plain.set("name", "ada")
    plain.set("status", "202 FINE")
    plain.set("long", "." * 203)


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_what_a_view_returns_is_as_flasks(client, plain, proxy, more, one_second, returned):
    """The same status, headers and body, in one round trip."""
    plainly = respond(application(lambda: returned(plain), lazy=False))
    plain.delete("other")
    assert respond(application(lambda: returned(client))) == plainly
    assert plainly[0][0] in "23"
    assert proxy.round_trips == 1


@pytest.mark.parametrize(
    "returned",
    [
        lambda redis: redis.get("missing"),
        lambda redis: redis.incr("other"),
        lambda redis: redis.set("other", 1),
        lambda redis: redis.smembers("set"),
        lambda redis: (redis.get("missing"), 201),
        lambda redis: (redis.get("text"), redis.get("name"), {}, None),
    ],
)
def test_what_flask_cannot_answer_with_it_refuses(client, plain, more, returned):
    """With the same error."""
    with pytest.raises((TypeError, ValueError)) as expected:
        respond(application(lambda: returned(plain), lazy=False))
    with pytest.raises(type(expected.value)) as raised:
        respond(application(lambda: returned(client)))
    assert str(raised.value) == str(expected.value)


def test_a_session_goes_on(client, data):
    """The next request finds plain values in it."""
    seen = []

    def view():
        seen.append(dict(flask.session))
        flask.session["text"] = client.get("text")
        flask.session["count"] = client.incr("count")
        return "text"

    http = application(view).test_client()
    for _ in range(2):
        http.get("/")
    assert seen == [{}, {"text": "héllo", "count": 4}]
    assert {type(value) for value in seen[1].values()} == {str, int}


def test_a_session_that_was_not_changed_is_not_touched(client, data):
    """Or responses would vary by their cookies."""
    app = application(lambda: client.get("text"))
    assert "Vary" not in app.test_client().get("/").headers


def test_a_session_is_saved_when_flask_would_save_it(client, data):
    """A change deep inside it is not seen."""

    def view():
        if "list" in flask.session:
            flask.session["list"].append(client.get("text"))
        else:
            flask.session["list"] = []
        return "text"

    http = application(view).test_client()
    assert [("Set-Cookie" in http.get("/").headers) for _ in range(2)] == [True, False]


def test_a_second_installation_does_nothing():
    app = application(lambda: "text")
    before = dict(vars(app))
    install(app)
    assert vars(app) == before


def test_applications_do_not_share_a_session_interface():
    """Flask's own is one object for all of them."""
    other = flask.Flask(__name__)
    application(lambda: "text")
    assert "save_session" not in vars(other.session_interface)


def test_the_limits_of_each_request(client, proxy, plain):
    app = flask.Flask(__name__)
    install(app, max_commands=2)

    @app.get("/")
    def view():
        for number in range(5):
            client.rpush("list", number)
        return "text"

    assert app.test_client().get("/").text == "text"
    assert proxy.names == [["RPUSH"] * 2, ["RPUSH"] * 2, ["RPUSH"]]


def test_functions_around_a_view_share_its_round_trip(client, proxy, data):
    """Before it, after it, and the session's."""

    def view():
        client.rpush("log", "view")
        flask.session["text"] = client.get("text")
        return "text"

    app = application(view)
    app.before_request(lambda: client.rpush("log", "before") and None)

    @app.after_request
    def after(response):
        client.rpush("log", "after")
        return response

    assert app.test_client().get("/").text == "text"
    assert proxy.names == [["RPUSH"], ["RPUSH", "GET", "RPUSH"]]


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


def failing_dict(redis):
    return {"length": redis.llen("text")}


def failing_headers(redis):
    return "text", {"X-Length": redis.llen("text")}


def failing_session(redis):
    flask.session["length"] = redis.llen("text")
    return "text"


def failing_unseen(redis):
    redis.llen("text")
    return "all is well"


def failing_unseen_before_a_stream(redis):
    redis.llen("text")
    return iter(["all", "is", "well"])


def failing_after_the_view(redis):
    @flask.after_this_request
    def count(response):
        redis.llen("text")
        return response

    return "all is well"


FAILING = {
    "bare": lambda redis: redis.llen("text"),
    "dict": failing_dict,
    "list": lambda redis: [redis.llen("text")],
    "body of a tuple": lambda redis: (failing_dict(redis), 201),
    "headers": failing_headers,
    "jsonify": lambda redis: flask.jsonify(redis.llen("text")),
    "template": lambda redis: flask.render_template_string("{{ n }}", n=redis.llen("text")),
    "unseen": failing_unseen,
    "unseen before a stream": failing_unseen_before_a_stream,
    "after the view": failing_after_the_view,
    "session": failing_session,
}
# Flask asks no handler for a class of errors any more, as with an error that is raised there.
LATE = {"headers", "after the view", "session"}


@pytest.mark.parametrize("name", [name for name in FAILING if name not in LATE])
def test_a_failed_command_goes_to_the_handler_of_its_error(client, proxy, data, name):
    """As an error of the view does; the answer replaces what the view has returned."""
    app = application(lambda: FAILING[name](client))

    @app.errorhandler(redis.ResponseError)
    def sorry(error):
        return {"sorry": str(error).split()[0], "notes": len(error.__notes__)}, 503

    with app.test_client().get("/") as response:
        assert (response.status_code, response.json) == (503, {"sorry": "WRONGTYPE", "notes": 1})
    assert proxy.names == [["LLEN"]]


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_command_goes_to_the_handler_of_a_500(client, data, name, caplog):
    """Where there is no other. Flask logs it, with its note of where it was called."""
    app = application(lambda: FAILING[name](client))
    app.testing = False

    @app.errorhandler(500)
    def sorry(error):
        return {"sorry": type(error.original_exception).__name__}, 503

    with app.test_client().get("/") as response:
        assert (response.status_code, response.json) == (503, {"sorry": "ResponseError"})
    assert "queued at" in caplog.text


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_command_is_a_500(client, data, name):
    """Where the application has no handlers at all: Flask's page, no page of the server's."""
    app = application(lambda: FAILING[name](client))
    app.testing = False
    with app.test_client().get("/") as response:
        assert (response.status_code, response.mimetype) == (500, "text/html")
        assert "Internal Server Error" in response.text


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_command_reaches_who_debugs(client, data, name):
    """With testing, debugging or PROPAGATE_EXCEPTIONS."""
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        respond(application(lambda: FAILING[name](client)))


@pytest.mark.parametrize("testing", [False, True])
def test_more_failures_are_notes_of_what_a_view_raises(client, data, caplog, testing):
    """Nobody else tells of them."""

    def view():
        client.llen("text")
        raise LookupError("of the view")

    app = application(view)
    app.testing = testing
    expected = "LookupError: of the view\nAlso failed: ResponseError: WRONGTYPE"
    if testing:
        with pytest.raises(LookupError) as raised:
            respond(app)
        assert expected in "".join(traceback.format_exception(raised.value))
    else:
        respond(app)
        assert expected in caplog.text
        assert len(caplog.records) == 1


def test_a_failing_handler_of_errors_has_the_next_one(client, data):
    """What it calls fails as well: that goes to the handler of a 500."""
    app = application(lambda: failing_unseen(client))
    app.testing = False

    @app.errorhandler(redis.ResponseError)
    def sorry(error):
        client.hget("text", "field")
        return "sorry"

    @app.errorhandler(500)
    def really_sorry(error):
        return f"really sorry for {error.original_exception.__notes__[0][:4]}", 503

    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (503, "really sorry for HGET")


def test_failures_after_the_last_handler_are_logged(client, data, caplog):
    """The 500 is sent: as when Redis is down, and what runs after each request needs it too."""
    app = application(lambda: failing_unseen(client))
    app.testing = False

    @app.after_request
    def count(response):
        client.hget("text", "field")
        return response

    response = app.test_client().get("/")
    assert response.status_code == 500
    assert "unseen error in GET /: ResponseError: WRONGTYPE" in caplog.text
    assert "(HGET text, queued at" in caplog.text


def test_a_server_that_is_gone_is_a_500(data):
    """Flask's own, though all commands fail."""
    nowhere = autobatch.Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
    app = application(lambda: {"text": nowhere.get("text")})
    app.testing = False

    @app.before_request
    def count():
        nowhere.incr("requests")

    @app.after_request
    def count_again(response):
        nowhere.incr("responses")
        return response

    with app.test_client().get("/") as response:
        assert (response.status_code, response.mimetype) == (500, "text/html")
    nowhere.close()


def test_by_hand_an_unseen_error_is_the_servers(client, data):
    """It surfaces when the application has returned, so none of Flask's handlers is asked."""
    app = application(lambda: failing_unseen(client), by_hand=True)
    app.testing = False
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        respond(app)


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
    """Functions for its teardown, and for when the response is closed.

    They come when Flask cannot answer an error any more, so what waits has been sent by then.
    """

    def view():
        client.rpush("log", "view")
        response = flask.Response("done")
        response.call_on_close(lambda: client.rpush("log", "closed"))
        return response

    app = application(view)

    @app.teardown_request
    def teardown(error):
        client.rpush("log", "teardown")
        client.rpush("log", "-")

    response = app.test_client().get("/")
    assert response.data == b"done"
    response.close()
    assert plain.lrange("log", 0, -1) == ["view", "teardown", "-", "closed"]
    assert proxy.names == [["RPUSH"], ["RPUSH", "RPUSH"], ["RPUSH"]]


def test_asynchronous_views(client, proxy, plain):
    """Each has an event loop of its own, which ends with it, so they await what they call."""
    pytest.importorskip("asgiref")
    asynchronous = autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)

    async def view():
        client.incr("visits")
        views, _ = asynchronous.incr("views"), asynchronous.expire("views", 60)
        return {"views": await views, "visits": client.get("visits")}

    app = application(view)
    app.before_request(lambda: client.incr("requests") and None)

    @app.get("/unawaited")
    @autobatch.batch(join=False)
    async def unawaited():
        asynchronous.incr("views")
        return "text"

    http = app.test_client()
    assert http.get("/").json == {"views": 1, "visits": "1"}
    assert proxy.names == [["INCRBY"], ["INCRBY"], ["INCRBY", "EXPIRE"], ["GET"]]
    assert http.get("/").json == {"views": 2, "visits": "2"}
    assert http.get("/unawaited").text == "text"
    assert plain.get("views") == "3"


def test_what_is_recorded(client, data):
    """The request's name, and why its batch has left."""

    def view():
        client.incr("views")
        return "text"

    app = application(view)
    with subscribe(on_scope=(told := []).append):
        app.test_client().get("/").close()
    assert [scope.name for scope in told] == ["GET /"]
    assert [flush.reason for flush in told[0].flushes] == [Reason.RESPONSE]


def test_a_file_is_sent(client, plain, tmp_path):
    """Flask hands it to the server."""
    path = tmp_path / "file.txt"
    path.write_text("a file")

    def view():
        client.set("called", "yes")
        return flask.send_file(path)

    assert respond(application(view))[2] == b"a file"
    assert plain.get("called") == "yes"


GUNICORN = ["gunicorn", "examples.flask_app:app", "--bind", "127.0.0.1:0", "--worker-class"]
SERVERS = {
    "its own": ["examples.flask_app"],
    "flask run": ["flask", "--app", "examples.flask_app", "run", "--port", "0"],
    "flask debugging": [
        *("flask", "--app", "examples.flask_app", "run", "--port", "0"),
        *("--debug", "--no-reload"),
    ],
    "gunicorn": [*GUNICORN, "sync"],
    "gunicorn threads": [*GUNICORN, "gthread", "--threads", "4"],
    "gunicorn gevent": [*GUNICORN, "gevent"],
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_example(server, plain, name):
    """Its docstring tells what it answers; each request is one round trip, under any server."""
    for needed in {"gunicorn", "gevent"} & set(SERVERS[name]):
        pytest.importorskip(needed)
    with serve(*SERVERS[name], redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        answer = site.http.post("/guests/ada")
        assert (answer.status_code, answer.json()) == (200, {"name": "ada", "visits": 1})
        answer = site.get("/")
        assert answer.json() == {"guests": ["ada"], "views": 1, "visits": {"ada": "1"}}
        assert site.proxy.names == [["LPUSH", "LTRIM", "HINCRBY"], ["INCRBY", "LRANGE", "HGETALL"]]
        # Requests at the same time share nothing.
        site.forget()
        with ThreadPoolExecutor(8) as pool:
            names = [f"guest{number}" for number in range(24)]
            answers = list(pool.map(lambda name: site.http.post(f"/guests/{name}").json(), names))
        assert answers == [{"name": name, "visits": 1} for name in names]
        assert site.proxy.names == [["LPUSH", "LTRIM", "HINCRBY"]] * 24


def test_an_error_under_a_server(server, plain):
    """Flask's page, and in the log what failed where; the worker goes on."""
    with serve(*SERVERS["gunicorn"], redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        plain.set("example:guests", "no list")
        assert site.http.post("/guests/ada").status_code == 500
        assert site.logs("ResponseError: WRONGTYPE")
        assert "LPUSH example:guests, queued at" in site.log
        assert "in sign" in site.log
        plain.delete("example:guests")
        assert site.http.post("/guests/ada").json() == {"name": "ada", "visits": 2}


def test_the_documentation(proxy, plain):
    """Its code runs, and does what it says."""
    url = f"redis://127.0.0.1:{proxy.port}"
    names = run_documentation("flask", REDIS_URL=url, redis_py=redis)
    http = names["app"].test_client()
    assert http.get("/").json == {"views": 1, "guests": []}
    assert proxy.names == [["EXPIRE", "INCRBY", "LRANGE"]]
    plain.set("guests", "no list")
    answer = http.get("/")
    assert (answer.status_code, answer.json) == (503, {"error": "try again later"})
    names["redis"].close()
