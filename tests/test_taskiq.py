"""taskiq: a real worker's tasks take one round trip each, and fail as taskiq's own do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import autobatch
import autobatch.asyncio

for needed in ("taskiq", "taskiq_redis", "httpx"):
    pytest.importorskip(needed)

from taskiq import InMemoryBroker  # noqa: E402
from taskiq.kicker import AsyncKicker  # noqa: E402
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend  # noqa: E402

from autobatch.integrations.taskiq import BatchMiddleware  # noqa: E402
from common import PATIENCE  # noqa: E402
from looping import in_loop  # noqa: E402
from workers import work  # noqa: E402

ROOT = Path(__file__).parent.parent
VISIT = ["SADD", "EXPIRE", "INCRBY"]


def worker_of(broker):
    """Return the command that starts a worker."""
    return ["taskiq", "worker", broker, "--workers", "1", "--max-async-tasks", "1"]


@pytest.fixture(scope="module", params=["tests", "plain"])
def running(request, server, second_server):
    """A worker, of the broker with our middleware or of the one without."""
    kind = request.param
    command = worker_of(f"apps.taskiq_tasks:{'plain_broker' if kind == 'plain' else 'broker'}")
    if kind == "processes":
        command.append("--use-process-pool")
    with work(
        *command,
        redis_port=server,
        queue_port=second_server,
        ready="Listening started",
    ) as worker:
        worker.name = "plain" if kind == "plain" else "tests"
        yield worker


@pytest.fixture
def worker(running, plain):
    """A worker, an empty server, and nothing counted yet."""
    running.proxy.reset()
    return running


ours = pytest.mark.parametrize("running", ["tests"], indirect=True)
theirs = pytest.mark.parametrize("running", ["plain"], indirect=True)


@pytest.fixture
def run(worker):
    """Have a task done by the worker, and return its result, or raise its error."""

    async def main(name, args, labels):
        results = RedisAsyncResultBackend(worker.queue)
        broker = ListQueueBroker(worker.queue, queue_name=worker.name).with_result_backend(results)
        await broker.startup()
        try:
            task = await AsyncKicker(name, broker, labels).kiq(*args)
            result = await task.wait_result(check_interval=0.01, timeout=PATIENCE)
        finally:
            await broker.shutdown()
        result.raise_for_error()
        return result.return_value

    return lambda name, *args, **labels: asyncio.run(main(name, args, labels))


@ours
@pytest.mark.parametrize("task", ["visit", "visit_in_a_thread"])
def test_a_task_is_a_round_trip(task, run, worker, plain):
    """Whether a coroutine or a function, with a client of its kind."""
    assert run(task, "ada") == 1
    assert run(task, "bob") == 2
    assert worker.proxy.names == [VISIT, VISIT]
    assert plain.smembers("visitors") == {"ada", "bob"}


@ours
def test_a_result_may_hold_futures_anywhere(run, worker, plain):
    """They are resolved before they are serialised."""
    plain.set("key", "value")
    plain.hset("hash", mapping={"name": "Ada"})
    assert run("nested", "key") == {"list": ["value", [1, None]], "name": "ADA"}
    assert worker.proxy.names == [["HGET", "GET", "INCRBY"]]


@ours
def test_a_result_may_need_a_second_round_trip(run, worker, plain):
    """By `map`."""
    plain.set("current", "user:1")
    plain.hset("user:1", mapping={"name": "Ada"})
    assert run("chained") == "Ada"
    assert worker.proxy.names == [["GET"], ["HGET"]]


@ours
def test_signatures_stay(run, worker):
    """Taskiq reads types and dependencies off them."""
    assert run("typed", "3", ["4"]) == 7
    assert run("depending") == "a dependency"


@ours
def test_what_is_not_returned_is_sent(run, plain):
    """At the end of the task."""
    assert run("nothing") is None
    assert plain.get("nothing") == "1"


@ours
def test_a_failed_command_fails_its_task(run, plain):
    """Also when nobody looks at it; the other commands have run."""
    with pytest.raises(Exception, match="WRONGTYPE"):
        run("unseen")
    assert plain.get("after") == "1"


@ours
def test_a_task_that_raises_has_sent_what_it_called(run, plain):
    """Its error is taskiq's to tell."""
    with pytest.raises(ValueError, match="broken"):
        run("raising")
    assert plain.get("before") == "1"


@ours
def test_an_error_at_the_end_is_retried(run, worker, plain):
    """By taskiq's own middleware."""
    assert run("retried", retry_on_error=True) == ["1"]
    assert plain.get("attempts") == "2"
    again = ["DEL", "RPUSH", "LRANGE"]
    assert worker.proxy.names == [["INCRBY"], ["SET", *again[1:]], ["INCRBY"], again]


@theirs
def test_the_decorator_works_as_it_is(run, worker):
    """In a worker that knows nothing of us, where the function awaits what it returns."""
    assert run("decorated", "ada") == 1
    assert worker.proxy.names == [VISIT]


@theirs
def test_without_any_of_it_tasks_run_as_ever(run, worker):
    """One round trip a command."""
    assert run("plain", "ada") == 1
    assert worker.proxy.names == [["SADD"], ["EXPIRE"], ["INCRBY"]]


@in_loop
async def test_what_waits_is_sent_before_a_task(proxy, plain):
    """A worker may need to see it. A Future may be an argument."""
    broker = InMemoryBroker(await_inplace=True).with_middlewares(BatchMiddleware())
    seen = []

    @broker.task
    async def task(number, *, more):
        """Look at what is there when it runs."""
        seen.append((number, more, plain.get("order")))

    client = autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)
    async with client, autobatch.batch():
        client.set("order", "tea")
        await task.kiq(client.incr("number"), more=[client.get("order")])
        client.set("order", "coffee")
        await task.kiq(1, more=2)
        client.incr("number")
    assert seen == [(1, ["tea"], "tea"), (1, 2, "coffee")]
    assert proxy.names == [["SET", "INCRBY", "GET"], ["SET"], ["INCRBY"]]


@pytest.mark.parametrize("running", ["processes"], indirect=True)
def test_processes(run, worker):
    """Where functions run in a pool of processes, which find them by their names."""
    assert run("visit_in_a_thread", "ada") == 1
    assert worker.proxy.names == [VISIT]


def test_the_example(server, second_server, plain):
    """A worker, and a program that has it work, as its docstring says."""
    command = worker_of("examples.taskiq_tasks:broker")
    with work(
        *command, redis_port=server, queue_port=second_server, ready="Listening started", cwd=ROOT
    ) as worker:
        assert worker.run("examples.taskiq_tasks") == worker.promised("examples.taskiq_tasks")
        placing = ["INCRBY", "RPUSH", "HINCRBY"]
        assert worker.proxy.names == [["DEL", "HSET"], placing, placing]
