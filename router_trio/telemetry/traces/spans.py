"""The spans of one sampled message: `process ROUTE`, and `send TEMPLATE` for each destination.

Names and attributes follow OpenTelemetry's semantic conventions for messaging,
https://opentelemetry.io/docs/specs/semconv/messaging/. NATS attributes that they do not define are named
`messaging.nats.*`. Names contain the template of a subject, never a raw subject. Contexts are passed explicitly, never
through context variables, so a span can't become the child of an unrelated span of its task. Calls of handlers have
the span of their message as OpenTelemetry's current one: see `current`.

If every message is traced, spans are most of the cost of a message. So a span consists of plain fields: those that it
shares with all spans of its route, which are created once, and its own. It is encoded from these fields (see `otlp`),
and converted to an object of the SDK only for other exporters. The SDK's own open spans have locks, may be written to
from anywhere and take four times as long. So this module does not need the SDK, which is imported after the first
messages have been routed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import getrandbits
from typing import TYPE_CHECKING, Any, Literal

from router_trio.errors.quotes import bounded, excerpt
from router_trio.message import Fate
from router_trio.states import NANO, Exemplar
from router_trio.telemetry.logs.redact import shown_text
from router_trio.telemetry.traces.traceparent import SAMPLED, TraceParent, write

if TYPE_CHECKING:
    from router_trio.routing.tracing import Attributes

SYSTEM = ("messaging.system", "nats")
SIZE = "messaging.message.body.size"

MAX_QUEUED = 2048
"""Maximum number of ended spans that wait for the import of the SDK, and later of those that wait for their export."""

Kind = Literal["CONSUMER", "PRODUCER"]
"""The kind of a span, as OpenTelemetry names it."""


MAX_FORMS = 4096
"""Maximum number of cached span forms. A route has two, and one more for each further destination."""


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
    """A span of a message. It belongs to the trace of its parent, or starts a trace if it has none.

    `attributes` are those besides the form's: strings, integers and booleans.
    """

    __slots__ = ("attributes", "context", "end_time", "error", "form", "parent", "start_time")

    end_time: int

    def __init__(self, form: SpanForm, parent: TraceParent | None, attributes: dict[str, Any]) -> None:
        self.form: SpanForm = form
        self.parent: TraceParent | None = parent
        self.attributes: dict[str, Any] = attributes
        self.error: str | None = None
        """Why the operation of the span failed, or None."""
        trace_id = (getrandbits(128) or 1) if parent is None else parent.trace_id
        self.context: TraceParent = TraceParent(trace_id, getrandbits(64) or 1, SAMPLED)
        self.start_time: int = time.time_ns()

    def mark_failed(self, error_type: str, detail: str) -> None:
        """Record that the operation of the span failed."""
        self.attributes["error.type"] = shown_text(error_type)
        self.error = error_text(detail)


class MessageSpans:
    """Starts the traces of sampled messages. `ended` is called with each span when it has ended."""

    def __init__(self, ended: Callable[[MessageSpan], None]) -> None:
        self._take: Callable[[MessageSpan], None] = ended

    def pass_to(self, take: Callable[[MessageSpan], None]) -> None:
        """Pass each span that ends from now on to `take`."""
        self._take = take

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
        """Start `process ROUTE`, as a child of `parent` or as the root of a trace.

        `source` are the attributes that name the route's source.
        """
        attributes = {SIZE: size}
        if deliveries is not None:
            attributes["messaging.nats.delivery_count"] = deliveries
        if sequence is not None:
            attributes["messaging.nats.sequence"] = sequence
        return SpansOfMessage(self, MessageSpan(_process(route, template, source), parent, attributes))

    def end_span(self, span: MessageSpan) -> None:
        """End a span now."""
        span.end_time = time.time_ns()
        self._take(span)


class SpansOfMessage:
    """The spans of one message, from `MessageSpans.begin` to `end`."""

    __slots__ = ("_failure", "_process", "_sends", "_spans")

    def __init__(self, spans: MessageSpans, process: MessageSpan) -> None:
        self._spans = spans
        self._process = process
        self._sends: list[tuple[str, MessageSpan]] = []
        self._failure: tuple[str, str] | None = None

    @property
    def process(self) -> TraceParent:
        """The ids of the span `process ROUTE`."""
        return self._process.context

    def send(self, destination: str, connection: str, size: int) -> bytes:
        """Start `send DESTINATION`. Return the `traceparent` that makes the receiver's span a child of it."""
        span = MessageSpan(_send(destination, connection), self._process.context, {SIZE: size})
        self._sends.append((destination, span))
        return write(*span.context)

    def sent(self, destination: str, fate: Fate) -> None:
        """End the oldest open span to this destination, with the fate of its publish."""
        found = next((one for one in self._sends if one[0] == destination), None)
        if found is None:
            return
        self._sends.remove(found)
        span = found[1]
        span.attributes["router.fate"] = fate.name
        if fate.stream is not None:
            # From the answer, which any client that may publish to the router's inbox can forge.
            span.attributes["messaging.nats.stream"] = excerpt(fate.stream)
        if fate.sequence is not None:
            span.attributes["messaging.nats.sequence"] = fate.sequence
        if fate.duplicate:
            span.attributes["messaging.nats.duplicate"] = True
        if not fate.delivered:
            outcome = f"{fate.name} at {destination}"
            self._fail(span, fate.reason or fate.name, f"{outcome}: {fate.detail}" if fate.detail else outcome)
        self._spans.end_span(span)

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """End the newest open span to this destination as failed, because its publish was not accepted."""
        found = next((one for one in reversed(self._sends) if one[0] == destination), None)
        if found is None:
            return
        self._sends.remove(found)
        self._fail(found[1], reason, detail)
        self._spans.end_span(found[1])

    def failed(self, error_type: str, detail: str) -> None:
        """Record that the message failed in the router, for `process` when it ends."""
        self._failure = (error_type, detail)

    def end(self, seconds: float) -> Exemplar:
        """End `process`, and end as failed the sends that have no fate yet. Return the exemplar of `seconds`."""
        for destination, span in self._sends:
            self._fail(span, "unsettled", f"no fate at {destination} when the message ended")
            self._spans.end_span(span)
        self._sends.clear()
        if self._failure is not None:
            self._process.mark_failed(*self._failure)
        self._spans.end_span(self._process)
        return Exemplar(f"{self._process.context.trace_id:032x}", seconds, self._process.end_time / NANO)

    def settled(self, fate: str, failure: object) -> None:
        """Do nothing: the spans have ended."""

    def _fail(self, span: MessageSpan, error_type: str, detail: str) -> None:
        span.mark_failed(error_type, detail)
        if self._failure is None:
            self._failure = (error_type, detail)


def error_text(detail: str) -> str:
    """Return the text of a failure for a span: redacted, bounded and valid UTF-8."""
    # The text of a handler's error may not be encodable as UTF-8, and would fail the export of its entire batch.
    return shown_text(bounded(detail).encode("utf-8", "replace").decode())
