"""What a route from a stream has in hand: what waits to be routed, what waits for its turn, what is under way.

Synchronous and without I/O: who acks, naks and asks for more is `route` and `pull_loop`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import merge

from router_trio.outbox.operation import CoreOperation, Operation
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.delivery import DestinationTracker
from router_trio.routing.policy.key_queues import KeyQueues
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Columns, StreamDelivery
from router_trio.routing.stream.other_processes import OtherProcesses
from router_trio.routing.stream.subject_order import SubjectOrder
from router_trio.states import RouteState


class AckPending:
    """What was received and is not settled. `count` is all of it, `open` what is of the stream as it is now.

    `bytes` is the size of its headers and payloads. `limited` of it waits for the limit of its value: who holds that is
    `route`. Of a route by key, `keys` is what waits for its key, or for its turn among the keys: `sort` takes it from
    `waiting`. `holds_back` says of a message that failed, and comes again, whether what is behind it waits for it.

    Routed is what `first` gives; it leaves `waiting` by `popleft`, when it is. Nothing else touches that end: what
    comes, or has its turn, goes to the other one.
    """

    def __init__(self) -> None:
        self.cursor: StreamCursor = StreamCursor()
        self.order: SubjectOrder[StreamDelivery] = SubjectOrder()
        self.others: OtherProcesses = OtherProcesses()
        self.open: dict[int, StreamDelivery] = {}
        self.waiting: deque[StreamDelivery] = deque()
        self.count: int = 0
        self.bytes: int = 0
        self.limited: int = 0
        self.keys: KeyQueues[StreamDelivery] | None = None
        self.holds_back: Callable[[StreamDelivery], bool] = was_refused
        self.left: Counter[RouteState] = Counter()
        """How many of `count` are of earlier lives of the route: what these had sent, and has no fate yet."""
        self.moved: tuple[int, int] | None = None
        """Which message the consumer would have delivered next, and which it goes on with, if somebody has moved it."""

    @property
    def in_hand(self) -> int:
        """How many messages are in hand, but for those of earlier lives of the route."""
        return self.count - self.left.total() if self.left else self.count

    def goes_on(self, before: RouteState, now: float) -> LeftInHand:
        """Another life of the route has this from now on. Return what is in hand of the one `before`, all of it sent.

        What follows it waits, as behind a refused message, until its fate is known.
        """
        if in_hand := self.in_hand:
            self.left[before] = in_hand
        if not self.others.take(now):
            for delivery in self.open.values():
                self._append(self.order.await_redelivery(delivery))
        return LeftInHand(self.left, before)

    def _leaves(self, delivery: StreamDelivery) -> None:
        """A message leaves the hand; it may be of a life before this one."""
        route = delivery.route
        if route in self.left:
            self.left[route] -= 1
            if not self.left[route]:
                del self.left[route]

    def consumer_was_reset(self, goes_on_with: int) -> None:
        """Somebody has reset the consumer, or made it again: it goes on with that message."""
        self.moved = self.cursor.highest + 1, goes_on_with
        self.cursor.number_anew()

    def stream_replaced(self, stream_created: str) -> None:
        """It is another stream of that name. What is in hand of the old one is still routed, and not answered."""
        self._start_at(StreamCursor(stream_created, not_ours=bool(self.cursor.stream_created)))

    def _start_at(self, cursor: StreamCursor) -> None:
        self.waiting += self.order.clear()
        self.open.clear()
        self.cursor = cursor
        self.moved = None  # the stream says more

    def add(
        self,
        deliveries: Sequence[StreamDelivery],
        columns: Columns,
        patience: float,
        went_back: Callable[[StreamDelivery], None],
    ) -> list[StreamDelivery]:
        """Deliveries came, at least one, with these `columns`.

        Returns those that came again: their messages are `open`, or settled.

        `patience`: see `StreamCursor.mark_received`. `went_back` is told of each that shows that the stream went back
        in time: it and what comes behind it is taken as of another stream.
        """
        # Fast path of _add; held equal by
        # test_both_ways_of_streams.py::test_deliveries_are_taken_together_as_they_would_be_one_by_one, worth 180
        # instructions a message (tests/performance/test_fast_paths.py::test_deliveries_that_follow_are_taken_together).
        sequences = columns[0]
        if self.order.lines or not self.cursor.followed(*columns):
            return [delivery for delivery in deliveries if not self._add(delivery, patience, went_back)]
        self.open.update(zip(sequences, deliveries, strict=True))
        self.count += len(deliveries)
        for delivery in deliveries:
            self.bytes += delivery.raw[3]
        self.waiting += deliveries
        return []

    def _add(self, delivery: StreamDelivery, patience: float, went_back: Callable[[StreamDelivery], None]) -> bool:
        """Return True if it is new."""
        order, sequence = self.order, delivery.sequence
        in_hand = self.open.get(sequence)
        other_in_hand = in_hand is not None and in_hand.time != delivery.time
        if other_in_hand or self.cursor.contradicted(sequence, delivery.time):
            self._start_at(StreamCursor(self.cursor.stream_created, next_delivery=delivery.number))
            self.cursor.doubt_before(delivery.received_at + patience)
            went_back(delivery)
        cursor = delivery.cursor = self.cursor
        if delivery.number <= cursor.deliveries and cursor.is_numbered_anew(delivery.number - 1):
            self.consumer_was_reset(sequence)
        others, now = self.others, delivery.received_at
        missing = cursor.missing_before(delivery.number)
        if missing:
            others.missed(missing, now)
        if others.missing and others.seen(now) and not cursor.knows(sequence):
            others.redelivered(delivery.deliveries - 1)
        unsettled = cursor.mark_received(sequence, delivery.number, delivery.time, now, patience)
        in_hand = self.open.get(sequence)
        if in_hand is not None:
            in_hand.ack_subject = delivery.ack_subject
            return False
        if not unsettled:
            return False
        self.open[sequence] = delivery
        self.count += 1
        self.bytes += delivery.raw[3]
        if not order.lines:
            self.waiting.append(delivery)
            return True
        if others.take(now):
            # The others don't wait, and may get what is awaited.
            self.waiting += order.clear()
        self._append(order.admit(delivery))
        return True

    def first(self) -> StreamDelivery | None:
        """The next one to route: it stays the first of `waiting`. None if nothing waits but for its turn."""
        waiting, order = self.waiting, self.order
        while waiting:
            delivery = waiting[0]
            if not order.lines or delivery.cursor is not self.cursor:
                return delivery
            in_turn = order.admit(delivery)
            if in_turn is delivery:
                return delivery
            waiting.popleft()
            if in_turn is not None:
                waiting.appendleft(in_turn)
        return None

    def take_first(self, most: int) -> list[StreamDelivery]:
        """Take out what `first` would give, one after the other: they are routed now, and nobody looks meanwhile."""
        waiting, order = self.waiting, self.order
        if not order.lines and len(waiting) <= most:
            taken = list(waiting)
            waiting.clear()
            return taken
        taken = []
        while waiting and len(taken) < most and (not order.lines or self.first() is not None):
            taken.append(waiting.popleft())
        return taken

    def is_in_turn(self, delivery: StreamDelivery) -> bool:
        """Return True if one that has waited elsewhere may be routed; else it waits for its turn, and not at work."""
        if not self.order.lines or delivery.cursor is not self.cursor:
            return True
        in_turn = self.order.admit(delivery)
        if in_turn is delivery:
            return True
        self._append(in_turn)
        if self.keys is not None:
            self.keys.finished(delivery.order_key, delivery)
        return False

    def remove(self, delivery: StreamDelivery) -> bool:
        """It is in hand no more. Returns True if it is of the stream as it is now."""
        self.count -= 1
        self.bytes -= delivery.raw[3]
        if self.left:
            self._leaves(delivery)
        if self.keys is not None:
            self.keys.finished(delivery.order_key, delivery)
        if delivery.cursor is not self.cursor:
            return False
        del self.open[delivery.sequence]
        return True

    def delivered(self, deliveries: list[StreamDelivery]) -> list[bytes]:
        """These are in hand no more, and need not come again. Returns where to ack those of the stream as it is now."""
        self.count -= len(deliveries)
        if self.left:
            for delivery in deliveries:
                self._leaves(delivery)
        if self.keys is not None:
            for delivery in deliveries:
                self.keys.finished(delivery.order_key, delivery)
        cursor, in_hand = self.cursor, self.open
        sequences: list[int] = []
        times: list[bytes] = []
        ack_subjects: list[bytes] = []
        for delivery in deliveries:
            self.bytes -= delivery.raw[3]
            if delivery.cursor is cursor:
                sequence = delivery.sequence
                del in_hand[sequence]
                sequences.append(sequence)
                times.append(delivery.time)
                ack_subjects.append(delivery.ack_subject)
        if sequences:
            cursor.mark_settled(sequences, times)
        if self.order.lines:
            for delivery in deliveries:
                if delivery.cursor is cursor:
                    self._have_their_turn(delivery)
        return ack_subjects

    # --- key by key ---

    @property
    def may_go(self) -> int:
        """How many messages wait to be routed, or for another one of their key."""
        return len(self.waiting) if self.keys is None else len(self.waiting) + self.keys.count

    def sort(self, keys: KeyQueues[StreamDelivery]) -> None:
        """Put what waits to be routed behind what is there of its key."""
        waiting = self.waiting
        while waiting:
            delivery = waiting.popleft()
            # What is of the stream as it was before came before all that is of it now.
            place = delivery.sequence if delivery.cursor is self.cursor else delivery.sequence - LAST_SEQUENCE
            keys.add(delivery.order_key, place, delivery)

    def begin_next(self, keys: KeyQueues[StreamDelivery]) -> StreamDelivery | None:
        """Take out the next one to route, which is at work until it is in hand no more; None if nothing may begin."""
        while (delivery := keys.take_next()) is not None:
            if self.is_in_turn(delivery):
                return delivery
        return None

    # --- what becomes of one that is finished and was not delivered, and of what waited for it ---

    def given_up(self, delivery: StreamDelivery) -> None:
        """It will not come again, though it failed."""
        self.cursor.given_up(delivery.sequence)
        self._have_their_turn(delivery)

    def comes_again(self, delivery: StreamDelivery, now: float, due: float, patience: float) -> None:
        """It failed, and comes again when it is `due`. What it `holds_back` waits `patience` longer."""
        if self.holds_back(delivery) and not self.others.take(now):
            self._append(self.order.await_redelivery(delivery, due, due + patience))
        else:
            self._have_their_turn(delivery)

    def comes_again_at_once(self, delivery: StreamDelivery, now: float) -> None:
        """It is given back at the end: the route that takes this one's place waits for it, and behind it."""
        if not self.others.take(now):
            self.order.await_redelivery(delivery, 0.0, 0.0)

    def take_back(self, delivery: StreamDelivery) -> None:
        """It was finished only because it was out of turn: it waits again."""
        self._start_again(delivery)
        self.open[delivery.sequence] = delivery
        self._append(self.order.admit(delivery))

    def route_again(self, delivery: StreamDelivery) -> None:
        """The same for one of the stream as it was before: nobody's turn is kept there any more."""
        self._start_again(delivery)
        self.waiting.append(delivery)

    def _start_again(self, delivery: StreamDelivery) -> None:
        delivery.start_again()
        self.count += 1
        self.bytes += delivery.raw[3]

    def _append(self, in_turn: StreamDelivery | None) -> None:
        if in_turn is not None:
            self.waiting.append(in_turn)

    # --- what is under way ---

    def hold_back_behind(self, delivery: StreamDelivery, now: float) -> bool:
        """A destination did not take it; others may not have answered. Returns True if some are now `out_of_turn`."""
        if delivery.cursor is not self.cursor or self.others.take(now):
            return False
        passed_by = not self.order.pass_by(delivery)
        self._append(self.order.await_redelivery(delivery))
        return passed_by

    def out_of_turn(self, operation: Operation) -> bool:
        """Return True if a publish is of a message of ours that must not be sent before another has come again."""
        owner = operation.owner if isinstance(operation, CoreOperation) else None
        delivery = owner.delivery if isinstance(owner, DestinationTracker) else owner
        return isinstance(delivery, StreamDelivery) and self.passes_by(delivery)

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """The same for a message, which may be in its handler."""
        return delivery.cursor is self.cursor and self.order.pass_by(delivery)

    def give_up_waiting(self, gone: Collection[int]) -> bool:
        """What never comes again holds up nobody any more. Returns True if something waited for it."""
        for sequence in gone:
            if sequence not in self.open:
                self.cursor.given_up(sequence)
        in_turn = self.order.give_up_waiting(gone)
        self.waiting += in_turn
        return bool(in_turn)

    def wait_no_longer(self, elsewhere: Collection[int]) -> bool:
        """Stop waiting for messages that somebody else seems to have. Returns True if something waited for them.

        They are routed if they are redelivered here after all.
        """
        in_turn = self.order.give_up_waiting(elsewhere)
        self.waiting += in_turn
        return bool(in_turn)

    def _have_their_turn(self, delivery: StreamDelivery) -> None:
        if self.order.lines:
            self.waiting += self.order.release_behind(delivery)

    # --- back to the stream ---

    def give_back_newest(self, due: float, patience: float) -> StreamDelivery | None:
        """Give away the newest that waits for its turn, if any does. It comes again as a refused one does."""
        delivery = self.order.give_back_newest(due, due + patience)
        if delivery is not None:
            self.remove(delivery)
        return delivery

    def take_back_stuck(self) -> list[StreamDelivery]:
        """Give away what waits for what doesn't come any more; returned in the order of the stream."""
        stuck = self.order.stuck()
        for delivery in stuck:
            self.remove(delivery)
        return stuck

    def unrouted(self) -> Iterable[StreamDelivery]:
        """What was not routed at the end, of the stream as it is now, in its order."""
        ours = [delivery for delivery in self.waiting if delivery.cursor is self.cursor]
        return merge(sorted(ours, key=_sequence), self.order.leave_hand(), key=_sequence)


class LeftInHand:
    """What an earlier life of a route has in hand: see `states.InHand`."""

    def __init__(self, left: Counter[RouteState], route: RouteState) -> None:
        self._left = left
        self._route = route

    @property
    def in_hand(self) -> int:
        """See `states.InHand`."""
        return self._left[self._route]


def was_refused(delivery: StreamDelivery) -> bool:
    """Return True if a destination refused a message: one that failed for what it is holds back no other."""
    return delivery.refused


def _sequence(delivery: StreamDelivery) -> int:
    return delivery.sequence
