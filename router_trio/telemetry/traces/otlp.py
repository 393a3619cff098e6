"""OTLP over HTTP: the SDK's exporter, with the spans of messages encoded in a third of its time.

The SDK makes each attribute of each span anew, which is most of what a sampled message costs, in a thread that shares
the interpreter with the routes. Here a key with its value is made once, as nearly all of them were seen before. What is
sent is what the exporter would send (`tests/unit/telemetry/test_otlp_encoding.py` holds it to that).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from router_trio.telemetry.traces.export import EndedMessageSpan

_KINDS = {
    SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
    SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
}
_CODES = {
    StatusCode.UNSET: trace_pb2.Status.STATUS_CODE_UNSET,
    StatusCode.OK: trace_pb2.Status.STATUS_CODE_OK,
    StatusCode.ERROR: trace_pb2.Status.STATUS_CODE_ERROR,
}
_UNSET = trace_pb2.Status()
_LOCAL = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class MessageSpanExporter(OTLPSpanExporter):
    """The SDK's exporter of spans over HTTP."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`. Blocks until the collector has answered, or for all of its tries."""
        # A private attribute of the exporter. One that has none (before 1.45) encodes in its own way.
        client = getattr(self, "_client", None)
        if client is None:
            return super().export(spans)
        sent = client.export(encode(spans).SerializeToString())
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


def encode(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """The request that exports these spans of one router."""
    ours = [span for span in spans if isinstance(span, EndedMessageSpan)]
    # All of them have one resource and one scope: the SDK's encoder makes both, with the first.
    request = encode_spans(ours[:1])
    if len(ours) > 1:
        request.resource_spans[0].scope_spans[0].spans.extend(map(_encoded, ours[1:]))
    if len(ours) < len(spans):
        request.MergeFrom(encode_spans([span for span in spans if not isinstance(span, EndedMessageSpan)]))
    return request


def _encoded(span: EndedMessageSpan) -> trace_pb2.Span:
    context, parent, status = span.context, span.parent, span.status
    assert context is not None  # optional only by the SDK's annotation
    return trace_pb2.Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=b"" if parent is None else parent.span_id.to_bytes(8, "big"),
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        # Its values are strings, integers and booleans, see `EndedMessageSpan`; the SDK's annotation has more.
        attributes=[
            _attribute(key, value)  # pyright: ignore[reportArgumentType]
            for key, value in (span.attributes or {}).items()
        ],
        status=_UNSET
        if status.status_code is StatusCode.UNSET
        else trace_pb2.Status(code=_CODES[status.status_code], message=status.description or ""),
        flags=_REMOTE if parent is not None and parent.is_remote else _LOCAL,
    )


@lru_cache(maxsize=4096, typed=True)
def _attribute(key: str, value: str | bool | int) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    return KeyValue(key=key, value=AnyValue(int_value=value))
