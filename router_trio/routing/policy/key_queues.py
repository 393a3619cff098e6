"""Messages of a route by their keys: of each key one is at work, and the others wait behind it, in order. Pure.

Keys that have something to begin with take turns: one that has much to do is the last in the row after each message. A
key is known for as long as something of it waits or is at work, so that any number of keys may come in the course of
time. How many messages wait is bounded by who adds them.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class _Key(Generic[T]):
    """The queue of one key: waiting items, each with its place and arrival number, and the active one."""

    __slots__ = ("at_work", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, T]] = []
        self.at_work: T | None = None


class KeyQueues(Generic[T]):
    """Queues by key with at most one active item per key. `count` excludes active items.

    Whoever adds something gives its place: the order is that of the places, and that of adding for the same place.
    """

    __slots__ = ("_added", "_keys", "_ready", "count")

    def __init__(self) -> None:
        self.count: int = 0
        self._keys: dict[bytes, _Key[T]] = {}
        self._ready: deque[tuple[bytes, _Key[T]]] = deque()
        self._added = 0

    def __len__(self) -> int:
        """Return how many keys are known."""
        return len(self._keys)

    @property
    def may_begin(self) -> int:
        """How many messages may begin now: one of each key that has nothing at work."""
        return len(self._ready)

    @property
    def behind(self) -> int:
        """How many messages wait behind another one of their key."""
        return self.count - len(self._ready)

    def add(self, key: bytes, place: int, item: T) -> None:
        """A message waits: for its key, or only for its turn among the keys."""
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _Key()
        if found.at_work is None and not found.waiting:
            self._ready.append((key, found))
        self._added += 1
        heappush(found.waiting, (place, self._added, item))
        self.count += 1

    def waiting_of(self, key: bytes) -> int:
        """Return how many messages of a key wait."""
        found = self._keys.get(key)
        return 0 if found is None else len(found.waiting)

    def take_next(self) -> T | None:
        """Take out a message, the first of the key whose turn it is, which is at work then; None if none may begin."""
        if not self._ready:
            return None
        _, found = self._ready.popleft()
        _, _, item = heappop(found.waiting)
        found.at_work = item
        self.count -= 1
        return item

    def finished(self, key: bytes, item: T) -> bool:
        """A message is at work no more, if it was: the next one of its key may begin. Return True if it was."""
        found = self._keys.get(key)
        if found is None or found.at_work is not item:
            return False
        found.at_work = None
        if found.waiting:
            self._ready.append((key, found))
        else:
            del self._keys[key]
        return True

    def clear(self) -> list[T]:
        """Take out all that waits, in the order of the places."""
        waiting = sorted((one for found in self._keys.values() for one in found.waiting), key=_place)
        self._ready.clear()
        self._keys = {key: found for key, found in self._keys.items() if found.at_work is not None}
        for found in self._keys.values():
            found.waiting.clear()
        self.count = 0
        return [item for _, _, item in waiting]


def _place(entry: tuple[int, int, object]) -> tuple[int, int]:
    return entry[0], entry[1]
