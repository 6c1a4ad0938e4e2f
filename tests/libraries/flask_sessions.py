"""Flask-Session: a session over several requests."""

from __future__ import annotations

import flask
import flask_session
from flask_session.redis import RedisSessionInterface

NAME = "Flask-Session"
DISTRIBUTION = "Flask-Session"
GIVEN = 'app.config["SESSION_REDIS"] = client'


def given(client):
    app = flask.Flask(__name__)
    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_REDIS"] = client
    app.logger.disabled = True
    flask_session.Session(app)
    return app


def use(client, record):
    app = given(client)
    assert isinstance(app.session_interface, RedisSessionInterface)

    @app.route("/set/<value>")
    def set_(value):
        flask.session["value"] = value
        return "set"

    @app.route("/get")
    def get():
        return repr(flask.session.get("value"))

    @app.route("/clear")
    def clear():
        flask.session.clear()
        return "clear"

    browser = app.test_client()
    for path in ["/get", "/set/1", "/get", "/set/2", "/get", "/clear", "/get", "/set/3"]:

        def ask(path=path):
            response = browser.get(path)
            return response.status_code, response.text

        record(f"GET {path}", ask)
    browser.set_cookie("session", "expired")
    record("an expired session", lambda: browser.get("/get").text)
