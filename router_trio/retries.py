"""JetStream publishes that are tried again: refused for now, or without a PubAck for long.

Decides which, when, and for how long; what becomes of one whose time is over is the outbox's business. Pure and
synchronous; the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable

from router_trio.lanes import Lanes
from router_trio.operation import Operation, OperationWithAck
from router_trio.pending import PendingQueue

RETRY_REFUSED_AFTER = 0.25
"""Seconds until a publish that nobody took is tried again."""

RESEND_UNACKED_AFTER = 5.0
"""Seconds without a PubAck on a live link after which a publish is sent again; its Msg-Id makes that harmless."""

ACK_BUDGET = 30.0
"""Seconds on one live link after which an unconfirmed publish fails. A stream that elects a leader needs about 6."""


class Retries:
    """Moves publishes between the queue of a connection and its lanes, in which they wait for their next try."""

    def __init__(self, queue: PendingQueue, lanes: Lanes, *, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._lanes = lanes
        self._clock = clock

    def due(self, now: float) -> list[OperationWithAck]:
        """Those whose time has come, in flight from now on."""
        due = self._lanes.due(now, self._queue.older_is_pending)
        if due:
            self._queue.put_in_flight(due, now)
        return due

    def next_due(self) -> float | None:
        """When a held publish should be tried again; None if nothing is held."""
        return self._lanes.next_due(self._queue.older_is_pending)

    def without_held(self, batch: list[Operation]) -> list[Operation]:
        """Of a batch that was taken, what may go: what is behind a refused publish to the same subject is held."""
        if not self._lanes.lanes:
            return batch
        going = []
        for operation in batch:
            if isinstance(operation, OperationWithAck) and operation.subject in self._lanes:
                self._queue.confirm_acked(operation.order)
                self._lanes.hold(operation)
            else:
                going.append(operation)
        return going

    def hold(self, operation: Operation, reason: str) -> bool:
        """Hold one that was refused for now and is in nobody's hands. False if there is no trying it again."""
        if not isinstance(operation, OperationWithAck):
            return False
        now = self._clock()
        if self._over(operation, now):
            return False
        operation.refused_for = reason
        self._lanes.hold(operation, now + RETRY_REFUSED_AFTER)
        return True

    def sweep(self) -> list[OperationWithAck]:
        """Have sent again what has been without a PubAck for long. Returns those that are over their budget instead."""
        now = self._clock()
        over = []
        for operation in self._queue.unacked_since(now - RESEND_UNACKED_AFTER):
            self._queue.confirm_acked(operation.order)
            if self._over(operation, now):
                over.append(operation)
            else:
                operation.resent = True
                self._lanes.hold(operation, now)
        return over

    def take_held(self, order: int) -> OperationWithAck | None:
        """Take out the held one with this number: the PubAck that it did not wait for has come after all."""
        operation = self._lanes.find(order)
        if operation is not None:
            self._lanes.withdraw(operation)
        return operation

    def left(self, operation: Operation, *, accepted: bool) -> None:
        """One left, acked or given up: what was held behind it may go, if it was acked or was the last of its lane."""
        if self._lanes.lanes:
            self._queue.put_back(self._lanes.settled(operation, accepted=accepted))

    def _over(self, operation: OperationWithAck, now: float) -> bool:
        first = operation.first_written_at
        return first is not None and now - first >= ACK_BUDGET
