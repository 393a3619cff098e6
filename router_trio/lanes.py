"""Lanes: JetStream publishes that a stream can't take right now, held back by subject.

When a stream has no leader (or doesn't exist) its publishes are answered "no responders". Trying the whole queue again
would lose the order, and waiting at its head would stop every other stream. So the subject gets a lane: its later
publishes queue behind the refused one, everything else goes on. One publish a lane is tried at a time; when one is
acked the lane dissolves and its operations return to the head of the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from router_trio.operation import Operation, OperationWithAck


class _Lane:
    __slots__ = ("operations", "probing", "retry_at")

    def __init__(self) -> None:
        self.operations: dict[int, OperationWithAck] = {}
        self.probing: int | None = None
        self.retry_at = 0.0

    @property
    def oldest(self) -> OperationWithAck:
        return self.operations[min(self.operations)]


class Lanes:
    """All lanes of one connection. `held` operations are in them and not being tried, frames of `held_bytes` bytes.

    `lanes` are there, by subject, also those whose only operation is under way.
    """

    __slots__ = ("held", "held_bytes", "lanes")

    def __init__(self) -> None:
        self.lanes: dict[bytes, _Lane] = {}
        self.held = 0
        self.held_bytes = 0

    @property
    def oldest_accepted_at(self) -> float | None:
        """When the oldest held operation was accepted; None when nothing is held."""
        held = (lane.oldest.accepted_at for lane in self.lanes.values() if lane.operations)
        return min(held, default=None)

    def __contains__(self, subject: bytes) -> bool:
        return subject in self.lanes

    def hold(self, operation: OperationWithAck, retry_at: float | None = None) -> None:
        """Hold an operation in its subject's lane, made if there is none. A refused one says when to try again."""
        lane = self.lanes.setdefault(operation.subject, _Lane())
        lane.operations[operation.order] = operation
        self.held += 1
        self.held_bytes += len(operation.frame)
        if retry_at is not None:
            lane.retry_at = retry_at
        if lane.probing == operation.order:
            lane.probing = None

    def due(self, now: float, must_wait: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """The oldest operation of each lane whose time has come and that has none under way, marked as under way.

        `must_wait` says that one would overtake an older one elsewhere: that one will come to the lane first.
        """
        due = []
        for lane in self._ready():
            if lane.retry_at <= now and not must_wait(lane.oldest):
                lane.probing = lane.oldest.order
                due.append(lane.operations.pop(lane.probing))
        self._released(due)
        return due

    def next_due(self, must_wait: Callable[[OperationWithAck], bool]) -> float | None:
        """When `due` would give something; None if nothing waits for its time."""
        return min((lane.retry_at for lane in self._ready() if not must_wait(lane.oldest)), default=None)

    def _ready(self) -> Iterator[_Lane]:
        return (lane for lane in self.lanes.values() if lane.operations and lane.probing is None)

    def settled(self, operation: Operation, *, accepted: bool) -> list[OperationWithAck]:
        """An operation left: acked, or given up. Returns what its lane releases: all if acked, else nothing."""
        lane = self.lanes.get(operation.subject)
        if lane is None or not (accepted or lane.probing == operation.order):
            return []
        lane.probing = None
        if lane.operations and not accepted:
            return []
        del self.lanes[operation.subject]
        held = list(lane.operations.values())
        self._released(held)
        return held

    def find(self, order: int) -> OperationWithAck | None:
        """The held operation with this number."""
        return next((la.operations[order] for la in self.lanes.values() if order in la.operations), None)

    def withdraw(self, operation: Operation) -> bool:
        """Take out a held operation. Returns whether it was here."""
        lane = self.lanes.get(operation.subject)
        if lane is None or lane.operations.pop(operation.order, None) is None:
            return False
        self._released([operation])
        if not lane.operations and lane.probing is None:
            del self.lanes[operation.subject]
        return True

    def take_out(self, wanted: Callable[[Operation], bool]) -> list[OperationWithAck]:
        """Take out from what is held all that is wanted."""
        found = [held for lane in self.lanes.values() for held in lane.operations.values() if wanted(held)]
        for operation in found:
            self.withdraw(operation)
        return found

    def clear(self) -> list[OperationWithAck]:
        """Take out everything that is held: the link died, or the router stops."""
        held = [operation for lane in self.lanes.values() for operation in lane.operations.values()]
        self.lanes.clear()
        self._released(held)
        return held

    def _released(self, operations: Sequence[Operation]) -> None:
        self.held -= len(operations)
        self.held_bytes -= sum(len(o.frame) for o in operations)
