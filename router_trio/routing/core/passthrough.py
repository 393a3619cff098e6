"""Passthrough: forward unchanged messages while they arrive, without a turn of their route's task.

A message costs a lookup of its subject and a joined frame, whatever its route. With a thousand routes, each message is
a batch of its own. So messages that arrive at one time for all routes are forwarded and offered together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any, cast

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, PublishError
from router_trio.link import Deliver, SubscriptionBatch
from router_trio.message import Fate
from router_trio.outbox.operation import CountedOwner, FrameOwners, Operation, Owner
from router_trio.protocol import framing
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.delivery import Delivery
from router_trio.routing.outlets.contents import measure
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy import hops
from router_trio.routing.tracing import Tracing
from router_trio.states import RouteState

_key = attrgetter("key")


class Passthrough:
    """Forwards the messages of all passthrough routes to the outbox of one connection."""

    def __init__(self, destination: Connection, tracing: Tracing) -> None:
        self._connection = destination
        self._tracing = tracing
        self._behind: set[PassthroughRoute] = set()
        self._sample = hops.Sample()

    def deliver(self, touched: Sequence[SubscriptionBatch]) -> None:
        """Forward a batch for all of its routes; the keys are `PassthroughRoute`s.

        Fast path of `BatchRoute._received`; held equal by
        tests/unit/routing/test_both_ways.py::test_passthrough_forwards_messages_as_their_routes_would, worth 520
        instructions a message (tests/performance/test_fast_paths.py::test_a_read_with_messages_for_many_routes).
        """
        outbox, limit = self._connection.outbox, self._connection.max_payload
        over_limit = outbox.over_limit
        if over_limit or self._behind:
            touched = self._let_wait(touched, everything=over_limit)
        # With a thousand routes a batch has one or two messages, so what is done for each batch counts.
        routes: list[Any] = list(map(_key, touched))
        counts = list(map(len, touched))
        owners = FrameOwners(routes, counts)
        route: PassthroughRoute
        frames: list[bytes] = []
        missing: list[int] = []
        plain = True
        for batch, route, count in zip(touched, routes, counts, strict=True):
            route.state.received += count
            prefixes = route.prefixes
            for raw in batch:
                subject, reply, header_size, size, tail = raw
                try:
                    prefix = prefixes.get(subject) or route.outlet.address.prefix_for(raw)
                    if header_size or reply:
                        plain = False
                        frames.append(route.outlet.carried(raw, prefix))
                    elif size > limit:
                        measure(self._connection, size)
                    else:
                        frames.append(prefix + tail)
                except (MappingError, PublishError) as error:
                    missing.append(len(frames) + len(missing))
                    route.not_offered(raw, error.reason, str(error))
        if missing:
            owners.leave_out(missing)
        self._sample.uncounted += len(frames) + hops.A_READ
        if self._sample.uncounted >= hops.EVERY and frames and self._sample.is_due():
            self._count_one(frames, owners)
        if self._tracing.active:
            tracing = self._tracing
            sampled = tracing.sampled_plain(len(frames)) if plain else tracing.sampled_frames(frames)
            owners.single_out(sampled, partial(_trace, frames))
        outbox.offer_frames(frames, owners)

    def _count_one(self, frames: list[bytes], owners: FrameOwners) -> None:
        """Begin to count the hops of one of these frames: see `policy.hops`."""
        index = self._sample.choose(len(frames))
        outlet = cast(PassthroughRoute, owners.owner_of(index)).outlet
        if outlet.contents.hops is not None:
            frames[index] = outlet.counted(frames[index])

    def let_wait(self, route: PassthroughRoute) -> None:
        """Pass arriving messages to this route itself, as long as it has messages waiting, or a tap follows them."""
        self._behind.add(route)

    def forget(self, route: PassthroughRoute) -> None:
        """Forget a route that has ended."""
        self._behind.discard(route)

    def _let_wait(self, touched: Sequence[SubscriptionBatch], *, everything: bool) -> list[SubscriptionBatch]:
        """Pass messages that can't be forwarded now to their routes. Return the batches that can be."""
        behind = {route for route in self._behind if route.is_apart}
        rest = []
        for arrivals in touched:
            route: PassthroughRoute = arrivals.key
            if everything or route in behind:
                route.otherwise(arrivals)
                # Only messages that were queued here enter the intake, so it need not be checked before.
                if route.intake.busy:
                    behind.add(route)
            else:
                rest.append(arrivals)
        self._behind = behind
        return rest


class PassthroughRoute(CountedOwner):
    """A core route to a core subject without content rules: the `RouteOwner` of all messages that it forwards."""

    __slots__ = ("_routing", "intake", "otherwise", "outlet", "prefixes", "state")

    def __init__(self, routing: Routing, intake: IntakeQueue, otherwise: Deliver) -> None:
        """`otherwise` puts messages that can't be forwarded on arrival into `intake`."""
        super().__init__(routing.state.forwarded)
        (outlet,) = routing.outlets
        self.outlet: Outlet = outlet
        self.prefixes: dict[bytes, bytes] = self.outlet.address.prefixes
        self.state: RouteState = routing.state
        self.intake: IntakeQueue = intake
        self.otherwise: Deliver = otherwise
        self._routing = routing

    @property
    def destination(self) -> tuple[str, str]:
        return self.state.name, self.outlet.template

    @property
    def is_apart(self) -> bool:
        """True while messages must not be forwarded on arrival: others wait, a tap follows each, or each is counted."""
        counting = self.outlet.contents.hops
        counts_each = counting is not None and counting.each
        return self.intake.busy or self._routing.tracing.followed or counts_each

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self.state.failed[fate.reason or fate.name] += count
        described = self.state.not_taken(self.outlet.template, fate.detail)
        self.state.failed_at_last(fate.reason or fate.name, detail=described)
        self.state.fates["lost"] += count
        self.state.elapsed.record(now - operation.accepted_at, count)

    def not_offered(self, raw: RawMessage, reason: str, detail: str) -> None:
        """Count and report a message that can't be offered."""
        routing = self._routing
        if routing.tracing.active and routing.tracing.sampled((raw,)):
            # It fails again, and its trace records that.
            delivery = Delivery(self.state, raw, trio.current_time())
            routing.begin_trace(delivery)
            routing.forward(delivery)
            return
        self.state.failed[reason] += 1
        self.state.fates["lost"] += 1
        self.state.elapsed.record(0.0)
        routing.emit_failure(reason, detail, subject=raw[0])

    def traced(self, frame: bytes) -> tuple[Owner, bytes]:
        """Begin the trace of a sampled frame. Return its new owner, and the frame with the `traceparent`."""
        raw = framing.published(frame)
        delivery = Delivery(self.state, raw, trio.current_time())
        self._routing.begin_trace(delivery)
        trace_parent = self.outlet.trace(delivery)
        owner = delivery.owner_for(self.outlet.template)
        delivery.done()
        return owner, self.outlet.traced(raw, trace_parent)


def _trace(frames: list[bytes], index: int, owner: Owner) -> Owner:
    """Replace a sampled frame by one with a `traceparent`, and return its new owner."""
    follower, frames[index] = cast(PassthroughRoute, owner).traced(frames[index])
    return follower
