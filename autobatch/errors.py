"""Every error that autobatch raises, and its wording."""

from __future__ import annotations

import functools
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError


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
        `AuthenticationError`; it must keep working, whichever of them was the reason.
        """
        cause_type = type(cause) if isinstance(cause, RedisError | NoLoop) else None
        error = _rebuild(cls, cause_type, (f"{message}: {cause}" if cause else message,))
        error.__cause__ = cause
        return error


class NotSent(_Undelivered):
    """The command certainly did not run: it was never sent whole, or it was discarded."""


class OutcomeUnknown(_Undelivered):
    """The command was sent and its reply was lost: it may have run, and is not sent again."""


class BlockingFlushWarning(RuntimeWarning):
    """A synchronous client waited for its server on a thread that runs an event loop."""


def _rebuild(base: Any, cause: type | None, args: tuple[Any, ...]) -> _Undelivered:
    kind = _with_cause(base, cause)
    # Not through the constructor of the cause, which may want something else.
    error: _Undelivered = kind.__new__(kind, *args)
    error.__dict__.update(RedisConnectionError(*args).__dict__)
    return error


@functools.cache  # bounded by the number of error classes
def _with_cause(base: Any, cause: type | None) -> Any:
    # A NotSent that was caused by an OutcomeUnknown is not one.
    if cause is None or issubclass(base, cause) or issubclass(cause, _Undelivered | CrossSlot):
        return base
    bases = (base, cause)
    return type(base.__name__, bases, {"__module__": base.__module__, "cause_type": cause})
