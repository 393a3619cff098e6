"""The definition of a metric: name, type, labels, help, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from router_trio.states import Histogram, RouteState
from router_trio.telemetry.metrics.lag import LAG_BOUNDS
from router_trio.telemetry.view import RouterView


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources that metrics are read from: the router, and telemetry's own counts of what it dropped."""

    view: RouterView
    log_lines_dropped: Callable[[], int] = lambda: 0
    spans_dropped: Callable[[], int] = lambda: 0
    traces_not_followed: Callable[[], int] = lambda: 0
    traces_not_begun: Callable[[], int] = lambda: 0
    listener_errors: Callable[[], int] = lambda: 0
    ready: Callable[[], bool] = lambda: True
    """Returns True if `/readyz` would answer 200 now."""
    route_ready: Callable[[RouteState], bool] = lambda route: True
    """Returns True if a route would deliver a message now."""
    loop_lags: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS))


Labels = tuple[str, ...]
Numbers = Callable[[Sources], Iterable[tuple[Labels, float]]]
Histograms = Callable[[Sources], Iterable[tuple[Labels, Histogram]]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge. `read` returns the label values of each series, in the order of `labels`, and its value."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: Labels
    help: str
    read: Numbers


@dataclass(frozen=True, slots=True)
class HistogramMetric:
    """A histogram. `read` returns the label values of each series and the object that its values are recorded in."""

    name: str
    labels: Labels
    help: str
    read: Histograms
    kind: Literal["histogram"] = "histogram"


@dataclass(frozen=True, slots=True)
class ProcessMetric:
    """A metric of the process, without labels, which prometheus_client reads on systems with /proc."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Labels = ()
