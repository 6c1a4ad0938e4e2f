"""celery: results of tasks, and the steps of a chord, in its Redis backend."""

from __future__ import annotations

from celery import Celery, states
from celery.app.task import Context

NAME = "celery, result backend"
DISTRIBUTION = "celery"
GIVEN = "app.backend.client = client"


def given(client):
    app = Celery("app", broker="memory://", backend=f"redis://127.0.0.1:{port_of(client)}/0")
    app.conf.result_extended = False
    app.backend.client = client
    return app.backend


def port_of(client):
    return client.connection_pool.connection_kwargs["port"]


def use(client, record):
    backend = given(client)
    record("state, missing", backend.get_state, "missing")
    record("result, missing", backend.get_result, "missing")
    record("store", backend.store_result, "task", {"n": 1}, states.SUCCESS)
    record("state", backend.get_state, "task")
    record("result", backend.get_result, "task")
    record("failure", backend.mark_as_failure, "failed", ValueError("no"), traceback="here")
    record("failure's result", lambda: repr(backend.get_result("failed")))
    record("traceback", backend.get_traceback, "failed")
    record("retried", backend.store_result, "task", None, states.RETRY)
    record("state, settled", backend.get_state, "task")
    record("get_many", lambda: [m["result"] for _, m in backend.get_many(["task"], timeout=1)])
    result = backend.app.AsyncResult("task")
    record("AsyncResult", lambda: [result.ready(), result.successful(), result.get(timeout=1)])
    record("incr", backend.incr, "counter")
    record("expire", backend.expire, "counter", 60)
    record("set_chord_size", backend.set_chord_size, "group", 2)
    # The steps of a chord, as a worker takes them when a task of its header has ended.
    body = backend.app.signature("body", queue="after")
    for number in range(2):
        request = Context(id=f"part{number}", group="group", chord=body)
        record("chord part", backend.on_chord_part_return, request, states.SUCCESS, number)
    with backend.app.connection_for_write() as connection:
        queue = connection.SimpleQueue("after")
        record("chord's body", lambda: queue.get(timeout=1).payload[0])
    record("forget", backend.forget, "failed")
    record("state, forgotten", backend.get_state, "failed")
