"""Situations of routes from streams: their durables, partitions, and retries that are scheduled."""

from __future__ import annotations

import trio

from router_trio import events
from router_trio.events import Event
from router_trio.link import ConsumerSpec
from tests.support.eventually import eventually
from tests.support.world import LOCAL, all_acked, fill, one_broker, stream, world
from tests.unit.events.situations.situation import about
from tests.unit.routing.stream import test_left_retries as left_retries
from tests.unit.routing.stream.partitions.test_partitions_of_routes import (
    announce,
    group_broker,
    processes,
    publish,
    shown,
)
from tests.unit.routing.stream.test_delivery_limit import broker_with_dead, use_up

LIMITED = ConsumerSpec("IN", "router", (), ack_wait=7.0, max_deliver=3, max_ack_pending=1000)


@about(events.RouteReady, events.FilterOutside)
async def filter_outside() -> list[Event]:
    """A route receives, and its filter matches no subject of its stream"""
    async with world([stream("IN", "out.x", filter="orders.*")], brokers=one_broker()) as w:
        await w.watch.until("ROUTE_FILTER_OUTSIDE_STREAM")
    return w.watch.events


@about(events.ConsumerPaused, events.ConsumerResumed)
async def paused() -> list[Event]:
    """A durable is paused for ten minutes"""
    async with world([LOCAL], brokers=one_broker()) as w:
        w.broker.trouble.pause_consumer("IN", "router", 600)
        await w.watch.until("ROUTE_CONSUMER_RESUMED", within=1000)
    return w.watch.events


@about(events.ConsumerDiffers)
async def durable_that_differs() -> list[Event]:
    """The durable of a route has other limits, and the user may not change it"""
    brokers = one_broker()
    brokers["main"].trouble.add_consumer(LIMITED)
    brokers["main"].trouble.fix_consumer("IN", "router")
    async with world([stream("IN", "out.x")], brokers=brokers) as w:
        await w.watch.until("ROUTE_CONSUMER_DIFFERS")
    return w.watch.events


@about(events.ConsumerLimitsRemoved)
async def durable_with_a_limit() -> list[Event]:
    """The durable of a route has a limit of deliveries, which the user may remove"""
    brokers = one_broker()
    brokers["main"].trouble.add_consumer(LIMITED)
    async with world([stream("IN", "out.x")], brokers=brokers) as w:
        await w.watch.until("ROUTE_CONSUMER_LIMITS_REMOVED")
    return w.watch.events


@about(events.ConsumerReset)
async def durable_that_is_reset() -> list[Event]:
    """A durable is reset backwards, and another one forwards"""
    async with world([LOCAL], brokers=one_broker()) as backwards:
        fill(backwards.broker, 10)
        await eventually(lambda: backwards.route.settled["routed"] == 10)
        backwards.broker.trouble.reset_consumer("IN", "router", 4)
        await all_acked(backwards, 10 + 7)
    async with world([LOCAL], brokers=one_broker()) as forwards:
        fill(forwards.broker, 10)
        await eventually(lambda: forwards.route.settled["routed"] == 10)
        forwards.broker.trouble.pause_consumer("IN", "router")
        fill(forwards.broker, 5, first=10)
        await trio.sleep(1)
        forwards.broker.trouble.reset_consumer("IN", "router", 16)
        forwards.broker.trouble.pause_consumer("IN", "router", 0)
        await forwards.watch.until("ROUTE_CONSUMER_RESET")
    return backwards.watch.events + forwards.watch.events


@about(events.DeliveryLimitReached)
async def delivery_limit() -> list[Event]:
    """Three of five messages, one of two, and the only one used up the deliveries of a durable"""
    found: list[Event] = []
    for count, acked in ((5, (2, 4)), (2, (1,)), (1, ())):
        brokers = broker_with_dead()
        fill(brokers["main"], count)
        await use_up(brokers["main"], *acked)
        async with world([stream("IN", "out.x")], brokers=brokers) as w:
            await w.watch.until("ROUTE_DELIVERY_LIMIT_REACHED", within=60)
        found += w.watch.events
    return found


