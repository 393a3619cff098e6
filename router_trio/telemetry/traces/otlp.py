"""OTLP over HTTP: the SDK's exporter, with an encoder for the spans of messages that takes a tenth of the time.

The SDK builds objects for each span, in a thread that shares the interpreter with the routes, so tracing many messages
slows all of them down. Here the fields that all spans of a form share are encoded once, with the SDK's classes, and
concatenated with the few fields of the span itself: an encoded protobuf message is the concatenation of its fields, in
any order (https://protobuf.dev/programming-guides/encoding/). The bytes sent decode to what the SDK's exporter would
send; `tests/unit/telemetry/test_otlp_encoding.py` compares the two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import lru_cache
from http.client import responses
from struct import Struct
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from router_trio.telemetry.traces.export import Readable, all_readable
from router_trio.telemetry.traces.spans import MAX_FORMS, MessageSpan, SpanForm

MAX_ANSWER = 64 * 1024
"""Bytes of a collector's answer that are read. The SDK uses status and headers only."""

ANSWER_WITHIN = 5.0
"""Seconds for that part of the answer, behind its headers."""

_KINDS = {"CONSUMER": trace_pb2.Span.SPAN_KIND_CONSUMER, "PRODUCER": trace_pb2.Span.SPAN_KIND_PRODUCER}
_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
"""Variables that name a session of the user's own."""

_LOCAL = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_NO_ERROR = trace_pb2.Span(status=trace_pb2.Status()).SerializeToString()

_BYTES, _FIXED32, _FIXED64 = 2, 5, 1
"""Wire types: length-prefixed bytes, and numbers of 4 and 8 bytes."""


def _tag(field: str, wire_type: int) -> bytes:
    return _varint(trace_pb2.Span.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type)


def _varint(number: int) -> bytes:
    """Encode a non-negative number in groups of seven bits, the lowest first."""
    if number < 1 << 7:
        return bytes((number,))
    if number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    return bytes((number & 127 | 128,)) + _varint(number >> 7)


def _with_length(tag: bytes, *content: bytes) -> list[bytes]:
    return [tag, _varint(sum(map(len, content))), *content]


_TRACE_ID, _SPAN_ID = _tag("trace_id", _BYTES) + b"\x10", _tag("span_id", _BYTES) + b"\x08"
_PARENT = _tag("parent_span_id", _BYTES) + b"\x08"
_START, _END = _tag("start_time_unix_nano", _FIXED64), _tag("end_time_unix_nano", _FIXED64)
_FLAGS = _tag("flags", _FIXED32)
_FIRST, _SECOND = b"\x0a", b"\x12"
"""Tags of the fields with number 1 and 2, of wire type bytes."""

_times = Struct(f"<{len(_START)}sQ{len(_END)}sQ").pack
_flags = Struct(f"<{len(_FLAGS)}sI").pack


class _Session(requests.Session):
    """A session that reads status and headers of an answer, and no more than the begin of its body."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request and return the answer. Raises as the session of `requests` does, also for a redirect.

        That is not followed: another host would get the spans, and the credentials in the headers.
        """
        options.pop("allow_redirects", None)
        options["stream"] = True
        try:
            response = self.get_adapter(url=str(request.url)).send(request, **options)
        except requests.RequestException as error:
            # The path may hold a key, and the SDK logs this.
            raise type(error)(str(error).replace(request.path_url, "/...")) from None
        _drain(response)
        response._content, response._content_consumed = b"", True
        if response.is_redirect:
            raise requests.TooManyRedirects("the collector redirects, which is not followed; correct the endpoint")
        # The SDK logs that as well. The collector may have repeated what it was sent.
        response.reason = responses.get(response.status_code, "")
        return response


def _drain(response: requests.Response) -> None:
    """Read an answer's body, so that the connection can be used again. Close it for one that is long or slow."""
    deadline, read = time.monotonic() + ANSWER_WITHIN, 0
    try:
        while part := response.raw.read1(MAX_ANSWER, decode_content=False):
            read += len(part)
            if read >= MAX_ANSWER or time.monotonic() >= deadline:
                response.close()
                return
    except Exception:  # the spans have arrived: the status says so
        response.close()


