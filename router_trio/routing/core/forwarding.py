"""Forward batches of messages without a handler and without keeping them."""

from __future__ import annotations

from router_trio.errors import MappingError, PublishError
from router_trio.protocol import framing
from router_trio.routing.delivery import BatchDelivery, BatchTracker, Delivery
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.turns import BETWEEN_TWO_LOOKS
from router_trio.states import RouteState


class BatchForwarding:
    """Forwards batches of one route without a handler. Failed messages are lost; `keeper` retries messages."""

    __slots__ = (
        "routing",
        "state",
    )

    def __init__(self, routing: Routing) -> None:
        self.routing: Routing = routing
        self.state: RouteState = routing.state

    def forward(self, received_at: float, batch: list[framing.RawMessage]) -> list[framing.RawMessage]:
        """Forward a batch. Return the rest of it if other tasks should run first."""
        if not self.routing.as_it_comes:
            return self._forward_by_content(received_at, batch)
        if self.routing.tracing.active:
            self._forward_traced(received_at, batch)
        else:
            self._forward(received_at, batch)
        return []

    def _forward_by_content(self, received_at: float, batch: list[framing.RawMessage]) -> list[framing.RawMessage]:
        # Only for routes with expressions, since these modules take time to import.
        from router_trio.routing.content.batch import ContentBatch
        from router_trio.routing.content.routing import ContentRouting

        assert isinstance(self.routing, ContentRouting)
        tracing, turn = self.routing.tracing, self.routing.turn
        together = ContentBatch(self.routing, received_at)
        rest: list[framing.RawMessage] = []
        for first in range(0, len(batch), BETWEEN_TWO_LOOKS):
            if first and turn.over:
                rest = batch[first:]
                break
            part = batch[first : first + BETWEEN_TWO_LOOKS] if len(batch) > BETWEEN_TWO_LOOKS else batch
            start = 0
            for index in tracing.sampled(part) if tracing.active else ():
                together.forward_batch(part[start:index])
                together.forward_traced(part[index])
                start = index + 1
            together.forward_batch(part[start:] if start else part)
        together.offer_kept()
        return rest

    def _forward_traced(self, received_at: float, batch: list[framing.RawMessage]) -> None:
        """Forward a batch with a few sampled messages; messages between two sampled ones stay together."""
        start = 0
        for index in self.routing.tracing.sampled(batch):
            if start < index:
                self._forward(received_at, batch[start:index])
            delivery = Delivery(self.state, batch[index], received_at)
            self.routing.begin_trace(delivery)
            self.routing.forward(delivery)
            start = index + 1
        if start < len(batch):
            self._forward(received_at, batch[start:] if start else batch)

    def _forward(self, received_at: float, batch: list[framing.RawMessage]) -> None:
        """Send a batch to every destination, with `BatchDelivery`, `Outlet.forward_core` and `Outbox.offer_frames`.

        Fast path of `Routing.forward`; held equal by
        tests/unit/routing/test_both_ways.py::test_a_batch_is_forwarded_like_its_messages_one_by_one, worth 600
        instructions a message (tests/performance/test_fast_paths.py::test_core_messages_that_are_forwarded_together).
        """
        outlets, flow = self.routing.outlets, self.routing.flow
        apart = flow is not None and (flow.probing or (len(outlets) > 1 and bool(flow.breakers)))
        if apart or (len(outlets) > 1 and self.routing.waits_for is not None):
            # Queued messages are queued one by one: each has its own fate at each destination, which a breaker needs.
            for raw in batch:
                self.routing.forward(Delivery(self.state, raw, received_at))
            return
        delivery = BatchDelivery(self.state, received_at, len(batch))
        owners = [delivery.owner_for(outlet.template) for outlet in outlets]
        for outlet, owner in zip(outlets, owners, strict=True):
            if outlet.waits_for_puback:
                refused = _forward_each(outlet, owner, batch)
            else:
                refused = outlet.forward_core(batch, owner)
            for number, reason, detail in refused:
                owner.refuse(number, reason)
                self.routing.emit_failure(reason, detail, subject=batch[number][0])


def _forward_each(outlet: Outlet, owner: BatchTracker, batch: list[framing.RawMessage]) -> list[tuple[int, str, str]]:
    """Publish each message of a batch to a stream. Return number, reason and detail of each refused message."""
    refused = []
    for number, raw in enumerate(batch):
        try:
            order = outlet.forward(raw, owner, owner)
            assert order is not None, "a stream's destination answers"
            owner.offered(order, number)
        except (MappingError, PublishError) as error:
            refused.append((number, error.reason, str(error)))
    return refused
