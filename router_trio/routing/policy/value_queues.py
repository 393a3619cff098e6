"""Messages that wait for the limit of their value, in order for each value; those of other values pass them. Pure."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

from router_trio.routing.policy.limit import ValueLimits

T = TypeVar("T")


class ValueQueues(Generic[T]):
    """Queues of waiting messages, by value. `count` is all of them.

    Whoever adds something gives its place: the order is that of the places, and that of adding for the same place.
    """

    __slots__ = ("_added", "_due", "_limits", "_queues", "count")

    def __init__(self, limits: ValueLimits) -> None:
        self.count: int = 0
        self._limits = limits
        self._queues: dict[bytes, list[tuple[int, int, T]]] = {}
        self._due: list[tuple[float, bytes]] = []
        self._added = 0

    def admit(self, value: bytes, place: int, item: T, now: float) -> bool:
        """Return True if a message of this value goes now; else it waits here."""
        queue = self._queues.get(value)
        if queue is None:
            again = self._limits.charge(value, now)
            if not again:
                return True
            queue = self._queues[value] = []
            heappush(self._due, (again, value))
        self._added += 1
        heappush(queue, (place, self._added, item))
        self.count += 1
        return False

    def pop_due(self, now: float) -> T | None:
        """Take out a message that goes now, the one that may for the longest time; None if there is none."""
        while self._due and self._due[0][0] <= now:
            _, value = heappop(self._due)
            again = self._limits.charge(value, now)
            if again:
                heappush(self._due, (again, value))  # of a bucket that is shared, others took some
                continue
            queue = self._queues[value]
            _, _, item = heappop(queue)
            self.count -= 1
            if queue:
                heappush(self._due, (now, value))
            else:
                del self._queues[value]
            return item
        return None

    @property
    def due_at(self) -> float:
        """When to ask `pop_due` again; infinite if nothing waits."""
        return self._due[0][0] if self._due else inf

    def clear(self) -> list[T]:
        """Take out everything."""
        items = [item for queue in self._queues.values() for _, _, item in sorted(queue, key=_place)]
        self._queues.clear()
        self._due.clear()
        self.count = 0
        return items


def _place(entry: tuple[int, int, T]) -> tuple[int, int]:
    return entry[0], entry[1]
