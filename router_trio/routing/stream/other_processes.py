"""Whether other processes take from the durable of a route, as the numbers of its deliveries tell. Pure.

A consumer numbers its deliveries. One that is missing here went elsewhere: to another process, to a link that is dead
and that only the server takes for alive, to a host that died, or to somebody who takes a message by hand. While others
take from a durable, no message waits for a refused one, which they may get: so the order of a route is given up for
others who are there to stay, and not for a few missing deliveries. Dead links answer nothing: what went to them is
redelivered after the ack wait, and they take nothing for longer than the server keeps their last requests.
"""

from __future__ import annotations

from math import inf

TAKE_FOR = 35.0
"""Seconds for which others must have taken messages before they count: longer than pull requests of a dead link wait at
the server."""

LATE = 5.0
"""Seconds behind the ack wait until which what went to a dead link may be redelivered."""


class OtherProcesses:
    """The deliveries of one consumer that went elsewhere and were not redelivered here.

    `ack_wait` in seconds. Nothing is remembered of deliveries if no other followed within twice that.
    """

    __slots__ = ("_first_at", "_last_at", "ack_wait", "missing", "noticed")

    def __init__(self) -> None:
        self.ack_wait: float = 0.0
        self.noticed: bool = False
        """True if deliveries went elsewhere since the consumer was opened: who opens it again listens for others."""
        self.missing: int = 0
        """Deliveries that went elsewhere, of which `seen` says whether they still count."""
        self._first_at = self._last_at = -inf

    def missed(self, count: int, now: float) -> None:
        """Count deliveries that went elsewhere, as is known by now."""
        if not self.seen(now):
            self.missing, self._first_at = 0, now
        self.missing += count
        self.noticed = True
        self._last_at = now

    def redelivered(self, count: int) -> None:
        """Count deliveries elsewhere of a message that was redelivered here: nobody had processed it."""
        self.missing = max(0, self.missing - count)

    def opened(self) -> None:
        """Begin again with a consumer that was opened, after listening for others if any were `noticed`."""
        self.noticed = False

    def seen(self, now: float) -> bool:
        """Return True if somebody else may have messages in hand: deliveries are missing, the last for not long."""
        return self.missing > 0 and now < self._last_at + 2 * self.ack_wait

    def take(self, now: float) -> bool:
        """Return True if others have been taking messages for long, and still do."""
        return self.seen(now) and self._last_at >= self._first_at + max(TAKE_FOR, self.ack_wait + LATE)
