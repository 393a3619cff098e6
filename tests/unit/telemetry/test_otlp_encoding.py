"""Spans as OTLP: the router's encoding equals the SDK's encoding of the same spans, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from router_trio.message import FENCED, Fate, stored
from router_trio.protocol.framing import publish, published
from router_trio.protocol.headers import Headers
from router_trio.protocol.headers import encode as encode_headers
from router_trio.routing.tracing import MessageTrace
from router_trio.telemetry.traces import otlp
from router_trio.telemetry.traces.export import Readable, all_readable
from router_trio.telemetry.traces.otlp import MessageSpanExporter, encode
from router_trio.telemetry.traces.spans import MessageSpan
from router_trio.telemetry.traces.tracer import Traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

WITH_PARENT = publish(b"orders.7", b"hello", headers=encode_headers(Headers({"traceparent": PARENT})))
WITHOUT = publish(b"orders.7", b"hello")


class Kept(SpanExporter):
    """Keeps exported spans as they are."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan | MessageSpan] = []
        self._readable: Readable | None = None

    def export_with(self, spans: Sequence[ReadableSpan | MessageSpan], readable: Readable) -> SpanExportResult:
        self.spans += spans
        self._readable = readable
        return SpanExportResult.SUCCESS

    def readable(self, span: MessageSpan) -> ReadableSpan:
        """Return a span of a message as a span of the SDK."""
        assert self._readable is not None
        return self._readable(span)

    def encoded(self, *which: slice) -> ExportTraceServiceRequest:
        """Encode spans with the encoder under test, and decode them with protobuf."""
        spans = self.spans[which[0]] if which else self.spans
        request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(encode(spans, self.readable))
        return request

    def encoded_by_the_sdk(self, *which: slice) -> ExportTraceServiceRequest:
        spans = self.spans[which[0]] if which else self.spans
        return encode_spans(all_readable(spans, self.readable))


async def spans_of(*messages: Any, outages: int = 0) -> Kept:
    """Return the spans of messages. Each argument acts on one started trace."""
    exporter = Kept()
    traces = Traces(service_name="r", sample_ratio=1.0, exporter=lambda _: exporter, random=Random(7))
    async with traces.running():
        await traces.begin_export()
        for frame, deal_with in messages:
            trace = traces.begin("eu", "orders.*", published(frame), **deal_with.come_with)
            assert trace is not None
            deal_with(trace)
            trace.end(0.25)
        for _ in range(outages):
            assert traces._pipeline is not None
            tracer = traces._pipeline.provider.get_tracer("router_trio")
            with tracer.start_as_current_span("outage", attributes={"ratio": 0.5}) as span:
                span.add_event("attempt", {"delay": 1.5})
    return exporter


class Deal:
    """Return an action on a trace: sends with these `fates`, a failure, and the attributes of the message."""

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


ORDERS = (("messaging.nats.stream", "ORDERS"),)
STREAM: dict[str, Any] = {"source": ORDERS, "sequence": 1, "deliveries": 1}
MESSAGES = [
    (WITHOUT, Deal(FENCED)),
    (WITH_PARENT, Deal(FENCED, stored("COPIES", 1 << 40, duplicate=True))),
    (WITHOUT, Deal(stored("COPIES", 1), **STREAM)),
    (WITH_PARENT, Deal(Fate("failed", "too_large"), Fate("dropped", "queue_full"))),
    (WITHOUT, Deal(failure="not this one")),
    (WITH_PARENT, Deal(failure="")),
]


def by_id(request: ExportTraceServiceRequest) -> dict[bytes, tuple[str, str, str]]:
    """Return the text of each span with its resource and scope."""
    return {
        span.span_id: (str(resource.resource), str(scope.scope), str(span))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


async def test_spans_of_messages_are_encoded_as_by_the_sdk() -> None:
    kept = await spans_of(*MESSAGES)
    assert len(kept.spans) == 12
    assert {type(span) for span in kept.spans} == {MessageSpan}
    assert kept.encoded() == kept.encoded_by_the_sdk()
    for index in range(len(kept.spans)):
        only = slice(index, index + 1)
        assert kept.encoded(only) == kept.encoded_by_the_sdk(only)
    assert encode([], kept.readable) == b""


@pytest.mark.parametrize("sequence", [0, 1, 127, 128, (1 << 14) - 1, 1 << 14, (1 << 63) - 1])
async def test_numbers_of_every_length_are_encoded_as_by_the_sdk(sequence: int) -> None:
    deal = Deal(stored("COPIES", sequence), source=ORDERS, sequence=sequence, deliveries=sequence)
    kept = await spans_of((WITHOUT, deal))
    assert kept.encoded() == kept.encoded_by_the_sdk()
    assert str(sequence) in str(kept.encoded())


@pytest.mark.parametrize("first", [True, False])
async def test_a_batch_may_contain_spans_of_the_sdk(first: bool) -> None:
    kept = await spans_of(*MESSAGES, outages=2)
    assert len(kept.spans) == 14
    if first:
        kept.spans.reverse()
    assert by_id(kept.encoded()) == by_id(kept.encoded_by_the_sdk())
    few = slice(-2, None)
    assert by_id(kept.encoded(few)) == by_id(kept.encoded_by_the_sdk(few))


async def test_a_detail_that_is_not_utf_8_drops_no_span() -> None:
    kept = await spans_of(MESSAGES[0], (WITHOUT, Deal(failure="subject a.\udcff")))
    assert kept.encoded() == kept.encoded_by_the_sdk()
    assert "subject a.?" in str(kept.encoded())


async def test_true_is_not_encoded_as_a_cached_1() -> None:
    otlp._attribute_of.cache_clear()
    one, true = (trace_pb2.Span.FromString(otlp._attribute("key", value)).attributes[0] for value in (1, True))
    assert (one.value.WhichOneof("value"), true.value.WhichOneof("value")) == ("int_value", "bool_value")


async def test_an_older_exporter_encodes_the_spans_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Sequence[ReadableSpan]] = []

    def export(self: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        exported.append(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    exporter = MessageSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    del exporter._client
    kept = await spans_of(MESSAGES[0], outages=1)
    assert exporter.export_with(kept.spans, kept.readable) is SpanExportResult.SUCCESS
    (spans,) = exported
    assert [span.name for span in spans] == ["send to.0", "process eu", "outage"]
    assert not any(isinstance(span, MessageSpan) for span in spans)


def test_an_unreachable_collector_is_a_failed_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    exporter = MessageSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    assert exporter.export_with([], Kept().readable) is SpanExportResult.FAILURE
