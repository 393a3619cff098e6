"""The reports of a real server about streams and durables: quoted, acted on by lookups, and not needed."""

from __future__ import annotations

from pathlib import Path

import trio

from router_trio import Router
from router_trio.telemetry.http.status import readiness
from router_trio.telemetry.logs.sentences import sentence
from tests.integration.readiness import users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import cluster, nats_server
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch

ROUTE = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", dead_letter={"subject": "dead.x"})


async def streams_of(client: RawClient, **source: str) -> JetStream:
    """Create the streams of the route."""
    streams = JetStream(client)
    await streams.create_stream("IN", ["in.*"], **source)
    await streams.create_stream("OUT", ["out.*"])
    await streams.create_stream("DEAD", ["dead.*"])
    return streams


async def test_changes_of_an_administrator_are_noticed_at_once_and_named(tmp_path: Path) -> None:
    watch = Watch()
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        streams = await streams_of(client)
        async with Router(settings(server.url, routes=[ROUTE]), observers=[watch], log=False).open() as live:
            await streams.publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
            await trio.sleep(1.1)  # a lookup is made once a second at most
            began = trio.current_time()
            await streams.pause_consumer("IN", "router", 3600)
            await watch.until("ROUTE_CONSUMER_PAUSED")
            assert trio.current_time() - began < 2.5, "not at the next check, which is five seconds later"
            await trio.sleep(1.1)
            await streams.pause_consumer("IN", "router", 0)
            await watch.until("ROUTE_CONSUMER_RESUMED", within=2.5)
            await streams.delete_consumer("IN", "router")
            event = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert "the server reported that durable 'router' of stream 'IN' was deleted" in event.detail
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 20)
            await streams.delete_stream("OUT")
            await streams.publish("in.x", b"2")
            event = await watch.until("NATS_DESTINATION_NOT_STORED")
            await eventually(
                lambda: "stream 'OUT' was deleted" in str(readiness(live, trio.current_time())[1]),
                20,
                lambda: readiness(live, trio.current_time()),
            )


async def test_advisories_make_room_for_routes(tmp_path: Path) -> None:
    watch = Watch()
    config = "max_subscriptions: 9\n" + users()
    async with nats_server(tmp_path, config=config) as server:
        async with connect(server.url, user="other", password="other") as client:
            await streams_of(client)
        made = settings(server.url, routes=[ROUTE], user="router", password="secret")
        async with Router(made, observers=[watch], log=False).open() as live:
            async with connect(server.url, user="other", password="other") as client:
                await JetStream(client).publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1, 20, lambda: live.status()["routes"])
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 20)
            assert not watch.of("NATS_CONNECTION_LOST")


async def test_revoked_advisories_end_no_link(tmp_path: Path) -> None:
    watch = Watch()
    async with (
        nats_server(tmp_path, config=users()) as server,
        connect(server.url, user="other", password="other") as client,
    ):
        await streams_of(client)
        made = settings(server.url, routes=[ROUTE], user="router", password="secret")
        async with Router(made, observers=[watch], log=False).open() as live:
            await JetStream(client).publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
            await server.reload(users(deaf=["$JS.EVENT.>"]))
            await trio.sleep(0.5)
            await JetStream(client).publish("in.x", b"2")
            await eventually(lambda: live.routes[0].settled["routed"] == 2)
            assert not watch.of("NATS_CONNECTION_LOST")


async def test_with_two_of_three_servers_stopped_the_log_has_the_reason_of_the_server(tmp_path: Path) -> None:
    watch = Watch()
    async with cluster(tmp_path) as group:
        async with connect(group.urls[0]) as client:
            streams = JetStream(client)
            for name, taken in (("IN", "in.*"), ("OUT", "out.*")):
                await streams.create_stream(name, [taken], num_replicas=3)
            await streams.create_consumer("IN", "router", filter_subject="in.*")
            leader = (await streams.consumer_info("IN", "router"))["cluster"]["leader"]
        node = next(one for one in group.servers if one.name == leader)
        route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*")
        async with Router(settings(node.url, routes=[route]), observers=[watch], log=False).open() as live:
            async with connect(node.url) as client:
                await JetStream(client).publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1, 20)
            stopped = [one for one in group.servers if one is not node]
            for one in stopped:
                one.stop()
            try:
                event = await watch.until("NATS_QUORUM_LOST", within=60)
                line = sentence(event)
                assert "has lost its quorum" in line
                assert all(one.name in line for one in stopped), line
                await eventually(lambda: "has lost its quorum" in str(readiness(live, trio.current_time())[1]), 10)
                await eventually(lambda: "has lost its quorum" in str(live.status()["routes"]["route"]), 10)
            finally:
                for one in stopped:
                    one.cont()
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 60, live.status)
            async with connect(node.url) as client:
                await JetStream(client).publish("in.x", b"2", within=20)
            await eventually(lambda: live.routes[0].settled["routed"] == 2, 30)
