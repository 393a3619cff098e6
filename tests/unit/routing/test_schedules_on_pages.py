"""`/status` and the metrics show the schedules of a route: stored, waiting, fired and lost ones."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from router_trio.connection.waiting_schedules import COUNT_EVERY
from router_trio.telemetry.http.status import status
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.metrics.page import MetricsPage
from tests.support.eventually import eventually
from tests.support.world import World, core, stream, world
from tests.unit.routing import test_delays as delays
from tests.unit.routing.stream import test_scheduled_retries as retries

SOON = 5.5
"""Seconds within which a route of a new link, or a changed one, is looked up."""


def shown(w: World) -> Any:
    """Return the schedules of the route on `/status`."""
    return status(w.live, trio.current_time())["routes"]["route"].get("schedules")


def series(w: World) -> dict[tuple[str, str], float]:
    """Return the metrics about schedules, by name and kind."""
    page = MetricsPage(Sources(w.live), lambda form: b"").render().decode()
    return {
        (sample.name.removeprefix("router_route_schedules_"), sample.labels.get("kind", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("router_route_schedules_")
    }


async def test_scheduled_retries_are_shown_until_they_fire_and_if_they_are_lost(autojump_clock: MockClock) -> None:
    handler = retries.Failing(3)
    route = retries.route(handler, **retries.retrying("200s"))
    async with world(handlers=[route], brokers=retries.brokers()) as w:
        await trio.sleep(SOON)
        assert shown(w) == {"retries": {"scheduled": 0, "fired": 0, "waiting": 0, "lost": 0}}
        for number in range(3):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["scheduled"] == 3)
        await trio.sleep(COUNT_EVERY + SOON)
        assert shown(w) == {"retries": {"scheduled": 3, "fired": 0, "waiting": 3, "lost": 0}}
        w.broker.trouble.delete_schedule("RETRY", next(iter(w.broker._server.streams["RETRY"].schedules)))
        await trio.sleep(COUNT_EVERY + SOON)
        assert shown(w) == {"retries": {"scheduled": 3, "fired": 0, "waiting": 2, "lost": 1}}
        await eventually(lambda: w.route.settled["routed"] == 2, 200)
        await trio.sleep(COUNT_EVERY + SOON)
        assert shown(w) == {"retries": {"scheduled": 3, "fired": 2, "waiting": 0, "lost": 1}}
        assert series(w) == {
            ("stored_total", "retry"): 3,
            ("waiting_count", "retry"): 0,
            ("fired_total", ""): 2,
            ("lost_total", ""): 1,
        }


async def test_a_retry_that_is_delivered_twice_has_fired_once(autojump_clock: MockClock) -> None:
    handler = retries.Failing(1)
    near = retries.route(handler, "out.x", ack_wait="2s", **retries.retrying("10s"))
    async with world(handlers=[near], brokers=retries.brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        w.broker.trouble.lose("ack", 1)
        await eventually(lambda: w.route.settled["duplicate"] == 1, 60)
        assert shown(w)["retries"]["fired"] == 1


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_delayed_copies_are_shown_while_they_wait(kind: str, autojump_clock: MockClock) -> None:
    to = delays.delayed("200s")
    source = core("in.*", to) if kind == "core" else stream("IN", to, filter="in.*")
    there = delays.brokers()
    async with world([source], brokers=there) as w:
        w.broker.publish("in.a", b"1")
        w.broker.publish("in.a", b"2")
        await eventually(lambda: w.route.settled["routed"] == 2)
        await trio.sleep(COUNT_EVERY + SOON)
        assert shown(w) == {"delays": {"scheduled": 2, "waiting": 2}}
        await w.live.reload(w.configuration(source | {"hop_limit": 5}))
        await trio.sleep(SOON)
        assert shown(w) == {"delays": {"scheduled": 2, "waiting": 2}}
    async with world([source], brokers=there) as w:
        await trio.sleep(SOON)
        assert shown(w) == {"delays": {"scheduled": 0, "waiting": 2}}, "also those of a router before"
        assert series(w) == {("stored_total", "delay"): 0, ("waiting_count", "delay"): 2}
        await trio.sleep(200)
        assert shown(w) == {"delays": {"scheduled": 0, "waiting": 0}}


async def test_waiting_copies_are_not_shown_while_their_number_is_not_known(autojump_clock: MockClock) -> None:
    there = delays.brokers()
    async with world([stream("IN", delays.delayed("1h"), filter="in.*")], brokers=there) as w:
        w.broker.publish("in.a", b"1")
        await eventually(lambda: w.route.settled["routed"] == 1)
        await trio.sleep(COUNT_EVERY + SOON)
        there["main"].trouble.elect("OUT", 2 * COUNT_EVERY)
        await trio.sleep(COUNT_EVERY + SOON + 5.0)
        assert shown(w) == {"delays": {"scheduled": 1, "waiting": None}}
        assert series(w) == {("stored_total", "delay"): 1}
        await trio.sleep(COUNT_EVERY + 2 * SOON)
        assert shown(w) == {"delays": {"scheduled": 1, "waiting": 1}}


async def test_a_route_without_schedules_shows_none(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.a", filter="in.*")], brokers=delays.brokers()) as w:
        assert shown(w) is None
        assert not series(w)
