"""OpenTelemetry: a span a flush, and metrics, by the conventions for databases.

One line of set-up: `autobatch.integrations.opentelemetry.install()`.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from autobatch import report
from autobatch.integrations.telemetry import (
    epoch_nanoseconds,
    error_type_of,
    failed_command,
    operation_of,
    server_of,
    status_of,
)
from autobatch.report import CommandRecord, FlushRecord, Subscription

_NAME = "autobatch"
# What the conventions want; without it the SDK's own buckets begin at 5 seconds.
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)
_SHOWN = 50  # commands in db.query.text


def install(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    lone_commands: bool = True,
    query_text: bool = False,
) -> Subscription:
    """Report every flush as a span, and its figures as metrics.

    The parent of a flush's span is the span that caused the flush; it is linked to the others in
    which its commands were called. Metrics: `db.client.operation.duration`, in seconds, and
    `autobatch.commands`, `autobatch.round_trips` and `autobatch.batch.size`, counts.

    Args:
        tracer_provider: makes the tracer; by default the global one.
        meter_provider: makes the meter; by default the global one.
        lone_commands: report commands of synchronous clients outside scopes, too. Leave that to
            opentelemetry-instrumentation-redis if you have it.
        query_text: tell the names and keys of the commands in `db.query.text`, never values.

    Returns:
        The subscription, to be cancelled.

    `error.type` is the prefix of the server's error, such as "WRONGTYPE", or the full name of the
    exception. `db.namespace` is the number of the database that the client was made with.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    return _Reporter(tracer, meter, lone_commands=lone_commands, query_text=query_text).subscription


class _Reporter:
    def __init__(
        self, tracer: trace.Tracer, meter: metrics.Meter, *, lone_commands: bool, query_text: bool
    ) -> None:
        self._tracer = tracer
        self._lone_commands = lone_commands
        self._query_text = query_text
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._commands = meter.create_counter(
            "autobatch.commands", "{command}", "Commands that were sent."
        )
        self._round_trips = meter.create_counter(
            "autobatch.round_trips", "{round_trip}", "How often the network was waited for."
        )
        self._size = meter.create_histogram(
            "autobatch.batch.size",
            "{command}",
            "Commands of a batch.",
            explicit_bucket_boundaries_advisory=_SIZES,
        )
        self.subscription = report.subscribe(self._flushed, on_call=otel_context.get_current)

    def _flushed(self, flush: FlushRecord) -> None:
        if flush.through_redis_py and not self._lone_commands:
            return
        attributes = _attributes_of(flush)
        details = _details_of(flush)
        if self._query_text:
            details["db.query.text"] = "; ".join(map(str, flush.commands[:_SHOWN]))
        parent = flush.contexts.get(self.subscription)
        span = self._tracer.start_span(
            _span_name(attributes),
            parent,
            SpanKind.CLIENT,
            {**attributes, **details},
            self._links(flush.commands, parent),
            epoch_nanoseconds(flush.started),
        )
        failed = failed_command(flush)
        if failed is not None:
            span.set_status(Status(StatusCode.ERROR, failed.error))
        span.end(epoch_nanoseconds(flush.finished))
        self._duration.record(flush.duration, attributes, parent)
        self._size.record(len(flush.commands), attributes, parent)
        why = {"autobatch.reason": str(flush.reason)}
        self._commands.add(len(flush.commands), why, parent)
        self._round_trips.add(flush.round_trips, why, parent)

    def _links(self, commands: list[CommandRecord], parent: Any) -> list[Link]:
        """Return links to the spans in which commands were called, but for the parent."""
        spans: list[Span] = [
            trace.get_current_span(command.contexts.get(self.subscription)) for command in commands
        ]
        found = [span.get_span_context() for span in spans]
        contexts = {(context.trace_id, context.span_id): context for context in found}
        around = trace.get_current_span(parent).get_span_context()
        contexts.pop((around.trace_id, around.span_id), None)
        return [Link(context) for context in contexts.values() if context.is_valid]


def _attributes_of(flush: FlushRecord) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "db.system.name": "redis",
        "db.operation.name": operation_of(flush),
    }
    server = server_of(flush)
    if server is not None:
        attributes["server.address"] = server.address
        if server.port is not None:
            attributes["server.port"] = server.port
        if server.database is not None:
            attributes["db.namespace"] = server.database
    failed = failed_command(flush)
    if failed is not None:
        attributes["error.type"] = error_type_of(failed)
        status = status_of(failed)
        if status is not None:
            attributes["db.response.status_code"] = status
    return attributes


def _details_of(flush: FlushRecord) -> dict[str, str | int]:
    """Return what of a flush is told of in its span alone: it would make too many series."""
    details: dict[str, str | int] = {
        "autobatch.reason": str(flush.reason),
        "autobatch.round_trips": flush.round_trips,
        "autobatch.scope": flush.scope.name,
    }
    if len(flush.commands) > 1:
        details["db.operation.batch.size"] = len(flush.commands)
    if flush.place is not None:
        details["code.file.path"] = flush.place.file
        details["code.line.number"] = flush.place.line
        details["code.function.name"] = flush.place.function
    if flush.retries:
        details["autobatch.retries"] = flush.retries
    return details


def _span_name(attributes: dict[str, str | int]) -> str:
    """Return the operation and its target: for Redis that is the server, not the namespace."""
    name = str(attributes["db.operation.name"])
    if "server.port" in attributes:
        name += f" {attributes['server.address']}:{attributes['server.port']}"
    return name
