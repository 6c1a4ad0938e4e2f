"""Sentry: a breadcrumb a flush. One line of set-up: `autobatch.integrations.sentry.install()`."""

from __future__ import annotations

import contextvars

import sentry_sdk

from autobatch import report
from autobatch.report import FlushRecord, Subscription

_SHOWN = 20


def install() -> Subscription:
    """Leave a breadcrumb for every flush, with its commands' names and keys, and what forced it.

    Commands of synchronous clients outside scopes are left to Sentry's own integration of Redis,
    which leaves breadcrumbs of them, where it is active.

    Returns:
        The subscription, to be cancelled.
    """

    def flushed(flush: FlushRecord) -> None:
        if flush.through_redis_py and sentry_sdk.get_client().get_integration("redis") is not None:
            return
        # It may end in the event loop, but belongs to the request that has caused it.
        context = flush.contexts.get(subscription) or contextvars.copy_context()
        context.copy().run(_leave, flush)

    subscription = report.subscribe(flushed, on_call=contextvars.copy_context)
    return subscription


def _leave(flush: FlushRecord) -> None:
    sentry_sdk.add_breadcrumb(
        type="query",
        category="redis",
        message=", ".join(map(str, flush.commands[:_SHOWN])),
        level="error" if flush.errors else "info",
        data={
            "commands": len(flush.commands),
            "round_trips": flush.round_trips,
            "seconds": flush.duration,
            "reason": str(flush.reason),
            "place": str(flush.place) if flush.place is not None else None,
        },
    )
