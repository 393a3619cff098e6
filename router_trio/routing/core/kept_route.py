"""Routes from a core subscription that keep each message until it has its fate.

Nobody has a message of a core subscription but its subscribers. So one that failed waits in memory for its next
attempt, and is lost if the router ends before. A route keeps its messages if they are tried again or dead-lettered, if
they go by key, or if they may have to wait for a limit or a breaker. While nothing waits, a limit or a breaker alone
keeps nothing: messages are forwarded as by a `BatchRoute`.

By key, one message of each key is active at a time, until it has its fate: one that waits for its next attempt holds
back its key. Of one key at most half of the room is used, so that there is room for others.
"""

from __future__ import annotations

from collections.abc import Awaitable
from operator import attrgetter
from typing import Any

import trio

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.events import Emit, MessageGivenUp
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.delivery import CoreDelivery
from router_trio.routing.core.forwarding import BatchForwarding
from router_trio.routing.core.in_hand import InHand
from router_trio.routing.core.intake_queue import MAX_MESSAGES, MESSAGES_IN_A_TURN
from router_trio.routing.core.route import CoreRoute
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.failures import Failures
from router_trio.routing.handler_tasks import HandlerTasks
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import Failure, GivenUp, policy_for
from router_trio.routing.route import Batches
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Order
from router_trio.states import BeingRetried

MOST_OF_A_KEY = MAX_MESSAGES // 2
"""Messages of one key that wait: what is more fails, as what there is no room for at all."""

_place = attrgetter("place")


