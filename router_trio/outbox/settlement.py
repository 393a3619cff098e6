"""Settles the publishes of one connection: the only place where a publish gets its fate.

Each fate is counted once in the ledger and once in the operation counters. The owner is notified once, and failures and
drops are emitted as events. Which publish gets which fate is decided elsewhere in the outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router_trio.errors import reasons
from router_trio.events import (
    Emit,
    PendingDropped,
    PublishFailed,
    PublishFailedOpen,
    PublishQueued,
    PublishWithAckFailed,
    PublishWithAckQueued,
    QueueFull,
    RetryComplete,
    RetryPending,
)
from router_trio.message import FENCED, Fate, fate_with_detail
from router_trio.outbox.ledger import Counters, Ledger
from router_trio.outbox.operation import Operation, OperationWithAck


class Settlement:
    """The ledger, the counters and the progress of the drain after a reconnect."""

    def __init__(self, connection: str, *, emit: Emit, clock: Callable[[], float], fail_open: bool) -> None:
        self.ledger: Ledger = Ledger()
        self.counters: Counters = Counters()
        self._connection = connection
        self._emit = emit
        self._clock = clock
        self._fail_open = fail_open
        self._drain_until = 0
        self.drain_left: int = 0
        """Publishes of the drain after a reconnect that have no fate yet; 0 if no drain is running."""
        self._drain_success = 0
        self._drain_failed = 0

    # --- before a fate ---

    def not_accepted(self, with_ack: bool, reason: str, detail: str, subject: str | None = None) -> None:
        """Count a publish that was refused, because of what it is, before it was accepted."""
        self.counters.fail(_kind(with_ack), reason)
        self._emit_failure(with_ack, reason, detail, subject=subject)

    def not_connected(self, with_ack: bool) -> None:
        """Count the failure of an operation offered while not connected: once, before its caller gets an answer."""
        self.counters.fail(_kind(with_ack), reasons.NOT_CONNECTED)

    def queued(self, with_ack: bool, pending: int) -> None:
        """Emit that an operation was accepted while not connected."""
        event = PublishWithAckQueued if with_ack else PublishQueued
        self._emit(event(at=self._clock(), connection=self._connection, pending_count=pending))

    def queue_full(self, reason: str, queue_size: int, max_size: int, count: int) -> None:
        """Emit that the queue is full; `reason` is what happened to `count` operations because of it."""
        self._emit(
            QueueFull(
                at=self._clock(),
                connection=self._connection,
                reason=reason,
                queue_size=queue_size,
                max_size=max_size,
                count=count,
            )
        )

    # --- the drain after a reconnect ---

    def drain_begins(self, kept: int, until: int) -> None:
        """Start a drain of the `kept` operations up to number `until`, which are sent first."""
        self._drain_until = until
        self.drain_left = kept
        self._drain_success = self._drain_failed = 0
        self.counters.retried += kept
        self._emit(RetryPending(at=self._clock(), connection=self._connection, pending_count=kept))

    def drain_ends(self) -> None:
        """End the drain at the loss of the link. Its remaining operations become part of the next drain."""
        self.drain_left = 0

    def _drained(self, count: int, *, success: bool) -> None:
        if not count:
            return
        assert count <= self.drain_left, "each publish of the drain has one fate"
        self.drain_left -= count
        if success:
            self._drain_success += count
            self.counters.retry_succeeded += count
        else:
            self._drain_failed += count
            self.counters.retry_failed += count
        if not self.drain_left:
            self._emit(
                RetryComplete(
                    at=self._clock(),
                    connection=self._connection,
                    success_count=self._drain_success,
                    failed_count=self._drain_failed,
                )
            )

    # --- fates ---

    def settle_fenced(self, operations: Sequence[Operation]) -> None:
        """Settle operations confirmed by a fence."""
        count = clean = 0
        for operation in operations:
            count += operation.count
            if operation.clean:
                clean += operation.count
        self.ledger.settle("fenced", count)
        self.counters.succeeded["publish"] += clean
        now = self._clock()
        for operation in operations:
            operation.settle(FENCED, now)
        if self.drain_left:
            until = self._drain_until
            self._drained(sum([operation.count for operation in operations if operation.order <= until]), success=True)

    def settle_acked(self, operations: Sequence[tuple[OperationWithAck, Fate]]) -> None:
        """Settle operations that streams have stored."""
        clean = 0
        for operation, _ in operations:
            clean += operation.clean
        self.ledger.settle("acked", len(operations))
        self.counters.succeeded["publish_with_ack"] += clean
        now = self._clock()
        for operation, fate in operations:
            owner = operation.owner
            if owner is not None:
                owner.settle(operation, 1, fate, now)
        if self.drain_left:
            until = self._drain_until
            self._drained(sum([operation.order <= until for operation, _ in operations]), success=True)

    def fail(self, operations: Sequence[Operation], reason: str, detail: str) -> None:
        """Settle operations that failed while connected: as `failed`, or in fail-open mode as `failed_open`."""
        for operation in operations:
            self._count_failure(operation, reason)
        self._finish(operations, fate_with_detail("failed_open" if self._fail_open else "failed", reason, detail))
        for operation in operations:
            subject, route = operation.origin
            subject_text = subject.decode("utf-8", "surrogateescape")
            sequence = operation.source_sequence
            self._emit_failure(operation.with_ack, reason, detail, operation.count, subject_text, route, sequence)
        if self._fail_open:
            self._emit_failed_open(operations, reason)

    def let_go(self, operations: Sequence[Operation], reason: str) -> None:
        """Settle operations that are not kept in fail-open mode."""
        for operation in operations:
            self._count_failure(operation, reason)
        self._finish(operations, Fate("failed_open", reason))
        self._emit_failed_open(operations, reason)

    def drop(self, operations: Sequence[Operation], reason: str) -> int:
        """Settle operations that are dropped. Returns the number of messages."""
        self._finish(operations, Fate("dropped", reason))
        count = sum(operation.count for operation in operations)
        if count and reason != reasons.QUEUE_FULL:  # `queue_full` emits an event for it
            self._emit(PendingDropped(at=self._clock(), connection=self._connection, reason=reason, count=count))
        return count

    def _finish(self, operations: Sequence[Operation], fate: Fate) -> None:
        """Settle operations. All are counted before any owner is notified, so the ledger balances at each callback."""
        count = sum(operation.count for operation in operations)
        self.ledger.settle(fate.name, count)
        if fate.name == "dropped":
            self.counters.dropped[fate.reason or ""] += count
        now = self._clock()
        for operation in operations:
            operation.settle(fate, now)
        if self.drain_left:
            until = self._drain_until
            self._drained(sum(operation.count for operation in operations if operation.order <= until), success=False)

    def _count_failure(self, operation: Operation, reason: str) -> None:
        if operation.clean:
            self.counters.fail(_kind(operation.with_ack), reason, operation.count)
            operation.clean = False

    def _emit_failed_open(self, operations: Sequence[Operation], reason: str) -> None:
        count = sum(operation.count for operation in operations)
        if count:
            self._emit(PublishFailedOpen(at=self._clock(), connection=self._connection, reason=reason, count=count))

    def _emit_failure(
        self,
        with_ack: bool,
        reason: str,
        detail: str,
        count: int = 1,
        subject: str | None = None,
        route: str | None = None,
        sequence: int | None = None,
    ) -> None:
        event = PublishWithAckFailed if with_ack else PublishFailed
        self._emit(
            event(
                at=self._clock(),
                connection=self._connection,
                reason=reason,
                detail=detail,
                count=count,
                subject=subject,
                route=route,
                sequence=sequence,
            )
        )


def _kind(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"
