"""The current state of a route and of each of its destinations, and their counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from router_trio.errors import reasons
from router_trio.errors.quotes import bounded
from router_trio.states.counts import RouteCounts
from router_trio.states.histogram import Histogram
from router_trio.states.returning import Returning
from router_trio.states.values import Behind, BreakerState, Held, LastFailure, Partitions, Schedules

NO_STREAM = "no_stream"
"""Why a destination refuses messages: no stream takes them."""

NOT_LOOKED_UP = ("not_looked_up", "its stream has not been looked up yet")


class DestinationState:
    """The state of one destination of a route: whether it would accept a message now, as far as is known.

    There are two sources: lookups (`looked_up`, set by `found`), and the last refused publish (`refused_for`, set by
    `mark_refused`). Each is a reason and its detail, or None. A message that has been delivered since overrules both:
    this is derived from the route's own count, at no cost per message.
    """

    __slots__ = (
        "_alone",
        "_dead_letters",
        "_routed_before",
        "awaits_lookup",
        "connection",
        "fails_streamless",
        "has_alternatives",
        "has_one_stream",
        "looked_up",
        "loses_schedules",
        "pattern",
        "refused_for",
        "route",
        "scheduled",
        "shown",
        "stream",
        "template",
        "waiting",
        "waits_for_puback",
    )

    def __init__(
        self,
        route: RouteState,
        connection: str,
        template: str,
        pattern: str,
        *,
        waits_for_puback: bool,
        shown: Mapping[str, str | bool],
        dead_letters: bool = False,
        stream: str | None = None,
        scheduled: str | None = None,
    ) -> None:
        """The subjects of its messages match `pattern`. `dead_letters`: it receives what the route gives up.

        `waits_for_puback`: a stream stores its messages, and is looked up; `stream` is its name if it is configured.
        `shown` is the destination by the keys of the configuration. `scheduled` is the pattern
        of the subjects that the stream publishes them to later; None if they are no schedules.
        """
        self.connection: str = connection
        self.template: str = template
        self.pattern: str = pattern
        self.waits_for_puback: bool = waits_for_puback
        self.shown: Mapping[str, str | bool] = shown
        self.stream: str | None = stream
        self.has_alternatives: bool = False
        """True if messages are sent elsewhere while it refuses them."""
        self.fails_streamless: bool = False
        """True if its route gives up the messages that no stream takes, so they need not wait for one."""
        self.has_one_stream: bool = False
        """True if the last lookup found one stream for its messages."""
        self.looked_up: tuple[str, str] | None = NOT_LOOKED_UP if waits_for_puback else None
        self.refused_for: tuple[str, str] | None = None
        self.scheduled: str | None = scheduled
        not_known = f"no stream is known yet that keeps schedules on {pattern!r}"
        self.loses_schedules: str | None = None if scheduled is None else not_known
        """Why nothing is sent there although it may be stored: its stream is not known to publish it later."""
        self.awaits_lookup: bool = scheduled is not None
        """True until a lookup has shown whether its stream publishes it later, or that this can't be looked up."""
        self.waiting: int | None = None
        """The schedules of it that were in its streams at the last look; None while that is not known, or for none."""
        self.route: RouteState = route
        self._dead_letters = dead_letters
        # Otherwise the count includes other destinations, or there is none, as for scheduled retries.
        self._alone = dead_letters or route.destinations.count(template) == 1
        self._routed_before = 0

    def go_on(self, before: DestinationState) -> None:
        """Take over the trouble of this destination in the previous generation of the route, if it is the same one.

        Otherwise the route would count as ready until a message is refused again.
        """
        if before._identity == self._identity and not before.got_through:
            self.looked_up, self.refused_for = before.looked_up, before.refused_for
            self._routed_before = self._routed

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.connection, self.template, self.pattern, self.waits_for_puback, self.stream

    @property
    def route_name(self) -> str:
        """The name of the route."""
        return self.route.name

    @property
    def dead_letters(self) -> bool:
        """True if it receives the messages that the route gives up."""
        return self._dead_letters

    @property
    def retries(self) -> bool:
        """True if it stores the scheduled retries of its route, and no copies."""
        return self.scheduled is not None and self.template not in self.route.destinations

    @property
    def is_streamless(self) -> bool:
        """Return True if no stream takes its messages, as far as is known.

        A stream that is named may be that of another account, which no lookup finds: its PubAcks show that it is there.
        """
        if self.looked_up is None or self.looked_up[0] != NO_STREAM:
            return False
        return self.stream is None and not self.got_through

    @property
    def has_one_subject(self) -> bool:
        """Return True if all its messages have the same subject."""
        return not {"*", ">"}.intersection(self.pattern.split("."))

    @property
    def trouble(self) -> tuple[str, str] | None:
        """Return why it would refuse a message now: a short reason and what to do about it; or None."""
        if (self.refused_for is not None or self.looked_up is not None) and not self.got_through:
            return self.refused_for or self.looked_up
        return None

    @property
    def got_through(self) -> bool:
        """Return True if a message has been delivered since the last trouble reported to `found` or `mark_refused`."""
        return self._alone and self._routed > self._routed_before

    def found(self, trouble: tuple[str, str] | None) -> None:
        """Record the result of a lookup: trouble, or None."""
        self.looked_up = trouble
        if trouble is not None and self._alone:
            self._routed_before = self._routed

    def mark_refused(self, reason: str, detail: str) -> None:
        """Record that a publish was refused."""
        self.refused_for = (reason, detail)
        if self._alone:
            self._routed_before = self._routed

    @property
    def _routed(self) -> int:
        route = self.route
        if self._dead_letters:
            return route.dead_lettered - route.dead_lettered_earlier
        return route.routed[self.template] - route.delivered_earlier[self.template]


