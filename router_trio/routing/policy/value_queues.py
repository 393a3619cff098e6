"""Queues of messages that wait for the limit of their value; messages of other values pass them. Pure."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

from router_trio.routing.policy.limit import ValueLimits

T = TypeVar("T")


class ValueQueues(Generic[T]):
    """Queues of waiting messages by value. `count` is the total of waiting messages.

    Items are ordered by the place that `admit` is given, and items of the same place by the order of adding.
    """

    __slots__ = ("_added", "_due", "_limits", "_queues", "count")

    def __init__(self, limits: ValueLimits) -> None:
        self.count: int = 0
        self._limits = limits
        self._queues: dict[bytes, list[tuple[int, int, T]]] = {}
        self._due: list[tuple[float, bytes]] = []
        self._added = 0

    def admit(self, value: bytes, place: int, item: T, now: float) -> bool:
        """Return True if a message of this value may be sent now; otherwise add it to the queue of the value."""
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
        """Take out the message that was allowed first to be sent by now; return None if there is none."""
        while self._due and self._due[0][0] <= now:
            _, value = heappop(self._due)
            again = self._limits.charge(value, now)
            if again:
                heappush(self._due, (again, value))  # other values took tokens from the shared bucket
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
        """Return when to call `pop_due` again; infinite if no message waits."""
        return self._due[0][0] if self._due else inf

    def clear(self) -> list[T]:
        """Take out all messages."""
        items = [item for queue in self._queues.values() for _, _, item in sorted(queue, key=_place)]
        self._queues.clear()
        self._due.clear()
        self.count = 0
        return items


def _place(entry: tuple[int, int, T]) -> tuple[int, int]:
    return entry[0], entry[1]
