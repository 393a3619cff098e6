"""The report of a worker to its supervisor: plain values, all taken at the same moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from router_trio.router.workers.counts.numbers import Counts
from router_trio.router.workers.counts.process_numbers import process_numbers
from router_trio.states import Behind, DestinationState, Exemplar, LastFailure, Partitions, RouteState
from router_trio.telemetry.http.status import readiness, route_ready, waiting_for
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.view import ConnectionView, RouterView


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """The state of a connection, without its counts."""

    state: str
    since: float
    server: str | None
    attempts: int
    last_error: str | None
    pending: int
    in_flight: int
    max_operations: int
    max_bytes: int
    pending_bytes: int
    oldest_age: float


@dataclass(frozen=True, slots=True)
class DestinationReport:
    """A destination, and why it would refuse a message now."""

    connection: str
    template: str
    pattern: str
    waits_for_puback: bool
    shown: Mapping[str, str | bool]
    dead_letters: bool
    trouble: tuple[str, str] | None
    scheduled: str | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class BreakerReport:
    """The state of a breaker."""

    connection: str
    template: str
    state: str
    why_open: str | None


@dataclass(frozen=True, slots=True)
class RouteReport:
    """The state of a route, without its counts."""

    name: str
    connection: str
    destinations: tuple[str, ...]
    source: Mapping[str, str | list[str]]
    redelivers: bool
    state: str
    reason: str | None
    ready: bool
    in_hand: int
    waiting_for_limit: int
    last_failure: LastFailure | None
    retrying: tuple[int, float]
    behind: Behind | None
    partitions: Partitions | None
    to: Sequence[DestinationReport]
    breakers: Sequence[BreakerReport]
    exemplars: Sequence[Exemplar]
    draining: Mapping[tuple[str, str], int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a worker. `news` are log entries since the last report, `waiting_for` is why it is not ready.

    `seconds` is how long it took to make the report.
    """

    counts: Counts
    connections: Mapping[str, ConnectionReport]
    routes: Sequence[RouteReport]
    reasons: Sequence[Mapping[str, str]]
    waiting_for: str | None
    config_hash: str
    process: Mapping[str, float]
    news: Sequence[dict[str, Any]]
    seconds: float = 0.0


class Reporter:
    """Makes the reports of one worker."""

    def __init__(self, view: RouterView, recent: Recent | None) -> None:
        self._view = view
        self._recent = recent
        self._last_reported = 0

    def report(self, count: Callable[[], Counts], now: float) -> Report:
        """Return the state of the router. `count` returns all of its counts; `now` is on the clock of the fences."""
        view, began_at = self._view, perf_counter()
        counts = count()
        news = [] if self._recent is None else self._recent.since(self._last_reported)
        if news:
            self._last_reported = news[-1]["number"]
        return Report(
            counts,
            {name: _connection(one) for name, one in view.connections.items()},
            [_route(state, route_ready(view, state, now), now) for state in view.routes],
            readiness(view, now)[1]["reasons"],
            waiting_for(view, now),
            view.config.hash,
            process_numbers(),
            news,
            perf_counter() - began_at,
        )


def _connection(connection: ConnectionView) -> ConnectionReport:
    state, outbox = connection.state, connection.outbox
    return ConnectionReport(
        state.state,
        state.since,
        state.server,
        state.attempts,
        state.last_error,
        outbox.pending,
        outbox.in_flight,
        outbox.max_operations,
        outbox.max_bytes,
        outbox.pending_bytes,
        outbox.oldest_age,
    )


def _route(state: RouteState, ready: bool, now: float) -> RouteReport:
    return RouteReport(
        state.name,
        state.connection,
        state.destinations,
        dict(state.source),
        state.redelivers,
        state.state,
        state.reason or next(iter(state.obstacles.values()), None) or state.in_circle(now),
        ready,
        state.in_hand,
        state.waiting_for_limit,
        state.last_failure,
        state.retrying,
        state.behind,
        _partitions(state.partitions),
        [_destination(one) for one in state.to],
        [BreakerReport(one.connection, one.template, one.state, one.why_open) for one in state.breakers],
        [*state.elapsed.exemplars.values()],
        dict(state.draining),
    )


def _partitions(partitions: Partitions | None) -> Partitions | None:
    # The lag may be a view of a mapping, which can't be sent.
    return None if partitions is None else replace(partitions, lag=dict(partitions.lag))


def _destination(one: DestinationState) -> DestinationReport:
    return DestinationReport(
        one.connection,
        one.template,
        one.pattern,
        one.waits_for_puback,
        one.shown,
        one.dead_letters,
        one.trouble,
        one.scheduled,
        one.waiting,
    )
