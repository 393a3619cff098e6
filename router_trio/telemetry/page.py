"""Renders `/metrics`: the table of metrics through the OpenTelemetry SDK into the Prometheus text format.

Counters and gauges are observable instruments of a `MeterProvider` of its own (nothing global is touched); their
callbacks read plain integers when scraped. The histogram is read straight from its buckets, by a collector on the same
registry, since recording it through the SDK would cost the data plane microseconds a message. The same collector
serves the whole table when `OTEL_SDK_DISABLED=true`: that variable switches traces off, not the page. What the system
knows of the process comes from prometheus_client's own collector.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import inf

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from router_trio.states import Histogram
from router_trio.telemetry.metrics import TABLE, HistogramMetric, Metric, Sources

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SERIES_LIMIT = 1_000_000
"""Series of one metric. The SDK's own limit of 2,000 would fold the rest into one, and many routes exceed it."""


class MetricsPage:
    """The page of one router. `close()` it, or the SDK keeps a reference to its provider."""

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._provider: MeterProvider | None = None
        numbers = [metric for metric in TABLE if isinstance(metric, Metric)]
        direct: list[Metric | HistogramMetric] = [metric for metric in TABLE if isinstance(metric, HistogramMetric)]
        if sdk_disabled():
            direct = [*numbers, *direct]
        else:
            reader = PrometheusMetricReader(
                disable_target_info=True,
                scope_info_enabled=False,
                registry=self._registry,
                cardinality_limits={ObservableCounter: SERIES_LIMIT, ObservableGauge: SERIES_LIMIT},
            )
            self._provider = MeterProvider([reader], resource=Resource.get_empty(), shutdown_on_exit=False)
            meter = self._provider.get_meter("router_trio")
            for metric in numbers:
                _register(meter, metric, sources)
        ProcessCollector(registry=self._registry)
        self._registry.register(_DirectCollector(direct, sources))

    def render(self) -> bytes:
        """The text of one scrape, in Prometheus text format 0.0.4. One at a time, whichever threads ask."""
        with self._lock:
            return generate_latest(self._registry)

    def close(self) -> None:
        """Take the page apart."""
        if self._provider is not None:
            self._provider.shutdown()


def sdk_disabled() -> bool:
    """Whether `OTEL_SDK_DISABLED` switches the OpenTelemetry SDK off."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _register(meter: Meter, metric: Metric, sources: Sources) -> None:
    callback = _callback(metric, sources)
    if metric.kind == "counter":
        meter.create_observable_counter(metric.name, [callback], description=metric.help)
    else:
        meter.create_observable_gauge(metric.name, [callback], description=metric.help)


def _callback(metric: Metric, sources: Sources) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for values, number in metric.read(sources):
            yield Observation(number, dict(zip(metric.labels, values, strict=True)))

    return observe


class _DirectCollector(Collector):
    def __init__(self, metrics: Sequence[Metric | HistogramMetric], sources: Sources) -> None:
        self._metrics = metrics
        self._sources = sources

    def collect(self) -> Iterable[Family]:
        for metric in self._metrics:
            if isinstance(metric, HistogramMetric):
                yield _histogram(metric, self._sources)
            else:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=metric.labels)
                for values, number in metric.read(self._sources):
                    family.add_metric(values, number)
                yield family


def _histogram(metric: HistogramMetric, sources: Sources) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for values, histogram in metric.read(sources):
        family.add_metric(values, _buckets(histogram), sum_value=histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = (*histogram.bounds, inf)
    return [
        ("+Inf" if bound == inf else str(bound), count)
        for bound, count in zip(bounds, accumulate(histogram.counts), strict=True)
    ]
