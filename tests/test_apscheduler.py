"""APScheduler: with the decorator, a job is a round trip, and fails as APScheduler's own do."""

from __future__ import annotations

import asyncio
import contextlib
import queue

import pytest
import redis

import autobatch
import autobatch.asyncio

pytest.importorskip("apscheduler")

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

from common import PATIENCE
from looping import eventually, in_loop

VISIT = ["SADD", "EXPIRE", "INCRBY"]


class Clients:
    """What the jobs call, which are functions of this module: each test sets it."""

    sync = None
    asynchronous = None


def visit_by(client, name):
    client.sadd("visitors", name)
    client.expire("visitors", 60)
    return client.incr("visits")


@autobatch.batch
def visit(name):
    return autobatch.resolve([visit_by(Clients.sync, name)])


@autobatch.batch
async def visit_async(name):
    return [await visit_by(Clients.asynchronous, name)]


def visit_plain(name):
    return [visit_by(Clients.sync, name)]


@autobatch.batch
def unseen():
    Clients.sync.set("text", "a string")
    Clients.sync.lpush("text", 1)


@autobatch.batch
async def unseen_async():
    Clients.asynchronous.set("text", "a string")
    Clients.asynchronous.lpush("text", 1)


@pytest.fixture(autouse=True)
def clients(proxy, monkeypatch):
    """A synchronous client."""
    with autobatch.Redis(port=proxy.port, decode_responses=True) as client:
        monkeypatch.setattr(Clients, "sync", client)
        yield


@contextlib.contextmanager
def running(scheduler):
    """Run a scheduler; give what has it do a job once, and the queue of its events."""
    events = queue.SimpleQueue()
    scheduler.add_listener(events.put, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.start()
    try:
        yield scheduler.add_job, events
    finally:
        scheduler.shutdown()


@pytest.mark.parametrize("job", [visit, f"{__name__}:visit"], ids=["function", "reference"])
def test_a_job_in_a_thread_is_a_round_trip(job, proxy, plain):
    """Given itself, or named as job stores do it."""
    with running(BackgroundScheduler()) as (add_job, events):
        add_job(job, args=["ada"])
        assert events.get(timeout=PATIENCE).retval == [1]
    assert proxy.names == [VISIT]
    assert plain.smembers("visitors") == {"ada"}


def test_jobs_at_the_same_time_are_a_round_trip_each(proxy):
    """Threads of a pool have scopes of their own."""
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(4)})
    with running(scheduler) as (add_job, events):
        for number in range(4):
            add_job(visit, args=[number])
        values = sorted(events.get(timeout=PATIENCE).retval for _ in range(4))
    assert values == [[1], [2], [3], [4]]
    assert sorted(proxy.command_names) == sorted(VISIT * 4)
    assert all(len(names) == 3 for names in proxy.names)


def test_without_it_a_job_runs_as_ever(proxy):
    """One round trip a command."""
    with running(BackgroundScheduler()) as (add_job, events):
        add_job(visit_plain, args=["ada"])
        assert events.get(timeout=PATIENCE).retval == [1]
    assert proxy.names == [["SADD"], ["EXPIRE"], ["INCRBY"]]


def test_an_unseen_error_is_that_of_the_job(caplog):
    """APScheduler tells its listeners, and logs it."""
    with running(BackgroundScheduler()) as (add_job, events):
        add_job(unseen)
        assert isinstance(events.get(timeout=PATIENCE).exception, redis.ResponseError)
    assert "unseen" in caplog.text


@in_loop
async def test_a_job_in_an_event_loop_is_a_round_trip(proxy, plain, monkeypatch):
    """A coroutine, with an asyncio client; its errors are its own."""
    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:
        monkeypatch.setattr(Clients, "asynchronous", client)
        with running(AsyncIOScheduler()) as (add_job, events):
            add_job(visit_async, args=["ada"])
            await eventually(lambda: not events.empty())
            assert events.get().retval == [1]
            assert proxy.names == [VISIT]
            add_job(unseen_async)
            await eventually(lambda: not events.empty())
            assert isinstance(events.get().exception, redis.ResponseError)
            await asyncio.sleep(0)
    assert plain.smembers("visitors") == {"ada"}
