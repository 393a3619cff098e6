"""Merge events that can happen for every message: at most one line an interval for each key, with all counts.

The first of a key passes at once. What follows within the interval is summed, and comes out with the next one after
it, or when `due` is asked. Pure and synchronous; the clock is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

INTERVAL = 1.0
"""Seconds between two lines of one key."""


@dataclass(frozen=True, slots=True)
class Merged(Generic[T]):
    """The latest of several merged items, their number, and how many of them had which reason."""

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
    """Merge items by key. Keeps one window for each key that was seen in the last interval."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[Hashable, _Window[T]] = {}

    def __bool__(self) -> bool:
        """Return True if something was seen in the last interval, or is summed."""
        return bool(self._windows)

    def offer(self, key: Hashable, item: T, count: int = 1, reason: str | None = None) -> Merged[T] | None:
        """Count an item. Returns what to show now, the item included, or None if it was only summed."""
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
        """Return what was summed and has waited for an interval, or `everything` that was summed."""
        now = self._clock()
        due = []
        for key, window in list(self._windows.items()):
            over = now - window.opened_at >= INTERVAL
            if window.count and (over or everything):
                due.append(window.merge(now))
            elif over:
                del self._windows[key]
        return due
