"""The current state of a connection, and its counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from router_trio.errors.quotes import bounded

DISCONNECTED = "disconnected"
RECONNECTING = "reconnecting"
CONNECTED = "connected"

GAUGE = {DISCONNECTED: 0.0, RECONNECTING: 0.5, CONNECTED: 1.0}


LINK_COUNTS = ("established", "lost", "restored", "failures", "reconnect_attempts", "reconnect_failures", "exhausted")
"""The counts of a connection's links and attempts: attributes of `ConnectionState`."""


class ConnectionState:
    """State and lifecycle counters of one named connection. `since` is Unix time in seconds."""

    def __init__(
        self, name: str, wall_clock: Callable[[], float] = time.time, *, fence_bound: float = float("inf")
    ) -> None:
        """`fence_bound`: seconds without an answered fence after which a link is not trusted."""
        self.name = name
        self.state: str = DISCONNECTED
        self.since: float = wall_clock()
        self._wall_clock = wall_clock
        self.server: str | None = None
        self.attempts: int = 0
        self.last_error: str | None = None
        self.fenced_at: float | None = None
        self.fence_bound = fence_bound
        self.established: int = 0
        self.lost: int = 0
        self.restored: int = 0
        self.failures: int = 0
        self.reconnect_attempts: int = 0
        self.reconnect_failures: int = 0
        self.exhausted: int = 0
        self.missing_streams: dict[str, str] = {}
        """Why a configured stream can't be created or looked up, by its name."""

    @property
    def gauge(self) -> float:
        """The state as a number: 0 disconnected, 0.5 reconnecting, 1 connected."""
        return GAUGE[self.state]

    def enter(self, state: str, *, server: str | None = None) -> None:
        """Change the state, and record the time if it is another one."""
        if state != self.state:
            self.since = self._wall_clock()
        self.state = state
        self.server = server

    # --- attempts to connect ---

    def reconnect_begins(self) -> None:
        """Count an attempt to reconnect."""
        self.reconnect_attempts += 1

    def attempt_failed(self, error: str, *, reconnect: bool) -> None:
        """Count a failed attempt to connect, and record why it failed."""
        self.failures += 1
        self.attempts += 1
        self.last_error = bounded(error)
        if reconnect:
            self.reconnect_failures += 1

    def attempt_succeeded(self) -> int:
        """Record a successful attempt. Returns the number of failed ones before it."""
        failed, self.attempts = self.attempts, 0
        return failed

    def attempts_exhausted(self) -> None:
        """Count that all configured attempts have failed."""
        self.exhausted += 1

    # --- links ---

    def link_up(self, server: str, now: float, *, first: bool) -> None:
        """Record a new link to `server`. `first`: it is the first one; `now` is on the clock of its fences."""
        self.enter(CONNECTED, server=server)
        self.last_error = None
        self.fenced_at = now
        if first:
            self.established += 1
        else:
            self.restored += 1

    def fenced(self, now: float) -> None:
        """Record that a fence was answered at `now`."""
        self.fenced_at = now

    def link_down(self, error: str) -> None:
        """Record the loss of the link, and its reason."""
        self.lost += 1
        self.last_error = bounded(error)
        self.enter(RECONNECTING)

    def add_counts(self, other: ConnectionState) -> None:
        """Add the counts of the connection that had this name before."""
        for name in LINK_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def unready(self, now: float) -> str | None:
        """Return why this connection would not carry a message now, or None; `now` is on the clock of its fences."""
        if self.state != CONNECTED:
            return f"{self.state}: {self.last_error}" if self.last_error else self.state
        if self.fenced_at is None or now - self.fenced_at > self.fence_bound:
            return f"the server has answered no fence for more than {self.fence_bound:g} s"
        return None
