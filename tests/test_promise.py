"""Promises and failures: settled once, told once, raised as often as asked."""

from __future__ import annotations

import threading
import traceback

import pytest
import redis

from autobatch.promise import PENDING, Failure, Promise
from pending import Keeper


class Named(Promise):
    """With a description, as a command has one."""

    __slots__ = ()

    def describe(self):
        return "GET user:1"


@pytest.fixture
def keeper():
    return Keeper()


def test_pending_says_its_name():
    """A debugger shows what the marker means."""
    assert repr(PENDING) == "PENDING"


def test_get_forces_once(keeper):
    """A settled promise does not ask its owner again."""
    promise = keeper.promise(7)
    assert promise.outcome is PENDING
    assert (promise.get(), promise.get(), keeper.forced) == (7, 7, 1)


def test_one_force_settles_all(keeper):
    """What waits with the same owner is settled together."""
    first, second = keeper.promise(1), keeper.promise(2)
    assert (first.get(), second.get(), keeper.forced) == (1, 2, 1)


@pytest.mark.parametrize("value", [None, False, 0, "", ValueError])
def test_falsy_values_and_classes_are_values(keeper, value):
    """Only a Failure is a failure."""
    assert keeper.promise(value).get() is value


def test_settled_returns_failures_instead_of_raising(keeper):
    """Whoever asks for the outcome decides itself what to do about an error."""
    error = ValueError("no")
    outcome = keeper.promise(error).settled()
    assert type(outcome) is Failure
    assert outcome.error is error
    assert not outcome.seen


@pytest.mark.parametrize(
    "error", [ValueError("no", 1), redis.ResponseError("no"), OSError(2, "no")], ids=repr
)
def test_get_raises_the_error(keeper, error):
    """With all that belongs to it; from then on it counts as seen."""
    error.__cause__ = KeyError("cause")
    promise = keeper.promise(error)
    with pytest.raises(type(error)) as raised:
        promise.get()
    assert raised.type is type(error)
    assert raised.value.args == error.args
    assert raised.value.__cause__ is error.__cause__
    assert promise.outcome.error is error
    assert promise.outcome.seen


def test_whoever_catches_an_error_has_it_alone(keeper):
    """What one part of a program notes on it, the next one does not find."""
    promise = keeper.promise(ValueError("no"))
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as raised:
            promise.get()
        assert raised.value.__notes__ == ["value"]
        raised.value.add_note("while rendering the page")


def test_the_note_is_added_once(keeper):
    """Looking often does not repeat where the error comes from."""
    failure = Failure(ValueError("no"), Named(keeper))
    assert failure.look() is failure.look() is failure.error
    assert failure.error.__notes__ == ["GET user:1"]


def test_summary_is_one_line_and_no_look(keeper):
    """A summary tells the error and where it comes from, and leaves the error unseen."""
    failure = Failure(ValueError("no\nmore\x1b[2J"), Named(keeper))
    assert failure.summary() == r"ValueError: no\nmore\x1b[2J (GET user:1)"
    assert not failure.seen


def test_raising_twice_does_not_grow_the_traceback(keeper):
    """Each raise starts from the traceback that the error was stored with."""
    promise = keeper.promise(ValueError("no"))
    depths = []
    for _ in range(3):
        try:
            promise.get()
        except ValueError as error:
            depths.append(len(traceback.extract_tb(error.__traceback__)))
    assert depths[0] == depths[1] == depths[2]


def test_the_stored_traceback_is_kept(keeper):
    """An error that a function of map() raised still shows where."""

    def deep():
        raise ValueError("no")

    try:
        deep()
    except ValueError as error:
        failure = Failure(error, keeper.promise(None))
    with pytest.raises(ValueError) as raised:
        failure.throw()
    assert "deep" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]


def test_callbacks_run_once_when_settled(keeper):
    """A callback waits for the outcome, and hears of it once."""
    promise = keeper.promise(3)
    heard = []
    promise.when_settled(heard.append)
    assert heard == []
    promise.get()
    promise.run_callbacks()
    assert heard == [promise]


def test_callbacks_run_in_the_order_they_came(keeper):
    """Functions given to map() run in program order."""
    promise = keeper.promise(3)
    heard = []
    for number in range(3):
        promise.when_settled(lambda _, number=number: heard.append(number))
    promise.get()
    assert heard == [0, 1, 2]


def test_a_late_callback_runs_at_once(keeper):
    """A settled promise keeps nobody waiting."""
    promise = keeper.promise(3)
    promise.get()
    heard = []
    promise.when_settled(heard.append)
    assert heard == [promise]


def test_callbacks_added_while_settling_run_once():
    """Threads that ask just when the promise is settled are each told, once."""
    for _ in range(50):
        keeper = Keeper()
        promise = keeper.promise(3)
        heard = []
        start = threading.Barrier(4)

        def ask(promise=promise, heard=heard, start=start):
            start.wait()
            for _ in range(20):
                promise.when_settled(heard.append)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait()
        keeper.flush()
        for thread in threads:
            thread.join()
        assert heard == [promise] * 60


def test_a_promise_without_a_name_describes_itself(keeper):
    """The base class has something to say in messages."""
    promise = keeper.promise(1)
    assert (promise.describe(), promise.origin().note()) == ("value", "value")