STARTING = "starting"
RUNNING = "running"
PAUSED = "paused"
FAILED = "failed"


HANDLER_QUIET = 8.0
"""Seconds without a return of a running call of a route's handler after which the route counts as stuck."""


FILTER_REASONS = reasons.labelled(reasons.FILTERED)
"""Why a message is filtered: `when` of the route is false, its handler dropped it, or no destination matches."""


REPLY = "(reply)"
"""In place of a destination's template, for answers to the reply subject."""


UNANSWERED_REASONS = reasons.labelled(reasons.UNANSWERED_MESSAGES)
"""Why a message is not answered: it has no reply subject, or one that must not be published to."""


class Holder(Protocol):
    """Holds the messages that a route has received and not settled."""

    @property
    def in_hand(self) -> int | None:
        """The number of messages that the holder has; None if the counts of the route show it."""

    @property
    def limited(self) -> int:
        """The number of messages that wait for the limit of the route or of their value."""
        ...

    @property
    def retrying(self) -> tuple[int, float]:
        """The number of messages being retried, and the seconds since the first failure of the oldest."""
        ...

    @property
    def uncounted(self) -> int:
        """The number of messages that the only destination accepted, and that are not counted as delivered yet."""
        ...

    @property
    def behind(self) -> Behind | None:
        """How far the route is behind its stream; None without a stream, or while that is not known."""

    @property
    def partitions(self) -> Partitions | None:
        """The partitions that the route shares with other processes; None if it has none."""


_NOTHING_HELD = Held()

BREAKER_GAUGE = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


class OnlyBreaker(Protocol):
    """The breaker of the only destination of a route."""

    def copy_refused(self, reason: str) -> str:
        """Record that the destination refused a message. Returns the reason to count."""
        ...


def _report_nothing(route: str, detail: str, count: int) -> None:
    """Report nothing, for a state without observers."""


class LimitState:
    """The limit of a route. `per` is the expression with a limit for each of its values; None for a single limit."""

    def __init__(self, rate: str, burst: int, per: str | None) -> None:
        self.rate = rate
        self.burst = burst
        self.per = per


def _waiting(ends: Sequence[DestinationState]) -> int | None:
    """Return how many schedules of these destinations wait, which may share their subjects; None if not known."""
    found = {(one.connection, one.pattern): one.waiting for one in ends}
    known = [count for count in found.values() if count is not None]
    return sum(known) if len(known) == len(found) else None


