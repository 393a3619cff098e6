"""Keep the messages of a subject. A failed message waits here for its next attempt, since no other place has it.

It is lost if the router ends before that, unless its dead letter is stored. If the route has only a limit or a breaker,
and nothing waits, messages are not kept, but forwarded as by a `BatchRoute`.

By key, a message that waits for its next attempt holds back its key. One key may use at most half of the room, so that
there is room for others.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import trio

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.events import Emit, MessageGivenUp
from router_trio.outbox.operation import Operation
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.delivery import CoreDelivery
from router_trio.routing.core.forwarding import BatchForwarding
from router_trio.routing.core.in_hand import SubjectInHand
from router_trio.routing.core.intake_queue import MAX_MESSAGES
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.delivery import delivery_of
from router_trio.routing.failures import Failures
from router_trio.routing.hand_over import Batches
from router_trio.routing.keeper import Keeper
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import Failure, GivenUp, policy_for
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Order
from router_trio.routing.source import KeptSource, Source
from router_trio.states import BeingRetried

MOST_OF_A_KEY = MAX_MESSAGES // 2
"""Waiting messages of one key; further ones fail, as messages do for which there is no room at all."""

_place = attrgetter("place")


class KeptSubject(SubjectSource, KeptSource["SubjectKeeper"]):
    """A subject whose messages are kept until they are settled."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        shared: SharedSubscription,
        before: KeptSubject | None = None,
    ) -> None:
        """`before` is the source of the same route with its earlier settings: this one takes its subscription over."""
        super().__init__(routing, connection, emit, shared)
        keeper = SubjectKeeper(routing, connection, emit, dead_letters, self, None if before is None else before.keeper)
        self.keeper: SubjectKeeper = keeper
        self.deliver_to(keeper.received)
        if before is not None:
            before.hand_over(self)
            before.close()
            before.retire()

    def stays(self, plan: RoutePlan, *, reconnects: bool) -> bool:
        return self.reads(plan)

    def settles_first(self, plan: RoutePlan) -> bool:
        # Without a key it is not recorded which messages were sent.
        return plan.by_key and not self._routing.plan.by_key

    async def make_way(self) -> None:
        """Do nothing: the next source takes over the subscription, without a gap."""


class _Generations:
    """The keepers of one route by its settings so far. Only the latest one is kept here."""

    __slots__ = ("latest",)

    latest: SubjectKeeper


