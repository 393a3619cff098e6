"""Cut-through: what nobody changes or looks at is forwarded while it arrives, without a turn of its route's task.

A message costs a look-up of its subject and a joined frame, whatever route it is for. With a thousand routes each
message is a batch of its own: what is done here for a batch is written out, and reaches for few other objects.
"""

from __future__ import annotations

from bisect import bisect_left

import trio

from router_trio import protocol
from router_trio.connection import Connection
from router_trio.dispatch.delivery import Delivery
from router_trio.dispatch.inbox import Inbox
from router_trio.dispatch.routing import Routing
from router_trio.errors import MappingError
from router_trio.link import Deliver
from router_trio.message import FENCED, Fate
from router_trio.operation import Operation, Owner
from router_trio.protocol import RawMessage


class CutThrough:
    """One core route's way to its only destination, a core subject. The owner of all that it forwards."""

    __slots__ = (
        "_add_frame",
        "_add_owner",
        "_behind",
        "_connection",
        "_departures",
        "_durations",
        "_inbox",
        "_otherwise",
        "_outlet",
        "_prefixes",
        "_routed",
        "_routing",
        "_source",
        "_state",
        "_template",
        "_tracing",
    )

    def __init__(self, routing: Routing, source: Connection, inbox: Inbox, otherwise: Deliver) -> None:
        """`source` is where messages come from. `otherwise` takes what can't be forwarded now, into `inbox`."""
        (outlet,) = routing.outlets
        self._routing = routing
        self._source = source
        self._state = routing.state
        self._durations = routing.state.durations
        self._routed = routing.state.routed
        self._tracing = routing.tracing
        self._inbox = inbox
        self._behind = False
        self._otherwise = otherwise
        self._outlet = outlet
        self._prefixes = outlet.prefixes
        self._connection = outlet.connection
        self._template = outlet.template
        self._departures = outlet.connection.departures
        self._add_frame = self._departures.frames.append
        self._add_owner = self._departures.owners.append

    def deliver(self, batch: list[RawMessage]) -> None:
        """See `link.Deliver`. What is forwarded leaves when the link has handed out what came with it."""
        if self._behind or not (self._departures.owners or self._begin()):
            self._wait(batch)
            return
        count = len(batch)
        self._state.received += count
        add, prefixes, limit = self._add_frame, self._prefixes, self._connection.max_payload
        for raw in batch:
            subject, _, header_size, size, tail = raw
            try:
                prefix = prefixes.get(subject) or self._outlet.prefix_for(subject)
            except MappingError as error:
                self._fail(raw, "mapping", str(error))
                count -= 1
                continue
            if size > limit:
                self._fail(raw, "too_large", f"more than the max_payload of {limit} bytes")
                count -= 1
            elif header_size:
                add(b"H" + prefix + tail)
            else:
                add(prefix + tail)
        self._add_owner((self, count))

    def _begin(self) -> bool:
        """Whether there is room for what comes now. If so, it leaves together."""
        if self._connection.outbox.crowded:
            return False
        self._source.when_handed_out(self._leave)
        return True

    def _leave(self) -> None:
        if self._tracing.active:
            self._departures.single_out(self._tracing.sampled_frames(self._departures.frames), _traced)
        self._departures.leave()

    def traced(self, frame: bytes) -> tuple[Owner, bytes]:
        """A frame of this route is sampled: who follows it from now on, and the frame that tells of it."""
        raw = protocol.published(frame)
        delivery = Delivery(self._state, raw, trio.current_time())
        self._routing.begin(delivery)
        trace_parent = self._outlet.trace(delivery)
        owner = delivery.leg(self._template)
        delivery.done()
        return owner, self._outlet.traced(raw, trace_parent)

    def _wait(self, batch: list[RawMessage]) -> None:
        # Nothing but what goes this way gets into the inbox: as long as nothing does, it need not be looked at.
        self._otherwise(batch)
        self._behind = self._inbox.busy

    def _fail(self, raw: RawMessage, reason: str, detail: str) -> None:
        if self._tracing.active and self._tracing.sampled((raw,)):
            # It fails again, and its trace says so.
            delivery = Delivery(self._state, raw, trio.current_time())
            self._routing.begin(delivery)
            self._routing.forward(delivery)
            return
        self._state.failed[reason] += 1
        self._durations.record(0.0)
        self._routing.fail(reason, detail)

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        if fate is FENCED:
            self._routed[self._template] += count
        else:
            self._state.failed[fate.reason or fate.name] += count
        # `Histogram.record`, written out.
        durations = self._durations
        seconds = now - operation.accepted_at
        durations.counts[bisect_left(durations.bounds, seconds)] += count
        durations.total += seconds * count


def _traced(owner: Owner, frame: bytes) -> tuple[Owner, bytes]:
    return owner.traced(frame) if isinstance(owner, CutThrough) else (owner, frame)
