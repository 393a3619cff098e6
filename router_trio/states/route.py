"""The current state of a route and of each of its destinations, and their counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from router_trio.errors import reasons
from router_trio.errors.quotes import bounded
from router_trio.states.counts import RouteCounts
from router_trio.states.failing import LastFailure, ToBeRetried
from router_trio.states.histogram import Histogram

NOT_LOOKED_UP = ("not_looked_up", "its stream has not been looked up yet")


class DestinationState:
    """The state of one destination of a route: whether it would take a message now, as far as is known.

    Two things tell: what a lookup found (`looked_up`: `found`), and what the last publish met (`met`: `mark_refused`).
    Each is a reason and its detail, or None. A message that gets through since is stronger than both: it is seen in the
    route's own count, which costs the messages nothing.
    """

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
    ) -> None:
        """`pattern` is what the subjects of its messages match. `dead_letters`: it gets what the route gives up.

        `waits_for_puback`: a stream takes its messages, and is looked up; `stream` if the configuration says which one
        does. `shown` is where they go, by the keys of the configuration.
        """
        self.connection = connection
        self.template = template
        self.pattern = pattern
        self.waits_for_puback = waits_for_puback
        self.shown = shown
        self.stream = stream
        self.looked_up: tuple[str, str] | None = NOT_LOOKED_UP if waits_for_puback else None
        self.met: tuple[str, str] | None = None
        self.route = route
        self._dead_letters = dead_letters
        self._alone = dead_letters or route.destinations.count(template) == 1  # else the count is not of this one alone
        self._routed_before = 0

    @property
    def route_name(self) -> str:
        """The name of its route."""
        return self.route.name

    @property
    def dead_letters(self) -> bool:
        """True if it gets what its route gives up."""
        return self._dead_letters

    @property
    def trouble(self) -> tuple[str, str] | None:
        """Return why it would not take a message now: a short word and what to do about it; or None."""
        if (self.met is not None or self.looked_up is not None) and not self.got_through:
            return self.met or self.looked_up
        return None

    @property
    def got_through(self) -> bool:
        """Return True if a message got through since `found` or `mark_refused` last told of trouble."""
        return self._alone and self._routed > self._routed_before

    def found(self, trouble: tuple[str, str] | None) -> None:
        """A lookup has told of trouble, or of none."""
        self.looked_up = trouble
        if trouble is not None:
            self._routed_before = self._routed

    def mark_refused(self, reason: str, detail: str) -> None:
        """A publish was refused."""
        self.met = (reason, detail)
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
"""Seconds in which no call of a route's handler returned, though one is under way: the route counts as stuck."""


FILTER_REASONS = reasons.labelled(reasons.FILTERED)
"""Why a message is filtered: the route's `when` does not hold, its handler left it out, no destination is for it."""


REPLY = "(reply)"
"""In place of a destination's template, for answers to the reply subject."""


UNANSWERED_REASONS = reasons.labelled(reasons.UNANSWERED_MESSAGES)
"""Why there is no answer to a message: it has no reply subject, or one that must not be published to."""


class InHand(Protocol):
    """The owner of the messages that a route has received and not settled."""

    @property
    def in_hand(self) -> int:
        """The number of these messages."""
        ...


def _as_it_is(reason: str) -> str:
    return reason


BREAKER_GAUGE = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


class BreakerState:
    """The breaker of one destination. From `probe_at` on a message may try; `why_open` is None while it is closed."""

    def __init__(self, connection: str, template: str) -> None:
        self.connection = connection
        self.template = template
        self.state: str = "closed"
        self.probe_at: float = 0.0
        self.why_open: str | None = None


class LimitState:
    """The limit of a route. `per` is the expression whose values have one each, None if there is one for all."""

    def __init__(self, rate: str, burst: int, per: str | None) -> None:
        self.rate = rate
        self.burst = burst
        self.per = per
        self.waiting: Callable[[], int] = lambda: 0
        """Gives how many messages wait for it that the route has in hand: more may in the stream."""


