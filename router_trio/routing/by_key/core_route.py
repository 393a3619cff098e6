"""Routes from a core subscription that go key by key.

Of each key one message is under way at a time, until it has its fate: one that waits for its next attempt holds back
its key. What waits uses the room of the intake queue; of one key at most half of it, so that there is room for others.
"""

from __future__ import annotations

from collections.abc import Awaitable
from itertools import count
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, cast

import trio

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import EvaluationError
from router_trio.events import Emit
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.intake_queue import MAX_MESSAGES, MESSAGES_IN_A_TURN
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.handler_tasks import HandlerTasks
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.key_queues import KeyQueues
from router_trio.routing.retrying.core_delivery import CoreDelivery
from router_trio.routing.retrying.dead_letters import DeadLetters
from router_trio.routing.retrying.route import RetryingRoute

if TYPE_CHECKING:
    from router_trio.routing.content.routing import ContentRouting

MOST_OF_A_KEY = MAX_MESSAGES // 2
"""Messages of one key that wait: what is more fails, as what the intake queue has no room for."""


class CoreRouteByKey(RetryingRoute):
    """One route from a core subscription, key by key."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        passthrough: Passthrough,
        emit: Emit,
        dead_letters: DeadLetters | None,
        shared: SharedSubscription,
    ) -> None:
        super().__init__(routing, connection, passthrough, emit, dead_letters, shared)
        plan = routing.plan
        # With a key, a route has expressions, and knows it.
        self._by_content = None if plan.key is None else cast("ContentRouting", routing)
        self._keys: KeyQueues[CoreDelivery] = KeyQueues()
        self._places = count()
        self._tasks = HandlerTasks(plan.settings.concurrency, self._lead_on, self._begin_at_once)
        self._being_routed: set[CoreDelivery] = set()

    # --- routing ---

    @property
    def _gone(self) -> int:
        """See `CoreRoute`."""
        return super()._gone - self._keys.count

    async def _route_arriving(self) -> None:
        """See `Route`."""
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        """See `HandlerTasks`."""
        while True:
            await self._sort_arriving()
            for _ in range(MESSAGES_IN_A_TURN):
                delivery = self._next()
                if delivery is None:
                    break
                blocked = self._begin(delivery) if await self._may_go(delivery) else None
                if blocked is not None:
                    return blocked
                if self.routing.turn.over:
                    break
            await self.routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        """See `HandlerTasks`."""
        routing, flow = self.routing, self.routing.flow
        for _ in range(MESSAGES_IN_A_TURN):
            if not routing.is_ready or routing.lacks_capacity or (flow is not None and not flow.may_go(1)):
                return None
            delivery = self._next()
            blocked = None if delivery is None else self._begin(delivery)
            if delivery is None or blocked is not None:
                return blocked
            if routing.turn.over:
                break
        return None

    async def _sort_arriving(self) -> None:
        """Put what came behind what is there of its key. If that is nothing, wait until something may be routed."""
        while True:
            goes = bool(self._keys.may_begin) or self._next_due <= trio.current_time()
            if goes and not len(self._intake):
                return
            received_at, batch = 0.0, list[RawMessage]()
            self._until_due = trio.CancelScope(deadline=inf if len(self._intake) else self._next_due)
            with self._until_due:
                received_at, batch = await self._intake.take()
            for raw in batch:
                self._add(CoreDelivery(self, self.state, raw, received_at, self._connection.new_message_id()))

    def _add(self, delivery: CoreDelivery) -> None:
        key = delivery.raw[0]
        if self._by_content is not None:
            try:
                key = self._by_content.value_of_key(delivery.raw)
            except EvaluationError as error:
                self._without_key(delivery, error)
                return
        if self._keys.waiting_of(key) >= MOST_OF_A_KEY:
            self._overflow(1)
            return
        self._under_way += 1
        delivery.key = key
        self._intake.set_aside(delivery.raw)
        self._keys.add(key, next(self._places), delivery)

    def _without_key(self, delivery: CoreDelivery, error: EvaluationError) -> None:
        """A message has no key: it fails, unless it is not the route's."""
        assert self._by_content is not None
        self._under_way += 1
        if self._by_content.takes_message(delivery):
            self._by_content.expression_failed(error, delivery)
        delivery.done()

    def _next(self) -> CoreDelivery | None:
        """The next one to route: one that is tried again is still at work, as its key knows."""
        now, limited = trio.current_time(), self._limited
        while True:
            delivery = None if limited is None else limited.take_allowed(now)
            if delivery is not None:
                self._under_way += 1
                break
            delivery = self._waiting.pop_due(now)
            if delivery is not None:
                self._under_way += 1
                delivery.start_again()
            else:
                delivery = self._keys.take_next()
                if delivery is None:
                    return None
                self._intake.set_aside(delivery.raw, -1)
            if self._has_its_limit(delivery, now):
                break
        self._being_routed.add(delivery)
        return delivery

    def _begin(self, delivery: CoreDelivery) -> Awaitable[None] | None:
        """Route one message, which may go. If its handler blocks, return what to await."""
        routing = self.routing
        if routing.flow is not None:
            routing.flow.going(1, self._keys.count)
        if routing.plan.handler is not None:
            blocked = routing.route_until_blocked(routing.plan.handler, delivery)
            if blocked is not None:
                return self._wait_for(blocked, delivery)
        else:
            self._forward_alone(delivery)
        self._being_routed.discard(delivery)
        return None

    async def _wait_for(self, blocked: Awaitable[None], delivery: CoreDelivery) -> None:
        """Wait for a handler. Cancelled in it, nothing was sent."""
        await blocked
        self._being_routed.discard(delivery)

    def _settled(self, delivery: CoreDelivery, fate: str) -> None:
        """See `RetryingRoute`. The next one of its key may begin."""
        if self._keys.finished(delivery.key, delivery) and self._keys.may_begin:
            self._until_due.deadline = -inf
        super()._settled(delivery, fate)

    @property
    def _not_begun_count(self) -> int:
        """See `RetryingRoute`."""
        return (self._held_up is not None) + self._keys.count + len(self._intake)

    # --- the end ---

    def _take_back(self) -> list[tuple[float, list[RawMessage]]]:
        """See `CoreRoute`. Of what has failed, a message of which a copy was delivered stays: it is tried once more."""
        waits = self._keys.clear()
        for delivery in waits:
            self._intake.set_aside(delivery.raw, -1)
        held_up, self._held_up = self._held_up, None
        if held_up is not None:
            self._being_routed.discard(held_up)
            waits.insert(0, held_up)
            self._intake.finish()
        for _ in waits:
            self._no_longer_under_way()
        # What was begun of a key was before all that waits behind it.
        taken = self._take_back_kept() + waits
        for one in taken:
            self._keys.finished(one.key, one)
        if self.routing.flow is not None:
            self.routing.flow.wake()
        return sorted(((one.received_at, [one.raw]) for one in taken), key=itemgetter(0)) + self._intake.take_waiting()

    def abandon(self) -> int:
        """See `Route`."""
        if not self._scope.cancel_called:
            self._in_hand = len(self._being_routed) + len(self._keys.clear())
        return super().abandon()
