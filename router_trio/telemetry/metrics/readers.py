"""Read metrics, by a walk over plain integers that the data plane counts anyway.

Every series whose labels are known exists from the start, at zero: one that is born at one is invisible to
`increase()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from router_trio.states import BREAKER_GAUGE, Histogram, RouteState
from router_trio.telemetry.metrics.metric import Labels, Numbers, Sources
from router_trio.telemetry.view import ConnectionView


def connection(number: Callable[[ConnectionView], float]) -> Numbers:
    """Return a reader of a number of each connection."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        return [((name,), number(one)) for name, one in sources.view.connections.items()]

    return read


def connection_by(known: Labels, numbers: Callable[[ConnectionView], Mapping[str, int]]) -> Numbers:
    """Return a reader of the numbers of each connection by a further label; those of `known` are always there."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        for name, one in sources.view.connections.items():
            found = numbers(one)
            for value in dict.fromkeys((*known, *found)):
                yield (name, value), found.get(value, 0)

    return read


def route(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of a number of each route."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        return [((route.connection, route.name), number(route)) for route in sources.view.routes]

    return read


def route_ready(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Return of each route 1 if it would deliver a message now, else 0."""
    return [((one.connection, one.name), float(sources.route_ready(one))) for one in sources.view.routes]


def route_by(known: Labels, numbers: Callable[[RouteState], Mapping[str, int]]) -> Numbers:
    """Return a reader of the numbers of each route by a further label; those of `known` are always there."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        for route in sources.view.routes:
            found = numbers(route)
            for value in dict.fromkeys((*known, *found)):
                yield (route.connection, route.name, value), found.get(value, 0)

    return read


def limited(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of a number of each route that has a limit."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        limited = [route for route in sources.view.routes if route.limit is not None]
        return [((route.connection, route.name), number(route)) for route in limited]

    return read


def breaker_states(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Return the state of each breaker. Those that differ in nothing that a label says are one series: the worst."""
    found: dict[Labels, float] = {}
    for route in sources.view.routes:
        for one in route.breakers:
            labels = (route.connection, route.name, one.template, one.connection)
            found[labels] = max(found.get(labels, 0.0), BREAKER_GAUGE[one.state])
    return found.items()


def openings(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Return how often each breaker opened. Those that differ in nothing that a label says are one series."""
    found: dict[Labels, float] = {}
    for route in sources.view.routes:
        for one in route.breakers:
            labels = (route.connection, route.name, one.template, one.connection)
            found[labels] = route.openings[one.connection, one.template]
    return found.items()


def process(number: Callable[[Sources], float]) -> Numbers:
    """Return a reader of one number."""
    return lambda sources: [((), number(sources))]


def failed(operation: str) -> Callable[[ConnectionView], Mapping[str, int]]:
    """Return what gives the failures of an operation by reason."""

    def numbers(connection: ConnectionView) -> Mapping[str, int]:
        failed = connection.outbox.counters.failed
        return {reason: count for (kind, reason), count in failed.items() if kind == operation}

    return numbers


def succeeded(operation: str) -> Callable[[ConnectionView], float]:
    """Return what gives how often an operation succeeded."""
    return lambda connection: connection.outbox.counters.succeeded[operation]


def pending_bytes(connection: ConnectionView) -> float:
    """Return the bytes of pending operations."""
    return connection.outbox.pending_bytes


def oldest_age(connection: ConnectionView) -> float:
    """Return how long the oldest pending operation has waited, in seconds."""
    return connection.outbox.oldest_age


def unbalanced(connection: ConnectionView) -> float:
    """Return what the ledger of a connection is wrong by."""
    outbox = connection.outbox
    return outbox.ledger.unsettled - outbox.pending - outbox.in_flight


def durations(sources: Sources) -> Iterable[tuple[Labels, Histogram]]:
    """Return the durations of each route."""
    return [((route.connection, route.name), route.durations) for route in sources.view.routes]
