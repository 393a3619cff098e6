"""Changes of readiness in the log and in the metrics, without any request for `/readyz`."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.events import RouterNotReady, RouterReady
from router_trio.states import CONNECTED, RUNNING
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http.status import unready_parts
from router_trio.telemetry.logs.console import console_line
from router_trio.telemetry.metrics.metric import Metric
from router_trio.telemetry.metrics.table import TABLE
from router_trio.telemetry.readiness_log import AT_ONCE, Readiness, Reasons, watch_readiness
from tests.performance.instructions import instructions
from tests.support.compiled import looks_inside
from tests.support.eventually import eventually
from tests.support.measured import needs_full_speed
from tests.support.telemetry_views import View, make_view
from tests.support.world import World, core, to, two_brokers, world

CORE = core("in.>", to("heard.>", "edge"), name="core", connection="main")
OTHER = core("other.>", to("elsewhere.>"), name="other", connection="main")
COUNTS = (500, 5000)
CODES = ("ROUTER_NOT_READY", "ROUTER_READY")


def logged(w: World) -> list[Any]:
    return [event for event in w.watch.events if event.code in CODES]


def gauges(w: World, name: str) -> dict[tuple[str, ...], float]:
    """Return the series of a gauge by label values."""
    sources = Telemetry(w.configuration(CORE), logs=False).sources(w.live)
    [row] = [row for row in TABLE if row.name == name]
    assert isinstance(row, Metric)
    return dict(row.read(sources))


async def test_a_router_logs_when_it_becomes_unready_and_ready_again(autojump_clock: MockClock) -> None:
    async with world([CORE, OTHER], brokers=two_brokers()) as w:
        await eventually(lambda: len(logged(w)) == 1)
        assert isinstance(logged(w)[0], RouterReady)
        assert gauges(w, "router_ready") == {(): 1}
        assert gauges(w, "router_route_ready") == {("main", "core"): 1, ("main", "other"): 1}
        await w.lose("edge")
        await eventually(lambda: len(logged(w)) == 2)
        event = logged(w)[1]
        assert isinstance(event, RouterNotReady)
        assert event.count == len(event.reasons) == 1
        assert event.sentence().startswith("Router is not ready (1 reason): connection edge: reconnecting")
        assert gauges(w, "router_ready") == {(): 0}
        assert gauges(w, "router_route_ready") == {("main", "core"): 0, ("main", "other"): 1}
        await trio.sleep(60)
        assert len(logged(w)) == 2, "only the text of the reason changes with each attempt"
        await w.find("edge")
        await eventually(lambda: len(logged(w)) == 3)
        assert logged(w)[2].not_ready_seconds >= 59
        assert gauges(w, "router_ready") == {(): 1}
    assert len(logged(w)) == 3, "a shutdown is not logged as a loss of readiness"


async def test_a_flapping_connection_is_logged_at_most_once_a_second(autojump_clock: MockClock) -> None:
    async with world([CORE], brokers=two_brokers()) as w:
        began_at = trio.current_time()
        for _ in range(50):
            await w.lose("edge")
            await w.find("edge")
        times = [event.at for event in logged(w)]
        assert len(times) <= trio.current_time() - began_at + 2
        assert all(after - before >= 1 for before, after in pairwise(times))


def test_a_change_of_the_unready_parts_is_logged_but_not_a_change_of_the_text() -> None:
    readiness = Readiness()
    silent, other = {"route": "a", "reason": "quiet for 9 s"}, {"route": "b", "reason": "paused"}
    assert readiness.look([silent], 1.0) is not None
    assert readiness.look([{**silent, "reason": "quiet for 10 s"}], 2.0) is None
    event = readiness.look([silent, other], 3.0)
    assert isinstance(event, RouterNotReady)
    assert event.reasons == ("route a: quiet for 9 s", "route b: paused")
    again = readiness.look([], 4.5)
    assert isinstance(again, RouterReady)
    assert again.not_ready_seconds == 3.5
    assert readiness.look([], 5.0) is None


def test_a_line_lists_the_first_reasons_and_counts_all() -> None:
    many = [{"route": f"route {number}", "reason": "x" * 5000} for number in range(3000)]
    event = Readiness().look(many, 1.0)
    assert isinstance(event, RouterNotReady)
    assert (event.count, len(event.reasons)) == (3000, 20)
    assert len(json.dumps(event.reasons)) < 20 * 600
    line = {"timestamp": "2026-01-01T00:00:00Z", "level": "WARN", "message": event.sentence(), "error_code": event.code}
    assert "(3000 reasons): route route 0: xxx" in console_line(line, colours=False)


def test_no_secret_is_in_a_reason() -> None:
    event = Readiness().look([{"connection": "a", "reason": "no answer of nats://me:hunter2@host:4222"}], 1.0)
    assert isinstance(event, RouterNotReady)
    assert "hunter2" not in str(event.reasons) + event.sentence()


async def test_checking_thousands_of_routes_does_not_block_other_tasks() -> None:
    view = many_routes(5000)
    checked = 0
    at_once: list[int] = []

    def parts() -> Reasons:
        nonlocal checked
        for part in unready_parts(view, trio.current_time):
            checked += 1
            yield part

    async def have_turns() -> None:
        while not view.events:
            before = checked
            await trio.lowlevel.checkpoint()
            at_once.append(checked - before)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_readiness, parts, view.events.append)
        nursery.start_soon(have_turns)
    assert [event.code for event in view.events] == ["ROUTER_READY"]
    assert max(at_once) <= 2 * AT_ONCE, "Trio runs two tasks in any order, so both turns of one may be in a row"
    assert checked > 5000


@looks_inside
@needs_full_speed
async def test_a_turn_of_the_check_costs_no_more_with_more_routes() -> None:
    """Counted, since times are others beside other work."""
    few, many = (instructions(partial(list, unready_parts(many_routes(count), trio.current_time))) for count in COUNTS)
    assert many / COUNTS[1] <= few / COUNTS[0]
    assert AT_ONCE * few / COUNTS[0] < 10_000


def many_routes(count: int) -> View:
    view = make_view(["main"], [f"route {number}" for number in range(count)])
    for route in view.routes:
        route.enter(RUNNING)
    state = view.connections["main"].state
    state.enter(CONNECTED)
    state.fenced_at = trio.current_time()
    return view


async def test_routes_may_be_added_and_removed_during_a_check(autojump_clock: MockClock) -> None:
    view = many_routes(500)
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_readiness, lambda: unready_parts(view, trio.current_time), view.events.append)
            for _ in range(1000):
                view.connections[f"more {len(view.connections)}"] = view.connections["main"]
                view.routes.pop()
                view.routes += many_routes(1).routes
                await trio.sleep(0.01)
    assert [event.code for event in view.events] == ["ROUTER_READY"]


@pytest.mark.parametrize("state", ["starting", "paused", "failed"])
def test_a_route_that_is_not_running_is_not_ready(state: str) -> None:
    view = make_view(["main"], ["a"])
    view.routes[0].enter(state)
    assert [one["route"] for part in unready_parts(view, lambda: 0.0) for one in part if "route" in one] == ["a"]
