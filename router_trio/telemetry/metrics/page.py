"""Render `/metrics`: the table of metrics in the Prometheus text format.

A scrape blocks the event loop, so it must be cheap with hundreds of routes. The values are read where they are counted,
and the text before each value (name and labels) is rendered once and cached. The OpenTelemetry SDK and
prometheus_client took ten times as long for the same page. The metrics of the process come from prometheus_client's
collector.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from math import inf, isnan

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from router_trio.states import Histogram
from router_trio.telemetry.metrics.metric import HistogramMetric, Labels, Metric, Sources
from router_trio.telemetry.metrics.table import TABLE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsPage:
    """The `/metrics` page of one router."""

    def __init__(self, sources: Sources, process: Callable[[], bytes] | None = None) -> None:
        """`process` returns the lines with the metrics of the process; by default those of this process."""
        self._lock = threading.Lock()
        self._process = this_process() if process is None else process
        self._families: list[_Numbers | _Histograms] = []
        for metric in TABLE:
            if isinstance(metric, Metric):
                self._families.append(_Numbers(metric, sources))
            elif isinstance(metric, HistogramMetric):
                self._families.append(_Histograms(metric, sources))

    def render(self) -> bytes:
        """Return the text of one scrape, in the Prometheus text format 0.0.4. Thread-safe; renders one at a time."""
        with self._lock:
            parts: list[str] = []
            for family in self._families:
                family.write(parts)
            return "".join(parts).encode("utf-8", "backslashreplace") + self._process()


def this_process() -> Callable[[], bytes]:
    """Return a function that renders the metrics of this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    return partial(generate_latest, registry)


class _Numbers:
    """The series of a counter or a gauge."""

    def __init__(self, metric: Metric, sources: Sources) -> None:
        self._metric = metric
        self._sources = sources
        self._head = _head(metric)
        self._known: dict[Labels, str] = {}

    def write(self, parts: list[str]) -> None:
        """Append the lines of all series with their current values."""
        parts.append(self._head)
        metric, known, count = self._metric, self._known, 0
        for values, number in metric.read(self._sources):
            prefix = known.get(values)
            if prefix is None:
                prefix = known[values] = f"{metric.name}{_labels(metric.labels, values)} "
            parts.append(f"{prefix}{number}.0\n" if type(number) is int else f"{prefix}{_number(number)}\n")
            count += 1
        if len(known) > 2 * count:
            known.clear()  # most cached prefixes are of series that no longer exist


class _Histograms:
    """The series of a histogram."""

    def __init__(self, metric: HistogramMetric, sources: Sources) -> None:
        self._metric = metric
        self._sources = sources
        self._head = _head(metric)
        self._known: dict[Labels, list[str]] = {}

    def write(self, parts: list[str]) -> None:
        """Append the lines of all series with their current values."""
        parts.append(self._head)
        known, count = self._known, 0
        for values, histogram in self._metric.read(self._sources):
            prefixes = known.get(values)
            if prefixes is None:
                prefixes = known[values] = self._prefixes(values, histogram)
            counts = [*accumulate(histogram.counts)]
            counts.append(counts[-1])
            parts.extend([f"{prefix}{number}.0\n" for prefix, number in zip(prefixes, counts, strict=False)])
            parts.append(f"{prefixes[-1]}{_number(histogram.total)}\n")
            count += 1
        if len(known) > 2 * count:
            known.clear()

    def _prefixes(self, values: Labels, histogram: Histogram) -> list[str]:
        """Return the line prefixes of each bucket, of the count and of the sum."""
        name, labels = self._metric.name, self._metric.labels
        bounds = [*map(str, histogram.bounds), "+Inf"]
        own = _labels(labels, values)
        return [
            *(f"{name}_bucket{_labels((*labels, 'le'), (*values, bound))} " for bound in bounds),
            f"{name}_count{own} ",
            f"{name}_sum{own} ",
        ]


def _head(metric: Metric | HistogramMetric) -> str:
    escaped = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {metric.name} {escaped}\n# TYPE {metric.name} {metric.kind}\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = sorted(zip(names, values, strict=True))
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(number: float) -> str:
    number = float(number)
    if isnan(number):
        return "NaN"
    if number in (inf, -inf):
        return "+Inf" if number > 0 else "-Inf"
    return repr(number)
