"""Merge events that can happen for every message into at most one per interval and key, with the sum of their counts.

The first event of a key passes at once. Further ones within the interval are summed, and are returned with the first
event after the interval, or by `due`. Pure and synchronous; the clock is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

INTERVAL = 1.0
"""Seconds between two merged events of one key."""


@dataclass(frozen=True, slots=True)
class Merged(Generic[T]):
    """The latest of several merged items, their total count, and the count by reason."""

    latest: T
    count: int
    reasons: dict[str, int]


class _Window(Generic[T]):
    __slots__ = ("count", "latest", "opened_at", "reasons")

    def __init__(self, opened_at: float, latest: T) -> None:
        self.opened_at = opened_at
        self.latest = latest
        self.count = 0
        self.reasons: Counter[str] = Counter()

    def merge(self, now: float) -> Merged[T]:
        merged = Merged(self.latest, self.count, dict(self.reasons))
        self.opened_at = now
        self.count = 0
        self.reasons.clear()
        return merged


class Merger(Generic[T]):
    """Merges items by key. Keeps one window for each key seen within the last interval."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[Hashable, _Window[T]] = {}

    def __bool__(self) -> bool:
        """Return True if an item was offered within the last interval, or items are waiting to be returned."""
        return bool(self._windows)

    def offer(self, key: Hashable, item: T, count: int = 1, reason: str | None = None) -> Merged[T] | None:
        """Count an item. Return the merged items including this one if they are to be shown now, else None."""
        now = self._clock()
        window = self._windows.get(key)
        passes = window is None or now - window.opened_at >= INTERVAL
        if window is None:
            window = self._windows[key] = _Window(now, item)
        window.latest = item
        window.count += count
        if reason is not None:
            window.reasons[reason] += count
        return window.merge(now) if passes else None

    def due(self, *, everything: bool = False) -> list[Merged[T]]:
        """Return the merged items whose interval is over, or with `everything` all merged items."""
        now = self._clock()
        due = []
        for key, window in list(self._windows.items()):
            over = now - window.opened_at >= INTERVAL
            if window.count and (over or everything):
                due.append(window.merge(now))
            elif over:
                del self._windows[key]
        return due
