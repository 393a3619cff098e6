"""How many messages a route has in flight at most, if nobody has said: as many as help, by what is seen. Pure.

With a round trip of 80 ms, 1,024 messages in flight are 12,000 a second, whatever servers could do. So a route begins
with as many as it may have. Now and then fewer are tried, and kept if as many messages are settled a second: then there
was only a queue somewhere. Later twice as many are, and kept if more are settled. The bound in bytes is another one.
"""

from __future__ import annotations

from math import inf

from router_trio.settings.routes import MOST_IN_FLIGHT

LEAST = 1024
"""What it shrinks to, at most."""

SHORTEST_LOOK = 0.05
"""Seconds in which what is settled is counted, at least."""

LONGEST_PAUSE = 0.5
"""Seconds without a message that is settled after which counting begins anew: it says nothing of the window."""

LOOKS = 3
"""Windows that are settled in one look, at least."""

BETTER = 1.08
"""Times as many messages a second that make more in flight worth it. Less may be chance."""

AS_GOOD = 0.97

PROBE_EVERY = 10.0
"""Seconds until the first try, and between two that changed nothing."""


class InFlightWindow:
    """The size of one route's window. `fixed`: it is that, and nothing is tried."""

    def __init__(self, fixed: int | None) -> None:
        self.size: int = MOST_IN_FLIGHT if fixed is None else fixed
        self.most: int = self.size
        self._fixed = fixed is not None
        self._since = self._last = -inf
        self._count = 0
        self._before: tuple[int, float] | None = None
        """While another size is tried: the size before, and how many were settled a second with it."""
        self._probe_at = -inf
        self._grows = False

    def count_settled(self, count: int, now: float) -> None:
        """So many messages were settled while half of the window was used: else no other size would help."""
        if self._fixed:
            return
        if not self._count or now - self._last > LONGEST_PAUSE:
            self._since, self._count = now, 0
            if self._probe_at == -inf:
                self._probe_at = now + PROBE_EVERY
        self._last = now
        self._count += count
        seconds = now - self._since
        if self._count < LOOKS * self.size or seconds < SHORTEST_LOOK:
            return
        rate = self._count / seconds
        self._count = 0
        if self._before is not None:
            self._judge(*self._before, rate, now)
        elif now >= self._probe_at:
            self._try(rate)

    def _judge(self, size: int, rate_before: float, rate: float, now: float) -> None:
        grew = self.size > size
        self._before = None
        if rate < rate_before * (BETTER if grew else AS_GOOD):
            self.size = size
            self._grows = not grew
            self._probe_at = now + PROBE_EVERY
        elif self.size in (LEAST, self.most):
            self._grows = self.size == LEAST
            self._probe_at = now + PROBE_EVERY
        else:
            self._try(rate)  # the same once more

    def _try(self, rate: float) -> None:
        self._before = (self.size, rate)
        if self.size == LEAST or (self._grows and self.size < self.most):
            self.size = min(2 * self.size, self.most)
        else:
            self.size = max(self.size // 2, LEAST)
