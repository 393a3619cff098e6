"""Functions that read metrics from the plain integers that the data plane counts anyway.

Every series whose labels are known in advance exists at zero from the start: `increase()` would miss the first event of
a series that starts at one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from router_trio.settings.reload.state import RELOAD_OUTCOMES
from router_trio.states import BREAKER_GAUGE, Behind, Partitions, RouteState, Schedules
from router_trio.telemetry.metrics.metric import Labels, Numbers, Sources
from router_trio.telemetry.view import ConnectionView


def connection(number: Callable[[ConnectionView], float]) -> Numbers:
    """Return a reader of one value of a connection."""
    return lambda sources, connection: [((), number(connection))]


def connection_by(known: Labels, numbers: Callable[[ConnectionView], Mapping[str, int]]) -> Numbers:
    """Return a reader of the values of a connection by a further label. The label values `known` always exist."""
    return _by(known, numbers)


def route(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of one value of a route."""
    return lambda sources, route: [((), number(route))]


def route_ready(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
    """Read 1 if a route would deliver a message now, else 0."""
    return [((), float(sources.route_ready(route)))]


def route_by(known: Labels, numbers: Callable[[RouteState], Mapping[str, int]]) -> Numbers:
    """Return a reader of the values of a route by a further label. The label values `known` always exist."""
    return _by(known, numbers)


def _by(known: Labels, numbers: Callable[[Any], Mapping[str, int]]) -> Numbers:
    always = [((value,), value) for value in known]

    def read(sources: Sources, part: Any) -> Iterable[tuple[Labels, float]]:
        found = numbers(part)
        series = [(values, found.get(value, 0)) for values, value in always]
        return [*series, *(((value,), number) for value, number in found.items() if value not in known)]

    return read


def given_up(known: Labels) -> Numbers:
    """Return a reader of the messages given up, by reason. The label values `known` exist on routes that give up."""
    always, later = route_by(known, _given_up), route_by((), _given_up)
    return lambda sources, route: (always if route.gives_up else later)(sources, route)


def _given_up(route: RouteState) -> Mapping[str, int]:
    return route.given_up


def limited(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of one value of a route if it has a limit."""
    return lambda sources, route: [] if route.limit is None else [((), number(route))]


def conflicts(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
    """Read the conflicts of a route, if it had any."""
    return [((), route.conflicts)] if route.conflicts else []


def behind(number: Callable[[Behind], float]) -> Numbers:
    """Return a reader of one value of a route from a stream, while it is known how far the route is behind."""
    return lambda sources, route: [] if (behind := route.behind) is None else [((), number(behind))]


def partitions(number: Callable[[Partitions], float]) -> Numbers:
    """Return a reader of one value of a route with partitions."""

    def read(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
        found = route.partitions
        return [] if found is None else [((), number(found))]

    return read


def schedules(number: Callable[[Schedules], float | None]) -> Numbers:
    """Return a reader of one value of the schedules of a route, by kind, as far as it has them and knows the value."""

    def read(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
        for kind, found in (("delay", route.delays), ("retry", route.scheduled_retries)):
            if found is not None and (value := number(found)) is not None:
                yield (kind,), value

    return read


def retries(number: Callable[[Schedules], float | None]) -> Numbers:
    """Return a reader of one value of a route with scheduled retries."""

    def read(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
        found = route.scheduled_retries
        value = None if found is None else number(found)
        return [] if value is None else [((), value)]

    return read


def breaker_states(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
    """Read the state of each breaker. Breakers with equal labels share one series, with the worst of their states."""
    found: dict[Labels, float] = {}
    for one in route.breakers:
        labels = (one.template, one.connection)
        found[labels] = max(found.get(labels, 0.0), BREAKER_GAUGE[one.state])
    return found.items()


def openings(sources: Sources, route: RouteState) -> Iterable[tuple[Labels, float]]:
    """Read how often each breaker opened. Breakers with equal labels share one series."""
    return {
        (one.template, one.connection): route.openings[one.connection, one.template] for one in route.breakers
    }.items()


def router(number: Callable[[Sources], float]) -> Numbers:
    """Return a reader of one value of the router."""
    return lambda sources, _: [((), number(sources))]


def reloads(sources: Sources, _: object) -> Iterable[tuple[Labels, float]]:
    """Read the number of reloads, by outcome."""
    counted = sources.view.config.reloads
    return [((outcome,), counted.get(outcome, 0)) for outcome in RELOAD_OUTCOMES]


def failed(operation: str) -> Callable[[ConnectionView], Mapping[str, int]]:
    """Return a function that reads the failures of an operation by reason."""

    def numbers(connection: ConnectionView) -> Mapping[str, int]:
        failed = connection.outbox.counters.failed
        return {reason: count for (kind, reason), count in failed.items() if kind == operation}

    return numbers


def succeeded(operation: str) -> Callable[[ConnectionView], float]:
    """Return a function that reads how often an operation succeeded."""
    return lambda connection: connection.outbox.counters.succeeded[operation]


def pending_bytes(connection: ConnectionView) -> float:
    """Return the size of the pending operations in bytes."""
    return connection.outbox.pending_bytes


def oldest_age(connection: ConnectionView) -> float:
    """Return the age of the oldest pending operation in seconds."""
    return connection.outbox.oldest_age


def unbalanced(connection: ConnectionView) -> float:
    """Return the imbalance of a connection's ledger: 0 unless the router has a bug."""
    outbox = connection.outbox
    return outbox.ledger.unsettled - outbox.pending - outbox.in_flight
