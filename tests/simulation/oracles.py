"""The promises, checked at every step: each event, each message, each second, and the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING

import trio

from router_trio import Live
from router_trio.client.receipt import Receipt
from router_trio.events import (
    DeadLetterNotStored,
    Event,
    MessageDeadLettered,
    MessageGivenUp,
    RouteReady,
    RouterReloaded,
    StreamWentBack,
)
from router_trio.message import Fate
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from router_trio.states import RUNNING
from router_trio.telemetry.metrics.metric import HistogramMetric, Metric, Sources
from router_trio.telemetry.metrics.table import TABLE
from router_trio.testing import FakeBroker
from router_trio.testing.streams import Stored
from router_trio.testing.watch import Watch
from tests.simulation import claims, readyz, sums
from tests.simulation.arrivals import Arrivals
from tests.simulation.broker_watch import BrokerWatch
from tests.simulation.content import Sent, places
from tests.simulation.failing import owes_dead_letter, retried_for
from tests.simulation.faults import CRAWLS, GOES_BACK, UNTOLD
from tests.simulation.flow import Returned
from tests.simulation.given_up import GivenUp
from tests.simulation.handlers import FAILS_EACH_TIME, FILTERED, RAISED, Handled, number_of
from tests.simulation.held_back import HeldBack
from tests.simulation.links import Links
from tests.simulation.permissions import Answered
from tests.simulation.schedule import Plan, Schedule
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from tests.simulation.process import Process

MOST_TOLD = 5
"""Number of broken promises reported for one run: the first one is what matters."""

TOLD_WITHIN = 10.0
"""Seconds from when a route passes nothing until `/readyz` reports it."""

SEEN_WITHIN = 0.1
"""Seconds within which a route that gets messages notices that its stream was rolled back, on a network without added
delay.
"""

COUNTERS = [row for row in TABLE if isinstance(row, Metric) and row.kind == "counter"]
HISTOGRAMS = [row for row in TABLE if isinstance(row, HistogramMetric)]


def _counters(sources: Sources) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield all values that must not decrease, by name and labels: counters, and of histograms each bucket and the
    sum.
    """
    for row in COUNTERS:
        for labels, number in row.read(sources):
            yield (row.name, *labels), number
    for each in HISTOGRAMS:
        for labels, histogram in each.read(sources):
            yield (f"{each.name}_sum", *labels), histogram.total
            for place, count in enumerate(histogram.counts):
                yield (f"{each.name}_bucket", *labels, str(place)), count


