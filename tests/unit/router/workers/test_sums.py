"""Sums over workers and over the counts of ended ones: every ledger adds up, and each state is the worst of all."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from router_trio.router.workers.counts.block import read_block
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.counts.numbers import (
    MOST_REMOVED,
    PROCESS,
    ROUTE,
    Counts,
    add,
    settle,
    with_removed,
)
from router_trio.router.workers.counts.process_numbers import process_lines, together
from router_trio.router.workers.sums import NO_WORKER, RouterSum, causes_first, sum_up
from router_trio.settings import Settings
from router_trio.settings.reload.state import ConfigState
from router_trio.states import (
    RECONNECTING,
    STARTING,
    Behind,
    BreakerState,
    DestinationState,
    Held,
    Partitions,
    RouteState,
    Schedules,
)
from router_trio.telemetry.http.status import status
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.metrics.page import MetricsPage
from tests.support.telemetry_views import View
from tests.unit.router.workers.counted import block, count, report_of, router

SETTINGS = Settings(
    router={"workers": 2, "name": "both"},
    connections={name: {"servers": ["nats://127.0.0.1:4222"]} for name in ("main", "edge")},
    routes=[
        {
            "name": "stored",
            "from": {"connection": "main", "stream": "ORDERS", "durable": "router"},
            "to": [{"connection": "main", "subject": "out"}, {"connection": "main", "subject": "copy"}],
        },
        {
            "name": "passed",
            "from": {"connection": "main", "subject": "in.*", "queue": "routers"},
            "to": [{"connection": "main", "subject": "out"}, {"connection": "main", "subject": "copy"}],
        },
    ],
)


def left_by(view: View) -> Counts:
    """Return what the block of a worker with this router holds after the worker was killed."""
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        counting.write_all()
        return read_block(descriptor)


def summed(views: list[View], gone: Counts | None = None) -> RouterSum:
    reports = {number: report_of(view) for number, view in enumerate(views, 1)}
    shapes = {route.name: route for report in [report_of(router()), *reports.values()] for route in report.routes}
    return sum_up(SETTINGS, reports, gone or {}, shapes, ConfigState(SETTINGS, 0.0))


def samples(view: RouterSum | View) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the counters and histograms of the metrics page."""
    page = MetricsPage(Sources(view), lambda form: b"").render().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def counted(seed: int) -> View:
    view = router()
    count(view, Random(seed))
    return view


SEEDS = st.lists(st.integers(0, 2**32), min_size=1, max_size=3)


@pytest.mark.slow
@given(SEEDS)
def test_each_counter_is_the_sum_of_the_workers_counters(seeds: list[int]) -> None:
    views = [counted(seed) for seed in seeds]
    page = samples(summed(views))
    apart = [samples(view) for view in views]
    for key in {key for one in apart for key in one}:
        assert page.get(key, 0) == pytest.approx(sum(one.get(key, 0) for one in apart), abs=1e-6), key


@pytest.mark.slow
@given(SEEDS, SEEDS)
def test_unsettled_work_of_killed_workers_is_settled_and_every_ledger_adds_up(
    alive: list[int], dead: list[int]
) -> None:
    views, died = [counted(seed) for seed in alive], [counted(seed) for seed in dead]
    gone: Counts = {}
    dropped = returned = lost = 0
    for view in died:
        counts = left_by(view)
        left = settle(counts)
        dropped, returned, lost = dropped + left.dropped, returned + left.returned, lost + left.lost
        assert left == type(left)(
            sum(one.outbox.ledger.unsettled for one in view.connections.values()),
            view.routes[0].in_hand,
            view.routes[1].in_hand,
        )
        add(gone, counts)
    both, without = summed(views, gone), summed([*views, *died])
    for name, one in both.connections.items():
        ledger = one.outbox.ledger
        unsettled = sum(view.connections[name].outbox.ledger.unsettled for view in views)
        assert ledger.accepted == sum(ledger.settled.values()) + unsettled
        assert ledger.accepted == without.connections[name].outbox.ledger.accepted
    for route in both.routes:
        assert route.received_in_all == route.in_hand + sum(route.settled.values())
    settled = [one.outbox.counters.dropped["worker_lost"] for one in both.connections.values()]
    assert sum(settled) == dropped
    stored, passed = both.routes
    assert stored.fates["returned"] - without.routes[0].fates["returned"] == returned
    assert passed.fates["lost"] - without.routes[1].fates["lost"] == lost
    assert passed.failed["worker_lost"] == lost


