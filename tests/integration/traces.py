"""Two servers with a collector, and routers that trace between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from router_trio import Router, Settings
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.support.raw_nats import RawClient, RawMessage, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch, watched

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"

OK, ERROR = 0, 2  # OTLP: a status that was never set is 0
CORE_TO_CORE = {
    "name": "eu",
    "from": {"connection": "edge", "subject": "orders.*"},
    "to": [{"connection": "core", "subject": "eu.{{wildcard(1)}}"}],
}


@dataclass
class Two:
    """Two servers with a client on each, and a collector."""

    edge: NatsServer
    core: NatsServer
    producer: RawClient
    consumer: RawClient
    collector: OtlpReceiver

    def traced(self, *routes: dict[str, Any], endpoint: str | None = None, ratio: float = 0.0) -> Settings:
        """Return settings of a router from `edge` to `core` that traces what its callers record, and a share of the
        rest.
        """
        quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "200ms"}
        return Settings(
            router={"name": "orders-router"},
            telemetry={
                "listen": "",
                "otlp_endpoint": self.collector.endpoint if endpoint is None else endpoint,
                "trace_sample_ratio": ratio,
            },
            connections={
                "edge": {"servers": [self.edge.url], **quick},
                "core": {"servers": [self.core.url], **quick},
            },
            routes=list(routes),
        )

    def spans(self, name: str) -> list[ReceivedSpan]:
        """Return the spans of that name."""
        return [span for span in self.collector.spans if span.name == name]


@asynccontextmanager
async def two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    """Yield two servers and a collector, which no environment variable overrides."""
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "COMPRESSION", "TIMEOUT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    async with (
        nats_server(tmp_path, name="edge") as edge,
        nats_server(tmp_path, name="core") as core,
        connect(edge.url) as producer,
        connect(core.url) as consumer,
        otlp_receiver() as collector,
    ):
        yield Two(edge, core, producer, consumer, collector)


@asynccontextmanager
async def routing(settings: Settings, *handlers: tuple[Any, dict[str, Any]]) -> AsyncIterator[Watch]:
    """Run a router; when the context is left, its spans are at the collector."""
    watch = Watch()
    router = Router(settings, observers=[watch])
    for handler, route in handlers:
        router.route(**route)(handler)
    async with watched(router, watch):
        yield watch


def traceparents(message: RawMessage) -> list[str]:
    return [value for name, value in message.headers if name.lower() == "traceparent"]
