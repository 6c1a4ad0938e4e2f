"""redis-py's own metrics (`redis.observability`): flushes take part in them.

One line of set-up: `autobatch.integrations.redis_metrics.install()`.
"""

from __future__ import annotations

import contextlib

from redis.observability import recorder

from autobatch import report
from autobatch.integrations.telemetry import failed_command, operation_of, server_of, status_of
from autobatch.report import CommandRecord, FlushRecord, Subscription


def install() -> Subscription:
    """Record every flush as redis-py records its pipelines.

    Commands that run by themselves are recorded as redis-py records them. Its metrics have to be
    set up as its documentation says; without that nothing is recorded.

    Returns:
        The subscription, to be cancelled.
    """
    return report.subscribe(_flushed)


def _flushed(flush: FlushRecord) -> None:
    server = server_of(flush)
    failed = failed_command(flush)
    error = None if failed is None else _like(failed)
    address = None if server is None else server.address
    port = None if server is None else server.port
    recorder.record_operation_duration(
        operation_of(flush),
        flush.duration,
        address,
        port,
        None if server is None else server.database,
        error,  # type: ignore[arg-type]  # all of them are Exceptions
    )
    if error is not None:
        recorder.record_error_count(
            address,
            port,
            address,
            port,
            error,  # type: ignore[arg-type]
            retry_attempts=0,
            is_internal=False,
        )


def _like(failed: CommandRecord) -> BaseException:
    """Return an error such as that of a command, as far as redis-py looks at it."""
    kind = failed.error_type
    if kind is None:
        return Exception()
    error = kind.__new__(kind)  # its constructor may want something
    for base in kind.__mro__:
        if base.__module__ == "redis.exceptions":
            with contextlib.suppress(TypeError):
                base.__init__(error)  # type: ignore[misc]  # of that very class
                break
    error.status_code = status_of(failed)  # type: ignore[attr-defined]
    return error
