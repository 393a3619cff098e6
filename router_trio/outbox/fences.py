"""Which core publishes wait for a fence, and whether one has to follow them at once. Pure.

Nobody waits for the fates of messages that routes forward from subjects: a few of them, accepted at about one time,
share the fence of the next. One for each would be half of what a message costs.
"""

from __future__ import annotations

from math import inf

from router_trio.outbox.in_flight import InFlight
from router_trio.outbox.operation import Operation

SHARED_FENCE = 32
"""Core publishes in flight that are fenced at once, whoever waits for them or not."""

FENCE_INTERVAL = 0.002
"""Seconds after one of them that had a fence of its own until the next one has. What has none when its link is lost is
published again: this and the bound above say how much of it the server may have had."""


class Fences:
    """Track which core publishes of one outbox were sent and are not confirmed."""

    __slots__ = ("_confirmed", "_in_flight", "_next_at", "behind", "sent")

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._confirmed = 0
        self._next_at = -inf
        self.behind: int = 0
        """The number of the last publish that a fence has to follow at once."""
        self.sent: int = 0
        """The position behind the last core publish that was sent, for `Outbox.fenced`.

        A batch that the link has in hand is not behind it: a fence that overtakes it, or what is refused of it, would
        confirm what was never written.
        """

    @property
    def unfenced(self) -> int:
        """Core publishes that wait for a fence: those of a batch that the link still has in hand don't yet."""
        return max(0, self.sent - self._in_flight.written + self._in_flight.unfenced)

    @property
    def due(self) -> bool:
        """Return True if a fence has to follow what is written at once; else it may be shared."""
        return self.behind > self._confirmed or self._in_flight.unfenced >= SHARED_FENCE

    def follow_at_times(self, order: int, now: float) -> None:
        """Have a fence follow this publish at once, which nobody waits for, if the last such fence is long ago."""
        if now >= self._next_at:
            self.behind, self._next_at = order, now + FENCE_INTERVAL

    def batch_sent(self) -> None:
        """Record that the batch taken last was sent, and that what the link refused of it was reported."""
        self.sent = self._in_flight.written

    def take_confirmed(self, mark: int) -> list[Operation]:
        """Take out what a fence confirms that was written when `sent` was `mark`."""
        confirmed = self._in_flight.take_fenced(mark)
        if confirmed:
            self._confirmed = confirmed[-1].order
        return confirmed
