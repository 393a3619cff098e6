"""Checks of arrivals at destinations: each copy is stored once, in order, and where it belongs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from math import inf

from router_trio.errors.reasons import NO_RESPONDERS
from router_trio.protocol.framing import text
from router_trio.protocol.headers import decode
from router_trio.testing.consumers import Consumer
from router_trio.testing.frames import Publish
from router_trio.testing.streams import Stored, Stream
from tests.simulation.ack_waits import AckWaits
from tests.simulation.content import CHANGED, Sent, places
from tests.simulation.faults import GOES_BACK, WITHOUT_ORDER
from tests.simulation.flow import Pace
from tests.simulation.forger import FORGED
from tests.simulation.given_up import GivenUp
from tests.simulation.handlers import SEVERAL, Handled, number_of, part_of
from tests.simulation.schedule import Plan, Schedule
from tests.simulation.trace import Trace

Copy = tuple[str, int, int, int]
"""Route, index of the destination, number of the message, part of the message."""

Line = tuple[str, int, int, str]
"""Route, index of the destination, part, key: the unit within which order is kept."""


DEAD_LETTERS_KNOWN_FOR = 120.0
"""Duplicate window, in seconds, of the stream of dead letters."""

IN_VAIN_FOR = 8.0
"""Seconds in which a copy is published though its stream is missing: until a lookup shows that, every 5 s."""

BACKED_OFF_AFTER = 5
"""Number of attempts after which the next one may take up to a minute, and the turn of a message as long."""


class Arrivals:
    """Copies by route and destination. Subjects distinguish the destinations: `out.ROUTE.dINDEX.KEY`."""

    def __init__(
        self,
        schedule: Schedule,
        handled: Handled,
        published_at: Mapping[int, float],
        sent: Mapping[int, Sent],
        given_up: GivenUp,
        is_missing: Callable[[str], bool],
        connected: Callable[[str], int],
        broken: Callable[[str, str], None],
        trace: Trace,
    ) -> None:
        """Check a schedule; `published_at` and `sent` hold, by number, when each message of strangers was published,
        and its content. `is_missing` returns True if a broker has no stream for copies, `connected` how often it was
        connected to.
        """
        self._plans = {plan.name: plan for plan in schedule.routes}
        self._in_order = not WITHOUT_ORDER & {step.kind for step in schedule.steps}
        self._faults = set(schedule.faults)
        self._forgets = {"crash", "restart", "second process", "message lost", *GOES_BACK}
        self._has_second = "second process" in schedule.faults
        self._keeps_sequences = not {"second process", *GOES_BACK} & set(schedule.faults)
        self._found: dict[str, tuple[Consumer, int]] = {}
        self._settled_to: dict[str, int] = {}
        self._sequences: dict[tuple[str, int], int] = {}
        self._window = schedule.windows["OUT"]
        # A copy may be sent again if its PubAck was lost, or the process that received it.
        self._is_shaky = bool(schedule.faults) and not set(schedule.faults) <= {"short window", "publish denied"}
        self._ack_waits = AckWaits(schedule)
        self._tried: defaultdict[str, set[int]] = defaultdict(set)
        self._pace = Pace(schedule, broken)
        self._handled = handled
        self._published_at = published_at
        self._sent = sent
        self._given_up = given_up
        self._is_missing = is_missing
        self._connected = connected
        self._in_vain_since: dict[tuple[Copy, int], float] = {}
        """By copy and link: what is missing is not known on a new one."""
        self._owner_of: dict[tuple[str, str], int] = {}
        self._place_of: dict[tuple[str, int, int], int] = {}
        self._broken = broken
        self._trace = trace
        self.went_back_at: defaultdict[str, float] = defaultdict(lambda: -inf)
        self._vanishes = [(step.at, step.what["broker"]) for step in schedule.steps if step.kind == "sink missing"]
        self._goes_back = [(step.at, step.what["broker"]) for step in schedule.steps if step.kind in GOES_BACK]
        self._heard_within = _heard_within(schedule)
        self._there: set[Copy] = set()
        self._stored: dict[tuple[Copy, str], tuple[int, float]] = {}
        self._published: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._first_received: dict[Copy, float] = {}
        self._refused: defaultdict[Copy, list[float]] = defaultdict(list)
        self._dead: set[tuple[str, int]] = set()
        self._dead_at: dict[tuple[str, int, str], float] = {}
        self._line: defaultdict[Line, list[Copy]] = defaultdict(list)

    def rolled_back(self, route: str, now: float) -> None:
        """Record that a route reports that its stream was rolled back."""
        self.went_back_at[route] = now

    def process_begins(self, route: str, consumer: Consumer | None) -> None:
        """Record the start of a process. It will find the durable of a route in its current state, unless that is
        deleted first.
        """
        self._settled_to.pop(route, None)
        self._found.pop(route, None)
        self._tried.pop(route, None)
        if consumer is not None:
            self._found[route] = consumer, consumer.progress.passed

    def route_ready(self, route: str, unacked: Collection[int], now: float) -> None:
        """Record that a route has its durable: if it is the same as before, it knows which messages were settled by
        then. `unacked` are the numbers of the messages that the durable has delivered, and that are not acked.
        """
        # Those that its process has tried are known to it: others wait for them.
        self._ack_waits.route_ready(route, set(unacked) - self._tried[route], now)
        consumer, settled_to = self._found.pop(route, (None, 0))
        if consumer is not None and not consumer.deleted and self._keeps_sequences:
            self._settled_to[route] = settled_to

    def _check_settled(self, copy: Copy) -> None:
        """Check that no message is routed that was settled before the process found the durable, whatever its later
        fate.
        """
        route, index, number, _ = copy
        plan = self._plans[route]
        sequence = self._sequences.get((plan.broker, number), inf)
        if plan.stream and sequence <= self._settled_to.get(route, 0) and plan.targets[index].mirror is None:
            self._broken("settled", f"{copy}, of message {sequence} of its stream, was settled, and is routed again")

    # --- reports of brokers ---

    def received(self, publish: Publish, now: float) -> None:
        """Record a publish that a broker received from a link."""
        found = self._copy(publish)
        if found is None:
            return
        copy, key = found
        self._pace.arrived(copy[0], copy[2], key, now)
        self._check_settled(copy)
        self._tried[copy[0]].add(copy[2])
        self._trace.add(f"received {text(publish.subject)} {publish.payload[:20]!r}")
        self._first_received.setdefault(copy, now)
        if publish.subject.startswith(b"got."):
            self._arrive(copy, key, now)

    def refused(self, publish: Publish, why: str, now: float) -> None:
        """Record a publish that a broker refused."""
        found = self._copy(publish)
        if found is not None:
            self._trace.add(f"refused {text(publish.subject)} {publish.payload[:20]!r}: {why}")
            route, _, number, part = copy = found[0]
            self._first_received.setdefault(copy, now)
            self._refused[copy].append(now)
            self._check_in_vain(copy, why, now)
            self._tried[route].add(number)
            if self._plans[route].strategy == "fallback":
                self._place_of.pop((route, number, part), None)

    def _check_in_vain(self, copy: Copy, why: str, now: float) -> None:
        """Check that a copy is not published again and again where no stream takes it: each is one more for others.

        A fallback has another destination for it, which is asked when a publish to the first one has failed for long.
        """
        plan = self._plans[copy[0]]
        broker = plan.targets[copy[1]].broker[0]
        if why != NO_RESPONDERS or not self._is_missing(broker) or plan.strategy == "fallback":
            self._in_vain_since.pop((copy, self._connected(broker)), None)
            return
        # It may have been there in the meantime.
        vanished = max((at for at, where in self._vanishes if where == broker and at <= now), default=-inf)
        since = max(vanished, self._in_vain_since.setdefault((copy, self._connected(broker)), now))
        if now - since > IN_VAIN_FOR and "requests refused" not in self._faults:
            self._broken("in vain", f"{copy} is still published where no stream takes it")

    def stored(self, broker: str, stream: Stream, stored: Stored, now: float) -> None:
        """Record a message that a stream stored."""
        publish = stored.publish
        self._trace.add(f"stored in {stream.name} of {broker} as {stored.sequence}: {stored.subject}")
        if stream.name == "IN":
            self._sequences[broker, number_of(publish.payload)] = stored.sequence
            return
        if stream.name == "PUB":
            self._published[broker, stream.created, number_of(publish.payload)] += 1
            return
        if stream.name == "DEAD":
            self._dead_letter_stored(f"{broker} {stream.created}", stored, now)
            return
        found = self._copy(publish)
        if stream.name != "OUT" or found is None:
            return
        copy, key = found
        before = self._stored.get((copy, f"{broker} {stream.created}"))
        plan = self._plans[copy[0]]
        # Two processes that subscribe to the same subject both route each message.
        is_doubled = self._has_second and not plan.stream
        if before is not None and now - before[1] < self._window and not is_doubled:
            self._broken("once", f"{copy} is stored as {before[0]} and again as {stored.sequence}")
        if before is not None and not self._is_shaky:
            self._broken("again", f"{copy} was stored at {before[1]:.3f} s, and is sent there once more")
        self._stored[copy, f"{broker} {stream.created}"] = stored.sequence, now
        self._arrive(copy, key, now)

    def _dead_letter_stored(self, where: str, stored: Stored, now: float) -> None:
        """Check that a dead letter is stored once, equals its message, and names its origin and its attempts."""
        publish = stored.publish
        plan, number = self._plans[stored.subject.split(".")[1]], number_of(publish.payload)
        described = f"dead letter of message {number} of {plan.name}"
        before = self._dead_at.get((plan.name, number, where))
        is_doubled = self._has_second and not plan.stream
        if before is not None and now - before < DEAD_LETTERS_KNOWN_FOR and not is_doubled:
            self._broken("once", f"the {described} is stored once more")
        self._dead_at[plan.name, number, where] = now
        self._dead.add((plan.name, number))
        headers = dict(decode(publish.header).pairs())
        attempts, most = int(headers["Router-Dead-Letter-Attempts"]), plan.retry.get("attempts", 0)
        if headers["Router-Dead-Letter-Route"] != plan.name or attempts < 1 or 0 < most < attempts:
            self._broken("dead letter", f"the {described} says {headers}")
        if plan.stream is not ("Router-Dead-Letter-Sequence" in headers):
            self._broken("dead letter", f"the {described} does not say where it comes from: {headers}")
        arrived = any(copy[0] == plan.name and copy[2] == number for copy in self._there)
        if not self._faults and plan.dead_letter is not None and arrived and self.complete(plan, number):
            self._broken("dead letter", f"there is a {described}, which is where it belongs")

    def is_dead(self, plan: Plan, number: int) -> bool:
        """Return True if a dead letter of a message is stored."""
        return (plan.name, number) in self._dead

    def has_dead(self, plan: Plan) -> bool:
        """Return True if a dead letter of some message of a route is stored."""
        return any(route == plan.name for route, _ in self._dead)

    def _copy(self, publish: Publish) -> tuple[Copy, str] | None:
        words = text(publish.subject).split(".")
        if words[0] not in ("out", "got") or len(words) != 4:
            return None
        number = number_of(publish.payload)
        if number < 0:
            self._broken("payload", f"a copy to {text(publish.subject)} has lost its payload: {publish.payload[:40]!r}")
        elif number in self._sent:
            self._check_content(self._plans[words[1]], int(words[2][1:]), number, publish)
        return (words[1], int(words[2][1:]), number, part_of(publish.payload)), words[3]

    # --- content ---

    def _check_content(self, plan: Plan, index: int, number: int, publish: Publish) -> None:
        """Check that a copy is where its content sends it, and in the form that the destination requires."""
        target, sent = plan.targets[index], self._sent[number]
        allowed = places(plan, number, sent)
        described = f"message {number} of {plan.name} ({sent})"
        if not allowed or (target.mirror is None and index not in allowed):
            self._broken("content", f"{described} came to d{index}, which is none of {allowed}")
        if (
            publish.payload.endswith(CHANGED) is not target.changed
            or (b"X-From: " in publish.header) is not target.changed
        ):
            self._broken("transform", f"{described} came to d{index} as {publish.header!r} {publish.payload[-40:]!r}")
        if target.mirror is None and plan.strategy in ("weighted", "sticky", "fallback"):
            self._check_choice(plan, index, number, part_of(publish.payload), sent, described)

    def _check_choice(self, plan: Plan, index: int, number: int, part: int, sent: Sent, described: str) -> None:
        if plan.strategy == "sticky":
            owner = self._owner_of.setdefault((plan.name, sent.key), index)
            if owner != index:
                self._broken("sticky", f"{described} came to d{index}, and others of its key to d{owner}")
            return
        place = self._place_of.setdefault((plan.name, number, part), index)
        if place != index and not self._may_choose_again(plan):
            self._broken("one destination", f"{described} came to d{index}, and before to d{place}")

    def _may_choose_again(self, plan: Plan) -> bool:
        """Return True if a route may choose a second destination for a message that has a copy at another one.

        The process remembers its choice, for as long as the stream stays the same. It is lost by a crash or a restart
        before the source's ack, by another process, and when a stream is rolled back. `fallback` chooses again for a
        failed message without a copy that is known to be stored: a copy is stored without the router's knowledge if its
        PubAck was lost or late, or the link that should have carried it. A core message is routed once, except for its
        retries.
        """
        falls_back = plan.strategy == "fallback" and self._is_shaky
        if not plan.stream:
            return self._has_second or (falls_back and bool(plan.retry))
        return falls_back or bool(self._forgets & self._faults)

    # --- order ---

    def _arrive(self, copy: Copy, key: str, now: float) -> None:
        if copy in self._there:
            return
        self._there.add(copy)
        route, index, number, part = copy
        plan = self._plans[route]
        if plan.targets[index].mirror is not None or (
            plan.strategy in ("weighted", "fallback") and self._may_choose_again(plan)
        ):
            return  # a redelivered message has no order among the messages of another destination
        line = self._line[route, index, part, plan.group_of(key)]
        before = [other for other in line if other[2] > number]
        has_order = plan.stream or plan.one_of_a_key
        if before and self._in_order and has_order and not self._may_be_late(copy, before, now):
            self._broken("order", f"{copy} comes behind {before[:3]} to the same {plan.key or 'subject'}")
        line.append(copy)

    def _may_be_late(self, copy: Copy, before: list[Copy], now: float) -> bool:
        """Return True if the copies ahead of it were under way when it was refused: nothing could hold them back.

        Later messages do not wait for a message whose handler failed, for one published before its stream was rolled
        back or before the route noticed that, nor for one that was given up: another process may try it again. By key
        nothing else is under way, except for `sticky` without a handler. Messages that a route can't request pass each
        other: see `ack_waits`.
        """
        before = [other for other in before if not self._ack_waits.may_pass(copy[0], other[2], copy[2])]
        strict = self._plans[copy[0]].one_of_a_key
        if self._handled.raised[copy[0], copy[2]] and not strict:
            return True
        broker = self._plans[copy[0]].broker
        rolled_back = [at for at, where in self._goes_back if where == broker and at <= now]
        if self._published_at.get(copy[2], 0.0) <= max(self.went_back_at[copy[0]], *rolled_back, -inf):
            return True
        retried = self._given_up.retried_from(copy[0], copy[2], now) + self._heard_within
        if all(self._first_received[other] <= retried for other in before):
            return True
        if strict:
            return False
        heard = [refused + self._heard_within for refused in self._refused[copy]]
        return bool(heard) and all(self._first_received[other] <= max(heard) for other in before)

    # --- queries ---

    def complete(self, plan: Plan, number: int) -> bool:
        """Return True if every destination has every part of a message."""
        parts = range(2 if self._handled.last.get((plan.name, number)) == SEVERAL else 1)
        sent = self._sent.get(number)
        wanted = range(len(plan.targets)) if sent is None else places(plan, number, sent)
        enough = all if plan.strategy in ("all", "first_match") else any
        return all(enough((plan.name, index, number, part) in self._there for index in wanted) for part in parts)

    def failed(self, route: str) -> set[int]:
        """Return the numbers of a route's messages with a refused copy: each is redelivered with growing
        delays.
        """
        return {copy[2] for copy, times in self._refused.items() if copy[0] == route and times}

    @property
    def is_backed_off(self) -> bool:
        """Return True if some copy was refused so often that its next attempt may have the longest delay."""
        return any(len(times) >= BACKED_OFF_AFTER for times in self._refused.values())

    def check_published(self, broker: str, number: int) -> None:
        """Check that a publish for which a program has a PubAck is stored, once in each incarnation of the stream."""
        times = [count for (at, _, one), count in self._published.items() if (at, one) == (broker, number)]
        if not times or max(times) > 1:
            self._broken("PubAck", f"publish {number} to {broker} was acked, and stored {times} times")

    def check_end(self) -> None:
        """Check the end; all current checks are made earlier."""


def _heard_within(schedule: Schedule) -> float:
    """Return the seconds from a refusal until messages written in ignorance of it have arrived: two ways."""
    slow = {"slow network": 1.2, "slow stream": 2.0, "puback late": 6.0, "puback lost": 6.0, "no pubacks": 40.0}
    # A client that subscribes to a subject without a stream keeps the server from answering that there are no
    # responders: only a missing PubAck shows it.
    slow[FORGED] = 6.0
    faults = {step.kind for step in schedule.steps}
    return 2 * max(schedule.latency.values()) + 0.001 + sum(slow[kind] for kind in slow.keys() & faults)
