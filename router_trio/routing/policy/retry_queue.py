"""A bounded queue of messages from a core subscription that wait for their next attempt, in the order of due times.

Pure: the caller passes the time.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

MOST_MESSAGES = 65_536
MOST_BYTES = 64 * 1024 * 1024

M = TypeVar("M")


class RetryQueue(Generic[M]):
    """The messages of one route that wait for their next attempt. The length is their number."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, int, M]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_due(self) -> float:
        """Return when the next message is due; infinite if none waits."""
        return self._waiting[0][0] if self._waiting else inf

    @property
    def first(self) -> M | None:
        """The message that is due next; None if none waits."""
        return self._waiting[0][3] if self._waiting else None

    def add(self, message: M, size: int, due: float, place: int) -> bool:
        """Keep a message of `size` bytes until it is due. Return False if there is no room for it.

        Of messages with the same due time, the one with the lowest `place` goes first; each has its own.
        """
        if len(self._waiting) >= MOST_MESSAGES or (self._waiting and self._bytes + size > MOST_BYTES):
            return False
        self._bytes += size
        heappush(self._waiting, (due, place, size, message))
        return True

    def pop_due(self, now: float) -> M | None:
        """Take out a message that is due; return None if there is none."""
        return self._take() if self.first_due <= now else None

    def take_all(self) -> list[M]:
        """Take out all messages."""
        return [self._take() for _ in range(len(self._waiting))]

    def _take(self) -> M:
        _, _, size, message = heappop(self._waiting)
        self._bytes -= size
        return message
