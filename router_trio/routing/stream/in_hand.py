"""Every message that a route from a stream has received and not settled, and where it is.

                       delivered
                           │ add (a redelivery of a message in hand, or settled, is not added)
                           ▼
        ┌─────────────► WAITING ◄───────────────┬──────────────┐
        │                  │ next               │              │
        │      ┌───────────┼──────────┐         │ its turn     │ cancelled, or
        │      │ not its   │          │ over its│              │ out of turn
        │      │ turn      │          │ value's │ limit        │
        │      ▼           ▼          ▼         │              │
        │    HELD       ROUTING    LIMITED ─────┘              │
        │      │           │                                   │
        └──────┘           │ sent, or being dead-lettered      │
         released          ▼                                   │
                        ACTIVE ────────────────────────────────┘
                           │
                           ▼
       settled: delivered, given up, or returned to the stream

What is the same for every source is in `routing/in_hand.py`. HELD is `order`, ROUTING is `in_handler`. `open` has what
belongs to the stream as it is now, by sequence: after a stream was replaced, older messages are still routed, and not
answered. Acks, naks and requests for more are not sent here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from router_trio.outbox.operation import CoreOperation, Operation
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.delivery import DestinationTracker
from router_trio.routing.in_hand import InHand
from router_trio.routing.schedule import ArrivalOrder, Limits, NoValueLimit, Order
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Columns, StreamDelivery
from router_trio.routing.stream.other_processes import OtherProcesses
from router_trio.routing.stream.subject_order import SubjectOrder
from router_trio.states import RouteState


class HandOwner(Protocol):
    """The life of a route that goes on with what earlier ones had sent."""

    def look(self) -> None:
        """Go on with what there is room for: something has left the hand."""


class StreamInHand(InHand[StreamDelivery]):
    """The messages of one route. It outlives the route if its successor reads the same consumer."""

    schedule: Order[StreamDelivery]
    limits: Limits[StreamDelivery]
    count: int

    def __init__(self) -> None:
        super().__init__(ArrivalOrder(_order_key, place_of), NoValueLimit())
        self.cursor: StreamCursor = StreamCursor()
        self.order: SubjectOrder[StreamDelivery] = SubjectOrder()
        self.others: OtherProcesses = OtherProcesses()
        self.open: dict[int, StreamDelivery] = {}
        self.bytes: int = 0
        """Size of the headers and payloads of what is in hand."""
        self.holds_back: Callable[[StreamDelivery], bool] = was_refused
        self._left: Counter[RouteState] = Counter()
        """How many of `count` are of earlier lives of the route, which had sent them and got no answer yet."""
        self.owner: HandOwner
        """The life of the route that has all this in hand now."""
        self.reset: tuple[int, int] | None = None
        """Which message the consumer would have delivered next, and which it goes on with, if somebody has moved it."""

    def go_by(
        self,
        owner: HandOwner,
        schedule: Order[StreamDelivery],
        limits: Limits[StreamDelivery],
        holds_back: Callable[[StreamDelivery], bool],
        *,
        same_order: bool,
    ) -> None:
        """Schedule messages for the route of `owner`, which is the first, or takes the place of one that has ended.

        `holds_back` tells of a failed message whether the ones behind it wait until it was redelivered. Without
        `same_order`, the route before it knew what it waited for by other keys: that is not waited for.
        """
        assert not self.schedule.count + self.limits.count, "a route returns what it has not routed before it ends"
        self.owner = owner
        self.schedule, self.limits, self.holds_back = schedule, limits, holds_back
        if not same_order:
            self.order.clear()

    # --- one life of the route after the other ---

    @property
    def in_hand(self) -> int:
        """Return how many messages are in hand, but for those of earlier lives of the route."""
        return self.count - self._left.total() if self._left else self.count

    def goes_on(self, before: RouteState, now: float) -> LeftInHand:
        """Go on in another life of the route. Return what is in hand of the one `before`, all of it sent.

        What follows it waits, as behind a refused message, until its fate is known.
        """
        if in_hand := self.in_hand:
            self._left[before] = in_hand
        if not self.others.take(now):
            for delivery in self.open.values():
                self._let_wait(self.order.await_redelivery(delivery))
        return LeftInHand(self._left, before)

    def _leaves(self, delivery: StreamDelivery) -> None:
        """A message leaves the hand; it may be of a life before this one."""
        route = delivery.route
        if route in self._left:
            self._left[route] -= 1
            if not self._left[route]:
                del self._left[route]

    # --- received ---

    def consumer_was_reset(self, goes_on_with: int) -> None:
        """Record that somebody has reset the consumer, or made it again: it goes on with that message."""
        self.reset = self.cursor.highest + 1, goes_on_with
        self.cursor.renumber()

    def take_reset(self) -> tuple[int, int] | None:
        """Return once which message the consumer would have delivered next, and which it goes on with, if it was reset.

        None if it was not.
        """
        reset, self.reset = self.reset, None
        return reset

    def stream_replaced(self, stream_created: str) -> None:
        """Start over with another stream of that name. What is in hand of the old one is routed, and not answered."""
        self._start_at(StreamCursor(stream_created))

    def _start_at(self, cursor: StreamCursor) -> None:
        self.schedule.waiting += self.order.clear()
        self.open.clear()
        cursor.streams_before = self.cursor.streams_before + 1
        self.cursor = cursor
        self.reset = None  # the stream says more

    def add(
        self,
        deliveries: Sequence[StreamDelivery],
        columns: Columns,
        within: float,
        went_back: Callable[[StreamDelivery], None],
    ) -> list[StreamDelivery]:
        """Add deliveries, at least one, with these `columns`. Return the ones whose messages are in hand, or settled.

        `within`: see `StreamCursor.mark_received`. `went_back` is called with each delivery that shows that the
        stream went back in time: that delivery and the following ones are taken as of another stream.
        """
        # Fast path of _add; held equal by
        # test_both_ways_of_streams.py::test_deliveries_are_taken_together_as_they_would_be_one_by_one, worth 180
        # instructions a message (tests/performance/test_fast_paths.py::test_deliveries_that_follow_are_taken_together).
        sequences = columns[0]
        if self.order.lines or not self.cursor.followed(*columns):
            return [delivery for delivery in deliveries if not self._add(delivery, within, went_back)]
        self.open.update(zip(sequences, deliveries, strict=True))
        self.count += len(deliveries)
        for delivery in deliveries:
            self.bytes += delivery.raw[3]
        self.schedule.waiting += deliveries
        return []

    def _add(self, delivery: StreamDelivery, within: float, went_back: Callable[[StreamDelivery], None]) -> bool:
        """Return True if the message is neither in hand nor settled."""
        order, sequence = self.order, delivery.sequence
        in_hand = self.open.get(sequence)
        other_in_hand = in_hand is not None and in_hand.time != delivery.time
        if other_in_hand or self.cursor.contradicted(sequence, delivery.time):
            self._start_at(StreamCursor(self.cursor.stream_created, next_delivery=delivery.number))
            self.cursor.found_by_message = True
            self.cursor.doubt_before(delivery.received_at + within)
            went_back(delivery)
        cursor = delivery.cursor = self.cursor
        if delivery.number <= cursor.deliveries and cursor.was_renumbered(delivery.number - 1):
            self.consumer_was_reset(sequence)
        others, now = self.others, delivery.received_at
        missing = cursor.missing_before(delivery.number)
        if missing:
            others.missed(missing, now)
        if others.missing and others.seen(now) and not cursor.knows(sequence):
            others.redelivered(delivery.deliveries - 1)
        unsettled = cursor.mark_received(sequence, delivery.number, delivery.time, now, within)
        in_hand = self.open.get(sequence)
        if in_hand is not None:
            in_hand.ack_subject = delivery.ack_subject
            return False
        if not unsettled:
            return False
        self._enter(delivery)
        if not order.lines:
            self.schedule.waiting.append(delivery)
            return True
        if others.take(now):
            # The others don't wait, and may get what is awaited.
            self.schedule.waiting += order.clear()
        self._let_wait(order.admit(delivery))
        return True

    def _enter(self, delivery: StreamDelivery) -> None:
        if delivery.cursor is self.cursor:
            self.open[delivery.sequence] = delivery
        self.count += 1
        self.bytes += delivery.raw[3]

    def _let_wait(self, in_turn: StreamDelivery | None) -> None:
        if in_turn is not None:
            self.schedule.waiting.append(in_turn)

    # --- routed ---

    @property
    def held(self) -> int:
        return self.order.held

    @property
    def apart(self) -> int:
        """Return how many messages wait for the limit of their value, or for another message of their key."""
        return self.limits.count + self.schedule.behind

    def next(self, now: float) -> StreamDelivery | None:
        while (delivery := self.limits.pop_due(now)) is not None:
            if self.order.lines and self.order.follows_run(delivery):
                self.schedule.finished(delivery)
                self._release([delivery])
            elif self._is_in_turn(delivery):
                delivery.route.limited += 1
                return delivery
        while (delivery := self.schedule.take()) is not None:
            if self._is_in_turn(delivery) and self.limits.admits(delivery, now):
                return delivery
        return None

    def next_together(self, most: int) -> list[StreamDelivery]:
        """Take out what `next` would return, up to `most` times. Not for routes with a limit for each value."""
        schedule, order = self.schedule, self.order
        if not order.lines and schedule.as_added:
            waiting = schedule.waiting
            if len(waiting) > most:
                return [waiting.popleft() for _ in range(most)]
            taken = list(waiting)
            waiting.clear()
            return taken
        taken = []
        while len(taken) < most and (delivery := schedule.take()) is not None:
            if not order.lines or self._is_in_turn(delivery):
                taken.append(delivery)
        return taken

    def _is_in_turn(self, delivery: StreamDelivery) -> bool:
        """Return True if a message may be routed now; otherwise it is held, and the one whose turn it is waits."""
        if not self.order.lines or delivery.cursor is not self.cursor:
            return True
        in_turn = self.order.admit(delivery)
        if in_turn is delivery:
            return True
        self.schedule.finished(delivery)
        if in_turn is not None:
            self.schedule.waiting.appendleft(in_turn)
        return False

    def let_next_go(self, delivery: StreamDelivery) -> None:
        """Let the next message of its key be routed, though this one is active: both go the same way."""
        self.schedule.finished(delivery)

    # --- settled, or redelivered later ---

    def remove(self, delivery: StreamDelivery) -> bool:
        """Remove a message that is settled or returned. Return True if it is of the stream as it is now."""
        self.count -= 1
        self.bytes -= delivery.raw[3]
        if self._left:
            self._leaves(delivery)
        self.schedule.finished(delivery)
        if delivery.cursor is not self.cursor:
            return False
        del self.open[delivery.sequence]
        return True

    def delivered(self, deliveries: list[StreamDelivery]) -> list[bytes]:
        """Remove messages that need not be redelivered. Return where to ack those of the stream as it is now."""
        self.count -= len(deliveries)
        if self._left:
            for delivery in deliveries:
                self._leaves(delivery)
        if self.schedule.keys:
            self.schedule.all_finished(deliveries)
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
                    self._release_behind(delivery)
        return ack_subjects

    def given_up(self, delivery: StreamDelivery) -> None:
        """Record that a message that was removed will not be redelivered, though it failed."""
        self.cursor.given_up(delivery.sequence)
        self._release_behind(delivery)

    def await_redelivery(self, delivery: StreamDelivery, now: float, due: float, within: float) -> None:
        """Record that a message that was removed will be redelivered when it is `due`, or up to `within` later.

        If it holds back the ones behind it, they wait for that.
        """
        if self.holds_back(delivery) and not self.others.take(now):
            self._let_wait(self.order.await_redelivery(delivery, due, due + within))
        else:
            self._release_behind(delivery)

    def _release_behind(self, delivery: StreamDelivery) -> None:
        if self.order.lines:
            self._release(self.order.release_behind(delivery))

    def _release(self, deliveries: Sequence[StreamDelivery]) -> None:
        if deliveries:
            self.schedule.release(deliveries)

    def take_back(self, delivery: StreamDelivery) -> None:
        """Let a message wait again that was removed, and that was finished only because it was out of turn."""
        delivery.start_again()
        self._enter(delivery)
        if delivery.cursor is self.cursor:
            self._let_wait(self.order.admit(delivery))
        else:
            self.schedule.waiting.append(delivery)  # nobody's turn is kept in the stream as it was

    # --- behind a refused message ---

    def hold_back_behind(self, delivery: StreamDelivery, now: float) -> bool:
        """Hold back what is behind an active message that a destination refused.

        Return True if some of that is active, and so `out_of_turn`.
        """
        if delivery.cursor is not self.cursor or self.others.take(now):
            return False
        passed_by = not self.order.pass_by(delivery)
        self._let_wait(self.order.await_redelivery(delivery))
        return passed_by

    def out_of_turn(self, operation: Operation) -> bool:
        """Return True if a publish is of a message of ours that must wait until another was redelivered."""
        delivery = message_of(operation)
        return delivery is not None and self.passes_by(delivery)

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """Return the same for a message, which may be in its handler."""
        return delivery.cursor is self.cursor and self.order.pass_by(delivery)

    def give_up_waiting(self, gone: Collection[int]) -> bool:
        """Stop waiting for messages that will not be redelivered. Return True if others waited for them."""
        for sequence in gone:
            if sequence not in self.open:
                self.cursor.given_up(sequence)
        return self.wait_no_longer(gone)

    def wait_no_longer(self, elsewhere: Collection[int]) -> bool:
        """Stop waiting for messages that another process seems to have. Return True if others waited for them.

        They are routed if they are redelivered here after all.
        """
        in_turn = self.order.give_up_waiting(elsewhere)
        self._release(in_turn)
        return bool(in_turn)

    # --- returned to the stream ---

    def return_newest(self, due: float, within: float) -> StreamDelivery | None:
        """Remove the newest message that is held, if any is; it is awaited like a refused one."""
        delivery = self.order.give_back_newest(due, due + within)
        if delivery is not None:
            self.remove(delivery)
        return delivery

    def take_stuck(self) -> list[StreamDelivery]:
        """Take out what waits for redeliveries, or for the limit of its value, when nothing more is received.

        Returned in the order of the stream. `remove` is still to be called for each.
        """
        return self.order.stuck() + self.limits.clear()

    def take_unrouted(self) -> list[StreamDelivery]:
        """Take out everything that waits, is limited or held; not what is in a handler or active.

        `remove` is still to be called for each. Messages of the stream as it is now come last, in its order.
        """
        ours: list[StreamDelivery] = []
        before: list[StreamDelivery] = []
        for delivery in (*self.limits.clear(), *self.schedule.clear()):
            (ours if delivery.cursor is self.cursor else before).append(delivery)
        ours += self.order.leave_hand()
        return before + sorted(ours, key=_sequence)

    def await_at_once(self, deliveries: Iterable[StreamDelivery], now: float) -> None:
        """Record that messages were returned at the end: a successor waits for them, and what is behind them."""
        if not self.others.take(now):
            for delivery in deliveries:
                self._let_wait(self.order.await_redelivery(delivery, 0.0, 0.0))


class LeftInHand:
    """The `Holder` of an earlier life of a route, whose messages are in the hand of this one."""

    limited = 0
    retrying = (0, 0.0)
    uncounted = 0

    def __init__(self, left: Counter[RouteState], route: RouteState) -> None:
        self._left = left
        self._route = route

    @property
    def in_hand(self) -> int:
        return self._left[self._route]


def place_of(delivery: StreamDelivery) -> int:
    """Return the place of a message among all: those of a stream that was replaced come first."""
    return delivery.cursor.streams_before * LAST_SEQUENCE + delivery.sequence


def message_of(operation: Operation) -> StreamDelivery | None:
    """Return the message of a stream that a publish is a copy of, if it is one."""
    owner = operation.owner if isinstance(operation, CoreOperation) else None
    delivery = owner.delivery if isinstance(owner, DestinationTracker) else owner
    return delivery if isinstance(delivery, StreamDelivery) else None


def was_refused(delivery: StreamDelivery) -> bool:
    """Return True if a destination refused a message: one that failed for what it is holds back no other."""
    return delivery.refused


def _order_key(delivery: StreamDelivery) -> bytes:
    return delivery.order_key


def _sequence(delivery: StreamDelivery) -> int:
    return delivery.sequence
