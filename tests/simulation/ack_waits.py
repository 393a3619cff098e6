"""Messages that a route can't request again because its naks are refused.

A durable that is opened may have unacked messages of a lost link or an earlier process. The route has them redelivered
in the order of the stream by naks. If these are refused, the server redelivers the messages as their ack waits end. A
message that was redelivered to a dead link more often than a later one is then behind it. New messages are behind all.

If acks of the earlier process arrive late, the route takes them for those of another one, and requests nothing again:
then new messages pass what was unacked as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from router_trio.subjects.patterns import matches
from tests.simulation.schedule import Schedule


class AckWaits:
    """Messages by their numbers, in one set for each time when a route had its durable and its naks were refused."""

    def __init__(self, schedule: Schedule) -> None:
        self._plans = {plan.name: plan for plan in schedule.routes}
        self._refused = [step for step in schedule.steps if step.kind == "acks refused"]
        slow = 1.2 * ("slow network" in schedule.faults)
        self._answered_within = {broker: latency + slow for broker, latency in schedule.latency.items()}
        self._late = [(step.at, step.what["broker"]) for step in schedule.steps if step.kind == "ack late"]
        self._redelivered: defaultdict[str, list[frozenset[int]]] = defaultdict(list)
        self._left: defaultdict[str, set[int]] = defaultdict(set)

    def route_ready(self, route: str, unacked: Collection[int], now: float) -> None:
        """Record that a route has its durable. `unacked` were delivered, and its process does not know them."""
        if unacked and self._naks_are_refused(route, now):
            self._redelivered[route].append(frozenset(unacked))
        if any(at <= now and broker == self._plans[route].broker for at, broker in self._late):
            self._left[route].update(unacked)

    def may_pass(self, route: str, later: int, earlier: int) -> bool:
        """Return True if the server may have redelivered the later one first."""
        if earlier in self._left[route]:
            return True
        return any(later in numbers and earlier in numbers for numbers in self._redelivered[route])

    def _naks_are_refused(self, route: str, now: float) -> bool:
        """Return True if the naks were refused whose answer a route has received by now."""
        broker, nak = self._plans[route].broker, f"$JS.ACK.IN.{route}.1.1.1.1.0"
        return any(
            step.at <= now <= step.at + step.seconds + self._answered_within[broker]
            and matches(step.what["what"].format(durable=step.what["durable"]), nak)
            for step in self._refused
            if step.what["broker"] == broker
        )
