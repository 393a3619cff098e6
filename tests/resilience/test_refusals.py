"""A destination refuses messages of a route from a stream, and accepts them later: each subject arrives in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.settings import Settings
from router_trio.states import PAUSED, RUNNING
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.streams import SUBJECTS, assert_sink_is_whole, numbers_in, publish_numbered, route, source_and_sink
from tests.support.watch import assert_survived, until_stored, watched

REFUSED = ("sink.3", "sink.4")
"""The subjects that are refused; the others are unaffected."""


def config(denied: Sequence[str] = ()) -> str:
    """Return the configuration of a server whose user `router` may not publish to these subjects."""
    permissions = f"permissions: {{ publish: {{ deny: {json.dumps(list(denied))} }} }}"
    users = f"{{ user: router, password: p, {permissions} }}, {{ user: u, password: p }}"
    return f"authorization {{ users: [ {users} ] }}\n"


def routed(server: NatsServer, attempts: int = 0, **source: Any) -> Settings:
    """Return a route whose refused messages are redelivered soon."""
    retry = {"initial": "100ms", "attempts": attempts}
    return settings(server.url, routes=[route(retry=retry, **source)], user="router", password="p")


def somebody(server: NatsServer) -> Any:
    """Connect a client that may do anything."""
    return connect(server.url, user="u", password="p")


async def numbers(client: RawClient, subjects: Sequence[str] | None = None) -> list[int]:
    """Return the numbers that SINK holds, of all subjects or of these."""
    stored = await JetStream(client).stream_messages("SINK")
    return [int(one.payload) for one in stored if subjects is None or one.subject in subjects]


async def test_a_refused_message_deleted_from_its_stream_delays_the_others_only_for_a_while(
    tmp_path: Path,
) -> None:
    async with nats_server(tmp_path, config=config()) as server, somebody(server) as client:
        stream = await source_and_sink(client)
        given = settings(server.url, routes=[route(ack_wait=1.0, retry={"initial": "2s"})], user="router", password="p")
        async with watched(given) as watch:
            state = watch.router.routes[0]
            await server.reload(config(REFUSED))
            await publish_numbered(stream, [3])
            await eventually(lambda: state.failed["permission_denied"] >= 1)
            await server.reload(config())
            await publish_numbered(stream, [13, 23])
            await eventually(lambda: state.received == 3)
            await stream.api("STREAM.MSG.DELETE.SOURCE", {"seq": 1})
            await until_stored(stream, "SINK", 2, within=15)
            assert await numbers(client) == [13, 23]


async def test_a_permission_revoked_under_traffic_and_restored_keeps_the_order(tmp_path: Path) -> None:
    each = 300
    async with nats_server(tmp_path, config=config()) as server, somebody(server) as client:
        stream = await source_and_sink(client, each)
        async with watched(routed(server)) as watch:
            live = watch.router
            await until_stored(stream, "SINK", each)
            await server.reload(config(REFUSED))
            for times in range(1, 4):
                await publish_numbered(stream, range(times * each, (times + 1) * each))
            others = 4 * each * (SUBJECTS - len(REFUSED)) // SUBJECTS
            await until_stored(stream, "SINK", others + each * len(REFUSED) // SUBJECTS, within=10)
            await eventually(lambda: live.routes[0].failed["permission_denied"] > 0)
            assert live.routes[0].state == RUNNING
            assert "to be redelivered and retried" in str(live.routes[0].reason)
            assert await numbers(client, REFUSED) == [n for n in range(each) if n % SUBJECTS in (3, 4)]
            await server.reload(config())
            await publish_numbered(stream, range(4 * each, 5 * each))
            await until_stored(stream, "SINK", 5 * each)
            await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
            await eventually(lambda: live.routes[0].reason is None)
        arrived = await numbers(client)
    assert sorted(arrived) == list(range(5 * each))
    for subject in range(SUBJECTS):
        own = [number for number in arrived if number % SUBJECTS == subject]
        assert own == sorted(own)


@pytest.mark.parametrize("max_ack_pending", [4, 1000])
async def test_with_little_room_waiting_messages_make_way_for_redeliveries(
    tmp_path: Path, max_ack_pending: int
) -> None:
    """This holds even if the durable was created with a much larger limit."""
    count = 60
    async with nats_server(tmp_path, config=config(REFUSED)) as server, somebody(server) as client:
        stream = await source_and_sink(client)
        await stream.create_consumer(
            "SOURCE", "router", filter_subject="source.*", max_ack_pending=max_ack_pending, ack_wait=30_000_000_000
        )
        async with watched(routed(server, max_in_flight=2)) as watch:
            route = watch.router.routes[0]
            await publish_numbered(stream, [n for n in range(count) if n % SUBJECTS in (3, 4)])
            await eventually(lambda: route.state == PAUSED)
            failed = route.failed["permission_denied"]
            await eventually(lambda: route.failed["permission_denied"] > failed + 4)
            assert (await stream.consumer_info("SOURCE", "router"))["num_ack_pending"] <= 5
            await server.reload(config())
            await until_stored(stream, "SINK", count * len(REFUSED) // SUBJECTS)
            await assert_survived(watch, losses=0)
        arrived = await numbers(client)
    for subject in (3, 4):
        assert [n for n in arrived if n % SUBJECTS == subject] == list(range(subject, count, SUBJECTS))


async def test_a_message_that_is_given_up_delays_no_other(server: NatsServer) -> None:
    """The stream refuses some messages because they are larger than it takes: only a message can cause that."""
    count, too_large = 100, [*range(3, 100, 7)]
    async with connect(server.url) as client:
        stream = await source_and_sink(client, max_msg_size=200)
        padding = dict.fromkeys(too_large, b" " * 300)
        await stream.publish_many(
            [
                (f"source.{n % SUBJECTS}", b"%d" % n + padding.get(n, b""), [("Nats-Msg-Id", f"{n}")])
                for n in range(count)
            ]
        )
        async with watched(settings(server.url, routes=[route(retry={"initial": "100ms", "attempts": 3})])) as watch:
            live = watch.router.routes[0]
            await eventually(lambda: sum(live.routed.values()) + live.fates["given_up"] == count)
            await assert_survived(watch, losses=0, seen=["ROUTE_MESSAGE_GIVEN_UP"])
            assert sorted(event.sequence - 1 for event in watch.of("ROUTE_MESSAGE_GIVEN_UP")) == too_large
        arrived = await numbers(client)
    assert sorted(arrived) == sorted({*range(count)} - {*too_large})
    for subject in range(SUBJECTS):
        own = [number for number in arrived if number % SUBJECTS == subject]
        assert own == sorted(own)


async def test_a_stream_that_was_full_takes_the_rest_in_order(server: NatsServer) -> None:
    count = 300
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count, max_msgs=100, discard="new")
        async with watched(settings(server.url, routes=[route(retry={"initial": "100ms"})])) as watch:
            await watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
            await trio.sleep(0.5)
            config = (await stream.stream_info("SINK"))["config"]
            await stream.api("STREAM.UPDATE.SINK", {**config, "max_msgs": -1})
            await publish_numbered(stream, range(count, count + 100))
            await until_stored(stream, "SINK", count + 100)
            await assert_survived(watch, losses=0)
    await assert_sink_is_whole(server.url, count + 100)
    assert len(await numbers_in(server.url)) == count + 100
