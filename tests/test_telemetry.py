"""Telemetry: what OpenTelemetry, Prometheus, Sentry and redis-py's own metrics hear of flushes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import time

import pytest
import redis

import autobatch
from autobatch import report
from common import meanwhile

for needed in ("opentelemetry.sdk", "prometheus_client", "sentry_sdk"):
    pytest.importorskip(needed)

import prometheus_client  # noqa: E402
import sentry_sdk  # noqa: E402
from opentelemetry import metrics  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from autobatch.integrations import opentelemetry, prometheus, sentry  # noqa: E402


class Collected:
    """What OpenTelemetry's SDK was given."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracers.get_tracer("test")
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])

    @property
    def spans(self):
        """Ours, in the order in which they ended."""
        finished = self._exporter.get_finished_spans()
        return [span for span in finished if span.instrumentation_scope.name == "autobatch"]

    @property
    def metrics(self):
        """By name: attributes and value of each point; the sum of a histogram."""
        return {
            name: [
                (dict(point.attributes), getattr(point, "value", None) or point.sum)
                for point in points
            ]
            for name, points in self._points().items()
        }

    def bounds(self, name):
        """Where the buckets of a histogram end."""
        return self._points()[name][0].explicit_bounds

    def _points(self):
        return {
            metric.name: metric.data.data_points
            for resource in self._reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def otel():
    """OpenTelemetry's own SDK, with autobatch installed."""
    collected = Collected()
    with opentelemetry.install(tracer_provider=collected.tracers, meter_provider=collected.meters):
        yield collected
    assert not report.listening


# ---- OpenTelemetry -----------------------------------------------------------------------


def test_a_batch_is_a_span(otel, client, proxy):
    before = time.time_ns()
    with autobatch.batch():
        client.set("a", 1)
        client.get("a")
    (span,) = otel.spans
    assert span.name == f"PIPELINE localhost:{proxy.port}"
    assert span.kind is SpanKind.CLIENT
    assert before <= span.start_time < span.end_time <= time.time_ns()
    attributes = dict(span.attributes)
    assert attributes.pop("autobatch.scope").startswith("tests/test_telemetry.py:")
    assert attributes == {
        "db.system.name": "redis",
        "db.operation.name": "PIPELINE",
        "db.operation.batch.size": 2,
        "db.namespace": "0",
        "server.address": "localhost",
        "server.port": proxy.port,
        "autobatch.reason": "end",
        "autobatch.round_trips": 1,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_operations_are_named_by_the_conventions(otel, client):
    with autobatch.batch():
        client.get("a")
    with autobatch.batch():
        client.get("a")
        client.get("b")
    with autobatch.batch(), autobatch.batch(atomic=True):
        client.incr("a")
        client.set("b", 1)
    with autobatch.batch(), autobatch.batch(atomic=True):
        client.incr("a")
    client.get("a")
    names = [span.attributes["db.operation.name"] for span in otel.spans]
    assert names == ["GET", "PIPELINE GET", "MULTI", "MULTI INCRBY", "GET"]
    sizes = [span.attributes.get("db.operation.batch.size") for span in otel.spans]
    assert sizes == [None, 2, 2, None, None]


def test_an_error_is_told_by_its_prefix(otel, client):
    with autobatch.batch():
        client.set("a", "text")
        client.lpush("a", "a secret").exception()
    (span,) = otel.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["db.response.status_code"] == "WRONGTYPE"
    assert span.attributes["error.type"] == "WRONGTYPE"
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    ("command", "status", "kind"),
    [
        (("INCR", "text"), "ERR", "ERR"),  # redis-py takes the prefix away
        (("SET", "text", "value", "NX", "XX"), "ERR", "ERR"),
        (
            ("EVAL", "return redis.error_reply('X' .. 'X is no prefix')", "0"),
            None,
            "redis.exceptions.ResponseError",
        ),
        (("EVALSHA", "0" * 40, "0"), "NOSCRIPT", "NOSCRIPT"),
        (("XGROUP", "CREATE", "stream", "group", "0"), "BUSYGROUP", "BUSYGROUP"),
    ],
)
def test_prefixes_are_the_servers(otel, client, plain, command, status, kind):
    """A text that begins with a word in capitals has no prefix of that name."""
    plain.set("text", "a")
    plain.xgroup_create("stream", "group", mkstream=True)
    with autobatch.batch(), contextlib.suppress(redis.ResponseError):  # NOSCRIPT comes at once
        assert client.execute_command(*command).exception()
    span = otel.spans[-1]
    assert span.attributes.get("db.response.status_code") == status
    assert span.attributes["error.type"] == kind


def test_a_lost_connection_is_told_by_its_class(otel, client, proxy):
    with autobatch.batch():
        value = client.incr("a")
        proxy.arm(autobatch.testing.Cut(reply=0))
        assert value.exception()
    assert otel.spans[-1].attributes["error.type"] == "autobatch.errors.OutcomeUnknown"
    assert "db.response.status_code" not in otel.spans[-1].attributes


def test_keys_are_told_where_they_are_asked_for(client):
    collected = Collected()
    with (
        opentelemetry.install(tracer_provider=collected.tracers, query_text=True),
        autobatch.batch(),
    ):
        client.set("user:1", "a secret")
        client.get("user:1")
    (span,) = collected.spans
    assert span.attributes["db.query.text"] == "SET user:1; GET user:1"


def test_the_line_that_forced_it_is_told(otel, client):
    with autobatch.batch():
        assert client.get("a") == None  # noqa: E711  # forces
    (span,) = otel.spans
    assert span.attributes["autobatch.reason"] == "forced"
    assert span.attributes["code.file.path"] == __file__
    assert span.attributes["code.function.name"] == "test_the_line_that_forced_it_is_told"


def test_a_span_is_linked_to_where_its_commands_were_called(otel, client):
    with autobatch.batch(), otel.tracer.start_as_current_span("request") as request:
        with otel.tracer.start_as_current_span("first") as first:
            client.get("a")
        with otel.tracer.start_as_current_span("second") as second:
            client.get("b")
            value = client.get("c")
        client.get("d")
        assert not value
    (span,) = otel.spans
    assert span.parent.span_id == request.get_span_context().span_id
    assert [link.context.span_id for link in span.links] == [
        first.get_span_context().span_id,
        second.get_span_context().span_id,
    ]


def test_with_asyncio_the_parent_is_the_span_that_awaited(otel, server):
    """The reply is read by the loop, for everybody."""

    async def request(client, name):
        with otel.tracer.start_as_current_span(name) as span:
            async with autobatch.batch():
                await client.get(name)
            return span.get_span_context().span_id

    async def main():
        async with autobatch.asyncio.Redis(port=server) as client:
            return await asyncio.gather(*[request(client, name) for name in ("a", "b", "c")])

    parents = asyncio.run(main())
    assert sorted(span.parent.span_id for span in otel.spans) == sorted(parents)


def test_with_asyncio_one_flush_of_several_tasks_is_linked_to_all(otel, server):
    """Outside any scope, what is awaited in one tick travels together."""
    ours = {}

    async def look(client, name):
        with otel.tracer.start_as_current_span(name) as span:
            ours[name] = span.get_span_context().span_id
            await client.get(name)

    async def main():
        async with autobatch.asyncio.Redis(port=server) as client:
            await asyncio.gather(*[look(client, name) for name in ("a", "b", "c")])

    asyncio.run(main())
    (span,) = otel.spans
    assert span.attributes["autobatch.reason"] == "tick"
    assert span.parent.span_id == ours["a"]
    assert [link.context.span_id for link in span.links] == [ours["b"], ours["c"]]


def test_a_thread_that_forces_is_the_parent(otel, client):
    spans = {}

    def force():
        with otel.tracer.start_as_current_span("thread") as span:
            spans["thread"] = span.get_span_context().span_id
            assert not value

    with autobatch.batch():
        with otel.tracer.start_as_current_span("caller") as span:
            spans["caller"] = span.get_span_context().span_id
            value = client.get("a")
        with meanwhile(force):
            pass
    (span,) = otel.spans
    assert span.parent.span_id == spans["thread"]
    assert [link.context.span_id for link in span.links] == [spans["caller"]]


def test_metrics(otel, client, proxy):
    with autobatch.batch():
        client.set("a", 1)
        client.get("a")
    client.get("a")
    counted = otel.metrics
    assert counted["autobatch.commands"] == [
        ({"autobatch.reason": "end"}, 2),
        ({"autobatch.reason": "alone"}, 1),
    ]
    assert otel.bounds("db.client.operation.duration")[:2] == (0.001, 0.005)
    assert otel.bounds("autobatch.batch.size")[:2] == (1, 2)
    assert counted["autobatch.round_trips"] == [
        ({"autobatch.reason": "end"}, 1),
        ({"autobatch.reason": "alone"}, 1),
    ]
    (batch, seconds), (lone, _) = counted["db.client.operation.duration"]
    assert 0 < seconds < 10
    assert (batch["db.operation.name"], lone["db.operation.name"]) == ("PIPELINE", "GET")
    assert batch["server.port"] == proxy.port


def test_lone_commands_can_be_left_to_others(client):
    collected = Collected()
    with (
        opentelemetry.install(
            tracer_provider=collected.tracers,
            meter_provider=collected.meters,
            lone_commands=False,
        ),
        autobatch.batch(),
    ):
        client.get("a")
        client.eager.get("a")
        client.blpop("nothing", timeout=0.01)
    assert [span.attributes["db.operation.name"] for span in collected.spans] == ["GET"]


def test_several_servers_have_no_address_in_common(otel, client, second_server):
    with autobatch.Redis(port=second_server) as other, autobatch.batch():
        client.get("a")
        other.get("a")
    (span,) = otel.spans
    assert "server.address" not in span.attributes
    assert span.name == "PIPELINE GET"


def test_a_cluster_has_no_databases(otel, cluster):
    with autobatch.RedisCluster("127.0.0.1", cluster.ports[0]) as client, autobatch.batch():
        client.get("a")
        client.get("b")
    span = otel.spans[-1]
    assert "db.namespace" not in span.attributes
    assert span.attributes["server.address"] == "127.0.0.1"


# ---- Prometheus --------------------------------------------------------------------------


def test_prometheus_counts(client):
    registry = prometheus_client.CollectorRegistry()
    with prometheus.install(registry):
        with autobatch.batch():
            client.set("a", "text")
            client.get("a")
            client.lpush("a", 1).exception()
        with pytest.raises(ValueError, match="Duplicated"):
            prometheus.install(registry)
    text = prometheus_client.generate_latest(registry).decode()
    for line in (
        'autobatch_commands_total{reason="forced"} 3.0',
        'autobatch_flushes_total{reason="forced"} 1.0',
        'autobatch_round_trips_total{reason="forced"} 1.0',
        'autobatch_errors_total{error="ResponseError"} 1.0',
        "autobatch_batch_size_sum 3.0",
        "autobatch_flush_seconds_count 1.0",
        "autobatch_retries_total 0.0",
    ):
        assert line in text.splitlines()
    assert not report.listening


# ---- Sentry ------------------------------------------------------------------------------


@pytest.fixture
def events():
    """What Sentry would send."""
    sent = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            sent.append(envelope.get_event())

    # None of its integrations, which change Redis, Django, logging and more for good.
    none = {"default_integrations": False, "auto_enabling_integrations": False}
    sentry_sdk.init("http://key@127.0.0.1:9/1", transport=Transport, **none)
    with sentry.install():
        yield sent
    sentry_sdk.init(**none)
    assert not report.listening


def crumbs(event):
    breadcrumbs = event["breadcrumbs"]["values"]
    return [crumb["message"] for crumb in breadcrumbs if crumb["category"] == "redis"]


def test_sentry_has_a_breadcrumb_of_each_flush(events, client):
    with sentry_sdk.isolation_scope():
        with autobatch.batch():
            client.set("a", "a secret")
            client.get("a")
        sentry_sdk.capture_message("look")
    (event,) = events
    assert crumbs(event) == ["SET a, GET a"]
    assert event["breadcrumbs"]["values"][0]["data"]["round_trips"] == 1
    assert "secret" not in str(event)


def test_sentry_tells_requests_apart(events, server):
    """The replies of all of them are read by the loop."""

    async def request(client, name):
        with sentry_sdk.isolation_scope():
            async with autobatch.batch():
                await client.get(name)
                await client.echo(name)
            sentry_sdk.capture_message(name)

    async def main():
        async with autobatch.asyncio.Redis(port=server) as client:
            await asyncio.gather(*[request(client, name) for name in ("a", "b", "c")])

    asyncio.run(main())
    assert {event["message"]: crumbs(event) for event in events} == {
        name: [f"GET {name}", "ECHO"] for name in ("a", "b", "c")
    }


SENTRY_WITH_ITS_OWN = """
import sys
import autobatch
import sentry_sdk
from autobatch import report
from autobatch.integrations import sentry
from sentry_sdk.integrations.redis import RedisIntegration

class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            print([crumb["message"] for crumb in event["breadcrumbs"]["values"]])

sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    transport=Transport,
    default_integrations=False,
    integrations=[RedisIntegration()],
    traces_sample_rate=1.0,
)
with autobatch.Redis(port=int(sys.argv[1])) as client, sentry.install():
    with report.subscribe(lambda flush: print(flush.place and flush.place.file)):
        client.get("lone")
        with autobatch.batch():
            client.get("a")
    sentry_sdk.capture_message("look")
"""


def test_sentrys_own_breadcrumbs_are_not_doubled(server):
    """Its integration, which it switches on by itself, sees lone commands; it patches redis-py."""
    done = subprocess.run(
        [sys.executable, "-c", SENTRY_WITH_ITS_OWN, str(server)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    # The place is the program's, not where Sentry stands in between.
    assert done.stdout.splitlines() == ["<string>", "None", str(["GET 'lone'", "GET a"])]


# ---- redis-py's own metrics --------------------------------------------------------------


@pytest.fixture(scope="module")
def meters():
    """What OpenTelemetry's own provider, which a process has once, is read by."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


@pytest.fixture
def redis_metrics(meters):
    """redis-py's metrics, switched on; gives a function that reads the points of one by name."""
    providers = pytest.importorskip("redis.observability.providers", reason="redis-py has none")
    from redis.asyncio.observability import recorder as asynchronous
    from redis.observability import recorder
    from redis.observability.config import MetricGroup, OTelConfig

    def read(name):
        data = meters.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    groups = [MetricGroup.COMMAND, MetricGroup.RESILIENCY, MetricGroup.STREAMING]
    providers.get_observability_instance().init(OTelConfig(metric_groups=groups))
    # A pool that is forgotten makes redis-py's collector, too: at the same time they would wait for
    # each other, for a lock of OpenTelemetry's.
    gc.disable()
    try:
        assert recorder.is_enabled()
        assert asyncio.run(asynchronous.is_enabled())
    finally:
        gc.enable()
    try:
        yield read
    finally:
        providers.reset_observability_instance()
        for kind in recorder, asynchronous:
            kind.reset_collector()


def test_redis_pys_metrics_count_batches_once(client, redis_metrics):
    from autobatch.integrations import redis_metrics as integration

    with integration.install():
        with autobatch.batch():
            client.set("a", "text")
            client.lpush("a", 1).exception()
        client.get("a")
    points = {
        point.attributes["db.operation.name"]: point
        for point in redis_metrics("db.client.operation.duration")
    }
    assert {name: point.count for name, point in points.items()} == {"PIPELINE": 1, "GET": 1}
    assert points["PIPELINE"].attributes["error.type"] == "ResponseError"
    (errors,) = redis_metrics("redis.client.errors")
    assert errors.value == 1
    assert errors.attributes["error.type"] == "ResponseError"
    assert errors.attributes["redis.client.errors.category"] == "server"
    assert errors.attributes["db.response.status_code"] == "WRONGTYPE"


def test_redis_pys_metrics_count_lost_connections(server, redis_metrics):
    from autobatch.integrations import redis_metrics as integration

    with integration.install(), autobatch.testing.Proxy(server) as proxy:
        client = autobatch.Redis(port=proxy.port)
        proxy.arm(autobatch.testing.Cut(reply=0))
        with pytest.raises(autobatch.errors.OutcomeUnknown):
            client.incr("a")
        client.close()
    errors = redis_metrics("redis.client.errors")
    assert [
        point.attributes["redis.client.errors.category"]
        for point in errors
        if point.attributes["error.type"] == "OutcomeUnknown"
    ] == ["network"]


def lags(read):
    """How many messages of which stream were read by which group, as redis-py's metrics say."""
    return {
        (
            point.attributes["redis.client.stream.name"],
            point.attributes.get("redis.client.consumer_group"),
        ): point.count
        for point in read("redis.client.stream.lag")
    }


def test_redis_pys_metrics_of_streams_force_nothing(client, proxy, redis_metrics):
    client.xgroup_create("in a scope", "group", mkstream=True)
    proxy.reset()
    with autobatch.batch():
        client.xadd("in a scope", {"a": 1})
        client.xadd("in a scope", {"a": 2})
        client.lpush("list", 1)
        failed = client.xread({"list": 0})
        read = client.xread({"in a scope": 0})
        grouped = client.xreadgroup("group", "consumer", {"in a scope": ">"}, count=1)
        assert repr(grouped) == "<Future pending: XREADGROUP>"
        autobatch.flush()
        assert isinstance(failed.exception(), redis.ResponseError)
    assert proxy.round_trips == 1
    assert len(read[0][1]) == 2 and len(grouped[0][1]) == 1
    client.xadd("outside", {"a": 1})
    client.xread({"outside": 0})
    client.eager.xread({"outside": 0})
    seen = lags(redis_metrics)
    assert seen["in a scope", None] == 2
    assert seen["in a scope", "group"] == 1
    assert seen["outside", None] == 2


def test_redis_pys_metrics_of_streams_force_nothing_with_asyncio(proxy, redis_metrics):
    async def main():
        async with autobatch.asyncio.Redis(port=proxy.port) as client:
            await client.xgroup_create("asyncio", "group", mkstream=True)
            proxy.reset()
            async with autobatch.batch():
                client.xadd("asyncio", {"a": 1})
                read = client.xread({"asyncio": 0})
                grouped = client.xreadgroup("group", "consumer", {"asyncio": ">"})
            assert proxy.round_trips == 1
            assert len(read[0][1]) == len(grouped[0][1]) == 1
            await client.xread({"asyncio": 0})
            await client.xread({"asyncio": 0}, block=10)  # steps aside
            await client.eager.xread({"asyncio": 0})

    asyncio.run(main())
    seen = lags(redis_metrics)
    assert seen["asyncio", None] == 4
    assert seen["asyncio", "group"] == 1


def test_redis_pys_metrics_of_streams_force_nothing_where_it_is_instrumented(proxy, redis_metrics):
    async def main():
        async with redis.asyncio.Redis(port=proxy.port) as client:
            async with autobatch.batch():
                client.xadd("instrumented", {"a": 1})
                read = client.xread({"instrumented": 0})
                grouped = client.xreadgroup("group", "consumer", {"instrumented": ">"})
            assert proxy.round_trips == 1
            assert (len(read[0][1]), len(grouped[0][1])) == (2, 1)

    with autobatch.instrument(), redis.Redis(port=proxy.port) as client:
        client.xgroup_create("instrumented", "group", mkstream=True)
        proxy.reset()
        with autobatch.batch():
            client.xadd("instrumented", {"a": 1})
            read = client.xread({"instrumented": 0})
            grouped = client.xreadgroup("group", "consumer", {"instrumented": ">"})
        assert proxy.round_trips == 1
        assert len(read[0][1]) == len(grouped[0][1]) == 1
        proxy.reset()
        asyncio.run(main())
    seen = lags(redis_metrics)
    assert seen["instrumented", None] == 3
    assert seen["instrumented", "group"] == 2
