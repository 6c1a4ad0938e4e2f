"""Reads of streams: redis-py's own methods look at the reply at once, which would force it.

Its `xread` and `xreadgroup` record how old the messages are that they return, if its metrics are
switched on (`redis.client.stream.lag`). Here that is done when a Future is settled.
"""

from __future__ import annotations

import inspect
from types import CoroutineType, MethodType
from typing import Any

from autobatch.future import FUTURE_TYPES, promise_of
from autobatch.promise import Failure, Promise

try:
    from redis.observability import recorder
except ImportError:  # redis-py has none before 7.2
    recorder = None  # type: ignore[assignment]


def looks_at_reply(method: MethodType) -> bool:
    """Return whether a client's method is redis-py's, which would look at its command's reply."""
    return recorder is not None and method.__module__ == "redis.commands.core"


class _Called:
    """Stands in for a client, and for the reply that its method gets, to learn what it calls."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def execute_command(self, *args: Any, **options: Any) -> _Called:
        self.args, self.options = args, options
        return self

    def __bool__(self) -> bool:
        return False  # an empty reply has no messages to measure


def called_by(
    method: MethodType, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return with what arguments and options a client's method calls `execute_command`.

    Raises:
        redis.DataError: as the method does.
    """
    called = _Called()
    inspect.unwrap(method.__func__)(called, *args, **kwargs)  # which may be instrumented
    return called.args, called.options


def measured(reply: Any, group: Any) -> Any:
    """Return `reply`; if metrics are switched on, its lag is recorded once it is there.

    Args:
        reply: a value, a Future or a coroutine.
        group: the group of consumers that reads, or None.
    """
    if not recorder.is_enabled():
        return reply
    if type(reply) in FUTURE_TYPES:
        promise_of(reply).when_settled(lambda promise: _settled(promise, group))
        return reply
    if type(reply) is CoroutineType:
        return _awaited(reply, group)
    _record(reply, group)
    return reply


def _settled(promise: Promise, group: Any) -> None:
    if type(promise.outcome) is not Failure:
        _record(promise.outcome, group)


async def _awaited(reply: Any, group: Any) -> Any:
    value = await reply
    _record(value, group)
    return value


def _record(value: Any, group: Any) -> None:
    recorder.record_streaming_lag_from_response(response=value, consumer_group=group)
