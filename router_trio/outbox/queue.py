"""The queue of one connection: every operation that was accepted and has no fate, wherever it is.

An operation is *pending* from its acceptance until it is written, *in flight* from then until it is confirmed, and
removed once it has a fate. A pending operation waits for the link or the wire, or is held back in a lane because a
stream refuses it for now. When the link is lost, everything in flight or held returns to the head, in the order of
acceptance, and is sent first on the next link.

Pure and synchronous: no I/O, no clock of its own, no policy. `Outbox` decides what to do when the queue is full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from router_trio.outbox.in_flight import InFlight, by_order
from router_trio.outbox.operation import (
    RESENT_ON_NEXT_LINK,
    FrameOwners,
    Operation,
    OperationBatch,
    OperationWithAck,
    Owner,
)
from router_trio.outbox.retry_lanes import RetryLanes

MOST_TOGETHER = 2048
"""Number of core publishes at which a batch is full."""


class SendQueue:
    """Holds operations between acceptance and confirmation."""

    __slots__ = ("_waiting", "in_flight", "lanes", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self.waiting: int = 0
        """Number of operations that wait for the link or the wire."""
        self.waiting_bytes: int = 0
        """Bytes of their frames."""
        self.lanes: RetryLanes = RetryLanes()
        """Operations that are held back."""
        self.in_flight: InFlight = InFlight()
        """Operations that were written and are not confirmed."""
        self._waiting: deque[Operation] = deque()

    # --- state ---

    @property
    def pending(self) -> int:
        """Number of operations that are accepted and not written."""
        return self.waiting + self.lanes.held

    @property
    def pending_bytes(self) -> int:
        """Bytes of the frames of pending operations."""
        return self.waiting_bytes + self.lanes.held_bytes

    @property
    def oldest_accepted_at(self) -> float | None:
        """When the oldest pending operation was accepted; None when nothing is pending."""
        held = self.lanes.oldest_accepted_at
        if not self._waiting:
            return held
        head = self._waiting[0].accepted_at
        return head if held is None else min(head, held)

    @property
    def oldest_on_its_way_at(self) -> float:
        """`Operation.on_its_way_at` of the oldest one that waits for the wire or is in flight; infinite if none does.

        Excludes operations held in lanes. Of the JetStream publishes in flight, only the one written first is
        considered.
        """
        head = self._waiting[0].on_its_way_at if self._waiting else inf
        return min(head, self.in_flight.first_on_its_way_at)

    def find(self, order: int) -> OperationWithAck | None:
        """Return the JetStream publish with this number, pending or in flight, or None."""
        found = self.lanes.find(order) or self.in_flight.unacked.get(order)
        if found is not None:
            return found
        return next((one for one in self._waiting if one.order == order and isinstance(one, OperationWithAck)), None)

    def unanswered(self) -> list[OperationWithAck]:
        """Return the JetStream publishes that wait for the link, and were sent before without an answer."""
        return [one for one in self._waiting if isinstance(one, OperationWithAck) and one.unanswered_since is not None]

    def older_waits(self, operation: Operation) -> bool:
        """Return True if a JetStream publish of the same lane that was accepted earlier waits for the wire."""
        lane = operation.lane
        for waiting in self._waiting:
            if waiting.order > operation.order:
                break
            if waiting.with_ack and waiting.lane == lane:
                return True
        return False

    # --- appending at the tail ---

    def append(self, operation: Operation) -> None:
        """Append a newly accepted operation."""
        self._waiting.append(operation)
        self.waiting_bytes += operation.size
        self.waiting += operation.count

    def append_each(self, operations: Sequence[OperationWithAck], size: int) -> None:
        """Append newly accepted JetStream publishes, whose frames have `size` bytes in total."""
        self._waiting.extend(operations)
        self.waiting_bytes += size
        self.waiting += len(operations)

    def append_frames(self, order: int, frames: Sequence[bytes], owners: FrameOwners, accepted_at: float) -> None:
        """Append newly accepted core publishes, the last one with number `order`.

        They are merged into the batch at the tail if it was accepted at the same time, just before them.
        """
        size = sum(map(len, frames))
        last = self._batch_at_tail(order - len(frames), accepted_at)
        if last is None:
            self._waiting.append(OperationBatch(order, frames, size, owners, accepted_at))
        else:
            last.extend(order, frames, size, owners)
        self.waiting_bytes += size
        self.waiting += len(frames)

    def append_frame(self, order: int, frame: bytes, owner: Owner, accepted_at: float) -> None:
        """Append one newly accepted core publish, as `append_frames` does."""
        size = len(frame)
        last = self._batch_at_tail(order - 1, accepted_at)
        if last is None:
            self._waiting.append(OperationBatch(order, [frame], size, FrameOwners([owner], [1]), accepted_at))
        else:
            last.append(order, frame, size, owner)
        self.waiting_bytes += size
        self.waiting += 1

    def _batch_at_tail(self, behind: int, accepted_at: float) -> OperationBatch | None:
        """Return the batch at the tail if publishes accepted at this time, right behind that number, may join it.

        Operations accepted in between may have left the queue: they were recalled, or are held in lanes.
        """
        waiting = self._waiting
        if waiting:
            last = waiting[-1]
            if (
                last.accepted_at == accepted_at
                and last.order == behind
                and type(last) is OperationBatch
                and last.count < MOST_TOGETHER
            ):
                return last
        return None

    # --- taking from the head, to be written ---

    def take_batch(self, now: float, *, max_operations: int, max_bytes: int, max_unacked: int) -> list[Operation]:
        """Move operations from the head into flight and return them: at least one if any may be sent."""
        waiting, in_flight = self._waiting, self.in_flight
        taken: list[Operation] = []
        size = count = 0
        room = max_unacked - len(in_flight.unacked)
        while waiting and count < max_operations and size < max_bytes:
            operation = waiting[0]
            if isinstance(operation, OperationWithAck):
                if room <= 0:
                    break
                room -= 1
                in_flight.add_with_ack(operation, now)
                size += len(operation.frame)  # the same as its `size`, without a property call
            else:
                in_flight.add(operation)
                size += operation.size
            waiting.popleft()
            count += operation.count
            taken.append(operation)
        self.waiting_bytes -= size
        self.waiting -= count
        return taken

    def split_first(self, most: int) -> None:
        """Split the batches among the first `most` publishes, so that `take_batch` can stop within one."""
        first: list[Operation] = []
        while self._waiting and len(first) < most:
            first += self._waiting.popleft().split()
        self._waiting.extendleft(reversed(first))

    # --- returning to the head ---

    def requeue_all(self) -> None:
        """Return everything in flight or held to the head, after the loss of the link."""
        back = self.in_flight.clear()
        for operation in back:
            if isinstance(operation, OperationWithAck):
                operation.send_again()
        for operation in self._waiting:
            back += operation.split()
        back += self.lanes.clear()
        self._waiting.clear()
        self.waiting_bytes = self.waiting = 0
        assert not self.in_flight.count + self.lanes.held, "everything without a fate is returned"
        for operation in back:
            if isinstance(operation, OperationWithAck) and operation.first_written_at is not None:
                operation.first_written_at = None  # each one gets its full budget on the next link
                operation.stop_asking()
                operation.resent = RESENT_ON_NEXT_LINK
        self.put_back(back)

    def put_back(self, operations: Sequence[Operation]) -> None:
        """Return operations that were taken out to the head, in the order of acceptance."""
        if not operations:
            return
        back = sorted(operations, key=by_order)
        self.waiting_bytes += sum(one.size for one in back)
        self.waiting += sum(one.count for one in back)
        waiting = self._waiting
        newest = back[-1].order
        while waiting and waiting[0].order < newest:
            back.append(waiting.popleft())
        back.sort(key=by_order)
        waiting.extendleft(reversed(back))

    def readdress(self, inbox: bytes) -> None:
        """Direct the PubAcks of all waiting operations to another inbox, whose name has the same length."""
        for operation in self._waiting:
            if isinstance(operation, OperationWithAck):
                operation.expect_puback_at(inbox)

    # --- taking out without sending ---

    def drop_oldest(self) -> Operation | None:
        """Take out the head."""
        if not self._waiting:
            return None
        operation = self._waiting.popleft()
        self._left(operation)
        return operation

    def drop_all(self) -> list[Operation]:
        """Take out all operations that wait for the link or the wire."""
        return self.drop_older_than(inf)

    def drop_older_than(self, accepted_at: float) -> list[Operation]:
        """Take out the operations at the head that were accepted before that time."""
        dropped = []
        while self._waiting and self._waiting[0].accepted_at < accepted_at:
            dropped.append(self._waiting.popleft())
            self._left(dropped[-1])
        return dropped

    def take_out(self, wanted: Callable[[Operation], bool]) -> list[Operation]:
        """Take out the pending operations for which `wanted` returns True."""
        found = {operation: None for operation in self._waiting if wanted(operation)}
        if found:
            self._waiting = deque(operation for operation in self._waiting if operation not in found)
            for operation in found:
                self._left(operation)
        return [*found, *self.lanes.take_out(wanted)]

    def withdraw(self, operation: Operation) -> bool:
        """Take out one operation wherever it is. Returns True if it was here."""
        if self.lanes.withdraw(operation) or self.in_flight.withdraw(operation):
            return True
        if operation in self._waiting:
            self._waiting.remove(operation)
            self._left(operation)
            return True
        return False

    def remains(self, operation: Operation) -> list[Operation]:
        """Return the parts still here of an operation that was taken, or of a part of one."""
        written = self.in_flight.parts(operation)
        first, last = operation.order - operation.count + 1, operation.order
        if operation.with_ack or operation in written:
            return written
        return [*(one for one in self._waiting if first <= one.order <= last), *written]

    def _left(self, operation: Operation) -> None:
        self.waiting_bytes -= operation.size
        self.waiting -= operation.count
