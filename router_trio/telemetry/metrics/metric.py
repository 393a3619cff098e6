"""The definition of a metric: name, type, labels, help, and the function that reads it.

A metric is read from one part of the router at a time: from the router itself, a connection or a route. So the page can
be rendered in pieces, and each piece reads everything about one part at one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
    shown: Callable[[str], bool] = lambda route: True
    """Returns True if the page has series of the route of this name."""
    unready: Callable[[], Iterable[Sequence[Any]]] = tuple
    """Returns the reasons of `/readyz`, one sequence per connection or route; empty for one that is ready."""
    route_ready: Callable[[RouteState], bool] = lambda route: True
    """Returns True if a route would deliver a message now."""
    loop_lags: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS))

    def ready(self) -> bool:
        """Return True if `/readyz` would answer 200 now. Looks at every connection and route."""
        return not any(self.unready())


Form = Literal["text", "openmetrics"]
"""The format of a page: the Prometheus text format 0.0.4, or OpenMetrics 1.0.0, which has exemplars."""

Labels = tuple[str, ...]
Part = Any
"""A part of the router that metrics are read from: a connection, a route, or None for the router as a whole."""

Numbers = Callable[[Sources, Part], Iterable[tuple[Labels, float]]]


@dataclass(frozen=True, slots=True)
class Scope:
    """The parts of one kind. `labels` name a part; `parts` yields the values of these labels, and the part.

    The parts are those at the time of the call, also if some of them end before they are read.
    """

    labels: Labels
    parts: Callable[[Sources], Iterable[tuple[Labels, Part]]]


CONNECTIONS = Scope(
    ("connection",), lambda sources: (((name,), one) for name, one in tuple(sources.view.connections.items()))
)
ROUTES = Scope(
    ("connection", "route"),
    lambda sources: (
        ((one.connection, one.name), one) for one in tuple(sources.view.routes) if sources.shown(one.name)
    ),
)
ROUTER = Scope((), lambda sources: [((), None)])


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge.

    Its labels are those of its scope, and `more`. `numbers` returns for each series of one part the values of `more`,
    and the value.
    """

    name: str
    kind: Literal["counter", "gauge"]
    scope: Scope
    more: Labels
    help: str
    numbers: Numbers

    @property
    def labels(self) -> Labels:
        """The labels of its series."""
        return self.scope.labels + self.more

    def read(self, sources: Sources) -> Iterator[tuple[Labels, float]]:
        """Yield the label values and the value of every series."""
        for known, part in self.scope.parts(sources):
            for values, number in self.numbers(sources, part):
                yield known + values, number


@dataclass(frozen=True, slots=True)
class HistogramMetric:
    """A histogram of each part of a scope."""

    name: str
    scope: Scope
    help: str
    histogram: Callable[[Sources, Part], Histogram]
    kind: Literal["histogram"] = "histogram"

    @property
    def labels(self) -> Labels:
        """The labels of its series, without `le`."""
        return self.scope.labels

    def read(self, sources: Sources) -> Iterator[tuple[Labels, Histogram]]:
        """Yield the label values and the histogram of every series."""
        for values, part in self.scope.parts(sources):
            yield values, self.histogram(sources, part)


@dataclass(frozen=True, slots=True)
class ProcessMetric:
    """A metric of the process, without labels, which prometheus_client reads on systems with /proc."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Labels = ()


def head(metric: Metric | HistogramMetric | ProcessMetric, form: Form) -> str:
    """Return the lines before the series of a metric: its help and its type."""
    name, text = metric.name, metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if form == "openmetrics":
        # A counter is named without the suffix that its series have.
        name, text = name.removesuffix("_total") if metric.kind == "counter" else name, text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"
