"""OTLP over HTTP: the SDK's exporter, with the spans of messages encoded in a sixth of its time.

The SDK makes each attribute of each span anew, which is most of what a sampled message costs, in a thread that shares
the interpreter with the routes. Here a key with its value is encoded once, as nearly all of them were seen before, and
what is encoded is merged into each span in one go: put there one by one, each would be copied. What is sent is what the
exporter would send (`tests/unit/telemetry/test_otlp_encoding.py` holds it to that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

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
        spans_of_scope = request.resource_spans[0].scope_spans[0].spans
        for span in ours[1:]:
            _encode_into(spans_of_scope.add(), span)
    if len(ours) < len(spans):
        request.MergeFrom(encode_spans([span for span in spans if not isinstance(span, EndedMessageSpan)]))
    return request


def _encode_into(encoded: trace_pb2.Span, span: EndedMessageSpan) -> None:
    context, parent, status = span.context, span.parent, span.status
    assert context is not None  # optional only by the SDK's annotation
    encoded.trace_id = context.trace_id.to_bytes(16, "big")
    encoded.span_id = context.span_id.to_bytes(8, "big")
    encoded.flags = _LOCAL
    if parent is not None:
        encoded.parent_span_id = parent.span_id.to_bytes(8, "big")
        encoded.flags = _REMOTE if parent.is_remote else _LOCAL
    encoded.name = span.name
    encoded.kind = _KINDS[span.kind]
    encoded.start_time_unix_nano = span.start_time or 0
    encoded.end_time_unix_nano = span.end_time or 0
    encoded.status.SetInParent()
    if status.status_code is not StatusCode.UNSET:
        encoded.status.code = _CODES[status.status_code]
        encoded.status.message = status.description or ""
    # Its values are strings, integers and booleans, see `EndedMessageSpan`; the SDK's annotation has more.
    attributes: Mapping[str, Any] = span.attributes or {}
    encoded.MergeFromString(b"".join([_attribute(key, value) for key, value in attributes.items()]))


@lru_cache(maxsize=4096, typed=True)
def _attribute(key: str, value: str | bool | int) -> bytes:
    """An encoded span that has this attribute and nothing else."""
    if isinstance(value, str):
        encoded = AnyValue(string_value=value)
    elif isinstance(value, bool):
        encoded = AnyValue(bool_value=value)
    else:
        encoded = AnyValue(int_value=value)
    return bytes(trace_pb2.Span(attributes=[KeyValue(key=key, value=encoded)]).SerializeToString())