def test_the_openings_of_a_breaker_stay_apart_though_a_reload_has_removed_others() -> None:
    before, now = router(), router()
    before.routes[0].breakers = [BreakerState("main", "out"), BreakerState("edge", "copy")]
    before.routes[0].openings.update({("main", "out"): 5, ("edge", "copy"): 2})
    found = samples(summed([now], left_by(before)))
    name, labels = "router_breaker_opened_total", {"connection": "main", "route": "stored"}
    breakers = {
        key: number for key, number in found.items() if key[0] == name and labels.items() <= dict(key[1]).items()
    }
    own = {"destination": "copy", "destination_connection": "edge"}
    assert breakers == {(name, frozenset({**labels, **own}.items())): 2}


def test_a_state_is_the_worst_with_the_number_of_its_worker() -> None:
    good, bad = router(), router()
    bad.connections["edge"].state.enter(RECONNECTING)
    bad.connections["edge"].state.last_error = "refused"
    bad.routes[0].enter(STARTING, "no such stream")
    found = summed([good, bad])
    assert (found.connections["main"].state.state, found.connections["main"].state.last_error) == ("connected", None)
    assert found.connections["edge"].state.state == "reconnecting"
    assert found.connections["edge"].state.last_error == "worker 2: refused"
    assert [(route.state, route.trouble) for route in found.routes] == [
        ("starting", "worker 2: no such stream"),
        ("running", None),
    ]
    shown = status(found, 1.0)
    assert shown["name"] == "both"
    assert shown["routes"]["stored"]["from"] == {"connection": "main", "stream": "ORDERS", "durable": "router"}


def test_a_worker_with_another_configuration_is_shown() -> None:
    other = SETTINGS.with_changes(routes=SETTINGS.routes[:1])
    views = [router(), router(), router()]
    for view, settings in zip(views, (SETTINGS, other, SETTINGS), strict=True):
        view.config = ConfigState(settings, 0.0)
        view.config.accept()
    found = summed(views)
    assert found.config.reloads == {"accepted": 0, "refused": 0}, "those of the supervisor, not of its workers"
    assert found.config.hash == SETTINGS.content_hash
    assert found.config.hashes == (SETTINGS.content_hash, other.content_hash)
    page = MetricsPage(Sources(found), lambda form: b"").render().decode()
    for one in (SETTINGS, other):
        assert f'router_config_info{{hash="{one.content_hash}"}} 1.0' in page


def test_counts_are_shown_while_no_worker_runs() -> None:
    view = counted(7)
    counts = left_by(view)
    settle(counts)
    found = summed([], counts)
    assert found.connections["main"].state.state == "disconnected"
    assert found.connections["main"].outbox.ledger.accepted == view.connections["main"].outbox.ledger.accepted
    assert [(route.trouble, route.in_hand) for route in found.routes] == [(NO_WORKER, 0), (NO_WORKER, 0)]
    assert found.routes[0].received == view.routes[0].received


def test_limits_of_queues_are_added_up() -> None:
    found = summed([router(), router()])
    assert found.connections["main"].outbox.max_operations == 20
    assert found.connections["main"].outbox.max_bytes == 2000


def behind_in_all(*workers: Behind | None) -> Behind | None:
    """Return how far the route from a stream is behind, by the reports of workers."""
    views = [router() for _ in workers]
    for view, behind in zip(views, workers, strict=True):
        view.routes[0].held_by(Held(0, behind=behind))
    return summed(views).routes[0].behind


