"""The capacity of one connection's outbox: how much may wait, and what happens to a publish when there is no room.

Operations that wait for the link or the wire are bounded by `max_pending_operations` and `max_pending_bytes`.
Operations refused by a destination have room of their own, half as much. Each destination may hold as many of them as
there is room left for, so that the first one to refuse leaves half of that room to others. A publish that is being
retried counts as held, since it is held again if it is refused. So publishes that can't be sent never take the room of
those that can.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from router_trio.errors import PublishError, reasons
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retry_lanes import Destination
from router_trio.outbox.settlement import Settlement

FORWARDED = 32_768
"""Operations that may be pending while connected before routes stop forwarding messages straight from the reader. A
server that stops reading for a moment must not push the following messages onto the slow path: with a thousand routes,
each with a task of its own for a message or two, it takes three times as long, and the messages that arrive meanwhile
would keep routing on it."""

LEAST_SHARE = 16
"""Each destination may use this part (one in `LEAST_SHARE`) of the room for refused publishes, however much others
hold."""

SLOW_FOR_LONG = 5.0
"""Seconds after which a destination with many unanswered publishes is reported as unresponsive."""

REFUSES_FOR_LONG = 10.0
"""Seconds after which a destination that refuses is no longer assumed to be electing a leader, and publishers stop
waiting for it."""


class Refusal(NamedTuple):
    """A destination that currently refuses its publishes, all or some of them.

    `destination` is its route and template, or the first token of its subjects. `subject` is one of its `subjects`
    (their number) with held publishes. `since` is a time of Trio's clock. `reason` is that of the last refusal,
    `unanswered` if there was no answer.
    """

    destination: str
    subject: str
    subjects: int
    held: int
    since: float
    reason: str


class TakenOut(NamedTuple):
    """Operations taken out of `size` pending ones to get below `limit`. Their owners have not been notified yet."""

    operations: Sequence[Operation]
    size: int
    limit: int


class Capacity:
    """The limits of what is pending, in the queue and in lanes, and the policy for when they are reached."""

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

    # --- pending operations that wait for the link or the wire ---

    @property
    def full(self) -> bool:
        """Return True if the operations that wait for the link or the wire are at their limit of number or bytes."""
        # Held operations count for at most half of the bytes, so below that half they need not be checked.
        queue = self._queue
        return queue.waiting >= self._max_operations or (
            queue.waiting_bytes >= self._half_of_bytes and self._too_many_bytes
        )

    @property
    def over_limit(self) -> bool:
        """Return True if even publishes forwarded by a reader while connected exceed the limit."""
        return self._queue.waiting >= max(self._max_operations, FORWARDED) or self._too_many_bytes

    @property
    def _too_many_bytes(self) -> bool:
        return self._queue.waiting_bytes + min(self._lanes.held_bytes, self._half_of_bytes) >= self._max_bytes

    @property
    def is_waited_for(self) -> bool:
        """Return True if publishers wait for room when the limit is reached (policy `block`)."""
        return self._on_full == "block"

    def make_space(self, size: int) -> TakenOut | None:
        """Make room for a frame of `size` bytes if there is none and the policy is to drop the oldest.

        Returns the operations taken out, to be passed to `drop`. Raises `PublishError` (queue_full) if the policy is to
        refuse.
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
        """Settle operations that were taken out.

        Call it after accepting the publish that they made room for: an owner that is notified may publish at once, and
        must not get the number that is already part of that publish's reply subject.
        """
        count = self._settlement.drop(taken_out.operations, reasons.QUEUE_FULL)
        self._settlement.queue_full(reasons.DROPPED_OLDEST, taken_out.size, taken_out.limit, count)

    def blocked(self, with_ack: bool) -> None:
        """Count the failure of a publisher that has to wait for room while not connected, before it starts waiting."""
        self._settlement.not_connected(with_ack)
        self._settlement.queue_full(reasons.BLOCKED, self._queue.pending, self._max_operations, 1)

    # --- publishes that a destination refuses ---

    def waits_for(self, key: Hashable) -> bool:
        """Return True if a publisher to this destination should wait: it refuses, and its share is used up.

        False if it has refused for long, unless the policy is to wait: `make_share` then decides.
        """
        destination = self._over_its_share(key) if self._lanes.lanes else None
        return destination is not None and (self.is_waited_for or not self._for_long(destination))

    def refuses(self, subject: bytes) -> str | None:
        """Return why a publish with ack to this subject would be held back now; None if it would not be."""
        lane = self._lanes.lanes.get(subject)
        return None if lane is None else lane.destination.reason

    def reason_late(self, subject: bytes) -> str:
        """Return the reason with which a publish with ack to this subject fails when its time is up."""
        refuses = self.refuses(subject)
        return reasons.TIMEOUT if refuses is None or refuses == reasons.UNANSWERED else refuses

    def make_share(self, operation: OperationWithAck) -> TakenOut | None:
        """Make room in the share of a destination for a publish of a lane that it refuses, if there is none.

        Returns the operations taken out, to be passed to `drop`. Raises `PublishError` (queue_full) if the policy is to
        refuse. Does nothing if the policy is to wait, or while the destination may be electing a leader.
        """
        lane = operation.lane
        destination = self._over_its_share(operation.capacity_key)
        if destination is None or self.is_waited_for or not self._for_long(destination):
            return None
        if lane not in self._lanes and not destination.slow and destination.key not in self._lanes.shut:
            return None  # another stream behind the same template may take it
        waiting = destination.waiting
        if self._on_full == "drop_oldest":
            dropped: list[OperationWithAck] = []
            while self._over_its_share(destination.key) and (oldest := self._lanes.drop_oldest(lane, destination)):
                dropped.append(oldest)
            return TakenOut(dropped, waiting, self._share_of_operations) if dropped else None
        seconds = self._clock() - destination.since
        detail = (
            f"{_name(destination.key)} on connection {self._connection!r} has taken nothing for {seconds:.0f} s "
            f"({destination.reason}), and {waiting} publishes wait for it already"
        )
        self._settlement.queue_full(reasons.REJECTED, waiting, self._share_of_operations, 1)
        self._settlement.not_accepted(
            True, reasons.QUEUE_FULL, detail, operation.subject.decode("utf-8", "surrogateescape")
        )
        raise PublishError(detail, reason=reasons.QUEUE_FULL)

    def may_hold(self, operation: OperationWithAck) -> bool:
        """Return True if an operation that was refused for now may be held; otherwise the refusal is its fate.

        An operation whose lane exists may always be held, and so may one of a stream's route, which is bounded by the
        route. The first operation of a new lane may not be held if the share of its destination has been used up for
        long, or is exceeded by far.
        """
        if operation.lane in self._lanes or getattr(operation.owner, "from_stream", False):
            return True
        destination = self._over_its_share(operation.capacity_key)
        if destination is None:
            return True
        by_far = self._lanes.held >= FORWARDED or self._lanes.held_bytes >= self._max_bytes
        return not (by_far or self._for_long(destination))

    def refusals(self) -> list[Refusal]:
        """Return the destinations with held publishes: which, since when, and why."""
        return [
            Refusal(_name(one.key), subject.decode("utf-8", "replace"), one.lanes, one.held, one.since, one.reason)
            for subject, one in self._refusing()
        ]

    def unanswered(self) -> list[str]:
        """Return the destinations that do not confirm their publishes, which are sent again or wait to be."""
        now = self._clock()
        return [
            _name(one.key)
            for _, one in self._refusing()
            if one.reason == reasons.UNANSWERED and (not one.slow or now - one.since >= SLOW_FOR_LONG)
        ]

    def _refusing(self) -> Iterable[tuple[bytes, Destination]]:
        """Return each destination with held publishes, and one of its subjects."""
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
        over = destination.waiting >= max(
            operations - self._lanes.held, operations // LEAST_SHARE, 1
        ) or destination.held_bytes >= max(size - self._lanes.held_bytes, size // LEAST_SHARE, 1)
        return destination if over else None

    @property
    def _share_of_operations(self) -> int:
        """Maximum number of operations held for all refusing destinations together, at least one."""
        return max(1, self._max_operations // 2)


def _name(key: Hashable) -> str:
    if isinstance(key, tuple):
        route, template = key
        return f"destination {template} of route {route}"
    return f"{key.decode('utf-8', 'replace')}..." if isinstance(key, bytes) else str(key)
