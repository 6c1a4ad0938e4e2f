"""Programs written for redis-py do the same on a batching client, with fewer round trips.

The programs in tests/programs know nothing of autobatch. Each one's scenario runs on redis-py's
own client, on a batching one outside any scope, inside a scope, and on the eager view of a
batching one inside a scope. Results, errors and the final keyspace have to be equal.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import redis

import autobatch
from common import keyspace
from programs.cache import Cache
from programs.job_queue import EventLog, JobQueue
from programs.leaderboard import Leaderboard, UnknownPlayer
from programs.rate_limiter import FixedWindow, SlidingWindow, TokenBucket
from programs.session_store import SessionExpired, SessionStore
from programs.shopping_cart import Cart, OutOfStock, Prices


def outcome(function, *args):
    """What a call gives: its plain value, or the error that it raises."""
    try:
        return autobatch.resolve(function(*args))
    except (SessionExpired, UnknownPlayer, OutOfStock, redis.RedisError) as error:
        return type(error), str(error)


# ---- the scenarios -------------------------------------------------------------------------


def sessions(client, _):
    ids = iter(["s1", "s2", "s3", "s4"])
    store = SessionStore(client, new_id=lambda: next(ids))
    created = [store.create("ada", theme="dark"), store.create("ada"), store.create("bob")]
    store.update("s1", theme="light")
    loaded = [store.load(session_id) for session_id in created]
    touched = [store.touch("s1"), store.touch("s9")]
    client.expire("session:s2", 0)  # its time is over
    expired = outcome(store.load, "s2")
    live = store.sessions_of("ada")
    store.destroy("s3")
    wrong_type = outcome(client.incr, "sessions-of:ada")
    logged_out = store.destroy_all("ada")
    store.create("ada")
    return created, loaded, touched, expired, live, wrong_type, logged_out


def limits(client, _):
    fixed = FixedWindow(client, limit=2, period=60)
    sliding = SlidingWindow(client, 2, period=60, clock=iter([0.0, 10.0, 20.0, 65.0]).__next__)
    bucket = TokenBucket(client, capacity=2, rate=0.5, clock=itertools.count(1000.0).__next__)
    return (
        [fixed.allow("ada") for _ in range(3)],
        [sliding.allow("ada") for _ in range(4)],
        [bucket.take("ada") for _ in range(6)],
        [bucket.take(user) for user in ("bob", "cy", "dan")],
        [bucket.remaining(user) for user in ("ada", "bob", "eve")],
    )


def ranking(client, _):
    board = Leaderboard(client, "chess")
    scores = {"ada": 30, "bob": 20, "cy": 20, "dan": 10, "eve": 5}
    for player, score in scores.items():
        board.register(player, name=player.title(), country="uk")
        board.submit(player, score)
    board.submit("ada", 3)  # not her best
    board.submit("dan", 40)
    awarded = [board.award("eve", 25), board.award("fay", 1)]
    return (
        awarded,
        board.top(3),
        board.around("cy", 1),
        board.around("dan", 1),
        outcome(board.around, "nobody", 1),
        outcome(board.award, "ada", "many"),
        [board.remove("eve"), board.remove("nobody")],
        board.top(10),
    )


def jobs(client, _):
    now = 0
    queue = JobQueue(client, patience=30, max_attempts=2, clock=lambda: now)
    for number in range(3):
        queue.push(f"j{number}", to="ada", number=number)
    first, late = queue.reserve(), queue.wait(1)
    queue.complete("j0")
    before = queue.status()
    now = 29
    retried = [queue.retry_overdue()]
    now = 30
    retried.append(queue.retry_overdue())
    last = [queue.reserve(), queue.reserve()]
    queue.complete("j2")
    now = 60
    retried.append(queue.retry_overdue())
    nothing = [queue.reserve(), queue.wait(0.01)]
    return first, late, before, retried, last, nothing, queue.status()


def events(client, _):
    log = EventLog(client, "events", "mailers")
    log.create_group()
    for number in range(3):
        log.append("signup", number=number)
    done = []

    def handle(fields):
        if fields["number"] == "1":
            raise ValueError("no address")
        done.append(fields)

    processed = log.process("m1", handle)
    again = log.process("m1", handle)
    pending = log.pending()
    taken = log.take_over("m2", 0)
    return processed, again, done, pending, taken, log.pending()


def caching(client, _):
    cache = Cache(client)
    cache.set("a", {"n": 1}, tags=["numbers", "letters"])
    cache.set("b", [1, 2], tags=["letters"])
    found = cache.get_many("a", "b", "c")
    computed = []

    def compute():
        computed.append(True)
        return {"big": True}

    values = [cache.get_or_compute("big", compute, tags=["numbers"]) for _ in range(3)]
    forgotten = [cache.invalidate("letters"), cache.invalidate("nothing")]
    return found, values, len(computed), forgotten, cache.get_many("a", "b", "big")


def shopping(client, other):
    prices = Prices(client)
    cart = Cart(client, "ada", prices)
    client.mset({"stock:tea": 5, "stock:cup": 1})
    prices.change("tea", 400)
    prices.change("cup", 900)
    noticed = [prices.notice(5), prices.notice(5)]
    counts = [cart.add("tea", 2), cart.add("tea"), cart.add("cup"), cart.add("pot")]
    cart.remove("pot")
    before = cart.view()
    prices.change("cup", 1000)
    noticed.append(prices.notice(5))
    after = cart.view()
    authorized = []

    def authorize(user):
        if not authorized:
            other.decr("stock:tea")  # somebody else is faster
        authorized.append(user)

    order = cart.check_out(authorize)
    cart.add("cup")
    refused = outcome(cart.check_out, authorize)
    prices.close()
    return noticed, counts, before, after, order, authorized, refused, cart.view()


class Program(NamedTuple):
    """A scenario, and the round trips that it takes with plain and with lazy values."""

    scenario: Callable[[redis.Redis, redis.Redis], Any]
    plain: int
    batched: int
    decodes: bool = True


PROGRAMS = [
    Program(sessions, plain=37, batched=12),
    Program(limits, plain=23, batched=11),
    Program(ranking, plain=52, batched=14),
    Program(jobs, plain=47, batched=13),
    Program(events, plain=10, batched=5),
    Program(caching, plain=22, batched=13, decodes=False),
    Program(shopping, plain=43, batched=27),
]


# ---- the ways to run one -------------------------------------------------------------------


@contextlib.contextmanager
def inside(**options):
    with autobatch.Redis(**options) as client, autobatch.batch():
        yield client


@contextlib.contextmanager
def eager(**options):
    with redis.Redis(**options) as client, autobatch.batch():
        yield autobatch.wrap(client).eager


WAYS = {"plain": redis.Redis, "outside": autobatch.Redis, "inside": inside, "eager": eager}


class Ran(NamedTuple):
    """What running a program did."""

    result: Any
    keyspace: dict[str, Any]
    names: list[list[str]]


@pytest.fixture
def run(plain, proxy):
    """Run a scenario on an empty server, one way or another."""

    def run(scenario, way, *, decodes=True):
        plain.flushall()
        plain.script_flush()
        proxy.reset()
        options = {"port": proxy.port, "decode_responses": decodes}
        with WAYS[way](**options) as client:
            result = scenario(client, plain)
        return Ran(autobatch.resolve(result), keyspace(plain), proxy.names)

    return run


# ---- the same, with fewer round trips ------------------------------------------------------

each_program = pytest.mark.parametrize(
    "program", PROGRAMS, ids=lambda program: program.scenario.__name__
)


@each_program
@pytest.mark.parametrize("way", ["outside", "eager"])
def test_unbatched_it_is_the_same_on_the_wire_too(run, program, way):
    plain = run(program.scenario, "plain", decodes=program.decodes)
    assert run(program.scenario, way, decodes=program.decodes) == plain


@each_program
def test_batched_it_does_the_same_in_fewer_round_trips(run, program):
    plain = run(program.scenario, "plain", decodes=program.decodes)
    batched = run(program.scenario, "inside", decodes=program.decodes)
    assert batched.result == plain.result
    assert batched.keyspace == plain.keyspace != {}
    assert (len(plain.names), len(batched.names)) == (program.plain, program.batched)


def test_what_is_called_before_a_look_leaves_with_the_look(run):
    def log_in_and_out(client, _):
        store = SessionStore(client, new_id=lambda: "s1")
        store.create("ada")
        store.destroy("s1")
        return outcome(store.load, "s1")

    ran = run(log_in_and_out, "inside")
    assert ran.result == (SessionExpired, "s1")
    assert ran.names == [["HSET", "EXPIRE", "SADD", "HGET", "DEL"], ["SREM", "HGETALL"]]


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_keeps_a_stampede_away(run, way):
    def stampede(client, _):
        cache = Cache(client)
        start = threading.Barrier(4)
        computed = []

        def compute():
            time.sleep(0.05)  # the others have asked by then
            computed.append(True)
            return "big"

        def ask():
            start.wait()
            return cache.get_or_compute("key", compute)

        with ThreadPoolExecutor(4) as threads:
            # In a copy of this context each, or they would know of no scope.
            asked = [threads.submit(contextvars.copy_context().run, ask) for _ in range(4)]
        return [answer.result() for answer in asked], len(computed)

    ran = run(stampede, way, decodes=False)
    assert ran.result == (["big"] * 4, 1)
    assert ran.keyspace == {"cache:key": ("string", '"big"', True)}


# ---- what a lazy value cannot do -----------------------------------------------------------


def is_none(client, _):
    return Cache(client).get("missing", "default")


def json_of_str(client, _):
    cache = Cache(client)
    cache.set("a", 1)
    return cache.get("a")


def except_at_the_call(client, _):
    log = EventLog(client, "events", "mailers")
    log.ensure_group()
    log.ensure_group()
    return log.process("m1", print)


class Limit(NamedTuple):
    """A scenario that needs plain values, and how it fails with lazy ones."""

    scenario: Callable[[redis.Redis, redis.Redis], Any]
    result: Any
    error: type[Exception]
    message: str
    decodes: bool = True


LIMITS = [
    Limit(is_none, "default", TypeError, "must be str, bytes or bytearray", decodes=False),
    Limit(json_of_str, 1, TypeError, "expected string or bytes-like object"),
    Limit(except_at_the_call, 0, redis.ResponseError, "BUSYGROUP"),
]
each_limit = pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.scenario.__name__)


@each_limit
@pytest.mark.parametrize("way", ["plain", "outside", "eager"])
def test_what_needs_plain_values_works_outside_a_scope_and_on_the_eager_view(run, limit, way):
    assert run(limit.scenario, way, decodes=limit.decodes).result == limit.result


@each_limit
def test_what_a_lazy_value_cannot_do(run, limit):
    """As the README says: no lazy value `is None`, and C code looks at the real type.

    Nor can an `except` around a call catch what its value, or the scope's end, raises later.
    """
    with pytest.raises(limit.error, match=limit.message):
        run(limit.scenario, "inside", decodes=limit.decodes)
