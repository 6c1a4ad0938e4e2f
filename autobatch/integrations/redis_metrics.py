"""redis-py's own metrics (`redis.observability`): flushes take part in them.

One line of set-up: `autobatch.integrations.redis_metrics.install()`.
"""

from __future__ import annotations

from redis.observability import recorder

from autobatch import report
from autobatch.integrations.telemetry import failed_command, operation_of, server_of
from autobatch.report import FlushRecord, Subscription


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
    error = None
    if failed is not None:
        kind = failed.error_type
        # Not through its constructor, which may want something: redis-py looks at the class alone.
        error = Exception() if kind is None else kind.__new__(kind)
    recorder.record_operation_duration(
        operation_of(flush),
        flush.duration,
        None if server is None else server.address,
        None if server is None else server.port,
        None if server is None else server.database,
        error,  # type: ignore[arg-type]  # all of them are Exceptions
    )
