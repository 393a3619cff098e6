"""The spans of one sampled message: `process ROUTE`, and `send TEMPLATE` for each destination.

Names and attributes follow OpenTelemetry's semantic conventions for messaging,
https://opentelemetry.io/docs/specs/semconv/messaging/. What NATS has and they do not name is under `messaging.nats.`.
Templates stand where a subject would: a raw subject is never a name. Contexts are passed by hand, never through context
variables, so a span can't become the child of what its task happened to do before.
"""

from __future__ import annotations

from collections import deque

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from router_trio.message import Fate
from router_trio.telemetry.traceparent import TraceParent, write

SYSTEM = ("messaging.system", "nats")


class MessageSpans:
    """Begins the traces of messages that are sampled."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(
        self,
        route: str,
        template: str,
        size: int,
        parent: TraceParent | None,
        *,
        stream: str | None,
        sequence: int | None,
        deliveries: int,
    ) -> SpansOfMessage:
        """Begin `process ROUTE`, as a child of `parent` or as the root of a trace."""
        attributes: dict[str, str | int] = {
            SYSTEM[0]: SYSTEM[1],
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": template,
            "messaging.destination.template": template,
            "messaging.message.body.size": size,
            "router.route": route,
        }
        if stream is not None:
            attributes["messaging.nats.stream"] = stream
            attributes["messaging.nats.delivery_count"] = deliveries
        if sequence is not None:
            attributes["messaging.nats.sequence"] = sequence
        span = self._tracer.start_span(
            f"process {route}", context=_context_of(parent), kind=SpanKind.CONSUMER, attributes=attributes
        )
        return SpansOfMessage(self._tracer, span)


class SpansOfMessage:
    """One message's spans, from `MessageSpans.begin` to `end`."""

    __slots__ = ("_context", "_failure", "_process", "_sends", "_tracer")

    def __init__(self, tracer: Tracer, process: Span) -> None:
        self._tracer = tracer
        self._process = process
        self._context = set_span_in_context(process, Context())
        self._sends: dict[str, deque[Span]] = {}
        self._failure: tuple[str, str] | None = None

    def send(self, destination: str, connection: str, size: int) -> bytes:
        """Begin `send DESTINATION` and return the `traceparent` that makes its receiver a child of it."""
        span = self._tracer.start_span(
            f"send {destination}",
            context=self._context,
            kind=SpanKind.PRODUCER,
            attributes={
                SYSTEM[0]: SYSTEM[1],
                "messaging.operation.type": "send",
                "messaging.operation.name": "send",
                "messaging.destination.name": destination,
                "messaging.destination.template": destination,
                "messaging.message.body.size": size,
                "router.connection": connection,
            },
        )
        self._sends.setdefault(destination, deque()).append(span)
        context = span.get_span_context()
        return write(context.trace_id, context.span_id, context.trace_flags)

    def sent(self, destination: str, fate: Fate) -> None:
        """End the oldest open span to that destination, with its fate."""
        waiting = self._sends.get(destination)
        if not waiting:
            return
        span = waiting.popleft()
        span.set_attribute("router.fate", fate.name)
        if fate.stream is not None:
            span.set_attribute("messaging.nats.stream", fate.stream)
        if fate.sequence is not None:
            span.set_attribute("messaging.nats.sequence", fate.sequence)
        if fate.duplicate:
            span.set_attribute("messaging.nats.duplicate", True)
        if not fate.delivered:
            self._fail(span, fate.reason or fate.name, f"{fate.name} at {destination}")
        span.end()

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """End the newest open span to that destination: its operation was never accepted."""
        waiting = self._sends.get(destination)
        if not waiting:
            return
        span = waiting.pop()
        self._fail(span, reason, detail)
        span.end()

    def failed(self, error_type: str, detail: str) -> None:
        """The message failed in the router; what `process` says when it ends."""
        self._failure = (error_type, detail)

    def end(self) -> None:
        """End `process`, and as failures the sends that have no fate."""
        for destination, waiting in self._sends.items():
            for span in waiting:
                self._fail(span, "unsettled", f"no fate at {destination} when the message ended")
                span.end()
        self._sends.clear()
        if self._failure is not None:
            fail(self._process, *self._failure)
        self._process.end()

    def _fail(self, span: Span, error_type: str, detail: str) -> None:
        fail(span, error_type, detail)
        if self._failure is None:
            self._failure = (error_type, detail)


def fail(span: Span, error_type: str, detail: str) -> None:
    """Mark a span as failed: the SDK does that only for exceptions that pass through it."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, detail))


def _context_of(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    remote = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(remote), Context())
