"""Errors: what `except` clauses catch them, their wording, and pickling."""

from __future__ import annotations

import copy
import pickle

import pytest
import redis

from autobatch.errors import (
    AutobatchError,
    BlockingFlushWarning,
    NotReady,
    NotSent,
    OutcomeUnknown,
)


def all_subclasses(kind):
    return {kind}.union(*map(all_subclasses, kind.__subclasses__()))


# Whatever redis-py raises when a connection cannot be had or breaks.
CAUSES = sorted(
    {
        kind
        for base in (redis.ConnectionError, redis.TimeoutError)
        for kind in all_subclasses(base)
        if kind.__module__ == "redis.exceptions"
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", [NotSent, OutcomeUnknown])
def test_they_are_redis_py_s_errors_too(kind):
    """Existing `except redis.ConnectionError` clauses hold."""
    error = kind.because("GET a was not sent")
    assert type(error) is kind
    for caught in (AutobatchError, redis.ConnectionError, redis.RedisError):
        with pytest.raises(caught):
            raise error
    assert not isinstance(error, redis.TimeoutError)
    assert not isinstance(error, redis.ResponseError)


def test_not_sent_and_outcome_unknown_differ():
    """Code that wants to try again tells them apart."""
    assert not issubclass(NotSent, OutcomeUnknown)
    assert not issubclass(OutcomeUnknown, NotSent)


def test_not_ready_is_no_connection_error():
    """It is a mistake in the program, which no retry mends."""
    assert issubclass(NotReady, AutobatchError)
    assert not issubclass(NotReady, redis.RedisError)
    assert issubclass(BlockingFlushWarning, RuntimeWarning)


@pytest.mark.parametrize("kind", [NotSent, OutcomeUnknown])
@pytest.mark.parametrize("cause_kind", CAUSES)
def test_except_clauses_for_the_cause_hold(kind, cause_kind):
    """What redis-py would have raised here is caught where it was caught before."""
    cause = cause_kind("broken")
    error = kind.because("GET a was not sent", cause)
    assert isinstance(error, kind)
    assert isinstance(error, cause_kind)
    assert isinstance(error, redis.ConnectionError)
    assert error.__cause__ is cause
    assert str(error) == "GET a was not sent: broken"
    assert type(error).__name__ == kind.__name__
    assert type(error).__module__ == "autobatch.errors"


def test_a_timeout_is_caught_as_one():
    """The case that matters most, spelled out."""
    with pytest.raises(redis.TimeoutError):
        raise NotSent.because("GET a was not sent", redis.TimeoutError("Timeout"))


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), NotReady("no")])
def test_other_causes_are_told_but_are_no_bases(cause):
    """Nobody catches NotSent as a KeyboardInterrupt."""
    error = NotSent.because("GET a was not sent", cause)
    assert type(error) is NotSent
    assert error.__cause__ is cause


def test_a_cause_of_its_own_kind():
    """A NotSent that was caused by one stays a NotSent."""
    cause = NotSent.because("GET a was not sent", redis.TimeoutError("Timeout"))
    assert type(NotSent.because("GET b was not sent", cause)) is NotSent
    unknown = OutcomeUnknown.because("GET b was sent", cause)
    assert isinstance(unknown, OutcomeUnknown)
    assert not isinstance(unknown, NotSent)


def test_equal_causes_share_a_class():
    """The classes that are made are as many as redis-py has errors."""
    one, two = (NotSent.because("a", redis.TimeoutError("b")) for _ in range(2))
    assert type(one) is type(two)


@pytest.mark.parametrize("cause", [None, redis.TimeoutError("Timeout"), redis.ConnectionError("x")])
@pytest.mark.parametrize("kind", [NotSent, OutcomeUnknown])
@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_copies(kind, cause, duplicate):
    """A worker's error reaches its parent process as what it is."""
    error = kind.because("GET a was not sent", cause)
    again = duplicate(error)
    assert type(again) is type(error)
    assert again.args == error.args


@pytest.mark.parametrize("cause", [None, redis.TimeoutError("late"), redis.exceptions.LockError()])
def test_repr_is_that_of_a_connection_error(cause):
    """Whatever redis-py's version makes of it."""
    error = OutcomeUnknown.because("SET a was sent", cause)
    plain = redis.ConnectionError(*error.args)
    assert repr(error) == repr(plain).replace("ConnectionError", "OutcomeUnknown")


def test_pickling_keeps_the_notes():
    """As for any exception; the line that queued the command is one."""
    error = NotSent.because("GET a was not sent", redis.TimeoutError("Timeout"))
    error.add_note("GET a, queued at view.py:7")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["GET a, queued at view.py:7"]


class Refused(Exception):
    """One of a program's own, whose constructor and text want more than a message."""

    def __init__(self, code, *, reason):
        super().__init__(code)
        self.code = code
        self.reason = reason

    def __str__(self):
        return f"{self.code}: {self.reason}"


class Picky(Exception):
    """One that is made in a way of its own."""

    def __new__(cls, code, reason):
        return super().__new__(cls, code, reason)


FOREIGN = [
    Refused(403, reason="no such tenant"),
    ValueError("no token"),
    FileNotFoundError(2, "No such file", "token"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RuntimeError("not today"),
]


@pytest.mark.parametrize("cause", FOREIGN, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("kind", [NotSent, OutcomeUnknown])
def test_what_a_program_s_own_hooks_raise_is_caught_by_its_type(kind, cause):
    """Such as a credential provider, whose error redis-py would let through as it is."""
    error = kind.because("GET a was not sent", cause)
    assert isinstance(error, kind)
    assert isinstance(error, type(cause))
    assert error.__cause__ is cause
    assert str(error) == f"GET a was not sent: {cause}"
    assert vars(error).items() >= vars(cause).items()
    copied = pickle.loads(pickle.dumps(error))
    assert isinstance(copied, type(cause))
    assert str(copied) == str(error)


@pytest.mark.parametrize(
    "cause",
    [
        AttributeError("a"),  # or hasattr(value, name) would be false
        StopIteration(),  # or a generator that looks at the value would end
        ExceptionGroup("several", [ValueError()]),
        Picky(1, 2),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_what_cannot_be_both(cause):
    error = NotSent.because("GET a was not sent", cause)
    assert isinstance(error, NotSent)
    assert not isinstance(error, type(cause))
    assert error.__cause__ is cause
    assert str(error).startswith("GET a was not sent")
