"""What a connection and a route are doing right now, and what they have counted: plain values that anyone reads.

Written by the tasks that own them, read by metrics, `/status` and `/readyz` without a lock or an await.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

DISCONNECTED = "disconnected"
RECONNECTING = "reconnecting"
CONNECTED = "connected"

GAUGE = {DISCONNECTED: 0.0, RECONNECTING: 0.5, CONNECTED: 1.0}


class ConnectionState:
    """State and lifecycle counters of one named connection. `since` is Unix time in seconds."""

    def __init__(self, name: str, wall_clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.state = DISCONNECTED
        self.since = wall_clock()
        self._wall_clock = wall_clock
        self.server: str | None = None
        self.attempts = 0
        self.last_error: str | None = None
        self.fenced_at: float | None = None
        self.fence_bound = float("inf")
        self.established = 0
        self.lost = 0
        self.restored = 0
        self.failures = 0
        self.reconnect_attempts = 0
        self.reconnect_failures = 0
        self.exhausted = 0

    @property
    def gauge(self) -> float:
        """0 disconnected, 0.5 reconnecting, 1 connected."""
        return GAUGE[self.state]

    def enter(self, state: str, *, server: str | None = None) -> None:
        """Change the state; the time of the change is kept if it is one."""
        if state != self.state:
            self.since = self._wall_clock()
        self.state = state
        self.server = server

    def unready(self, now: float) -> str | None:
        """Why this connection would not carry a message now (`now` on the monotonic clock of its fences), or None."""
        if self.state != CONNECTED:
            return f"{self.state}: {self.last_error}" if self.last_error else self.state
        if self.fenced_at is None or now - self.fenced_at > self.fence_bound:
            return f"no fence was answered for more than {self.fence_bound:g} s"
        return None


STARTING = "starting"
RUNNING = "running"
PAUSED = "paused"
FAILED = "failed"


class RouteState:
    """State and counters of one route. `destinations` are the templates, in order: they are the label values."""

    def __init__(self, name: str, connection: str, destinations: Sequence[str], *, own_ids: bool = True) -> None:
        """`own_ids`: a stream that has a copy already has this very copy, and not what somebody else gave its id to."""
        self.own_ids = own_ids
        self.suppressed: Callable[[int, str | None], None] = lambda count, stream: None
        """Called for messages that a stream took for others that it has."""
        self.name = name
        self.connection = connection
        self.destinations = tuple(destinations)
        self.state = STARTING
        self.reason: str | None = None
        self.received = 0
        self.failed: Counter[str] = Counter()
        self.filtered = 0
        self.dead_lettered = 0
        self.duplicates = 0
        self.delivered: dict[str, int] = dict.fromkeys(destinations, 0)
        """Messages that each destination has, but those of `forwarded`."""
        self.elapsed = Histogram(DURATION_BOUNDS)
        """Seconds from receiving a message to settling it, but those of `forwarded`."""
        self.forwarded = Histogram(DURATION_BOUNDS)
        """The same of what was forwarded to the first destination while it arrived: one count says both."""

    @property
    def routed(self) -> Mapping[str, int]:
        """Messages that each destination has."""
        routed = self.delivered.copy()
        if count := sum(self.forwarded.counts):
            routed[self.destinations[0]] += count
        return routed

    @property
    def durations(self) -> Histogram:
        """Seconds from receiving a message to settling it."""
        return self.elapsed + self.forwarded

    def enter(self, state: str, reason: str | None = None) -> None:
        """Change the state; `reason` says why it isn't running."""
        self.state = state
        self.reason = reason

    @property
    def unready(self) -> str | None:
        """Why this route would not route a message now, or None."""
        return None if self.state == RUNNING else self.reason or self.state


DURATION_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: from a routing in one batch to one that waited out an outage."""


class Histogram:
    """Counts by bucket, as Prometheus has them: `counts[i]` is of values at most `bounds[i]`, the last of the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def record(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def __add__(self, other: Histogram) -> Histogram:
        """Both together. Their bounds are the same."""
        both = Histogram(self.bounds)
        both.counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        both.total = self.total + other.total
        return both
