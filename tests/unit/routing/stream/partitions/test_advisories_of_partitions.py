"""Advisories about the durables of partitions."""

from __future__ import annotations

from trio.testing import MockClock

from router_trio.protocol.advisories import OF_DURABLES
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import world
from tests.unit.routing.stream.partitions.test_partitions_of_routes import (
    PARTITIONS,
    group_broker,
    route,
    shown,
)


def subscribed(broker: FakeBroker) -> set[str]:
    """Return the durables to whose advisories clients have subscribed."""
    found: dict[str, int] = {}
    for one in broker._server._interests:
        if ".ADVISORY.CONSUMER." in one.pattern:
            name = one.pattern.split(".", 5)[5]
            found[name] = found.get(name, 0) + 1
    assert set(found.values()) <= {len(OF_DURABLES)}
    return set(found)


async def test_the_durables_of_a_copy_share_subscriptions(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with world([route()], brokers={"main": broker}) as w:
        await eventually(lambda: len(shown(w.route).led) == PARTITIONS)
        assert subscribed(broker) == {"ORDERS-router.*"}
        broker.trouble.pause_consumer("ORDERS-router", "router-3", 60)
        await eventually(lambda: "partition 3" in str(w.route.reason), 3)
    assert not subscribed(broker)


async def test_durables_beside_those_of_other_routes_are_subscribed_to_one_by_one(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    entry = {"connection": "main", "name": "ORDERS", "subjects": ["orders.*.*"], "partitions": PARTITIONS}
    streams = [entry | {"partition_by": [1]}]
    async with world([route()], brokers={"main": broker}, streams=streams) as w:
        await eventually(lambda: len(shown(w.route).led) == PARTITIONS)
        assert subscribed(broker) == {f"ORDERS.router-{number}" for number in range(PARTITIONS)}