class RouteState(RouteCounts):
    """State and counters of one route. `destinations` are the templates, in order, and the values of the label."""

    __slots__ = (
        "__weakref__",
        "_only_breaker",
        "_report_suppressed",
        "breakers",
        "connection",
        "dead_lettered_earlier",
        "delivered_earlier",
        "destinations",
        "draining",
        "earlier",
        "gives_up",
        "handler_moved_at",
        "handling",
        "holder",
        "in_flight_limit",
        "is_leaving",
        "is_over",
        "last_failure",
        "left_behind",
        "limit",
        "mirrors_under_way",
        "most_open",
        "name",
        "never_routed",
        "obstacles",
        "own_ids",
        "reason",
        "redelivers",
        "returning",
        "source",
        "standby",
        "state",
        "to",
    )

    def __init__(
        self,
        name: str,
        connection: str,
        destinations: Sequence[str],
        *,
        own_ids: bool = True,
        report_suppressed: Callable[[str, str, int], None] = _report_nothing,
    ) -> None:
        """`own_ids`: a duplicate is always this very copy, never another message with an id chosen by its sender.

        `suppressed` calls `report_suppressed` with the name, a detail and the number of messages.
        """
        super().__init__(destinations)
        self.own_ids: bool = own_ids
        self._report_suppressed = report_suppressed
        self.name: str = name
        self.connection: str = connection
        self.destinations: tuple[str, ...] = tuple(destinations)
        self.source: Mapping[str, str | list[str]] = {}
        """The source of its messages, by the keys of the configuration. The first key shows the kind of source."""
        self.gives_up: bool = False
        """True if `given_up` has each message that was lost or given up, once: see `RouteSettings.gives_up`."""
        self.redelivers: bool = False
        """True if its source redelivers a message that was not acked; else such a message is lost with the router."""
        self.state: str = STARTING
        self.reason: str | None = None
        self.returning: Returning | None = None
        """Whether it receives mostly what it has sent; None if no message has come back."""
        self.obstacles: dict[str, str] = {}
        """Why it would not route a message although it runs, with the cure: by what is hindered, such as acks or
        pulls."""
        self.standby: bool = False
        """True while it does not have the lead of its consumer."""
        self.to: list[DestinationState] = []
        """The states of its destinations, in order."""
        self.breakers: Sequence[BreakerState] = ()
        """The breakers of its destinations, as far as they have one."""
        self._only_breaker: OnlyBreaker | None = None
        self.most_open: int = 0
        """With more of `breakers` than this not closed, the route would not route a message."""
        self.limit: LimitState | None = None
        self.last_failure: LastFailure | None = None
        self.in_flight_limit: int = 0
        """Maximum number of its stream's messages in flight; 0 for a route from a subject."""
        self.handling: int = 0
        """Number of calls of its handler that have not returned."""
        self.handler_moved_at: float = 0.0
        """When a call last returned, or started while there was no other, on the router's monotonic clock."""
        self.left_behind: list[Collection[object]] = []
        """Calls of its handler, and of earlier generations', that hang in threads and are no longer waited for."""
        self.delivered_earlier: Counter[str] = Counter()
        """The part of `delivered` that earlier generations of the route have counted, and not this one."""
        self.dead_lettered_earlier: int = 0
        """The part of `dead_lettered` that earlier generations have counted."""
        self.never_routed: int = 0
        """Messages of a core subscription that were received and never routed: they are lost."""
        self.holder: Holder = _NOTHING_HELD
        """The holder of the messages of the route, as set by `held_by`."""
        self.earlier: list[RouteState] = []
        """Generations of the route before its settings changed that still have unsettled messages: see
        `routing.route_counts`."""
        self.draining: dict[tuple[str, str], int | None] = {}
        """How many retries wait where earlier settings have scheduled them, by stream and prefix; None if unknown."""
        self.is_over: bool = False
        """True once it can't receive anything any more: see `is_settled`."""
        self.mirrors_under_way: int = 0
        """Copies for mirrors that have no fate. A message is settled without them."""
        self.is_leaving: bool = False
        """True once the route was removed: not receiving messages is then no trouble."""

    @property
    def routed(self) -> Mapping[str, int]:
        """Messages delivered to each destination."""
        routed = self.delivered.copy()
        if count := sum(self.forwarded.counts):
            routed[self.destinations[0]] += count
        return routed

    def failed_at_last(
        self,
        reason: str,
        subject: str | None = None,
        sequence: int | None = None,
        attempt: int = 1,
        place: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Record the last failure. The caller counts it."""
        text = None if detail is None else bounded(detail)
        self.last_failure = LastFailure(time.time(), reason, subject, sequence, attempt, place, text)

    def not_taken(self, template: str, detail: str) -> str:
        """Return the text that a destination did not accept a message, with `detail` if there is any."""
        connection = next((f" on connection {one.connection}" for one in self.to if one.template == template), "")
        text = f"the destination {template!r}{connection} did not accept the message"
        return f"{text}: {detail}" if detail else text

    def held_by(self, holder: Holder) -> None:
        """Let `holder` report the messages that are not settled, from now on."""
        self.holder = holder

    def break_by(self, breakers: Sequence[BreakerState], most_open: int, only: OnlyBreaker | None = None) -> None:
        """Set the breakers of the destinations, once. `only` is the breaker of the only destination."""
        self.breakers, self.most_open, self._only_breaker = breakers, most_open, only

    def counted_reason(self, reason: str) -> str:
        """Return the reason to count when the only destination refused a message, which its breaker may change."""
        return reason if self._only_breaker is None else self._only_breaker.copy_refused(reason)

    def suppressed(self, count: int, stream: str | None) -> None:
        """Count and report messages that `stream` did not store, since it has others with the same ids."""
        detail = f"the stream {stream} has another message with this Nats-Msg-Id"
        self.failed[reasons.DUPLICATE] += count
        self.failed_at_last(reasons.DUPLICATE, detail=detail)
        self._report_suppressed(self.name, detail, count)

    @property
    def retrying(self) -> tuple[int, float]:
        """The number of messages being retried, and the seconds since the first failure of the oldest."""
        return self.holder.retrying

    @property
    def behind(self) -> Behind | None:
        """How far the route is behind its stream; None without a stream, or while that is not known."""
        return self.holder.behind

    @property
    def partitions(self) -> Partitions | None:
        """The partitions that the route shares with other processes; None if it has none."""
        return self.holder.partitions

    @property
    def delays(self) -> Schedules | None:
        """The delayed copies of the route; None if no destination has a delay."""
        ends = [one for one in self.to if one.scheduled is not None and not one.retries]
        if not ends:
            return None
        routed = self.routed
        stored = sum(routed.get(template, 0) for template in {one.template for one in ends})
        return Schedules(stored, _waiting(ends))

    @property
    def scheduled_retries(self) -> Schedules | None:
        """The retries of the route that wait in other streams; None if it has no such stream."""
        ends = [one for one in self.to if one.retries]
        if not ends and not self.draining:
            return None
        counts = (_waiting(ends), *self.draining.values())
        waiting = None if None in counts else sum(count for count in counts if count is not None)
        return Schedules(self.fates["scheduled"], waiting, self.fired, self.schedules_lost)

    @property
    def waiting_for_limit(self) -> int:
        """Messages in hand that wait for the limit of the route, if it has one. More may wait in its stream."""
        return self.holder.limited

    def accepted_by(self, template: str) -> int:
        """Return how many messages the only destination accepted in this generation of the route."""
        return self.delivered[template] - self.delivered_earlier[template] + self.holder.uncounted

    def filter_out(self, reason: str, count: int) -> None:
        """Count filtered messages, by reason."""
        self.filtered[reason] += count
        self.fates["filtered"] += count

    # --- the ledger: received_in_all = in_hand + settled ---

    @property
    def received_in_all(self) -> int:
        """Messages received, including redeliveries of messages that were in hand or settled."""
        return self.received + self.duplicates

    @property
    def in_hand(self) -> int:
        """Messages that were received and have no fate yet.

        For a stream they are held and counted separately. For a core subscription they are the messages without a
        duration, which is recorded once for each message, independently of its fate.
        """
        in_hand = self.holder.in_hand
        if in_hand is not None:
            return in_hand
        return self.received - self.never_routed - sum(self.elapsed.counts) - sum(self.forwarded.counts)

    @property
    def dead_lettered(self) -> int:
        """Messages whose dead letters are stored."""
        return self.fates["dead_lettered"]

    @property
    def settled(self) -> dict[str, int]:
        """Messages by their fate.

        - `routed`: all chosen destinations have it.
        - `filtered`: it was not meant for any destination.
        - `dead_lettered`: its dead letter is stored.
        - `given_up`: its attempts are used up, and the stream need not redeliver it.
        - `returned`: it was returned to its stream, to be redelivered.
        - `duplicate`: it was already in hand or settled, or a stream took it for a duplicate.
        - `lost`: it came from a core subscription, and not every destination got it.
        - `scheduled`: another stream keeps it until its next attempt, and it is received again.
        """
        settled = self.fates.copy()
        settled["routed"] += sum(self.forwarded.counts)
        settled["duplicate"] += self.duplicates
        return settled

    @property
    def durations(self) -> Histogram:
        """Seconds from receiving a message to settling it."""
        return self.elapsed + self.forwarded

    def enter(self, state: str, reason: str | None = None) -> None:
        """Change the state; `reason` is why it isn't running."""
        self.state = state
        self.reason = reason

    def add_obstacle(self, cause: str, why: str) -> None:
        """Record why the route would not route a message although it runs, in place of what `cause` had."""
        self.obstacles[cause] = why

    def came_back(self, passed_as: str, now: float) -> int:
        """Record a message that the route has passed on before: see `Returning`."""
        if self.returning is None:
            self.returning = Returning(passed_as)
        return self.returning.note(self.received, now)

    def in_circle(self, now: float) -> str | None:
        """Return that the route receives mostly what it has sent, and what to do; None if that is not known."""
        return None if self.returning is None else self.returning.why(now)

    def remove_obstacle(self, cause: str) -> None:
        """Record that `cause` hinders the route no longer, if it did."""
        self.obstacles.pop(cause, None)

    @property
    def unready(self) -> str | None:
        """Why this route would not receive a message now, or None; a removed route need not receive any."""
        return None if self.is_leaving or self.state == RUNNING else self.reason or self.state

    @property
    def is_settled(self) -> bool:
        """Return True if nothing more will be counted here."""
        return self.is_over and not self.in_hand and not self.mirrors_under_way

    @property
    def trouble(self) -> str | None:
        """Return why it is not running or can't deliver: the first reason, or None."""
        open_breakers = (one.why_open for one in self.breakers if one.why_open is not None)
        obstacles = () if self.is_leaving else self.obstacles.values()
        return (
            self.unready
            or next(iter(obstacles), None)
            or next(open_breakers, None)
            or next(iter(self._undelivered(())), None)
        )

    def held_up(self, now: float) -> list[str]:
        """Return why breakers hold up the route. A breaker due for a probe does not if there is no message to try."""
        held = [one for one in self.breakers if one.why_open is not None and (now < one.probe_at or self.in_hand)]
        return [one.why_open or "" for one in held] if len(held) > self.most_open else []

    def _undelivered(self, shown: Sequence[str]) -> list[str]:
        """Return the trouble of destinations, unless one of the `shown` reasons quotes it: that of its breaker."""
        found = []
        for one in self.to:
            if (trouble := one.trouble) is not None:
                where = f"destination {one.template!r} on connection {one.connection}"
                if not any(where in other and f"{trouble[0]} (" in other for other in shown):
                    found.append(f"{where}: {trouble[0]}: {trouble[1]}")
        return found

    def reasons(self, now: float) -> list[str]:
        """Return all reasons why this route would not route a message at `now`, on the router's monotonic clock."""
        in_circle = self.in_circle(now)
        usual = not (self.obstacles or self.handling or self.breakers or any(self.left_behind) or in_circle)
        if self.state == RUNNING and usual:
            # The usual case, kept fast: the log checks thousands of routes every second.
            for one in self.to:
                if one.refused_for is not None or one.looked_up is not None:
                    break
            else:
                return []
        reasons = [] if self.unready is None else [self.unready]
        if not self.is_leaving:
            reasons += self.obstacles.values()
            reasons += () if in_circle is None else (in_circle,)
        quiet = now - self.handler_moved_at
        if self.handling and quiet > HANDLER_QUIET:
            who = "its handler has not" if self.handling == 1 else f"none of {self.handling} calls of its handler has"
            reasons.append(f"{who} returned for {quiet:.0f} s; other messages may be waiting for it")
        if left := sum(map(len, self.left_behind)):
            if left == 1:
                reasons.append("a call of its handler did not return and was abandoned; it still runs")
            else:
                reasons.append(f"{left} calls of its handler did not return and were abandoned; they still run")
        # A route that waits for a breaker reports that itself, so duplicates are removed.
        reasons += self.held_up(now)
        return [*dict.fromkeys([*reasons, *self._undelivered(reasons)])]

    def handler_begins(self, now: float) -> None:
        """Record that a call of the handler has to wait for something."""
        if not self.handling:
            self.handler_moved_at = now
        self.handling += 1

    def handler_returns(self, now: float) -> None:
        """Record that a call has returned, raised or was cancelled."""
        self.handling -= 1
        self.handler_moved_at = now
