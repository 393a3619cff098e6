"""`/metrics` as OpenMetrics: the same series as in the text format, and exemplars, for a client that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.samples import Sample

from router_trio.states import DURATION_BOUNDS, Exemplar
from router_trio.telemetry.metrics.accepted import accepted_form
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.metrics.page import MetricsPage
from tests.support.telemetry_views import View, make_view
from tests.unit.telemetry.test_metrics import samples

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER = "4bf92f3577b34da6a3ce929d0e0e4736"

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;"
    "version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture
def view() -> View:
    view = make_view(["main", "edge"], ["eu", "us"])
    eu = view.routes[0]
    eu.received = 3
    eu.elapsed.record(0.004)
    eu.elapsed.record(0.0045)
    eu.elapsed.record(99.0)
    eu.elapsed.keep(Exemplar(OTHER, 0.004, 1764323000.0))
    eu.elapsed.keep(Exemplar(TRACE, 0.0045, 1764323001.25))
    eu.elapsed.keep(Exemplar(OTHER, 99.0, 1764323002.0))
    return view


@pytest.fixture
def page(view: View) -> MetricsPage:
    return MetricsPage(Sources(view))


parse: Callable[[str], Iterator[Metric]] = parser.text_string_to_metric_families


def buckets(text: bytes) -> dict[str, Sample]:
    """Return the buckets of route `eu` by their bounds. The text must be OpenMetrics."""
    families = list(parse(text.decode()))
    [durations] = [one for one in families if one.name == "router_route_duration_seconds"]
    return {
        sample.labels["le"]: sample
        for sample in durations.samples
        if sample.name.endswith("_bucket") and sample.labels["route"] == "eu"
    }


def test_a_bucket_has_the_newest_trace_of_a_message_in_it(page: MetricsPage) -> None:
    found = {bound: one.exemplar for bound, one in buckets(page.render("openmetrics")).items() if one.exemplar}
    assert found.keys() == {"0.005", "+Inf"}
    newest = found["0.005"]
    assert (newest.labels, newest.value, float(newest.timestamp or 0)) == ({"trace_id": TRACE}, 0.0045, 1764323001.25)
    assert found["+Inf"].labels == {"trace_id": OTHER}


def test_a_bucket_without_a_counted_message_has_no_exemplar(page: MetricsPage, view: View) -> None:
    view.routes[0].elapsed.keep(Exemplar(TRACE, 7.0, 1764323003.0))  # it has failed, and waits for its next attempt
    assert buckets(page.render("openmetrics"))["10.0"].exemplar is None
    view.routes[0].elapsed.record(8.0)
    assert buckets(page.render("openmetrics"))["10.0"].exemplar is not None


def test_both_formats_have_the_same_series_and_values(page: MetricsPage) -> None:
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(page.render("openmetrics").decode())
        for sample in family.samples
    }
    text = samples(page.render())
    # They are of two moments: the numbers of the process may differ.
    assert found.keys() == text.keys()
    of_the_router = {key: value for key, value in found.items() if not key[0].startswith("process_")}
    assert of_the_router == {key: text[key] for key in of_the_router}


def test_the_text_format_has_no_exemplars(page: MetricsPage, view: View) -> None:
    lines = [line for line in page.render().splitlines() if line.startswith(b"router_route_duration_seconds")]
    assert not any(b"#" in line for line in lines)
    assert not page.render().endswith(b"# EOF\n")
    assert len([line for line in lines if b"_bucket" in line and b'"eu"' in line]) == len(DURATION_BOUNDS) + 1


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ([], "text"),
        (["*/*"], "text"),
        (["text/plain;version=0.0.4"], "text"),
        (["text/html,application/xhtml+xml,*/*;q=0.8"], "text"),
        ([PROMETHEUS_2], "openmetrics"),
        ([PROMETHEUS_3], "openmetrics"),
        (["application/openmetrics-text"], "openmetrics"),
        (['Application/OpenMetrics-Text; Version="1.0.0"'], "openmetrics"),
        (["text/plain", "application/openmetrics-text"], "openmetrics"),
        (["application/openmetrics-text;version=2.0.0"], "text"),
        (["application/openmetrics-text;q=0"], "text"),
        (["application/openmetrics-text;q=0.1,text/plain"], "text"),
        (["application/openmetrics-text;q=inf"], "text"),
        (["application/openmetrics-text;q=nan,*/*;q=-1"], "text"),
        ([";;,=,;q"], "text"),
    ],
)
def test_a_client_gets_the_format_that_it_prefers(accept: list[str], form: str) -> None:
    assert accepted_form(accept) == form
