"""Prometheus, through prometheus-client.

One line of set-up: `autobatch.integrations.prometheus.install()`.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from autobatch import report
from autobatch.report import FlushRecord, Subscription

_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


def install(registry: CollectorRegistry = REGISTRY) -> Subscription:
    """Count what flushes do, in metrics whose names begin with `autobatch_`.

    Args:
        registry: where to register the metrics.

    Returns:
        The subscription, to be cancelled. The metrics stay registered.

    Raises:
        ValueError: the registry has them already.
    """
    reason = ("reason",)
    commands = Counter("autobatch_commands", "Commands that were sent.", reason, registry=registry)
    flushes = Counter("autobatch_flushes", "Batches that were sent.", reason, registry=registry)
    round_trips = Counter(
        "autobatch_round_trips", "How often the network was waited for.", reason, registry=registry
    )
    retries = Counter("autobatch_retries", "Commands that were sent again.", registry=registry)
    errors = Counter("autobatch_errors", "Commands that failed.", ("error",), registry=registry)
    sizes = Histogram(
        "autobatch_batch_size", "Commands of a batch.", buckets=_SIZES, registry=registry
    )
    seconds = Histogram(
        "autobatch_flush_seconds",
        "Seconds from the first write to the last reply.",
        buckets=_SECONDS,
        registry=registry,
    )

    def flushed(flush: FlushRecord) -> None:
        why = str(flush.reason)
        commands.labels(why).inc(len(flush.commands))
        flushes.labels(why).inc()
        round_trips.labels(why).inc(flush.round_trips)
        retries.inc(flush.retries)
        for failed in flush.errors:
            kind = failed.error_type
            errors.labels("unknown" if kind is None else kind.__name__).inc()
        sizes.observe(len(flush.commands))
        seconds.observe(flush.duration)

    return report.subscribe(flushed)
