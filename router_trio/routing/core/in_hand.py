"""Every message that a route from a subject keeps.

`routing/in_hand.py` has the part common to all sources. HELD messages are in `retries`. WAITING and LIMITED messages
share the room of an intake queue; HELD ones have room of their own.

No other place has the messages of a subject: a message that is dropped here is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from router_trio.protocol.framing import RawMessage
from router_trio.routing import moves
from router_trio.routing.core import intake_queue
from router_trio.routing.core.delivery import CoreDelivery, Keeper
from router_trio.routing.hand_over import Batch
from router_trio.routing.in_hand import InHand
from router_trio.routing.policy.retry_queue import RetryQueue
from router_trio.routing.schedule import Limits, Order
from router_trio.routing.turns import BETWEEN_TWO_LOOKS
from router_trio.states import RouteState

_place = attrgetter("place")


class SubjectInHand(InHand[CoreDelivery]):
    """The messages of one route."""

    def __init__(
        self,
        schedule: Order[CoreDelivery],
        limits: Limits[CoreDelivery],
        new_message_id: Callable[[], bytes],
    ) -> None:
        """`new_message_id` is called for each message before its first attempt."""
        super().__init__(moves.SUBJECT, schedule, limits)
        self.retries: RetryQueue[CoreDelivery] = RetryQueue()
        self._new_message_id = new_message_id
        self._bytes = 0
        self._last = 0
        self._first = 0
        self._retry_next = True

    @property
    def held(self) -> int:
        return len(self.retries)

    @property
    def due_at(self) -> float:
        """Return when the next message may be sent, including messages that wait for their next attempt."""
        return min(self.limits.due_at, self.retries.first_due)

    # --- received ---

    def add(self, keeper: Keeper, state: RouteState, batch: Sequence[RawMessage], now: float) -> int:
        """Add as many messages as there is room for. Return the number of refused messages."""
        waiting = self.schedule.count + self.limits.count
        room = intake_queue.MAX_MESSAGES - waiting if self._bytes < intake_queue.MAX_BYTES else 0
        accepted: list[CoreDelivery] = []
        for raw in batch[: max(room, 0)]:
            self._last += 1
            accepted.append(CoreDelivery(keeper, state, raw, now, self._last))
            self._bytes += len(raw[4])
        self._move_all(accepted, moves.RECEIVED, moves.OUTSIDE)
        self.schedule.waiting += accepted
        self.count += len(accepted)
        return len(batch) - len(accepted)

    def add_first(self, keeper: Keeper, state: RouteState, batches: Sequence[Batch]) -> None:
        """Add messages that a route which keeps none has received before all others."""
        for batch in reversed(batches):
            for raw in reversed(batch.messages):
                self._first -= 1
                self._add_first(CoreDelivery(keeper, state, raw, batch.received_at, self._first))

    def add_in_place(self, delivery: CoreDelivery) -> None:
        """Add a message that was received before others that wait, at its place among them."""
        waiting = self.schedule.waiting
        before = next((index for index, one in enumerate(waiting) if one.place > delivery.place), len(waiting))
        self._enter(delivery)
        waiting.insert(before, delivery)

    def _add_first(self, delivery: CoreDelivery) -> None:
        self._enter(delivery)
        self.schedule.waiting.appendleft(delivery)

    def _enter(self, delivery: CoreDelivery) -> None:
        self._move(delivery, moves.RECEIVED, moves.OUTSIDE)
        self.count += 1
        self._bytes += len(delivery.raw[4])

    def continue_order(self, before: SubjectInHand, taken: Iterable[CoreDelivery]) -> None:
        """Add messages taken from the hand of the same route under its earlier settings, sorted by place.

        What is received from now on comes after them.
        """
        assert not self.count, "nothing is received yet"
        self._first, self._last = before._first, before._last
        for delivery in taken:
            self._enter(delivery)
            self.schedule.waiting.append(delivery)

    # --- routed ---

    def next(self, now: float) -> CoreDelivery | None:
        limits = self.limits
        delivery = limits.pop_due(now)
        if delivery is not None:
            self._move(delivery, moves.DUE)
            self._bytes -= len(delivery.raw[4])
            delivery.route.limited += 1
            return delivery
        for _ in range(BETWEEN_TWO_LOOKS):
            delivery = self._take(now)
            if delivery is None:
                break
            limited = limits.count
            if limits.admits(delivery, now):
                return delivery
            if limits.count > limited:
                self._move(delivery, moves.OVER_LIMIT)
                self._bytes += len(delivery.raw[4])
        return None

    def _take(self, now: float) -> CoreDelivery | None:
        """Take due retries and new messages by turns, so that neither holds up the other.

        Messages that a destination has refused go before new ones, which it would refuse as well.
        """
        first = self.retries.first
        self._retry_next = not self._retry_next or (first is not None and first.refused)
        delivery = self._take_retry(now) if self._retry_next else self._take_waiting(now)
        if delivery is None:
            delivery = self._take_waiting(now) if self._retry_next else self._take_retry(now)
        return delivery

    def _take_retry(self, now: float) -> CoreDelivery | None:
        delivery = self.retries.pop_due(now)
        if delivery is not None:
            self._move(delivery, moves.DUE)
            delivery.start_again()
        return delivery

    def _take_waiting(self, now: float) -> CoreDelivery | None:
        while (delivery := self.schedule.take()) is not None:
            self._move(delivery, moves.TURN, moves.WAITING)
            self._bytes -= len(delivery.raw[4])
            if delivery.failed is None:
                delivery.message_id = self._new_message_id()
                break
            # It failed under earlier settings. Only now its key is known to be free.
            if delivery.due <= now or not self.retry(delivery, delivery.due):
                delivery.start_again()
                break
        return delivery

    # --- no longer active ---

    def retry(self, delivery: CoreDelivery, due: float, *, holds_key: bool = True) -> bool:
        """Keep an active message for its next attempt. Return False if there is no room for it.

        If the route is by key, later messages of its key wait for it, unless `holds_key` is False.
        """
        delivery.due = due
        if not self.retries.add(delivery, delivery.raw[3], due, delivery.place):
            return False
        self._move(delivery, moves.FAILED)
        if not holds_key:
            self.schedule.finished(delivery)
        return True

    def settle(self, delivery: CoreDelivery) -> None:
        """Remove an active message that is settled, so that others of its key may be routed."""
        self._move(delivery, moves.SETTLED)
        self.count -= 1
        self.schedule.finished(delivery)

    def put_back(self, delivery: CoreDelivery) -> None:
        super().put_back(delivery)
        self._bytes += len(delivery.raw[4])

    def refuse(self, delivery: CoreDelivery) -> None:
        """Remove a message that the schedule had no room for."""
        self._move(delivery, moves.WITHDRAWN, moves.WAITING)
        self.count -= 1
        self._bytes -= len(delivery.raw[4])

    def take_held(self) -> list[CoreDelivery]:
        """Take out the messages that wait for their next attempt, and make them active."""
        held = self.retries.take_all()
        self._move_all(held, moves.DUE)
        return held

    def take_back(self) -> list[CoreDelivery]:
        """Take out all messages except active ones, to route them by other settings, in the order of their arrival."""
        waiting = self.schedule.clear()
        self._move_all(waiting, moves.WITHDRAWN, moves.WAITING)
        begun = [*self.limits.clear(), *self.retries.take_all()]  # their keys count them as active
        self._move_all(begun, moves.WITHDRAWN)
        for delivery in begun:
            self.schedule.finished(delivery)
        waiting += begun
        self.count -= len(waiting)
        self._bytes = 0
        return sorted(waiting, key=_place)

    def take_unrouted(self) -> list[CoreDelivery]:
        """Take out all unrouted messages at the end of the route, also those in a handler or waiting for a retry."""
        in_handler = self.in_handler
        self._move_all(in_handler, moves.WITHDRAWN)
        self.count -= len(in_handler)
        return in_handler + self.take_back()
