"""Keep the messages of a stream until they are acked. A failed message is redelivered by the stream, or terminated.

A message that is redelivered while it is in hand, or after it was settled, is not routed again. A message that a
destination refused is redelivered before later messages of its subject. A destination that is away stops this route and
nothing else: messages wait in the stream.

A message that is given up stays in hand until its dead letter is stored; only then it is terminated. If the dead letter
can't be stored, the message is returned to its stream, and on redelivery only its dead letter is tried: no message is
both routed and dead-lettered.

By key, a message that failed for any reason holds back its key until it is redelivered or given up. Without a handler,
under the strategy sticky, all messages of a key have the same destination, so they follow each other as messages of a
subject do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import compress, groupby
from operator import attrgetter
from typing import Any

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.events import Emit, MessageGivenUp
from router_trio.outbox.operation import Operation
from router_trio.protocol.copies import Copied
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.failures import Failures
from router_trio.routing.keeper import Keeper, RouteToWake
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.failed_messages import Numbering
from router_trio.routing.policy.key_queues import ActiveKeys
from router_trio.routing.policy.retry import Failure, GivenUp, RetryPolicy, policy_for
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Order
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.lease import Lease
from router_trio.routing.stream.consumer.limits import UNLIMITED
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.delivery import Doubt, StreamDelivery
from router_trio.routing.stream.in_hand import LeftInHand, StreamInHand, message_of, place_of, was_refused
from router_trio.routing.turns import BATCH, BETWEEN_TWO_LOOKS
from router_trio.states import Behind

_received_at = attrgetter("received_at")

_AT_THE_LIMIT = Failure(
    reasons.MAX_DELIVER,
    "the durable reached its limit of deliveries (max_deliver) with it while no route had it in hand",
)


class StreamKeeper(Keeper[StreamDelivery, StreamInHand]):
    """The messages of one route: the `HandOwner` and the `Recovery` of a stream. All but `room` is synchronous.

    Its messages in hand and its acks outlive it: the keeper of the next generation of the route takes them over. Then
    it has `left`, and settles only what it has started.
    """

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        before: StreamKeeper | None,
        stream: str,
        lease: Lease | None = None,
        copied: Copied | None = None,
        keys: ActiveKeys[StreamDelivery] | None = None,
    ) -> None:
        """`before` is the keeper of the same consumer in the previous generation of the route, which reads no more.

        `stream` is the name of its stream, and `copied` the one it copies, if it does. Without `lease`, no
        other process may get these messages. `keys` are shared with other consumers of the route.
        """
        super().__init__(routing, place_of)
        plan, source = routing.plan, routing.plan.settings.source
        self.numbering: Numbering = plan.numbering
        self.acks: Acks = before.acks.on(connection) if before else Acks(connection, emit)
        self.hand: StreamInHand = StreamInHand()
        self.started_before: LeftInHand | None = None
        """The messages of the previous generation of the route that are in hand here; None if it left none."""
        self._follows: StreamKeeper | None = None
        """The keeper that this one has just followed, until the route is known; None if its route had ended."""
        self._expelled: set[StreamDelivery] = set()
        """Messages that were returned although their handler had not: see `give_up_calls`."""
        same_order, shared = True, None
        if before is not None and (before.state.is_over or not before.hand.in_hand):
            shared = before
            self.hand = before.hand
            same_order = before._routing.plan.ordered_by == plan.ordered_by
        follows_at_once = plan.handler is None and plan.settings.strategy == "sticky"
        self._follows_at_once = plan.by_key and follows_at_once
        order: Order[StreamDelivery] = ArrivalOrder(self.order_key, place_of)
        if plan.by_key:
            order = KeyOrder(self.order_key, place_of, shared=keys)
        holds_back = self._holds_back if plan.by_key else was_refused
        self.hand.go_by(self, shared, order, routing.value_limits(place_of), holds_back, same_order=same_order)
        if shared is not None:
            self.started_before = self.hand.left_by(shared.state)
            if shared.is_over:
                self.hand.wait_behind(shared.state, trio.current_time())
            else:
                self._follows = shared
        if stream == plan.stream:
            for outlet in routing.outlets:
                outlet.contents.source_clock = self.hand.lag.clock
        self.ack_wait: float = source.ack_wait
        """Seconds after which the server redelivers unacked messages."""
        self.server_limit: int = UNLIMITED
        """Deliveries after which the server does not redeliver a message, although the route wants that."""
        self.policy: RetryPolicy = policy_for(plan.settings, connection.platform.random.uniform)
        self.copied: Copied | None = copied
        self.doubt: Doubt | None = None if routing.newest is None else routing.newest.doubt
        self._stream = stream
        self._lease = lease
        self._failures: Failures[StreamDelivery] = Failures(
            self.state, self.policy, dead_letters, self, emit, routing.limited_as, routing.retry_schedules
        )
        self.stored: list[StreamDelivery] = []
        self._flow = flow = routing.flow
        limited_by_value = flow is not None and flow.values is not None
        self.forwards_on_arrival: bool = plan.handler is None and not limited_by_value and not plan.by_key
        """True if messages that need not wait are forwarded in the turn of the read that received them."""
        # Not if the messages of a key follow each other at once: each lets the next one go when it is forwarded.
        unlimited = flow is None or not flow.has_limit
        self._together = plan.handler is None and unlimited and plan.by_key and not self._follows_at_once
        self._falls_back_to: int | None = None
        self._elsewhere: dict[bytes, list[int]] = {}
        """The sequences of messages that were sent to other destinations than new ones are, by their order keys."""
        for destination in routing.connections:
            destination.when_changed(self._destination_changed)
        if flow is not None and routing.falls_back_to is not None:
            flow.when_changed(self._pass_unanswered)

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
    def behind(self) -> Behind | None:
        hand = self.hand
        return hand.lag.behind(hand.cursor, trio.current_time())

    @property
    def late(self) -> float:
        """Return by how many seconds a redelivery may be late: if a nak is lost, it follows the ack wait."""
        return self.ack_wait + OVERDUE

    @property
    def has_dead_letters(self) -> bool:
        """Return True if the route stores dead letters."""
        return self._failures.has_dead_letters

    @property
    def has_left(self) -> bool:
        """Return True once another keeper has the hand, so that nothing new is routed by this one."""
        owner: object = self.hand.owner
        return owner is not self

    def routed_by(self, route: RouteToWake) -> None:
        super().routed_by(route)
        before, self._follows = self._follows, None
        if before is not None:
            before.routed_by(route)  # it requests more by what has taken the place of its own source

    # --- order ---

    def take(self, delivery: StreamDelivery, *, same_order: bool) -> None:
        delivery.keeper, delivery.route = self, self.state
        if not same_order:
            partition_key = self._routing.plan.partition_key
            delivery.key = None if partition_key is None else partition_key(delivery.raw[0])

    def give_key(self, delivery: StreamDelivery) -> bytes:
        # It has the key from now on: its own keeper is that of the earlier generation, and would compute another one.
        partition_key = self._routing.plan.partition_key
        delivery.key = None if partition_key is None else partition_key(delivery.raw[0])
        key = delivery.key = self.order_key(delivery)
        return key

    def _holds_back(self, delivery: StreamDelivery) -> bool:
        """Return True if others of its key must wait for this message. None waits for a message without a key."""
        return delivery.refused or not (self._follows_at_once or self._routing.lacks_key(self.order_key(delivery)))

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """Return True if an earlier message of its subject is refused, or a breaker does not let this one be sent.

        Or if it would be, at a destination to fall back to. The limit is not asked: the message took its token before
        its handler was called.
        """
        flow = self._flow
        return (
            self.hand.passes_by(delivery)
            or (flow is not None and not flow.quiet and flow.held_up() is not None)
            or self._passes_by_elsewhere(delivery)
        )

    def _passes_by_elsewhere(self, delivery: StreamDelivery) -> bool:
        """Return True if a message has to wait for earlier ones of its subject that other destinations will answer.

        With `fallback`, if they are refused there, they are sent where this one would be by then.
        """
        place = self._routing.falls_back_to
        if place is None:
            return False
        if place != self._falls_back_to:
            self._falls_back_to = place
            self._elsewhere = self._sent_elsewhere(place)
        sequences = self._elsewhere.get(delivery.order_key) if self._elsewhere else None
        if not sequences:
            return False
        now = trio.current_time()
        for sequence in sequences:
            earlier = self.hand.open.get(sequence)
            if sequence < delivery.sequence and earlier is not None and self._is_elsewhere(earlier, place):
                self.hand.hold_back_behind(earlier, now)
        return self.hand.passes_by(delivery)

    def _sent_elsewhere(self, place: int) -> dict[bytes, list[int]]:
        found: defaultdict[bytes, list[int]] = defaultdict(list)
        for sequence, delivery in self.hand.open.items():
            if self._is_elsewhere(delivery, place):
                found[delivery.order_key].append(sequence)
        return dict(found)

    def _is_elsewhere(self, delivery: StreamDelivery, place: int) -> bool:
        """Return True if a destination other than the one at this place has still to answer for a message, and may."""
        if delivery.keeper is not self or delivery.choices is None or delivery.refused or delivery.failure is not None:
            return False
        return any(chosen[0] != place and self._answers(chosen[0]) for chosen in delivery.choices.values())

    def _answers(self, place: int) -> bool:
        """Return False if no answer of a destination is to be expected soon."""
        outlet = self._routing.outlets[place]
        return outlet.connection.connected and (outlet.breaker is None or not outlet.breaker.is_silent)

    # --- routed ---

    def may_begin(self, now: float) -> bool:
        """Return True unless another process may have the lead by now, so that nothing new may be routed."""
        return self._lease is None or self._lease.holds(now)

    @property
    def has_room(self) -> bool:
        return self._routing.is_ready

    async def room(self) -> None:
        """Wait until a message may be sent. Messages for a destination that is away wait in the stream."""
        await self._routing.ready()

    def next(self, now: float) -> StreamDelivery | None:
        """Take out the next message to route. For one that was given up before, only the dead letter is sent."""
        hand = self.hand
        while (delivery := hand.next(now)) is not None:
            given_up = delivery.cursor.failures.given_up
            if not given_up or delivery.sequence not in given_up:
                break
            self._give_up_again(delivery)
        return delivery

    def handled_again(self, seconds: float, now: float) -> None:
        self._failures.handled_again(seconds, now)

    def forward(self, delivery: StreamDelivery) -> None:
        self._routing.forward_each([delivery])
        if self._follows_at_once:
            self.hand.let_next_go(delivery)

    @property
    def forwards_together(self) -> bool:
        return self._together and (self._flow is None or self._flow.quiet)

    def forward_each(self, deliveries: Sequence[StreamDelivery]) -> None:
        self._routing.forward_each(deliveries)

    def forward_waiting(self) -> bool:
        if not self.forwards_on_arrival:
            return False
        routing, hand = self._routing, self.hand
        for _ in range(1 if routing.as_it_comes else BATCH // BETWEEN_TWO_LOOKS):
            if not (self.forward_some() and hand.waiting and routing.is_ready) or routing.turn.over:
                break
        return True

    def forward_some(self) -> bool:
        """Forward messages together that may be sent now. Return False if the limit or a breaker admits none.

        Fast path of `KeptRoute._begin_some`, for routes without a handler, keys and limits of values; held equal by
        test_both_ways_of_streams.py::test_waiting_messages_are_forwarded_together_as_they_would_be_one_by_one.
        """
        flow, hand = self._flow, self.hand
        most = BATCH if self._routing.as_it_comes else BETWEEN_TWO_LOOKS
        if flow is not None and not flow.quiet:
            most = flow.may_go(min(most, hand.waiting))
            if not most:
                return False
        deliveries = hand.next_together(most)
        if hand.cursor.failures.given_up or len(hand.open) < hand.count:  # or some are of an earlier incarnation
            deliveries = self._without_given_up(deliveries)
        if flow is not None and not flow.quiet:
            flow.going(len(deliveries), hand.waiting)
        if deliveries:  # else none waited any more, all follow a refused one, or were given up before
            self._routing.forward_each(deliveries)
        return True

    @property
    def sent(self) -> int:
        return self.hand.active

    # --- settled ---

    def finished(self, delivery: StreamDelivery) -> None:
        """Ack the message, nak it, or give it up."""
        hand, failure = self.hand, delivery.failure
        if delivery in self._expelled:
            self._expelled.remove(delivery)  # it has its fate
        elif failure is None and not delivery.recalled:
            delivery.settle_as(delivery.outcome)
            self._delivered([delivery])
        elif failure is not None and delivery.cursor is hand.cursor:
            self._failed(delivery, failure)
        elif failure is None and (self.is_over or self.has_left):
            self._return((delivery,))  # it is not routed any more
        elif failure is None:
            hand.take_back(delivery)
        else:
            hand.give_up(delivery)
            delivery.settle_as("lost")  # its stream is gone
        self.route.look()

    def first_stored(self) -> None:
        """Have all stored messages of this read of the link acked together."""
        self._routing.connections[0].listener.when_read_done(self._ack_stored)

    def _ack_stored(self) -> None:
        stored, self.stored = self.stored, []
        if self._expelled:
            expelled = self._expelled.intersection(stored)
            self._expelled -= expelled
            stored = [delivery for delivery in stored if delivery not in expelled]
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
        self.route.look()

    # --- failed ---

    def _failed(self, delivery: StreamDelivery, failure: Failure) -> None:
        """Have a message in hand redelivered, or give it up."""
        self._failures.failed(delivery, failure, delivery.cursor.failures.known(delivery.sequence))

    def _was_given_up(self, delivery: StreamDelivery) -> bool:
        """Return True if a message was given up before, so that only its dead letter has to be stored."""
        return delivery.sequence in delivery.cursor.failures.given_up

    def _without_given_up(self, deliveries: Sequence[StreamDelivery]) -> list[StreamDelivery]:
        """Return the messages that have to be routed, and send the dead letters of those given up before."""
        given_up = [self._was_given_up(delivery) for delivery in deliveries]
        for delivery in compress(deliveries, given_up):
            self._give_up_again(delivery)
        return [delivery for delivery, over in zip(deliveries, given_up, strict=True) if not over]

    def _give_up_again(self, delivery: StreamDelivery) -> None:
        """Send only the dead letter of a message in hand that was given up before."""
        dead = delivery.cursor.failures.given_up[delivery.sequence]
        delivery.refused = dead.refused
        self._failures.give_up(delivery, dead)
        self.route.look()

    def is_last_attempt(self, delivery: StreamDelivery, failure: Failure) -> bool:
        """Return True if the consumer has a limit of deliveries that this user may not remove."""
        return self._is_last_delivery(delivery)

    def try_again(self, delivery: StreamDelivery, delay: float, now: float) -> bool:
        delivery.cursor.failures.retried.add(delivery.sequence, now)
        self.hand.await_redelivery(delivery, now, now + delay + OVERDUE, self.late)
        delivery.settle_as("returned")
        self.acks.nak(delivery.ack_subject, delay)
        return True

    def scheduled(self, delivery: StreamDelivery) -> None:
        """Ack a message whose next attempt another stream keeps. Later messages do not wait for it."""
        is_open = self.hand.give_up(delivery)
        delivery.settle_as("scheduled")
        if is_open:
            self.acks.ack([delivery.ack_subject])
        self.route.look()

    def dead_lettered(self, delivery: StreamDelivery, dead: GivenUp, *, elsewhere: bool) -> None:
        is_open = self.hand.give_up(delivery)
        # Before bytes are sent, since the ledger has to add up then.
        delivery.settle_as("duplicate" if elsewhere else "dead_lettered")
        if is_open:
            self.acks.term(delivery.ack_subject, dead.failure.reason)
        self.route.look()

    def dropped(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """Ack a message that is given up without a dead letter. A stream with limits retention keeps it."""
        is_open = self.hand.give_up(delivery)
        delivery.settle_as("given_up")
        self._failures.count(MessageGivenUp, delivery, dead)
        if not is_open:
            return  # in the stream as it is now, its sequence is that of another message
        if self._is_last_delivery(delivery):
            self.acks.nak(delivery.ack_subject, 0)  # it is neither redelivered nor deleted by its stream
        else:
            self.acks.term(delivery.ack_subject, dead.failure.reason)

    def not_stored(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """Leave the message in the stream."""
        if delivery.cursor is not self.hand.cursor:
            self.hand.give_up(delivery)
            delivery.settle_as("lost")  # that stream is gone
        elif self._is_last_delivery(delivery) and not dead.taken_over:
            self.dropped(delivery, dead)
        else:
            now = trio.current_time()
            delivery.refused = dead.refused
            delivery.cursor.failures.keep_given_up(delivery.sequence, dead)
            # Without `per` it uses up nothing of the limit, but takes the place of a message that was requested for it.
            value = self._routing.limited_as(delivery)
            self.try_again(delivery, self.policy.backoff(dead.tries, now, value), now)
        self.route.look()

    def place(self, delivery: StreamDelivery) -> dict[str, Any]:
        about = delivery.origin()
        return {"stream": about["stream"], "sequence": about["sequence"]}

    def _is_last_delivery(self, delivery: StreamDelivery) -> bool:
        return 0 < self.server_limit <= delivery.deliveries

    # --- messages that the consumer does not deliver any more ---

    @property
    def may_take_over(self) -> bool:
        """Return True if dead letters can be stored at present."""
        return self.routes and self._failures.stores_dead_letters

    def take_over(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Store the dead letters of messages that reached the limit of deliveries of the consumer: see `DeliveryLimit`.

        They enter the hand like messages that were given up before, so each gets its fate, and the id of its dead
        letter, as if the route had given it up at its last delivery.
        """
        hand = self.hand
        for delivery in deliveries:
            if hand.take_over(delivery):
                self.state.received += 1
                attempts = max(1, self.server_limit, delivery.attempt)
                hand.cursor.failures.give_up(delivery.sequence, GivenUp(_AT_THE_LIMIT, attempts, taken_over=True))
        self.route.something_waits()

    # --- behind a refused message ---

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """Note that later messages of the subject must not be sent any more."""
        if delivery in self._expelled:
            return
        if self.hand.hold_back_behind(delivery, trio.current_time()):
            self.recall_out_of_turn()
            if self.has_left:
                self.hand.owner.recall_out_of_turn()
        if self.hand.schedule.ready:
            self.route.something_waits()

    def never_come(self, gone: Collection[int]) -> None:
        """Stop waiting for messages that are gone from the stream, or that another process has settled."""
        if self.hand.give_up_waiting(gone):
            self.route.something_waits()

    def elsewhere(self, sequences: Collection[int]) -> None:
        """Stop waiting for messages that another process seems to have."""
        if self.hand.wait_no_longer(sequences):
            self.route.something_waits()

    def _destination_changed(self) -> None:
        """Take back what must not be sent on the next link, and let messages pass those that may wait for long."""
        self.recall_out_of_turn()
        self._pass_unanswered()

    def _pass_unanswered(self) -> None:
        if self._falls_back_to is not None and self.hand.release_behind_unanswered(self._waits_long):
            self.route.something_waits()

    def _waits_long(self, delivery: StreamDelivery) -> bool:
        """Return True if no answer for a message is to be expected soon from a destination of it."""
        if delivery.keeper is not self or delivery.choices is None or delivery.refused:
            return False
        return any(not self._answers(chosen[0]) for chosen in delivery.choices.values())

    def recall_out_of_turn(self) -> None:
        """Recall messages behind a refused one that were not sent, or not confirmed on a link that died."""
        if self.hand.order.lines:
            for destination in self._routing.connections:
                destination.outbox.recall(self.hand.out_of_turn)

    # --- returned to the stream, which redelivers it ---

    def make_room(self, *, soon: bool) -> None:
        """Return the newest held message to the stream, so that due messages can be redelivered before it."""
        delay = self.policy.initial if soon else self.ack_wait
        delivery = self.hand.return_newest(trio.current_time() + delay + OVERDUE, self.late)
        if delivery is not None:
            delivery.settle_as("returned")
            self.acks.nak(delivery.ack_subject, delay)

    def use_room(self) -> None:
        """Have messages that were returned to make room redelivered now, if they would be routed next."""
        for one in self.hand.order.ask_back(trio.current_time(), self.late):
            self.acks.nak(one.ack_subject, 0)

    def settle_rest(self) -> bool:
        """Return messages that can't be routed any more to the stream."""
        while stuck := self.hand.take_stuck():  # messages that waited behind one of these are stuck then
            self._return(stuck)
        return not self.hand.count

    def return_unrouted(self) -> bool:
        self._return(self.hand.take_unrouted())
        return True

    def _return(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Return messages to the stream. Messages of an earlier incarnation of the stream are lost."""
        deliveries = tuple(deliveries)
        self._nak_at_once(deliveries)
        for delivery in deliveries:
            self._count_returned(delivery)

    def _nak_at_once(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Have messages redelivered at once. The successor of the route waits for them."""
        hand = self.hand
        ours = [delivery for delivery in deliveries if delivery.cursor is hand.cursor]
        hand.await_at_once(ours, trio.current_time())
        for delivery in ours:
            self.acks.nak(delivery.ack_subject, 0)

    def _count_returned(self, delivery: StreamDelivery) -> None:
        """Remove a message that was not routed. It counts as returned, or as lost if its stream is gone."""
        delivery.settle_as("returned" if self.hand.give_back(delivery) else "lost")

    # --- the end ---

    def not_sent(self, delivery: StreamDelivery) -> None:
        """Keep the message until `let_go`. If the route has ended, it was nak'ed with the others."""
        if self.is_over or self.hand.owner.is_over:
            if delivery in self._expelled:
                self._expelled.remove(delivery)
            else:
                self._count_returned(delivery)
        elif self.has_left:
            self._return((delivery,))
            self.route.look()
        else:
            self.hand.put_back(delivery)

    def let_go(self) -> int:
        """Return unrouted messages to the stream, so none is lost."""
        if not self.is_over:
            self._end()
            unrouted = self.hand.take_unrouted()
            # Messages in a handler are settled when it returns or is cancelled; the stream redelivers them first.
            self._nak_at_once((*self.hand.in_handler, *unrouted))
            for delivery in unrouted:
                self._count_returned(delivery)
        return 0

    @property
    def started(self) -> int:
        return self.state.in_hand

    def give_up_calls(self) -> None:
        assert self.has_left, "the messages of a route that goes on"
        hanging = [delivery for delivery in self.hand.in_handler if delivery.keeper is self]
        self._expelled.update(hanging)
        self._return(hanging)
        self._end()
        self.hand.wait_behind(self.state, trio.current_time())
        self.route.look()

    def recall(self) -> None:
        """Take unsent messages back. They are returned to the stream with the others, and redelivered."""
        for destination in self._routing.connections:
            destination.outbox.recall(self._is_own, "its route has ended, and the stream delivers it again")

    def _is_own(self, operation: Operation) -> bool:
        delivery = message_of(operation)
        return delivery is not None and delivery.keeper is self

    def lead_ends(self) -> bool:
        """Let another process get what is not sent and not in a handler, and all that was to be redelivered.

        Return True if nothing is left in hand.
        """
        hand = self.hand
        for destination in self._routing.connections:
            destination.outbox.recall(self._is_own, "another process gets the messages of its partition")
        for delivery in hand.take_unrouted():
            self._count_returned(delivery)
        hand.lead_ends()
        return not hand.count

    def retire(self) -> None:
        self.route: RouteToWake = _AfterEnd(self)
        for destination in self._routing.connections:
            destination.stop_notifying(self._destination_changed)
            if self.state.in_hand:
                # Otherwise messages left unconfirmed by a link that dies would be sent on the next one, and waited for.
                destination.when_changed(self.recall)

    def look_after_end(self) -> None:
        """Continue after a message was settled that had been sent before the end."""
        if not self.state.in_hand:
            for destination in self._routing.connections:
                destination.stop_notifying(self.recall)
        if self.has_left:
            self.hand.owner.look()


class _AfterEnd:
    """In place of a route that has ended and retired, while messages that it sent are not settled."""

    def __init__(self, keeper: StreamKeeper) -> None:
        self._keeper = keeper

    def something_waits(self) -> None:
        """Do nothing: a later route is woken by its own keeper."""

    def look(self) -> None:
        self._keeper.look_after_end()

    def left_hand(self) -> None:
        """Do nothing: `look` is called as well."""
