"""A circuit breaker: stops sending to a destination that refuses message after message, and tries it again later.

While the breaker is closed, messages are sent. After `failures` refusals in a row it opens, and nothing is sent for
`pause` seconds. Then it is half open, and one message is sent as a probe. If the destination accepts the probe, or a
message that was retried since the breaker opened, the breaker closes; otherwise it opens again, and the pause doubles
up to `longest`. Pure: the caller passes the time, and the number of messages that the destination has accepted. That
number is counted anyway, so accepted messages cost nothing here while it is closed.
"""

from __future__ import annotations

from typing import Final

CLOSED: Final = "closed"
HALF_OPEN: Final = "half_open"
OPEN: Final = "open"

LONGEST_PAUSE: Final = 10.0
"""Seconds between two probes of a destination that refuses messages, at most."""


class Breaker:
    """The circuit breaker of one destination.

    `reason` is the reason of the last failure, `opened_at` the time when the breaker opened, and `probe_at` the time
    from which on a probe may be sent.
    """

    __slots__ = (
        "_failures",
        "_in_a_row",
        "_longest",
        "_shortest",
        "_taken",
        "opened_at",
        "pause",
        "probe_at",
        "reason",
        "state",
    )

    def __init__(self, failures: int, pause: float, longest: float = 0.0) -> None:
        """Without `longest`, the pause stays the same."""
        self.state: str = CLOSED
        self.reason: str | None = None
        self.opened_at: float = 0.0
        self.probe_at: float = 0.0
        self._failures = failures
        self.pause: float = pause
        """Seconds between the last refusal and the next probe."""
        self._shortest = pause
        self._longest = max(pause, longest)
        self._in_a_row = 0
        self._taken = 0

    def in_a_row(self, taken: int) -> int:
        """Return the number of failures since the destination last accepted a message."""
        return self._in_a_row if taken == self._taken else 0

    def admits(self, now: float) -> bool:
        """Return True if a message may be sent."""
        return self.state == CLOSED or (self.state == OPEN and now >= self.probe_at)

    def message_goes(self, now: float) -> None:
        """Record that a message is sent, which `admits` allowed. If the breaker is open, that message is the probe."""
        if self.state == OPEN and now >= self.probe_at:
            self.state = HALF_OPEN

    def message_failed(self, now: float, taken: int, reason: str) -> bool:
        """Record that the destination refused a message. Return True if the breaker was closed and opens now."""
        self.reason = reason
        if self.state == HALF_OPEN:
            self.pause = min(2 * self.pause, self._longest)
            self.state, self.probe_at = OPEN, now + self.pause
        if self.state == OPEN:
            return False  # it was in flight when the breaker opened
        self._in_a_row = self.in_a_row(taken) + 1
        self._taken = taken
        if self._in_a_row < self._failures:
            return False
        self.pause = self._shortest
        self.state, self.opened_at, self.probe_at = OPEN, now, now + self.pause
        return True

    def inconclusive(self, now: float, *, reachable: bool = True) -> None:
        """Record that the probe failed for another reason than its destination: the next message may be the probe.

        If the destination is not `reachable`, it would fail as well, so it is sent after the pause.
        """
        if self.state == HALF_OPEN:
            self.state, self.probe_at = OPEN, now if reachable else now + self.pause

    def message_passed(self) -> bool:
        """Record that the destination accepted a message. Return True if it was the probe: the breaker closes."""
        return self.state == HALF_OPEN and self.close()

    def close(self) -> bool:
        """Close. Return True if it was not closed."""
        was_open = self.state != CLOSED
        self.state, self._in_a_row = CLOSED, 0
        return was_open

    def retry_passed(self, sent_at: float) -> bool:
        """Record that the destination accepted a retried message, sent at `sent_at`. Return True if the breaker closes.

        It closes if the message was sent since the breaker opened, since that tests the destination as a probe does.
        """
        return sent_at > self.opened_at and self.close()