class KeptRoute(CoreRoute):
    """Route messages of a subject, and keep each of them until it has its fate."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        shared: SharedSubscription,
    ) -> None:
        super().__init__(routing, connection, emit, shared)
        plan, flow = routing.plan, routing.flow
        policy = policy_for(plan.settings, connection.platform.random.uniform)
        self._failures: Failures[CoreDelivery] = Failures(self.state, policy, dead_letters, self, emit)
        self._keyed = plan.by_key
        self._hand = InHand(self._order(), routing.value_limits(_place))
        self._tasks = HandlerTasks(plan.settings.concurrency, self._lead_on, self._begin_at_once)
        self._arrived = trio.Event()
        self._left_hand = trio.lowlevel.ParkingLot()
        self._routes = False
        self._handed_over = False
        self._forwarding: BatchForwarding | None = None
        """Forwards what has to wait for nothing, and is not tried again, as it comes."""
        tried_again = plan.settings.retry is not None or dead_letters is not None or plan.by_key
        if not tried_again and plan.handler is None and flow is not None and flow.values is None:
            self._forwarding = BatchForwarding(routing)
        self._retried = BeingRetried()
        self.state.retried, self.state.clock = lambda: (self._retried,), trio.current_time
        if flow is not None:
            flow.follow(routing.needed, self._gone)
            if self.state.limit is not None:
                self.state.limit.waiting = self._limited

    def _gone(self) -> int:
        """Return how many messages were sent, or are being dead-lettered: what passes by is not kept in hand."""
        hand = self._hand
        return self.state.in_hand - hand.waiting - len(hand.retries) - len(hand.in_handler)

    def _limited(self) -> int:
        """Return how many messages wait for the limit of the route, or of their value."""
        flow, hand = self.routing.flow, self._hand
        if flow is None or flow.values is not None:
            return hand.limits.count
        return hand.waiting if flow.holds else 0

    def _order(self) -> Order[CoreDelivery]:
        if not self._keyed:
            return ArrivalOrder()
        return KeyOrder(self._key_of, _place, MOST_OF_A_KEY, self._too_many_of_a_key)

    def _key_of(self, delivery: CoreDelivery) -> bytes:
        key = delivery.key
        if key is None:
            key = delivery.key = self.routing.order_key(delivery, delivery.place)
        return key

    # --- received ---

    def _received(self, batch: list[RawMessage]) -> None:
        """See `CoreRoute`."""
        self.state.received += len(batch)
        if self._forwarding is not None and self._may_pass(len(batch)):
            batch = self._pass_on(self._forwarding, batch)
            if not batch:
                return
        refused = self._hand.add(self, self.state, batch, trio.current_time())
        if refused:
            self._overflow(refused)
        self._arrived.set()

    def _may_pass(self, count: int) -> bool:
        """Return True if messages that were just received go now: nothing waits, and the limit lets all of them go."""
        flow, routing = self.routing.flow, self.routing
        assert flow is not None
        waits = not self._routes or self._hand.waiting or routing.lacks_capacity
        return not waits and flow.may_go(count, arriving=True) >= count

    def _pass_on(self, forwarding: BatchForwarding, batch: list[RawMessage]) -> list[RawMessage]:
        """Forward messages as they come. Return what is left of them, which waits for the next turn of the loop.

        Fast path of `_begin`; held equal by
        tests/unit/routing/test_both_ways.py::test_a_batch_is_forwarded_as_its_messages_would_be_one_by_one, worth what
        tests/performance/test_instructions.py::test_a_limit_or_a_breaker_that_is_not_at_work_costs_nothing asks for.
        """
        flow = self.routing.flow
        assert flow is not None
        flow.going(len(batch), 0)
        if not self.routing.as_it_comes:
            self.routing.turn.begin()
        rest = forwarding.forward(trio.current_time(), batch)
        flow.filtered(len(rest))
        return rest

    def _too_many_of_a_key(self, delivery: CoreDelivery) -> None:
        self._hand.refuse(delivery)
        self._overflow(1)

    # --- routed ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        self._routes = True
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        """See `HandlerTasks`."""
        hand, flow, routing = self._hand, self.routing.flow, self.routing
        while True:
            await self._something_waits()
            for _ in range(MESSAGES_IN_A_TURN):
                await routing.wait_for_capacity()
                if flow is not None and not flow.may_go(1):
                    await flow.wait_to_go(hand.waiting or 1)  # if none waits, it is one that is to be tried again
                    break
                delivery = hand.next(trio.current_time())
                if delivery is None:
                    break
                blocked = self._begin(delivery)
                if blocked is not None:
                    return blocked
                if routing.turn.over:
                    break
            self._look()
            await routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        """See `HandlerTasks`."""
        routing, flow = self.routing, self.routing.flow
        blocked: Awaitable[None] | None = None
        for _ in range(MESSAGES_IN_A_TURN):
            if not routing.is_ready or routing.lacks_capacity or (flow is not None and not flow.may_go(1)):
                break
            delivery = self._hand.next(trio.current_time())
            blocked = None if delivery is None else self._begin(delivery)
            if delivery is None or blocked is not None or routing.turn.over:
                break
        self._look()
        return blocked

    async def _something_waits(self) -> None:
        """Wait until there is something to route: it arrived, or is due."""
        hand = self._hand
        while not hand.ready(trio.current_time()):
            self._arrived = trio.Event()
            with trio.CancelScope(deadline=hand.due_at):
                await self._arrived.wait()
            self.routing.turn.begin()

    def _begin(self, delivery: CoreDelivery) -> Awaitable[None] | None:
        """Route one message, which may go. If its handler blocks, return what to await."""
        routing, hand = self.routing, self._hand
        if self._keyed and routing.lacks_key(self._key_of(delivery)):
            routing.fail_without_key(delivery)
            return None
        if routing.flow is not None:
            routing.flow.going(1, hand.waiting)
        if delivery.message_id is None:
            delivery.message_id = self._connection.new_message_id()
        if routing.plan.handler is None:
            if routing.tracing.active and routing.tracing.sampled((delivery.raw,)):
                routing.begin_trace(delivery)
            routing.forward(delivery)
            return None
        try:
            blocked = routing.route_until_blocked(routing.plan.handler, delivery)
        except BaseException:
            hand.in_handler[delivery] = None  # the route is over, and `abandon` counts the message
            raise
        if blocked is None:
            return None
        hand.in_handler[delivery] = None
        return self._wait_for(blocked, delivery)

    async def _wait_for(self, blocked: Awaitable[None], delivery: CoreDelivery) -> None:
        """Wait for a handler. Cancelled in it, nothing was sent: the message stays there for `abandon`."""
        await blocked
        self._hand.in_handler.pop(delivery, None)

    # --- settled, or tried again ---

    def finished(self, delivery: CoreDelivery) -> None:
        """See `Keeper`."""
        if delivery.failure is None:
            self._settled(delivery, delivery.outcome)
        else:
            delivery.attempts += 1
            self._failures.failed(delivery, delivery.failure, delivery.attempts)

    def is_last_attempt(self, delivery: CoreDelivery, failure: Failure) -> bool:
        """See `Recovery`."""
        return self._closing.is_set() or failure.reason in reasons.DECIDED_BY_QUEUE

    def try_again(self, delivery: CoreDelivery, delay: float, now: float) -> bool:
        """See `Recovery`."""
        if self._hand.retry(delivery, now + delay):
            self._retried.add(delivery, now)
            self._look()
            return True
        self.state.failed[reasons.RETRY_FULL] += 1
        self.routing.emit_failure_of(
            delivery, reasons.RETRY_FULL, "more messages failed than are kept for another attempt"
        )
        return False

    def dead_lettered(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        """See `Recovery`."""
        self._settled(delivery, "dead_lettered")

    def dropped(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        """See `Recovery`."""
        if self.routing.plan.settings.retry is not None:
            self._failures.count(MessageGivenUp, delivery, dead)
        self._settled(delivery, "lost")

    def not_stored(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        """See `Recovery`: nobody else has the message."""
        self._settled(delivery, "lost")

    def place(self, delivery: CoreDelivery) -> dict[str, Any]:
        """See `Recovery`."""
        return {}

    def _settled(self, delivery: CoreDelivery, fate: str) -> None:
        self._retried.discard(delivery)
        delivery.settle_as(fate)
        self._hand.settle(delivery)
        self._look()

    def _look(self) -> None:
        """Something has left its place: go on with what that makes room for."""
        if self._hand.ready(trio.current_time()) or len(self._hand.retries):
            self._arrived.set()
        self._left_hand.unpark_all()

    # --- the end ---

    def _take_back(self) -> Batches:
        """See `CoreRoute`."""
        taken = self._hand.take_back(trio.current_time())
        for delivery in taken:
            self._retried.discard(delivery)
        self._handed_over = True
        self._look()
        if self.routing.flow is not None:
            self.routing.flow.wake()
        return [(delivery.received_at, [delivery.raw]) for delivery in taken]

    def _go_on_with(self, waiting: Batches) -> None:
        """See `CoreRoute`."""
        self._hand.add_first(self, self.state, waiting)
        self._arrived.set()

    async def _all_routed(self) -> None:
        """See `Route`. What waits for another attempt is dead-lettered now, or lost when the route is abandoned."""
        hand = self._hand
        while hand.waiting or hand.in_handler or (self._handed_over and len(hand.retries)):
            await self._left_hand.park()
        if self._failures.has_dead_letters:
            for delivery in hand.retries.take_all():
                assert delivery.failure is not None
                self._failures.give_up(delivery, GivenUp(delivery.failure, delivery.attempts))
        while hand.active:
            await self._left_hand.park()

    def _drop_unrouted(self) -> int:
        """See `CoreRoute`."""
        self._retried.clear()
        self._routes = False
        return len(self._hand.take_unrouted())
