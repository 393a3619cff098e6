"""Detect that other processes use the durable of a route, from the numbers of its deliveries. Pure.

A consumer numbers its deliveries. A missing one went elsewhere: to another process, to a dead link that the server
still considers alive, to a host that died, or to a person who requested a message by hand. While other processes use a
durable, no message waits for a refused one, which may be delivered to them. So the order of a route is given up only
for processes that stay, not for a few missing deliveries, however far apart these are. Dead links ack nothing:
deliveries to them are redelivered after the ack wait, and end when the server drops their last requests.
"""

from __future__ import annotations

from math import inf

TAKE_FOR = 35.0
"""Seconds for which others must have received messages before they count: longer than the server keeps the pull
requests of a dead link."""

LATE = 5.0
"""Seconds by which the redelivery of a delivery to a dead link may exceed the ack wait."""

PAUSE_SHARE = 0.25
"""Share of the required time that one pause between two missing deliveries may add: two messages taken by hand, or two
rolling updates, are not a process that stays."""


class OtherProcesses:
    """The deliveries of one consumer that went elsewhere and were not redelivered here.

    `ack_wait` in seconds. They are forgotten if no further one follows within twice that time.
    """

    __slots__ = ("_last_at", "_taken_for", "ack_wait", "missing", "noticed")

    def __init__(self) -> None:
        self.ack_wait: float = 0.0
        self.noticed: bool = False
        """True if deliveries went elsewhere since the consumer was opened, or others were heard then.

        The next time it listens for others.
        """
        self.missing: int = 0
        """Deliveries that went elsewhere; `seen` returns whether they still count."""
        self._last_at = -inf
        self._taken_for = 0.0

    def missed(self, count: int, now: float) -> None:
        """Count deliveries that were found to have gone elsewhere."""
        if self.seen(now):
            self._taken_for += min(now - self._last_at, PAUSE_SHARE * self._required)
        else:
            self.missing, self._taken_for = 0, 0.0
        self.missing += count
        self.noticed = True
        self._last_at = now

    def redelivered(self, count: int) -> None:
        """Subtract earlier deliveries of a message that was redelivered here: no process had settled it."""
        self.missing = max(0, self.missing - count)

    def opened(self, *, heard: bool) -> None:
        """Start again with a consumer that was opened, after listening for others if any were `noticed`.

        `heard`: other processes use it now. No delivery may show that before the link is lost.
        """
        self.noticed = heard

    def seen(self, now: float) -> bool:
        """Return True if another process may have messages in hand: deliveries are missing, the last one recent."""
        return self.missing > 0 and now < self._last_at + 2 * self.ack_wait

    def take(self, now: float) -> bool:
        """Return True if others have been receiving messages for long enough, and still do."""
        return self.seen(now) and self._taken_for >= self._required

    @property
    def _required(self) -> float:
        """Seconds for which others must have been receiving messages before they count."""
        return max(TAKE_FOR, self.ack_wait + LATE)
