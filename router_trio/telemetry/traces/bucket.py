"""A limit to how often something may happen: a token bucket."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """Lets `rate` through in a second, and `burst` at once after a time of quiet: at most burst + rate x t in any t.

    `clock` gives monotonic seconds; it is asked first when something wants through.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_seen_at")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._seen_at: float | None = None

    def take(self) -> bool:
        """Return True if one more may pass now."""
        now = self._clock()
        if self._seen_at is not None:
            self._left = min(self._burst, self._left + (now - self._seen_at) * self._rate)
        self._seen_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
