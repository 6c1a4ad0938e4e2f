"""RQ: a real worker's jobs take one round trip each, and fail as RQ's own do."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pytest
import redis

import autobatch

for needed in ("rq", "httpx"):
    pytest.importorskip(needed)

from rq import Queue, Retry  # noqa: E402
from rq.job import Job  # noqa: E402

from apps.rq_tasks import Counter  # noqa: E402
from autobatch.integrations.rq import BatchJob  # noqa: E402
from common import eventually  # noqa: E402
from workers import work  # noqa: E402

ROOT = Path(__file__).parent.parent
OURS = ["--job-class", "autobatch.integrations.rq.BatchJob"]
WORKERS = {
    "forking": ["rq.cli", "worker", *OURS],
    "simple": ["rq.cli", "worker", "--worker-class", "rq.SimpleWorker", *OURS],
    "plain": ["rq.cli", "worker"],
}
VISIT = ["SADD", "EXPIRE", "INCRBY"]


@pytest.fixture(scope="module")
def workers(server, second_server):
    """Run workers, each when it is wanted for the first time."""
    url = f"redis://127.0.0.1:{second_server}"
    with contextlib.ExitStack() as stack:

        @functools.cache
        def running(kind):
            command = [*WORKERS[kind], "--url", url, kind]
            return stack.enter_context(
                work(*command, redis_port=server, queue_port=second_server, ready="Listening")
            )

        yield running


@pytest.fixture(params=["forking", "simple"])
def worker(request, workers, plain):
    """A worker, an empty server, and nothing counted yet."""
    worker = workers(request.param)
    worker.proxy.reset()
    return worker


@pytest.fixture
def enqueue(request, second_server):
    """Have the worker do a job, and return it when it has ended."""
    kind = request.node.callspec.params["worker"]
    with redis.Redis(port=second_server) as connection:
        queue = Queue(kind, connection=connection)

        def enqueue(function, *args, **options):
            name = function if callable(function) else f"apps.rq_tasks.{function}"
            return ended(queue.enqueue(name, *args, **options))

        yield enqueue


def ended(job):
    """Return a job when it has ended."""
    eventually(lambda: job.get_status() in {"finished", "failed"})
    return job


def test_a_job_is_a_round_trip(enqueue, worker, plain):
    """Its result is plain."""
    assert enqueue("visit", "ada").return_value() == 1
    assert enqueue("visit", "bob").return_value() == 2
    assert worker.proxy.names == [VISIT, VISIT]
    assert plain.smembers("visitors") == {"ada", "bob"}


def test_a_coroutine_is_a_round_trip(enqueue, worker):
    """RQ runs it in an event loop."""
    assert enqueue("coroutine", "ada").return_value() == 1
    assert worker.proxy.names == [VISIT]


def test_a_method_is_a_round_trip(enqueue, worker):
    """Of an object that travels with the job."""
    assert enqueue(Counter("counter").count, 3).return_value() == 3
    assert worker.proxy.names == [["EXPIRE", "INCRBY"]]


def test_a_result_may_hold_futures_anywhere(enqueue, worker, plain):
    """They are resolved before RQ pickles it."""
    plain.set("key", "value")
    plain.hset("hash", mapping={"name": "Ada"})
    value = enqueue("nested", "key").return_value()
    assert value == {"list": ["value", (1, None)], "hash": {"name": "Ada"}}
    assert type(value["list"][0]) is str
    assert worker.proxy.names == [["GET", "INCRBY", "HGETALL"]]


def test_what_is_not_returned_is_sent(enqueue, worker, plain):
    """At the end of the job."""
    assert enqueue("nothing").return_value() is None
    assert plain.get("nothing") == "1"


def test_a_failed_command_fails_its_job(enqueue, worker, plain):
    """Also when nobody looks at it; the other commands have run."""
    job = enqueue("unseen")
    assert job.get_status() == "failed"
    assert "WRONGTYPE" in job.latest_result().exc_string
    assert plain.get("after") == "1"


def test_a_job_that_raises_has_sent_what_it_called(enqueue, worker, plain):
    """Its error is RQ's to tell."""
    job = enqueue("raising")
    assert "ValueError: broken" in job.latest_result().exc_string
    assert plain.get("before") == "1"


def test_an_error_at_the_end_is_retried(enqueue, worker, plain):
    """As any error."""
    assert enqueue("unseen", retry=Retry(1)).get_status() == "finished"
    assert plain.get("attempts") == "2"
    assert plain.lrange("text", 0, -1) == ["1"]


@pytest.mark.parametrize("worker", ["plain"], indirect=True)
def test_the_decorator_works_as_it_is(enqueue, worker):
    """In a worker that knows nothing of us, where the function resolves what it returns."""
    assert enqueue("decorated", "ada").return_value() == {"visits": 1}
    assert worker.proxy.names == [VISIT]


@pytest.mark.parametrize("worker", ["plain"], indirect=True)
def test_without_any_of_it_jobs_run_as_ever(enqueue, worker):
    """One round trip a command."""
    assert enqueue("visit", "ada").return_value() == 1
    assert worker.proxy.names == [["SADD"], ["EXPIRE"], ["INCRBY"]]


# ---- on the side that enqueues ---------------------------------------------------------------


def test_what_waits_is_sent_before_a_job(second_server, client, proxy, plain):
    """A worker may need to see it. A Future may be an argument."""
    with redis.Redis(port=second_server) as connection:
        queue = Queue("nobody", connection=connection, job_class=BatchJob)
        with autobatch.batch():
            client.set("order", "tea")
            job = queue.enqueue("apps.rq_tasks.visit", client.get("order"))
            assert plain.get("order") == "tea"
            client.set("order", "coffee")
            queue.enqueue("apps.rq_tasks.visit", "no Future")
            assert plain.get("order") == "coffee"
            client.incr("number")
        assert proxy.names == [["SET", "GET"], ["SET"], ["INCRBY"]]
        [argument] = Job.fetch(job.id, connection=connection).args
        assert (type(argument), argument) == (str, "tea")


def test_the_example(server, second_server, plain):
    """A worker, and a program that has it work, as its docstring says."""
    url = f"redis://127.0.0.1:{second_server}"
    with work(
        *WORKERS["forking"],
        "--url",
        url,
        "shop",
        redis_port=server,
        queue_port=second_server,
        ready="Listening",
        cwd=ROOT,
    ) as worker:
        assert worker.run("examples.rq_tasks") == worker.promised("examples.rq_tasks")
        placing = ["INCRBY", "RPUSH", "HINCRBY"]
        assert worker.proxy.names == [["DEL", "HSET"], placing, placing]
