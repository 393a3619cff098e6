"""The pending queue of one connection: the only way out for a message.

An operation is *pending* from when it is accepted until it is written, *in flight* from then until it is confirmed,
and gone once it has a fate. When the link dies, everything in flight goes back to the head, in the order of
acceptance, and is sent again first. A core publish is confirmed by a fence, that is, by position: everything written
before the fence. A JetStream publish is confirmed by its PubAck, that is, by its number.

Pure and synchronous: no I/O, no clock of its own, no policy. Who decides what to do when it is full is `outbox`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from operator import attrgetter

from router_trio.outbox.operation import FrameOwners, Operation, OperationBatch, OperationWithAck, Owner
from router_trio.protocol.framing import readdressed

MOST_TOGETHER = 1024
"""Core publishes in one batch, before the last that is added to it."""

_order = attrgetter("order")


class SendQueue:
    """Holds operations between acceptance and confirmation."""

    __slots__ = (
        "_fenced",
        "_fenced_count",
        "_fenced_written",
        "_unacked",
        "_waiting",
        "pending",
        "pending_bytes",
    )

    def __init__(self) -> None:
        self.pending = 0
        """Operations accepted and not written."""
        self.pending_bytes = 0
        """Bytes of their frames."""
        self._waiting: deque[Operation] = deque()
        self._fenced: deque[Operation] = deque()
        self._fenced_count = 0
        self._fenced_written = 0
        self._unacked: dict[int, OperationWithAck] = {}

    # --- what there is ---

    @property
    def in_flight(self) -> int:
        """Operations written and not confirmed."""
        return self._fenced_count + len(self._unacked)

    @property
    def unfenced(self) -> int:
        """Written core publishes that no fence has confirmed."""
        return self._fenced_count

    def unfenced_before(self, mark: int) -> int:
        """How many of them a fence behind `mark` would confirm."""
        return max(0, mark - (self._fenced_written - self._fenced_count))

    @property
    def unacked(self) -> int:
        """Written JetStream publishes without a PubAck."""
        return len(self._unacked)

    def unacked_in_order(self) -> Iterator[OperationWithAck]:
        """The same, from the one that was written first."""
        return iter(self._unacked.values())

    @property
    def oldest_accepted_at(self) -> float | None:
        """When the head of the queue was accepted; None when nothing is pending."""
        return self._waiting[0].accepted_at if self._waiting else None

    # --- in, at the tail ---

    def append(self, operation: Operation) -> None:
        """Put a newly accepted operation at the tail."""
        self._waiting.append(operation)
        self.pending_bytes += operation.size
        self.pending += operation.count

    def extend(self, operations: Sequence[OperationWithAck], size: int) -> None:
        """Put newly accepted JetStream publishes of `size` bytes in all at the tail."""
        self._waiting.extend(operations)
        self.pending_bytes += size
        self.pending += len(operations)

    def append_frames(self, order: int, frames: Sequence[bytes], owners: FrameOwners, accepted_at: float) -> None:
        """Put newly accepted core publishes at the tail, the last of them with this number.

        What was accepted at the same time just before them is one operation with them.
        """
        size = sum(map(len, frames))
        self._together(order - len(frames), accepted_at).extend(order, frames, size, owners)
        self.pending_bytes += size
        self.pending += len(frames)

    def append_frame(self, order: int, frame: bytes, owner: Owner, accepted_at: float) -> None:
        """The same for one."""
        size = len(frame)
        self._together(order - 1, accepted_at).append(order, frame, size, owner)
        self.pending_bytes += size
        self.pending += 1

    def _together(self, behind: int, accepted_at: float) -> OperationBatch:
        """The batch at the tail that takes what was accepted at this time, right behind that number.

        What was accepted in between may be here no more: taken back, or held elsewhere.
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
        batch = OperationBatch(accepted_at=accepted_at)
        waiting.append(batch)
        return batch

    # --- out, over the wire ---

    def take(self, now: float, *, max_operations: int, max_bytes: int, max_unacked: int) -> list[Operation]:
        """Move operations from the head into flight and return them: at least one if any may go."""
        waiting, fenced = self._waiting, self._fenced
        taken: list[Operation] = []
        size = count = 0
        room = max_unacked - len(self._unacked)
        while waiting and count < max_operations and size < max_bytes:
            operation = waiting[0]
            if isinstance(operation, OperationWithAck):
                if room <= 0:
                    break
                room -= 1
                self._await_ack(operation, now)
            else:
                fenced.append(operation)
                self._fenced_written += operation.count
                self._fenced_count += operation.count
            waiting.popleft()
            size += operation.size
            count += operation.count
            taken.append(operation)
        self.pending_bytes -= size
        self.pending -= count
        return taken

    def split_head(self, most: int) -> None:
        """Take the head apart if it is more than so many publishes."""
        if self._waiting and 0 < most < self._waiting[0].count:
            self._waiting.extendleft(reversed(self._waiting.popleft().split()))

    def only_in_flight(self) -> Operation | None:
        """The one publish that is in flight; None if there are none or several."""
        if self.in_flight != 1:
            return None
        return next(iter(self._unacked.values())) if self._unacked else self._fenced[0]

    def put_in_flight(self, operations: list[OperationWithAck], now: float) -> None:
        """Put JetStream publishes that were taken out before straight into flight: they are about to be written."""
        for operation in operations:
            self._await_ack(operation, now)

    def _await_ack(self, operation: OperationWithAck, now: float) -> None:
        operation.written_at = now
        if operation.first_written_at is None:
            operation.first_written_at = now
        self._unacked[operation.order] = operation

    def mark(self) -> int:
        """The position behind the last written core publish, for `confirm_fenced`."""
        return self._fenced_written

    def confirm_fenced(self, mark: int) -> list[Operation]:
        """Take out the core publishes that were written before `mark` was read and are still in flight."""
        fenced = self._fenced
        count = self.unfenced_before(mark)
        if count >= self._fenced_count:
            self._fenced, self._fenced_count = deque(), 0
            return list(fenced)
        confirmed = []
        left = self._fenced_count - count
        while self._fenced_count > left and self._fenced_count - fenced[0].count >= left:
            confirmed.append(fenced.popleft())
            self._fenced_count -= confirmed[-1].count
        return confirmed

    def confirm_acked(self, order: int) -> OperationWithAck | None:
        """Take out the JetStream publish with this number; None if it isn't in flight (late or doubled PubAck)."""
        return self._unacked.pop(order, None)

    def confirm_each(self, orders: Sequence[int]) -> list[OperationWithAck | None]:
        """What `confirm_acked` returns for each of these numbers."""
        take_out = self._unacked.pop
        return [take_out(order, None) for order in orders]

    # --- back, to the head ---

    def requeue_all(self) -> int:
        """The link died: everything in flight goes back to the head. Returns how many."""
        # Taken apart: what happens to them from now on happens to each by itself.
        back: list[Operation] = []
        for operation in (*self._fenced, *self._waiting):
            back += operation.split()
        back += self._unacked.values()
        returned = self._fenced_count + len(self._unacked)
        # What was written on this link is not forgotten: a mark that was read on it confirms nothing on the next one.
        self._fenced.clear()
        self._unacked.clear()
        self._waiting.clear()
        self._fenced_count = self.pending_bytes = self.pending = 0
        for operation in back:
            if isinstance(operation, OperationWithAck) and operation.first_written_at is not None:
                operation.first_written_at = None  # each gets its whole time on the next link
                operation.resent = True
        self.put_back(back)
        return returned

    def put_back(self, operations: Sequence[Operation]) -> None:
        """Put operations that were taken out before back to the head, in the order of acceptance."""
        if not operations:
            return
        back = sorted(operations, key=_order)
        self.pending_bytes += sum(o.size for o in back)
        self.pending += sum(o.count for o in back)
        waiting = self._waiting
        newest = back[-1].order
        while waiting and waiting[0].order < newest:
            back.append(waiting.popleft())
        back.sort(key=_order)
        waiting.extendleft(reversed(back))

    def readdress(self, inbox: bytes) -> None:
        """Have the PubAcks of all that is pending come to another inbox, whose name is as long."""
        for operation in self._waiting:
            if isinstance(operation, OperationWithAck):
                operation.frame = readdressed(operation.frame, b"%b.%d" % (inbox, operation.order))

    # --- out, without being sent ---

    def drop_oldest(self) -> Operation | None:
        """Take out the head."""
        if not self._waiting:
            return None
        operation = self._waiting.popleft()
        self._forget_waiting(operation)
        return operation

    def drop_all(self) -> list[Operation]:
        """Take out everything that is pending."""
        return self.drop_older_than(inf)

    def drop_older_than(self, accepted_at: float) -> list[Operation]:
        """Take out from the head what was accepted before that time."""
        dropped = []
        while self._waiting and self._waiting[0].accepted_at < accepted_at:
            dropped.append(self._waiting.popleft())
            self._forget_waiting(dropped[-1])
        return dropped

    def take_out(self, wanted: Callable[[Operation], bool]) -> list[Operation]:
        """Take out from what is pending all that is wanted."""
        found = {operation: None for operation in self._waiting if wanted(operation)}
        if found:
            self._waiting = deque(operation for operation in self._waiting if operation not in found)
            for operation in found:
                self._forget_waiting(operation)
        return list(found)

    def withdraw(self, operation: Operation) -> bool:
        """Take out one operation wherever it is. Returns whether it was here."""
        if self._unacked.pop(operation.order, None) is not None:
            return True
        if operation in self._waiting:
            self._waiting.remove(operation)
            self._forget_waiting(operation)
            return True
        # Leaving the middle of the fenced ones makes an older mark confirm one too few, never one too many: the next
        # fence confirms it.
        if operation in self._fenced:
            self._fenced.remove(operation)
            self._fenced_count -= operation.count
            return True
        return False

    def remains(self, operation: Operation) -> list[Operation]:
        """What is still here of an operation that was taken, or of one of its parts: either may be in parts by now."""
        if operation.with_ack or operation in self._fenced:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._fenced = deque(
            part
            for one in self._fenced
            for part in (one.split() if one.order >= first and one.order - one.count < last else (one,))
        )
        return [one for one in (*self._waiting, *self._fenced) if first <= one.order <= last]

    def remains_in_parts(self, operation: Operation) -> list[Operation]:
        """The same, and each is one publish."""
        if operation.count == 1:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._fenced = deque(part for one in self._fenced for part in one.split())
        return [one for one in self._fenced if first <= one.order <= last]

    def _forget_waiting(self, operation: Operation) -> None:
        self.pending_bytes -= operation.size
        self.pending -= operation.count

    def find(self, order: int) -> OperationWithAck | None:
        """The JetStream publish with this number, in flight or pending."""
        waiting = (o for o in self._waiting if o.order == order and isinstance(o, OperationWithAck))
        return self._unacked.get(order) or next(waiting, None)

    def older_is_pending(self, operation: Operation) -> bool:
        """Return True if a JetStream publish to the same subject that was accepted earlier is pending."""
        for waiting in self._waiting:
            if waiting.order > operation.order:
                break
            if waiting.with_ack and waiting.subject == operation.subject:
                return True
        return False

    def find_in_flight(self, subject: bytes) -> Operation | None:
        """The oldest operation in flight to that subject."""
        if len(self._fenced) != self._fenced_count:
            self._fenced = deque(one for operation in self._fenced for one in operation.split())
        found: list[Operation] = [o for o in self._unacked.values() if o.subject == subject]
        # These are in the order of acceptance: the first is the oldest, and a flood of refusals finds it early.
        found.extend(islice((o for o in self._fenced if o.subject == subject), 1))
        return min(found, key=_order, default=None)

    def unacked_since(self, written_at: float) -> list[OperationWithAck]:
        """JetStream publishes written at or before that time and still without a PubAck."""
        return [o for o in self._unacked.values() if o.written_at <= written_at]
