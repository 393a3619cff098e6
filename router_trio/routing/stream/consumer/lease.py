"""Until when a process may count on the lead of a partition. Pure.

The server may give the lead to another process when the leader was silent for `LEAD_ENDS_AFTER` seconds. It counts from
the arrival of a request, which is later than its sending. So a request that was answered proves the lead for that long
from its sending, however late the answer arrives. A process that was suspended finds after it that its lease is over,
and begins nothing before a further request is answered.
"""

from __future__ import annotations

from math import inf

from router_trio.link import LEAD_ENDS_AFTER

RESERVE = 0.5
"""Seconds by which the lease ends earlier, for clocks of different speed and for what has just been begun."""


class Lease:
    """The lease of one partition. Times are those of the same monotonic clock."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until: float = -inf
        """The time when it ends."""

    def answered(self, sent_at: float) -> None:
        """Record that the server answered a request with the pin, which was sent at that time."""
        self.until = max(self.until, sent_at + LEAD_ENDS_AFTER - RESERVE)

    def lost(self) -> None:
        """Record that another process has the lead, or that the link was lost."""
        self.until = -inf

    def holds(self, now: float) -> bool:
        """Return True if no other process can have the lead."""
        return now < self.until
