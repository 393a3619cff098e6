"""Lose or delay what goes between the parts of a server: counted down, one kind at a time. Synchronous, pure."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol

KINDS = ("puback", "ack", "nak", "in_progress", "pull", "message")
"""A stream's answer to a publish, what a client says of a message, a request for messages, a delivery."""


class Timed(Protocol):
    """A part of a server that does something at its time, when it is asked to."""

    def poll(self, now: float) -> None:
        """Do what is due."""

    def next_due(self) -> float:
        """Return when `poll` may have something to do if nothing else happens before; infinity for never."""
        ...


class Losses:
    """Strike the next few of a kind. What is late is done by `poll`."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._late: dict[str, float] = {}
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def strike(self, kind: str, times: int, late: float = inf) -> None:
        """Delay the next `times` of this kind by `late` seconds, or lose them. Raises `ValueError` for another kind."""
        if kind not in KINDS:
            raise ValueError(f"nothing of the kind {kind!r} can be lost; there are {', '.join(KINDS)}")
        self._left[kind] = times
        self._late[kind] = late

    def clear(self) -> None:
        """Strike nothing more; what is late already stays so."""
        self._left.clear()

    def meets(self, kind: str, now: float, action: Callable[[], object]) -> None:
        """Do this now, later or never."""
        left = self._left.get(kind, 0)
        if not left:
            action()
            return
        self._left[kind] = left - 1
        self.later(now + self._late[kind], action)

    def later(self, due: float, action: Callable[[], object]) -> None:
        """Do this at that time; never, if it is infinite."""
        if due < inf:
            heappush(self._waiting, (due, next(self._numbers), action))

    def poll(self, now: float) -> None:
        """Do what is late and due."""
        while self._waiting and self._waiting[0][0] <= now:
            heappop(self._waiting)[2]()

    def next_due(self) -> float:
        """Return when `poll` has something to do; infinity for never."""
        return self._waiting[0][0] if self._waiting else inf
