"""Decide which messages are traced, and export their spans.

Routing asks once per batch. That costs a look at the raw `traceparent` of each message with headers, and one step of a
counter for all messages without one. The SDK is called only for sampled messages. It is imported only if an endpoint is
configured, by the settings or by OpenTelemetry's environment variables, and not before `begin_export` is called: spans
that end earlier, and events of outages, wait for it. A thread of the SDK exports the spans.

If the collector is down or slow, spans are dropped and counted, but messages are never affected; the end of the router
is delayed by at most two seconds. Any sender can mark all its messages as sampled, and 1 % of the messages of a fast
route may be too many for a collector. So at most `max_per_second` messages of either kind are traced.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from math import inf, log, log1p
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING

import trio

from router_trio.events import ConnectionEvent, ConnectionLost, Event
from router_trio.protocol.framing import RawMessage, header_block, published
from router_trio.protocol.headers import END
from router_trio.protocol.metadata import package_version
from router_trio.telemetry.traces.current import attach_if_imported
from router_trio.telemetry.traces.spans import MAX_QUEUED, MessageSpan, MessageSpans
from router_trio.telemetry.traces.traceparent import TraceParent, is_unsampled, lookup, parse

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from router_trio.routing.tracing import Attach, Attributes, MessageTrace
    from router_trio.telemetry.traces.export import Pipeline
    from router_trio.telemetry.traces.outage import Outages

UNSAMPLED = TraceParent(0, 0, 0)
"""Stands for any parent whose sender does not record its span."""

SHUTDOWN_SECONDS = 2.0
INTERRUPT_SECONDS = 1.5
"""Seconds after which the exporter is stopped from retrying, so that its thread ends within `SHUTDOWN_SECONDS`."""

BURST_SECONDS = 10.0
"""Burst of the traces that the router starts, in seconds of `max_per_second`."""

_header_size = itemgetter(2)
_PART_OF_NAME = b"raceparent:"
"""The common part of `traceparent:` and `Traceparent:`."""

MAX_EARLY_EVENTS = 1000
"""Maximum number of events of outages that are kept until the SDK has been imported."""

_logger = logging.getLogger("router_trio.telemetry")

_TRACES_PATH = "/v1/traces"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def traces_wanted(endpoint: str) -> bool:
    """Return True if an endpoint for spans is configured, by the settings or by OpenTelemetry's variables."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return bool(endpoint or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES))


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return an OTLP/HTTP exporter for a base URL. If that is empty, OpenTelemetry's variables give the endpoint."""
    from router_trio.telemetry.traces.otlp import MessageSpanExporter

    url = endpoint.rstrip("/")
    if url and not url.endswith(_TRACES_PATH):
        url += _TRACES_PATH
    return MessageSpanExporter(endpoint=url or None)


