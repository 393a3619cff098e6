"""What a handler makes of the messages of one batch, sent together: the cheap way for answers to core subjects.

Answers are kept until the batch ends or a handler is about to block, whichever comes first, so that none waits for
another message's I/O. Whatever is not one plain answer (none, several, an error, a refusal) takes the way of single
messages, behind what was kept before it.
"""

from __future__ import annotations

from router_trio import protocol
from router_trio.dispatch.delivery import BatchDelivery, Delivery
from router_trio.dispatch.handlers import Handler, as_message, invoke
from router_trio.dispatch.routing import Routing
from router_trio.errors import RouterError


class HandledBatch:
    """One batch on its way through a handler. `flush` it at the end."""

    def __init__(self, routing: Routing, handler: Handler, received_at: float) -> None:
        self._routing = routing
        self._handler = handler
        self._received_at = received_at
        self._kept: list[list[bytes]] = [[] for _ in routing.outlets]
        self._together = not any(outlet.destination.jetstream for outlet in routing.outlets)

    async def route(self, raw: protocol.RawMessage) -> None:
        """Take one message through the handler. Cancelled while that blocks, nothing of it was sent."""
        routing = self._routing
        message = as_message(raw, routing.plan.connection)
        try:
            answers = await invoke(self._handler, message, before_blocking=self.flush)
        except Exception as error:
            self.flush()
            delivery = Delivery(routing.state, raw, self._received_at)
            routing.handler_failed(error, delivery)
            delivery.done()
            return
        if len(answers) == 1 and self._together:
            try:
                frames = [outlet.frame(answers[0], message, raw) for outlet in routing.outlets]
            except RouterError:
                pass  # refused: the way of single messages says so, for each destination
            else:
                for kept, frame in zip(self._kept, frames, strict=True):
                    kept.append(frame)
                return
        self.flush()
        delivery = Delivery(routing.state, raw, self._received_at)
        routing.answered(answers, message, delivery)
        delivery.done()

    def flush(self) -> None:
        """Offer what was kept to the destinations."""
        if not self._kept[0]:
            return
        outlets, kept = self._routing.outlets, self._kept
        self._kept = [[] for _ in outlets]
        delivery = BatchDelivery(self._routing.state, self._received_at)
        legs = [delivery.leg(outlet.template) for outlet in outlets]
        for outlet, frames, leg in zip(outlets, kept, legs, strict=True):
            outlet.outbox.offer_frames(frames, leg)
