"""Messages of a core subscription that wait for their next attempt: bounded, the one that is due first comes first.

Pure; the time is given.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

MOST_MESSAGES = 65_536
MOST_BYTES = 64 * 1024 * 1024

M = TypeVar("M")


class RetryQueue(Generic[M]):
    """The messages of one route that wait for another attempt. Its length is their number."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, int, M]] = []
        self._numbers = count()  # of two that are due at one time, the first that came
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_due(self) -> float:
        """When the next one is due; infinite if nothing waits."""
        return self._waiting[0][0] if self._waiting else inf

    def add(self, message: M, size: int, due: float) -> bool:
        """Keep a message of so many bytes until it is due. Return False if there is no room for it."""
        if len(self._waiting) >= MOST_MESSAGES or (self._waiting and self._bytes + size > MOST_BYTES):
            return False
        self._bytes += size
        heappush(self._waiting, (due, next(self._numbers), size, message))
        return True

    def pop_due(self, now: float) -> M | None:
        """Take out one that is due, if any is."""
        return self._take() if self.first_due <= now else None

    def take_all(self) -> list[M]:
        """Take out everything."""
        return [self._take() for _ in range(len(self._waiting))]

    def _take(self) -> M:
        _, _, size, message = heappop(self._waiting)
        self._bytes -= size
        return message
