"""Decides which messages are traced, and owns what exports their spans.

Routing asks once a batch. The answer costs a look at the raw `traceparent` of each message that has headers, and for
all those without one a step of a counter; the SDK is called only for what is sampled. It is imported only when an
endpoint is configured, by the settings or by OpenTelemetry's own variables, and not before `begin_export` is called:
spans that end before that wait, and so do the events of an outage. Export happens in a thread of the SDK.
A collector that is down or slow costs spans, which are counted, and never a message; it delays the end by two seconds
at most. Whoever may publish can mark each of his messages as sampled, and a hundredth of a fast route's is more than a
collector wants: of either, `max_per_second` are traced.
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
from router_trio.telemetry.traces.spans import MAX_QUEUED, MessageSpan, MessageSpans
from router_trio.telemetry.traces.traceparent import TraceParent, lookup, parse, says_unsampled
from router_trio.telemetry.view import package_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from router_trio.routing.tracing import Attributes, MessageTrace
    from router_trio.telemetry.traces.export import Pipeline
    from router_trio.telemetry.traces.outage import Outages

UNSAMPLED = TraceParent(0, 0, 0)
"""Stands for any parent whose caller does not record its span."""

SHUTDOWN_SECONDS = 2.0
INTERRUPT_SECONDS = 1.5
"""When the exporter is told to stop trying, so that its thread has ended when the time is over."""

BURST_SECONDS = 10.0
"""Time over which the traces that the router begins are counted: so many seconds' worth may begin at once."""

_header_size = itemgetter(2)
_PART_OF_NAME = b"raceparent:"
"""Of `traceparent` and of `Traceparent`."""

MAX_EARLY_EVENTS = 1000
"""Events of outages that are kept until the SDK is there."""

_logger = logging.getLogger("router_trio.telemetry")

_TRACES_PATH = "/v1/traces"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def traces_wanted(endpoint: str) -> bool:
    """Return True if there is anywhere to send spans to: the settings' endpoint or OpenTelemetry's variables."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return bool(endpoint or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES))


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return the OTLP/HTTP exporter for a base URL; for an empty one OpenTelemetry's variables decide."""
    from router_trio.telemetry.traces.otlp import MessageSpanExporter

    url = endpoint.rstrip("/")
    if url and not url.endswith(_TRACES_PATH):
        url += _TRACES_PATH
    return MessageSpanExporter(endpoint=url or None)


