"""Every error that autobatch raises, and its wording."""

from __future__ import annotations

import functools
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException


class AutobatchError(Exception):
    """The base of autobatch's own errors."""


class NotReady(AutobatchError):
    """A value was needed where it cannot be had yet, such as inside an open atomic block."""


class NoLoop(AutobatchError):
    """An asyncio client was called where no event loop will ever send its commands."""


class PendingAttribute(NotReady, AttributeError):
    """An attribute of a value that is not there yet. `hasattr` says no, instead of raising."""


class CrossSlot(AutobatchError, RedisClusterException):
    """The keys of a command, or of an atomic block, belong to different slots of a cluster."""


class _Undelivered(AutobatchError, RedisConnectionError):
    """A command without a reply; its class is also that of its cause: see `_with_cause`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class may have been made by `_with_cause`, so pickle cannot find it by its name.
        cause = type(self).__dict__.get("cause_type")
        base = type(self).__bases__[0] if cause else type(self)
        return _rebuild, (base, cause, self.args), self.__dict__ or None

    @classmethod
    def because(cls, message: str, cause: BaseException | None = None) -> _Undelivered:
        """Return an error of this class that `except` clauses for the type of `cause` catch too.

        Code written for redis-py tells `TimeoutError` from `ConnectionError` and from
        `AuthenticationError`, and knows what its own credential provider raises; it must keep
        working, whichever of them was the reason.
        """
        cause_type = type(cause) if isinstance(cause, Exception) else None
        error = _rebuild(cls, cause_type, (f"{message}: {cause}" if cause else message,))
        if cause is not None:
            attributes = {k: v for k, v in vars(cause).items() if k != "__notes__"}
            error.__dict__.update({**attributes, **error.__dict__})
        error.__cause__ = cause
        return error

    def __str__(self) -> str:
        return Exception.__str__(self)  # that of the cause's class may want something else


class NotSent(_Undelivered):
    """The command certainly did not run: it was never sent whole, or it was discarded."""


class OutcomeUnknown(_Undelivered):
    """The command was sent and its reply was lost: it may have run, and is not sent again."""


class BlockingFlushWarning(RuntimeWarning):
    """A synchronous client waited for its server on a thread that runs an event loop."""


def _rebuild(base: Any, cause: type | None, args: tuple[Any, ...]) -> _Undelivered:
    kind = _with_cause(base, cause)
    error: _Undelivered
    try:
        # Not through the constructor of the cause, which may want something else.
        error = kind.__new__(kind, *args)
    except Exception:  # so does its __new__, as that of an exception group
        error = base.__new__(base, *args)
    error.args = args  # which OSError leaves to its constructor
    error.__dict__.update(RedisConnectionError(*args).__dict__)
    return error


@functools.cache  # bounded by the number of error classes
def _with_cause(base: Any, cause: type | None) -> Any:
    if cause is None or issubclass(base, cause) or issubclass(cause, _NEVER_BOTH):
        return base
    if issubclass(cause, AutobatchError) and cause is not NoLoop:
        return base  # a NotSent that was caused by an OutcomeUnknown is not one
    members = {"__module__": base.__module__, "cause_type": cause}
    try:
        return type(base.__name__, (base, cause), members)
    except TypeError:  # a class that cannot be combined with others
        return base


# What Python takes for something else where a value is looked at.
_NEVER_BOTH = (AttributeError, StopIteration, StopAsyncIteration)
