"""Clients that find their server through Sentinel, also while another one takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch import batch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Proxy
from common import PATIENCE, eventually
from looping import eventually as aeventually
from looping import in_loop
from sentinels import SERVICE, Watched

pytestmark = pytest.mark.server

WORKERS = 3
NOBODY = [("127.0.0.1", 1)]
ENOUGH = 20  # pushes that each worker makes before and after what happens


@pytest.fixture(scope="module")
def shared() -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


@pytest.fixture
def watched(shared):
    """Servers that a test may exchange, but not kill; the primary is empty."""
    with shared.plain() as plain:
        plain.flushall()
    return shared


@pytest.fixture
def mortal() -> Iterator[Watched]:
    """Servers that a test may kill."""
    with Watched() as watched:
        yield watched


def sentinel_of(watched):
    return redis.sentinel.Sentinel(watched.sentinels)


@contextlib.asynccontextmanager
async def asyncio_sentinel_of(watched):
    """redis-py's, whose connections to the sentinels nobody else closes."""
    sentinel = redis.asyncio.sentinel.Sentinel(watched.sentinels)
    try:
        yield sentinel
    finally:
        for each in sentinel.sentinels:
            await each.aclose()


def wrapped(make, **options):
    return autobatch.wrap(make(SERVICE, **options))


def made_by_sentinel(make, **options):
    kinds = {
        redis.sentinel.Sentinel: autobatch.Redis,
        redis.asyncio.sentinel.Sentinel: autobatch.asyncio.Redis,
    }
    return make(SERVICE, redis_class=kinds[type(make.__self__)], **options)


ways = pytest.mark.parametrize("way", [wrapped, made_by_sentinel])


# ---- finding a server ----------------------------------------------------------------------------


@ways
def test_a_scope_on_the_primary_and_a_replica(watched, way):
    """Each server gets one batch, both at the same time."""
    sentinel = sentinel_of(watched)
    replica_for = getattr(sentinel, "replica_for", sentinel.slave_for)  # its name since 8.0
    with way(sentinel.master_for) as primary, way(replica_for) as replica:
        with batch() as scope:
            numbers = [primary.incr("n") for _ in range(50)]
            roles = [client.role() for client in (primary, replica)]
        assert numbers == [*range(1, 51)]
        assert [role[0] for role in roles] == [b"master", b"slave"]
        assert (scope.stats.round_trips, scope.stats.exchanges) == (1, 2)
        with pytest.raises(redis.ReadOnlyError), batch():
            replica.set("n", 1)


@ways
@in_loop
async def test_a_scope_on_the_primary_and_a_replica_asyncio(watched, way):
    """The same."""
    async with contextlib.AsyncExitStack() as stack:
        sentinel = await stack.enter_async_context(asyncio_sentinel_of(watched))
        replica_for = getattr(sentinel, "replica_for", sentinel.slave_for)
        primary = await stack.enter_async_context(way(sentinel.master_for))
        replica = await stack.enter_async_context(way(replica_for))
        async with batch() as scope:
            numbers = [primary.incr("n") for _ in range(50)]
            roles = [client.role() for client in (primary, replica)]
        assert await asyncio.gather(*numbers) == [*range(1, 51)]
        assert [(await role)[0] for role in roles] == [b"master", b"slave"]
        assert (scope.stats.round_trips, scope.stats.exchanges) == (1, 2)
        with pytest.raises(redis.ReadOnlyError):
            await replica.set("n", 1)


@ways
def test_one_round_trip_on_the_wire(watched, way):
    """Of a client whose Sentinel translates addresses, as behind a NAT."""
    with Proxy(watched.primary) as proxy:

        class Translating(redis.sentinel.Sentinel):
            def discover_master(self, service_name):
                super().discover_master(service_name)
                return "127.0.0.1", proxy.port

        sentinel = Translating(watched.sentinels)
        made = (
            way(sentinel.master_for)
            if way is wrapped
            else sentinel.master_for(SERVICE, redis_class=autobatch.Redis)
        )
        with made as client:
            with batch():
                client.set("a", 1)
                client.get("a")
            with batch():
                client.get("a")
        assert proxy.names == [["SET", "GET"], ["GET"]]


def test_no_sentinel_answers():
    """Nothing was sent, and redis-py's own error is still what it was."""
    sentinel = redis.sentinel.Sentinel(NOBODY, sentinel_kwargs={"retry": Retry(NoBackoff(), 0)})
    client = wrapped(sentinel.master_for)
    with batch():
        future = client.set("a", 1)
        error = future.exception()
    assert isinstance(error, NotSent)
    assert isinstance(error, redis.sentinel.MasterNotFoundError)


@in_loop
async def test_no_sentinel_answers_asyncio():
    """The same."""
    sentinel = redis.asyncio.sentinel.Sentinel(
        NOBODY, sentinel_kwargs={"retry": AsyncRetry(NoBackoff(), 0)}
    )
    client = wrapped(sentinel.master_for)
    with pytest.raises(NotSent) as raised:
        await client.set("a", 1)
    assert isinstance(raised.value, redis.asyncio.sentinel.MasterNotFoundError)


# ---- another primary -----------------------------------------------------------------------------


def succeeded(future):
    """Whether a write ran; if not, it was refused by what is no primary any more."""
    error = future.exception()
    assert error is None or isinstance(error, (redis.ReadOnlyError, redis.ConnectionError))
    assert not isinstance(error, OutcomeUnknown)
    return error is None


