"""Celery: a real worker's tasks take one round trip each, and fail as Celery's own do."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import redis

import autobatch

for needed in ("celery", "httpx"):
    pytest.importorskip(needed)

from celery import Celery, chain, chord, group  # noqa: E402

from autobatch.integrations.celery import BatchTask  # noqa: E402
from common import PATIENCE  # noqa: E402
from workers import work  # noqa: E402

ROOT = Path(__file__).parent.parent
POOLS = ["solo", "prefork", "threads"]
VISIT = ["SADD", "EXPIRE", "INCRBY"]


def worker_of(app, pool):
    """Return the command that starts a worker."""
    options = ["--pool", pool, "--concurrency", "2", "--loglevel", "INFO"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return ["celery", "-A", app, "worker", *options, *quiet]


# Celery 5.4 leaves connections of its own client to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def collected():
    """They are collected before the next module, which takes them for its own."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=POOLS)
def running(request, server, second_server):
    """A worker."""
    command = worker_of("apps.celery_tasks", request.param)
    with work(*command, redis_port=server, queue_port=second_server, ready="ready.") as worker:
        yield worker


@pytest.fixture
def worker(running, plain):
    """A worker, an empty server, and nothing counted yet."""
    running.proxy.reset()
    return running


@pytest.fixture
def app(worker):
    """Celery, as a client of the worker."""
    with Celery("client", broker=worker.queue, backend=worker.queue) as app:
        app.conf.task_default_queue = "tests"
        yield app
        app.backend.client.close()


@pytest.fixture
def run(app):
    """Have a task done by the worker, and return its result."""

    def run(name, *args):
        result = app.send_task(f"apps.celery_tasks.{name}", args)
        return result.get(timeout=PATIENCE)

    return run


@pytest.mark.parametrize("task", ["visit", "Visit", "visit_with_base"])
def test_a_task_is_a_round_trip(task, run, worker, plain):
    """Its result is plain for the backend."""
    assert run(task, "ada") == 1
    assert run(task, "bob") == 2
    assert worker.proxy.names == [VISIT, VISIT]
    assert plain.smembers("visitors") == {"ada", "bob"}


def test_a_result_may_hold_futures_anywhere(run, worker, plain):
    """They are resolved before Celery makes JSON of it."""
    plain.set("key", "value")
    plain.hset("hash", mapping={"name": "Ada"})
    assert run("nested", "key") == {"list": ["value", [1, None]], "hash": {"name": "Ada"}}
    assert worker.proxy.names == [["GET", "INCRBY", "HGETALL"]]


def test_looking_flushes(run, worker):
    """As anywhere."""
    assert run("looking", "count") == "1"
    assert run("looking", "count") == "again"
    assert worker.proxy.names == [["INCRBY"], ["GET"], ["INCRBY"]]


def test_what_is_not_returned_is_sent(run, worker, plain):
    """At the end of the task."""
    assert run("nothing") is None
    assert plain.get("nothing") == "1"


@pytest.mark.parametrize("task", ["unseen", "seen"])
def test_a_failed_command_fails_its_task(task, run, plain):
    """Also when nobody looks at it; the other commands have run."""
    plain.set("visits", 1)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        run(task)
    assert plain.get("after") == ("1" if task == "unseen" else None)


def test_a_task_that_raises_has_sent_what_it_called(run, plain):
    """Its error is Celery's to tell."""
    with pytest.raises(ValueError, match="broken"):
        run("raising")
    assert plain.get("before") == "1"


def test_an_error_at_the_end_is_retried(run, worker, plain):
    """`autoretry_for` sees the error that nobody has looked at, and tries again."""
    assert run("retried") == ["1"]
    assert plain.get("attempts") == "2"
    assert worker.proxy.names == [
        ["INCRBY", "SET", "RPUSH", "LRANGE"],
        ["INCRBY", "DEL", "RPUSH", "LRANGE"],
    ]


