"""One message on its way through a route: followed until every destination is settled.

`Delivery` is for messages that somebody waits for or looks at: from a stream, through a handler, in a trace. Plain
messages from a core subscription are followed by the batch (`BatchDelivery`): they have nothing to ack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.message import Fate
from router_trio.pending import Operation
from router_trio.states import RouteState
from router_trio.tracing import MessageTrace


class Delivery:
    """Counts down the destinations of one message. `finished` is called once, when the last one is settled."""

    __slots__ = ("finished", "reason", "received_at", "remaining", "route", "trace")

    def __init__(self, route: RouteState, received_at: float, finished: Callable[[Delivery], None] | None) -> None:
        self.route = route
        self.received_at = received_at
        self.finished = finished
        self.remaining = 1  # one for the routing itself, so that it can't finish while destinations are being added
        self.reason: str | None = None
        self.trace: MessageTrace | None = None

    def leg(self, template: str) -> Leg:
        """The owner of one operation to the destination with this template."""
        self.remaining += 1
        return Leg(self, template)

    def fail(self, reason: str) -> None:
        """The message failed; the first reason stands."""
        if self.reason is None:
            self.reason = reason

    def done(self) -> None:
        """One thing less to wait for."""
        self.remaining -= 1
        if self.remaining:
            return
        route = self.route
        route.durations.record(trio.current_time() - self.received_at)
        if self.reason is not None:
            route.failed[self.reason] += 1
        if self.trace is not None:
            self.trace.end()
        if self.finished is not None:
            self.finished(self)


class Leg:
    """One destination of one message: the owner of its operation."""

    __slots__ = ("_delivery", "_template")

    def __init__(self, delivery: Delivery, template: str) -> None:
        self._delivery = delivery
        self._template = template

    def settle(self, operations: Sequence[Operation], fate: Fate) -> None:
        """See `pending.Owner`."""
        delivery = self._delivery
        if fate.delivered:
            delivery.route.routed[self._template] += 1
        else:
            delivery.fail(fate.reason or fate.name)
        if delivery.trace is not None:
            delivery.trace.sent(self._template, fate)
        delivery.done()


class BatchDelivery:
    """Messages that came together and have nothing to ack, to all destinations of a route."""

    __slots__ = ("_received_at", "_recorded", "_route", "_settled")

    def __init__(self, route: RouteState, received_at: float) -> None:
        self._route = route
        self._received_at = received_at
        self._settled: list[int] = []
        self._recorded = 0

    def leg(self, template: str) -> BatchLeg:
        """The owner of the batch's operations to one destination."""
        self._settled.append(0)
        return BatchLeg(self, template, len(self._settled) - 1)

    def settle(self, leg: int, template: str, count: int, fate: Fate) -> None:
        """`count` messages are settled at one destination. A message is done when it is at all of them."""
        route = self._route
        if fate.delivered:
            route.routed[template] += count
        else:
            route.failed[fate.reason or fate.name] += count
        settled = self._settled
        settled[leg] += count
        everywhere = min(settled) - self._recorded
        if everywhere > 0:
            route.durations.record(trio.current_time() - self._received_at, everywhere)
            self._recorded += everywhere


class BatchLeg:
    """One destination of a batch: the owner of its operations."""

    __slots__ = ("_batch", "_leg", "_template")

    def __init__(self, batch: BatchDelivery, template: str, leg: int) -> None:
        self._batch = batch
        self._template = template
        self._leg = leg

    def settle(self, operations: Sequence[Operation], fate: Fate) -> None:
        """See `pending.Owner`."""
        self._batch.settle(self._leg, self._template, len(operations), fate)

    def refuse(self, count: int, reason: str) -> None:
        """That many messages of the batch never became operations here."""
        self._batch.settle(self._leg, self._template, count, Fate("failed", reason))
