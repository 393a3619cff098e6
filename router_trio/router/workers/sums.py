"""The workers as one router: adds up their reports and the counts of ended workers. Pure.

The result has the form that pages are made from (`telemetry.view`), so that a sum is shown like a single router. Counts
are added. Of several states the worst is shown, with the number of the worker that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from router_trio.outbox.ledger import Counters, Ledger
from router_trio.router.workers.counts.numbers import CONNECTION, ROUTE, Counts, add, add_to_ledger
from router_trio.router.workers.report import ConnectionReport, Report, RouteReport
from router_trio.settings import RouteSettings, Settings
from router_trio.settings.units import format_rate
from router_trio.states import (
    BREAKER_GAUGE,
    DISCONNECTED,
    FAILED,
    GAUGE,
    PAUSED,
    RUNNING,
    STARTING,
    Behind,
    BreakerState,
    ConnectionState,
    DestinationState,
    Held,
    LimitState,
    Partitions,
    RouteState,
)
from router_trio.telemetry.view import ConfigView

_WORST_FIRST = (FAILED, STARTING, PAUSED, RUNNING)

NO_WORKER = "no worker is running"


@dataclass(slots=True)
class OutboxSum:
    """A `view.OutboxView` of all workers."""

    pending: int = 0
    pending_bytes: int = 0
    in_flight: int = 0
    oldest_age: float = 0.0
    max_operations: int = 0
    max_bytes: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    counters: Counters = field(default_factory=Counters)

    def unanswered_destinations(self) -> list[str]:
        """Return an empty list: these destinations are among the reasons of their workers."""
        return []


@dataclass(slots=True)
class ConnectionSum:
    """A `view.ConnectionView` of all workers."""

    state: ConnectionState
    outbox: OutboxSum


@dataclass(slots=True)
class ConfigSum:
    """A `view.ConfigView`: the configuration of the supervisor, with the hashes of its workers."""

    hash: str = ""
    hashes: Sequence[str] = ()
    files: Sequence[str] = ()
    loaded_at: float = 0.0
    last_error: str | None = None
    reloads: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class RouterSum:
    """A `view.RouterView` of all workers. `counts` contains all counts.

    `ready` are the routes that at least one worker has, and that would deliver a message in each that has them.
    """

    name: str
    connections: Mapping[str, ConnectionSum] = field(default_factory=dict)
    routes: Sequence[RouteState] = ()
    counts: Counts = field(default_factory=dict)
    config: ConfigView = field(default_factory=ConfigSum)
    ready: frozenset[str] = frozenset()
    fatal: str | None = None

    def ledger(self) -> dict[str, dict[str, object]]:
        """Return the ledger of each connection."""
        return {
            name: {
                "accepted": one.outbox.ledger.accepted,
                "pending": one.outbox.pending,
                "in_flight": one.outbox.in_flight,
                "settled": dict(one.outbox.ledger.settled),
            }
            for name, one in self.connections.items()
        }


def sum_up(
    settings: Settings,
    reports: Mapping[int, Report],
    ended: Counts,
    shapes: Mapping[str, RouteReport],
    config: ConfigView,
) -> RouterSum:
    """Return the sum of the running workers, by number, and of the counts of ended ones.

    `shapes` contains each route as some worker has reported it, even if none runs now; `config` is the supervisor's.
    """
    counts: Counts = {}
    add(counts, ended)
    for report in reports.values():
        add(counts, report.counts)
    reported = [name for report in reports.values() for name in report.connections]
    connections = {
        name: _connection(
            name, {number: one.connections[name] for number, one in reports.items() if name in one.connections}, counts
        )
        for name in dict.fromkeys((*settings.connections, *reported))
    }
    by_name: dict[str, dict[int, RouteReport]] = {}
    for number, report in reports.items():
        for route in report.routes:
            by_name.setdefault(route.name, {})[number] = route
    known = {route.name: route for route in settings.routes}
    routes = [
        _route(shapes[name], by_name.get(name, {}), known.get(name), counts)
        for name in dict.fromkeys((*known, *by_name))
        if name in shapes
    ]
    hashes = tuple(dict.fromkeys((config.hash, *(report.config_hash for report in reports.values()))))
    summed = ConfigSum(config.hash, hashes, config.files, config.loaded_at, config.last_error, config.reloads)
    ready = frozenset(name for name, ones in by_name.items() if all(one.ready for one in ones.values()))
    return RouterSum(settings.router.name, connections, routes, counts, summed, ready)


def causes_first(reasons: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the reasons of all workers, sorted: those about a worker, then about a connection, then about a route.

    A route waits for its connection, and a worker may have noticed only one of the two so far.
    """
    return sorted(reasons, key=lambda reason: 2 if "route" in reason else 1 if "connection" in reason else 0)


def _connection(name: str, reports: Mapping[int, ConnectionReport], counts: Counts) -> ConnectionSum:
    state, outbox = ConnectionState(name), OutboxSum()
    add_to_ledger(outbox.ledger, outbox.counters, state, counts.get((CONNECTION, name), {}))
    state.last_error = NO_WORKER
    if reports:
        number, worst = min(reports.items(), key=lambda item: (GAUGE[item[1].state], item[1].since))
        state.state, state.since, state.server, state.attempts = worst.state, worst.since, worst.server, worst.attempts
        state.last_error = None if worst.last_error is None else f"worker {number}: {worst.last_error}"
    else:
        state.enter(DISCONNECTED)
    for one in reports.values():
        outbox.pending += one.pending
        outbox.in_flight += one.in_flight
        outbox.oldest_age = max(outbox.oldest_age, one.oldest_age)
        outbox.max_operations += one.max_operations
        outbox.max_bytes += one.max_bytes
        outbox.pending_bytes += one.pending_bytes
    return ConnectionSum(state, outbox)


