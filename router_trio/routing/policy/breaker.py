"""When a route leaves a destination alone that fails message after message, and when it tries again.

Closed: messages go. After `failures` in a row it opens, and nothing goes there for `pause` seconds. Then one message
may: half open. If the destination takes it, the breaker closes, else it opens again. Pure; the time is given, and so is
how many messages the destination has taken: while the breaker is closed, what goes well is counted anyway, and costs
nothing here.
"""

from __future__ import annotations

from typing import Final

CLOSED: Final = "closed"
HALF_OPEN: Final = "half_open"
OPEN: Final = "open"


class Breaker:
    """The breaker of one destination.

    `reason` is that of the last failure, `opened_at` when it opened, `probe_at` from when on a message may try.
    """

    __slots__ = ("_failures", "_in_a_row", "_pause", "_taken", "opened_at", "probe_at", "reason", "state")

    def __init__(self, failures: int, pause: float) -> None:
        self.state: str = CLOSED
        self.reason: str | None = None
        self.opened_at: float = 0.0
        self.probe_at: float = 0.0
        self._failures = failures
        self._pause = pause
        self._in_a_row = 0
        self._taken = 0

    def in_a_row(self, taken: int) -> int:
        """Return how many failed since the destination last took one."""
        return self._in_a_row if taken == self._taken else 0

    def admits(self, now: float) -> bool:
        """Return True if a message may go."""
        return self.state == CLOSED or (self.state == OPEN and now >= self.probe_at)

    def message_goes(self, now: float) -> None:
        """A message goes, which `admits` it: if the breaker is open, that is the probe."""
        if self.state == OPEN and now >= self.probe_at:
            self.state = HALF_OPEN

    def message_failed(self, now: float, taken: int, reason: str) -> bool:
        """The destination did not take a message. Return True if the breaker opens now, having been closed."""
        self.reason = reason
        if self.state == HALF_OPEN:
            self.state, self.probe_at = OPEN, now + self._pause
        if self.state == OPEN:
            return False  # else it was under way when the breaker opened
        self._in_a_row = self.in_a_row(taken) + 1
        self._taken = taken
        if self._in_a_row < self._failures:
            return False
        self.state, self.opened_at, self.probe_at = OPEN, now, now + self._pause
        return True

    def inconclusive(self, now: float) -> None:
        """A message that went has failed, and not by the destination: the next one may try instead."""
        if self.state == HALF_OPEN:
            self.state, self.probe_at = OPEN, now

    def message_passed(self) -> bool:
        """The destination took a message. Return True if the breaker closes: that was the probe."""
        if self.state != HALF_OPEN:
            return False
        self.state, self._in_a_row = CLOSED, 0
        return True
