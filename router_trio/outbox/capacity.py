"""The capacity of one connection's outbox: how much may wait, and what becomes of a publish when there is no more.

What waits for the link or the wire is bounded by `max_pending_operations` and `max_pending_bytes`. What a destination
refuses has room of its own, half as much, of which each destination has its share: as much as the others leave free.
So what can't be sent never takes the room of what can.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from router_trio.errors import PublishError, reasons
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retry_lanes import Destination
from router_trio.outbox.settlement import Settlement

FORWARDED = 32_768
"""Operations that may be pending while connected before routes stop to forward what comes at once. A server that stops
to read for a moment must not send what follows on the slow way: with a thousand routes, each with a task of its own for
a message or two, that takes three times as long, and what came meanwhile would keep it there."""

LEAST_SHARE = 16
"""Parts of the room for what is refused: one of them is each destination's, whatever the others hold."""

SLOW_FOR_LONG = 5.0
"""Seconds after which a destination with much unanswered counts as one that does not answer."""

REFUSES_FOR_LONG = 10.0
"""Seconds after which a destination that refuses is not taken for one that elects a leader: nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A destination that takes nothing of what it is sent, or not all, now.

    `destination` is route and template, or the first token of the subjects; `subject` one of `subjects` that are held.
    `since` is a time of Trio's clock, `reason` that of the last refusal, `unanswered` if there was no answer.
    """

    destination: str
    subject: str
    subjects: int
    held: int
    since: float
    reason: str


@dataclass(frozen=True, slots=True)
class TakenOut:
    """Operations taken out of `size` pending ones to make room below `limit`; their owners do not know yet."""

    operations: Sequence[Operation]
    size: int
    limit: int