class MessageSpanExporter(OTLPSpanExporter):
    """The SDK's exporter of spans over HTTP, which is an `export.MessageExporter` too."""

    def __init__(self, endpoint: str | None) -> None:
        """`endpoint` is the URL of spans; None for that of OpenTelemetry's variables.

        With a credential provider in these variables, its session is used, and reads what it likes.
        """
        provided = any(os.environ.get(name) for name in _PROVIDERS)
        super().__init__(endpoint=endpoint, session=None if provided else _Session())

    def export_with(self, spans: Sequence[ReadableSpan | MessageSpan], readable: Readable) -> SpanExportResult:
        """Export the spans. Blocks until the collector has answered or all retries have failed."""
        # `_client` is a private attribute of the exporter. Versions before 1.45 lack it: they encode the spans then.
        client = getattr(self, "_client", None)
        if client is None:
            return self.export(all_readable(spans, readable))
        result = client.export(encode(spans, readable))
        return SpanExportResult.SUCCESS if result.success else SpanExportResult.FAILURE


def encode(spans: Sequence[ReadableSpan | MessageSpan], readable: Readable) -> bytes:
    """Return the encoded `ExportTraceServiceRequest` for spans of one router."""
    ours = [span for span in spans if isinstance(span, MessageSpan)]
    others = [span for span in spans if not isinstance(span, MessageSpan)]
    # Encoded requests are merged by concatenating them.
    parts: list[bytes] = [encode_spans(others).SerializeToString()] if others else []
    if ours:
        # All spans have the same resource and scope, which the SDK encodes with the first span.
        resource_spans = encode_spans([readable(ours[0])]).resource_spans[0]
        scope_spans = resource_spans.scope_spans.pop()
        del scope_spans.spans[:]
        each = [part for span in ours for part in _with_length(_SECOND, _span(span))]
        of_resource = _with_length(_SECOND, scope_spans.SerializeToString(), *each)
        parts += _with_length(_FIRST, resource_spans.SerializeToString(), *of_resource)
    return b"".join(parts)


def _span(span: MessageSpan) -> bytes:
    (trace_id, span_id, _), parent = span.context, span.parent
    if parent is None:
        parent_id, is_remote = b"", False
    else:
        parent_id, is_remote = _PARENT + parent.span_id.to_bytes(8, "big"), span.form.kind == "CONSUMER"
    return b"".join([
        _TRACE_ID, trace_id.to_bytes(16, "big"), _SPAN_ID, span_id.to_bytes(8, "big"), parent_id,
        _times(_START, span.start_time, _END, span.end_time), _flags(_FLAGS, _REMOTE if is_remote else _LOCAL),
        _form(span.form), *[_attribute(key, value) for key, value in span.attributes.items()],
        _NO_ERROR if span.error is None else _error(span.error),
    ])  # fmt: skip


@lru_cache(maxsize=MAX_FORMS)
def _form(form: SpanForm) -> bytes:
    """Return an encoded span with the fields that all spans of this form share."""
    attributes = [KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in form.attributes.items()]
    encoded = trace_pb2.Span(name=form.name, kind=_KINDS[form.kind], attributes=attributes)
    return bytes(encoded.SerializeToString())


def _error(detail: str) -> bytes:
    status = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=detail)
    return bytes(trace_pb2.Span(status=status).SerializeToString())


def _attribute(key: str, value: str | bool | int) -> bytes:
    """Return an encoded span with this attribute only."""
    if type(value) is int and value >= 1 << 14:  # large numbers rarely repeat, so caching them would not help
        number = _varint(value)
        return _number(key, len(number)) + number
    return _attribute_of(key, value)


@lru_cache(maxsize=1024)
def _number(key: str, length: int) -> bytes:
    """Return the encoded start of an attribute whose value is a number encoded in `length` bytes."""
    # The number is the last field of each message around it, so cutting it off the end leaves the start.
    of_length = trace_pb2.Span(attributes=[KeyValue(key=key, value=AnyValue(int_value=1 << 7 * (length - 1)))])
    return bytes(of_length.SerializeToString())[:-length]


@lru_cache(maxsize=4096, typed=True)
def _attribute_of(key: str, value: str | bool | int) -> bytes:
    if isinstance(value, str):
        encoded = AnyValue(string_value=value)
    elif isinstance(value, bool):
        encoded = AnyValue(bool_value=value)
    else:
        encoded = AnyValue(int_value=value)
    return bytes(trace_pb2.Span(attributes=[KeyValue(key=key, value=encoded)]).SerializeToString())
