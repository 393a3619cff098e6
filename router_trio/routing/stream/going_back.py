"""What a route takes back from outboxes, and gives back to its stream, which delivers it again.

It does so to keep the order behind a refused message, to make room, and at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import trio

from router_trio.outbox.operation import CoreOperation, Operation
from router_trio.routing.delivery import DestinationTracker
from router_trio.routing.pipeline import Routing
from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.limited import LimitedValues


class GoingBack:
    """Gives back messages of one route. Each has its fate then, `returned`, or `lost` if its stream is gone."""

    def __init__(
        self, routing: Routing, pending: AckPending, acks: Acks, all_settled: trio.lowlevel.ParkingLot
    ) -> None:
        """Who waits in `all_settled` is woken when nothing is in hand any more."""
        self._destinations = routing.connections
        self._state = routing.state
        self._pending = pending
        self._acks = acks
        self._all_settled = all_settled
        self.limited: LimitedValues | None = None
        """What waits for the limit of its value."""

    # --- from the outboxes ---

    def recall_out_of_turn(self) -> None:
        """Take back what is behind a refused message and not sent, or not confirmed on a link that died."""
        if self._pending.order.lines:
            for destination in self._destinations:
                destination.outbox.recall(self._pending.out_of_turn)

    def recall_all(self) -> None:
        """Take back all that is not sent, at the end of the route."""
        for destination in self._destinations:
            destination.outbox.recall(self._is_own, "its route has ended, and the stream delivers it again")

    def _is_own(self, operation: Operation) -> bool:
        owner = operation.owner if isinstance(operation, CoreOperation) else None
        delivery = owner.delivery if isinstance(owner, DestinationTracker) else owner
        return isinstance(delivery, StreamDelivery) and delivery.route is self._state

    # --- to the stream ---

    def newest(self, delay: float, late: float) -> None:
        """Give back the newest that waits, to come again after `delay` seconds, and at most `late` later than that."""
        delivery = self._pending.give_back_newest(trio.current_time() + delay + OVERDUE, late)
        if delivery is not None:
            self._state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, delay)

    def all_waiting(self) -> None:
        """Give back all that waits for its turn, and what is stuck. What is of a stream before this one is lost."""
        pending = self._pending
        if pending.keys is not None:
            pending.waiting += pending.keys.clear()
        self.everything(())
        if not pending.count:
            self._all_settled.unpark_all()

    def all_stuck(self) -> None:
        """Give back what can't go on now that nothing comes any more."""
        for delivery in self._pending.take_back_stuck():
            self._state.fates["returned"] += 1
            self.comes_again(delivery)
        if self.limited is not None:
            self.these(self.limited.clear())
        if not self._pending.count:
            self._all_settled.unpark_all()

    def everything(self, in_handler: Collection[StreamDelivery]) -> None:
        """Give back all that was not routed. What is in the handler gets its fate from that."""
        pending = self._pending
        if self.limited is not None:
            pending.waiting += self.limited.clear()
        of_another_stream = [delivery for delivery in pending.waiting if delivery.cursor is not pending.cursor]
        for delivery in [*pending.unrouted()]:
            self.comes_again(delivery)
            if delivery not in in_handler:
                self.unrouted(delivery)
        for delivery in of_another_stream:
            if delivery not in in_handler:
                self.unrouted(delivery)
        # Nothing may be left there: the route that takes this one's place goes on with what is pending.
        pending.waiting.clear()
        pending.waiting += in_handler

    def unrouted(self, delivery: StreamDelivery) -> None:
        """It was not routed before the end: its stream has it, if that is still there."""
        self._state.fates["returned" if self._pending.remove(delivery) else "lost"] += 1

    def these(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Give back these messages, which are in hand and nowhere else. What is of a stream before this one is lost."""
        for delivery in deliveries:
            if delivery.cursor is self._pending.cursor:
                self.comes_again(delivery)
            self.unrouted(delivery)

    def comes_again(self, delivery: StreamDelivery) -> None:
        """This one is given back at the end, and waited for by the route that takes this one's place."""
        self._pending.comes_again_at_once(delivery, trio.current_time())
        self._acks.nak(delivery.ack_subject, 0)
