"""A durable that is paused on the server: the log reports when that begins and ends, whatever happens meanwhile."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from router_trio.states import PAUSED
from tests.support.eventually import eventually
from tests.support.world import LOCAL, fill, numbers, one_broker, world

PAUSE = "ROUTE_CONSUMER_PAUSED"
RESUMED = "ROUTE_CONSUMER_RESUMED"


async def test_a_pause_is_reported_once_over_lost_links_and_no_other_fault_is(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await eventually(lambda: w.route.settled["routed"] == 10)
        w.broker.trouble.pause_consumer("IN", "router", 600)
        event = await w.watch.until(PAUSE)
        assert (event.route, event.stream, event.durable) == ("route", "IN", "router")
        fill(w.broker, 5, first=10)
        await w.watch.until("ROUTER_NOT_READY")
        before = len(w.watch.events)
        await trio.sleep(120)
        assert (w.route.state, w.route.reason) == (PAUSED, event.detail)
        assert w.watch.codes[before:] == [], "it is neither silent nor stuck"
        w.broker.cut()
        await trio.sleep(120)
        assert (w.route.state, w.route.reason) == (PAUSED, event.detail)
        assert w.watch.count(PAUSE) == 1
        assert not w.watch.of(RESUMED)
        await eventually(lambda: w.route.settled["routed"] == 15, within=600)
        event = await w.watch.until(RESUMED)
        assert event.sentence() == "Route route: consumer router of stream IN is not paused any more"
        assert w.payloads("OUT") == numbers(15)
        w.broker.trouble.pause_consumer("IN", "router", 60)
        await w.watch.until(PAUSE, 2)
        await w.watch.until(RESUMED, 2, within=100)
