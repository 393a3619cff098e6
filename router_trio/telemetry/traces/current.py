"""Makes the span of a message OpenTelemetry's current one for the call of a handler.

Spans that a handler begins, itself or by instrumentation, are then its children. If the message is not sampled, the
span of its sender is current, also in a router that makes no spans. OpenTelemetry is not imported for this: as long as
nothing else has imported it, no handler can ask for the current span.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

from router_trio.protocol.framing import RawMessage, header_block
from router_trio.routing.tracing import NoTracing
from router_trio.telemetry.traces.traceparent import lookup, parse

if TYPE_CHECKING:
    from router_trio.routing.tracing import Attach, MessageTrace

_API = "opentelemetry.trace"


def attach_if_imported() -> Attach | None:
    """Return what makes a span current, for `Tracing.attach`; None while OpenTelemetry's API is not imported."""
    api = sys.modules.get(_API)
    # While another thread imports it, importing it here would wait for that, and block the event loop.
    if api is None or getattr(getattr(api, "__spec__", None), "_initializing", False):
        return None
    return _attach()


class NoSpans(NoTracing):
    """Samples nothing. Handlers have the span of the sender as the current one."""

    @property
    def attach(self) -> Attach | None:  # type: ignore[override]
        """Return what `attach_if_imported` returns."""
        return attach_if_imported()


@cache
def _attach() -> Attach:
    from opentelemetry.context import attach
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    def attach_span(raw: RawMessage, trace: MessageTrace | None) -> None:
        ids = own = None if trace is None else trace.process
        if own is None and raw[2] and (value := lookup(header_block(raw))) is not None:
            ids = parse(value)
        if ids is not None:
            trace_id, span_id, flags = ids
            span = SpanContext(trace_id, span_id, is_remote=own is None, trace_flags=TraceFlags(flags))
            attach(set_span_in_context(NonRecordingSpan(span)))

    return attach_span
