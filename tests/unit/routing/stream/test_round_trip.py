"""Servers far away: enough is in flight for the round trip, and PubAcks count however long lookups take."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.eventually import eventually
from tests.support.world import REMOTE, fill, numbers, stream, to, two_brokers, unacked, world

ROUND_TRIP = 0.08
COUNT = 45_000


async def copied(count: int, **source: Any) -> tuple[float, int]:
    """Return the messages per second, of the last third, copied to a far broker, and how many may be in flight then."""
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
async def test_more_messages_are_in_flight_if_the_round_trip_is_long(autojump_clock: MockClock) -> None:
    fixed, limit = await copied(COUNT // 4, max_in_flight=1024)
    assert limit == 1024
    free, limit = await copied(COUNT)
    assert limit == 4096
    print(f"{fixed:,.0f} a second with 1,024 in flight, {free:,.0f} with {limit}")
    assert free > 3 * fixed
    assert free > 0.9 * 4000 / ROUND_TRIP, "as fast as a loop with 4,000 publishes in flight"


@pytest.mark.parametrize("round_trip", [0.5, 2.5, 4.5])
async def test_a_puback_counts_however_long_the_lookup_of_its_stream_takes(
    round_trip: float, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        brokers["edge"].trouble.travel(lambda: round_trip / 2)
        await w.lose("edge")  # the next link has no knowledge of its streams
        await w.find("edge")
        fill(w.broker, 3)
        await eventually(lambda: w.route.settled["routed"] == 3, 2 * round_trip + 5.0, lambda: w.route.settled)
        assert w.failures("publish_with_ack", "edge") == {}
        assert w.payloads("OUT", "edge") == numbers(3)
        await eventually(lambda: unacked(w) == 0)
        assert w.route.to[0].trouble is None
