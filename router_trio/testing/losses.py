"""Lose or delay a number of messages of one kind between the parts of a server. Synchronous, pure."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol

KINDS = ("puback", "ack", "nak", "in_progress", "pull", "message", "announce", "look")
"""The answer of a stream to a publish, the answers of a client to a delivery, a pull request, a delivery; what a member
of a partitioned route announces, and its look at the others."""

ADVISORY = "advisory"
"""A report of the server, which it sends once: see `protocol.advisories`."""


class Timed(Protocol):
    """A part of a server that has something to do at certain times."""

    def poll(self, now: float) -> None:
        """Do everything that is due."""

    def next_due(self) -> float:
        """Return the next time at which `poll` may have something to do, unless something else happens; or infinity."""
        ...


class Losses:
    """Loses or delays the next actions of a kind. `poll` runs delayed actions."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        """How many actions of each kind are still to be delayed or lost."""
        self._late: dict[str, float] = {}
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self.now: float = -inf
        """The time of the last `poll`."""

    def set(self, kind: str, times: int, late: float = inf) -> None:
        """Delay the next `times` actions by `late` seconds, or lose them. Raises `ValueError` for an unknown kind."""
        if kind not in (*KINDS, ADVISORY):
            raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join((*KINDS, ADVISORY))}")
        self.left[kind] = times
        self._late[kind] = late

    def clear(self) -> None:
        """Lose and delay nothing more; actions that are already delayed stay delayed."""
        self.left.clear()

    def apply(self, kind: str, now: float, action: Callable[[], object]) -> None:
        """Run `action` now, later or never."""
        left = self.left.get(kind, 0)
        if not left:
            action()
            return
        self.left[kind] = left - 1
        self.schedule(now + self._late[kind], action)

    def schedule(self, due: float, action: Callable[[], object]) -> None:
        """Run `action` at the time `due`; never if that is infinite."""
        if due < inf:
            heappush(self._waiting, (due, next(self._numbers), action))

    def poll(self, now: float) -> None:
        """Run the delayed actions that are due."""
        self.now = now
        while self._waiting and self._waiting[0][0] <= now:
            heappop(self._waiting)[2]()

    def next_due(self) -> float:
        """Return the time of the next delayed action, or infinity."""
        return self._waiting[0][0] if self._waiting else inf