class RouteState(RouteCounts):
    """State and counters of one route. `destinations` are the templates, in order: they are the label values."""

    def __init__(self, name: str, connection: str, destinations: Sequence[str], *, own_ids: bool = True) -> None:
        """`own_ids`: a stream that has a copy already has this very copy, and not what somebody else gave its id to."""
        super().__init__(destinations)
        self.own_ids = own_ids
        self.suppressed: Callable[[int, str | None], None] = lambda count, stream: None
        """Called for messages that a stream took for others that it has."""
        self.name = name
        self.connection = connection
        self.destinations: tuple[str, ...] = tuple(destinations)
        self.source: Mapping[str, str | list[str]] = {}
        """Where its messages come from, by the keys of the configuration; the first of them says what kind it is."""
        self.redelivers: bool = False
        """True if its source delivers a message again that was not acked; else that is lost with the router."""
        self.state: str = STARTING
        self.reason: str | None = None
        self.obstacles: dict[str, str] = {}
        """Why it would not route a message though it runs, with the cure: by what hinders it, as acks or pulls."""
        self.standby: bool = False
        """True while another process, or none yet, has the lead of its consumer."""
        self.to: list[DestinationState] = []
        """The states of its destinations, in order."""
        self.breakers: Sequence[BreakerState] = ()
        """Of the destinations that have one."""
        self.most_open: int = 0
        """Of `breakers`: with more than these not closed, the route would not route a message."""
        self.refused: Callable[[str], str] = _as_it_is
        """Called with the reason when the only destination did not take a message. Returns the reason that counts."""
        self.limit: LimitState | None = None
        self.last_failure: LastFailure | None = None
        self.retried: Callable[[], Sequence[ToBeRetried]] = tuple
        """Gives what failed and is to be tried again; more than one where settings have changed meanwhile."""
        self.clock: Callable[[], float] = float
        """The clock of `retried`, which the route sets together with it."""
        self.in_flight_limit: int = 0
        """Most messages of its stream that may be in flight; 0 for a route from a subject."""
        self.handling: int = 0
        """Calls of its handler that have not returned."""
        self.handler_moved_at: float = 0.0
        """When a call last returned, or began while there was no other, on the router's monotonic clock."""
        self.left_behind: list[Collection[object]] = []
        """Calls of its handler, and of those before it, that hang in threads: nothing waits for them any more."""
        self.delivered_earlier: Counter[str] = Counter()
        """Of `delivered`, what earlier lives of the route have counted: nothing that this one has met."""
        self.dead_lettered_earlier: int = 0
        """Of those, the ones that were dead-lettered."""
        self.never_routed: int = 0
        """Messages of a core subscription that were received and never routed: they are lost."""
        self.holder: InHand | None = None
        """The hand of a route from a stream, which counts its messages by itself."""
        self.earlier: list[RouteState] = []
        """The lives of the route before its settings changed of which something has no fate: see `routing.whole`."""
        self.is_over: bool = False
        """True once nothing can be received any more: see `is_settled`."""
        self.mirrors_under_way = 0
        """Copies for mirrors that have no fate. A message is settled without them."""
        self.is_leaving: bool = False
        """True once the route was removed: it receives nothing more, and that is no trouble."""

    @property
    def routed(self) -> Mapping[str, int]:
        """Messages that each destination has."""
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
        """Record the last failure. Counting is the caller's."""
        told = None if detail is None else bounded(detail)
        self.last_failure = LastFailure(time.time(), reason, subject, sequence, attempt, place, told)

    def not_taken(self, template: str, detail: str) -> str:
        """Return which destination did not take a message, and what was said of that if anything was."""
        connection = next((f" on {one.connection}" for one in self.to if one.template == template), "")
        told = f"the destination {template!r}{connection} did not take it"
        return f"{told}: {detail}" if detail else told

    @property
    def retrying(self) -> tuple[int, float]:
        """The number of messages that are being retried, and the seconds since the oldest of them failed first."""
        parts = {id(part): part for part in self.retried()}.values()
        now = self.clock()
        return sum(map(len, parts)), max((part.oldest(now) for part in parts), default=0.0)

    def filter_out(self, reason: str, count: int) -> None:
        """Count messages that are filtered, for that reason."""
        self.filtered[reason] += count
        self.fates["filtered"] += count

    # --- the ledger: received_in_all = in_hand + settled ---

    @property
    def received_in_all(self) -> int:
        """Messages that came: also those that a stream delivered again though they were in hand or settled."""
        return self.received + self.duplicates

    @property
    def in_hand(self) -> int:
        """Messages that were received and have no fate yet.

        A route from a stream holds each of them by itself. Of a core subscription it is what has no duration yet, which
        is recorded once for each message, apart from its fate.
        """
        if self.holder is not None:
            return self.holder.in_hand
        return self.received - self.never_routed - sum(self.elapsed.counts) - sum(self.forwarded.counts)

    @property
    def dead_lettered(self) -> int:
        """Messages whose dead letters are stored."""
        return self.fates["dead_lettered"]

    @property
    def settled(self) -> dict[str, int]:
        """Messages by their fate.

        `routed`: all destinations that were chosen have it. `filtered`: none was to have it. `dead_lettered`: it is
        where dead letters go. `given_up`: it was tried often enough, and the stream need not deliver it again.
        `returned`: it was given back to its stream, to be delivered again. `duplicate`: it was in hand or settled
        already, or a stream took it for one that it has. `lost`: from a core subscription, and not delivered to all.
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
        """Change the state; `reason` says why it isn't running."""
        self.state = state
        self.reason = reason

    @property
    def unready(self) -> str | None:
        """Why this route would not receive a message now, or None; one that was removed is not to."""
        return None if self.is_leaving or self.state == RUNNING else self.reason or self.state

    @property
    def is_settled(self) -> bool:
        """Return True if nothing will be counted here any more."""
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
            or next(iter(self._undelivered()), None)
        )

    def held_up(self, now: float) -> list[str]:
        """Return why breakers hold up the route. One that has no message to try, and would let one go, does not."""
        held = [one for one in self.breakers if one.why_open is not None and (now < one.probe_at or self.in_hand)]
        return [one.why_open or "" for one in held] if len(held) > self.most_open else []

    def _undelivered(self) -> list[str]:
        found = [(one, one.trouble) for one in self.to]
        return [
            f"destination {one.template!r} on {one.connection}: {trouble[0]}: {trouble[1]}"
            for one, trouble in found
            if trouble is not None
        ]

    def reasons(self, now: float) -> list[str]:
        """Return why this route would not route a message now (`now` on the router's monotonic clock): all reasons."""
        if self.state == RUNNING and not (self.obstacles or self.handling or self.breakers or any(self.left_behind)):
            # As nearly always: the log looks at thousands of routes every second.
            for one in self.to:
                if one.met is not None or one.looked_up is not None:
                    break
            else:
                return []
        reasons = [] if self.unready is None else [self.unready]
        if not self.is_leaving:
            reasons += self.obstacles.values()
        quiet = now - self.handler_moved_at
        if self.handling and quiet > HANDLER_QUIET:
            who = "its handler has not" if self.handling == 1 else f"none of {self.handling} calls of its handler has"
            reasons.append(f"{who} returned for {quiet:.0f} s, and messages may wait behind it")
        if left := sum(map(len, self.left_behind)):
            calls = "a call" if left == 1 else f"{left} calls"
            reasons.append(f"{calls} of its handler did not return and was left behind, in a thread of its own")
        # A route that waits for a breaker says so itself.
        return [*dict.fromkeys([*reasons, *self.held_up(now), *self._undelivered()])]

    def handler_begins(self, now: float) -> None:
        """A call of the handler has to wait for something."""
        if not self.handling:
            self.handler_moved_at = now
        self.handling += 1

    def handler_returns(self, now: float) -> None:
        """Record that it has returned, raised or was cancelled."""
        self.handling -= 1
        self.handler_moved_at = now
