"""Deadlines of all publishers that wait for a PubAck on one connection: one timer for all of them.

A cancel scope for each would cost twice as much as the waiting itself.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

import trio

SLACK = 1024
"""Stale entries, of publishes that are no longer waited for, that may stay among the others."""


class Deadlines:
    """Reports publishes that are still waited for at their deadline. Times are on Trio's clock, in seconds."""

    def __init__(self, over: Callable[[int, float], None]) -> None:
        """`over` gets the number of a publish and the seconds that it was given. Must not raise."""
        self._over = over
        self._given: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        self._next = inf
        self._earlier = trio.Event()

    def add(self, number: int, seconds: float) -> None:
        """Set the deadline of the publish with this number, in seconds from now."""
        at = trio.current_time() + seconds
        self._given[number] = seconds
        heappush(self._heap, (at, number))
        if at < self._next:
            self._earlier.set()

    def remove(self, number: int) -> None:
        """Remove the deadline of a publish. Does nothing if it has passed."""
        given, heap = self._given, self._heap
        given.pop(number, None)
        while heap and heap[0][1] not in given:
            heappop(heap)
        if len(heap) > 2 * len(given) + SLACK:
            self._heap = [entry for entry in heap if entry[1] in given]
            heapify(self._heap)

    def clear(self) -> None:
        """Remove all deadlines."""
        self._given.clear()

    async def run(self) -> None:
        """Report publishes whose deadline passes, until cancelled."""
        while True:
            self._earlier = trio.Event()
            self._next = self._heap[0][0] if self._heap else inf
            with trio.CancelScope(deadline=self._next):
                await self._earlier.wait()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                _, number = heappop(self._heap)
                seconds = self._given.pop(number, None)
                if seconds is not None:
                    self._over(number, seconds)