def _route(
    shape: RouteReport, reports: Mapping[int, RouteReport], settings: RouteSettings | None, counts: Counts
) -> RouteState:
    state = RouteState(shape.name, shape.connection, shape.destinations)
    state.source, state.redelivers = shape.source, shape.redelivers
    state.is_leaving, state.gives_up = settings is None, settings is not None and settings.gives_up
    state.break_by(_breakers(shape, reports), 0)
    state.add_numbers(counts.get((ROUTE, shape.name), {}))
    for exemplar in chain.from_iterable(one.exemplars for one in (shape, *reports.values())):
        state.elapsed.keep(exemplar)
    # Messages without a duration are not in hand here: they may have been settled after their worker ended.
    state.held_by(
        Held(
            sum(one.in_hand for one in reports.values()),
            sum(one.waiting_for_limit for one in reports.values()),
            (
                sum(one.retrying[0] for one in reports.values()),
                max((one.retrying[1] for one in reports.values()), default=0.0),
            ),
            behind=_behind(list(reports.values())),
            partitions=_partitions([one.partitions for one in reports.values() if one.partitions is not None]),
        )
    )
    limit = None if settings is None else settings.limit
    if limit is not None:
        state.limit = LimitState(format_rate(limit.rate), limit.most_at_once, limit.per)
    # The shape comes from a worker that may have ended, and its failure may still be the last one.
    failures = [one.last_failure for one in (shape, *reports.values()) if one.last_failure is not None]
    state.last_failure = max(failures, key=lambda one: one.at, default=None)
    state.to = _destinations(state, shape, reports)
    for place in {place: None for one in reports.values() for place in one.draining}:
        counts_there = [one.draining.get(place) for one in reports.values()]  # each has looked at the same stream
        state.draining[place] = max((count for count in counts_there if count is not None), default=None)
    if reports:
        number, worst = min(reports.items(), key=lambda item: _WORST_FIRST.index(item[1].state))
        state.enter(worst.state, None if worst.reason is None else f"worker {number}: {worst.reason}")
    else:
        state.enter(STARTING, NO_WORKER)
    return state


def _behind(reports: Sequence[RouteReport]) -> Behind | None:
    """Return how far a route is behind, as its workers have reported it; None if that is not known."""
    known = [one.behind for one in reports if one.behind is not None]
    if any(one.partitions is not None for one in reports):
        leading = [one for one in reports if one.partitions is not None and one.partitions.led]
        return None if any(one.behind is None for one in leading) else Behind.of_parts([*map(_alone, known)])
    return _behind_together(known)


def _alone(worker: Behind) -> Behind:
    """Return how far a worker is behind whose partitions no other one leads."""
    return replace(worker, unsettled=max(0, worker.unsettled + worker.elsewhere), elsewhere=0)


def _behind_together(workers: Sequence[Behind]) -> Behind | None:
    """Return how far a route is behind whose durable these workers share; None if none of them knows it.

    What the server has not delivered is counted once, by the worker that learned of it last. A worker counts the
    messages of the others as being elsewhere.
    """
    if not workers:
        return None
    last = min(workers, key=lambda one: one.known_for)
    unsettled = sum(one.unsettled for one in workers)
    elsewhere = min(one.elsewhere - (unsettled - one.unsettled) for one in workers)
    return Behind(last.pending, unsettled, max(0, elsewhere), max(one.seconds for one in workers), last.known_for)


def _partitions(workers: Sequence[Partitions]) -> Partitions | None:
    """Return the partitions that workers lead together; None for a route without partitions."""
    if not workers:
        return None
    # A worker that has not joined yet, or has just lost its link, sees fewer members than the others.
    seen = max(workers, key=lambda one: len(one.members))
    led = {number for one in workers for number in one.led}
    wanted = {number for one in workers for number in one.wanted} - led
    lag = {number: lag for one in workers for number, lag in one.lag.items()}
    return replace(
        seen,
        led=tuple(sorted(led)),
        wanted=tuple(sorted(wanted)),
        lag=lag,
        member="",
        uncopied=max(one.uncopied for one in workers),
    )


def _breakers(shape: RouteReport, reports: Mapping[int, RouteReport]) -> list[BreakerState]:
    found = []
    for index, one in enumerate(shape.breakers):
        breaker = BreakerState(one.connection, one.template)
        for number, report in reports.items():
            its = report.breakers[index] if index < len(report.breakers) else None
            if its is not None and BREAKER_GAUGE[its.state] > BREAKER_GAUGE[breaker.state]:
                breaker.state = its.state
                breaker.why_open = None if its.why_open is None else f"worker {number}: {its.why_open}"
        found.append(breaker)
    return found


def _destinations(state: RouteState, shape: RouteReport, reports: Mapping[int, RouteReport]) -> list[DestinationState]:
    found = []
    for index, one in enumerate(shape.to):
        to = DestinationState(
            state,
            one.connection,
            one.template,
            one.pattern,
            waits_for_puback=one.waits_for_puback,
            shown=one.shown,
            dead_letters=one.dead_letters,
            scheduled=one.scheduled,
        )
        to.looked_up = None
        ends = [report.to[index] for report in reports.values() if index < len(report.to)]
        # Each of them has looked at the same streams, within the last minute.
        to.waiting = max((end.waiting for end in ends if end.waiting is not None), default=None)
        for number, report in reports.items():
            trouble = report.to[index].trouble if index < len(report.to) else None
            if trouble is not None:
                to.mark_refused(trouble[0], f"worker {number}: {trouble[1]}")
                break
        found.append(to)
    return found
