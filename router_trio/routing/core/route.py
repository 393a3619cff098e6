"""Routes from a core subscription: what comes is routed, nothing is acked.

A message that nobody changes and nobody looks at goes through as part of a batch, untouched but for its subject.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, ClassVar, cast

import trio

from router_trio.connection.shared_subscription import Member, SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, PublishError, reasons
from router_trio.events import Emit
from router_trio.link import Deliver, Link, SharedDelivery
from router_trio.protocol import framing
from router_trio.routing.core.flow import CoreFlow
from router_trio.routing.core.handler_batch import HandlerBatch
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.core.passthrough import Passthrough, PassthroughRoute
from router_trio.routing.delivery import BatchDelivery, BatchTracker, Delivery
from router_trio.routing.handler_calls import HandlerCalls, Pair
from router_trio.routing.handler_messages import as_messages
from router_trio.routing.handlers import Handler
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.states import RUNNING

if TYPE_CHECKING:
    from router_trio.routing.content.routing import ContentRouting


BETWEEN_TWO_LOOKS = 64
"""Messages with expressions between two looks at the clock."""


class CoreRoute(Route):
    """One route from a core subscription."""

    keeps_messages: ClassVar[bool] = False
    """True if each message goes through by itself, and is kept until it has its fate."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        passthrough: Passthrough,
        emit: Emit,
        shared: SharedSubscription,
    ) -> None:
        """`passthrough` leads to the connection of the first destination, if there is one.

        `shared` is with routes of the same subject.
        """
        super().__init__(routing, connection, emit)
        self._shared = shared
        outlets = routing.outlets
        as_it_comes = routing.plan.handler is None and routing.as_it_comes and routing.flow is None
        plain = len(outlets) == 1 and not outlets[0].destination.jetstream and as_it_comes
        self._intake = IntakeQueue(self._overflow, routing.turn.begin)
        self._deliver: Deliver | SharedDelivery = self._received
        self._passes: tuple[Passthrough, PassthroughRoute] | None = None
        """The way that what is forwarded as it comes takes, if it may."""
        if plain:
            self._passes = passthrough, PassthroughRoute(routing, self._intake, self._received)
            self._deliver = SharedDelivery(passthrough.deliver, self._passes[1])
        self._member: Member | None = None
        self._in_hand = 0
        self._batch: tuple[float, list[framing.RawMessage]] = (0.0, [])
        """What was taken from the queue last; the last of it may not have been begun."""
        self._not_begun = 0
        """How many of that have not been begun: they may be taken back while the route waits for something."""
        self._flow: CoreFlow | None = None
        if routing.flow is not None and not self.keeps_messages:
            self._flow = CoreFlow(routing.state, routing.flow, self._intake, self._route_batch, self._values)
        if routing.flow is not None:
            routing.flow.follow(routing.needed, lambda: self._gone)
        self._subscribing = trio.CancelScope()

    @property
    def _values(self) -> ContentRouting | None:
        """Who knows the values of which each has a limit: with such, a route has expressions."""
        flow = self.routing.flow
        return None if flow is None or flow.values is None else cast("ContentRouting", self.routing)

    @property
    def _gone(self) -> int:
        """How many messages have gone and have no fate."""
        return self.state.in_hand - (0 if self._flow is None else self._flow.waiting)

    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """See `Route`."""
        source = self.routing.plan.settings.source
        assert source.subject is not None
        self._subscribing = trio.CancelScope()
        with self._receiving("no subscription: the connection is away"):
            if self._member is None or self._member.link is not link:
                self._member = None
                # A server that doesn't answer must not hold up the end.
                with self._subscribing:
                    self._member = await self._shared.take_part(link, self._deliver)
            if self._member is None:
                self._retry.tried(tried)
                return
            self._retry.succeeded()
            self.state.enter(RUNNING)
            self._retry.ready(source.subject)
            self._retry.tried(tried)
            await self._closing.wait()
            if self._member is not None:
                await self._member.drain()

    def hand_over(self, successor: CoreRoute) -> None:
        """Let another route with the same subscription have it, and all that waits. What was begun is still routed.

        What comes from now on waits for `run` of the successor, so that the order is kept.
        """
        if self._member is not None and self._member.link is self._connection.link:
            successor._take_over(self._member)
            self._member = None
        successor._hold()
        waiting = self._take_back()
        count = sum(len(batch) for _, batch in waiting)
        self.state.received -= count
        successor.state.received += count
        successor._intake.put_first(waiting)
        self.close_intake()

    def _take_over(self, member: Member) -> None:
        self._member = member
        member.deliver_to(self._deliver)
        self.state.enter(RUNNING)

    def _hold(self) -> None:
        self._intake.let_nothing_pass()
        if self._passes is not None:
            passthrough, route = self._passes
            passthrough.let_wait(route)

    def _take_back(self) -> list[tuple[float, list[framing.RawMessage]]]:
        """Take out all that was not begun, the oldest first."""
        taken = []
        if self._not_begun:
            received_at, batch = self._batch
            taken.append((received_at, batch[len(batch) - self._not_begun :]))
            self._in_hand -= self._not_begun
            self._not_begun = 0
            if not self._in_hand:
                self._intake.finish()
        if self._flow is not None:
            taken += self._flow.take_unrouted()
        return taken + self._intake.take_waiting()

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._subscribing.cancel()

    def retire(self) -> None:
        """See `Route`."""
        super().retire()
        if self._passes is not None:
            passthrough, route = self._passes
            passthrough.forget(route)

    async def _all_routed(self) -> None:
        """See `Route`."""
        await self._intake.empty()
        if self._flow is not None:
            await self._flow.empty()

    def recall(self) -> None:
        """See `Route`. There is no stream: what the outboxes have is still sent."""

    def abandon(self) -> int:
        """See `Route`."""
        self._scope.cancel()
        left, self._in_hand = self._intake.clear() + self._in_hand, 0
        self._not_begun = 0
        self._intake.finish()
        if self._flow is not None:
            left += self._flow.clear()
        if left > 0:
            self.state.failed[reasons.SHUTDOWN] += left
            self._never_routed(left)
            self.routing.emit_failure(reasons.SHUTDOWN, "received, and not routed before the shutdown", count=left)
        return left

    async def _route_arriving(self) -> None:
        """See `Route`."""
        if self._flow is not None:
            await self._flow.run()
        while True:
            received_at, batch = await self._intake.take()
            await self._route_batch(received_at, batch)

    async def _route_batch(self, received_at: float, batch: list[framing.RawMessage]) -> None:
        """Route all of a batch."""
        self._batch = received_at, batch
        self._in_hand = self._not_begun = len(batch)
        await self.routing.wait_for_capacity()
        if not self._not_begun:
            return  # taken back meanwhile
        handler = self.routing.plan.handler
        if handler is not None:
            await self._handle(handler, received_at, batch)
        else:
            while batch := self._pass_on(received_at, batch):
                self._batch = received_at, batch
                self._in_hand = self._not_begun = len(batch)
                await self.routing.turn.pass_on()
                if not self._not_begun:
                    return  # taken back meanwhile
        self._in_hand = self._not_begun = 0

    async def _handle(self, handler: Handler, received_at: float, batch: list[framing.RawMessage]) -> None:
        """Take a batch through the handler, or what of it is not taken back while that blocks."""
        handled = HandlerBatch(self.routing, handler, received_at)
        await self._call_for_each(handler, handled, batch)
        handled.offer_kept()

    async def _call_for_each(self, handler: Handler, handled: HandlerBatch, batch: list[framing.RawMessage]) -> None:
        tracing = self.routing.tracing
        start, end = 0, len(batch)
        for index in (*(tracing.sampled(batch) if tracing.active else ()), end):
            raws = batch[start:index]
            left = iter(raws)
            messages: Iterator[Pair] = zip(left, as_messages(raws, self.routing.plan.connection), strict=True)
            if not self.routing.as_it_comes:
                messages = filter(handled.wants, messages)
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
        """Wait within a batch of which `not_begun` are left. Return True if these were taken back meanwhile."""
        self._in_hand, self._not_begun = in_handler + not_begun, not_begun
        await waits
        return self._not_begun < not_begun

    def _pass_on(self, received_at: float, batch: list[framing.RawMessage]) -> list[framing.RawMessage]:
        """Forward a batch. Return what is left of it when the loop should turn before the rest."""
        if not self.routing.as_it_comes:
            return self._forward_by_content(received_at, batch)
        if self.routing.tracing.active:
            self._forward_traced(received_at, batch)
        else:
            self._forward(received_at, batch)
        return []

    def _forward_by_content(self, received_at: float, batch: list[framing.RawMessage]) -> list[framing.RawMessage]:
        # Only for routes with expressions: what those need takes its time to import.
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
        """Forward a batch in which a few messages are sampled: what lies between two of them stays together."""
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
        """Take a batch to every destination, with `BatchDelivery`, `Outlet.forward_core` and `Outbox.offer_frames`.

        Fast path of `Routing.forward`; held equal by
        tests/unit/routing/test_both_ways.py::test_a_batch_is_forwarded_as_its_messages_would_be_one_by_one, worth 600
        instructions a message (tests/performance/test_fast_paths.py::test_core_messages_that_are_forwarded_together).
        """
        outlets, flow = self.routing.outlets, self.routing.flow
        apart = flow is not None and (flow.probing or (len(outlets) > 1 and bool(flow.breakers)))
        if apart or (len(outlets) > 1 and self.routing.waits_for is not None):
            # What is kept is kept one by one: each has its own fate at each destination. A breaker has to know it.
            for raw in batch:
                self.routing.forward(Delivery(self.state, raw, received_at))
            return
        delivery = BatchDelivery(self.state, received_at, len(batch))
        owners = [delivery.owner_for(outlet.template) for outlet in outlets]
        for outlet, owner in zip(outlets, owners, strict=True):
            owner.first = outlet.outbox.next_order
            if outlet.destination.jetstream:
                refused = _forward_each(outlet, owner, batch)
            else:
                refused = outlet.forward_core(batch, owner)
            for number, reason, detail in refused:
                owner.refuse(number, reason)
                self.routing.emit_failure(reason, detail, subject=batch[number][0])

    def _received(self, batch: list[framing.RawMessage]) -> None:
        self.state.received += len(batch)
        routing = self.routing
        waits = self._intake.busy or routing.plan.handler is not None or routing.lacks_capacity
        if waits or (self._flow is not None and not self._flow.lets_go(len(batch))):
            self._intake.deliver(batch)
        else:
            # Nothing to wait for: forwarded as it comes, without a turn of the route's own task.
            if not routing.as_it_comes:
                routing.turn.begin()
            if rest := self._pass_on(trio.current_time(), batch):
                self._intake.deliver(rest)

    def _never_routed(self, count: int) -> None:
        self.state.never_routed += count
        self.state.fates["lost"] += count

    def _overflow(self, count: int) -> None:
        self.state.failed[reasons.SLOW_CONSUMER] += count
        self._never_routed(count)
        self.routing.emit_failure(reasons.SLOW_CONSUMER, "more came than the destinations took", count=count)


def _forward_each(outlet: Outlet, owner: BatchTracker, batch: list[framing.RawMessage]) -> list[tuple[int, str, str]]:
    """Publish each message of a batch to a stream. Returns number, reason and detail of each that was refused."""
    refused = []
    for number, raw in enumerate(batch):
        try:
            outlet.forward(raw, owner, owner)
        except (MappingError, PublishError) as error:
            refused.append((number, error.reason, str(error)))
    return refused
