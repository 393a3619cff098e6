"""Export spans with OpenTelemetry's SDK: a bounded queue, and a thread of the SDK that exports batches.

The SDK drops spans silently when its queue is full, and does not count failed exports. Both are counted here from the
outside, by the number of spans that were queued and the number that the exporter has finished with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from router_trio.errors.quotes import REDACTED, redact, text_of_error
from router_trio.telemetry.traces.spans import MAX_QUEUED, MessageSpan

SCOPE = "router_trio"
"""The instrumentation scope of the spans."""

_logger = logging.getLogger("router_trio.telemetry")
_READERS_OF_VARIABLES = (
    "opentelemetry.util.re",
    "opentelemetry.sdk.resources",
    "opentelemetry.exporter.otlp.proto.http._common",
)
_EXPORTERS = ("opentelemetry.exporter.otlp.common.http", "opentelemetry.exporter.otlp.proto.http.trace_exporter")

MAX_BATCH = 512

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_KINDS = {"CONSUMER": SpanKind.CONSUMER, "PRODUCER": SpanKind.PRODUCER}

Readable = Callable[[MessageSpan], ReadableSpan]
"""Converts a span of a message to a span of the SDK."""


def all_readable(spans: Sequence[ReadableSpan | MessageSpan], readable: Readable) -> list[ReadableSpan]:
    """Return all spans as spans of the SDK."""
    return [readable(span) if isinstance(span, MessageSpan) else span for span in spans]


@runtime_checkable
class MessageExporter(Protocol):
    """An exporter that accepts spans of messages without conversion."""

    def export_with(self, spans: Sequence[ReadableSpan | MessageSpan], readable: Readable) -> SpanExportResult:
        """Export spans as `SpanExporter.export` does."""
        ...


class Pipeline:
    """A tracer provider whose spans all reach `exporter` or are counted in `dropped`. Starts the SDK's thread."""

    def __init__(self, exporter: SpanExporter, service_name: str, version: str) -> None:
        self._exporter = _CountingExporter(exporter, self._readable)
        self._processor = _CountingProcessor(self._exporter)
        # Always on: sampling is decided before a span is started.
        self.provider: TracerProvider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": service_name, "service.version": version}),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(self._processor)
        self._scope = InstrumentationScope(SCOPE, version)

    def take_span(self, span: MessageSpan) -> None:
        """Queue an ended span of a message for export."""
        # Of a queued span the SDK reads only whether its context is sampled.
        self._processor.on_end(cast(ReadableSpan, span))

    def _readable(self, span: MessageSpan) -> ReadableSpan:
        trace_id, span_id, _ = span.context
        form, parent = span.form, span.parent
        return ReadableSpan(
            form.name,
            context=SpanContext(trace_id, span_id, False, _SAMPLED),
            # The parent of a CONSUMER span is remote: the sender's. The parent of a PRODUCER span is the CONSUMER span.
            parent=None
            if parent is None
            else SpanContext(trace_id, parent[1], form.kind == "CONSUMER", TraceFlags(parent[2])),
            resource=self.provider.resource,
            attributes={**form.attributes, **span.attributes},
            kind=_KINDS[form.kind],
            status=_UNSET if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=self._scope,
        )

    @property
    def dropped(self) -> int:
        """Number of spans dropped because the queue was full or their export failed."""
        return self._processor.refused + self._exporter.failed

    def interrupt(self) -> None:
        """Abort an export that is waiting to retry. Spans that are still queued count as dropped."""
        self._exporter.shutdown()


class _CountingExporter(SpanExporter):
    def __init__(self, exporter: SpanExporter, readable: Readable) -> None:
        self._exporter = exporter
        self._readable = readable
        self._closed = False
        # Both are written by the exporting thread only.
        self.answered = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if not self._closed:
                result = self._export(spans)
            return result
        except Exception as error:
            # The SDK would log the full error, whose text may contain a header of OTEL_EXPORTER_OTLP_HEADERS.
            _logger.warning("spans could not be exported: %s", type(error).__qualname__)
            return SpanExportResult.FAILURE
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
            self.answered += len(spans)

    def _export(self, spans: Sequence[ReadableSpan | MessageSpan]) -> SpanExportResult:
        if isinstance(self._exporter, MessageExporter):
            return self._exporter.export_with(spans, self._readable)
        return self._exporter.export(all_readable(spans, self._readable))

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _CountingProcessor(BatchSpanProcessor):
    def __init__(self, exporter: _CountingExporter) -> None:
        super().__init__(exporter, max_queue_size=MAX_QUEUED, max_export_batch_size=MAX_BATCH)
        self._counting = exporter
        self._taken = 0
        self.refused = 0

    def on_end(self, span: ReadableSpan) -> None:
        if self._taken - self._counting.answered >= MAX_QUEUED:
            self.refused += 1
        else:
            self._taken += 1
            super().on_end(span)


class _Unquoted(logging.Filter):
    """Redacts the arguments of a log record that quote an environment variable, which may contain a secret."""

    def __init__(self, quoting: type | tuple[type, ...]) -> None:
        """`quoting` are the types of the arguments to redact."""
        super().__init__()
        self._quoting = quoting

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(self._unquoted, record.args))
        return True

    def _unquoted(self, argument: object) -> object:
        if isinstance(argument, self._quoting):
            return type(argument).__qualname__ if isinstance(argument, Exception) else REDACTED
        return redact(text_of_error(argument)) if isinstance(argument, Exception) else argument


_OF_READERS = _Unquoted((str, Exception))
_OF_EXPORTERS = _Unquoted(ValueError)
"""An invalid header raises a ValueError whose text contains the header."""


def redact_variables() -> None:
    """Make OpenTelemetry log the name, but not the value, of an environment variable that it can't use."""
    for names, unquoted in ((_READERS_OF_VARIABLES, _OF_READERS), (_EXPORTERS, _OF_EXPORTERS)):
        for name in names:
            logging.getLogger(name).addFilter(unquoted)  # no effect if the filter is there already