class Traces:
    """The `Tracing` of one router, and the traces of its outages. Not active outside of `running`."""

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
        # Who asks for every message gets every message.
        self._begun = TokenBucket(max_per_second, max_per_second * BURST_SECONDS, clock) if sample_ratio < 1 else None
        self.not_followed: int = 0
        """Messages whose sender records their trace, and which were more than `max_per_second`."""
        self.not_begun: int = 0
        """Messages of the share `sample_ratio` that began no trace, since they were more than `max_per_second`."""
        self._pipeline: Pipeline | None = None
        self._spans: MessageSpans | None = None
        self._outages: Outages | None = None
        self._early_spans: deque[MessageSpan] = deque()
        self._early_events: deque[Event] = deque(maxlen=MAX_EARLY_EVENTS)
        self._dropped = 0
        self.exports: trio.Event = trio.Event()
        """Set when spans are exported: what ended before that has waited."""
        self.active: bool = False
        """Whether spans are made: an endpoint is configured, and this is running."""

    @property
    def dropped(self) -> int:
        """Spans that were let go: too many at once, or the collector did not take them."""
        return self._dropped + (self._pipeline.dropped if self._pipeline is not None else 0)

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Return the indexes of the sampled messages of a batch.

        A `traceparent` decides by its sampled bit, which is looked at first: nothing is added to a trace that its
        caller does not record, and to at most `max_per_second` of those that it does. Without one, `sample_ratio` of
        the messages begin a trace; of a ratio below 1 at most `max_per_second` do. In a batch without headers nothing
        is looked at but that: the counter takes one step for all of it.
        """
        if not self.active:
            return ()
        if not any(map(_header_size, batch)):
            return self.sampled_plain(len(batch))
        return self._among(_parent(raw) if raw[2] else None for raw in batch)

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Decide as `sampled` does."""
        if not self.active:
            return ()
        chosen = self._skip.among(count)
        if not chosen or self._begun is None:
            return chosen
        begun = [index for index in chosen if self._begun.take()]
        self.not_begun += len(chosen) - len(begun)
        return begun

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Decide as `sampled` does."""
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
        """Begin the trace of a message that is sampled; None outside of `running`."""
        if self._spans is None:
            return None
        parent = _parent(raw) if raw[2] else None
        return self._spans.begin(
            route, template, raw[3] - raw[2], parent, source=source, sequence=sequence, deliveries=deliveries
        )

    def note_event(self, event: Event) -> tuple[str, str] | None:
        """Take note of an event. Returns the trace id and span id of the outage that it belongs to, if there is one.

        An outage that begins before the SDK is there begins its spans when it is, and has no ids until then.
        """
        if self._outages is not None:
            return self._outages.observe(event)
        if isinstance(event, ConnectionLost) or (self._early_events and isinstance(event, ConnectionEvent)):
            self._early_events.append(event)
        return None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make spans while this is entered. Leaving exports what is left, within two seconds."""
        self._spans = MessageSpans(self._ended_early)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            self._spans = None
            await self._shut_down()

    async def begin_export(self, limiter: trio.CapacityLimiter | None = None) -> None:
        """Import the SDK, and export spans from then on, first those that have waited. Call it in `running` only.

        Takes a moment, in a thread, so that messages pass meanwhile; `limiter` says when it may.
        """
        # By default one of its own, since the program's may be used up. Waited for also when cancelled.
        opened = await trio.to_thread.run_sync(self._opened, limiter=limiter or trio.CapacityLimiter(1))
        if opened is None:
            self.active = False
            self._dropped += len(self._early_spans)
        else:
            self._pipeline, self._outages = opened
            if self._spans is not None:
                self._spans.ended = self._pipeline.take_span
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
        """Return what takes spans; None, which is logged, if there can be none. Runs in a thread."""
        from router_trio.telemetry.traces.export import SCOPE, Pipeline, quote_no_variables
        from router_trio.telemetry.traces.outage import Outages

        quote_no_variables()
        try:
            pipeline = Pipeline(self._exporter(self._endpoint), self._service_name, package_version())
        except Exception as error:
            # Its text may quote a variable of the environment.
            _logger.error(
                "no spans are exported: OpenTelemetry's exporter can't be made (%s); correct otlp_endpoint, or the "
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
    """Return what the headers say of the trace that a message belongs to: nothing valid, its parent, or `UNSAMPLED`."""
    _, _, header_size, size, tail = raw
    # Most headers are about other things: that is found out without cutting them out of the frame.
    if tail.find(_PART_OF_NAME, 0, len(tail) - 2 - size + header_size) < 0:
        return None
    value = lookup(header_block(raw))
    if value is None:
        return None
    if says_unsampled(value):
        return UNSAMPLED
    parent = parse(value)
    return UNSAMPLED if parent is not None and not parent.sampled else parent


def _parent_of_frame(frame: bytes) -> TraceParent | None:
    """Return the same of a PUB or HPUB frame."""
    if not frame.startswith(b"H") or frame.find(_PART_OF_NAME, 0, frame.find(END)) < 0:
        return None
    return _parent(published(frame))


class TokenBucket:
    """Let `rate` through in a second, and `burst` at once after a time of quiet: at most burst + rate x t in any t.

    `clock` gives monotonic seconds; it is asked first when something wants through.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_seen_at")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._seen_at: float | None = None

    def take(self) -> bool:
        """Return True if one more may pass now."""
        now = self._clock()
        if self._seen_at is not None:
            self._left = min(self._burst, self._left + (now - self._seen_at) * self._rate)
        self._seen_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Skips:
    """Sample a share of messages at random, with one random number for each that is sampled.

    The number of messages between two sampled ones is drawn beforehand, from the geometric distribution; that is the
    same as tossing a coin for each.
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
        """Return the indexes of those of the next `count` that are sampled, in one step."""
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