class SubjectKeeper(Keeper[CoreDelivery, SubjectInHand]):
    """The messages of one route, and the `Recovery` of a subject after failures.

    With other settings the route has another keeper, which takes over all messages that are not sent or handled. Those
    are settled here, or handed to the other one when they fail.
    """

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        source: Source,
        before: SubjectKeeper | None = None,
    ) -> None:
        """Once `source` is closed, messages are not retried. `before` is the keeper by the earlier settings."""
        super().__init__(routing, _place)
        plan, flow = routing.plan, routing.flow
        self._source = source
        policy = policy_for(plan.settings, connection.platform.random.uniform)
        self._failures: Failures[CoreDelivery] = Failures(
            self.state, policy, dead_letters, self, emit, routing.limited_as
        )
        order: Order[CoreDelivery] = ArrivalOrder(self.order_key, _place)
        if plan.by_key:
            order = KeyOrder(self.order_key, _place, MOST_OF_A_KEY, self._too_many_of_a_key)
        self.hand: SubjectInHand = SubjectInHand(order, routing.value_limits(_place), connection.new_message_id)
        self._forwarding: BatchForwarding | None = None
        """Forwards messages that need not wait and are never retried, on arrival."""
        tried_again = plan.settings.retry is not None or dead_letters is not None or plan.by_key
        if not tried_again and plan.handler is None and (flow is None or flow.values is None):
            self._forwarding = BatchForwarding(routing)
        self._retried = BeingRetried()
        self._generations: _Generations = _Generations() if before is None else before._generations
        self._generations.latest = self
        self._expelled: set[CoreDelivery] = set()
        """Lost messages whose handlers had not returned: see `give_up_calls`."""
        self._follows: SubjectKeeper | None = before
        """The keeper by the earlier settings, while it may have calls that new messages must not pass."""
        if before is not None:
            self._take_over(before)

    def _take_over(self, before: SubjectKeeper) -> None:
        taken = before.hand.take_back()
        for delivery in taken:
            self._adopt(delivery, before)
        self.hand.continue_order(before.hand, taken)
        plan, was = self._routing.plan, before._routing.plan
        for delivery in dict.fromkeys((*before.hand.schedule.active, *before.hand.in_handler)):
            if plan.ordered_by != was.ordered_by:
                delivery.key = None
            self.order_key(delivery)  # computed by these settings, although another keeper settles it
            self.hand.schedule.activate(delivery)

    def _adopt(self, delivery: CoreDelivery, before: SubjectKeeper) -> None:
        """Take a message over, whose next attempt is due as before, or earlier if the delays are shorter now."""
        before._retried.discard(delivery)
        before.state.received -= 1
        self.state.received += 1
        delivery.go_by(self, self.state, before._routing.plan, self._routing.plan)
        known = delivery.failed
        if known is not None:
            now, failure, failures = trio.current_time(), delivery.failure, self._failures
            if failure is None or failures.policy.over(failure, known.attempts):
                delivery.due = now
            else:
                delivery.due = min(delivery.due, now + failures.delay(delivery, failure, known, now))
            self._retried.add(delivery, now)

    @property
    def _latest(self) -> SubjectKeeper:
        return self._generations.latest

    @property
    def _has_left(self) -> bool:
        """Return True once a keeper by other settings has everything that is not sent or handled."""
        return self._generations.latest is not self

    @property
    def retrying(self) -> tuple[int, float]:
        return len(self._retried), self._retried.oldest(trio.current_time())

    # --- received ---

    def received(self, batch: list[RawMessage]) -> None:
        """Take over a batch that the link has read."""
        self.state.received += len(batch)
        if self._forwarding is not None and self._may_pass(len(batch)):
            batch = self._pass_on(self._forwarding, batch)
            if not batch:
                return
        refused = self.hand.add(self, self.state, batch, trio.current_time())
        if refused:
            self._overflow(refused)
        self.route.something_waits()

    def _may_pass(self, count: int) -> bool:
        """Return True if messages that were just received may be sent now: none wait, and the limit admits all."""
        if not self.routes or self.hand.waiting or self._routing.lacks_capacity:
            return False
        if self._follows is not None and self._follows.hand.in_handler:
            return False
        flow = self._routing.flow
        return flow is None or flow.may_go(count, arriving=True) >= count

    def _pass_on(self, forwarding: BatchForwarding, batch: list[RawMessage]) -> list[RawMessage]:
        """Forward messages on arrival. Return the rest of them, which waits for the next turn of the loop.

        Fast path of `KeptRoute._begin`; held equal by
        tests/unit/routing/test_both_ways.py::test_a_batch_is_forwarded_like_its_messages_one_by_one, worth what
        tests/performance/test_instructions.py::test_an_idle_limit_or_breaker_costs_nothing asks for.
        """
        flow = self._routing.flow
        if flow is not None:
            flow.going(len(batch), 0)
        if not self._routing.as_it_comes:
            self._routing.turn.begin()
        rest = forwarding.forward(trio.current_time(), batch)
        if flow is not None:
            flow.filtered(len(rest))
        return rest

    def _too_many_of_a_key(self, delivery: CoreDelivery) -> None:
        self._retried.discard(delivery)
        self.hand.refuse(delivery)
        self._overflow(1)

    def _overflow(self, count: int) -> None:
        self._routing.lose_unrouted(reasons.SLOW_CONSUMER, "more came than the destinations took", count)

    # --- routed ---

    @property
    def has_room(self) -> bool:
        return self._routing.has_capacity

    async def room(self) -> None:
        """Wait until a message may be sent. While a destination is away, messages wait in its outbox if it has room."""
        await self._routing.wait_for_capacity()

    def handled_again(self, seconds: float, now: float) -> None:
        self._failures.handled_again(seconds, now)

    def forward(self, delivery: CoreDelivery) -> None:
        routing = self._routing
        if routing.tracing.active and routing.tracing.sampled((delivery.raw,)):
            routing.begin_trace(delivery)
        routing.forward(delivery)

    @property
    def sent(self) -> int:
        """Return the number of unsettled messages, without those forwarded on arrival: they are not in hand."""
        return self.state.in_hand - self.hand.count + self.hand.active

    # --- settled, or retried ---

    def finished(self, delivery: CoreDelivery) -> None:
        if self._expelled and delivery in self._expelled:
            self._expelled.remove(delivery)  # it has its fate
        elif delivery.failure is None and not delivery.recalled:
            self._settled(delivery, delivery.outcome)
        elif delivery.failure is None:
            self._wait_for_breaker(delivery)
        else:
            self._failures.failed(delivery, delivery.failure, delivery.known)

    def is_last_attempt(self, delivery: CoreDelivery, failure: Failure) -> bool:
        return self._has_ended or failure.reason in reasons.DECIDED_BY_QUEUE

    @property
    def _has_ended(self) -> bool:
        """Return True if no message is retried any more: nothing is received, and no other settings follow."""
        latest = self._latest
        return latest._source.closed and not latest.settings_follow

    def _leave_to(self, latest: SubjectKeeper, delivery: CoreDelivery, due: float) -> None:
        """Have a message that was begun here retried by the settings of now."""
        delivery.due = due
        self.hand.settle(delivery)
        latest._adopt(delivery, self)
        latest.hand.add_in_place(delivery)
        latest.hand.schedule.finished(delivery)
        latest.route.something_waits()
        latest.route.look()

    def try_again(self, delivery: CoreDelivery, delay: float, now: float) -> bool:
        if self._has_left:
            self._leave_to(self._latest, delivery, now + delay)
            return True
        flow, failure = self._routing.flow, delivery.failure
        assert failure is not None
        delivery.refused = flow is not None and flow.probing and not reasons.counts_as_attempt(failure.reason)
        due = delivery.received_at if delivery.refused else now + delay  # the breaker decides when it is sent
        if self.hand.retry(delivery, due, holds_key=self._holds_key(delivery)):
            self._retried.add(delivery, now)
            self.route.something_waits()  # it may be due before anything else
            self.route.look()
            return True
        self._report_no_room(delivery)
        return False

    def _report_no_room(self, delivery: CoreDelivery) -> str:
        """Count and report that a message can't be kept for another attempt. Return the text."""
        detail = "more messages failed than are kept for another attempt"
        self.state.failed[reasons.RETRY_FULL] += 1
        self._routing.emit_failure_of(delivery, reasons.RETRY_FULL, detail)
        return detail

    def _wait_for_breaker(self, delivery: CoreDelivery) -> None:
        """Keep a message in its place before later ones, until the breaker of its destination lets it be sent."""
        due = delivery.received_at
        delivery.known.tried = delivery.refused = True
        if self._has_ended:
            failure = Failure(reasons.SHUTDOWN, "its destination refused all messages")
            self._failures.give_up(delivery, GivenUp(failure, max(1, delivery.known.attempts)))
        elif self._has_left:
            self._leave_to(self._latest, delivery, due)
        elif self.hand.retry(delivery, due, holds_key=self._holds_key(delivery)):
            self.route.something_waits()
            self.route.look()
        else:
            failure = Failure(reasons.RETRY_FULL, self._report_no_room(delivery))
            self._failures.give_up(delivery, GivenUp(failure, max(1, delivery.known.attempts)))

    def _holds_key(self, delivery: CoreDelivery) -> bool:
        """Return True if later messages of its key wait for a failed message.

        If only the strategy has the key, and not a handler, those of a message that fails because of its content are
        sent, as from a stream: otherwise one that is retried without end would hold up its key for ever.
        """
        plan, failure = self._routing.plan, delivery.failure
        if plan.handler is not None or plan.settings.strategy != "sticky" or failure is None:
            return True
        return failure.reason not in reasons.OF_THE_MESSAGE

    def dead_lettered(self, delivery: CoreDelivery, dead: GivenUp, *, elsewhere: bool) -> None:
        self._settled(delivery, "dead_lettered")

    def scheduled(self, delivery: CoreDelivery) -> None:
        raise AssertionError("a message of a subject waits in memory")

    def dropped(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        if self._routing.plan.settings.retry is not None:
            self._failures.count(MessageGivenUp, delivery, dead)
        self._settled(delivery, "lost")

    def not_stored(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        """Count the message as lost: no other place has it."""
        self._settled(delivery, "lost")

    def place(self, delivery: CoreDelivery) -> dict[str, Any]:
        return {}

    def _settled(self, delivery: CoreDelivery, fate: str) -> None:
        self._retried.discard(delivery)
        delivery.settle_as(fate)
        self._leave_hand(delivery)

    def _leave_hand(self, delivery: CoreDelivery) -> None:
        self.hand.settle(delivery)
        if self._has_left:
            self._latest.hand.schedule.finished(delivery)
        self.route.look()

    # --- the end ---

    def settle_rest(self) -> bool:
        """Dead-letter messages that wait for a retry, or lose them when the route is abandoned."""
        hand = self.hand
        if hand.count > hand.held + hand.active:
            return False
        if self._failures.has_dead_letters:
            for delivery in hand.take_held():
                failure = delivery.failure or Failure(reasons.SHUTDOWN, "its destination refused all messages")
                self._failures.give_up(delivery, GivenUp(failure, max(1, delivery.known.attempts)))
        return not hand.active

    def return_unrouted(self) -> bool:
        return False

    def not_sent(self, delivery: CoreDelivery) -> None:
        """Keep the message until `let_go`. If the route has ended, it was dropped with the others."""
        if delivery in self._expelled:
            self._expelled.remove(delivery)
        elif self._has_left or self.settings_follow:
            self._lose_call(delivery)
        elif not self.is_over:
            self.hand.put_back(delivery)

    def let_go(self) -> int:
        """Drop all messages. Those in a handler are lost as well: its answers are not sent any more."""
        self._end()
        self._retried.clear()
        return len(self.hand.take_unrouted())

    # --- settings that change ---

    @property
    def started(self) -> int:
        # Without those forwarded on arrival: no route is woken when they are settled.
        return self.hand.active + len(self.hand.in_handler)

    def give_up_calls(self) -> None:
        hanging = self.hand.in_handler
        self._expelled.update(hanging)
        for delivery in hanging:
            self._lose_call(delivery)

    def _lose_call(self, delivery: CoreDelivery) -> None:
        """Lose a message whose handler was cancelled. Nothing of it was sent, and no other place has it."""
        self._retried.discard(delivery)
        self._routing.lose_unrouted(reasons.SHUTDOWN, "its handler did not return before its settings changed", 1)
        self._unsettled += 1
        self._leave_hand(delivery)

    def recall(self) -> None:
        """Take messages that could not be sent back from the outboxes, if they may be tried again."""
        if self._routing.plan.settings.holds_failed_messages and not self._has_ended:
            for destination in self._routing.connections:
                destination.outbox.recall(self._is_own, "it is sent by the other settings of its route")

    def _is_own(self, operation: Operation) -> bool:
        delivery = delivery_of(operation)
        return delivery is not None and delivery.route is self.state

    def retire(self) -> None:
        latest = self._latest
        if latest._follows is self:
            latest._follows = None

    def go_on_with(self, waiting: Batches) -> None:
        """Route messages first that a route which kept none has received and not begun."""
        self.hand.add_first(self, self.state, waiting)
