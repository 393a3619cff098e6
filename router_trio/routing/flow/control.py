"""Flow control: how many messages of a route may be sent now, by its rate limit and its circuit breakers.

A route that keeps no messages and has neither has no flow control. The route calls `may_go`, then `going`, and waits if
no message may be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf

import trio

from router_trio.connection.supervisor import Connection
from router_trio.events import Emit, RouteLimited
from router_trio.outbox.outbox import Outbox
from router_trio.routing.flow.destination_breaker import DestinationBreaker
from router_trio.routing.outlets.outlet import is_healthy
from router_trio.routing.policy.limit import Limit, ValueLimits
from router_trio.routing.route_plans import RoutePlan
from router_trio.settings import RouteSettings
from router_trio.settings.units import format_rate
from router_trio.states import LimitState, RouteState

HORIZON = 1.0
"""Seconds: messages that may be sent within them are requested from a stream, so that few wait in hand."""

UNDER_WAY_FOR = 1.0
"""Seconds: a limited route may have as many unsettled messages as it may send within them, plus a burst.

A link with a long round trip has more messages in flight than one with a short round trip. More unsettled messages
would reach the server all at once when a link, or a stream, is back. If each value has a limit, nothing is sent to a
link that has confirmed nothing for this time.
"""

LOOK_FOR_FATES = 0.05
"""Seconds between two checks whether some of them are settled."""

LOOK_AGAIN = 1.0
"""Seconds between two checks for a destination to fall back to, while none accepts messages."""


def _gets_all(route: RouteSettings, place: int) -> bool:
    """Return True if no message of a route can be routed while the destination at this place refuses all of its own.

    With `fallback`, others get them. With other strategies some messages have other destinations, and need not wait.
    """
    to = route.to[place]
    if to.mirror is not None:
        return False
    only = sum(one.mirror is None for one in route.to) == 1
    return route.strategy == "fallback" or (to.when is None and (only or route.strategy == "all"))


class FlowControl:
    """The rate limit and the circuit breakers of one route. They belong to the route, not to a link.

    `limit` is for all messages, `values` for the messages of each value; at most one of them is set.
    """

    def __init__(
        self, plan: RoutePlan, connections: Sequence[Connection], state: RouteState, emit: Emit, *, holds: bool
    ) -> None:
        """`connections` are those of the destinations, in order; `state` already has the destinations.

        `holds`: the route keeps its messages, so those for a destination that refuses all of them can wait.
        """
        settings = plan.settings
        self.limit: Limit | None = None
        self.values: ValueLimits | None = None
        self._state = state
        self._emit = emit
        self._listeners: list[Callable[[], None]] = []
        self._changed = trio.Event()
        self.holds: bool = False
        """True if messages wait for the limit."""
        self._horizon = HORIZON
        self._destinations: Sequence[Connection] = ()
        self._one_is_enough = settings.strategy == "fallback"
        self._gone: Callable[[], int] = lambda: 0
        self._most_under_way = 0
        self._stuck: int | None = None
        """The number of sent messages that do not get through; None while they do."""
        self._stuck_since = inf
        """The time since which none of them gets through, if each value has a limit."""
        self._parked: int | None = None
        """While some of several fallbacks are away, the number of messages that had been sent when that began."""
        if settings.limit is not None:
            rate = settings.limit.rate
            burst = settings.limit.most_at_once
            if settings.limit.per is None:
                self.limit = Limit(rate.messages, rate.seconds, burst)
                self._most_under_way = burst + ceil(UNDER_WAY_FOR * rate.messages / rate.seconds)
            else:
                self.values = ValueLimits(rate.messages, rate.seconds, burst)
            self._rate = format_rate(rate)
            state.limit = LimitState(self._rate, burst, settings.limit.per)
            self._horizon = min(HORIZON, settings.source.ack_wait / 2)
        several = len(connections) > 1
        never = frozenset(settings.retry_or_default.never)
        self._connections = tuple(connections)
        self._breakers: dict[int, DestinationBreaker] = {}
        for place, (connection, to) in enumerate(zip(connections, settings.to, strict=True)):
            # A handler may send its answers anywhere, so the refusal of one says nothing about others.
            if to.breaker is not None or (holds and plan.handler is None and _gets_all(settings, place)):
                self._breakers[place] = DestinationBreaker(
                    to.breaker,
                    state,
                    connection,
                    state.to[place],
                    emit,
                    self.wake,
                    several=several,
                    falls_back=self._one_is_enough,
                    kept=holds,
                    never=never,
                )
        self.breakers: tuple[DestinationBreaker, ...] = tuple(self._breakers.values())
        self.quiet: bool = not self.has_limit
        """True while there is nothing to ask it: no limit, and no breaker that is not closed."""
        self._real = [place for place, destination in enumerate(plan.destinations) if destination.mirror is None]
        state.break_by(
            tuple(one.shown for one in self.breakers if one.is_configured),
            0 if settings.strategy == "all" else len(self._real) - 1,
            self.breakers[0] if self.breakers and not several else None,
        )

    def go_on(self, before: FlowControl) -> None:
        """Continue the limit of the same route with its previous settings, so that a reload admits no burst.

        Call it before anything uses this. A limit for each value continues if `per` is the same.
        """
        now, own, theirs = trio.current_time(), self._state.limit, before._state.limit
        if own is None or theirs is None or own.per != theirs.per:
            return
        same = (own.rate, own.burst) == (theirs.rate, theirs.burst)
        if self.limit is not None and before.limit is not None:
            if same:
                self.limit = before.limit
            else:
                self.limit.go_on(before.limit, now)
        if self.values is not None and before.values is not None:
            if same:
                self.values = before.values  # perhaps a hundred thousand
            else:
                self.values.go_on(before.values, now)
        self._stuck, self._stuck_since, self._parked = before._stuck, before._stuck_since, before._parked

    @property
    def has_limit(self) -> bool:
        """Return True if the route has a rate limit."""
        return self.limit is not None or self.values is not None

    def breaker_of(self, place: int) -> DestinationBreaker | None:
        """Return the circuit breaker of the destination at this place; None if it has none."""
        return self._breakers.get(place)

    # --- sent messages, and their destinations ---

    def follow(self, destinations: Sequence[Connection], gone: Callable[[], int]) -> None:
        """Hold back messages while one of these connections is away, or does not confirm sent messages.

        `gone` returns the number of unsettled messages that were sent to them, without those in a handler.
        """
        if self.limit is None and self.values is None:
            return
        self._destinations, self._gone = tuple(destinations), gone
        if self.values is not None and destinations:
            self.values.answered_until = 0.0
        for connection in destinations:
            connection.when_changed(self._destination_changed)

    def unfollow(self) -> None:
        """Hold back no more messages: what is sent from now on uses the limit of later settings."""
        for connection in self._destinations:
            connection.stop_notifying(self._destination_changed)
        self._destinations = ()

    def retire(self) -> None:
        """Stop listening, since the route has ended and the router goes on."""
        self.unfollow()
        for breaker in self.breakers:
            breaker.stop_listening()
        self._listeners.clear()  # the state, which may be kept for its counts, leads to this

    @property
    def is_away(self) -> bool:
        """Return True while a destination is not connected and would queue messages until it is.

        Of several fallbacks, one connected destination is enough.
        """
        away = self._count_away()
        return away == len(self._destinations) if self._one_is_enough and self._destinations else away > 0

    def _count_away(self) -> int:
        return sum(not one.connected and not one.settings.fail_open for one in self._destinations)

    def _is_stuck(self, arriving: int) -> bool:
        """Return True while sent messages do not get through. `arriving` messages are not queued yet.

        All sent messages may reach the server at the moment when that ends, so they use the limit then, not before.
        """
        if not self._destinations:
            return False
        now, under_way = trio.current_time(), self._gone() - arriving
        under_way -= self._park(under_way, now)
        silent = [] if self.values is None or under_way <= 0 else self._silent(now)
        if self.is_away or silent or (self.limit is not None and under_way >= self._most_under_way):
            self._stuck = max(under_way, self._stuck or 0)
            for outbox in silent:
                self._stuck_since = min(self._stuck_since, outbox.undelivered_since(UNDER_WAY_FOR))
            return True
        self._get_through(now)
        if self.values is not None:
            # As long as no outbox is silent, what it has not confirmed was sent since: see `Outbox.undelivered_since`.
            values = self.values
            values.answered_until = now if under_way <= 0 else max(values.answered_until, now - 2 * UNDER_WAY_FOR)
        return False

    def _get_through(self, now: float) -> None:
        """Charge the limit for sent messages that were stuck until now."""
        if self._stuck is None:
            return
        if self.limit is not None:
            self.limit.charge(self._stuck, now)
        elif self.values is not None:
            # The outbox may have been silent before, with publishes of others.
            self.values.stand_still(max(self._stuck_since, self.values.answered_until), now)
        self._stuck, self._stuck_since = None, inf

    def _destination_changed(self) -> None:
        """Take in that a destination was connected or lost, also while no message waits to be sent."""
        if self._is_stuck(0) and self.values is not None and not self.is_away:
            # Unconfirmed messages of the lost link reach the server now, perhaps before `may_go` is called again.
            self._get_through(trio.current_time())
        self.wake()

    def _park(self, under_way: int, now: float) -> int:
        """Return how many messages wait for a fallback that is away: they do not hold up messages for the others.

        They count as sent when it is back.
        """
        if not self._one_is_enough or self.limit is None:
            return 0
        if self._count_away():
            if self._parked is None:
                self._parked = max(0, under_way)
            return 0 if self.is_away else self._parked
        if self._parked is not None:
            self.limit.charge(self._parked, now)
            self._parked = None
        return 0

    def _silent(self, now: float) -> list[Outbox]:
        """Return the outboxes of destinations that confirm none of the messages sent to them.

        A fallback that is away is not included: others accept the messages.
        """
        outboxes = [one.outbox for one in self._destinations if one.connected or not self._one_is_enough]
        return [one for one in outboxes if now - one.silent_since >= UNDER_WAY_FOR]

    # --- for the route ---

    @property
    def probing(self) -> bool:
        """Return True if a breaker is not closed: then messages are sent one by one, each with its own owner."""
        for one in self.breakers:  # noqa: SIM110 - faster, and called for each read
            if not one.closed:
                return True
        return False

    def may_go(self, most: int, *, arriving: bool = False) -> int:
        """Return how many of up to `most` messages may be sent now. `arriving`: they are not queued yet."""
        if self._is_stuck(most if arriving else 0):
            return 0
        if self.probing:
            if not self._admits(trio.current_time()):
                return 0
            most = 1
        if self.limit is None:
            return most
        return max(0, min(most, self.limit.available(trio.current_time())))

    def going(self, count: int, left: int) -> None:
        """Take `count` tokens. Call it without a checkpoint after `may_go`. `left` messages wait."""
        if self.limit is None:
            return
        now = trio.current_time()
        self.limit.charge(count, now)
        if self.holds:
            self._state.limited += count
        if left and not self.limit.available(now):
            self.hold_back(left)
        else:
            self.holds = False
        if not left:
            self._notify()  # messages that waited have made room for others, before they are settled

    def filtered(self, count: int) -> None:
        """Return the tokens of `count` messages that the route filtered out."""
        if self.limit is not None:
            self.limit.give_back(count)

    def hold_back(self, count: int) -> None:
        """Record that `count` messages have to wait for the limit."""
        if not self.holds:
            self.holds = True
            self._emit(RouteLimited(at=trio.current_time(), route=self._state.name, rate=self._rate, count=count))

    def nothing_waits(self) -> None:
        """Record that no message waits for the limit of its value any more."""
        self.holds = False

    async def wait_to_go(self, count: int) -> None:
        """Wait until one of `count` messages may be sent, or that should be checked again."""
        if self.limit is not None and not self.probing and self._stuck is None:
            self.hold_back(count)
        changed = self._changed
        with trio.CancelScope(deadline=self.next_at):
            await changed.wait()

    @property
    def next_at(self) -> float:
        """Return when messages may be sent again: not in the future if now, infinite if an event must happen first."""
        now = trio.current_time()
        if self.is_away:
            return inf
        if self._stuck is not None:
            return now + LOOK_FOR_FATES
        if self.probing and not self._admits(now):
            probes = [one.probe_at for one in self.breakers if one.state == "open" and one.probe_at > now]
            if self._one_is_enough:
                return min([*probes, now + LOOK_AGAIN])
            return max(probes, default=inf)
        return self.limit.free_at() if self.limit is not None else now

    def when_changed(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time that a breaker changes."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """Wake the tasks that wait, to check again."""
        self.quiet = not (self.has_limit or self.probing)
        self._changed.set()
        self._changed = trio.Event()
        self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    # --- for the pull loop of a stream ---

    def may_ask(self, wanted: int, waiting: int, behind: int, outstanding: int, given_up: int) -> int:
        """Return how many of the `wanted` messages to request.

        `given_up` messages are redelivered until their dead letters are stored, and probe no destination. They are
        requested in addition: a stream redelivers before it delivers new messages.
        `waiting` messages are in hand, and `outstanding` ones are requested already. `behind` of those in hand wait for
        another message of their key, perhaps for long: they keep no message of another key from being requested.
        """
        now = trio.current_time()
        waiting -= behind
        if self.probing:
            if not self._admits(now) or waiting or outstanding:
                return 0
            wanted = min(wanted, 1 + given_up)
        if self.limit is None:
            return wanted
        soon = self.limit.available(now + self._horizon)
        free = soon - waiting - outstanding
        return min(wanted, free) if free > 0 and 2 * free >= soon else 0

    @property
    def ask_at(self) -> float:
        """Return when `may_ask` may return more, if nothing happens before."""
        now = trio.current_time()
        if self.probing and not self._admits(now):
            return self.next_at
        if self.limit is None:
            return inf
        at = self.limit.free_at() - self._horizon
        return at if at > now else inf

    def held_up(self) -> str | None:
        """Return why no message may be sent now, if a breaker is the cause."""
        if self.probing and not self._admits(trio.current_time()):
            return next(one.shown.why_open for one in self.breakers if not one.closed)
        return None

    @property
    def pauses(self) -> bool:
        """Return True if the route counts as paused while it is `held_up`."""
        refusing = any(not (one.closed or one.is_configured) for one in self.breakers)
        return refusing or bool(self._state.held_up(trio.current_time()))

    def _admits(self, now: float) -> bool:
        if not self._one_is_enough:
            return all(one.admits(now) for one in self.breakers)
        # The first destination gets the messages that none accepts.
        first = self.breaker_of(self._real[0])
        return first is None or first.admits(now) or any(map(self._is_healthy, self._real))

    def _is_healthy(self, place: int) -> bool:
        return is_healthy(self._connections[place], self.breaker_of(place), self._state.to[place])
