"""A storm: 10,000 tasks on one asyncio client, cancelled, delayed, and cut off from their server.

Everything random comes from one seed, which a failure tells; STORM_SEED=... repeats it, as far as
the moments at which tasks and threads run can be repeated.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import random
import stat

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import autobatch
import autobatch.asyncio
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.promise import PENDING, Promise
from autobatch.testing import Cut, Fault, Proxy, Swallow

TASKS = 10_000
KEYS = 4  # a task has, to read
SECONDS = 4.0  # over which the tasks start
HANGS = 40.0  # nothing here takes so long
RETRIES = 1000  # more than connections are lost: a read comes through in the end


class Late(Fault):
    """Each piece of the replies arrives late, until the connection is cut."""

    def __init__(self, delay, reply):
        self._delay = delay
        self._reply = reply

    def reply(self, link, data):
        link.to_client(data[: self._reply - link.replied], self._delay)
        if link.replied == self._reply:
            link.cut()


def fate(rng):
    """What a connection suffers: sooner or later it breaks."""
    count = rng.randrange(1, 150_000)
    cut = rng.choice([Cut(request=count), Cut(reply=count), Late(rng.uniform(0, 0.02), count)])
    return Swallow() if rng.random() < 0.1 else cut


def key(number, place):
    return f"key:{number}:{place}"


def value(number, place):
    return f"value:{number}:{place}"


class Storm:
    """The tasks, and the books that are kept of them.

    Attributes:
        written: what became of the one write of each task, where it has heard of that.
        reported: errors that nobody looked at, as the event loop heard of them.
    """

    def __init__(self, client, rng) -> None:
        self.client = client
        self.rng = rng
        self.written: dict[int, object] = {}
        self.reported: list[BaseException] = []

    async def run(self):
        """Run all tasks; return each with whether it was cancelled."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: self.reported.append(context.get("exception") or context)
        )
        rng = self.rng
        tasks = []
        for number in range(TASKS):
            start = rng.uniform(0, SECONDS)
            task = loop.create_task(self.task(number, start, rng.choice(WAYS)))
            tasks.append((task, rng.random() < 0.4))
            if tasks[-1][1]:
                loop.call_later(start + rng.uniform(0, 0.2), task.cancel)
        await asyncio.wait([task for task, _ in tasks])
        return tasks

    async def task(self, number, start, way):
        await asyncio.sleep(start)
        await way(self.client, number)
        if number % 2:
            await self.write(number)
        await way(self.client, number)

    async def write(self, number):
        try:
            self.written[number] = await self.client.incr(f"counter:{number}")
        except (NotSent, OutcomeUnknown) as error:
            self.written[number] = type(error)


def check(number, values):
    expected = [value(number, place) for place in range(len(values))]
    assert values == expected, f"task {number} got {values}"


async def one_by_one(client, number):
    check(number, [await client.get(key(number, place)) for place in range(KEYS)])


async def gathered(client, number):
    check(number, await asyncio.gather(*(client.get(key(number, i)) for i in range(KEYS))))


async def in_a_batch(client, number):
    async with autobatch.batch():
        values = [client.get(key(number, place)) for place in range(KEYS)]
    check(number, [autobatch.unwrap(value) for value in values])


async def called_before_awaited(client, number):
    values = [client.get(key(number, place)) for place in range(KEYS)]
    check(number, [await value for value in values])


async def half_forgotten(client, number):
    client.get(key(number, 0))
    values = client.mget(key(number, place) for place in range(KEYS))
    client.get(key(number, 1))
    check(number, await values)


async def in_child_tasks(client, number):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.get(key(number, place))) for place in range(KEYS)]
    check(number, [task.result() for task in tasks])


async def impatiently(client, number):
    with contextlib.suppress(TimeoutError):
        check(number, [await asyncio.wait_for(client.get(key(number, 0)), 0.001)])
    async with autobatch.batch():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.002):
                check(number, [await client.get(key(number, 0))])
    check(number, [await client.get(key(number, 0))])


