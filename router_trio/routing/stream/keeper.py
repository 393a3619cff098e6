"""Keeps the messages of a stream until they are acked. The stream redelivers one that failed, or terminates it.

A message that is redelivered while it is in hand, or after it was settled, is not routed again. One that a destination
refused is redelivered before the ones behind it on its subject. A destination that is away stops this route, and
nothing else: messages wait in the stream.

A message that is given up stays in hand until its dead letter is stored; only then it is terminated. If the dead letter
can't be stored, the message is returned to its stream, and nothing but its dead letter is tried when it is redelivered:
no message is both routed and dead-lettered.

By key, a message that failed, for whatever reason, holds back its key until it was redelivered or is given up. Without
a handler, under the strategy sticky, a key goes to one destination: then messages of a key follow each other as those
of a subject do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import compress, groupby
from operator import attrgetter
from typing import Any

import trio

from router_trio.connection.supervisor import Connection
from router_trio.events import Emit, MessageGivenUp
from router_trio.outbox.operation import Operation
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.failures import Failures
from router_trio.routing.keeper import Keeper, RouteToWake
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import Failure, GivenUp, RetryPolicy, policy_for
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Order
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.limits import UNLIMITED
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import StreamInHand, message_of, place_of, was_refused
from router_trio.routing.turns import BATCH, BETWEEN_TWO_LOOKS

_received_at = attrgetter("received_at")


class StreamKeeper(Keeper[StreamDelivery, StreamInHand]):
    """The messages of one route, and the `Recovery` of a stream. Every method is synchronous, but `room`.

    What it has in hand, and its acks, outlive it: the keeper of the next life of the route goes on with them.
    """

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        before: StreamKeeper | None,
    ) -> None:
        """`before` is the keeper of the same consumer in the life of the route that is over."""
        super().__init__(routing, place_of)
        plan, source = routing.plan, routing.plan.settings.source
        self.acks: Acks = before.acks.on(connection) if before else Acks(connection, emit)
        self.hand: StreamInHand = StreamInHand()
        same_order = True
        if before is not None and before._leaves_hand_to(routing):
            self.hand = before.hand
            same_order = before._routing.plan.ordered_by == plan.ordered_by
        follows_at_once = plan.handler is None and plan.settings.strategy == "sticky"
        self._follows_at_once = plan.by_key and follows_at_once
        order: Order[StreamDelivery] = ArrivalOrder(self.order_key, place_of)
        if plan.by_key:
            order = KeyOrder(self.order_key, place_of)
        holds_back = self._holds_back if plan.by_key else was_refused
        self.hand.go_by(self, order, routing.value_limits(place_of), holds_back, same_order=same_order)
        if before is not None and self.hand is before.hand:
            before.state.held_by(self.hand.goes_on(before.state, trio.current_time()))
        self.ack_wait: float = source.ack_wait
        """Seconds after which the server redelivers what is not acked."""
        self.server_limit: int = UNLIMITED
        """Deliveries after which the server delivers no message again, though the route wants it to."""
        self.policy: RetryPolicy = policy_for(plan.settings, connection.platform.random.uniform)
        self._stream = source.kind.stream(source) or ""
        self._failures: Failures[StreamDelivery] = Failures(self.state, self.policy, dead_letters, self, emit)
        self.stored: list[StreamDelivery] = []
        self._flow = flow = routing.flow
        limited_by_value = flow is not None and flow.values is not None
        self.forwards_on_arrival: bool = plan.handler is None and not limited_by_value and not plan.by_key
        """True if what has to wait for nothing is forwarded in the turn of the read that brought it."""
        for destination in routing.connections:
            destination.when_changed(self.recall_out_of_turn)

    @property
    def in_hand(self) -> int:
        return self.hand.in_hand

    @property
    def uncounted(self) -> int:
        return len(self.stored)

    @property
    def retrying(self) -> tuple[int, float]:
        retried = self.hand.cursor.failures.retried
        return len(retried), retried.oldest(trio.current_time())

    @property
    def late(self) -> float:
        """Return how many seconds a redelivery may be late: if a nak is lost, it is after the ack wait."""
        return self.ack_wait + OVERDUE

    @property
    def has_dead_letters(self) -> bool:
        """Return True if what is given up is stored elsewhere."""
        return self._failures.has_dead_letters

    # --- what is in order with what ---

    def _holds_back(self, delivery: StreamDelivery) -> bool:
        """See `StreamInHand.holds_back`. Nothing waits for a message without a key: it takes up no room."""
        return delivery.refused or not (self._follows_at_once or self._routing.lacks_key(self.order_key(delivery)))

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Keeper.passes_by`. Nor is anything sent that a handler returns while a breaker lets nothing go."""
        flow = self._flow
        return self.hand.passes_by(delivery) or (flow is not None and flow.probing and not flow.may_go(1))

    # --- routed ---

    @property
    def has_room(self) -> bool:
        return self._routing.is_ready

    async def room(self) -> None:
        """See `Keeper`. What is for a destination that is away waits in the stream."""
        await self._routing.ready()

    def next(self, now: float) -> StreamDelivery | None:
        """See `Keeper`. Of a message that was given up before, only the dead letter is sent."""
        hand = self.hand
        while (delivery := hand.next(now)) is not None:
            given_up = delivery.cursor.failures.given_up
            if not given_up or delivery.sequence not in given_up:
                break
            self._give_up_again(delivery)
        return delivery

    def forward(self, delivery: StreamDelivery) -> None:
        self._routing.forward_each([delivery])
        if self._follows_at_once:
            self.hand.let_next_go(delivery)

    def forward_waiting(self) -> bool:
        if not self.forwards_on_arrival:
            return False
        routing, hand = self._routing, self.hand
        for _ in range(1 if routing.as_it_comes else BATCH // BETWEEN_TWO_LOOKS):
            if not (self.forward_some() and hand.waiting and routing.is_ready) or routing.turn.over:
                break
        return True

    def forward_some(self) -> bool:
        """Forward messages that may go now, in one go. Return False if the limit or a breaker lets nothing go.

        Fast path of `KeptRoute._begin_some`, for routes without a handler, keys and limits of values; held equal by
        test_both_ways_of_streams.py::test_what_waits_is_forwarded_together_as_it_would_be_one_by_one.
        """
        flow, hand = self._flow, self.hand
        most = BATCH if self._routing.as_it_comes else BETWEEN_TWO_LOOKS
        if flow is not None:
            most = flow.may_go(min(most, hand.waiting))
            if not most:
                return False
        deliveries = hand.next_together(most)
        if hand.cursor.failures.given_up or len(hand.open) < hand.count:  # or some are of an earlier incarnation
            deliveries = self._without_given_up(deliveries)
        if flow is not None:
            flow.going(len(deliveries), hand.waiting)
        self._routing.forward_each(deliveries)
        return True

    @property
    def sent(self) -> int:
        return self.hand.active

    # --- settled ---

    def finished(self, delivery: StreamDelivery) -> None:
        """See `Keeper`: ack it or nak it, or give it up."""
        hand, failure = self.hand, delivery.failure
        if failure is None and not delivery.recalled:
            self.state.fates[delivery.outcome] += 1
            self._delivered([delivery])
        elif failure is not None and delivery.cursor is hand.cursor:
            self._failed(delivery, failure)
        elif failure is None and self.is_over:
            self._return((delivery,))  # nobody routes it any more
        else:
            hand.remove(delivery)
            if failure is None:
                hand.take_back(delivery)
            else:
                self.state.fates["lost"] += 1  # its stream is gone
        self.route.look()

    def first_stored(self) -> None:
        """See `Keeper.first_stored`. What is stored is acked with all others that the link tells of now."""
        self._routing.connections[0].listener.when_read_done(self._ack_stored)

    def _ack_stored(self) -> None:
        stored, self.stored = self.stored, []
        state, now = self.state, trio.current_time()
        state.delivered[state.destinations[0]] += len(stored)
        state.fates["routed"] += len(stored)
        for received_at, together in groupby(stored, _received_at):
            state.elapsed.record(now - received_at, len(list(together)))
        self._delivered(stored)
        self.route.look()

    def _delivered(self, deliveries: list[StreamDelivery]) -> None:
        self.acks.ack(self.hand.delivered(deliveries))

    def look(self) -> None:
        """See `HandOwner`."""
        self.route.look()

    # --- failed ---

    def _failed(self, delivery: StreamDelivery, failure: Failure) -> None:
        """Have a message that is in hand redelivered, or give it up."""
        failures = delivery.cursor.failures
        attempts = failures.add(delivery.sequence)
        if delivery.choices is not None:
            failures.keep_choices(delivery.sequence, delivery.choices)
        self._failures.failed(delivery, failure, attempts)

    def _was_given_up(self, delivery: StreamDelivery) -> bool:
        """Return True if a message was given up before: all that is left to do is to store its dead letter."""
        return delivery.sequence in delivery.cursor.failures.given_up

    def _without_given_up(self, deliveries: Sequence[StreamDelivery]) -> list[StreamDelivery]:
        """Return the messages that are to be routed, of some in hand. Of the others, send the dead letters."""
        given_up = [self._was_given_up(delivery) for delivery in deliveries]
        for delivery in compress(deliveries, given_up):
            self._give_up_again(delivery)
        return [delivery for delivery, over in zip(deliveries, given_up, strict=True) if not over]

    def _give_up_again(self, delivery: StreamDelivery) -> None:
        """Send the dead letter of a message in hand that was given up before, and nothing else."""
        dead = delivery.cursor.failures.given_up[delivery.sequence]
        delivery.refused = dead.refused
        self._failures.give_up(delivery, dead)
        self.route.look()

    def is_last_attempt(self, delivery: StreamDelivery, failure: Failure) -> bool:
        """See `Recovery`: somebody has limited the deliveries of the consumer, and nobody may change that."""
        return self._is_last_delivery(delivery)

    def try_again(self, delivery: StreamDelivery, delay: float, now: float) -> bool:
        delivery.cursor.failures.retried.add(delivery.sequence, now)
        self.hand.remove(delivery)
        self.state.fates["returned"] += 1
        self.hand.await_redelivery(delivery, now, now + delay + OVERDUE, self.late)
        self.acks.nak(delivery.ack_subject, delay)
        return True

    def dead_lettered(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        is_open = self.hand.remove(delivery)
        if is_open:
            self.hand.given_up(delivery)
        # Before bytes leave: then the ledger has to add up.
        self.state.fates["dead_lettered"] += 1
        if is_open:
            self.acks.term(delivery.ack_subject, dead.failure.reason)
        self.route.look()

    def dropped(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """See `Recovery`. A stream with limits retention keeps the message."""
        is_open = self.hand.remove(delivery)
        if is_open:
            self.hand.given_up(delivery)
        self.state.fates["given_up"] += 1
        self._failures.count(MessageGivenUp, delivery, dead)
        if not is_open:
            return  # in the stream as it is now, its sequence is that of another message
        if self._is_last_delivery(delivery):
            self.acks.nak(delivery.ack_subject, 0)  # it is not redelivered, and no stream deletes it for that
        else:
            self.acks.term(delivery.ack_subject, dead.failure.reason)

    def not_stored(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """See `Recovery`: the message stays in the stream."""
        if delivery.cursor is not self.hand.cursor:
            self.hand.remove(delivery)
            self.state.fates["lost"] += 1  # that stream is gone
        elif self._is_last_delivery(delivery):
            self.dropped(delivery, dead)
        else:
            now = trio.current_time()
            delivery.cursor.failures.keep_given_up(delivery.sequence, dead)
            self.try_again(delivery, self.policy.backoff(dead.tries, now), now)
        self.route.look()

    def place(self, delivery: StreamDelivery) -> dict[str, Any]:
        return {"stream": self._stream, "sequence": delivery.sequence}

    def _is_last_delivery(self, delivery: StreamDelivery) -> bool:
        return 0 < self.server_limit <= delivery.deliveries

    # --- behind a refused message ---

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """See `Keeper.destination_refused`: what is behind it must not be sent any more."""
        if self.hand.hold_back_behind(delivery, trio.current_time()):
            self.recall_out_of_turn()
        if self.hand.schedule.ready:
            self.route.something_waits()

    def never_come(self, gone: Collection[int]) -> None:
        """Stop waiting for messages that are gone from the stream, or that another process has settled."""
        if self.hand.give_up_waiting(gone):
            self.route.something_waits()

    def elsewhere(self, sequences: Collection[int]) -> None:
        """Stop waiting for messages that somebody else seems to have."""
        if self.hand.wait_no_longer(sequences):
            self.route.something_waits()

    def recall_out_of_turn(self) -> None:
        """Recall what is behind a refused message and not sent, or not confirmed on a link that died."""
        if self.hand.order.lines:
            for destination in self._routing.connections:
                destination.outbox.recall(self.hand.out_of_turn)

    # --- returned to the stream, which redelivers it ---

    def make_room(self, soon: bool) -> None:
        """Return the newest message that is held, so that what is due can come: it is redelivered later than that."""
        delay = self.policy.initial if soon else self.ack_wait
        delivery = self.hand.return_newest(trio.current_time() + delay + OVERDUE, self.late)
        if delivery is not None:
            self.state.fates["returned"] += 1
            self.acks.nak(delivery.ack_subject, delay)

    def settle_rest(self) -> bool:
        """See `Keeper`. What can't go on is returned."""
        while stuck := self.hand.take_stuck():  # what waited behind one of these is stuck then
            self._return(stuck)
        return not self.hand.count

    def return_unrouted(self) -> bool:
        self._return(self.hand.take_unrouted())
        return True

    def _return(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Return messages that are in hand and wait for nothing. Those of a stream before this one are lost."""
        deliveries = tuple(deliveries)
        self._nak_at_once(deliveries)
        for delivery in deliveries:
            self._count_returned(delivery)

    def _nak_at_once(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Have messages redelivered now; the route that takes this one's place waits for them."""
        hand = self.hand
        ours = [delivery for delivery in deliveries if delivery.cursor is hand.cursor]
        hand.await_at_once(ours, trio.current_time())
        for delivery in ours:
            self.acks.nak(delivery.ack_subject, 0)

    def _count_returned(self, delivery: StreamDelivery) -> None:
        """Remove a message that was not routed: its stream has it, if that is still there."""
        self.state.fates["returned" if self.hand.remove(delivery) else "lost"] += 1

    # --- the end ---

    def not_sent(self, delivery: StreamDelivery) -> None:
        """See `Keeper`. Of a route that is over, it was nak'ed with the others."""
        if self.is_over:
            self._count_returned(delivery)
        else:
            self.hand.put_back(delivery)

    def let_go(self) -> int:
        """See `Keeper`. What was not routed is returned to the stream: none of it is lost, so it counts as nothing."""
        if not self.is_over:
            self._end()
            unrouted = self.hand.take_unrouted()
            # What is in a handler has its fate when that returns, or was cancelled; the stream redelivers it first.
            self._nak_at_once((*self.hand.in_handler, *unrouted))
            for delivery in unrouted:
                self._count_returned(delivery)
        return 0

    def recall(self) -> None:
        """See `Keeper`. It is returned to the stream with the rest, and redelivered."""
        for destination in self._routing.connections:
            destination.outbox.recall(self._is_own, "its route has ended, and the stream delivers it again")

    def _is_own(self, operation: Operation) -> bool:
        delivery = message_of(operation)
        return delivery is not None and delivery.route is self.state

    def retire(self) -> None:
        self.route: RouteToWake = _AfterEnd(self)
        for destination in self._routing.connections:
            destination.stop_notifying(self.recall_out_of_turn)
            if self.hand.in_hand:
                # What a link that dies leaves unconfirmed would be sent when there is another one, and waited for.
                destination.when_changed(self.recall)

    def look_after_end(self) -> None:
        """Something that was sent before the end has its fate."""
        if not self.state.in_hand:
            for destination in self._routing.connections:
                destination.stop_notifying(self.recall)
        if self.hand.owner is not self:
            self.hand.owner.look()

    def _leaves_hand_to(self, routing: Routing) -> bool:
        """Return True if the next life of the route goes on with what this one, which has ended, has in hand.

        Not with what a handler still works on, which the stream delivers again, nor by another order.
        """
        is_over = self.state.is_over and self._routing.plan.ordered_by == routing.plan.ordered_by
        return not self.hand.in_hand or is_over


class _AfterEnd:
    """In place of a route that is over and retired, of which something that was sent has no fate yet."""

    def __init__(self, keeper: StreamKeeper) -> None:
        self._keeper = keeper

    def something_waits(self) -> None:
        """See `RouteToWake`: for a route after this one, which is told by its own keeper."""

    def look(self) -> None:
        """See `RouteToWake`."""
        self._keeper.look_after_end()
