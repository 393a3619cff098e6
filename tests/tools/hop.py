"""A producer, a router over two connections and a consumer, whose spans are sent to one Jaeger.

The producer and the consumer create their spans with OpenTelemetry's SDK, as any program does: they share only the
header `traceparent` with the router.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Tracer

from router_trio import Settings
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch, watched
from tests.tools.jaeger import Jaeger, jaeger


@contextmanager
def program(name: str, collector: Jaeger) -> Iterator[Tracer]:
    """Yield the tracer of a program of that name; its spans are at the collector when the context is left."""
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{collector.endpoint}/v1/traces")))
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
        """Run a router from `edge` to `core`. When the context is left, its spans are at the collector."""
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

    async def send_one(self) -> None:
        """Send one message from a program `shop` through a router to a program `billing`; both create spans of it."""
        inbox = await self.consumer.subscribe("eu.*")
        with program("shop", self.collector) as shop, program("billing", self.collector) as billing:
            async with self.routing():
                with shop.start_as_current_span("send orders.7", kind=SpanKind.PRODUCER):
                    headers: dict[str, str] = {}
                    propagate.inject(headers)
                    await self.producer.publish("orders.7", b"hello", headers=headers)
                message = await inbox.next()
                came = propagate.extract({name.lower(): value for name, value in message.headers})
                billing.start_span("process eu.7", context=came, kind=SpanKind.CONSUMER).end()

    async def break_and_mend(self, kept: int) -> Watch:
        """Take the destination's server away from a router while `kept` messages arrive, and restore it."""
        async with self.routing() as watch:
            await self.core.kill()
            await watch.until("NATS_CONNECTION_LOST")
            for number in range(kept):
                await self.producer.publish(f"orders.{number}", b"kept")
            await watch.until("NATS_CONNECTION_FAILED", 2)
            await self.core.restart()
            await watch.until("NATS_RETRY_COMPLETE")
        return watch


@asynccontextmanager
async def hop(found: Path, tmp_path: Path) -> AsyncIterator[Hop]:
    """Run both servers and the Jaeger `found`, and connect."""
    async with (
        nats_server(tmp_path, name="edge") as edge,
        nats_server(tmp_path, name="core") as core,
        connect(edge.url) as producer,
        connect(core.url) as consumer,
        jaeger(found, tmp_path) as collector,
    ):
        yield Hop(edge, core, producer, consumer, collector)
