"""Make a trace of each outage, from the events of its connection.

A span `nats outage` lasts from the loss to the reconnect, or until the operations kept through the outage have been
sent, with an event for each attempt and for the reconnect. Its child span `drain` is the time for sending them. Outages
are rare and important, so they are always sampled. The log line of an event has the ids of the span that the event
belongs to.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from router_trio.events import (
    ConnectionEvent,
    ConnectionFailed,
    ConnectionLost,
    ConnectionRestored,
    Event,
    ReconnectAttempt,
    ReconnectExhausted,
    RetryComplete,
    RetryPending,
)
from router_trio.telemetry.logs.redact import shown_text
from router_trio.telemetry.traces.spans import SYSTEM, error_text

OUTAGE = "nats outage"
DRAIN = "drain"


class Outages:
    """The outages of all connections. Call `observe` with every event, in order. Needs no clock and never blocks."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._outages: dict[str, Span] = {}
        self._drains: dict[str, Span] = {}
        # The parents of drains, which may begin after their outage span has ended.
        self._parents: dict[str, Context] = {}

    def observe(self, event: Event) -> tuple[str, str] | None:
        """Record an event. Return the trace id and span id of the span that it belongs to, or None."""
        if not isinstance(event, ConnectionEvent):
            return None
        before = self._current(event.connection)
        match event:
            case ConnectionLost():
                self._lost(event)
            case ReconnectAttempt() | ConnectionFailed() | ReconnectExhausted():
                self._attempt(event)
            case ConnectionRestored():
                self._restored(event)
            case RetryPending():
                self._drain(event)
            case RetryComplete():
                self._drained(event)
        begins = before is None or isinstance(event, ConnectionLost | RetryPending)
        span = self._current(event.connection) if begins else before
        return _ids(span) if span is not None else None

    def close(self) -> None:
        """End all open spans as failed, because the router stops during an outage."""
        for span in (*self._drains.values(), *self._outages.values()):
            _fail(span, "router_stopped", "the router stopped before it was over")
            span.end()
        self._outages.clear()
        self._drains.clear()

    # --- inside ---

    def _current(self, connection: str) -> Span | None:
        return self._drains.get(connection) or self._outages.get(connection)

    def _lost(self, event: ConnectionLost) -> None:
        for open_spans in (self._drains, self._outages):
            interrupted = open_spans.pop(event.connection, None)
            if interrupted is not None:
                _fail(interrupted, event.reason, "the connection was lost again")
                interrupted.end()
        span = self._tracer.start_span(
            OUTAGE,
            context=Context(),
            kind=SpanKind.INTERNAL,
            attributes={
                SYSTEM[0]: SYSTEM[1],
                "router.connection": event.connection,
                "server.address": shown_text(event.server),
                "router.outage.reason": event.reason,
                "router.pending_count": event.pending_count,
            },
        )
        self._outages[event.connection] = span
        self._parents[event.connection] = set_span_in_context(span, Context())

    def _attempt(self, event: ReconnectAttempt | ConnectionFailed | ReconnectExhausted) -> None:
        span = self._outages.get(event.connection)
        if span is None:
            return
        attributes = {name: value for name, value in event.details() if name not in ("connection", "detail")}
        if "server" in attributes:
            attributes["server.address"] = shown_text(attributes.pop("server"))
        match event:
            case ReconnectAttempt():
                span.add_event("reconnect attempt", attributes)
            case ConnectionFailed():
                span.add_event("attempt failed", {**attributes, "detail": shown_text(event.detail)})
            case ReconnectExhausted():
                span.add_event("attempts exhausted", attributes)
                if event.action == "stop":
                    _fail(span, "reconnect_exhausted", f"gave up after {event.reconnect_attempts} attempts")
                    span.end()
                    del self._outages[event.connection]

    def _restored(self, event: ConnectionRestored) -> None:
        span = self._outages.get(event.connection)
        if span is None:
            return
        span.set_attribute("router.outage.seconds", event.outage_seconds)
        span.set_attribute("router.reconnect_attempts", event.reconnect_attempts)
        span.add_event("restored")
        # With pending operations the span stays open for its child `drain`: viewers take a span that ended before its
        # child for clock skew.
        if not event.pending_count:
            self._over(event.connection)

    def _drain(self, event: RetryPending) -> None:
        interrupted = self._drains.pop(event.connection, None)
        if interrupted is not None:
            _fail(interrupted, "interrupted", "another drain began")
            interrupted.end()
        self._drains[event.connection] = self._tracer.start_span(
            DRAIN,
            context=self._parents.get(event.connection, Context()),
            kind=SpanKind.INTERNAL,
            attributes={
                SYSTEM[0]: SYSTEM[1],
                "router.connection": event.connection,
                "router.pending_count": event.pending_count,
            },
        )

    def _drained(self, event: RetryComplete) -> None:
        span = self._drains.pop(event.connection, None)
        if span is None:
            return
        span.set_attribute("router.success_count", event.success_count)
        span.set_attribute("router.failed_count", event.failed_count)
        if event.failed_count:
            _fail(span, "retry_failed", f"{event.failed_count} operations could not be delivered")
        span.end()
        self._over(event.connection)

    def _over(self, connection: str) -> None:
        span = self._outages.pop(connection, None)
        if span is not None:
            span.end()


def _ids(span: Span) -> tuple[str, str]:
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def _fail(span: Span, error_type: str, detail: str) -> None:
    # The SDK sets these only for exceptions that pass through a span.
    span.set_attribute("error.type", shown_text(error_type))
    span.set_status(Status(StatusCode.ERROR, error_text(detail)))
