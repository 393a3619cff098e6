"""The reports of a real server about streams and durables: quoted, acted on by lookups, and not needed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from router_trio import Router
from router_trio.nats.jetstream.consumer_config import LEAD_GROUP
from router_trio.routing.stream.pulling import checks
from router_trio.telemetry.http.status import readiness
from tests.integration.readiness import users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import NoResponders, RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import cluster, nats_server
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch

NS = 1_000_000_000
ROUTE = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", dead_letter={"subject": "dead.x"})


async def streams_of(client: RawClient, **source: str) -> JetStream:
    """Create the streams of the route."""
    streams = JetStream(client)
    await streams.create_stream("IN", ["in.*"], **source)
    await streams.create_stream("OUT", ["out.*"])
    await streams.create_stream("DEAD", ["dead.*"])
    return streams


async def use_up(streams: JetStream, *acked: int) -> None:
    """Let another client receive every message of the durable until the server delivers none, and ack some."""
    await streams.create_consumer("IN", "router", ack_wait=NS // 5, max_deliver=2, filter_subject="in.*")
    inbox = streams.client.new_inbox()
    replies = await streams.client.subscribe(inbox)
    for _ in range(3):
        await streams.client.publish(
            "$JS.API.CONSUMER.MSG.NEXT.IN.router", b'{"batch": 100, "expires": 400000000}', None, inbox
        )
        await trio.sleep(0.5)
        for message in replies.waiting():
            if message.reply and int(message.reply.split(".")[5]) in acked:
                await streams.client.publish(message.reply, b"+ACK")
    await streams.client.ping()

    async def none_left() -> bool:
        info = await streams.consumer_info("IN", "router")
        return not info["num_ack_pending"] and not info["num_pending"]

    await eventually(none_left, 10)


@pytest.mark.parametrize("retention", ["workqueue", "limits"])
async def test_a_message_that_reached_the_limit_while_no_router_ran_becomes_a_dead_letter(
    retention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    dead = 4
    watches = Watch(), Watch()
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        streams = await streams_of(client, retention=retention)
        for number in range(5):
            await streams.publish("in.x", b"%d" % number)
        await use_up(streams, 3)
        configured = settings(server.url, routes=[ROUTE])
        async with (
            Router(configured, observers=[watches[0]], log=False).open() as one,
            Router(configured, observers=[watches[1]], log=False).open() as other,
        ):
            routes = one.routes[0], other.routes[0]
            await eventually(
                lambda: sum(route.dead_lettered for route in routes) == dead, 20, lambda: [r.settled for r in routes]
            )
            await trio.sleep(1)
            assert sum(route.dead_lettered for route in routes) == dead
            for route in routes:
                assert route.received_in_all == route.in_hand + sum(route.settled.values())
            letters = await streams.stream_messages("DEAD")
            assert len(letters) == dead
            assert {one.header("Router-Dead-Letter-Reason") for one in letters} == {"max_deliver"}
            await streams.publish("in.x", b"new")
            await eventually(lambda: sum(route.settled["routed"] for route in routes) == 1)
        state = (await streams.stream_info("IN"))["state"]
        assert state["messages"] == (0 if retention == "workqueue" else 6), "terminated at its source"


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


@pytest.mark.nightly  # half a minute, in which servers elect
@pytest.mark.timeout(180)
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
                line = event.sentence()
                assert "has lost its quorum" in line
                assert all(one.name in line for one in stopped), line
                # Beside trouble only, which the checks of the durable find: each waits for an answer.
                await eventually(lambda: "has lost its quorum" in str(readiness(live, trio.current_time())[1]), 40)
                await eventually(lambda: "has lost its quorum" in str(live.status()["routes"]["route"]), 40)
            finally:
                for one in stopped:
                    one.cont()
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 60, live.status)
            async with connect(node.url) as client:

                async def published() -> bool:
                    with suppress(NoResponders):  # until IN has a leader
                        await JetStream(client).publish("in.x", b"2", within=20)
                        return True
                    return False

                await eventually(published, 30)
            await eventually(lambda: live.routes[0].settled["routed"] == 2, 30)


@needs_server(2, 11, lacks="pinned consumers")
async def test_messages_of_partitions_that_reached_the_limit_become_dead_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    route = stream_route(
        "IN", "out.{{wildcard(1)}}", filter="in.*", partitions=2, dead_letter={"subject": "dead.{{wildcard(1)}}"}
    )
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        streams = await streams_of(client)
        configured = settings(server.url, routes=[route])
        async with Router(configured, log=False).open() as live:
            await eventually(lambda: (shown := live.routes[0].partitions) is not None and len(shown.led) == 2, 20)
        await streams.publish_many((f"in.{number}", b"%d" % number, None) for number in range(8))
        inbox = client.new_inbox()
        await client.subscribe(inbox)
        for number in range(2):
            name = f"IN-router.router-{number}"
            await streams.edit_consumer("IN-router", f"router-{number}", max_deliver=1, ack_wait=NS // 5)
            await streams.api(f"CONSUMER.UNPIN.{name}", {"group": LEAD_GROUP})
            request = {"batch": 8, "expires": 5 * NS, "group": LEAD_GROUP}
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{name}", json.dumps(request).encode(), None, inbox)

        async def none_left() -> bool:
            found = [await streams.consumer_info("IN-router", f"router-{number}") for number in range(2)]
            delivered = sum(one["delivered"]["consumer_seq"] for one in found)
            return delivered == 8 and not any(one["num_ack_pending"] for one in found)

        await eventually(none_left, 10)
        for number in range(2):
            await streams.api(f"CONSUMER.UNPIN.IN-router.router-{number}", {"group": LEAD_GROUP})
        await client.ping()
        async with Router(configured, log=False).open() as live:
            # A server gives the lead of a partition with a message.
            await streams.publish_many((f"in.{number}", b"new", None) for number in range(8))
            await eventually(lambda: live.routes[0].dead_lettered == 8, 20, lambda: live.status()["routes"])
            letters = await streams.stream_messages("DEAD")
            assert sorted(str(letter.header("Router-Dead-Letter-Subject")) for letter in letters) == [
                f"in.{number}" for number in range(8)
            ]
            assert live.routes[0].settled["routed"] == 8
