"""Permissions of a router that are revoked for a while, and which acks and naks then count as succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TYPE_CHECKING

from router_trio import Live
from tests.simulation.faults import FAULTS, OF_PERMISSIONS
from tests.simulation.schedule import Plan, Schedule, Step

if TYPE_CHECKING:
    from tests.simulation.process import Process

SHARE = 0.2
"""Share of the seeds in which permissions are revoked, if a route reads from a stream."""

UNCOUNTED = frozenset({"crash", "restart", "second process", "reload"})
"""Kinds under which the counts of one process do not cover all that a broker was sent."""


def taken_away(
    brokers: Sequence[str],
    routes: Sequence[Plan],
    random: Random,
    when: Callable[[Random], float],
    forgers: Collection[str],
) -> list[Step]:
    """Return the steps that revoke permissions and restore them.

    Without lookups of streams every PubAck is believed, so a broker with a forger keeps some requests allowed.
    """
    steps: list[Step] = []
    if random.random() >= SHARE:
        return steps
    for kind in random.sample(OF_PERMISSIONS, random.choice((1, 1, 2, 3))):
        for _ in range(random.choice((1, 1, 2, 4))):
            drawn = FAULTS[kind].draw(random, brokers, routes)
            if drawn is not None and not (drawn.what["what"] == "$JS.API.>" and drawn.what["broker"] in forgers):
                steps.append(Step(when(random), kind, drawn.seconds, drawn.what))
    return steps


class Answered:
    """Acks and naks that brokers received and did not refuse, against those that a process counts as succeeded.

    Data under way when a link is lost counts as sent, so a broker that lost a link is left out.
    """

    def __init__(self, schedule: Schedule, broken: Callable[[str, str], None]) -> None:
        self._counted = not UNCOUNTED & set(schedule.faults)
        self._brokers = list(schedule.brokers)
        self._broken = broken
        self._arrived: Counter[tuple[str, str]] = Counter()

    def arrived(self, broker: str, kind: str) -> None:
        """Record an ack or nak that a broker received and does not refuse."""
        self._arrived[broker, kind] += 1

    def check(self, live: Live) -> None:
        """Check at any moment that no refused one counts."""
        for broker, kind, succeeded in self._each(live):
            if succeeded > self._arrived[broker, kind]:
                self._tell(broker, kind, succeeded)

    def check_end(self, process: Process) -> None:
        """Check at the end that all other acks count. A nak may be sent a second time, which counts once."""
        assert process.live is not None
        for broker, kind, succeeded in self._each(process.live):
            if kind == "ack" and succeeded != self._arrived[broker, kind]:
                self._tell(broker, kind, succeeded)

    def _tell(self, broker: str, kind: str, succeeded: int) -> None:
        detail = f"{succeeded} {kind}s to {broker} count as succeeded, which took {self._arrived[broker, kind]}"
        self._broken("answers", detail)

    def _each(self, live: Live) -> list[tuple[str, str, int]]:
        if not self._counted:
            return []
        found = []
        for broker in self._brokers:
            there = [one for name, one in live.connections.items() if name.rstrip("0123456789") == broker]
            if not any(one.state.lost for one in there):
                for kind in ("ack", "nak"):
                    found.append((broker, kind, sum(one.outbox.counters.succeeded[kind] for one in there)))
        return found
