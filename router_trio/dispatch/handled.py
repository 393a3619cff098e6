"""What a handler makes of the messages of one batch, sent together: the cheap way for answers to core subjects.

Answers are kept until the batch ends or a handler is about to block, whichever comes first, so that none waits for
another message's I/O. Whatever is not one plain answer (none, several, an error, a refusal) takes the way of single
messages, behind what was kept before it.
"""

from __future__ import annotations

from collections.abc import Awaitable

from router_trio import protocol
from router_trio.dispatch.delivery import BatchDelivery, Delivery
from router_trio.dispatch.handlers import Blocked, Handler, as_message, begin
from router_trio.dispatch.routing import Routing
from router_trio.errors import RouterError
from router_trio.message import Message


class HandledBatch:
    """One batch on its way through a handler. `flush` it at the end."""

    def __init__(self, routing: Routing, handler: Handler, received_at: float) -> None:
        self._routing = routing
        self._handler = handler
        self._received_at = received_at
        self._kept: list[list[bytes]] = []
        self._outlets = routing.outlets
        self._together = not any(outlet.destination.jetstream for outlet in routing.outlets)

    def take(self, raw: protocol.RawMessage) -> Awaitable[None] | None:
        """Take one message through the handler. If that blocks, returns what to await before the next message.

        Cancelled while it is awaited, nothing of the message was sent.
        """
        message = as_message(raw, self._routing.plan.connection)
        try:
            answers = begin(self._handler, message)
        except Exception as error:
            self._failed(error, raw)
            return None
        if isinstance(answers, Blocked):
            self.flush()
            return self._blocked(answers, message, raw)
        self._answered(answers, message, raw)
        return None

    async def _blocked(self, blocked: Blocked, message: Message, raw: protocol.RawMessage) -> None:
        try:
            answers = await blocked
        except Exception as error:
            self._failed(error, raw)
        else:
            self._answered(answers, message, raw)

    def _answered(self, answers: list[Message], message: Message, raw: protocol.RawMessage) -> None:
        if len(answers) == 1 and self._together:
            try:
                self._kept.append([outlet.frame(answers[0], message, raw) for outlet in self._outlets])
                return
            except RouterError:
                pass  # refused: the way of single messages says so, for each destination
        self.flush()
        delivery = Delivery(self._routing.state, raw, self._received_at)
        self._routing.answered(answers, message, delivery)
        delivery.done()

    def _failed(self, error: Exception, raw: protocol.RawMessage) -> None:
        self.flush()
        delivery = Delivery(self._routing.state, raw, self._received_at)
        self._routing.handler_failed(error, delivery)
        delivery.done()

    def flush(self) -> None:
        """Offer what was kept to the destinations."""
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        delivery = BatchDelivery(self._routing.state, self._received_at)
        legs = [delivery.leg(outlet.template) for outlet in self._outlets]
        for index, (outlet, leg) in enumerate(zip(self._outlets, legs, strict=True)):
            outlet.outbox.offer_frames([frames[index] for frames in kept], ((leg, len(kept)),))
