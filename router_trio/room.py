"""The room of one connection's outbox: how much may wait, and what becomes of a publish when there is no more."""

from __future__ import annotations

from router_trio.books import Books
from router_trio.errors import PublishError
from router_trio.lanes import Lanes
from router_trio.pending import PendingQueue

FORWARDED = 32_768
"""Operations that may be pending while connected before routes stop to forward what comes at once. A server that stops
to read for a moment must not send what follows on the slow way: with a thousand routes, each with a task of its own for
a message or two, that takes three times as long, and what came meanwhile would keep it there."""


class Room:
    """Limits of what is pending, in the queue and in lanes together, and the policy for when it is full."""

    def __init__(
        self,
        connection: str,
        queue: PendingQueue,
        lanes: Lanes,
        books: Books,
        *,
        max_operations: int,
        max_bytes: int,
        on_full: str,
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._lanes = lanes
        self._books = books
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._on_full = on_full

    @property
    def full(self) -> bool:
        """Whether what is pending is at its limit of operations or bytes."""
        # Written out, as each publish asks.
        queue, lanes = self._queue, self._lanes
        return (
            queue.pending + lanes.held >= self._max_operations
            or queue.pending_bytes + lanes.held_bytes >= self._max_bytes
        )

    @property
    def crowded(self) -> bool:
        """Whether it is too full even for what is forwarded at once while connected."""
        return self._holds(max(self._max_operations, FORWARDED))

    def _holds(self, operations: int) -> bool:
        queue, lanes = self._queue, self._lanes
        return (
            queue.pending + lanes.held >= operations or queue.pending_bytes + lanes.held_bytes >= self._max_bytes
        )

    @property
    def is_waited_for(self) -> bool:
        """Whether the policy is that a publisher waits while it is full and nothing leaves."""
        return self._on_full == "block"

    def make(self, size: int) -> None:
        """Make room for a frame of that size, if there is none and the policy is to drop the oldest.

        Raises `PublishError` (queue_full) when the policy is to refuse.
        """
        if not self.full:
            return
        pending = self._pending
        if self._on_full != "drop_oldest":
            self._books.queue_full("rejected", pending, self._max_operations, 1)
            raise PublishError(
                f"connection {self._connection!r} is not connected and its queue is full "
                f"({pending} of {self._max_operations} operations); raise max_pending_operations or "
                "max_pending_bytes, or set on_pending_full to block or drop_oldest",
                reason="queue_full",
            )
        dropped = []
        while self.full or self._queue.pending_bytes + size > self._max_bytes:
            oldest = self._queue.drop_oldest()
            if oldest is None:
                break
            dropped.append(oldest)
        count = self._books.drop(dropped, "queue_full")
        self._books.queue_full("dropped_oldest", pending, self._max_operations, count)

    def tell_blocked(self) -> None:
        """Say that a publisher waits for room."""
        self._books.queue_full("blocked", self._pending, self._max_operations, 1)

    @property
    def _pending(self) -> int:
        return self._queue.pending + self._lanes.held
