"""Messages of a stream of which each value has a limit: what is over it waits in hand, and others pass it.

What waits uses room of its own, as what waits behind refused messages does: see `PullLoop`. When that is full as well,
nothing is asked for until some of it may go: nothing is given back to the stream only to come again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio

from router_trio.errors import EvaluationError
from router_trio.routing.flow.control import FlowControl
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.value_queues import ValueQueues
from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.delivery import StreamDelivery

if TYPE_CHECKING:
    from router_trio.routing.content.routing import ContentRouting


class LimitedValues:
    """What of one route waits for the limit of its value, beside `AckPending.waiting`."""

    def __init__(self, routing: Routing, flow: FlowControl, pending: AckPending) -> None:
        assert flow.values is not None
        self._routing = cast("ContentRouting", routing)  # as of each route with expressions
        self._flow = flow
        self._pending = pending
        self._queues: ValueQueues[StreamDelivery] = ValueQueues(flow.values)

    @property
    def due_at(self) -> float:
        """When something that waits may go; infinite if nothing does."""
        return self._queues.due_at

    def next_to_route(self) -> StreamDelivery | None:
        """The next one to route, as `AckPending.first` gives it: it stays the first of `waiting`."""
        pending = self._pending
        delivery = self.first_allowed()
        while delivery is None:
            first = pending.first()
            if first is None:
                return None
            pending.waiting.popleft()
            if self.is_allowed(first):
                delivery = first
        pending.waiting.appendleft(delivery)
        return delivery

    def first_allowed(self) -> StreamDelivery | None:
        """Take out one that waits here and goes now, if any does."""
        pending, now = self._pending, trio.current_time()
        while (delivery := self._queues.pop_due(now)) is not None:
            pending.limited -= 1
            if pending.is_in_turn(delivery):
                self._routing.state.limited += 1
                return delivery
        if not self._queues.count:
            self._flow.nothing_waits()
        return None

    def is_allowed(self, delivery: StreamDelivery) -> bool:
        """Return True if its limit lets a message go; else it waits here, or has failed."""
        try:
            value = self._routing.limited_value(delivery.raw, delivery)
        except EvaluationError as error:
            self._routing.expression_failed(error, delivery)
            delivery.done()
            return False
        if value is None or self._queues.admit(value, delivery.sequence, delivery, trio.current_time()):
            return True
        self._pending.limited += 1
        self._flow.hold_back(1)
        return False

    def clear(self) -> list[StreamDelivery]:
        """Take out everything."""
        self._pending.limited = 0
        return self._queues.clear()
