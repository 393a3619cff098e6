"""Tracks which core publishes wait for a fence, and whether one has to follow them at once. Pure.

No caller waits for the fates of messages that routes forward from subjects. A few of them that were accepted at about
the same time share the next fence: a fence for each would be half of what a message costs.
"""

from __future__ import annotations

from math import inf

from router_trio.outbox.in_flight import InFlight
from router_trio.outbox.operation import Operation

SHARED_FENCE = 32
"""Core publishes in flight at which a fence follows at once, whether or not a caller waits for one."""

FENCE_INTERVAL = 0.002
"""Seconds between fences that follow at once for publishes that no caller waits for. Publishes without a fence are
published again after a link is lost: this and the bound above limit how many of them the server may have received."""


class Fences:
    """Track which core publishes of one outbox were sent and are not confirmed."""

    __slots__ = ("_confirmed", "_in_flight", "_next_at", "behind", "sent")

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._confirmed = 0
        self._next_at = -inf
        self.behind: int = 0
        """Number of the last publish that a fence has to follow at once."""
        self.sent: int = 0
        """Position behind the last core publish that was sent, for `Outbox.fenced`.

        A batch that the link is still writing is not included: a fence that overtook it, or parts of it that the link
        refuses, would confirm publishes that were never written.
        """

    @property
    def unfenced(self) -> int:
        """Core publishes that wait for a fence, without those of a batch that the link is still writing."""
        return max(0, self.sent - self._in_flight.written + self._in_flight.unfenced)

    @property
    def due(self) -> bool:
        """Return True if a fence has to follow at once behind what is written; otherwise it may be shared."""
        return self.behind > self._confirmed or self._in_flight.unfenced >= SHARED_FENCE

    def follow_regularly(self, order: int, now: float) -> None:
        """Let a fence follow this publish, which no caller waits for, unless the last was within `FENCE_INTERVAL`."""
        if now >= self._next_at:
            self.behind, self._next_at = order, now + FENCE_INTERVAL

    def batch_sent(self) -> None:
        """Record that the last batch taken was sent, and that what the link refused of it was reported."""
        self.sent = self._in_flight.written

    def take_confirmed(self, mark: int) -> list[Operation]:
        """Take out the publishes that a fence confirms: those written when `sent` was `mark`."""
        confirmed = self._in_flight.take_fenced(mark)
        if confirmed:
            self._confirmed = confirmed[-1].order
        return confirmed
