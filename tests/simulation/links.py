"""Checks of the links of a router: how soon a silent one is given up, and how often it connects."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from router_trio import Live
from router_trio.states import CONNECTED
from router_trio.testing import FakeBroker
from tests.simulation.schedule import Schedule

MOST_ATTEMPTS = 30
"""Attempts per second of one process to connect to one broker, over all connections to it."""


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

    def check(self, live: Live) -> None:
        """Check at any moment."""
        self._check_attempts()
        self._check_fences(live)

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
