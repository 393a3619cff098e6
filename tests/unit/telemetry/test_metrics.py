"""The metrics page: the names of the contract, all series at zero from the start, and current values at each scrape."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router_trio.message import stored
from router_trio.protocol.framing import publish
from router_trio.settings.sections import TelemetrySettings
from router_trio.states import CONNECTED, RECONNECTING, Behind, Held, Partitions
from router_trio.telemetry.metrics.lag import LAG_BOUNDS
from router_trio.telemetry.metrics.metric import ProcessMetric, Sources
from router_trio.telemetry.metrics.page import MetricsPage
from router_trio.telemetry.metrics.table import TABLE
from router_trio.telemetry.pieces import PART_BYTES
from tests.performance.instructions import instructions
from tests.support.compiled import looks_inside
from tests.support.measured import needs_full_speed
from tests.support.offers import offer_with_ack
from tests.support.telemetry_views import View, make_view

CONNECTION_GAUGES = {
    "router_nats_connection_status",
    "router_nats_pending_operations_count",
    "router_nats_in_flight_operations_count",
}
CONNECTION_COUNTERS = {
    "router_nats_connection_established_total",
    "router_nats_connection_lost_total",
    "router_nats_connection_restored_total",
    "router_nats_connection_failures_total",
    "router_nats_reconnect_attempts_total",
    "router_nats_reconnect_failures_total",
    "router_nats_reconnection_exhausted_total",
    "router_nats_publish_total",
    "router_nats_publish_with_ack_total",
    "router_nats_ack_total",
    "router_nats_nak_total",
    "router_nats_subscribe_total",
    "router_nats_pending_operations_retry_total",
    "router_nats_pending_operations_retry_success_total",
    "router_nats_pending_operations_retry_failed_total",
    "router_nats_operations_accepted_total",
}
FAILURES = {
    "router_nats_publish_failures_total",
    "router_nats_publish_with_ack_failures_total",
    "router_nats_ack_failures_total",
    "router_nats_nak_failures_total",
    "router_nats_subscribe_failures_total",
}
ROUTE_COUNTERS = {"router_messages_received_total", "router_messages_dead_lettered_total"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def view() -> View:
    return make_view(["main", "edge"], ["eu", "us"])


@pytest.fixture
def page(view: View) -> MetricsPage:
    return MetricsPage(Sources(view, log_lines_dropped=lambda: 3, spans_dropped=lambda: 4))


def scrape(page: MetricsPage) -> Samples:
    return samples(page.render())


def samples(text: bytes) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} twice on one page"
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_all_series_of_a_connection_exist_at_zero(page: MetricsPage) -> None:
    samples = scrape(page)
    for connection in ("main", "edge"):
        for name in CONNECTION_GAUGES | CONNECTION_COUNTERS:
            assert value(samples, name, connection=connection) == 0
        for name in FAILURES:
            assert value(samples, name, connection=connection, reason="not_connected") == 0
        for fate in ("fenced", "acked", "dropped", "failed", "failed_open"):
            assert value(samples, "router_nats_operations_settled_total", connection=connection, fate=fate) == 0
        for reason in ("queue_full", "expired", "shutdown"):
            dropped = "router_nats_pending_operations_dropped_total"
            assert value(samples, dropped, connection=connection, reason=reason) == 0


def test_all_series_of_a_route_exist_at_zero(page: MetricsPage) -> None:
    samples = scrape(page)
    for route in ("eu", "us"):
        labels = {"connection": "main", "route": route}
        for name in ROUTE_COUNTERS:
            assert value(samples, name, **labels) == 0
        for destination in ("out.{{wildcard(1)}}", "copy"):
            assert value(samples, "router_messages_routed_total", **labels, destination=destination) == 0
        assert value(samples, "router_messages_failed_total", **labels, reason="not_connected") == 0
        for fate in ("routed", "filtered", "dead_lettered", "given_up", "returned", "duplicate", "lost"):
            assert value(samples, "router_route_messages_settled_total", **labels, fate=fate) == 0
        assert value(samples, "router_route_in_hand_count", **labels) == 0
        assert value(samples, "router_route_ledger_unbalanced", **labels) == 0
        for reason in ("when", "handler", "unmatched"):
            assert value(samples, "router_messages_filtered_total", **labels, reason=reason) == 0
        assert value(samples, "router_route_duration_seconds_count", **labels) == 0
        assert value(samples, "router_route_duration_seconds_sum", **labels) == 0
        assert value(samples, "router_route_duration_seconds_bucket", **labels, le="+Inf") == 0


def test_the_page_holds_exactly_the_table(page: MetricsPage) -> None:
    families = {family.name: family for family in text_string_to_metric_families(page.render().decode())}
    has_proc = Path("/proc/self/stat").exists()
    table = [metric for metric in TABLE if has_proc or not isinstance(metric, ProcessMetric)]
    expected = {metric.name.removesuffix("_total"): metric for metric in table}
    assert families.keys() == expected.keys()
    for name, family in families.items():
        assert family.type == expected[name].kind
        assert family.documentation == expected[name].help
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(expected[name].labels)


def test_every_metric_of_a_connection_or_route_has_its_label(page: MetricsPage) -> None:
    of_the_process = {"router_log_lines_dropped_total", "router_spans_dropped_total"}
    of_the_process |= {"router_listener_errors_total", "router_event_loop_lag_seconds", "router_info", "router_ready"}
    of_the_process |= {"router_traces_not_followed_total", "router_traces_not_begun_total", "router_config_info"}
    of_the_process |= {
        "router_config_reloads_total",
        "router_config_last_reload_successful",
        "router_config_last_reload_timestamp_seconds",
    }
    own = [metric for metric in TABLE if not isinstance(metric, ProcessMetric)]
    assert {metric.name for metric in own if "connection" not in metric.labels} == of_the_process
    assert all(metric.name.startswith("router_") for metric in own)
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_metrics_are_read_at_each_scrape(page: MetricsPage, view: View) -> None:
    scrape(page)
    main = view.connections["main"]
    main.state.enter(RECONNECTING)
    view.connections["edge"].state.enter(CONNECTED)
    main.state.lost = 2
    main.outbox.counters.failed["ack", "no_such_thing"] = 5
    main.outbox.counters.succeeded["publish"] = 7
    eu = view.routes[0]
    eu.received = 11
    eu.filtered["handler"] = 3
    first, copy = eu.destinations
    eu.delivered[copy] = 10
    eu.elapsed.record(0.004, 5)
    eu.elapsed.record(100.0)
    eu.forwarded.record(0.004, 4)
    samples = scrape(page)
    assert value(samples, "router_nats_connection_status", connection="main") == 0.5
    assert value(samples, "router_nats_connection_status", connection="edge") == 1
    assert value(samples, "router_nats_connection_lost_total", connection="main") == 2
    assert value(samples, "router_nats_ack_failures_total", connection="main", reason="no_such_thing") == 5
    assert value(samples, "router_nats_publish_failures_total", connection="main", reason="not_connected") == 0
    assert value(samples, "router_nats_publish_total", connection="main") == 7
    labels = {"connection": "main", "route": "eu"}
    assert value(samples, "router_messages_received_total", **labels) == 11
    assert value(samples, "router_messages_filtered_total", **labels, reason="handler") == 3
    assert value(samples, "router_messages_filtered_total", **labels, reason="when") == 0
    assert value(samples, "router_messages_routed_total", **labels, destination=copy) == 10
    assert value(samples, "router_messages_routed_total", **labels, destination=first) == 4
    buckets = "router_route_duration_seconds_bucket"
    assert value(samples, buckets, **labels, le="0.0025") == 0
    assert value(samples, buckets, **labels, le="0.005") == 9
    assert value(samples, buckets, **labels, le="60.0") == 9
    assert value(samples, buckets, **labels, le="+Inf") == 10
    assert value(samples, "router_route_duration_seconds_count", **labels) == 10
    assert value(samples, "router_route_duration_seconds_sum", **labels) == pytest.approx(100.036)


def test_the_ledger_adds_up_on_the_page(page: MetricsPage, view: View) -> None:
    outbox = view.connections["main"].outbox
    for _ in range(12):
        offer_with_ack(outbox, publish(b"a.b", b"x"))
    outbox.link_up()
    written = outbox.sender.next_batch()
    assert len(written) == 10
    for operation in written[:9]:
        outbox.acked([(operation.order, stored("ORDERS", operation.order))])
    outbox.offer(publish(b"a.b", b"x"))
    samples = scrape(page)
    assert value(samples, "router_nats_operations_accepted_total", connection="main") == 13
    assert value(samples, "router_nats_operations_settled_total", connection="main", fate="acked") == 9
    assert value(samples, "router_nats_operations_settled_total", connection="main", fate="dropped") == 2
    assert value(samples, "router_nats_pending_operations_count", connection="main") == 1
    assert value(samples, "router_nats_in_flight_operations_count", connection="main") == 1
    assert value(samples, "router_nats_pending_operations_limit", connection="main") == 10
    assert value(samples, "router_nats_pending_bytes", connection="main") == len(publish(b"a.b", b"x"))
    failures = "router_nats_publish_with_ack_failures_total"
    assert value(samples, failures, connection="main", reason="not_connected") == 12
    assert value(samples, "router_nats_pending_operations_retry_success_total", connection="main") == 9
    assert value(samples, "router_ledger_unbalanced", connection="main") == 0
    outbox.ledger.accepted += 1
    assert value(scrape(page), "router_ledger_unbalanced", connection="main") == 1


def test_the_ledger_of_a_core_route_adds_up_on_the_page(page: MetricsPage, view: View) -> None:
    eu = view.routes[0]
    eu.received = 11
    eu.fates["routed"], eu.fates["lost"] = 2, 3
    eu.never_routed = 1
    eu.elapsed.record(0.1, 4)
    eu.forwarded.record(0.1, 4)
    labels = {"connection": "main", "route": "eu"}
    samples = scrape(page)
    assert value(samples, "router_route_messages_settled_total", **labels, fate="routed") == 2 + 4
    assert value(samples, "router_route_messages_settled_total", **labels, fate="lost") == 3
    assert value(samples, "router_route_in_hand_count", **labels) == 2
    assert value(samples, "router_route_ledger_unbalanced", **labels) == 0
    eu.fates["lost"] += 1
    assert value(scrape(page), "router_route_ledger_unbalanced", **labels) == -1
    assert value(scrape(page), "router_route_ledger_unbalanced", connection="main", route="us") == 0


def test_the_ledger_of_a_route_from_a_stream_counts_redeliveries(page: MetricsPage, view: View) -> None:
    eu = view.routes[0]
    eu.held_by(Held(3))
    eu.received, eu.duplicates = 9, 2
    eu.fates["returned"], eu.fates["given_up"] = 5, 1
    labels = {"connection": "main", "route": "eu"}
    samples = scrape(page)
    assert value(samples, "router_route_in_hand_count", **labels) == 3
    assert value(samples, "router_route_messages_settled_total", **labels, fate="duplicate") == 2
    assert value(samples, "router_route_ledger_unbalanced", **labels) == 0
    eu.held_by(Held(2))
    assert value(scrape(page), "router_route_ledger_unbalanced", **labels) == 1


def test_a_route_is_behind_only_while_that_is_known(page: MetricsPage, view: View) -> None:
    names = ("router_route_behind_count", "router_route_behind_seconds")
    labels = frozenset({("connection", "main"), ("route", "eu")})
    assert not {(name, labels) for name in names} & scrape(page).keys()
    view.routes[0].held_by(Held(2, behind=Behind(pending=40, unsettled=2, elsewhere=1, seconds=7.5)))
    samples = scrape(page)
    assert [value(samples, name, connection="main", route="eu") for name in names] == [43, 7.5]
    view.routes[0].held_by(Held(0, behind=Behind(pending=0, unsettled=0, elsewhere=0, seconds=0.0)))
    assert [value(scrape(page), name, connection="main", route="eu") for name in names] == [0, 0]
    view.routes[0].held_by(Held(2))
    assert not {(name, labels) for name in names} & scrape(page).keys()


def test_only_a_route_with_partitions_has_series_of_them(page: MetricsPage, view: View) -> None:
    partitions = Partitions(
        count=16,
        led=(0, 3, 7),
        wanted=(9,),
        lag={0: 5},
        member="a" * 16,
        members=frozenset({"a" * 16, "b" * 16, "c" * 16, "d" * 16}),
        owners=(),
        uncopied=12,
    )
    view.routes[0].held_by(Held(0, partitions=partitions))
    samples = scrape(page)
    expected = {"": 16, "_led": 3, "_wanted": 1, "_members": 4, "_uncopied": 12}
    for what, number in expected.items():
        name = f"router_route_partitions{what}_count"
        assert value(samples, name, connection="main", route="eu") == number
        assert (name, frozenset({("connection", "main"), ("route", "us")})) not in samples


def test_the_age_of_the_oldest_pending_operation_is_exported(page: MetricsPage, view: View) -> None:
    age = "router_nats_pending_oldest_age_seconds"
    main = view.connections["main"]
    assert value(scrape(page), age, connection="main") == 0
    view.now = 100.0
    main.outbox.offer(publish(b"a.b", b"x"))
    view.now = 102.0
    offer_with_ack(main.outbox, publish(b"a.b", b"x"))
    view.now = 107.5
    samples = scrape(page)
    assert value(samples, age, connection="main") == 7.5
    assert value(samples, age, connection="edge") == 0
    main.outbox.link_up()
    _, refused = main.outbox.sender.next_batch()
    assert value(scrape(page), age, connection="main") == 0
    main.outbox.refusals.ack_refused(refused.order, "no_responders", "no stream", retriable=True)
    assert main.outbox.pending == 1
    assert value(scrape(page), age, connection="main") == 5.5


def test_the_lag_of_the_event_loop_is_exported(view: View) -> None:
    sources = Sources(view)
    page = MetricsPage(sources)
    sources.loop_lags.record(0.003)
    sources.loop_lags.record(60.0)
    samples = scrape(page)
    lag = "router_event_loop_lag_seconds"
    assert value(samples, f"{lag}_bucket", le="0.0025") == 0
    assert value(samples, f"{lag}_bucket", le="0.005") == 1
    assert value(samples, f"{lag}_bucket", le=str(LAG_BOUNDS[-1])) == 1
    assert value(samples, f"{lag}_count") == 2
    assert value(samples, f"{lag}_sum") == pytest.approx(60.003)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="metrics of the process need /proc")
def test_metrics_of_this_process_are_exported(page: MetricsPage) -> None:
    samples = scrape(page)
    assert value(samples, "process_resident_memory_bytes") > 10 * 1024 * 1024
    assert value(samples, "process_cpu_seconds_total") > 0
    assert 0 < value(samples, "process_open_fds") < value(samples, "process_max_fds")
    assert 0 < time.time() - value(samples, "process_start_time_seconds") < 24 * 3600


def test_dropped_log_lines_and_spans_are_counted(page: MetricsPage) -> None:
    samples = scrape(page)
    assert value(samples, "router_log_lines_dropped_total") == 3
    assert value(samples, "router_spans_dropped_total") == 4


def test_labels_with_quotes_and_backslashes_are_escaped(page: MetricsPage, view: View) -> None:
    view.routes[0].delivered['odd "\\'] = 2
    labels = {"connection": "main", "route": "eu", "destination": 'odd "\\'}
    assert value(scrape(page), "router_messages_routed_total", **labels) == 2


def test_a_route_may_have_thousands_of_series(page: MetricsPage, view: View) -> None:
    view.routes[0].delivered.update({f"to.{number}": number for number in range(2500)})
    labels = {"connection": "main", "route": "eu", "destination": "to.2499"}
    assert value(scrape(page), "router_messages_routed_total", **labels) == 2499


def test_scrapes_of_several_threads_do_not_mix(page: MetricsPage, view: View) -> None:
    pages: list[bytes] = []
    threads = [threading.Thread(target=lambda: pages.append(page.render())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [_without_process(text) for text in pages] == [_without_process(pages[0])] * 8


def _without_process(text: bytes) -> list[bytes]:
    return [line for line in text.splitlines() if not line.startswith(b"process_")]


def test_the_page_has_series_of_chosen_routes_only(view: View) -> None:
    settings = TelemetrySettings(route_metrics=["e?", "other-*"])
    text = MetricsPage(Sources(view, shown=settings.shows_metrics_of)).render()
    assert b'route="eu"' in text
    assert b'route="us"' not in text
    assert b"router_ready 1.0" in text


def test_two_routers_in_one_process_have_separate_metrics(page: MetricsPage) -> None:
    other = MetricsPage(Sources(make_view(["elsewhere"])))
    assert b"elsewhere" in other.render()
    assert b"elsewhere" not in page.render()


@looks_inside
@needs_full_speed
def test_a_page_of_many_routes_is_cheap() -> None:
    """Rendering blocks the event loop: 2 ms for 200 routes, 94 ms with a collector per family and sample.

    Counted, since times are others beside other work: the least cost of a line, and no more of it with more routes.
    """
    few, many = (instructions_per_line(routes) for routes in (50, 400))
    assert few < 150
    assert many < 1.02 * few


def instructions_per_line(routes: int) -> float:
    """Return the bytecode instructions that a line of a page takes, once the labels are in the cache."""
    page = MetricsPage(Sources(make_view(["main"], [f"route{number}" for number in range(routes)])))
    lines = page.render().count(b"\n")
    return instructions(page.render) / lines


def test_a_large_page_is_made_of_parts() -> None:
    """No piece of work joins the entire page, which takes 10 ms and more for thousands of routes."""
    page = MetricsPage(Sources(make_view(["main"], [f"route{number}" for number in range(500)])))
    pieces, parts, pauses = page.pieces(), None, 0
    while parts is None:
        try:
            next(pieces)
            pauses += 1
        except StopIteration as end:
            parts = end.value
    assert all(PART_BYTES <= len(part) < 2 * PART_BYTES for part in parts[:-1])
    assert len(parts) > 5
    assert pauses > 500 + len(parts)
    lines = b"".join(parts).splitlines(keepends=True)
    kinds = [line.split()[2] for line in lines if line.startswith(b"# TYPE ")]
    assert len(kinds) == len({*kinds}), "the series of a metric follow one another"
    assert sum(line.startswith(b"router_route_running{") for line in lines) == 500


def test_all_numbers_of_a_route_are_read_at_one_moment(page: MetricsPage, view: View) -> None:
    """Messages are routed between two pieces of a page: its ledgers add up nevertheless."""
    pieces, count, text = page.pieces(), 0, b""
    while not text:
        try:
            next(pieces)
        except StopIteration as end:
            text = b"".join(end.value)
        for route in view.routes:
            route.received += 3
            route.fates["routed"] += 2
            route.held_by(Held(route.received - route.fates["routed"]))
        count += 1
    assert count > len(view.routes) + len(view.connections)
    found = samples(text)
    read = [value(found, "router_messages_received_total", connection="main", route=one) for one in ("eu", "us")]
    assert read[0] < read[1], "nothing was routed between the two"
    for name in ("eu", "us"):
        assert value(found, "router_route_ledger_unbalanced", connection="main", route=name) == 0
        labels = {"connection": "main", "route": name}
        settled = value(found, "router_route_messages_settled_total", **labels, fate="routed")
        in_hand = value(found, "router_route_in_hand_count", **labels)
        assert settled + in_hand == value(found, "router_messages_received_total", **labels)


@looks_inside
def test_numbers_that_are_not_finite_and_surrogates_in_labels_are_written(page: MetricsPage, view: View) -> None:
    view.routes[0].delivered["odd\nline \ud800"] = 3
    view.routes[0].in_flight_limit = float("inf")  # type: ignore[assignment]
    view.routes[1].in_flight_limit = float("nan")  # type: ignore[assignment]
    text = page.render().decode()
    assert 'destination="odd\\nline \\ud800"' in text
    limits = [line for line in text.splitlines() if line.startswith("router_route_in_flight_limit{")]
    assert [line.rpartition(" ")[2] for line in limits] == ["+Inf", "NaN"]
