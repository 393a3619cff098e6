"""What a real Jaeger shows of a real router: one chain from producer to consumer, and an outage as one trace.

The producer and the consumer make their spans with OpenTelemetry's SDK, in the way of any program: all that they share
with the router is the header `traceparent`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Tracer

from router_trio import Settings
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.tools import tool
from tests.support.watch import Watch, watched
from tests.tools.jaeger import Jaeger, jaeger

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "COMPRESSION", "TIMEOUT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@contextmanager
def program(name: str, collector: Jaeger) -> Iterator[Tracer]:
    """The tracer of a program of that name; what it made is at the collector when this is left."""
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.endpoint}/v1/traces")))
    try:
        yield provider.get_tracer(name)
    finally:
        provider.shutdown()


class Hop:
    """Two servers, a client on each, and a Jaeger."""

    def __init__(
        self, edge: NatsServer, core: NatsServer, producer: RawClient, consumer: RawClient, collector: Jaeger
    ) -> None:
        self.edge, self.core = edge, core
        self.producer, self.consumer = producer, consumer
        self.collector = collector

    @asynccontextmanager
    async def routing(self) -> AsyncIterator[Watch]:
        """A router from `edge` to `core`. When it is left, its spans are at the collector."""
        quick = {"reconnect_delay": "100ms", "max_reconnect_delay": "300ms"}
        settings = Settings(
            router={"name": "orders-router"},
            telemetry={"listen": "", "otlp_endpoint": self.collector.endpoint, "trace_sample_ratio": 0.0},
            connections={
                "edge": {"servers": [self.edge.url], **quick},
                "core": {"servers": [self.core.url], **quick},
            },
            routes=[
                {
                    "name": "eu",
                    "from": {"connection": "edge", "subject": "orders.*"},
                    "to": [{"connection": "core", "subject": "eu.{{wildcard(1)}}"}],
                }
            ],
        )
        watch = Watch()
        async with watched(settings, watch):
            yield watch


@pytest.fixture
async def hop(tmp_path: Path) -> AsyncIterator[Hop]:
    found = tool("jaeger")
    async with (
        nats_server(tmp_path, name="edge") as edge,
        nats_server(tmp_path, name="core") as core,
        connect(edge.url) as producer,
        connect(core.url) as consumer,
        jaeger(found, tmp_path) as collector,
    ):
        yield Hop(edge, core, producer, consumer, collector)


async def test_producer_router_over_two_connections_and_consumer_are_one_chain(hop: Hop) -> None:
    inbox = await hop.consumer.subscribe("eu.*")
    async with hop.routing():
        with (
            program("shop", hop.collector) as shop,
            shop.start_as_current_span("send orders.7", kind=SpanKind.PRODUCER),
        ):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            await hop.producer.publish("orders.7", b"hello", headers=headers)
        message = await inbox.next()
    context = propagate.extract({name.lower(): value for name, value in message.headers})
    with program("billing", hop.collector) as billing:
        billing.start_span("process eu.7", context=context, kind=SpanKind.CONSUMER).end()
    spans = await hop.collector.trace("shop", "send orders.7", 4)
    assert [(one.service, one.name, one.kind) for one in spans] == [
        ("shop", "send orders.7", "producer"),
        ("orders-router", "process eu", "consumer"),
        ("orders-router", "send eu.{{wildcard(1)}}", "producer"),
        ("billing", "process eu.7", "consumer"),
    ]
    assert [one.parent_id for one in spans] == ["", *(one.span_id for one in spans[:-1])]
    assert spans[2].warnings == [], "what the router sends lies within what it processes"
    assert spans[2].tags["router.connection"] == "core"
    assert spans[2].tags["messaging.system"] == "nats"
    assert await hop.collector.services() == ["billing", "orders-router", "shop"]


async def test_an_outage_is_one_trace_that_contains_its_attempts_and_its_drain(hop: Hop) -> None:
    async with hop.routing() as watch:
        await hop.core.kill()
        await watch.until("NATS_CONNECTION_LOST")
        for number in range(100):
            await hop.producer.publish(f"orders.{number}", b"kept")
        await watch.until("NATS_CONNECTION_FAILED", 2)
        await hop.core.restart()
        await watch.until("NATS_RETRY_COMPLETE")
        attempts = len(watch.of("NATS_RECONNECT_ATTEMPT"))
        failed = len(watch.of("NATS_CONNECTION_FAILED"))
    outage, drain = await hop.collector.trace("orders-router", "nats outage", 2)
    assert (outage.name, outage.parent_id) == ("nats outage", "")
    assert (drain.name, drain.parent_id) == ("drain", outage.span_id)
    assert outage.begin <= drain.begin <= drain.end <= outage.end
    assert all(outage.begin <= at <= outage.end for at in outage.event_times)
    assert outage.events.count("reconnect attempt") == attempts >= 3
    assert outage.events.count("attempt failed") == failed >= 2
    assert outage.events[-1] == "restored"
    assert drain.tags["router.success_count"] == drain.tags["router.pending_count"] == 100
    assert (outage.warnings, drain.warnings) == ([], []), "such as clocks that do not fit"