@about(events.StreamWentBack)
async def rolled_back_streams() -> list[Event]:
    """A stream is restored, and another one is recreated"""
    async with world([LOCAL], brokers=one_broker()) as restored:
        fill(restored.broker, 10)
        await eventually(lambda: restored.route.settled["routed"] == 10)
        restored.broker.trouble.restore("IN", 5)
        fill(restored.broker, 5, first=20)
        await restored.watch.until("STREAM_WENT_BACK", within=60)
        await trio.sleep(60)
    async with world([LOCAL], brokers=one_broker()) as recreated:
        fill(recreated.broker, 10)
        await eventually(lambda: recreated.route.settled["routed"] == 10)
        recreated.broker.trouble.recreate("IN")
        fill(recreated.broker, 5, first=20)
        await recreated.watch.until("STREAM_WENT_BACK", within=60)
        await trio.sleep(60)
    return restored.watch.events + recreated.watch.events


@about(events.RouteStandby)
async def standby() -> list[Event]:
    """A route waits for the lead of its durable"""
    async with world([stream("IN", "out.x", standby=True)], brokers=one_broker()) as w:
        await w.watch.until("ROUTE_READY")
    return w.watch.events


# --- partitions ---


@about(events.RouteMembersChanged, events.RoutePartitionTaken, events.RoutePartitionGivenUp)
async def partitions() -> list[Event]:
    """A process is alone, shares its partitions with seven others for a time, and is alone again"""
    broker = group_broker()
    async with processes(broker, 1) as (first,):
        await eventually(lambda: len(shown(first.route).led) == 8)
        async with processes(broker, 7):
            await eventually(lambda: len(shown(first.route).led) == 1, 60)
        await eventually(lambda: len(shown(first.route).led) == 8, 60)
    return [one for one in first.watch.events if getattr(one, "partition", 0) == 0]


@about(events.RoutePartitionLost)
async def lost_partition() -> list[Event]:
    """The server forgets who leads a partition"""
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        await eventually(lambda: len(shown(one.route).led) == 8)
        broker.trouble.elect_durable("ORDERS-router", "router-0", 0.0)
        await one.watch.until("ROUTE_PARTITION_LOST", within=60)
        await eventually(lambda: len(shown(one.route).led) == 8, 60)
    return one.watch.events


@about(events.RoutePartitionsUnled)
async def unled_partitions() -> list[Event]:
    """Messages wait in partitions of a member that does not exist"""
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        await announce(broker, "0" * 16)
        await eventually(lambda: len(shown(one.route).led) == 4, 10)
        publish(broker, 100)
        await one.watch.until("ROUTE_PARTITIONS_UNLED", within=60)
        await eventually(lambda: len(broker.messages("OUT")) == 100, 60)
    return one.watch.events


# --- scheduled retries ---


@about(events.RouteRetriesDraining, events.RouteRetriesDrained)
async def retries_that_drain() -> list[Event]:
    """A retry, then two, wait in a stream where a reload schedules none"""
    found: list[Event] = []
    for count in (1, 2):
        left_retries.left_to_fail.clear()
        async with world([left_retries.route(left_retries.A)], brokers=left_retries.brokers()) as w:
            await left_retries.fail(w, count)
            await left_retries.reload(w, left_retries.route(left_retries.WITHOUT))
            await w.watch.until("ROUTE_RETRIES_DRAINED", within=200)
        found += w.watch.events
    return found


@about(events.RouteRetriesLeft, events.RouterReloaded)
async def retries_that_are_left() -> list[Event]:
    """A removed route leaves one retry, then two, and then some that can't be counted"""
    found: list[Event] = []
    for count, is_known in ((1, True), (2, True), (1, False)):
        left_retries.left_to_fail.clear()
        async with world([left_retries.route(left_retries.A)], brokers=left_retries.brokers()) as w:
            await left_retries.fail(w, count)
            if not is_known:
                w.broker.deny_publish("$JS.API.>")
            await left_retries.reload(w)
        found += w.watch.events
    return found


@about(events.RouteScheduleLost)
async def lost_schedules() -> list[Event]:
    """Of three scheduled retries one is deleted by hand, then two"""
    found: list[Event] = []
    for count in (1, 2):
        left_retries.left_to_fail.clear()
        schedule = {"initial": "200s", "max": "200s", "schedule": left_retries.A}
        route = left_retries.route(left_retries.A, retry=schedule)
        async with world([route], brokers=left_retries.brokers()) as w:
            await left_retries.fail(w, 3, times=9)
            for subject in [*w.broker._server.streams["RETRY"].schedules][:count]:
                w.broker.trouble.delete_schedule("RETRY", subject)
            await w.watch.until("ROUTE_SCHEDULE_LOST", within=190)
        found += w.watch.events
    return found
