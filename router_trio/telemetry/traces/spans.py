"""The spans of one sampled message: `process ROUTE`, and `send TEMPLATE` for each destination.

Names and attributes follow OpenTelemetry's semantic conventions for messaging,
https://opentelemetry.io/docs/specs/semconv/messaging/. What NATS has and they do not name is under `messaging.nats.`.
Templates stand where a subject would: a raw subject is never a name. Contexts are passed by hand, never through context
variables, so a span can't become the child of what its task happened to do before.

Where every message is traced, spans are most of what a message costs. So one is plain fields here:
what it has in common with all others of its route, made once, and what is its own. It is encoded from them (see
`otlp`), and becomes one of the SDK's objects only for another exporter than that: the SDK's own open spans, which have
locks and may be written to by anybody, take four times as long. So nothing here needs the SDK, which is imported when
the first messages are routed already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import getrandbits
from typing import TYPE_CHECKING, Any, Literal

from router_trio.errors.quotes import bounded, excerpt
from router_trio.message import Fate
from router_trio.telemetry.logs.redact import shown_text
from router_trio.telemetry.traces.traceparent import SAMPLED, TraceParent, write

if TYPE_CHECKING:
    from router_trio.routing.tracing import Attributes

SYSTEM = ("messaging.system", "nats")
SIZE = "messaging.message.body.size"

MAX_QUEUED = 2048
"""Spans that have ended and wait: for the SDK to be imported, and then for their export."""

Kind = Literal["CONSUMER", "PRODUCER"]
"""Of a span, as OpenTelemetry names it."""


MAX_FORMS = 4096
"""Forms of spans that are remembered: two for each route, and one more for each of its further destinations."""


class SpanForm:
    """The attributes that all spans of one route's messages, or of their sends to one destination, share."""

    __slots__ = ("attributes", "kind", "name")

    def __init__(self, name: str, kind: Kind, operation: str, template: str, **attributes: str) -> None:
        self.name: str = name
        self.kind: Kind = kind
        self.attributes: Mapping[str, str] = {
            SYSTEM[0]: SYSTEM[1],
            "messaging.operation.type": operation,
            "messaging.operation.name": operation,
            "messaging.destination.name": template,
            "messaging.destination.template": template,
            **attributes,
        }


@lru_cache(maxsize=MAX_FORMS)
def _process(route: str, template: str, source: Attributes) -> SpanForm:
    named = {name: excerpt(value) for name, value in source}
    return SpanForm(f"process {route}", "CONSUMER", "process", template, **{"router.route": route}, **named)


@lru_cache(maxsize=MAX_FORMS)
def _send(destination: str, connection: str) -> SpanForm:
    return SpanForm(f"send {destination}", "PRODUCER", "send", destination, **{"router.connection": connection})


class MessageSpan:
    """A span of a message. It is of the trace of its parent, or begins one.

    Its own attributes are strings, integers and booleans.
    """

    __slots__ = ("attributes", "context", "end_time", "error", "form", "parent", "start_time")

    end_time: int

    def __init__(self, form: SpanForm, parent: TraceParent | None, attributes: dict[str, Any]) -> None:
        self.form: SpanForm = form
        self.parent: TraceParent | None = parent
        self.attributes: dict[str, Any] = attributes
        self.error: str | None = None
        """Why what the span is about has failed, or None."""
        trace_id = (getrandbits(128) or 1) if parent is None else parent.trace_id
        self.context: TraceParent = TraceParent(trace_id, getrandbits(64) or 1, SAMPLED)
        self.start_time: int = time.time_ns()

    def mark_failed(self, error_type: str, detail: str) -> None:
        """Record that the operation of the span failed."""
        self.attributes["error.type"] = shown_text(error_type)
        self.error = error_text(detail)


class MessageSpans:
    """Begins the traces of messages that are sampled. `ended` takes each span when it has ended."""

    def __init__(self, ended: Callable[[MessageSpan], None]) -> None:
        self.ended: Callable[[MessageSpan], None] = ended

    def begin(
        self,
        route: str,
        template: str,
        size: int,
        parent: TraceParent | None,
        *,
        source: Attributes,
        sequence: int | None,
        deliveries: int | None,
    ) -> SpansOfMessage:
        """Begin `process ROUTE`, as a child of `parent` or as the root of a trace. `source` names the source."""
        attributes = {SIZE: size}
        if deliveries is not None:
            attributes["messaging.nats.delivery_count"] = deliveries
        if sequence is not None:
            attributes["messaging.nats.sequence"] = sequence
        return SpansOfMessage(self, MessageSpan(_process(route, template, source), parent, attributes))

    def end_span(self, span: MessageSpan) -> None:
        """A span has ended now."""
        span.end_time = time.time_ns()
        self.ended(span)


class SpansOfMessage:
    """The spans of one message, from `MessageSpans.begin` to `end`."""

    __slots__ = ("_failure", "_process", "_sends", "_spans")

    def __init__(self, spans: MessageSpans, process: MessageSpan) -> None:
        self._spans = spans
        self._process = process
        self._sends: list[tuple[str, MessageSpan]] = []
        self._failure: tuple[str, str] | None = None

    def send(self, destination: str, connection: str, size: int) -> bytes:
        """Begin `send DESTINATION` and return the `traceparent` that makes its receiver a child of it."""
        span = MessageSpan(_send(destination, connection), self._process.context, {SIZE: size})
        self._sends.append((destination, span))
        return write(*span.context)

    def sent(self, destination: str, fate: Fate) -> None:
        """End the oldest open span to that destination, with its fate."""
        found = next((one for one in self._sends if one[0] == destination), None)
        if found is None:
            return
        self._sends.remove(found)
        span = found[1]
        span.attributes["router.fate"] = fate.name
        if fate.stream is not None:
            # As the answer says it; whoever may publish to our inbox can write one.
            span.attributes["messaging.nats.stream"] = excerpt(fate.stream)
        if fate.sequence is not None:
            span.attributes["messaging.nats.sequence"] = fate.sequence
        if fate.duplicate:
            span.attributes["messaging.nats.duplicate"] = True
        if not fate.delivered:
            told = f"{fate.name} at {destination}"
            self._fail(span, fate.reason or fate.name, f"{told}: {fate.detail}" if fate.detail else told)
        self._spans.end_span(span)

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """End the newest open span to that destination: its operation was never accepted."""
        found = next((one for one in reversed(self._sends) if one[0] == destination), None)
        if found is None:
            return
        self._sends.remove(found)
        self._fail(found[1], reason, detail)
        self._spans.end_span(found[1])

    def failed(self, error_type: str, detail: str) -> None:
        """The message failed in the router; what `process` says when it ends."""
        self._failure = (error_type, detail)

    def end(self) -> None:
        """End `process`, and as failures the sends that have no fate."""
        for destination, span in self._sends:
            self._fail(span, "unsettled", f"no fate at {destination} when the message ended")
            self._spans.end_span(span)
        self._sends.clear()
        if self._failure is not None:
            self._process.mark_failed(*self._failure)
        self._spans.end_span(self._process)

    def _fail(self, span: MessageSpan, error_type: str, detail: str) -> None:
        span.mark_failed(error_type, detail)
        if self._failure is None:
            self._failure = (error_type, detail)


def error_text(detail: str) -> str:
    """Return the text of a failure as a span may show it."""
    # What a message made a handler say may be no UTF-8, and would cost every span that is exported with its own.
    return shown_text(bounded(detail).encode("utf-8", "replace").decode())
