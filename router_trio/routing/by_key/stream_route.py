"""Routes from a stream that go key by key.

Of each key one message is under way at a time, until its destinations have confirmed it: so nothing behind it is
handled or sent before it, whatever becomes of it. One that failed, for whatever reason, holds back its key until it has
come again, or is given up. Keys don't wait for each other.

Without a handler, under the strategy sticky, all of a key goes to one destination: then messages of a key follow each
other as those of a subject do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, cast

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import EvaluationError
from router_trio.events import Emit
from router_trio.routing.by_key.handler_tasks import HandlerTasks
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.key_queues import KeyQueues
from router_trio.routing.retrying.dead_letters import DeadLetters
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.route import BATCH, StreamRoute

if TYPE_CHECKING:
    from router_trio.routing.content.routing import ContentRouting

_NO_KEY = b"\0"
"""Begins what stands for the key of a message that has none: it is in order with nothing but itself."""


class StreamRouteByKey(StreamRoute):
    """One route from a stream, key by key."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: StreamRoute | None = None,
    ) -> None:
        super().__init__(routing, connection, emit, dead_letters, before)
        plan = routing.plan
        # With a key, a route has expressions, and knows it.
        self._by_content = None if plan.key is None else cast("ContentRouting", routing)
        self._keys: KeyQueues[StreamDelivery] = KeyQueues()
        self._ack_pending.keys = self._keys
        self.forwards_on_arrival = False
        self._follow_at_once = plan.handler is None and plan.settings.strategy == "sticky"
        self._ack_pending.holds_back = self._holds_back
        self._tasks = HandlerTasks(plan.settings.concurrency, self._lead_on, self._begin_at_once)
        self._under_way: dict[StreamDelivery, None] = {}
        """What is in its handler, in the order in which that was called."""

    def order_key(self, delivery: StreamDelivery) -> bytes:
        """See `Source.order_key`."""
        if self._by_content is None:
            return delivery.raw[0]
        if delivery.key is None:
            try:
                delivery.key = self._by_content.value_of_key(delivery.raw, delivery)
            except EvaluationError:
                delivery.key = b"%b%d" % (_NO_KEY, delivery.sequence)
        return delivery.key

    def _holds_back(self, delivery: StreamDelivery) -> bool:
        """See `AckPending`. Nobody waits for a message without a key, so it uses up none of the room for what waits."""
        return delivery.refused or not (self._follow_at_once or self.order_key(delivery).startswith(_NO_KEY))

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Source.passes_by`. Nor does anything go that its handler returns while a breaker lets nothing go."""
        flow = self._flow
        return super().passes_by(delivery) or (flow is not None and flow.probing and not flow.may_go(1))

    # --- routing ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        """See `HandlerTasks`."""
        while True:
            await self._something_waits()
            if await self._some_may_go():
                blocked = self._begin_some()
                if blocked is not None:
                    return blocked
            await self.routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        """See `HandlerTasks`."""
        return self._begin_some() if self.routing.is_ready else None

    def _begin_some(self) -> Awaitable[None] | None:
        """Route what may go now. If its handler blocks, return what to await before anything else in this task."""
        pending, flow, keys, routing = self._ack_pending, self._flow, self._keys, self.routing
        for _ in range(BATCH):
            if flow is not None and not flow.may_go(1):
                break
            if pending.waiting:
                pending.sort(keys)
            delivery = self._next()
            if delivery is None:
                break
            if pending.cursor.failures.given_up and self._retrying.was_given_up(delivery):
                self._retrying.give_up_again(delivery)
                continue
            if flow is not None:
                flow.going(1, keys.count)
            blocked = self._begin(delivery)
            if blocked is not None:
                return blocked
            if routing.waits_for is not None or routing.turn.over:
                break
        if self._nothing_comes:
            self._going_back.all_stuck()
        return None

    def _next(self) -> StreamDelivery | None:
        """The next one to route. One that waits for the limit of its value is at work meanwhile, as its key knows."""
        pending, limited = self._ack_pending, self._limited
        if limited is None:
            return pending.begin_next(self._keys)
        delivery = limited.first_allowed()
        while delivery is None:
            first = pending.begin_next(self._keys)
            if first is None:
                return None
            if limited.is_allowed(first):
                delivery = first
        return delivery

    def _begin(self, delivery: StreamDelivery) -> Awaitable[None] | None:
        handler = self.routing.plan.handler
        if delivery.key is not None and delivery.key.startswith(_NO_KEY):
            self._without_key(delivery)
            return None
        if handler is None:
            self.routing.forward_each([delivery])
            if self._follow_at_once:
                self._keys.finished(delivery.order_key, delivery)
            return None
        blocked = self.routing.route_until_blocked(handler, delivery)
        if blocked is None:
            return None
        self._under_way[delivery] = None
        return self._wait_for(blocked, delivery)

    async def _wait_for(self, blocked: Awaitable[None], delivery: StreamDelivery) -> None:
        """Wait for a handler. Cancelled in it, nothing was sent."""
        try:
            await blocked
        except trio.Cancelled:
            if self._scope.cancel_called:
                self._going_back.unrouted(delivery)
            raise
        finally:
            self._under_way.pop(delivery, None)

    def _without_key(self, delivery: StreamDelivery) -> None:
        """A message has no key: it fails, unless it is not the route's."""
        routing = self._by_content
        assert routing is not None
        if routing.takes_message(delivery):
            try:
                routing.value_of_key(delivery.raw, delivery)
            except EvaluationError as error:
                routing.expression_failed(error, delivery)
        delivery.done()

    def _look(self) -> None:
        """See `StreamRoute`. The next one of a key may begin."""
        if self._keys.may_begin:
            self.something_waits()
        super()._look()

    # --- the end ---

    def abandon(self) -> int:
        """See `Route`."""
        if not self._scope.cancel_called:
            pending = self._ack_pending
            for delivery in self._under_way:
                if delivery.cursor is pending.cursor:
                    self._going_back.comes_again(delivery)
            pending.waiting += self._keys.clear()
        return super().abandon()

    def _in_handler(self) -> Collection[StreamDelivery]:
        """See `StreamRoute`. None of it waits."""
        return ()