async def in_a_transaction(client, number):
    async with autobatch.batch(atomic=True):
        values = [client.get(key(number, place)) for place in range(KEYS)]
    check(number, [await value for value in values])


WAYS = [
    one_by_one,
    gathered,
    in_a_batch,
    called_before_awaited,
    half_forgotten,
    in_child_tasks,
    impatiently,
    in_a_transaction,
]


def sockets():
    """Count the sockets that this process has open."""
    count = 0
    for descriptor in range(1024):
        with contextlib.suppress(OSError):
            count += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return count


def pending():
    """Return what waits, by id: unsettled promises, and asyncio's Futures of this loop."""
    loop = asyncio.get_running_loop()
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance() would ask a Future for its value
        if (issubclass(kind, Promise) and thing.outcome is PENDING) or (
            issubclass(kind, asyncio.Future) and thing.get_loop() is loop and not thing.done()
        ):
            found[id(thing)] = thing
    return found


def kill(plain):
    """Kill every connection of the storm; return how many there were."""
    killed = 0
    for one in plain.client_list():
        if one["name"] == "storm":
            killed += plain.client_kill_filter(_id=one["id"])
    return killed


async def kill_now_and_then(plain, rng):
    """Go on until cancelled; return how many connections were killed."""
    killed = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            killed += await asyncio.to_thread(kill, plain)
    return killed


async def weather(port, plain, rng, lanes):
    """Let the storm pass; return its books, its tasks, and how many connections were killed."""
    pending_before = pending()  # by other tests; but for this task
    del pending_before[id(asyncio.current_task())]
    client = autobatch.asyncio.Redis(
        port=port,
        lanes=lanes,
        client_name="storm",
        decode_responses=True,
        socket_timeout=0.5,
        retry=Retry(NoBackoff(), RETRIES),
    )
    storm = Storm(client, rng)
    async with asyncio.timeout(HANGS):
        killer = asyncio.create_task(kill_now_and_then(plain, random.Random(rng.random())))
        tasks = await storm.run()
        killer.cancel()
        killed = await killer
        await client.aclose()  # after what nobody awaits any more
    assert asyncio.all_tasks() == {asyncio.current_task()}
    left = [thing for key, thing in pending().items() if key not in pending_before]
    assert left == [asyncio.current_task()]
    return storm, tasks, killed


def judge(storm, tasks, plain):
    """Check that each task got what is its own, or was cancelled, and each write ran once."""
    ends = collections.Counter()
    for task, doomed in tasks:
        if task.cancelled():
            assert doomed
            ends["cancelled"] += 1
        else:
            task.result()
            ends["done"] += 1
    assert ends["done"] > TASKS / 4
    assert ends["cancelled"] > TASKS / 10
    for error in storm.reported:  # of writes whose task was cancelled
        assert isinstance(error, NotSent | OutcomeUnknown), error
    counters = plain.mget(f"counter:{number}" for number in range(TASKS))
    for number, count in enumerate(counters):
        outcome = storm.written.get(number)
        possible = {1: ["1"], NotSent: [None]}.get(outcome, [None, "1"])
        assert count in possible, f"task {number} wrote {count} times, and heard {outcome}"


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_storm_mixes_nothing_and_leaves_nothing(server, plain, lanes):
    """No value in the wrong task, no hang, no leaked task, future or socket, no second write."""
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().getrandbits(32))
    rng = random.Random(seed)
    plain.mset({key(n, place): value(n, place) for n in range(TASKS) for place in range(KEYS)})
    open_before = sockets()
    try:
        with Proxy(server, delay=0) as proxy:
            proxy.arm(*(fate(rng) for _ in range(60)))
            storm, tasks, killed = asyncio.run(weather(proxy.port, plain, rng, lanes))
        judge(storm, tasks, plain)
        assert killed >= 1
        assert proxy.connections >= 10
        assert sockets() == open_before
    except BaseException as error:
        error.add_note(f"STORM_SEED={seed}")
        raise
