"""Checks of the links of a router: how soon a silent one is given up, how often it connects, and how soon again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple

import trio

from router_trio import Live
from router_trio.events import ConnectionEstablished, ConnectionFailed, ConnectionLost, ConnectionRestored, Event
from router_trio.states import CONNECTED
from router_trio.testing import FakeBroker
from tests.simulation.schedule import Schedule

NEVER_CUT = 1.0
"""Seconds up to which a delay before an attempt to connect may be longer than half of the outage."""

CONNECTS_WITHIN = 0.5
"""Seconds that a successful attempt takes, at the most."""

MOST_ATTEMPTS = 30
"""Attempts per second of one process to connect to one broker, over all connections to it."""


class _Away(NamedTuple):
    """An outage: when the link was lost, and how long it had lasted."""

    since: float
    lasted: float


class Links:
    """The links to all brokers. Reports a broken promise, and what happened, to `broken`."""

    def __init__(
        self, schedule: Schedule, brokers: Mapping[str, FakeBroker], broken: Callable[[str, str], None]
    ) -> None:
        # A link that is being left gets no more fences once its successor is up.
        self._leaving_takes = 2.0 * ("only lame ducks" in schedule.faults or "lame duck" in schedule.faults)
        self._most_attempts = MOST_ATTEMPTS * (2 if "second process" in schedule.faults else 1)
        self._brokers = brokers
        self._broken = broken
        self._attempts = dict.fromkeys(brokers, (0, 0.0))
        self._reloads = [step.at for step in schedule.steps if step.kind == "reload"]
        self._connections = len(schedule.connections)
        self._reload_takes = schedule.shutdown_timeout + 1.0
        self._away: dict[tuple[int, str], _Away] = {}
        self._up_since: dict[tuple[int, str], float] = {}
        self._healed_at = inf

    def observe(self, process: int, event: Event) -> None:
        """Record when a connection of a process was established and lost."""
        if isinstance(event, ConnectionEstablished | ConnectionRestored):
            self._up_since[process, event.connection] = event.at
            self._away.pop((process, event.connection), None)
        elif isinstance(event, ConnectionLost):
            lasted = event.at - self._up_since[process, event.connection]
            self._away[process, event.connection] = _Away(event.at, lasted)
        elif isinstance(event, ConnectionFailed) and (process, event.connection) not in self._up_since:
            self._away.setdefault((process, event.connection), _Away(event.at, inf))

    def healed(self) -> None:
        """Record that every server accepts connections from now on."""
        self._healed_at = trio.current_time()

    def check(self, process: int, live: Live) -> None:
        """Check at any moment."""
        self._check_attempts()
        self._check_fences(live)
        self._check_outages(process, live)

    def _check_outages(self, process: int, live: Live) -> None:
        """Check that a connection is not away for much longer than its server.

        An attempt that began before may still fail. The delay after it is at most half of the time away. After a link
        that did not last, only `max_reconnect_delay` limits it.
        """
        now = trio.current_time()
        for name, connection in live.connections.items():
            away, settings = self._away.get((process, name)), connection.settings
            if connection.connected or away is None:
                continue
            failed_by = max(self._healed_at, away.since) + settings.connect_timeout
            delay = settings.max_reconnect_delay
            if away.lasted >= settings.liveness_interval:
                delay = min(delay, max(NEVER_CUT, settings.reconnect_delay, (failed_by - away.since) / 2))
            if now > failed_by + delay + CONNECTS_WITHIN:
                self._broken("away", f"{name} is not connected {now - self._healed_at:.1f} s after the last fault")

    def _check_fences(self, live: Live) -> None:
        """Check that a link whose peer is silent is given up within two intervals."""
        for name, connection in live.connections.items():
            state, bound = connection.state, 2 * connection.settings.liveness_interval + self._leaving_takes
            silent = trio.current_time() - (state.fenced_at or 0.0)
            if state.state == CONNECTED and silent > bound:
                self._broken("half open", f"{name} counts as connected, and answered no fence for {silent:.1f} s")

    def _check_attempts(self) -> None:
        """Check that no broker is stormed, whatever it answers. Each reload may connect each connection once."""
        now = trio.current_time()
        reloads = sum(now - self._reload_takes <= at <= now for at in self._reloads)
        asked_for = reloads * self._connections
        for name, broker in self._brokers.items():
            before, since = self._attempts[name]
            if now - since >= 1.0:
                if broker.connect_attempts - before > self._most_attempts * (now - since) + asked_for:
                    detail = f"{broker.connect_attempts - before} connections to {name} in {now - since:.1f} s"
                    self._broken("storm", detail)
                self._attempts[name] = broker.connect_attempts, now
