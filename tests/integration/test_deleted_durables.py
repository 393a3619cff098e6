"""On a real server, a deleted durable is recreated behind the settled messages, and before the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from router_trio import Message, Router
from router_trio.nats.jetstream.standby import LOOK_EVERY
from router_trio.routing.stream.pulling.checks import SHARED_CHECK_EVERY
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.streams import ROUTE, assert_sink_is_whole, publish_numbered, route, source_and_sink
from tests.support.watch import Watch, cut_off, let_in, until_nothing_is_unacked, until_stored, watched


@asynccontextmanager
async def streams(server: NatsServer, count: int) -> AsyncIterator[JetStream]:
    """Create a source with this many messages, and a sink that stores a second copy as another message."""
    async with connect(server.url) as client:
        yield await source_and_sink(client, count, duplicate_window=100_000_000)


async def test_a_durable_deleted_before_a_restart_is_recreated_at_its_position(server: NatsServer) -> None:
    async with streams(server, 300) as stream:
        async with watched(settings(server.url, routes=[ROUTE])):
            await until_stored(stream, "SINK", 300)
            await until_nothing_is_unacked(stream)
        async with watched(settings(server.url, routes=[ROUTE])) as watch:
            await watch.until("ROUTE_READY")
            await stream.delete_consumer("SOURCE", "router")
            await publish_numbered(stream, range(300, 310))
            await until_stored(stream, "SINK", 310)
            await watch.until("ROUTE_READY", times=2)
            await until_nothing_is_unacked(stream)
        await assert_sink_is_whole(server.url, 310)


async def test_two_processes_recreate_a_durable_at_its_position(server: NatsServer) -> None:
    config = settings(server.url, routes=[ROUTE])
    async with streams(server, 0) as stream, watched(config) as first, watched(config, alone=False) as second:
        for start in range(0, 300, 30):
            await publish_numbered(stream, range(start, start + 30))
        await until_stored(stream, "SINK", 300)
        await until_nothing_is_unacked(stream)
        await trio.sleep(2 * SHARED_CHECK_EVERY)  # each sees the messages that the other has settled
        await stream.delete_consumer("SOURCE", "router")
        await publish_numbered(stream, range(300, 310))
        for watch in (first, second):
            await watch.until("ROUTE_READY", times=2)
        await until_stored(stream, "SINK", 310)
        await until_nothing_is_unacked(stream)
        await assert_sink_is_whole(server.url, 310, in_order=False)


async def test_messages_that_another_process_has_returned_are_delivered_again(server: NatsServer) -> None:
    fails = True

    async def refuse(message: Message) -> Message:
        if fails:
            raise ValueError("not yet")
        return message

    def failing(watch: Watch) -> Router:
        router = Router(settings(server.url), observers=[watch], log=False)
        keys = {key: value for key, value in ROUTE["from"].items() if key != "max_in_flight"}
        router.route(to=ROUTE["to"], name="route", retry={"initial": "60s", "max": "100s"}, **keys)(refuse)
        return router

    async with streams(server, 10) as stream, AsyncExitStack() as processes:
        returned = Watch()
        await processes.enter_async_context(watched(failing(returned), returned))
        # The delay before each next attempt is drawn, and may be short: some may fail a second time by now.
        await eventually(lambda: returned.metric("router_nats_nak_total") >= 10)
        watch = await processes.enter_async_context(watched(settings(server.url, routes=[ROUTE]), alone=False))
        for number in range(10, 110):
            await publish_numbered(stream, [number])
        await until_stored(stream, "SINK", 50)
        fails = False
        await stream.delete_consumer("SOURCE", "router")
        await watch.until("ROUTE_READY", times=2)
        await until_stored(stream, "SINK", 110)
        await until_nothing_is_unacked(stream)


@needs_server(2, 11, lacks="pinned consumers")
async def test_a_standby_process_that_never_led_recreates_the_durable(server: NatsServer, proxy: TcpProxy) -> None:
    """The leader is cut off when the durable is deleted: the standby knows the ack floor from its own checks."""
    standby = route(standby=True, ack_wait="2s")
    async with streams(server, 300) as stream, watched(settings(proxy.url, routes=[standby])) as leader:
        await until_stored(stream, "SINK", 300)
        await until_nothing_is_unacked(stream)
        async with watched(settings(server.url, routes=[standby]), alone=False) as other:
            await other.until("ROUTE_STANDBY")
            await publish_numbered(stream, range(300, 400))
            await until_stored(stream, "SINK", 400)
            await until_nothing_is_unacked(stream)
            await trio.sleep(2 * LOOK_EVERY)
            await cut_off(proxy, leader)
            await stream.delete_consumer("SOURCE", "router")
            await publish_numbered(stream, range(400, 410))
            await until_stored(stream, "SINK", 410)
            await until_nothing_is_unacked(stream)
            (taken,) = other.router.routes
            assert taken.received < 50, "not the whole stream"
            await let_in(proxy, leader)
    await assert_sink_is_whole(server.url, 410)
