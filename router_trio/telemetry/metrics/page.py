"""Render `/metrics`: the table of metrics in the Prometheus text format, or as OpenMetrics with exemplars.

A scrape runs in the event loop, so it must be cheap with thousands of routes, and it yields after each of them. The
values are read where they are counted, and labels that many parts have in common are rendered once and cached. The
OpenTelemetry SDK and prometheus_client took ten times as long for the same page. The metrics of the process come from
prometheus_client's collector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain
from math import inf, isnan

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.openmetrics import exposition

from router_trio.states import Exemplar, Histogram
from router_trio.telemetry.metrics.metric import (
    CONNECTIONS,
    ROUTER,
    ROUTES,
    Form,
    HistogramMetric,
    Labels,
    Metric,
    Part,
    Scope,
    Sources,
    head,
)
from router_trio.telemetry.metrics.table import TABLE
from router_trio.telemetry.pieces import Parts, Pieces, complete, in_parts

MOST_VALUES = 4096
"""Label values whose text is cached."""

LINES_AT_ONCE = 1000
"""Lines of a metric that are encoded together: about `PART_BYTES`."""

CONTENT_TYPES: Mapping[Form, str] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

END = b"# EOF\n"
"""The end of a page of OpenMetrics, without which it is incomplete."""


class MetricsPage:
    """The `/metrics` page of one router."""

    def __init__(self, sources: Sources, process: Callable[[Form], bytes] | None = None) -> None:
        """`process` returns the lines with the metrics of the process; by default those of this process."""
        self._sources = sources
        self._process = this_process() if process is None else process
        self._metrics = [metric for metric in TABLE if isinstance(metric, Metric | HistogramMetric)]

    def render(self, form: Form = "text") -> bytes:
        """Return the text of one scrape."""
        return b"".join(complete(self.pieces(form)))

    def pieces(self, form: Form = "text") -> Pieces[Parts]:
        """Render one scrape, and yield after each connection and route.

        All series of one connection or route are read at one moment.
        """
        is_ready = True
        for reasons in self._sources.unready():
            is_ready = is_ready and not reasons
            yield
        sources = replace(self._sources, unready=lambda: () if is_ready else ("not ready",))
        families = [_Family(metric, form) for metric in self._metrics]
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
        end = END if form == "openmetrics" else b""
        return (yield from in_parts(chain(*(family.take() for family in families), (self._process(form), end))))


def this_process() -> Callable[[Form], bytes]:
    """Return a function that renders the metrics of this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)

    openmetrics: Callable[[CollectorRegistry], bytes] = exposition.generate_latest

    def rendered(form: Form) -> bytes:
        return generate_latest(registry) if form == "text" else openmetrics(registry).removesuffix(END)

    return rendered


class _Family:
    """The series of one metric in one scrape: lines that were added, and before them those that are packed as bytes."""

    def __init__(self, metric: Metric | HistogramMetric, form: Form) -> None:
        self.scope: Scope = metric.scope
        self._packed: deque[bytes] = deque()
        self._metric = metric
        self._form: Form = form
        self._lines = [head(metric, form)]

    def add(self, sources: Sources, part: Part, labels: str) -> None:
        """Add all series of a part with their current values. `labels` are those of the part."""
        metric, lines = self._metric, self._lines
        if isinstance(metric, HistogramMetric):
            _add_histogram(lines, metric.name, labels, metric.histogram(sources, part), self._form)
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


def _add_histogram(lines: list[str], name: str, labels: str, histogram: Histogram, form: Form) -> None:
    """Add the lines of each bucket, of the count and of the sum."""
    counts = [*accumulate(histogram.counts)]
    buckets = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
    own = f"{{{labels}}}" if labels else ""
    if form == "openmetrics" and histogram.exemplars:
        bounds = (*histogram.bounds, "+Inf")
        # The trace of a failed attempt has ended; its message is counted when it is settled. So a bucket may be empty.
        shown = {at: _exemplar(one) for at, one in histogram.exemplars.items() if histogram.counts[at]}
        lines += [f'{buckets}"{bounds[at]}"}} {count}.0{shown.get(at, "")}\n' for at, count in enumerate(counts)]
    else:
        lines += [f'{buckets}"{bound}"}} {count}.0\n' for bound, count in zip(histogram.bounds, counts, strict=False)]
        lines.append(f'{buckets}"+Inf"}} {counts[-1]}.0\n')
    lines.append(f"{name}_count{own} {counts[-1]}.0\n{name}_sum{own} {_number(histogram.total)}\n")


def _exemplar(one: Exemplar) -> str:
    """Return the end of the line of a bucket: the trace of a message that is counted in it."""
    return f' # {{trace_id="{one.trace_id}"}} {_number(one.value)} {one.at:.3f}'


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