class Oracles:
    """Observes everything and reports what is `wrong`, as (promise, what happened)."""

    def __init__(self, schedule: Schedule, brokers: dict[str, FakeBroker], handled: Handled, trace: Trace) -> None:
        self.wrong: list[tuple[str, str]] = []
        self.fails_for_what_it_is: set[int] = set()
        self.codes: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self._schedule = schedule
        self._is_told = not (UNTOLD | CRAWLS) & set(schedule.faults)
        self._brokers = brokers
        self._handled = handled
        self._trace = trace
        self.published_at: dict[int, float] = {}
        self.sent: dict[int, Sent] = {}
        self._of_given_up = GivenUp(schedule)
        self._arrivals = Arrivals(
            schedule,
            handled,
            self.published_at,
            self.sent,
            self._of_given_up,
            lambda broker: "OUT" not in brokers[broker]._server.streams,
            lambda broker: brokers[broker].connect_attempts,
            self.broken,
            trace,
        )
        self.held_back = HeldBack(schedule, self.published_at, self.sent, self.fails_for_what_it_is)
        self._answered = Answered(schedule, self.broken)
        self._returned = Returned(schedule, self.broken)
        self._given_up: set[tuple[str, int]] = set()
        self._worlds: dict[int, claims.World] = {}
        self._receipts: list[tuple[Process, str, int, bool, Receipt]] = []
        self._counted: dict[tuple[str, ...], float] = {}
        self._counted_of: Live | None = None
        self.sizes: dict[int, int] = {}
        self._ready_since: float | None = None
        self._reloaded_at: dict[str, float] = {}
        self._lost = 0
        self.links = Links(schedule, brokers, self.broken)
        self._moved: dict[str, tuple[tuple[int, int], float]] = {}
        self._narrowed = {step.what["durable"] for step in schedule.steps if step.kind == "durable narrowed"}

    def broken(self, promise: str, detail: str) -> None:
        """Record a broken promise."""
        if len(self.wrong) < MOST_TOLD:
            self.wrong.append((promise, f"at {trio.current_time():.3f} s: {detail}"))
        self._trace.add(f"BROKEN {promise}: {detail}")

    def watch_of(self, broker: str) -> Watch:
        """Return the observer of one broker."""
        return BrokerWatch(self._arrivals, self.acked, self.termed, self._answered.arrived, broker)

    # --- at each event ---

    def observe(self, process: Process, event: Event) -> None:
        """Check an event: the ledgers add up at that moment, and nothing exceeds its bound."""
        self.codes[event.code] += 1
        self.held_back.reported(process.number, event)
        self.links.observe(process.number, event)
        self._broken("claim", claims.wrong(event, self._world_of(process)))
        if isinstance(event, MessageGivenUp | MessageDeadLettered | DeadLetterNotStored):
            if event.sequence is not None:
                self._event_of_one(process, event, event.sequence)
        elif isinstance(event, StreamWentBack):
            self._arrivals.rolled_back(event.route, trio.current_time())
        elif isinstance(event, RouteReady):
            self._arrivals.route_ready(event.route, self._unacked(event.route), event.at)
        elif isinstance(event, RouterReloaded):
            changed = {*event.added, *event.changed}
            names = [plan.name for plan in self._schedule.routes if f"route {plan.name}" in changed]
            self._reloaded_at.update(dict.fromkeys(names, event.at))
        self._check_ledgers(process, f"at {event.code}")

    def _event_of_one(
        self, process: Process, event: MessageGivenUp | MessageDeadLettered | DeadLetterNotStored, sequence: int
    ) -> None:
        """Record an event about the stream message with this sequence."""
        plan = next(plan for plan in self._schedule.routes if plan.name == event.route)
        if isinstance(event, MessageGivenUp):
            self._given_up.add((plan.name, sequence))
        number = self._number_in(plan, sequence)
        if number is not None:
            self._of_given_up.reported(process.number, event, number)

    def _world_of(self, process: Process) -> claims.World:
        """Return the books against which the claims of a process are held."""
        if process.number not in self._worlds:
            schedule = self._schedule
            self._worlds[process.number] = claims.World(
                lambda connection: self._brokers[connection[0]],
                {plan.name: (plan.broker, "IN", plan.name) for plan in schedule.routes if plan.stream},
                schedule.steps,
                {plan.name: plan for plan in schedule.routes},
                schedule.connections,
                process.ending.is_set,
                self._has_letter,
                self._rollbacks,
            )
        return self._worlds[process.number]

    def _has_letter(self, route: str, sequence: int | None) -> bool:
        """Return True if a dead letter of a message is stored: if it has no sequence, or the stream has lost it, of
        some message of its route.
        """
        plan = next(plan for plan in self._schedule.routes if plan.name == route)
        number = None if sequence is None else self._number_in(plan, sequence)
        return self._arrivals.has_dead(plan) if number is None else self._arrivals.is_dead(plan, number)

    def _rollbacks(self, broker: str) -> int:
        """Return how often the streams of a broker were rolled back so far."""
        now, steps = trio.current_time(), self._schedule.steps
        return sum(step.kind in GOES_BACK and step.what["broker"] == broker and step.at <= now for step in steps)

    def _unacked(self, route: str) -> list[int]:
        """Return the numbers of the messages that the durable of a route has delivered, and that are not acked."""
        plan = next(plan for plan in self._schedule.routes if plan.name == route)
        consumer = self._brokers[plan.broker]._server.consumers.get(("IN", route)) if plan.stream else None
        sequences = [] if consumer is None else consumer.left_unacked()
        numbers = [self._number_in(plan, sequence) for sequence in sequences]
        return [number for number in numbers if number is not None]

    def _check_ledgers(self, process: Process, when: str) -> None:
        """Check the sums that hold at each event as well."""
        if process.live is not None:
            self._broken("ledger", (f"{when}: {detail}" for detail in sums.ledgers(process.live)))
            self._broken("bound", sums.bounds(process.live))

    def _broken(self, promise: str, found: Iterable[str]) -> None:
        for detail in found:
            self.broken(promise, detail)

    # --- at each step and each second ---

    def check(self, process: Process | None) -> None:
        """Check at any moment: a scrape adds up too, and no counter decreases."""
        if process is None or process.live is None:
            self._ready_since = None
            return
        self._check_ledgers(process, "between events")
        self._returned.check(process.live)
        self._answered.check(process.live)
        self._broken("route ledger", sums.route_ledgers(process.live))
        if process.live is not self._counted_of:
            self._returned = Returned(self._schedule, self.broken)
            self._counted_of = process.live
            self._counted.clear()
            self._ready_since = None
        sources = Sources(process.live)
        for series, number in _counters(sources):
            if number < self._counted.get(series, 0):
                self.broken("scrape", f"{series[0]}{series[1:]} went back to {number}")
            self._counted[series] = number
        self.links.check(process.number, process.live)
        if self._is_told:
            self._check_readiness(process)
        self._trace.add(str(process.live.ledger()))

    def _check_readiness(self, process: Process) -> None:
        """Check that a router that has been ready for long has routed some of the messages received by then.

        A route reports at the second check of its consumer that nothing new is delivered. A new link, a new process and
        a reload that changes the route or one of its connections begin with a first check.
        """
        now = trio.current_time()
        assert process.live is not None
        lost = process.lost_links
        if lost != self._lost:
            self._lost, self._ready_since = lost, None  # what was known of the previous link is not known of this one
        if readyz.reasons(process.live):
            self._ready_since = None
            return
        since = self._ready_since = now if self._ready_since is None else self._ready_since
        for plan in self._schedule.routes:
            waiting = self._unaccounted(plan) if plan.stream else []
            failed = self._arrivals.failed(plan.name)
            if any(number in failed or self._handled.raised[plan.name, number] for number in waiting):
                continue  # it waits for its next attempt, and others wait behind it
            if readyz.is_held_up(process.live, plan.name):
                continue
            # A message whose copies were stored may wait long for a PubAck, or be worked on again, before later ones.
            done = len(self._source_of(plan)) - len(waiting), readyz.settled(process.live, plan.name)
            if plan.name not in self._moved or self._moved[plan.name][0] != done:
                self._moved[plan.name] = done, now
            since_then = max(since, self._moved[plan.name][1], self._reloaded_at.get(plan.name, -inf))
            for number in waiting:
                if now - max(since_then, self.published_at[number]) > TOLD_WITHIN:
                    self.broken("standstill", f"message {number} of {plan.name} waits, and /readyz says ok")
                    return

    def process_begins(self, process: Process) -> None:
        """Record the start of a process of the router."""
        for plan in self._schedule.routes:
            consumer = self._brokers[plan.broker]._server.consumers.get(("IN", plan.name))
            self._arrivals.process_begins(plan.name, consumer)
        self._of_given_up.process_begins(process.number, trio.current_time())
        self.held_back.process_begins(process.number, trio.current_time())

    # --- programs ---

    def published(self, process: Process, broker: str, number: int, with_ack: bool, receipt: Receipt) -> None:
        """Record that a program's publish was accepted."""
        self._receipts.append((process, broker, number, with_ack, receipt))

    def closed(self, process: Process) -> None:
        """Check a process that ended in good order: nothing is left without a fate."""
        assert process.live is not None
        for name, entry in process.live.ledger().items():
            if entry["pending"] or entry["in_flight"]:
                self.broken("shutdown", f"{name} after the end: {entry}")
            self.fates.update({fate: count for fate, count in entry["settled"].items() if count})
        self._broken("route ledger", sums.route_ledgers(process.live))
        for route in process.live.routes:
            if route.in_hand:
                self.broken("shutdown", f"{route.name} after the end: {route.in_hand} in hand")
        self._answered.check_end(process)
        self._check_receipts(process)

    def _check_receipts(self, process: Process) -> None:
        for owner, broker, number, with_ack, receipt in self._receipts:
            if owner is not process:
                continue
            fate: Fate | None = receipt.fate
            if fate is None:
                self.broken("receipt", f"publish {number} to {broker} has no fate after the end")
            elif with_ack and fate.name == "acked":
                self._arrivals.check_published(broker, number)

    # --- the end ---

    def missing(self, process: Process | None) -> list[str]:
        """Return what is neither delivered nor accounted for, or not in its proper state, though no fault is active."""
        if process is None or process.live is None:
            return ["no router is up"]
        live = process.live
        found = [f"{name} {one.state.state}" for name, one in live.connections.items() if not one.connected]
        full = self._full_without_end()
        found += [
            f"{one.name} {one.state}: {one.reason}"
            for one in live.routes
            if one.state != RUNNING and one.name not in full
        ]
        found += [f"{name} {entry}" for name, entry in live.ledger().items() if entry["pending"] or entry["in_flight"]]
        for plan in self._schedule.routes:
            if plan.stream:
                found += [f"message {number} of {plan.name}" for number in self._unaccounted(plan)]
        return found + self.unrouted(process)

    def unrouted(self, process: Process) -> list[str]:
        """Return which routes have messages of subjects in hand that others wait behind, or that are not retried.

        Such a message is settled after some seconds, by a handler that takes long or a limit. A shutdown does not wait
        for that beyond its timeout, and no stream has the message.
        """
        assert process.live is not None
        in_hand = {route.name: route.in_hand for route in process.live.routes}
        return [
            f"{plan.name} has {in_hand[plan.name]} in hand"
            for plan in self._schedule.routes
            if not plan.stream and (plan.one_of_a_key or not plan.retry)
            if in_hand[plan.name] > len(self.held_back.held(process.number, plan))
        ]

    def _unaccounted(self, plan: Plan) -> list[int]:
        missing = []
        stuck, full = self._stuck(plan)
        if full:
            return []
        for message in self._taken_by(plan):
            number = number_of(message.publish.payload)
            if number in stuck:
                continue
            given_up = (plan.name, message.sequence) in self._given_up or self._arrivals.is_dead(plan, number)
            if not given_up and (self._owes(plan, number) or not self.arrived_everywhere(plan, number)):
                missing.append(number)
        return missing

    def _full_without_end(self) -> set[str]:
        """Return the routes that request nothing any more: their limit of messages in hand is used up forever."""
        return {plan.name for plan in self._schedule.routes if plan.stream and self._stuck(plan)[1]}

    def waits_without_end(self, process: Process, plan: Plan, number: int) -> bool:
        """Return True if a message waits for one that is neither delivered nor given up."""
        if not plan.stream:
            return self.held_back.waits(process.number, plan, number)
        stuck, full = self._stuck(plan)
        return full or number in stuck

    def _stuck(self, plan: Plan) -> tuple[set[int], bool]:
        """Return the messages that wait forever because a dead letter is larger than its server accepts.

        All messages wait where a durable was narrowed, as long as `/readyz` reports that nothing new is delivered for
        that.
        """
        if plan.name in self._narrowed and self._counted_of is not None and readyz.is_full(self._counted_of, plan.name):
            return set(), True
        failed = self._arrivals.failed(plan.name)
        unanswered = "no pubacks" in self._schedule.faults
        messages = ((number_of(one.publish.payload), one.subject.rpartition(".")[2]) for one in self._taken_by(plan))
        return self._of_given_up.stuck(plan, messages, lambda number: unanswered or number in failed)

    def _owes(self, plan: Plan, number: int) -> bool:
        outcome = self._handled.last.get((plan.name, number))
        fits = number not in self.fails_for_what_it_is  # otherwise its dead letter fails for that reason, too
        return fits and owes_dead_letter(plan, outcome, self._schedule.max_payload)

    def _taken_by(self, plan: Plan) -> Iterator[Stored]:
        for message in self._source_of(plan):
            if plan.filter in ("*", message.subject.rpartition(".")[2]):
                yield message

    def _source_of(self, plan: Plan) -> list[Stored]:
        # `FakeBroker.messages` would read the headers of each message: this runs at each ack.
        return self._brokers[plan.broker]._server.streams["IN"].stored

    def arrived_everywhere(self, plan: Plan, number: int) -> bool:
        """Return True if a message is where the route and its handler send it, or is accounted for as a failure of its
        own.
        """
        if self._fails_without_end(plan, number):
            return True
        if number in self.sent and not places(plan, number, self.sent[number]):
            return True
        outcome = self._handled.last.get((plan.name, number))
        if outcome == FILTERED or (outcome == RAISED and (plan.handler in FAILS_EACH_TIME or not plan.stream)):
            return True
        return self._arrivals.complete(plan, number)

    def _fails_without_end(self, plan: Plan, number: int) -> bool:
        """Return True if a destination never accepts a message: its subject is too long, or its payload too large."""
        limits = [self._schedule.max_payload[target.broker[0]] for target in plan.targets]
        return number in self.fails_for_what_it_is or self.sizes.get(number, 0) > min(limits)

    @property
    def is_backed_off(self) -> bool:
        """Return True if some message has failed so often that its next attempt may be late: many retries are spread
        out.
        """
        return self._arrivals.is_backed_off or any(times > 1 for times in self._handled.raised.values())

    @property
    def retried_for(self) -> float:
        """The seconds that some route needs to retry the messages of its stream that are still to fail."""
        plans = (plan for plan in self._schedule.routes if plan.stream)
        return max((self._retried_for(plan) for plan in plans), default=0.0)

    def _retried_for(self, plan: Plan) -> float:
        numbers = [number_of(message.publish.payload) for message in self._taken_by(plan)]
        without_end = sum(
            self._fails_without_end(plan, number) and not self._arrivals.is_dead(plan, number) for number in numbers
        )
        return retried_for(plan, self._unaccounted(plan), without_end)

    def unready(self, process: Process, of: str | None = None, *, but_breakers: bool = False) -> str | None:
        """Return the problem that `/readyz` reports, of one route or anywhere, or None."""
        assert process.live is not None
        return readyz.unready(process.live, self._full_without_end(), of, but_breakers=but_breakers)

    def check_end(self, processes: int) -> None:
        """Check what can only be seen at the end."""
        self._arrivals.check_end()

    def acked(self, durable: str, sequence: int) -> None:
        """Check an ack at the source: every destination must have been settled before."""
        plan, number = self._done_with(durable, sequence)
        if plan is None or (plan.name, sequence) in self._given_up or number is None:
            return
        if not self.arrived_everywhere(plan, number) and not self._arrivals.is_dead(plan, number):
            if self._meets_another(plan):
                self._given_up.add((plan.name, sequence))
                return
            self.broken("source ack", f"message {number} of {plan.name} was acked and is not where it belongs")

    def termed(self, durable: str, sequence: int) -> None:
        """Check a termination at the source: it must have been reported, or the dead letter stored."""
        plan, number = self._done_with(durable, sequence)
        if plan is None or (plan.name, sequence) in self._given_up or number is None:
            return
        if not self._meets_another(plan) and not self._arrivals.is_dead(plan, number):
            self.broken("terminated", f"message {number} of {plan.name}, and its dead letter is not stored")

    def _done_with(self, durable: str, sequence: int) -> tuple[Plan | None, int | None]:
        """Record that a consumer has finished with a message. Return its route, and its number if the stream still has
        it.
        """
        plan = next((plan for plan in self._schedule.routes if plan.name == durable), None)
        number = None if plan is None else self._number_in(plan, sequence)
        if plan is not None and number is not None:
            self._of_given_up.done(plan.name, number)
        return plan, number

    def _number_in(self, plan: Plan, sequence: int) -> int | None:
        held = self._source_of(plan)
        return number_of(held[sequence - 1].publish.payload) if sequence <= len(held) else None

    def _meets_another(self, plan: Plan) -> bool:
        """Return True if an ack received now may belong to the message that had this sequence before the stream was
        rolled back.

        JetStream knows no more of a message than its sequence, so nothing can be done until the route notices. If
        another process receives the messages, only the next check of the consumer shows it.
        """
        now, seen = trio.current_time(), self._arrivals.went_back_at[plan.name]
        faults = self._schedule.faults
        under_way = 2 * self._schedule.latency[plan.broker] + SEEN_WITHIN
        under_way += 1.2 * ("slow network" in faults) + 6.0 * ("ack late" in faults)
        under_way += CHECK_EVERY * ("second process" in faults)
        return any(
            step.kind in GOES_BACK and step.at <= now <= (seen if seen >= step.at else step.at) + under_way
            for step in self._schedule.steps
            if step.what.get("broker") == plan.broker
        )
