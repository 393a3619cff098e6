"""Traced messages, and the spans recorded of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from router_trio.protocol.framing import FrameParser, RawMessage, publish
from router_trio.protocol.headers import Headers, encode
from router_trio.routing.tracing import MessageTrace, Tracing
from router_trio.telemetry.traces.tracer import Traces
from tests.support.buffers import MessageBuffer

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def received(payload: bytes = b"hello", headers: dict[str, str] | None = None) -> RawMessage:
    """Return a message as the parser returns it."""
    parser = FrameParser()
    parser.buffers[b"1"] = buffer = MessageBuffer()
    frame = publish(b"orders.7", payload, headers=encode(Headers(headers)))
    word, subject, rest = frame.split(b" ", 2)
    parser.feed((b"HMSG " if word == b"HPUB" else b"MSG ") + subject + b" 1 " + rest)
    [raw] = buffer
    return raw


def carrying(traceparent: str, name: str = "traceparent") -> RawMessage:
    return received(headers={"Other": "x", name: traceparent})


class Recorded:
    """Traces that export into a list, which is complete once `recording` is left."""

    def __init__(self, ratio: float = 1.0, max_per_second: float = 100.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(
            service_name="orders-router",
            sample_ratio=ratio,
            max_per_second=max_per_second,
            exporter=lambda _: self._exporter,
            random=Random(7),
        )

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@asynccontextmanager
async def recording(ratio: float = 1.0, max_per_second: float = 100.0) -> AsyncIterator[Recorded]:
    recorded = Recorded(ratio, max_per_second)
    async with recorded.traces.running():
        yield recorded


def begin(traces: Tracing, raw: RawMessage) -> MessageTrace:
    trace = traces.begin(
        "eu", "orders.*", raw, source=(("messaging.nats.stream", "ORDERS"),), sequence=12, deliveries=2
    )
    assert trace is not None
    return trace
