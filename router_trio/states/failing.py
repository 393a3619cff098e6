"""The failed messages of a route that are being retried."""

from __future__ import annotations

from collections.abc import Hashable

MOST_RETRIED = 65_536
"""Messages whose first failure is remembered, for each route; beyond that the oldest are forgotten."""


class BeingRetried:
    """Failed messages that are to be retried, in the order of their first failures.

    Times are on the router's monotonic clock.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, message: Hashable, now: float) -> None:
        """Record that a message failed; only its first failure counts."""
        if message not in self._since:
            while len(self._since) >= MOST_RETRIED:
                del self._since[next(iter(self._since))]
            self._since[message] = now

    def discard(self, message: Hashable) -> None:
        """Forget a message that is settled."""
        self._since.pop(message, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._since.clear()

    def forget_up_to(self, sequence: int) -> None:
        """Forget messages of a stream up to this sequence, which another process may have settled."""
        for one in [one for one in self._since if isinstance(one, int) and one <= sequence]:
            del self._since[one]

    def oldest(self, now: float) -> float:
        """Return the seconds since the first failure of the message retried for longest; 0 if there is none."""
        return max(0.0, now - next(iter(self._since.values()), now))