def test_a_primary_that_became_a_replica(watched):
    """A connection that is told READONLY is given up: the next batch finds the new primary."""
    with wrapped(sentinel_of(watched).master_for) as client:
        client.set("n", 0)
        watched.hand_over_by_hand()
        done = []
        for _ in range(2):
            with batch():
                futures = [client.incr("n") for _ in range(3)]
                done.append([succeeded(future) for future in futures])
        assert done[-1] == [True] * 3
        assert int(client.get("n")) == sum(map(sum, done))
        assert client.role()[0] == b"master"


@in_loop
async def test_a_primary_that_became_a_replica_asyncio(watched):
    """The same."""
    async with asyncio_sentinel_of(watched) as sentinel, wrapped(sentinel.master_for) as client:
        await client.set("n", 0)
        await asyncio.to_thread(watched.hand_over_by_hand)
        done = []
        for _ in range(2):
            futures = [client.incr("n") for _ in range(3)]
            await asyncio.gather(*futures, return_exceptions=True)
            done.append([succeeded(future) for future in futures])
        assert done[-1] == [True] * 3
        assert int(await client.get("n")) == sum(map(sum, done))
        assert (await client.role())[0] == b"master"


@in_loop
async def test_a_lone_command_at_a_former_primary_asyncio(watched):
    """It was refused, so what has become of it is known; the next one finds the new primary."""
    async with asyncio_sentinel_of(watched) as sentinel, wrapped(sentinel.master_for) as client:
        await client.rpush("a", "x")
        assert await client.blmove("a", "b", 1) == b"x"
        await asyncio.to_thread(watched.hand_over_by_hand)
        [error] = await asyncio.gather(client.blmove("b", "c", 1), return_exceptions=True)
        assert isinstance(error, redis.ConnectionError)
        assert not isinstance(error, OutcomeUnknown)
        assert await client.blmove("b", "c", 1) == b"x"


class Ledger:
    """What workers were told of their pushes, each of a token that nobody else has.

    Attributes:
        acknowledged, uncertain, refused: the tokens, by what became of them.
    """

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.uncertain: list[str] = []
        self.refused: list[str] = []

    def enter(self, token, error):
        """Note what became of a push. No error is expected but those of a lost connection."""
        if error is None:
            self.acknowledged.append(token)
        elif isinstance(error, OutcomeUnknown):
            self.uncertain.append(token)
        else:
            assert isinstance(error, (NotSent, redis.ReadOnlyError)), repr(error)
            self.refused.append(token)

    def compare(self, watched, *, certain):
        """Compare with what the primary has; of the acknowledged it must have those."""
        with watched.plain() as plain:
            found = plain.lrange("tokens", 0, -1)
            total = int(plain.get("n"))
        assert len(found) == len(set(found)), "something was applied twice"
        assert not set(found) & set(self.refused), "what was not sent was applied"
        assert set(certain) <= set(found) <= {*self.acknowledged, *self.uncertain}
        assert total <= len(self.acknowledged) + len(self.uncertain)


def work(client, ledger, name, stop):
    for i in itertools.count():
        token = f"{name}-{i}"
        with batch():
            futures = [client.incr("n"), client.rpush("tokens", token)]
            errors = [future.exception() for future in futures]
        ledger.enter(token, errors[1])
        if stop.wait(0.005):  # or it would only measure how fast it is refused
            return


async def work_asyncio(client, ledger, name, stop):
    for i in itertools.count():
        token = f"{name}-{i}"
        futures = client.incr("n"), client.rpush("tokens", token)
        errors = await asyncio.gather(*futures, return_exceptions=True)
        ledger.enter(token, errors[1] if isinstance(errors[1], Exception) else None)
        if stop.is_set():
            return
        await asyncio.sleep(0.005)


def killed(watched):
    before = watched.primary
    watched.kill_primary()
    watched.settle(before)


def handed_over(watched):
    watched.hand_over()


events = pytest.mark.parametrize(
    ("happens", "servers"), [(killed, "mortal"), (handed_over, "watched")]
)


@events
def test_under_load(happens, servers, request):
    """Every Future settles, nothing runs twice, and the same clients go on at the new primary."""
    watched = request.getfixturevalue(servers)
    ledger, stop = Ledger(), threading.Event()
    with wrapped(sentinel_of(watched).master_for, decode_responses=True) as client:
        threads = [
            threading.Thread(target=work, args=(client, ledger, name, stop), daemon=True)
            for name in range(WORKERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for happening in (lambda: None, lambda: happens(watched)):
                happening()
                before = len(ledger.acknowledged)
                eventually(lambda: len(ledger.acknowledged) > before + WORKERS * ENOUGH)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
    # A killed primary may take with it what it has acknowledged, another one must not.
    certain = ledger.acknowledged[before:] if happens is killed else ledger.acknowledged
    ledger.compare(watched, certain=certain)


@events
def test_under_load_asyncio(happens, servers, request):
    """The same, on one connection that the tasks share."""
    watched = request.getfixturevalue(servers)
    ledger, stop = Ledger(), asyncio.Event()

    @in_loop
    async def test():
        async with (
            asyncio_sentinel_of(watched) as sentinel,
            wrapped(sentinel.master_for, decode_responses=True) as client,
        ):
            tasks = [
                asyncio.create_task(work_asyncio(client, ledger, name, stop))
                for name in range(WORKERS)
            ]
            for happening in (lambda _: None, happens):
                await asyncio.to_thread(happening, watched)
                before = len(ledger.acknowledged)
                await aeventually(lambda: len(ledger.acknowledged) > before + WORKERS * ENOUGH)
            stop.set()
            await asyncio.gather(*tasks)
        certain = ledger.acknowledged[before:] if happens is killed else ledger.acknowledged
        ledger.compare(watched, certain=certain)

    test()
