"""When and where to try to connect: exponential backoff with full jitter, over several servers.

Pure: the source of randomness and the time are passed in. The first retry after a stable link follows within 100 ms, as
does the first attempt at every other server. After each pass through all servers the upper bound of the delay doubles.
A link that did not last long does not reset this, so a flapping server is not hammered.

The bound soon exceeds the outage: a server that was away for ten seconds might be tried again after thirty. So no delay
is longer than half of the time without a link. The attempts that this makes early are not attempts of the round: those
are made when the backoff alone would make them, so that a round lasts as long as it says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

FIRST_RETRY_WITHIN = 0.1
"""Seconds."""

SHORTEST_LIMIT = 1.0
"""Seconds. Delays up to this, or up to a longer base, are not cut, however short the time without a link is."""

LAST_DOUBLING = 32
"""Number of doublings after which the bound is far above any maximum. More would overflow in a long outage."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to connect: `number` in its round from 1, after `delay` seconds, to `server`."""

    number: int
    delay: float
    server: str


def full_jitter(step: int, base: float, maximum: float, uniform: Callable[[float, float], float]) -> float:
    """Return a random delay after `step` failed passes through the servers, uniform below a bound that doubles."""
    if step <= 0:
        return uniform(0, min(FIRST_RETRY_WITHIN, maximum))
    return uniform(0, min(maximum, base * 2.0 ** min(step - 1, LAST_DOUBLING)))


class ReconnectPlan:
    """Decide which of the configured and discovered servers one connection tries next, and when."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        attempts: int,
        base: float,
        maximum: float,
        stable_after: float,
        tls: bool = False,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """With `tls`, announced servers are connected to with TLS, as they are if any configured server is.

        By WebSocket a server announces the addresses of WebSocket listeners.
        """
        assert servers, "a connection has a server"
        self._configured = list(servers)
        schemes = {server.partition("://")[0] for server in servers if "://" in server}
        if schemes & {"ws", "wss"}:
            self._scheme = "wss://" if tls or "wss" in schemes else "ws://"
        else:
            self._scheme = "tls://" if tls or "tls" in schemes else "nats://"
        self._servers = list(servers)
        self.attempts_of_round = attempts
        self._base = base
        self._maximum = maximum
        self._stable_after = stable_after
        self._uniform = uniform
        self._next_server = 0
        self._steps = 0
        self._number = 0
        self._made = 0
        self._first = True
        self._away_since = 0.0
        self._flapped = False
        self._rest = 0.0

    @property
    def servers(self) -> tuple[str, ...]:
        """All known servers, in the order in which they are tried."""
        return tuple(self._servers)

    @property
    def exhausted(self) -> bool:
        """Return True if the round's attempts are used up."""
        return self._number >= self.attempts_of_round

    @property
    def made(self) -> int:
        """The number of attempts since the round began, with the early ones."""
        return self._made

    def set_discovered(self, servers: Sequence[str]) -> None:
        """Add the servers announced by a server, as `host:port`, to the configured ones.

        They replace those announced before. Otherwise a cluster with changing members would leave a growing list of
        addresses that are no longer in use.
        """
        upcoming = self._servers[self._next_server % len(self._servers)]
        known = {_bare(server).partition("/")[0] for server in self._configured}
        announced = dict.fromkeys(self._scheme + server for server in servers if _bare(server) not in known)
        self._servers = [*self._configured, *announced]
        if upcoming in self._servers:
            self._next_server = self._servers.index(upcoming)

    def new_round(self) -> None:
        """Start a new round after an exhausted one. Its attempts have the longest delay."""
        self._number = self._made = 0
        self._steps = max(self._steps, (LAST_DOUBLING + 1) * len(self._servers))

    def next(self, now: float) -> Attempt:
        """Return the next attempt. The very first has no delay. An early one has the number of the attempt after it."""
        delay = 0.0
        if self._first:
            self._first, self._away_since = False, now
        else:
            if not self._rest:
                self._rest = full_jitter(self._steps // len(self._servers), self._base, self._maximum, self._uniform)
                self._steps += 1
            limit = self._limit(now)
            delay = self._rest if self._rest <= limit else self._uniform(0, limit)
            self._rest -= delay
        self._flapped = False
        self._made += 1
        number = self._number + 1
        if not self._rest:
            self._number = number
        server = self._servers[self._next_server % len(self._servers)]
        self._next_server += 1
        return Attempt(number, delay, server)

    def _limit(self, now: float) -> float:
        """Return the limit of a delay that begins now: half of the time without a link, shared by all servers.

        A server that drops its links at once is not away, so the delay after that has no limit but its bound.
        """
        if self._flapped:
            return self._maximum
        return max(SHORTEST_LIMIT, self._base, (now - self._away_since) / 2 / len(self._servers))

    def connected(self, server: str) -> None:
        """End the round after a successful attempt. After the next loss this server is tried first."""
        self._number = self._made = 0
        self._rest = 0.0
        if server in self._servers:
            self._next_server = self._servers.index(server)

    def lost(self, lasted: float, now: float) -> None:
        """Reset the backoff after the loss of a link, if the link was stable: it lasted for `lasted` seconds."""
        self._away_since = now
        self._flapped = lasted < self._stable_after
        if not self._flapped:
            self._steps = 0

    def elsewhere(self, server: str, failed_passes: int = 0) -> Iterator[Attempt]:
        """Yield an attempt for each server but `server`, to leave a link that still works.

        `failed_passes` counts the passes through these servers that failed for this link. There is no delay
        in the first pass until a server has been tried twice since the last stable link. From then on the delays are
        those of all other attempts, or servers that all want to be left would be hammered.
        """
        others = [other for other in self._servers if _bare(other) != _bare(server)]
        for number, other in enumerate(others, 1):
            step = max(self._steps // len(self._servers), failed_passes)
            delay = full_jitter(step, self._base, self._maximum, self._uniform) if step else 0.0
            self._steps += 1
            yield Attempt(number, delay, other)


def _bare(server: str) -> str:
    """Return `host:port`, with the path of a WebSocket server."""
    return server.rpartition("://")[2].rpartition("@")[2]
