"""Spans as OTLP: what is encoded here is, field by field, what the SDK's encoder makes of the same spans."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from router_trio.message import FENCED, Fate, stored
from router_trio.protocol.framing import publish, published
from router_trio.protocol.headers import Headers
from router_trio.protocol.headers import encode as encode_headers
from router_trio.routing.tracing import MessageTrace
from router_trio.telemetry.traces import otlp
from router_trio.telemetry.traces.otlp import MessageSpanExporter, encode
from router_trio.telemetry.traces.tracer import Traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

WITH_PARENT = publish(b"orders.7", b"hello", headers=encode_headers(Headers({"traceparent": PARENT})))
WITHOUT = publish(b"orders.7", b"hello")


async def spans_of(*messages: Any, outages: int = 0) -> Sequence[ReadableSpan]:
    """The spans of messages; each argument does something with a trace that has begun."""
    exporter = InMemorySpanExporter()
    traces = Traces(service_name="r", sample_ratio=1.0, exporter=lambda _: exporter, random=Random(7))
    async with traces.running():
        await traces.begin_export()
        for frame, deal_with in messages:
            trace = traces.begin("eu", "orders.*", published(frame), **deal_with.come_with)
            assert trace is not None
            deal_with(trace)
            trace.end()
        for _ in range(outages):
            assert traces._pipeline is not None
            tracer = traces._pipeline.provider.get_tracer("router_trio")
            with tracer.start_as_current_span("outage", attributes={"ratio": 0.5}) as span:
                span.add_event("attempt", {"delay": 1.5})
    return exporter.get_finished_spans()


class Deal:
    """What becomes of a message: `fates` of its sends, a failure, and what it came with."""

    def __init__(self, *fates: Fate, failure: str | None = None, **come_with: Any) -> None:
        self.fates = fates
        self.failure = failure
        self.come_with = come_with

    def __call__(self, trace: MessageTrace) -> None:
        for number, fate in enumerate(self.fates):
            trace.send(f"to.{number}", "main", 5)
            trace.sent(f"to.{number}", fate)
        if self.failure is not None:
            trace.failed("handler_error", self.failure)


STREAM: dict[str, Any] = {"stream": "ORDERS", "sequence": 1, "deliveries": 1}
MESSAGES = [
    (WITHOUT, Deal(FENCED)),
    (WITH_PARENT, Deal(FENCED, stored("COPIES", 1 << 40, duplicate=True))),
    (WITHOUT, Deal(stored("COPIES", 1), **STREAM)),
    (WITH_PARENT, Deal(Fate("failed", "too_large"), Fate("dropped", "queue_full"))),
    (WITHOUT, Deal(failure="not this one")),
    (WITH_PARENT, Deal(failure="")),
]


def by_id(request: ExportTraceServiceRequest) -> dict[bytes, tuple[str, str, str]]:
    """Each span with its resource and scope, as texts."""
    return {
        span.span_id: (str(resource.resource), str(scope.scope), str(span))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


async def test_the_spans_of_messages_are_encoded_as_by_the_sdk() -> None:
    spans = await spans_of(*MESSAGES)
    assert len(spans) == 12
    assert encode(spans) == encode_spans(spans)
    assert encode(spans[:1]) == encode_spans(spans[:1])
    assert encode([]) == encode_spans([])


@pytest.mark.parametrize("first", [True, False])
async def test_with_spans_of_other_kinds_among_them(first: bool) -> None:
    spans = [*await spans_of(*MESSAGES, outages=2)]
    assert len(spans) == 14
    if first:
        spans.reverse()
    assert by_id(encode(spans)) == by_id(encode_spans(spans))
    assert by_id(encode(spans[-2:])) == by_id(encode_spans(spans[-2:]))


async def test_a_detail_that_is_no_utf_8_costs_no_span() -> None:
    spans = await spans_of(MESSAGES[0], (WITHOUT, Deal(failure="subject a.\udcff")))
    assert encode(spans) == encode_spans(spans)
    assert spans[-1].status.description == "subject a.?"


async def test_a_true_is_not_encoded_as_the_one_that_was_seen_before() -> None:
    otlp._attribute.cache_clear()
    one, true = (Span.FromString(otlp._attribute("key", value)).attributes[0] for value in (1, True))
    assert (one.value.WhichOneof("value"), true.value.WhichOneof("value")) == ("int_value", "bool_value")


async def test_an_exporter_that_is_built_otherwise_encodes_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Sequence[ReadableSpan]] = []

    def export(self: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        exported.append(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    exporter = MessageSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    del exporter._client
    spans = await spans_of(MESSAGES[0])
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exported == [spans]


def test_a_collector_that_is_away_is_a_failed_export() -> None:
    exporter = MessageSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", timeout=0.2)
    assert exporter.export([]) is SpanExportResult.FAILURE
