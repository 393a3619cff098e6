"""The SDK's side of traces: spans go into a bounded queue, and a thread of the SDK exports them in batches.

The SDK lets spans go in silence when its queue is full, and counts a failed export nowhere. Here both are counted, from
the outside: how many spans went in, and how many the exporter has answered for.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

MAX_QUEUED = 2048
MAX_BATCH = 512


class Pipeline:
    """A provider whose spans all reach `exporter` or are counted in `dropped`. Starts the SDK's thread."""

    def __init__(self, exporter: SpanExporter, service_name: str, version: str) -> None:
        self._exporter = _CountingExporter(exporter)
        self._processor = _CountingProcessor(self._exporter)
        # Sampling is decided before a span is begun; whatever begins one wants it.
        self.provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": service_name, "service.version": version}),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(self._processor)
        self.ended = self._processor.on_end
        """Takes a span that no tracer of the provider has made."""

    @property
    def dropped(self) -> int:
        """Spans that found the queue full, or whose export failed."""
        return self._processor.refused + self._exporter.failed

    def interrupt(self) -> None:
        """Make an export that is waiting for its next try give up. What is still queued then counts as dropped."""
        self._exporter.shutdown()


class _CountingExporter(SpanExporter):
    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._closed = False
        # Each is written by one thread only, the exporting one.
        self.answered = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if not self._closed:
                result = self._exporter.export(spans)
            return result
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
            self.answered += len(spans)

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
