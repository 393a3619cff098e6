"""Items on their way from a fake link to the server, in order. They outlive the link if its machine sends on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

import trio

from router_trio.testing.machine import Machine


class Sent:
    """The requests and messages that a link has sent, and the server has not received."""

    def __init__(self, machine: Machine) -> None:
        self.bytes: int = 0
        self.most: float = inf
        """The number of further items after which the connection breaks."""
        self._machine = machine
        self._items: deque[tuple[float, Callable[[float], object], int]] = deque()
        self._last = -inf

    def add(self, action: Callable[[float], object], size: int = 0) -> None:
        """Send an item: `action` is called with the time when it arrives."""
        self._last = max(self._last, trio.current_time() + self._machine.delay())
        self._items.append((self._last, action, size))
        self.bytes += size

    def flush(self) -> bool:
        """Deliver what has arrived by now. Return False if the connection breaks."""
        now = trio.current_time()
        while self._items and self._items[0][0] <= now and self._machine.sends():
            if self.most <= 0:
                return False
            self.most -= 1
            _, action, size = self._items.popleft()
            self.bytes -= size
            action(now)
        return True

    def flushed(self) -> bool:
        """Deliver what has arrived by now, after the end of the link. Return True if nothing is left."""
        return not self.flush() or not self._items

    def clear(self) -> None:
        """Lose everything."""
        self._items.clear()
        self.bytes = 0

    def next_arrival(self) -> float:
        """Return the time at which the next item arrives, or infinity."""
        return self._machine.due(self._items[0][0], "to_server") if self._items else inf
