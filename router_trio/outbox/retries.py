"""Retries of JetStream publishes that were refused for now, or have had no PubAck for long.

Decides which are retried, when, and for how long. What happens to a publish whose time is up is decided elsewhere in
the outbox. Pure and synchronous; the clock is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from router_trio.errors import reasons
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retry_lanes import Shut

RETRY_REFUSED_AFTER = 0.25
"""Seconds until a publish that was refused for now is tried again."""

ASK_AFTER = 0.05
"""Seconds until a publish that was refused for good is sent once more, since the refusal may not come from its
stream."""

ASKED_WITHIN = 0.75
"""Seconds to wait for the answer to that; without one the refusal is final."""

RESEND_UNACKED_AFTER = 5.0
"""Seconds without a PubAck on a live link after which a publish is sent again; its Msg-Id makes that harmless."""

ACK_BUDGET = 30.0
"""Seconds on one live link after which an unconfirmed publish fails. A stream that elects a leader needs about 6."""

_NO_ANSWER = (reasons.TIMEOUT, "")
"""Reason and last answer of a publish that was not refused."""

SLOW_AFTER = 0.25
"""Seconds without a PubAck after which a publish counts against its destination, while the window is half used up."""

LOOK_EVERY = 0.05
"""Seconds between checks for slow destinations, while the window is half used up."""

SLOW_SHARE = 64
"""A destination is slow if one in `SLOW_SHARE` publishes of the window has been unanswered by it for that long."""

UNANSWERED_WINDOWS = 4
"""Windows of publishes that slow destinations may leave unanswered without using up the window of the others."""


class Retries:
    """Moves publishes between the queue of a connection and its lanes, where they wait for their next try."""

    def __init__(self, queue: SendQueue, *, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._lanes = queue.lanes
        self._in_flight = queue.in_flight
        self._clock = clock
        self._slow: set[Hashable] = set()
        self._unanswered = 0
        self._look_at = 0.0

    def take_due(self, now: float) -> list[OperationWithAck]:
        """Return the held publishes whose time has come. They are in flight from now on."""
        if not self._lanes.lanes:
            return []
        due = self._lanes.take_due(now, self._queue.older_waits)
        for operation in due:
            self._in_flight.add_with_ack(operation, now)
        return due

    def next_try_at(self, window: int) -> float | None:
        """Return when to try a held publish again, or to check the window; None if nothing waits for a time."""
        due = self._lanes.next_try_at(self._queue.older_waits) if self._lanes.lanes else None
        unacked = self._in_flight.unacked
        if self._queue.waiting and len(unacked) >= window + self._unanswered:
            oldest = next(iter(unacked.values()))
            look = max(oldest.written_at + SLOW_AFTER, self._look_at)
            return look if due is None else min(due, look)
        return due

    # --- the window: how much may be in flight ---

    def window(self, most: int, now: float) -> int:
        """Return how many JetStream publishes may be in flight: `most`, plus those of unresponsive destinations."""
        if len(self._in_flight.unacked) * 2 <= most:
            if self._slow:
                self._found_slow({}, now)
                self._unanswered = 0
            return most
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            unanswered: Counter[Hashable] = Counter()
            since: dict[Hashable, float] = {}
            for operation in self._in_flight.unacked.values():
                if operation.written_at > now - SLOW_AFTER:
                    break
                key = operation.capacity_key
                unanswered[key] += 1
                first = operation.first_written_at or operation.written_at
                since[key] = min(first, since.get(key, first))
            slow = {key: since[key] for key, count in unanswered.items() if count * SLOW_SHARE >= most}
            self._found_slow(slow, now)
            self._unanswered = min(sum(unanswered[key] for key in slow), UNANSWERED_WINDOWS * most)
        return most + self._unanswered

    def _found_slow(self, slow: dict[Hashable, float], now: float) -> None:
        """Mark these destinations as slow since the given times, and all others as not slow."""
        self._queue.put_back(self._lanes.not_slow([key for key in self._slow if key not in slow]))
        for key, since in slow.items():
            destination = self._lanes.destination_for(key, now)
            destination.slow = True
            if destination.reason == reasons.UNANSWERED:
                destination.since = since
        self._slow = set(slow)

    def change_shut(self, changes: Mapping[Hashable, Shut | None]) -> None:
        """Shut or open destinations: see `Outbox.change_shut`.

        What a shut one did not confirm is not sent again either, and waits for it, as what it has never got.
        """
        lanes = self._lanes
        opened = {key for key, why in changes.items() if why is None}
        if opened:
            for operation in lanes.wanted(lambda held: held.capacity_key in opened):
                operation.first_written_at = None  # each one gets its full budget, as on a new link
        self._queue.put_back(lanes.change_shut(changes))

    def clear(self) -> None:
        """Forget slow destinations when nothing is in flight or held any more."""
        self._slow.clear()
        self._unanswered = 0
        self._look_at = 0.0

    # --- holding and releasing ---

    def without_held(self, batch: list[Operation]) -> list[Operation]:
        """Return the operations of `batch` that may be sent now.

        Hold back those behind a refused publish in their lane, and those for a destination that is slow or shut.
        """
        lanes, slow, shut = self._lanes, self._slow, self._lanes.shut
        if not lanes.lanes and not slow and not shut:
            return batch
        sendable = []
        for operation in batch:
            if isinstance(operation, OperationWithAck) and (
                operation.lane in lanes
                or (slow and operation.capacity_key in slow)
                or (shut and operation.capacity_key in shut)
            ):
                taken = self._in_flight.take_acked(operation.order)
                assert taken is operation, "what was taken for the wire is in flight"
                lanes.hold(operation, now=operation.written_at)
            else:
                sendable.append(operation)
        return sendable

    def hold(self, operation: OperationWithAck, reason: str, detail: str, after: float = RETRY_REFUSED_AFTER) -> bool:
        """Hold an operation that was refused for now, for `after` seconds. Return False if its time is up.

        The operation must be neither in flight nor in the queue.
        """
        now = self._clock()
        if self._over(operation, now):
            return False
        operation.refused_for = (reason, detail)
        self._lanes.hold(operation, now + after, now=now)
        return True

    def sweep(self) -> tuple[dict[tuple[str, str], list[Operation]], list[OperationWithAck]]:
        """Schedule publishes that have had no PubAck for long to be sent again.

        Returns the publishes that are over their budget, by reason and last answer (see `refusal_of`), and those that
        are sent again. The former stay where they are: an owner that is notified of one must not find that another is
        missing.
        """
        now = self._clock()
        self._lanes.clear_idle()
        over: dict[tuple[str, str], list[Operation]] = {}
        again: list[OperationWithAck] = []
        for operation in self._lanes.wanted(lambda held: self._over(held, now)):
            over.setdefault(self.refusal_of(operation) or _NO_ANSWER, []).append(operation)
        for operation in self._in_flight.unacked_since(now - RESEND_UNACKED_AFTER):
            if self._over(operation, now):
                over.setdefault(_NO_ANSWER, []).append(operation)
            else:
                self._in_flight.take_acked(operation.order)
                operation.send_again()
                operation.refused_for = None
                self._lanes.hold(operation, now, now=now)
                again.append(operation)
        return over, again

    def refusal_of(self, operation: OperationWithAck) -> tuple[str, str] | None:
        """Return why a publish is retried or held: the reason, and words for the last answer. None without a refusal.

        A publish held behind a refused one may never have been sent. So it fails for the reason of that one, not for
        being unanswered.
        """
        if operation.refused_for is not None:
            reason, detail = operation.refused_for
            return reason, f"the last answer was: {detail}"
        refused_for = self._lanes.refused_for(operation)
        if refused_for is None:
            return None
        reason, detail = refused_for
        return reason, f"the last answer to a publish before it was: {detail}"

    def take_held(self, order: int) -> OperationWithAck | None:
        """Take out the held operation with this number, whose PubAck arrived after all."""
        operation = self._lanes.find(order)
        if operation is not None:
            self._lanes.withdraw(operation)
        return operation

    def release(self, operations: Sequence[Operation], *, accepted: bool) -> None:
        """Release what was held behind operations that were acked, or that failed as the last of their lane.

        Takes all of them at once, because each return to the queue costs as much as the queue is long.
        """
        lanes = self._lanes
        if not lanes.lanes:
            return
        now = self._clock()
        released: list[OperationWithAck] = []
        for operation in operations:
            released += lanes.release(operation, accepted=accepted, now=now)
        self._queue.put_back(released)

    def _over(self, operation: OperationWithAck, now: float) -> bool:
        first = operation.first_written_at
        if operation.capacity_key in self._lanes.shut:
            return False
        return first is not None and now - first >= ACK_BUDGET