def test_undelivered_messages_of_a_durable_are_counted_once_for_all_workers() -> None:
    first = Behind(pending=500, unsettled=30, elsewhere=40, seconds=9.0, known_for=0.1)
    second = Behind(pending=450, unsettled=40, elsewhere=30, seconds=12.0, known_for=4.0)
    both = behind_in_all(first, second)
    assert both is not None
    assert (both.messages, both.seconds) == (500 + 30 + 40, 12.0)
    left = Behind(pending=500, unsettled=30, elsewhere=45, seconds=9.0)
    both = behind_in_all(left, Behind(pending=500, unsettled=40, elsewhere=35, seconds=9.0))
    assert both is not None
    assert both.messages == 500 + 30 + 40 + 5, "five that no worker has"


def test_workers_that_do_not_know_how_far_a_route_is_behind_are_left_out() -> None:
    known = Behind(pending=500, unsettled=30, elsewhere=40, seconds=9.0)
    assert behind_in_all(None, None) is None
    both = behind_in_all(None, known)
    assert both is not None
    assert both.messages == 570
    pages = summed([router(), router()])
    assert status(pages, 0.0)["routes"]["stored"]["behind"] is None
    assert "behind" not in status(pages, 0.0)["routes"]["passed"]


def led_by(member: str, led: tuple[int, ...], wanted: tuple[int, ...] = (), members: str = "ab") -> Partitions:
    """Return the partitions as a worker sees them that leads some of 8."""
    return Partitions(
        count=8,
        led=led,
        wanted=wanted,
        lag=dict.fromkeys(led, 10),
        member=member * 16,
        members=frozenset(one * 16 for one in members),
        owners=(),
        uncopied=3,
    )


def partitions_of(*workers: tuple[Partitions | None, Behind | None]) -> RouteState:
    """Return the route from a stream, by the reports of workers."""
    views = [router() for _ in workers]
    for view, (partitions, behind) in zip(views, workers, strict=True):
        view.routes[0].held_by(Held(0, behind=behind, partitions=partitions))
    return summed(views).routes[0]


def test_workers_lead_their_partitions_together() -> None:
    first, second = led_by("a", (0, 2), wanted=(1, 5)), led_by("b", (5, 1), members="abc")
    found = partitions_of((first, None), (second, None))
    assert found.partitions is not None
    assert (found.partitions.count, found.partitions.led, found.partitions.wanted) == (8, (0, 1, 2, 5), ())
    pages = summed([router()])
    pages.routes[0].held_by(Held(0, partitions=found.partitions))
    assert status(pages, 0.0)["routes"]["stored"]["partitions"] == {
        "count": 8,
        "led": [0, 1, 2, 5],
        "wanted": [],
        "members": 3,
        "lag": {"0": 10, "1": 10, "2": 10, "5": 10},
        "uncopied": 3,
    }
    assert "partitions" not in status(pages, 0.0)["routes"]["passed"]
    assert partitions_of((None, None)).partitions is None


def test_workers_have_looked_at_the_same_schedules() -> None:
    views = [router(), router(), router()]
    for view, waiting in zip(views, (7, None, 5), strict=True):
        route = view.routes[0]
        route.fired, route.schedules_lost = 2, 1
        route.fates["scheduled"] = 4
        shown: dict[str, str | bool] = {"subject": "retry.d.stored", "jetstream": True}
        to = DestinationState(
            route,
            "main",
            "retry.d.stored",
            "retry.s.stored.*",
            waits_for_puback=True,
            shown=shown,
            scheduled="retry.d.stored",
        )
        to.waiting = waiting
        route.to = [to]
    found = summed(views).routes[0]
    assert found.scheduled_retries == Schedules(12, 7, 6, 3)
    assert found.delays is None


def test_workers_have_looked_at_the_same_retries_that_drain() -> None:
    """Also if a worker has not looked yet, or found nothing left."""
    views = [router(), router(), router(), router()]
    found_by: list[dict[str, int | None]] = [{"A": 3}, {"A": 2, "B": None}, {"A": None}, {}]
    for view, draining in zip(views, found_by, strict=True):
        view.routes[0].draining = {(stream, "retry"): waiting for stream, waiting in draining.items()}
    found = summed(views).routes[0]
    assert found.draining == {("A", "retry"): 3, ("B", "retry"): None}
    assert found.scheduled_retries == Schedules(0, None, 0, 0)


