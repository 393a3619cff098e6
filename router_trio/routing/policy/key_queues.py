"""Queues of a route's messages by key: one message of each key is active, the others wait behind it in order. Pure.

Only messages that were begun before a reload changed the key may be active together, although they have one key now.

Keys with a message that may start take turns: after each message its key goes to the end of the line. A key is known as
long as a message of it waits or is active, so any number of keys may occur over time. The caller bounds the number of
waiting messages.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class _Several(Generic[T]):
    """Several items of one key that are active: they were begun when they had other keys."""

    __slots__ = ("items",)

    def __init__(self, *items: T) -> None:
        self.items: list[T] = [*items]


class _Key(Generic[T]):
    """The queue of one key: waiting items, each with its place and arrival number, and the active one."""

    __slots__ = ("active", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, T]] = []
        self.active: T | _Several[T] | None = None


class KeyQueues(Generic[T]):
    """Queues by key with at most one active item per key. `count` excludes active items.

    Items are ordered by the place that `add` is given, and items of the same place by the order of adding.
    """

    __slots__ = ("_added", "_keys", "_ready", "count")

    def __init__(self) -> None:
        self.count: int = 0
        self._keys: dict[bytes, _Key[T]] = {}
        self._ready: deque[tuple[bytes, _Key[T]]] = deque()
        self._added = 0

    def __len__(self) -> int:
        """Return the number of known keys."""
        return len(self._keys)

    @property
    def may_begin(self) -> int:
        """Return the number of messages that may start now: one of each key without an active message."""
        return len(self._ready)

    @property
    def behind(self) -> int:
        """Return the number of messages that wait behind another message of their key."""
        return self.count - len(self._ready)

    @property
    def active(self) -> list[T]:
        """Return the active messages."""
        found: list[T] = []
        for one in self._keys.values():
            if isinstance(one.active, _Several):
                found += one.active.items
            elif one.active is not None:
                found.append(one.active)
        return found

    def add(self, key: bytes, place: int, item: T) -> None:
        """Add a message that waits for another message of its key, or only for the turn of its key."""
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _Key()
        if found.active is None and not found.waiting:
            self._ready.append((key, found))
        self._added += 1
        heappush(found.waiting, (place, self._added, item))
        self.count += 1

    def waiting_of(self, key: bytes) -> int:
        """Return the number of waiting messages of a key."""
        found = self._keys.get(key)
        return 0 if found is None else len(found.waiting)

    def take_next(self) -> T | None:
        """Take out the first message of the key whose turn it is, and make it active. Return None if none may start."""
        if not self._ready:
            return None
        _, found = self._ready.popleft()
        _, _, item = heappop(found.waiting)
        found.active = item
        self.count -= 1
        return item

    def activate(self, key: bytes, item: T) -> None:
        """Make a message active that did not wait here, perhaps beside others of its key. None waits yet."""
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _Key()
        assert not found.waiting, "messages that are active already come before those that wait"
        if found.active is None:
            found.active = item
        elif isinstance(found.active, _Several):
            found.active.items.append(item)
        else:
            found.active = _Several(found.active, item)

    def finished(self, key: bytes, item: T) -> bool:
        """Make a message inactive, so that the next one of its key may start. Return False if it was not active."""
        found = self._keys.get(key)
        if found is None:
            return False
        if found.active is not item:
            several = found.active
            if not isinstance(several, _Several) or item not in several.items:
                return False
            several.items.remove(item)
            if several.items:
                return True
        found.active = None
        if found.waiting:
            self._ready.append((key, found))
        else:
            del self._keys[key]
        return True

    def clear(self) -> list[T]:
        """Take out all waiting messages, in the order of their places."""
        waiting = sorted((one for found in self._keys.values() for one in found.waiting), key=_place)
        self._ready.clear()
        self._keys = {key: found for key, found in self._keys.items() if found.active is not None}
        for found in self._keys.values():
            found.waiting.clear()
        self.count = 0
        return [item for _, _, item in waiting]


class ActiveKeys(Generic[T]):
    """The active messages of several queues by key. Only one queue at a time has an active message of a key."""

    def __init__(self, released: Callable[[], object]) -> None:
        """`released` is called when a queue may take a message for which it had to wait for another queue."""
        self._released = released
        self._active: Counter[bytes] = Counter()
        self._waiting: dict[bytes, deque[KeyQueuesOfMany[T]]] = {}
        """By key, the queues whose first message waits for those of others, the next one first."""

    def admits(self, key: bytes, queue: KeyQueuesOfMany[T]) -> bool:
        """Return True if a queue may make a message of this key active. Otherwise it waits until that is `released`."""
        waiting = self._waiting.get(key)
        if waiting is None:
            if not self._active[key]:
                return True
            waiting = self._waiting[key] = deque()
        elif waiting[0] is queue and not self._active[key]:
            return True
        if queue not in waiting:
            waiting.append(queue)
        return False

    def begun(self, key: bytes, queue: KeyQueuesOfMany[T]) -> None:
        """Count an active message of a queue."""
        self._active[key] += 1
        self._leave(key, queue)

    def ended(self, key: bytes) -> None:
        """Count off an active message, and let the next queue go on."""
        self._active[key] -= 1
        if not self._active[key]:
            del self._active[key]
            self._let_next_go(key)

    def forget(self, queue: KeyQueuesOfMany[T]) -> None:
        """Forget what a queue waits for: it has no waiting messages any more."""
        for key, first in [(key, waiting[0]) for key, waiting in self._waiting.items() if queue in waiting]:
            self._leave(key, queue)
            if first is queue and not self._active[key]:
                self._let_next_go(key)

    def _leave(self, key: bytes, queue: KeyQueuesOfMany[T]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and queue in waiting:
            waiting.remove(queue)
            if not waiting:
                del self._waiting[key]

    def _let_next_go(self, key: bytes) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting[0].may_begin_with(key)
            self._released()


class KeyQueuesOfMany(KeyQueues[T]):
    """The queues by key of one of several consumers, which share the keys."""

    __slots__ = ("_shared",)

    def __init__(self, shared: ActiveKeys[T]) -> None:
        super().__init__()
        self._shared = shared

    def take_next(self) -> T | None:
        while self._ready:
            key, _ = self._ready[0]
            if self._shared.admits(key, self):
                self._shared.begun(key, self)
                return super().take_next()
            self._ready.popleft()
        return None

    def may_begin_with(self, key: bytes) -> None:
        """Go on with the first message of a key, which has waited for another queue."""
        self._ready.append((key, self._keys[key]))

    def activate(self, key: bytes, item: T) -> None:
        super().activate(key, item)
        self._shared.begun(key, self)

    def finished(self, key: bytes, item: T) -> bool:
        if not super().finished(key, item):
            return False
        self._shared.ended(key)
        return True

    def clear(self) -> list[T]:
        self._shared.forget(self)
        return super().clear()


def _place(entry: tuple[int, int, object]) -> tuple[int, int]:
    return entry[0], entry[1]
