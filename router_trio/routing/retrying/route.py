"""Routes from a core subscription whose messages are kept until they have their fate: with retry, or dead letters.

Nobody has a message of a core subscription but its subscriber. So one that failed waits in memory for its next attempt,
and is lost if the router ends before. Each goes through by itself: what is not kept goes faster, see `builder`.
"""

from __future__ import annotations

from math import inf
from operator import itemgetter

import trio

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import EvaluationError, RouterError, reasons
from router_trio.events import DeadLetterNotStored, Emit, MessageDeadLettered, MessageGivenUp
from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage, text
from router_trio.routing.core.intake_queue import MESSAGES_IN_A_TURN
from router_trio.routing.core.limited import WaitingForLimit
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.route import CoreRoute
from router_trio.routing.pipeline import Routing, reason_of
from router_trio.routing.policy.retry import Failure, GivenUp, policy_for
from router_trio.routing.policy.retry_queue import RetryQueue
from router_trio.routing.retrying.core_delivery import CoreDelivery
from router_trio.routing.retrying.dead_letters import DeadLetter, DeadLetters
from router_trio.states import BeingRetried


class RetryingRoute(CoreRoute):
    """One route from a core subscription that keeps its messages."""

    keeps_messages = True

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        passthrough: Passthrough,
        emit: Emit,
        dead_letters: DeadLetters | None,
        shared: SharedSubscription,
    ) -> None:
        super().__init__(routing, connection, passthrough, emit, shared)
        self._deliver, self._passes = self._received, None  # nothing passes through
        self._dead_letters = dead_letters
        self._policy = policy_for(routing.plan.settings, connection.platform.random.uniform)
        self._waiting: RetryQueue[CoreDelivery] = RetryQueue()
        self._limited: WaitingForLimit[CoreDelivery] | None = None
        if (flow := routing.flow) is not None:
            if flow.values is not None and self._values is not None:
                self._limited = WaitingForLimit(self.state, flow, flow.values, self._intake, self._values)
            if self.state.limit is not None:
                self.state.limit.waiting = self._wait_for_limit
        self._until_due = trio.CancelScope()
        self._batch: tuple[float, list[RawMessage]] = (0.0, [])
        """What was taken from the queue last; the last of it may not have been begun."""
        self._held_up: CoreDelivery | None = None
        """What waits for room or for the limit, and is not begun."""
        self._under_way = 0
        self._handed_over = False
        self._retried = BeingRetried()
        self.state.retried, self.state.clock = lambda: (self._retried,), trio.current_time
        self._one_settled = trio.lowlevel.ParkingLot()

    @property
    def _gone(self) -> int:
        """See `CoreRoute`."""
        return self._under_way - (self._held_up is not None)

    def _received(self, batch: list[RawMessage]) -> None:
        self.state.received += len(batch)
        self._intake.deliver(batch)

    async def _route_arriving(self) -> None:
        """See `Route`."""
        while True:
            await self._try_due()
            received_at, batch = 0.0, list[RawMessage]()
            # What is new is taken at once. While there is nothing, the first that is due ends the wait.
            self._until_due = trio.CancelScope(deadline=inf if len(self._intake) else self._next_due)
            with self._until_due:
                received_at, batch = await self._intake.take()
            self._in_hand = len(batch)
            self._batch = received_at, batch
            for raw in batch:
                if not self._in_hand:
                    break  # taken back meanwhile
                self._under_way += 1
                message_id = self._connection.new_message_id()
                await self._attempt(CoreDelivery(self, self.state, raw, received_at, message_id))
                if self._in_hand and self.routing.turn.over:
                    await self.routing.turn.pass_on()

    @property
    def _next_due(self) -> float:
        """When something that waits here may be tried."""
        return min(self._waiting.first_due, inf if self._limited is None else self._limited.may_go_at)

    async def _try_due(self) -> None:
        """Try what is due, and no more in one go than leaves a turn to what is new."""
        for _ in range(MESSAGES_IN_A_TURN):
            now = trio.current_time()
            limited = None if self._limited is None else self._limited.take_allowed(now)
            again = self._waiting.pop_due(now) if limited is None else None
            if limited is None and again is None:
                return
            self._in_hand = 1
            self._batch = 0.0, []
            self._under_way += 1
            await trio.lowlevel.checkpoint()
            if limited is not None:
                await self._try(limited)
            elif again is not None:
                again.start_again()
                await self._attempt(again)

    async def _attempt(self, delivery: CoreDelivery) -> None:
        """Try one of the messages in hand, unless it has to wait for the limit of its value."""
        if self._has_its_limit(delivery, trio.current_time()):
            await self._try(delivery)
        else:
            self._in_hand -= 1

    def _has_its_limit(self, delivery: CoreDelivery, now: float) -> bool:
        """Return True unless a message has to wait for the limit of its value, or has none and fails."""
        if self._limited is None:
            return True
        try:
            if self._limited.lets_go(delivery, now, delivery):
                return True
            self._no_longer_under_way()
        except EvaluationError as error:
            self._limited.value_failed(error, delivery)
        return False

    async def _try(self, delivery: CoreDelivery) -> None:
        """Try one of the messages in hand when it may go. Cancelled in the handler, nothing was sent."""
        routing = self.routing
        if not await self._may_go(delivery):
            return
        if routing.flow is not None:
            routing.flow.going(1, self._not_begun_count - 1)
        if routing.plan.handler is not None:
            await routing.route(routing.plan.handler, delivery)
        else:
            self._forward_alone(delivery)
        self._in_hand -= 1

    async def _may_go(self, delivery: CoreDelivery) -> bool:
        """Wait until a message may go. Return False if it was taken back meanwhile."""
        flow = self.routing.flow
        self._held_up = delivery
        await self.routing.wait_for_capacity()
        if flow is not None:
            while self._held_up is not None and not flow.may_go(1):
                await flow.wait_to_go(self._not_begun_count)
        if self._held_up is None:
            return False
        self._held_up = None
        return True

    def _forward_alone(self, delivery: CoreDelivery) -> None:
        routing = self.routing
        if routing.tracing.active and routing.tracing.sampled((delivery.raw,)):
            routing.begin_trace(delivery)
        routing.forward(delivery)

    @property
    def _not_begun_count(self) -> int:
        """How many messages have arrived and were not begun, the one that is about to be among them."""
        return self._in_hand + len(self._intake)

    def _wait_for_limit(self) -> int:
        if self._limited is not None:
            return self._limited.count
        flow = self.routing.flow
        return self._not_begun_count if flow is not None and flow.holds else 0

    # --- what becomes of a message ---

    def finished(self, delivery: CoreDelivery) -> None:
        """See `Keeper`."""
        failure = delivery.failure
        if failure is None:
            self._settled(delivery, delivery.outcome)
            return
        delivery.attempts += 1
        if self._is_last(failure, delivery.attempts):
            self._give_up(delivery, GivenUp(failure, delivery.attempts))
            return
        now = trio.current_time()
        due = now + self._policy.delay(failure, delivery.attempts, now)
        if self._waiting.add(delivery, delivery.raw[3], due):
            self._retried.add(delivery, now)
            self._until_due.deadline = min(self._until_due.deadline, due)
            self._no_longer_under_way()
        else:
            self.state.failed[reasons.RETRY_FULL] += 1
            self.routing.emit_failure_of(
                delivery, reasons.RETRY_FULL, "more messages failed than are kept for another attempt"
            )
            self._give_up(delivery, GivenUp(failure, delivery.attempts))

    def _is_last(self, failure: Failure, attempts: int) -> bool:
        return (
            self._closing.is_set() or failure.reason in reasons.DECIDED_BY_QUEUE or self._policy.over(failure, attempts)
        )

    def _give_up(self, delivery: CoreDelivery, dead: GivenUp) -> None:
        """That was the last attempt at a message: it is under way until its dead letter is settled, if it has one."""
        delivery.tell_given_up()
        if self._dead_letters is None:
            if self.routing.plan.settings.retry is not None:
                self._count(MessageGivenUp, delivery, dead)
            self._settled(delivery, "lost")
            return
        try:
            self._dead_letters.store(delivery, dead, self._dead_letter_settled)
        except RouterError as error:
            self._not_stored(delivery, reason_of(error), str(error))

    def _dead_letter_settled(self, letter: DeadLetter, fate: Fate) -> None:
        delivery = letter.delivery
        assert isinstance(delivery, CoreDelivery)
        if fate.delivered:
            self._count(MessageDeadLettered, delivery, letter.dead)
            self._settled(delivery, "dead_lettered")
        else:
            self._not_stored(delivery, fate.reason or fate.name, fate.detail or None)

    def _not_stored(self, delivery: CoreDelivery, reason: str, detail: str | None) -> None:
        self.state.failed[reasons.DEAD_LETTER] += 1
        now, subject = trio.current_time(), text(delivery.raw[0])
        told = reason if detail is None else f"{reason}: {detail}"
        self.state.failed_at_last(reasons.DEAD_LETTER, subject, attempt=delivery.attempts, detail=told)
        self._emit(DeadLetterNotStored(at=now, route=self.state.name, reason=reason, subject=subject, detail=detail))
        self._settled(delivery, "lost")

    def _count(
        self, event: type[MessageDeadLettered] | type[MessageGivenUp], delivery: CoreDelivery, dead: GivenUp
    ) -> None:
        reason, now, subject = dead.failure.reason, trio.current_time(), text(delivery.raw[0])
        self.state.given_up[reason] += 1
        self._emit(event(at=now, route=self.state.name, reason=reason, attempts=dead.attempts, subject=subject))

    def _settled(self, delivery: CoreDelivery, fate: str) -> None:
        self._retried.discard(delivery)
        delivery.settle_as(fate)
        self._no_longer_under_way()

    def _no_longer_under_way(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._one_settled.unpark_all()

    # --- the end ---

    def _take_back(self) -> list[tuple[float, list[RawMessage]]]:
        """See `CoreRoute`. Of what has failed, a message of which a copy was delivered stays: it is tried once more."""
        received_at, batch = self._batch
        not_begun = self._in_hand - 1 if batch and self._in_hand else 0
        taken = self._take_back_kept()
        held_up, self._held_up = self._held_up, None
        if held_up is not None:
            taken.append(held_up)
            self._no_longer_under_way()
            self._in_hand = 0
            self._intake.finish()
        else:
            self._in_hand -= not_begun
        arrived = [(one.received_at, [one.raw]) for one in taken]
        if not_begun:
            # Of one batch, what was begun was before what was not.
            arrived.append((received_at, batch[len(batch) - not_begun :]))
        return sorted(arrived, key=itemgetter(0)) + self._intake.take_waiting()

    def _take_back_kept(self) -> list[CoreDelivery]:
        """Take out what waits for another attempt, or for the limit of its value, but for what is tried once more."""
        now, taken = trio.current_time(), list[CoreDelivery]()
        for one in self._waiting.take_all() + ([] if self._limited is None else self._limited.take_all()):
            if not one.has_copies:
                self._retried.discard(one)
                taken.append(one)
            elif self._waiting.add(one, one.raw[3], now):
                self._until_due.deadline = now
        self._handed_over = True
        return taken

    async def _all_routed(self) -> None:
        """See `Route`. What waits for another attempt is dead-lettered now, or lost when the route is abandoned."""
        await super()._all_routed()
        while self._handed_over and len(self._waiting):
            await self._one_settled.park()
        if self._limited is not None:
            await self._limited.all_gone()
        if self._dead_letters is not None:
            for delivery in self._waiting.take_all():
                assert delivery.failure is not None
                self._under_way += 1
                self._give_up(delivery, GivenUp(delivery.failure, delivery.attempts))
        while self._under_way:
            await self._one_settled.park()

    def abandon(self) -> int:
        """See `Route`."""
        self._retried.clear()
        self._in_hand += len(self._waiting.take_all()) + (0 if self._limited is None else self._limited.clear())
        return super().abandon()