class Traces:
    """The `Tracing` of one router, and the traces of its outages. Active only inside of `running`."""

    possible = True

    def __init__(
        self,
        *,
        service_name: str,
        endpoint: str = "",
        sample_ratio: float = 0.01,
        max_per_second: float = 100.0,
        exporter: Callable[[str], SpanExporter] = otlp_exporter,
        random: Random | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._service_name = service_name
        self._endpoint = endpoint
        self._exporter = exporter
        self._skip = _Skips(sample_ratio, random or Random())
        self._followed = TokenBucket(max_per_second, max_per_second, clock)
        # A ratio of 1 asks for every message, so the number is not limited then.
        self._begun = TokenBucket(max_per_second, max_per_second * BURST_SECONDS, clock) if sample_ratio < 1 else None
        self.not_followed: int = 0
        """Messages sampled by their sender but not traced, because there were more than `max_per_second`."""
        self.not_begun: int = 0
        """Messages chosen by `sample_ratio` but not traced, because there were more than `max_per_second`."""
        self._pipeline: Pipeline | None = None
        self._spans: MessageSpans | None = None
        self._outages: Outages | None = None
        self._early_spans: deque[MessageSpan] = deque()
        self._early_events: deque[Event] = deque(maxlen=MAX_EARLY_EVENTS)
        self._dropped = 0
        self.exports: trio.Event = trio.Event()
        """Set once spans are exported, or can't be. Spans that end earlier wait."""
        self.active: bool = False
        """True while spans are made: inside of `running`, unless the exporter can't be created."""

    @property
    def attach(self) -> Attach | None:
        """Return what `attach_if_imported` returns."""
        return attach_if_imported()

    @property
    def dropped(self) -> int:
        """Number of spans dropped because too many were queued or the collector did not accept them."""
        return self._dropped + (self._pipeline.dropped if self._pipeline is not None else 0)

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Return the indexes of the sampled messages of a batch.

        A message with a `traceparent` is sampled if the sampled bit is set: traces that the sender does not record are
        not continued, and of those that it records at most `max_per_second`. Of messages without a `traceparent`, the
        share `sample_ratio` starts a trace, at most `max_per_second` if the ratio is below 1. A batch without any
        headers costs one step of the counter.
        """
        if not self.active:
            return ()
        if not any(map(_header_size, batch)):
            return self.sampled_plain(len(batch))
        return self._among(_parent(raw) if raw[2] else None for raw in batch)

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Return the indexes of the sampled messages among `count` messages without a `traceparent`."""
        if not self.active:
            return ()
        chosen = self._skip.among(count)
        if not chosen or self._begun is None:
            return chosen
        begun = [index for index in chosen if self._begun.take()]
        self.not_begun += len(chosen) - len(begun)
        return begun

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Return the indexes of the sampled messages among PUB and HPUB frames, decided as by `sampled`."""
        if not self.active:
            return ()
        return self._among(_parent_of_frame(frame) for frame in frames)

    def _among(self, parents: Iterable[TraceParent | None]) -> list[int]:
        without, found = list[int](), list[int]()
        for index, parent in enumerate(parents):
            if parent is None:
                without.append(index)
            elif parent is not UNSAMPLED and self._follows():
                found.append(index)
        found += [without[at] for at in self.sampled_plain(len(without))]
        found.sort()
        return found

    def _follows(self) -> bool:
        if self._followed.take():
            return True
        self.not_followed += 1
        return False

    def begin(
        self,
        route: str,
        template: str,
        raw: RawMessage,
        *,
        source: Attributes = (),
        sequence: int | None = None,
        deliveries: int | None = None,
    ) -> MessageTrace | None:
        """Start the spans of a sampled message. Return None outside of `running`."""
        if self._spans is None:
            return None
        parent = _parent(raw) if raw[2] else None
        return self._spans.begin(
            route, template, raw[3] - raw[2], parent, source=source, sequence=sequence, deliveries=deliveries
        )

    def note_event(self, event: Event) -> tuple[str, str] | None:
        """Record an event. Return the trace id and span id of the outage that it belongs to, or None.

        The spans of an outage that begins before the SDK has been imported are started after the import. Until then
        its events have no ids.
        """
        if self._outages is not None:
            return self._outages.observe(event)
        if isinstance(event, ConnectionLost) or (self._early_events and isinstance(event, ConnectionEvent)):
            self._early_events.append(event)
        return None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make spans while this is entered. Leaving exports the remaining spans, within two seconds."""
        self._spans = MessageSpans(self._ended_early)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            self._spans = None
            await self._shut_down()

    async def begin_export(self, limiter: trio.CapacityLimiter | None = None) -> None:
        """Import the SDK, export the spans that have waited, and export spans from then on. Call it in `running` only.

        The import takes a moment. It runs in a thread, under `limiter`, so that messages are routed meanwhile.
        """
        # By default a limiter of our own: threads of the program may have used up Trio's. Not abandoned when cancelled.
        opened = await trio.to_thread.run_sync(self._opened, limiter=limiter or trio.CapacityLimiter(1))
        if opened is None:
            self.active = False
            self._dropped += len(self._early_spans)
        else:
            self._pipeline, self._outages = opened
            if self._spans is not None:
                self._spans.pass_to(self._pipeline.take_span)
            for span in self._early_spans:
                self._pipeline.take_span(span)
            for event in self._early_events:
                self._outages.observe(event)
        self._early_spans.clear()
        self._early_events.clear()
        self.exports.set()

    # --- inside ---

    def _ended_early(self, span: MessageSpan) -> None:
        if self.active and len(self._early_spans) < MAX_QUEUED:
            self._early_spans.append(span)
        else:
            self._dropped += 1

    def _opened(self) -> tuple[Pipeline, Outages] | None:
        """Return the pipeline that exports spans, and the traces of outages. Runs in a thread.

        Logs an error and returns None if the exporter can't be created.
        """
        from router_trio.telemetry.traces.export import SCOPE, Pipeline, redact_variables
        from router_trio.telemetry.traces.outage import Outages

        redact_variables()
        try:
            pipeline = Pipeline(self._exporter(self._endpoint), self._service_name, package_version())
        except Exception as error:
            # The text of the error is not logged: it may quote an environment variable.
            _logger.error(
                "no spans are exported: OpenTelemetry's exporter can't be created (%s); correct otlp_endpoint, or the "
                "variables OTEL_EXPORTER_OTLP_...",
                type(error).__qualname__,
            )
            return None
        return pipeline, Outages(pipeline.provider.get_tracer(SCOPE, package_version()))

    async def _shut_down(self) -> None:
        with trio.move_on_after(SHUTDOWN_SECONDS, shield=True):
            if self._early_spans or self._early_events:
                await self.begin_export()
            if self._outages is not None:
                self._outages.close()
            if self._pipeline is not None:
                await _export_rest(self._pipeline)


async def _export_rest(pipeline: Pipeline) -> None:
    with trio.move_on_after(SHUTDOWN_SECONDS, shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupt_later, pipeline)
            await trio.to_thread.run_sync(
                pipeline.provider.shutdown, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
            nursery.cancel_scope.cancel()
    pipeline.interrupt()


async def _interrupt_later(pipeline: Pipeline) -> None:
    await trio.sleep(INTERRUPT_SECONDS)
    pipeline.interrupt()


def _parent(raw: RawMessage) -> TraceParent | None:
    """Return the parent in a message's `traceparent`: `UNSAMPLED` if it is not sampled, None without a valid header."""
    _, _, header_size, size, tail = raw
    # Most messages with headers have no `traceparent`, which this detects without slicing the block out of the frame.
    if tail.find(_PART_OF_NAME, 0, len(tail) - 2 - size + header_size) < 0:
        return None
    value = lookup(header_block(raw))
    if value is None:
        return None
    if is_unsampled(value):
        return UNSAMPLED
    parent = parse(value)
    return UNSAMPLED if parent is not None and not parent.sampled else parent


def _parent_of_frame(frame: bytes) -> TraceParent | None:
    """Return the same as `_parent` for a PUB or HPUB frame."""
    if not frame.startswith(b"H") or frame.find(_PART_OF_NAME, 0, frame.find(END)) < 0:
        return None
    return _parent(published(frame))


class TokenBucket:
    """A token bucket: allows `rate` per second and bursts of `burst`, so at most burst + rate x t in any time t.

    `clock` returns monotonic seconds. It is not called before the first `take`.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_seen_at")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._seen_at: float | None = None

    def take(self) -> bool:
        """Take a token and return True; return False if there is none."""
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def take_up_to(self, count: int) -> int:
        """Take up to `count` tokens, as many as there are, and return their number."""
        self._refill()
        taken = int(min(count, self._left))
        self._left -= taken
        return taken

    def _refill(self) -> None:
        now = self._clock()
        if self._seen_at is not None:
            self._left = min(self._burst, self._left + (now - self._seen_at) * self._rate)
        self._seen_at = now


class _Skips:
    """Samples a share of messages at random, with one random number per sampled message.

    The number of messages to skip before the next sampled one is drawn from the geometric distribution, which is
    equivalent to one random decision per message.
    """

    __slots__ = ("_left", "_log_of_rest", "_random")

    def __init__(self, ratio: float, random: Random) -> None:
        self._random = random
        if ratio <= 0:
            self._log_of_rest = 0.0
        else:
            self._log_of_rest = -inf if ratio >= 1 else log1p(-ratio)
        self._left = self._draw()

    def among(self, count: int) -> list[int]:
        """Return the indexes of the sampled messages among the next `count`."""
        found = []
        at = self._left
        while at < count:
            found.append(int(at))
            at += 1 + self._draw()
        self._left = at - count
        return found

    def _draw(self) -> float:
        if self._log_of_rest == 0.0:
            return inf
        return log(1 - self._random.random()) // self._log_of_rest