def test_a_retry_by_hand(run, worker):
    """What was called before it is sent."""
    assert run("retried_by_hand") == 2
    assert worker.proxy.names == [["INCRBY"], ["INCRBY"]]


def test_results_go_on(app, worker):
    """To the tasks of a chain, a group and a chord, as plain values."""
    double = app.signature("apps.celery_tasks.double")
    total = app.signature("apps.celery_tasks.total")
    for canvas, result in [
        (chain(double.clone((1,)), double), 4),
        (group(double.clone((number,)) for number in (3, 4)), [6, 8]),
        (chord([double.clone((number,)) for number in (5, 6)], total), 22),
    ]:
        assert canvas.apply_async().get(timeout=PATIENCE) == result
    assert worker.proxy.names == [["INCRBY"]] * 7


def test_the_decorator_works_as_it_is(run, worker):
    """Under `app.task`, where the function itself resolves what it returns."""
    assert run("visit_decorated", "ada") == {"visits": 1}
    assert worker.proxy.names == [VISIT]


def test_without_any_of_it_tasks_run_as_ever(run, worker):
    """One round trip a command."""
    assert run("visit_plain", "ada") == 1
    assert worker.proxy.names == [["SADD"], ["EXPIRE"], ["INCRBY"]]


# ---- on the side that sends tasks ------------------------------------------------------------


@pytest.fixture
def sender(second_server):
    """An application of which no worker knows."""
    queue = f"redis://127.0.0.1:{second_server}"
    with Celery("sender", broker=queue, backend=queue, task_cls=BatchTask) as app:
        app.conf.task_default_queue = "nobody"
        yield app
        app.backend.client.close()


def test_what_waits_is_sent_before_a_task(sender, client, proxy, plain):
    """A worker may need to see it. A Future may be an argument."""

    @sender.task
    def task(number, *, more):
        """Do nothing."""

    with autobatch.batch():
        client.set("order", "tea")
        task.delay(client.incr("number"), more=[client.get("order")])
        assert plain.get("order") == "tea"
        client.set("order", "coffee")
        task.s(1, more=2).apply_async()
        assert plain.get("order") == "coffee"
        client.incr("number")
    assert proxy.names == [["SET", "INCRBY", "GET"], ["SET"], ["INCRBY"]]


def test_arguments_are_checked_as_ever(sender):
    """Which needs the signature of the task."""

    @sender.task
    def task(number):
        """Do nothing."""

    with pytest.raises(TypeError, match="positional argument"):
        task.delay(1, 2)


def test_called_as_a_function_it_is_a_scope_of_its_own(sender, client, proxy):
    """And gives plain values, in a scope or not; so does an eager one."""

    @sender.task
    def task(key):
        client.expire(key, 60)
        return [client.incr(key)]

    assert task("a") == [1]
    assert task.apply(("a",)).get() == [2]
    with autobatch.batch():
        client.set("b", 1)
        values = task("b")
        assert type(values[0]) is int
    assert proxy.names == [
        ["EXPIRE", "INCRBY"],
        ["EXPIRE", "INCRBY"],
        ["SET"],
        ["EXPIRE", "INCRBY"],
    ]


def test_an_eager_task_fails_as_a_task(sender, client, plain):
    """Its errors are its own, not those of the scope around it."""
    plain.set("text", "a string")

    @sender.task
    def task():
        client.lpush("text", 1)

    with autobatch.batch():
        assert task.apply().failed()


def test_the_example(server, second_server, plain):
    """A worker, and a program that has it work, as its docstring says."""
    command = worker_of("examples.celery_tasks", "solo")
    with work(
        *command, redis_port=server, queue_port=second_server, ready="ready.", cwd=ROOT
    ) as worker:
        assert worker.run("examples.celery_tasks") == worker.promised("examples.celery_tasks")
        placing = ["INCRBY", "RPUSH", "HINCRBY"]
        assert worker.proxy.names == [["DEL", "HSET"], placing, placing]