class Capacity:
    """Limits of what is pending, in the queue and in lanes, and the policy for when it is full."""

    def __init__(
        self,
        connection: str,
        queue: SendQueue,
        settlement: Settlement,
        *,
        max_operations: int,
        max_bytes: int,
        on_full: str,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._lanes = queue.lanes
        self._settlement = settlement
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._half_of_bytes = max_bytes // 2
        self._on_full = on_full
        self._clock = clock

    # --- what waits for the link or the wire ---

    @property
    def full(self) -> bool:
        """Return True if what waits for the link or the wire is at its limit of operations or bytes."""
        # What is held counts for a half of the bytes at most: below that, it need not be asked.
        queue = self._queue
        return queue.waiting >= self._max_operations or (
            queue.waiting_bytes >= self._half_of_bytes and self._too_many_bytes
        )

    @property
    def over_limit(self) -> bool:
        """Return True if it is too full even for what is forwarded at once while connected."""
        return self._queue.waiting >= max(self._max_operations, FORWARDED) or self._too_many_bytes

    @property
    def _too_many_bytes(self) -> bool:
        return self._queue.waiting_bytes + min(self._lanes.held_bytes, self._half_of_bytes) >= self._max_bytes

    @property
    def is_waited_for(self) -> bool:
        """Return True if the policy is that a publisher waits while it is full and nothing leaves."""
        return self._on_full == "block"

    def make_space(self, size: int) -> TakenOut | None:
        """Make room for a frame of that size, if there is none and the policy is to drop the oldest.

        Return what was taken out, for `drop`. Raises `PublishError` (queue_full) when the policy is to refuse.
        """
        if not self.full:
            return None
        pending = self._queue.pending
        if self._on_full != "drop_oldest":
            self._settlement.queue_full(reasons.REJECTED, pending, self._max_operations, 1)
            raise PublishError(
                f"connection {self._connection!r} is not connected and its queue is full "
                f"({pending} of {self._max_operations} operations); raise max_pending_operations or "
                "max_pending_bytes, or set on_pending_full to block or drop_oldest",
                reason=reasons.QUEUE_FULL,
            )
        dropped: list[Operation] = []
        while self.full or self._queue.waiting_bytes + size > self._max_bytes:
            oldest = self._queue.drop_oldest()
            if oldest is None:
                break
            dropped.append(oldest)
        return TakenOut(dropped, pending, self._max_operations)

    def drop(self, taken_out: TakenOut) -> None:
        """Settle what was taken out.

        What it made room for is accepted before: an owner that is told of its fate may publish something else at once,
        which must not get the number that the publish has in its reply subject.
        """
        count = self._settlement.drop(taken_out.operations, reasons.QUEUE_FULL)
        self._settlement.queue_full(reasons.DROPPED_OLDEST, taken_out.size, taken_out.limit, count)

    def blocked(self, with_ack: bool) -> None:
        """Count the failure of a publisher that has to wait for room while not connected, before it waits."""
        self._settlement.not_connected(with_ack)
        self._settlement.queue_full(reasons.BLOCKED, self._queue.pending, self._max_operations, 1)

    # --- what a destination refuses ---

    def waits_for(self, key: Hashable) -> bool:
        """Return True if who publishes to this destination should wait: it refuses, and its share is used up.

        Not if it has refused for long, unless the policy is to wait: then `make_share` decides.
        """
        destination = self._over_its_share(key) if self._lanes.lanes else None
        return destination is not None and (self.is_waited_for or not self._for_long(destination))

    def refuses(self, subject: bytes) -> str | None:
        """Return why a publish with ack to this subject would be held back now; None if it would not."""
        lane = self._lanes.lanes.get(subject)
        return None if lane is None else lane.destination.reason

    def reason_late(self, subject: bytes) -> str:
        """Return why a publish with ack to this subject fails whose time is over now."""
        refuses = self.refuses(subject)
        return reasons.TIMEOUT if refuses is None or refuses == reasons.UNANSWERED else refuses

    def make_share(self, operation: OperationWithAck) -> TakenOut | None:
        """Make room in the share of a destination for a publish of a lane that it refuses, if it has none.

        Return what was taken out, for `drop`. Raises `PublishError` (queue_full) when the policy is to refuse. Where
        the policy is to wait, and while the destination may be electing a leader, there is nothing to make.
        """
        lane = operation.lane
        destination = self._over_its_share(operation.capacity_key)
        if destination is None or self.is_waited_for or not self._for_long(destination):
            return None
        if lane not in self._lanes and not destination.slow:
            return None  # another stream behind the same template may take it
        held = destination.held
        if self._on_full == "drop_oldest":
            dropped: list[OperationWithAck] = []
            while self._over_its_share(destination.key) and (oldest := self._lanes.drop_oldest(lane, destination)):
                dropped.append(oldest)
            return TakenOut(dropped, held, self._share_of_operations) if dropped else None
        seconds = self._clock() - destination.since
        told = (
            f"{_name(destination.key)} on connection {self._connection!r} has taken nothing for {seconds:.0f} s "
            f"({destination.reason}), and {held} publishes wait for it already"
        )
        self._settlement.queue_full(reasons.REJECTED, held, self._share_of_operations, 1)
        self._settlement.not_accepted(
            True, reasons.QUEUE_FULL, told, operation.subject.decode("utf-8", "surrogateescape")
        )
        raise PublishError(told, reason=reasons.QUEUE_FULL)

    def may_hold(self, operation: OperationWithAck) -> bool:
        """Return True if one that was refused for now may be held; else the refusal is its end.

        What is held already, or behind something held, always may, and so may what a stream's route keeps in bounds.
        The first of a lane may not when the share of its destination has been used up for long, or by far.
        """
        if operation.lane in self._lanes or getattr(operation.owner, "from_stream", False):
            return True
        destination = self._over_its_share(operation.capacity_key)
        if destination is None:
            return True
        by_far = self._lanes.held >= FORWARDED or self._lanes.held_bytes >= self._max_bytes
        return not (by_far or self._for_long(destination))

    def refusals(self) -> list[Refusal]:
        """Return the destinations of which something is held back now: which, since when, and why."""
        return [
            Refusal(_name(one.key), subject.decode("utf-8", "replace"), one.lanes, one.held, one.since, one.reason)
            for subject, one in self._refusing()
        ]

    def unanswered(self) -> list[str]:
        """Return the destinations that do not confirm what they are sent: publishes were sent again, or wait for it."""
        now = self._clock()
        return [
            _name(one.key)
            for _, one in self._refusing()
            if one.reason == reasons.UNANSWERED and (not one.slow or now - one.since >= SLOW_FOR_LONG)
        ]

    def _refusing(self) -> Iterable[tuple[bytes, Destination]]:
        """Return each destination of which something is held back, with one of its subjects."""
        found: dict[Hashable, tuple[bytes, Destination]] = {}
        for lane in self._lanes.lanes.values():
            found.setdefault(lane.destination.key, (lane.subject, lane.destination))
        return found.values()

    def _for_long(self, destination: Destination) -> bool:
        return self._clock() - destination.since >= REFUSES_FOR_LONG

    def _over_its_share(self, key: Hashable) -> Destination | None:
        destination = self._lanes.destinations.get(key)
        if destination is None:
            return None
        operations, size = self._share_of_operations, self._half_of_bytes
        over = destination.held + destination.trying >= max(
            operations - self._lanes.held, operations // LEAST_SHARE, 1
        ) or destination.held_bytes >= max(size - self._lanes.held_bytes, size // LEAST_SHARE, 1)
        return destination if over else None

    @property
    def _share_of_operations(self) -> int:
        """Most operations that all destinations that refuse may hold together."""
        return self._max_operations // 2


def _name(key: Hashable) -> str:
    if isinstance(key, tuple):
        route, template = key
        return f"destination {template} of route {route}"
    return f"{key.decode('utf-8', 'replace')}..." if isinstance(key, bytes) else str(key)
