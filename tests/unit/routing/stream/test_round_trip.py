"""Between two servers that are far apart, a route has as many messages in flight as the round trip needs."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.eventually import eventually
from tests.support.world import fill, stream, to, two_brokers, world

ROUND_TRIP = 0.08
COUNT = 45_000


async def copied(count: int, **source: Any) -> tuple[float, int]:
    """Messages a second, of the last third, that are copied to a far broker, and how many may be in flight then."""
    brokers = two_brokers()
    brokers["edge"].trouble.travel(lambda: ROUND_TRIP / 2)
    route = stream("IN", to("out.{{wildcard(1)}}", "edge", jetstream=True), connection="main", filter="in.*", **source)
    fill(brokers["main"], count)
    async with world([route], brokers=brokers) as w:
        await eventually(lambda: w.route.settled["routed"] >= count * 2 // 3, 60)
        began, first = trio.current_time(), w.route.settled["routed"]
        await eventually(lambda: w.route.settled["routed"] >= count, 60)
        limit = w.watch.metric("router_route_in_flight_limit")
        return (count - first) / (trio.current_time() - began), int(limit)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_more_is_in_flight_where_the_round_trip_is_long(autojump_clock: MockClock) -> None:
    fixed, limit = await copied(COUNT // 4, max_in_flight=1024)
    assert limit == 1024
    free, limit = await copied(COUNT)
    assert limit == 4096
    print(f"{fixed:,.0f} a second with 1,024 in flight, {free:,.0f} with {limit}")
    assert free > 3 * fixed
    assert free > 0.9 * 4000 / ROUND_TRIP, "as a loop with 4,000 publishes in flight"
