"""Limits and breakers of drawn routes, and the checks of both.

A limit allows at most burst + rate x t messages in any time t, counted on arrival, which is later at a more distant
destination. It starts over with each process, and with each reload that changes its route. A fault may delay messages
on their way and move some of them together; then the time since the beginning counts. Breakers: while a destination
accepts nothing, no more messages are returned to their stream than it takes to open the breakers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from random import Random

from router_trio import Live
from tests.simulation.configuration import starts_over
from tests.simulation.schedule import Plan, Schedule

OF_PROCESSES = frozenset({"crash", "restart", "second process"})
"""Kinds that give each limit another burst, as a reload does if it changes the route or its connections."""

OF_DESTINATIONS = frozenset({"publish denied", "full stream", "sink missing", "no pubacks", "election"})
"""Faults that only destinations have."""

ON_THE_WAY = 0.01
"""Seconds between arrivals at equally distant places of messages sent at one time, without faults."""

ROOM = 2
"""Extra messages that may be returned to their stream so that others can be delivered."""


def flowing(plan: Plan, random: Random) -> Plan:
    """Return the route with a limit, breakers, or both, where it can have them."""
    limit = None
    # A route with a handler is added by a decorator, which has no limit.
    if plan.handler is None and random.random() < 0.6:
        limit = {"rate": random.choice(("20/s", "50/s", "1800/m")), "burst": random.choice((1, 5, 20))}
        if random.random() < 0.4:
            limit["per"] = "tokens[size(tokens) - 1]"
    breaker = {"failures": random.choice((1, 2, 5)), "pause": random.choice((0.5, 1.0, 3.0))}
    targets = tuple(
        replace(one, breaker=breaker) if one.jetstream and one.mirror is None and random.random() < 0.7 else one
        for one in plan.targets
    )
    return replace(plan, limit=limit, targets=targets)


class Pace:
    """Times of the first arrival of messages of routes with limits."""

    def __init__(self, schedule: Schedule, broken: Callable[[str, str], None]) -> None:
        self._limits = {plan.name: plan.limit for plan in schedule.routes if plan.limit is not None}
        self._steady = not schedule.faults
        far = {plan.name: [schedule.latency[one.broker[0]] for one in plan.targets] for plan in schedule.routes}
        self._apart = {name: ON_THE_WAY + max(seconds) - min(seconds) for name, seconds in far.items()}
        kinds = [step.kind for step in schedule.steps]
        processes = [step.at for step in schedule.steps if step.kind in OF_PROCESSES]
        self._started_over_at = {
            plan.name: [*processes, *starts_over(schedule, index)] for index, plan in enumerate(schedule.routes)
        }
        self._at_once = 1 + ("second process" in kinds)
        self._broken = broken
        self._seen: set[tuple[str, int]] = set()
        self._times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def arrived(self, route: str, number: int, key: str, now: float) -> None:
        """Record that a copy of a message arrived at some destination."""
        limit = self._limits.get(route)
        if limit is None or (route, number) in self._seen:
            return
        self._seen.add((route, number))
        times = self._times[route, key if "per" in limit else ""]
        times.append(now)
        count, _, unit = limit["rate"].partition("/")
        rate, burst = int(count) / {"s": 1, "m": 60}[unit], limit["burst"]
        bursts = burst * (1 + sum(at <= now for at in self._started_over_at[route]))
        if len(times) > bursts + rate * self._at_once * (now + ON_THE_WAY):
            self._broken("limit", f"{len(times)} messages of {route} in the first {now:.3f} s")
        if self._steady:
            for earlier, since in enumerate(times):
                if len(times) - earlier > burst + rate * (now - since + self._apart[route]):
                    detail = f"{len(times) - earlier} messages of {route} in {now - since:.3f} s, with {limit}"
                    self._broken("limit", detail)
                    return


class Returned:
    """Messages returned to their stream while the destinations of their route accept none."""

    def __init__(self, schedule: Schedule, broken: Callable[[str, str], None]) -> None:
        self._broken = broken
        self._most: dict[str, int] = {}
        if set(schedule.faults) <= OF_DESTINATIONS:
            for plan in schedule.routes:
                breakers = [one.breaker for one in plan.targets if one.mirror is None]
                if plan.stream and plan.handler is None and all(breakers):
                    self._most[plan.name] = sum(one["failures"] for one in breakers if one is not None) + ROOM
        self._since: dict[str, tuple[int, int]] = {}

    def check(self, live: Live) -> None:
        """Check at any moment."""
        for route in live.routes:
            if route.name in self._most:
                taken, returned = sum(route.routed.values()), route.settled["returned"]
                before = self._since.get(route.name)
                if before is None or before[0] != taken:
                    self._since[route.name] = taken, returned
                elif returned - before[1] > self._most[route.name]:
                    detail = (
                        f"{returned - before[1]} messages of {route.name} went back, and its destinations took none"
                    )
                    self._broken("breaker", detail)
