"""Functions that read metrics from the plain integers that the data plane counts anyway.

Every series whose labels are known in advance exists at zero from the start: `increase()` would miss the first event of
a series that starts at one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from router_trio.states import BREAKER_GAUGE, Histogram, RouteState
from router_trio.telemetry.metrics.metric import Labels, Numbers, Sources
from router_trio.telemetry.view import ConnectionView


def connection(number: Callable[[ConnectionView], float]) -> Numbers:
    """Return a reader of one value per connection."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        return [((name,), number(one)) for name, one in sources.view.connections.items()]

    return read


def connection_by(known: Labels, numbers: Callable[[ConnectionView], Mapping[str, int]]) -> Numbers:
    """Return a reader of the values of each connection by a further label. The label values `known` always exist."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        for name, one in sources.view.connections.items():
            found = numbers(one)
            for value in dict.fromkeys((*known, *found)):
                yield (name, value), found.get(value, 0)

    return read


def route(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of one value per route."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        return [((route.connection, route.name), number(route)) for route in sources.view.routes]

    return read


def route_ready(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Read for each route 1 if it would deliver a message now, else 0."""
    return [((one.connection, one.name), float(sources.route_ready(one))) for one in sources.view.routes]


def route_by(known: Labels, numbers: Callable[[RouteState], Mapping[str, int]]) -> Numbers:
    """Return a reader of the values of each route by a further label. The label values `known` always exist."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        for route in sources.view.routes:
            found = numbers(route)
            for value in dict.fromkeys((*known, *found)):
                yield (route.connection, route.name, value), found.get(value, 0)

    return read


def limited(number: Callable[[RouteState], float]) -> Numbers:
    """Return a reader of one value per route that has a limit."""

    def read(sources: Sources) -> Iterable[tuple[Labels, float]]:
        limited = [route for route in sources.view.routes if route.limit is not None]
        return [((route.connection, route.name), number(route)) for route in limited]

    return read


def breaker_states(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Read the state of each breaker. Breakers with equal labels share one series, with the worst of their states."""
    found: dict[Labels, float] = {}
    for route in sources.view.routes:
        for one in route.breakers:
            labels = (route.connection, route.name, one.template, one.connection)
            found[labels] = max(found.get(labels, 0.0), BREAKER_GAUGE[one.state])
    return found.items()


def openings(sources: Sources) -> Iterable[tuple[Labels, float]]:
    """Read how often each breaker opened. Breakers with equal labels share one series."""
    found: dict[Labels, float] = {}
    for route in sources.view.routes:
        for one in route.breakers:
            labels = (route.connection, route.name, one.template, one.connection)
            found[labels] = route.openings[one.connection, one.template]
    return found.items()


def process(number: Callable[[Sources], float]) -> Numbers:
    """Return a reader of one value of the process."""
    return lambda sources: [((), number(sources))]


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


def durations(sources: Sources) -> Iterable[tuple[Labels, Histogram]]:
    """Read the histogram of durations of each route."""
    return [((route.connection, route.name), route.durations) for route in sources.view.routes]
