"""Routes from a subject that keep no messages: received batches are forwarded, or passed to the handler.

A message that is not changed by the route is forwarded as part of a batch, with only its subject replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from functools import partial
from operator import itemgetter, length_hint

import trio

from router_trio.errors import reasons
from router_trio.link import Deliver, SharedDelivery
from router_trio.protocol import framing
from router_trio.routing.core.forwarding import BatchForwarding
from router_trio.routing.core.handler_batch import HandlerBatch
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.core.passthrough import Passthrough, PassthroughRoute
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.hand_over import Batch, Batches
from router_trio.routing.handlers.calls import Handler, HandlerCalls, Pair
from router_trio.routing.handlers.messages import as_messages
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.tracing import Attach

_NO_BATCH = Batch(0.0, [])
_header_size = itemgetter(2)


def _attached(attach: Attach, pair: Pair) -> Pair:
    """Return the message that the handler gets next, in the context of that call, with its sender's span in it."""
    attach(pair[0], None)
    return pair


class BatchRoute(Route):
    """Routes messages of a subject without keeping them, for routes without retries, keys, limits and breakers.

    `BatchForwarding` and `HandlerBatch` do with batches what a `KeptRoute` does with each message.
    """

    __slots__ = (
        "_batch",
        "_forwarding",
        "_in_hand",
        "_intake",
        "_not_begun",
        "_passes",
        "_successor",
    )

    source: SubjectSource  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, routing: Routing, source: SubjectSource, passthrough: Passthrough) -> None:
        """`passthrough` is that of the first destination's connection, if there is a destination."""
        super().__init__(routing, source)
        outlets = routing.outlets
        as_it_comes = routing.plan.handler is None and routing.as_it_comes
        self._intake = IntakeQueue(self._overflow, routing.turn.begin)
        self._forwarding = BatchForwarding(routing)
        deliver: Deliver | SharedDelivery = self._received
        self._passes: tuple[Passthrough, PassthroughRoute] | None = None
        """Forwards messages on arrival, if the route allows it."""
        if as_it_comes and len(outlets) == 1 and not outlets[0].waits_for_puback:
            passes = PassthroughRoute(routing, self._intake, self._received)
            self._passes = passthrough, passes
            deliver = SharedDelivery(passthrough.deliver, passes)
            let_wait = partial(passthrough.let_wait, passes)
            routing.tracing.when_followed(let_wait)
            if (hops := outlets[0].contents.hops) is not None:
                hops.when_returned(let_wait)
        source.deliver_to(deliver)
        self._in_hand = 0
        """The number of unrouted messages of the batch taken last from the queue."""
        self._batch: Batch = _NO_BATCH
        """The batch taken last from the queue. The last messages of it may not have been started."""
        self._not_begun = 0
        """The number of messages of it that were not started: they may be taken back while the route waits."""
        self._successor: Route | None = None

    def _received(self, batch: list[framing.RawMessage]) -> None:
        self.state.received += len(batch)
        routing = self.routing
        if self._intake.busy or routing.plan.handler is not None or routing.lacks_capacity:
            self._intake.deliver(batch)
            return
        # Nothing to wait for, so the batch is forwarded on arrival, without a turn of the route's own task.
        if not routing.as_it_comes:
            routing.turn.begin()
        if rest := self._forwarding.forward(trio.current_time(), batch):
            self._intake.deliver(rest)

    def _overflow(self, count: int) -> None:
        self.routing.lose_unrouted(reasons.SLOW_CONSUMER, "more came than the destinations took", count)

    async def _route_arriving(self) -> None:
        while True:
            await self._route_batch(await self._intake.take())

    async def _route_batch(self, arrived: Batch) -> None:
        """Route a batch."""
        self._batch = arrived
        received_at, batch = arrived
        self._in_hand = self._not_begun = len(batch)
        await self.routing.wait_for_capacity()
        if not self._not_begun:
            return  # taken back meanwhile
        handler = self.routing.plan.handler
        if handler is not None:
            await self._handle(handler, received_at, batch)
        else:
            while batch := self._forwarding.forward(received_at, batch):
                self._batch = Batch(received_at, batch)
                self._in_hand = self._not_begun = len(batch)
                await self.routing.turn.pass_on()
                if not self._not_begun:
                    return  # taken back meanwhile
        self._in_hand = self._not_begun = 0

    async def _handle(self, handler: Handler, received_at: float, batch: list[framing.RawMessage]) -> None:
        """Pass a batch to the handler, except for messages that are taken back while the handler blocks."""
        handled = HandlerBatch(self.routing, handler, received_at)
        await self._call_for_each(handler, handled, batch)
        handled.offer_kept()

    async def _call_for_each(self, handler: Handler, handled: HandlerBatch, batch: list[framing.RawMessage]) -> None:
        tracing = self.routing.tracing
        attach = tracing.attach
        start, end = 0, len(batch)
        for index in (*(tracing.sampled(batch) if tracing.active else ()), end):
            raws = batch[start:index]
            left = iter(raws)
            messages: Iterator[Pair] = zip(left, as_messages(raws, self.routing.plan.connection), strict=True)
            if not self.routing.as_it_comes:
                messages = filter(handled.wants, messages)
            if attach is not None and any(map(_header_size, raws)):
                messages = map(partial(_attached, attach), messages)
            calls = HandlerCalls(handler, messages)
            while (blocked := handled.handle_each(calls)) is not None:
                if await self._taken_back(blocked, not handled.between_calls, length_hint(left) + end - index):
                    return
            if index == end:
                return
            start = index + 1
            blocked = handled.handle_traced(batch[index])
            if blocked is not None and await self._taken_back(blocked, True, end - start):
                return
            turning = handled.let_turn() if start < end else None
            if turning is not None and await self._taken_back(turning, False, end - start):
                return

    async def _taken_back(self, waits: Awaitable[None], in_handler: bool, not_begun: int) -> bool:
        """Wait within a batch with `not_begun` messages left. Return True if these were taken back meanwhile."""
        self._in_hand, self._not_begun = in_handler + not_begun, not_begun
        await waits
        return self._not_begun < not_begun

    # --- from one route to its successor ---

    def hand_over(self, successor: Route) -> None:
        """Hand the source, and all messages that were not started, to a route of the same subject.

        Messages that arrive from now on wait for `run` of the successor, so order is kept. If it reads from another
        connection, messages are received here until the subscription has ended, and only then handed over.
        """
        self._successor = successor
        assert isinstance(successor.source, SubjectSource), "it has the same subject"
        if self.source.hand_over(successor.source):
            self._pass_on_rest()
        self.close_intake()

    def _pass_on_rest(self) -> None:
        """Have all messages that were not started routed by the successor, if there is one that receives messages."""
        successor = self._successor
        if successor is None or successor.source.closed:
            return
        waiting = self._take_back()
        count = sum(len(batch.messages) for batch in waiting)
        self.state.received -= count
        successor.state.received += count
        successor.go_on_with(waiting)

    def _take_back(self) -> Batches:
        taken = []
        if self._not_begun:
            batch = self._batch.messages
            taken.append(self._batch._replace(messages=batch[len(batch) - self._not_begun :]))
            self._in_hand -= self._not_begun
            self._not_begun = 0
            if not self._in_hand:
                self._intake.finish()
        return taken + self._intake.take_waiting()

    def go_on_with(self, waiting: Batches) -> None:
        self._intake.let_nothing_pass()
        if self._passes is not None:
            passthrough, route = self._passes
            passthrough.let_wait(route)
        self._intake.put_first(waiting)

    # --- the end ---

    async def _all_routed(self) -> None:
        self._pass_on_rest()
        await self._intake.empty()

    def recall(self) -> None:
        """Do nothing: a core subject redelivers nothing, so messages in the outboxes are still sent."""

    def _let_go(self) -> int:
        self._pass_on_rest()
        left, self._in_hand = self._intake.clear() + self._in_hand, 0
        self._not_begun = 0
        self._intake.finish()
        return left

    def retire(self) -> None:
        super().retire()
        self._successor = None
        if self._passes is not None:
            passthrough, route = self._passes
            self.routing.tracing.retire()
            passthrough.forget(route)
