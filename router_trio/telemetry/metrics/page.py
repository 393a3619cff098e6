"""Render `/metrics`: the table of metrics in the Prometheus text format.

A scrape runs in the event loop, so it must be cheap with thousands of routes, and it yields after each of them. The
values are read where they are counted, and labels that many parts have in common are rendered once and cached. The
OpenTelemetry SDK and prometheus_client took ten times as long for the same page. The metrics of the process come from
prometheus_client's collector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, chain
from math import inf, isnan

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from router_trio.states import Histogram
from router_trio.telemetry.metrics.metric import (
    CONNECTIONS,
    ROUTER,
    ROUTES,
    HistogramMetric,
    Labels,
    Metric,
    Part,
    Scope,
    Sources,
)
from router_trio.telemetry.metrics.table import TABLE
from router_trio.telemetry.pieces import Parts, Pieces, complete, in_parts

MOST_VALUES = 4096
"""Label values whose text is cached."""

LINES_AT_ONCE = 1000
"""Lines of a metric that are encoded together: about `PART_BYTES`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsPage:
    """The `/metrics` page of one router."""

    def __init__(self, sources: Sources, process: Callable[[], bytes] | None = None) -> None:
        """`process` returns the lines with the metrics of the process; by default those of this process."""
        self._sources = sources
        self._process = this_process() if process is None else process
        self._metrics = [metric for metric in TABLE if isinstance(metric, Metric | HistogramMetric)]

    def render(self) -> bytes:
        """Return the text of one scrape, in the Prometheus text format 0.0.4."""
        return b"".join(complete(self.pieces()))

    def pieces(self) -> Pieces[Parts]:
        """Render one scrape, and yield after each connection and route.

        All series of one connection or route are read at one moment.
        """
        is_ready = True
        for reasons in self._sources.unready():
            is_ready = is_ready and not reasons
            yield
        sources = replace(self._sources, unready=lambda: () if is_ready else ("not ready",))
        families = [_Family(metric) for metric in self._metrics]
        for scope in (CONNECTIONS, ROUTES, ROUTER):
            own = [family for family in families if family.scope is scope]
            for values, part in scope.parts(sources):
                labels = _labels(scope.labels, values)
                for family in own:
                    family.add(sources, part, labels)
                yield
                for family in own:
                    if family.unpacked >= LINES_AT_ONCE:
                        family.pack()
                        yield
        for family in families:
            family.pack()
            yield
        return (yield from in_parts(chain(*(family.take() for family in families), (self._process(),))))


def this_process() -> Callable[[], bytes]:
    """Return a function that renders the metrics of this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    return partial(generate_latest, registry)


class _Family:
    """The series of one metric in one scrape: lines that were added, and before them those that are packed as bytes."""

    def __init__(self, metric: Metric | HistogramMetric) -> None:
        self.scope: Scope = metric.scope
        self._packed: deque[bytes] = deque()
        self._metric = metric
        escaped = metric.help.replace("\\", r"\\").replace("\n", r"\n")
        self._lines = [f"# HELP {metric.name} {escaped}\n# TYPE {metric.name} {metric.kind}\n"]

    def add(self, sources: Sources, part: Part, labels: str) -> None:
        """Add all series of a part with their current values. `labels` are those of the part."""
        metric, lines = self._metric, self._lines
        if isinstance(metric, HistogramMetric):
            _add_histogram(lines, metric.name, labels, metric.histogram(sources, part))
        elif metric.more:
            start = f"{metric.name}{{{labels}{',' if labels else ''}"
            for values, number in metric.numbers(sources, part):
                text = f"{number}.0" if type(number) is int else _number(number)
                lines.append(f"{start}{_cached_labels(metric.more, values)}}} {text}\n")
        else:
            start = f"{metric.name}{{{labels}}}" if labels else metric.name
            for _, number in metric.numbers(sources, part):
                lines.append(f"{start} {number}.0\n" if type(number) is int else f"{start} {_number(number)}\n")

    @property
    def unpacked(self) -> int:
        """The number of lines that were added since `pack`."""
        return len(self._lines)

    def pack(self) -> None:
        """Encode the lines that were added, so that no piece of work has many of them."""
        self._packed.append("".join(self._lines).encode("utf-8", "backslashreplace"))
        self._lines.clear()

    def take(self) -> Iterator[bytes]:
        """Remove and yield what is packed: freeing all of a page at once would take milliseconds."""
        while self._packed:
            yield self._packed.popleft()


def _add_histogram(lines: list[str], name: str, labels: str, histogram: Histogram) -> None:
    """Add the lines of each bucket, of the count and of the sum."""
    counts = [*accumulate(histogram.counts)]
    buckets = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
    own = f"{{{labels}}}" if labels else ""
    lines += [f'{buckets}"{bound}"}} {count}.0\n' for bound, count in zip(histogram.bounds, counts, strict=False)]
    lines.append(f'{buckets}"+Inf"}} {counts[-1]}.0\n')
    lines.append(f"{name}_count{own} {counts[-1]}.0\n{name}_sum{own} {_number(histogram.total)}\n")


def _labels(names: Labels, values: Labels) -> str:
    """Return the labels of a series, without braces."""
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)])


_cached_labels = lru_cache(MOST_VALUES)(_labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(number: float) -> str:
    number = float(number)
    if isnan(number):
        return "NaN"
    if number in (inf, -inf):
        return "+Inf" if number > 0 else "-Inf"
    return repr(number)