def test_workers_with_partitions_are_behind_by_the_sum() -> None:
    first = Behind(pending=500, unsettled=30, elsewhere=2, seconds=9.0, known_for=0.1)
    second = Behind(pending=450, unsettled=40, elsewhere=-50, seconds=12.0, known_for=4.0)
    found = partitions_of((led_by("a", (0,)), first), (led_by("b", (1,)), second), (led_by("c", ()), None)).behind
    assert found is not None
    assert (found.messages, found.seconds, found.known_for) == (first.messages + second.messages, 12.0, 4.0)
    assert partitions_of((led_by("a", (0,)), first), (led_by("b", (1,)), None)).behind is None


def test_process_metrics_are_added_except_for_limits() -> None:
    both = together(
        [
            {"process_open_fds": 7, "process_max_fds": 100, "process_resident_memory_bytes": 5},
            {"process_open_fds": 9, "process_max_fds": 50, "process_resident_memory_bytes": 6},
        ],
        3.5,
        1000.0,
    )
    lines = process_lines(both).decode().splitlines()
    assert "process_open_fds 16.0" in lines
    assert "process_max_fds 50.0" in lines
    assert "process_resident_memory_bytes 11.0" in lines
    assert "process_cpu_seconds_total 3.5" in lines


def test_an_event_of_a_worker_is_included_once_with_the_number_of_the_worker() -> None:
    entry = {
        "number": 12,
        "at": "2026-01-01T00:00:00.000Z",
        "level": "INFO",
        "code": "X",
        "message": "x",
        "details": {},
    }
    recent = Recent()
    recent.include(entry, 2)
    (found,) = recent.since(0)
    assert (found["number"], found["details"]) == (1, {"worker": 2})


def test_routes_removed_by_a_reload_keep_their_counts_and_the_oldest_of_many_are_forgotten() -> None:
    route = (ROUTE, "goes")
    kept = with_removed({route: {"received": 5}, PROCESS: {"lag": 1}}, {PROCESS: {"lag": 2}})
    assert kept == {route: {"received": 5}, PROCESS: {"lag": 2}}
    assert with_removed(kept, {route: {"received": 6}}) == {route: {"received": 6}, PROCESS: {"lag": 2}}
    for number in range(MOST_REMOVED):
        kept = with_removed(kept, {(ROUTE, str(number)): {}})
    assert route not in kept
    assert len(kept) == MOST_REMOVED + 1


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_a_sum_of_durations_does_not_decrease_when_they_are_moved_within_a_route(elapsed: int, forwarded: int) -> None:
    before, after = (RouteState("r", "main", ["out"]) for _ in range(2))
    before.add_numbers({"elapsed_ns": elapsed, "forwarded_ns": forwarded})
    after.add_numbers({"elapsed_ns": elapsed + forwarded})
    assert after.durations.total == before.durations.total


def test_causes_in_a_worker_or_a_connection_are_listed_before_those_of_routes() -> None:
    """The first worker has only noticed that its consumers are silent, the second that its link is lost."""
    silent, quiet = (
        {"worker": 3, "reason": "silent"},
        [{"worker": 1, "route": name, "reason": "quiet"} for name in "ab"],
    )
    away, paused = {"worker": 2, "connection": "main", "reason": "away"}, {"worker": 2, "route": "a", "reason": "away"}
    assert causes_first([*quiet, away, paused, silent]) == [silent, away, *quiet, paused]


@pytest.mark.parametrize(
    ("of_workers", "ready"), [([], False), ([True], True), ([True, True], True), ([True, False], False)]
)
def test_a_route_is_ready_if_it_would_deliver_a_message_in_each_worker(of_workers: list[bool], ready: bool) -> None:
    report = report_of(router())
    stored, passed = report.routes
    reports = {
        number: replace(report, routes=[replace(stored, ready=its), replace(passed, ready=True)])
        for number, its in enumerate(of_workers, 1)
    }
    reports[len(of_workers) + 1] = replace(report, routes=[replace(passed, ready=True)])
    shapes = {route.name: route for route in report.routes}
    found = sum_up(SETTINGS, reports, {}, shapes, ConfigState(SETTINGS, 0.0)).ready
    assert found == ({"stored", "passed"} if ready else {"passed"})
