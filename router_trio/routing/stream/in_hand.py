"""Every message that a route from a stream has received and not settled.

`routing/in_hand.py` has the part common to all sources. HELD messages are in `order`. `open` has the messages of the
current stream by sequence: after a stream was replaced, messages of the old one are still routed, but not acked. Acks,
naks and requests for more are not sent here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from router_trio.outbox.operation import Operation
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing import moves
from router_trio.routing.delivery import delivery_of
from router_trio.routing.in_hand import InHand
from router_trio.routing.schedule import ArrivalOrder, Limits, NoValueLimit, Order
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Columns, StreamDelivery
from router_trio.routing.stream.lag import Lag
from router_trio.routing.stream.other_processes import OtherProcesses
from router_trio.routing.stream.subject_order import SubjectOrder
from router_trio.routing.turns import BETWEEN_TWO_LOOKS
from router_trio.states import RouteState


class HandOwner(Protocol):
    """The generation of a route that has the messages in hand now, also those of earlier ones."""

    state: RouteState
    is_over: bool
    """True once nothing is routed any more."""

    def look(self) -> None:
        """Continue with messages that there is room for now: one has left the hand."""

    def give_key(self, delivery: StreamDelivery) -> bytes:
        """Give a message of an earlier generation its key in this one, and return that. Does not raise."""
        ...

    def recall_out_of_turn(self) -> None:
        """Recall messages behind a refused one that were not sent, or not confirmed on a link that died."""

    def take(self, delivery: StreamDelivery, *, same_order: bool) -> None:
        """Have a message of an earlier generation routed here, if it was not started there."""


class StreamInHand(InHand[StreamDelivery]):
    """The messages of one route. It outlives the route if its successor reads the same consumer."""

    def __init__(self) -> None:
        super().__init__(moves.STREAM, ArrivalOrder(_order_key, place_of), NoValueLimit())
        self.cursor: StreamCursor = StreamCursor()
        self.order: SubjectOrder[StreamDelivery] = SubjectOrder()
        self.others: OtherProcesses = OtherProcesses()
        self.lag: Lag = Lag()
        self.open: dict[int, StreamDelivery] = {}
        self.bytes: int = 0
        """Bytes of the headers and payloads in hand."""
        self.holds_back: Callable[[StreamDelivery], bool] = was_refused
        self._left: Counter[RouteState] = Counter()
        """The number of messages in `count` by earlier generations of the route, which sent them."""
        self.owner: HandOwner
        """The generation of the route that has these messages now: see `go_by`."""
        self.reset: tuple[int, int] | None = None
        """The sequences that a reset consumer would have delivered next, and continues with; None if not reset."""

    def go_by(
        self,
        owner: HandOwner,
        before: HandOwner | None,
        schedule: Order[StreamDelivery],
        limits: Limits[StreamDelivery],
        holds_back: Callable[[StreamDelivery], bool],
        *,
        same_order: bool,
    ) -> None:
        """Schedule messages for the route of `owner`, which is the first one or follows that of `before`.

        What waits is scheduled by the new settings, and is `owner`'s from now on. What is active remains that of the
        keeper that started it, and keeps its key from others until it is settled.

        `holds_back` returns whether later messages wait until a failed message was redelivered. Without `same_order`,
        the previous route ordered messages by other keys: what it has in hand, or returned when it ended, gets its new
        key, and what had failed before is not waited for.
        """
        waiting = self.schedule.clear()
        limited = self.limits.clear()
        self._move_all(limited, moves.REORDERED)
        held: list[StreamDelivery] = []
        if same_order:
            held = self.order.all_held()
        else:
            released = self.order.leave_hand()
            self._move_all(released, moves.REORDERED)
            waiting += released
        waiting += limited
        waiting.sort(key=place_of)
        self.owner = owner
        self.schedule, self.limits, self.holds_back = schedule, limits, holds_back
        for delivery in (*waiting, *held):
            owner.take(delivery, same_order=same_order)
        others = {*waiting, *held}
        active = [one for one in (*self.open.values(), *self.in_handler) if one not in others]
        if not same_order:
            for delivery in active:
                owner.give_key(delivery)
            self.order.order_by(owner.give_key)
        for delivery in dict.fromkeys(active):
            schedule.activate(delivery)
        schedule.waiting += waiting
        if before is not None:
            if started := self.in_hand - len(others):
                self._left[before.state] = started
            before.state.received -= len(others)
            owner.state.received += len(others)

    # --- generations of the route ---

    @property
    def in_hand(self) -> int:
        """Return the number of messages in hand, without those of earlier generations of the route."""
        return self.count - self._left.total() if self._left else self.count

    def left_by(self, before: RouteState) -> LeftInHand:
        """Return the holder of the messages in hand that an earlier generation of the route has started."""
        return LeftInHand(lambda: self._left[before])

    def wait_behind(self, before: RouteState, now: float) -> None:
        """Let later messages wait until those of an earlier generation are settled, as behind a refused message."""
        if not self.others.take(now):
            for delivery in self.open.values():
                if delivery.route is before:
                    self._try_alone(self.order.await_redelivery(delivery))

    def _leaves(self, delivery: StreamDelivery) -> None:
        """Record that a message leaves the hand, which may be one of an earlier generation."""
        route = delivery.route
        if route in self._left:
            self._left[route] -= 1
            if not self._left[route]:
                del self._left[route]

    # --- received ---

    def consumer_was_reset(self, goes_on_with: int) -> None:
        """Record that the consumer was reset or recreated, and continues with that message."""
        self.reset = self.cursor.highest + 1, goes_on_with
        self.cursor.renumber()

    def take_reset(self) -> tuple[int, int] | None:
        """Return once the sequence that a reset consumer would have delivered next, and the one it continues with.

        None if it was not reset.
        """
        reset, self.reset = self.reset, None
        return reset

    def stream_replaced(self, stream_created: str) -> None:
        """Start over with another stream of that name. Messages in hand of the old one are routed, but not acked."""
        self._start_at(StreamCursor(stream_created))

    def _start_at(self, cursor: StreamCursor) -> None:
        self._hold_no_longer()
        self.open.clear()
        cursor.streams_before = self.cursor.streams_before + 1
        self.cursor = cursor
        self.lag.forget()
        self.reset = None  # the replaced stream is reported instead

    def add(
        self,
        deliveries: Sequence[StreamDelivery],
        columns: Columns,
        within: float,
        went_back: Callable[[StreamDelivery], None],
    ) -> list[StreamDelivery]:
        """Add deliveries, at least one, with these `columns`. Return the ones whose messages are in hand, or settled.

        `within`: see `StreamCursor.mark_received`. `went_back` is called with each delivery that shows that the stream
        was reset to an earlier time: that delivery and the following ones belong to another incarnation of it.
        """
        # Fast path of _add; held equal by
        # test_both_ways_of_streams.py::test_deliveries_are_received_together_as_they_would_be_one_by_one, worth 180
        # instructions a message (tests/performance/test_fast_paths.py::test_deliveries_that_follow_are_taken_together).
        sequences = columns[0]
        if self.order.lines or not self.cursor.followed(*columns):
            return [delivery for delivery in deliveries if not self._add(delivery, within, went_back)]
        self.open.update(zip(sequences, deliveries, strict=True))
        self.count += len(deliveries)
        size = 0
        for delivery in deliveries:
            size += delivery.raw[3]
        self.bytes += size
        if self.states or moves.RECEIVED not in self.table[moves.OUTSIDE]:
            self._move_all(deliveries, moves.RECEIVED, moves.OUTSIDE)
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
            # Other processes do not wait, and may get the awaited messages.
            self._hold_no_longer()
        self._let_wait(delivery)
        return True

    def take_over(self, delivery: StreamDelivery) -> bool:
        """Add a message that the consumer does not deliver any more. Return False if it is in hand, or settled."""
        if delivery.sequence in self.open or not delivery.cursor.take_over(delivery.sequence, delivery.time):
            return False
        self._enter(delivery)
        self.schedule.waiting.append(delivery)
        return True

    def _enter(self, delivery: StreamDelivery) -> None:
        self._move(delivery, moves.RECEIVED, moves.OUTSIDE)
        if delivery.cursor is self.cursor:
            self.open[delivery.sequence] = delivery
        self.count += 1
        self.bytes += delivery.raw[3]

    def _let_wait(self, delivery: StreamDelivery) -> None:
        """Let a waiting message wait in the schedule, or hold it, so that another one may wait there."""
        in_turn = self._admit(delivery, moves.WAITING)
        if in_turn is not None:
            self.schedule.waiting.append(in_turn)

    def _admit(self, delivery: StreamDelivery, state: moves.State) -> StreamDelivery | None:
        """Hold a message if it is not its turn. Return the message of its key whose turn it is."""
        in_turn = self.order.admit(delivery)
        if in_turn is not delivery:
            self._move(delivery, moves.BEHIND, state)
            if in_turn is not None:
                self._move(in_turn, moves.RELEASED)
        return in_turn

    def _try_alone(self, in_turn: StreamDelivery | None) -> None:
        if in_turn is not None:
            self._move(in_turn, moves.RELEASED)
            self.schedule.waiting.append(in_turn)

    def _hold_no_longer(self) -> None:
        held = self.order.clear()
        self._move_all(held, moves.RELEASED)
        self.schedule.waiting += held

    # --- routed ---

    @property
    def held(self) -> int:
        return self.order.held

    @property
    def apart(self) -> int:
        """Return the number of messages that wait for the limit of their value, or for another message of their key."""
        return self.limits.count + self.schedule.behind

    def next(self, now: float) -> StreamDelivery | None:
        while (delivery := self.limits.pop_due(now)) is not None:
            self._move(delivery, moves.DUE)
            if self.order.lines and self.order.follows_run(delivery):
                self.schedule.finished(delivery)
                self._move(delivery, moves.PUT_BACK)
                self.schedule.release([delivery])
            elif self._is_in_turn(delivery):
                delivery.route.limited += 1
                return delivery
        for _ in range(BETWEEN_TWO_LOOKS):
            delivery = self.schedule.take()
            if delivery is None:
                break
            self._move(delivery, moves.TURN, moves.WAITING)
            limited = self.limits.count
            if self._is_in_turn(delivery) and self.limits.admits(delivery, now):
                return delivery
            if self.limits.count > limited:
                self._move(delivery, moves.OVER_LIMIT)
        return None

    def next_together(self, most: int) -> list[StreamDelivery]:
        """Take out up to `most` messages as `next` would. Not for routes with a limit for each value."""
        schedule, order = self.schedule, self.order
        if not order.lines and schedule.as_added:
            waiting = schedule.waiting
            if len(waiting) > most:
                taken = [waiting.popleft() for _ in range(most)]
            else:
                taken = list(waiting)
                waiting.clear()
            if self.states or moves.TURN not in self.table[moves.WAITING]:
                self._move_all(taken, moves.TURN, moves.WAITING)
            return taken
        taken = []
        while len(taken) < most and (delivery := schedule.take()) is not None:
            self._move(delivery, moves.TURN, moves.WAITING)
            if not order.lines or self._is_in_turn(delivery):
                taken.append(delivery)
        return taken

    def _is_in_turn(self, delivery: StreamDelivery) -> bool:
        """Return True if a message may be routed now. Otherwise hold it, and let the one whose turn it is wait."""
        if not self.order.lines or delivery.cursor is not self.cursor:
            return True
        in_turn = self._admit(delivery, moves.ACTIVE)
        if in_turn is delivery:
            return True
        self.schedule.finished(delivery)
        if in_turn is not None:
            self.schedule.waiting.appendleft(in_turn)
        return False

    def let_next_go(self, delivery: StreamDelivery) -> None:
        """Let the next message of its key be routed while this one is active: both have the same destination."""
        self.schedule.finished(delivery)

    # --- settled, or redelivered later ---

    def _remove(self, delivery: StreamDelivery, event: moves.Event) -> bool:
        """Remove a message that is settled or returned. Return True if it belongs to the current stream."""
        self._move(delivery, event)
        self.count -= 1
        self.bytes -= delivery.raw[3]
        if self._left:
            self._leaves(delivery)
        self.schedule.finished(delivery)
        delivery.keep_for_redelivery()
        if delivery.cursor is not self.cursor:
            return False
        del self.open[delivery.sequence]
        return True

    def delivered(self, deliveries: list[StreamDelivery]) -> list[bytes]:
        """Remove messages that need not be redelivered. Return the ack subjects of those of the current stream."""
        if self.states or moves.SETTLED not in self.table[moves.ACTIVE]:
            self._move_all(deliveries, moves.SETTLED)
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
        size = 0
        for delivery in deliveries:
            size += delivery.raw[3]
            if delivery.cursor is cursor:
                sequence = delivery.sequence
                del in_hand[sequence]
                sequences.append(sequence)
                times.append(delivery.time)
                ack_subjects.append(delivery.ack_subject)
        self.bytes -= size
        if sequences:
            cursor.mark_settled(sequences, times)
        if self.order.lines:
            for delivery in deliveries:
                if delivery.cursor is cursor:
                    self._release_behind(delivery)
        return ack_subjects

    def give_up(self, delivery: StreamDelivery) -> bool:
        """Remove a message that will not be redelivered although it failed. Return True if its stream is current."""
        is_open = self._remove(delivery, moves.SETTLED)
        if is_open:
            self.cursor.given_up(delivery.sequence)
            self._release_behind(delivery)
        return is_open

    def await_redelivery(self, delivery: StreamDelivery, now: float, due: float, within: float) -> None:
        """Remove a message that failed, and is redelivered when it is `due`, or up to `within` seconds later.

        If it holds back later messages, they wait for that.
        """
        self._remove(delivery, moves.FAILED)
        if self.holds_back(delivery) and not self.others.take(now):
            self._try_alone(self.order.await_redelivery(delivery, due, due + within))
        else:
            self._release_behind(delivery)

    def _release_behind(self, delivery: StreamDelivery) -> None:
        if self.order.lines:
            self._release(self.order.release_behind(delivery))

    def _release(self, deliveries: Sequence[StreamDelivery]) -> None:
        if deliveries:
            self._move_all(deliveries, moves.RELEASED)
            self.schedule.release(deliveries)

    def take_back(self, delivery: StreamDelivery) -> None:
        """Requeue a message that failed only because an earlier message has to be routed first."""
        keeper: object = delivery.keeper
        assert keeper is self.owner, "a message of an earlier generation is returned to the stream"
        self._move(delivery, moves.PUT_BACK)
        self.schedule.finished(delivery)
        delivery.keep_for_redelivery()
        delivery.start_again()
        if delivery.cursor is self.cursor:
            self._let_wait(delivery)
        else:
            self.schedule.waiting.append(delivery)  # no order is kept in the replaced stream

    # --- behind a refused message ---

    def hold_back_behind(self, delivery: StreamDelivery, now: float) -> bool:
        """Hold back messages behind an active one that a destination refused.

        Return True if some of them are active, and so `out_of_turn`.
        """
        if delivery.cursor is not self.cursor or self.others.take(now):
            return False
        passed_by = not self.order.pass_by(delivery)
        self._try_alone(self.order.await_redelivery(delivery))
        return passed_by

    def release_behind_unanswered(self, waits_long: Callable[[StreamDelivery], bool]) -> bool:
        """Let messages pass active ones whose destinations may not answer for long. Return True if there are any."""
        found = [
            delivery
            for sequence in self.order.unanswered()
            if (delivery := self.open.get(sequence)) is not None and waits_long(delivery)
        ]
        for delivery in found:
            self._release_behind(delivery)
        return bool(found)

    def out_of_turn(self, operation: Operation) -> bool:
        """Return True if a publish is of one of these messages that must wait until another was redelivered."""
        delivery = message_of(operation)
        return delivery is not None and self.passes_by(delivery)

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """Return True if a message, which may be in its handler, must wait until another was redelivered."""
        return bool(self.order.lines) and delivery.cursor is self.cursor and self.order.pass_by(delivery)

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
        """Remove and return the newest held message, if there is one; its redelivery is awaited."""
        delivery = self.order.give_back_newest(due, due + within)
        if delivery is not None:
            self._move(delivery, moves.WITHDRAWN)
            self.give_back(delivery)
        return delivery

    def give_back(self, delivery: StreamDelivery) -> bool:
        """Remove a message that was not routed, which its stream redelivers. Return False if its stream is gone."""
        return self._remove(delivery, moves.GIVEN_BACK)

    def take_stuck(self) -> list[StreamDelivery]:
        """Take out messages that wait for redeliveries, or for the limit of their value, at the end of the route.

        Returned in the order of the stream. `give_back` is still to be called for each.
        """
        stuck = self.order.stuck() + self.limits.clear()
        self._move_all(stuck, moves.WITHDRAWN)
        return stuck

    def take_unrouted(self) -> list[StreamDelivery]:
        """Take out all waiting, limited and held messages; not those that are in a handler or active.

        `give_back` is still to be called for each. Messages of the current stream are last, in its order.
        """
        ours: list[StreamDelivery] = []
        before: list[StreamDelivery] = []
        waiting, limited, held = self.schedule.clear(), self.limits.clear(), self.order.leave_hand()
        self._move_all(waiting, moves.WITHDRAWN, moves.WAITING)
        self._move_all(limited + held, moves.WITHDRAWN)
        for delivery in limited + waiting:
            (ours if delivery.cursor is self.cursor else before).append(delivery)
        ours += held
        return before + sorted(ours, key=_sequence)

    def lead_ends(self) -> None:
        """Await nothing any more: from now on, another process may settle what is not in hand here."""
        self.order.clear()
        self.cursor.lead_ends(self.open)

    def await_at_once(self, deliveries: Iterable[StreamDelivery], now: float) -> None:
        """Record that messages were returned at the end: a successor waits for them before it routes later ones."""
        if not self.others.take(now):
            for delivery in deliveries:
                self._try_alone(self.order.await_returned(delivery))


class LeftInHand:
    """The `Holder` of an earlier generation of a route, whose messages are in the hand of a later one."""

    limited = 0
    retrying: tuple[int, float] = (0, 0.0)
    uncounted = 0
    behind = None
    partitions = None

    def __init__(self, count: Callable[[], int]) -> None:
        """`count` returns how many messages of that generation are still in hand."""
        self._count = count

    @property
    def in_hand(self) -> int:
        return self._count()


def place_of(delivery: StreamDelivery) -> int:
    """Return the place of a message in the order: messages of a replaced stream are first."""
    return delivery.cursor.streams_before * LAST_SEQUENCE + delivery.sequence


def message_of(operation: Operation) -> StreamDelivery | None:
    """Return the message from a stream that a publish is a copy of; None if there is none."""
    delivery = delivery_of(operation)
    return delivery if isinstance(delivery, StreamDelivery) else None


def was_refused(delivery: StreamDelivery) -> bool:
    """Return True if a destination refused a message: one that failed because of its content holds back no other."""
    return delivery.refused


def _order_key(delivery: StreamDelivery) -> bytes:
    return delivery.order_key


def _sequence(delivery: StreamDelivery) -> int:
    return delivery.sequence
