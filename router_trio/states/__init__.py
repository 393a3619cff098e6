"""The current state and the counts of connections and routes: plain values that any code may read.

Written by the tasks that own them, read by metrics, `/status` and `/readyz` without a lock or an await.
"""

from __future__ import annotations

from router_trio.states.connection import (
    CONNECTED,
    DISCONNECTED,
    GAUGE,
    LINK_COUNTS,
    RECONNECTING,
    ConnectionState,
)
from router_trio.states.counts import ROUTE_FATES, RouteCounts
from router_trio.states.failing import BeingRetried
from router_trio.states.histogram import (
    DURATION_BOUNDS,
    NANO,
    Histogram,
)
from router_trio.states.route import (
    BREAKER_GAUGE,
    FAILED,
    FILTER_REASONS,
    HANDLER_QUIET,
    NO_STREAM,
    NOT_LOOKED_UP,
    PAUSED,
    REPLY,
    RUNNING,
    STARTING,
    UNANSWERED_REASONS,
    DestinationState,
    Holder,
    LimitState,
    RouteState,
)
from router_trio.states.values import (
    Behind,
    BreakerState,
    Exemplar,
    Held,
    LastFailure,
    Partitions,
    Schedules,
)

__all__ = [
    "BREAKER_GAUGE",
    "CONNECTED",
    "DISCONNECTED",
    "DURATION_BOUNDS",
    "FAILED",
    "FILTER_REASONS",
    "GAUGE",
    "HANDLER_QUIET",
    "LINK_COUNTS",
    "NANO",
    "NOT_LOOKED_UP",
    "NO_STREAM",
    "PAUSED",
    "RECONNECTING",
    "REPLY",
    "ROUTE_FATES",
    "RUNNING",
    "STARTING",
    "UNANSWERED_REASONS",
    "Behind",
    "BeingRetried",
    "BreakerState",
    "ConnectionState",
    "DestinationState",
    "Exemplar",
    "Held",
    "Histogram",
    "Holder",
    "LastFailure",
    "LimitState",
    "Partitions",
    "RouteCounts",
    "RouteState",
    "Schedules",
]
