"""The outbox of one connection: decides what becomes of every publish, and keeps the books.

Pending queue, ledger and counters meet here and nowhere else: an operation is accepted, queued, dropped, failed or
confirmed by exactly one method, which counts it, tells its owner and emits its event. Synchronous and pure but for
`emit`, `clock` and `wake`, which are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter

from router_trio.errors import PublishError
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
from router_trio.lanes import Lanes
from router_trio.ledger import Counters, Ledger
from router_trio.message import FENCED, Fate
from router_trio.pending import Operation, Owner, PendingQueue

MAX_UNACKED = 4096
"""JetStream publishes in flight at once; a server refuses more than 10,000 waiting for one stream."""

MAX_UNFENCED = 65_536
"""Core publishes in flight at once: what a server that reads but never answers can make us keep."""

BATCH_OPERATIONS = 2048
BATCH_BYTES = 256 * 1024

RETRY_REFUSED_AFTER = 0.25
"""Seconds until a publish that nobody took is tried again."""

RESEND_UNACKED_AFTER = 5.0
"""Seconds without a PubAck on a live link after which a publish is sent again; its Msg-Id makes that harmless."""

ACK_BUDGET = 30.0
"""Seconds on one live link after which an unconfirmed publish fails. A stream that elects a leader needs about 6."""


_owner: Callable[[Operation], Owner | None] = attrgetter("owner")


class Outbox:
    """All publishes of one connection, from acceptance to fate."""

    def __init__(
        self,
        connection: str,
        *,
        emit: Emit,
        clock: Callable[[], float],
        wake: Callable[[], None],
        fail_open: bool,
        max_operations: int,
        max_bytes: int,
        on_full: str,
        max_age: float,
    ) -> None:
        self.connection = connection
        self.ledger = Ledger()
        self.counters = Counters()
        self.connected = False
        self.max_operations = max_operations
        self.max_bytes = max_bytes
        self.fail_open = fail_open
        self._emit = emit
        self._clock = clock
        self._wake = wake
        self._on_full = on_full
        self._max_age = max_age
        self._queue = PendingQueue()
        self._lanes = Lanes()
        self._order = 0
        self._held_back = False
        self._when_nothing_in_flight: list[Callable[[], None]] = []
        self._sent = 0
        self._drain_until = 0
        self._drain_left = 0
        self._drain_success = 0
        self._drain_failed = 0

    # --- what there is ---

    @property
    def pending(self) -> int:
        """Operations accepted and not written."""
        return self._queue.pending + len(self._lanes)

    @property
    def in_flight(self) -> int:
        """Operations written and not confirmed."""
        return self._queue.in_flight

    @property
    def unfenced(self) -> int:
        """Core publishes that wait for a fence: those of a batch that the link still has in hand don't yet."""
        return self._queue.unfenced_before(self._sent)

    @property
    def draining(self) -> bool:
        """Whether a drain after a reconnect is running."""
        return self._drain_left > 0

    @property
    def full(self) -> bool:
        """Whether the queue is at its limit of operations or bytes."""
        return (
            self.pending >= self.max_operations
            or self._queue.pending_bytes + self._lanes.held_bytes >= self.max_bytes
        )

    @property
    def blocks(self) -> bool:
        """Whether a publisher has to wait now: there is no room, and waiting may make some."""
        return self.full and (self.connected or (self._on_full == "block" and not self.fail_open))

    @property
    def next_order(self) -> int:
        """The number that the next accepted operation will get."""
        return self._order + 1

    # --- in ---

    def offer(self, frame: bytes, *, with_ack: bool = False, owner: Owner | None = None, blocked: bool = False) -> str:
        """Accept one operation. Returns its status: `sent` (on its way), `queued` or `failed_open`.

        `blocked` says that the caller waited for room while not connected: its failure is counted already. Raises
        `PublishError` (queue_full) when the policy is to refuse. Never blocks: a caller that can wait asks `blocks`.
        """
        now = self._clock()
        if self.connected:
            self._accept(
                Operation(self._number(), frame, with_ack=with_ack, owner=owner, accepted_at=now, clean=not blocked)
            )
            self._wake()
            return "queued" if self._drain_left else "sent"
        if not blocked:
            self.count_not_connected(with_ack)
        operation = Operation(self._number(), frame, with_ack=with_ack, owner=owner, accepted_at=now, clean=False)
        if self.fail_open:
            self.ledger.accepted += 1
            self._finish(operation, Fate("failed_open", "not_connected"))
            self._emit(PublishFailedOpen(at=now, connection=self.connection, reason="not_connected"))
            return "failed_open"
        self._make_room(len(frame), now)
        self._accept(operation)
        queued = PublishWithAckQueued if with_ack else PublishQueued
        self._emit(queued(at=now, connection=self.connection, pending_count=self.pending))
        return "queued"

    def offer_frames(self, frames: Sequence[bytes], owner: Owner) -> None:
        """Accept core publishes of one owner, as `offer` does for each; one that is refused fails at its owner."""
        if not self.connected:
            for frame in frames:
                try:
                    self.offer(frame, owner=owner)
                except PublishError as error:
                    refused = Operation(0, frame, with_ack=False, owner=None, accepted_at=0.0, clean=False)
                    owner.settle([refused], Fate("failed", error.reason))
            return
        now = self._clock()
        append = self._queue.append
        order = self._order
        for frame in frames:
            order += 1
            append(Operation(order, frame, with_ack=False, owner=owner, accepted_at=now, clean=True))
        self._order = order
        self.ledger.accepted += len(frames)
        self._wake()

    def blocked(self, with_ack: bool) -> None:
        """A publisher has to wait for room while not connected: counts its failure, before it waits."""
        self.count_not_connected(with_ack)
        self._emit(
            QueueFull(
                at=self._clock(),
                connection=self.connection,
                reason="blocked",
                queue_size=self.pending,
                max_size=self.max_operations,
            )
        )

    def not_accepted(self, with_ack: bool, reason: str, detail: str) -> None:
        """A publish was refused for what it is, before it was accepted."""
        self.counters.failed[_kind(with_ack), reason] += 1
        failed = PublishWithAckFailed if with_ack else PublishFailed
        self._emit(failed(at=self._clock(), connection=self.connection, reason=reason, detail=detail))

    def find(self, order: int) -> Operation | None:
        """The JetStream publish with this number, if it has no fate yet."""
        return self._queue.find(order) or self._lanes.find(order)

    def count_not_connected(self, with_ack: bool) -> None:
        """Count the failure of an operation that met no connection: once for each, before its caller gets an answer."""
        self.counters.failed[_kind(with_ack), "not_connected"] += 1

    # --- the life of the link ---

    def link_up(self) -> None:
        """A link is there: what was kept is drained first, in order."""
        self.connected = True
        self._held_back = False
        kept = self.pending
        if kept:
            self._drain_until = self._order
            self._drain_left = kept
            self._drain_success = self._drain_failed = 0
            self.counters.retried += kept
            self._emit(RetryPending(at=self._clock(), connection=self.connection, pending_count=kept))
        self._wake()

    def link_down(self) -> None:
        """The link is gone: everything unconfirmed returns to the head; in fail-open mode it is let go."""
        self.connected = False
        self._drain_left = 0
        self._queue.put_back(self._lanes.clear())
        self._queue.requeue_all()
        if self.fail_open:
            self._let_go(Fate("failed_open", "not_connected"))

    def hold_back(self) -> None:
        """Write nothing more on this link: it is being left. The next one starts with what is pending."""
        self._held_back = True

    def when_nothing_in_flight(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when an operation is confirmed, refused or gone and nothing is in flight any more."""
        self._when_nothing_in_flight.append(tell)

    def next_batch(self) -> list[Operation]:
        """Move what may be written now from pending into flight, and return it.

        Asking says that the batch before was sent, and that what the link refused of it was told to `refused`.
        """
        self._sent = self._queue.mark()
        if self._held_back:
            return []
        now = self._clock()
        if self._max_age:
            self.expire()
        due = self._lanes.due(now, self._queue.older_is_pending)
        if due:
            self._queue.put_in_flight(due, now)
            return due
        if self._queue.unfenced >= MAX_UNFENCED:
            return []
        written: list[Operation] = []
        while not written:
            batch = self._queue.take(
                now, max_operations=BATCH_OPERATIONS, max_bytes=BATCH_BYTES, max_unacked=MAX_UNACKED
            )
            if not batch:
                break
            # A whole batch may belong in lanes; nothing to write would then be a lie, and what is behind it would wait.
            written = batch if not self._lanes else self._sort_into_lanes(batch)
        return written

    def mark(self) -> int:
        """The position behind the last core publish that was sent.

        A batch that the link has in hand is not behind it: a fence that overtakes it, or what is refused of it, would
        confirm what was never written.
        """
        return self._sent

    # --- confirmations ---

    def fenced(self, mark: int) -> None:
        """A fence behind `mark` was answered: the core publishes before it are with the server."""
        held_up = self._queue.unfenced >= MAX_UNFENCED
        confirmed = self._queue.confirm_fenced(mark)
        if not confirmed:
            return
        if held_up:
            self._wake()
        self.ledger.settle("fenced", len(confirmed))
        self.counters.succeeded["publish"] += sum(operation.clean for operation in confirmed)
        for owner, run in groupby(confirmed, _owner):
            if owner is not None:
                owner.settle(list(run), FENCED)
        if self._drain_left:
            for operation in confirmed:
                self._drained(operation, success=True)
        self._look_idle()

    def acked(self, order: int, stream: str, sequence: int, duplicate: bool) -> None:
        """A PubAck came. One for an operation that has a fate, or will be sent again anyhow, is ignored.

        A late one, for a publish that is held by now, counts: the stream has it, and a held one may yet fail.
        """
        operation = self._queue.confirm_acked(order)
        if operation is None:
            operation = self._lanes.find(order)
            if operation is None:
                return
            self._lanes.withdraw(operation)
        if self._lanes:
            self._queue.put_back(self._lanes.settled(operation, accepted=True))
        self._finish(operation, Fate("acked", None, stream, sequence, duplicate))
        self._wake()

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        """A publish was answered with an error: tried again within its budget if that may help, else failed."""
        operation = self._queue.confirm_acked(order)
        if operation is not None:
            self._hold_or_fail(operation, reason, detail, retriable)
            self._wake()

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """The server refused a publish to `subject`: the oldest one in flight to it has failed."""
        operation = self._queue.find_in_flight(subject)
        if operation is not None and self._queue.withdraw(operation):
            self._fail(operation, "permission_denied", detail)
            self._wake()

    def refused(self, operation: Operation, reason: str, detail: str, retriable: bool = False) -> None:
        """The link did not write this operation, though it was taken."""
        if self._queue.withdraw(operation):
            self._hold_or_fail(operation, reason, detail, retriable and operation.with_ack)
            self._wake()

    # --- giving up ---

    def give_up(self, operation: Operation, reason: str, detail: str) -> bool:
        """Fail an operation wherever it is, as when its publisher's time is over. False if it has a fate already."""
        if not (self._queue.withdraw(operation) or self._lanes.withdraw(operation)):
            return False
        self._fail(operation, reason, detail)
        self._wake()
        return True

    def sweep(self) -> None:
        """Send again what has been without a PubAck for long on this link, and fail what is over its budget."""
        now = self._clock()
        for operation in self._queue.unacked_since(now - RESEND_UNACKED_AFTER):
            self._queue.confirm_acked(operation.order)
            first = operation.first_written_at
            if first is not None and now - first >= ACK_BUDGET:
                self._fail(operation, "timeout", f"no PubAck within {ACK_BUDGET:g} s")
            else:
                self._lanes.hold(operation, now)
        self._wake()

    def next_due(self) -> float | None:
        """When a held publish should be tried again; None if nothing is held."""
        return self._lanes.next_due(self._queue.older_is_pending)

    def expire(self) -> None:
        """Drop what has waited longer than `pending_max_age`."""
        if self._max_age:
            self._drop(self._queue.drop_older_than(self._clock() - self._max_age), "expired")

    def shut_down(self) -> int:
        """The end: whatever has no fate yet is dropped, or was in flight and stays unconfirmed. Returns how many."""
        self.connected = False
        self._queue.put_back(self._lanes.clear())
        self._queue.requeue_all()
        left = self._queue.pending
        self._let_go(Fate("dropped", "shutdown"))
        return left

    # --- inside ---

    def _number(self) -> int:
        self._order += 1
        return self._order

    def _accept(self, operation: Operation) -> None:
        self.ledger.accepted += 1
        self._queue.append(operation)

    def _make_room(self, size: int, now: float) -> None:
        if not self.full:
            return
        limits = {"queue_size": self.pending, "max_size": self.max_operations}
        if self._on_full != "drop_oldest":
            self._emit(QueueFull(at=now, connection=self.connection, reason="rejected", **limits))
            raise PublishError(
                f"connection {self.connection!r} is not connected and its queue is full "
                f"({self.pending} of {self.max_operations} operations); raise max_pending_operations or "
                "max_pending_bytes, or set on_pending_full to block or drop_oldest",
                reason="queue_full",
            )
        dropped = []
        while self.full or self._queue.pending_bytes + size > self.max_bytes:
            oldest = self._queue.drop_oldest()
            if oldest is None:
                break
            dropped.append(oldest)
        for operation in dropped:
            self._finish(operation, Fate("dropped", "queue_full"))
        self._emit(QueueFull(at=now, connection=self.connection, reason="dropped_oldest", count=len(dropped), **limits))

    def _sort_into_lanes(self, batch: list[Operation]) -> list[Operation]:
        """Hold back what is behind a refused publish to the same subject; the rest goes on."""
        written = []
        for operation in batch:
            if operation.with_ack and operation.subject in self._lanes:
                self._queue.confirm_acked(operation.order)
                self._lanes.hold(operation)
            else:
                written.append(operation)
        return written

    def _hold_or_fail(self, operation: Operation, reason: str, detail: str, retriable: bool) -> None:
        now = self._clock()
        first = operation.first_written_at
        if retriable and (first is None or now - first < ACK_BUDGET):
            self._lanes.hold(operation, now + RETRY_REFUSED_AFTER)
            self._look_idle()
        else:
            self._fail(operation, reason, detail)

    def _fail(self, operation: Operation, reason: str, detail: str) -> None:
        now = self._clock()
        if self._lanes:
            self._queue.put_back(self._lanes.settled(operation, accepted=False))
        if operation.clean:
            self.counters.failed[_kind(operation.with_ack), reason] += 1
            operation.clean = False
        failed = PublishWithAckFailed if operation.with_ack else PublishFailed
        self._emit(failed(at=now, connection=self.connection, reason=reason, detail=detail))
        if self.fail_open:
            self._emit(PublishFailedOpen(at=now, connection=self.connection, reason=reason))
            self._finish(operation, Fate("failed_open", reason))
        else:
            self._finish(operation, Fate("failed", reason))

    def _let_go(self, fate: Fate) -> None:
        left = self._queue.drop_older_than(float("inf"))
        if fate.name == "dropped":
            self._drop(left, "shutdown")
            return
        for operation in left:
            if operation.clean:
                self.counters.failed[_kind(operation.with_ack), "not_connected"] += 1
                operation.clean = False
            self._finish(operation, fate)
        if left:
            self._emit(
                PublishFailedOpen(at=self._clock(), connection=self.connection, reason="not_connected", count=len(left))
            )

    def _drop(self, operations: Sequence[Operation], reason: str) -> None:
        if not operations:
            return
        for operation in operations:
            self._finish(operation, Fate("dropped", reason))
        self._emit(
            PendingDropped(at=self._clock(), connection=self.connection, reason=reason, count=len(operations))
        )

    def _finish(self, operation: Operation, fate: Fate) -> None:
        """The one place where a fate is counted and told, but for the fast path of `fenced`."""
        self.ledger.settle(fate.name)
        if fate.name == "dropped":
            self.counters.dropped[fate.reason or ""] += 1
        elif operation.clean:
            self.counters.succeeded[_kind(operation.with_ack)] += 1
        if self._drain_left:
            self._drained(operation, success=fate.delivered)
        if operation.owner is not None:
            operation.owner.settle([operation], fate)
        self._look_idle()

    def _look_idle(self) -> None:
        if self._when_nothing_in_flight and not self._queue.in_flight:
            waiting, self._when_nothing_in_flight = self._when_nothing_in_flight, []
            for tell in waiting:
                tell()

    def _drained(self, operation: Operation, *, success: bool) -> None:
        if operation.order > self._drain_until or not self._drain_left:
            return
        self._drain_left -= 1
        if success:
            self._drain_success += 1
            self.counters.retry_succeeded += 1
        else:
            self._drain_failed += 1
            self.counters.retry_failed += 1
        if not self._drain_left:
            self._emit(
                RetryComplete(
                    at=self._clock(),
                    connection=self.connection,
                    success_count=self._drain_success,
                    failed_count=self._drain_failed,
                )
            )


def _kind(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"
