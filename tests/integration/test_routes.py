"""Each kind of route end to end with real servers, and the end of its consumer, its stream or itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.errors import PublishError
from router_trio.states import FAILED, RUNNING, RouteState
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings, stream_route
from tests.support.streams import publish_numbered
from tests.support.watch import Watch, assert_alive, until_nothing_is_unacked, until_stored, watched

GONE = {"consumer_deleted", "no_responders", "consumer_silent"}
"""Errors that reveal a deleted consumer: by whether a pull request waited at the server, was under way to it, or was
being processed at that moment, and was lost.
"""

STREAM_ROUTE = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", max_in_flight=1024)
"""Size of a part of the messages, so that others remain when something happens."""


@pytest.fixture
async def client(server: NatsServer) -> AsyncIterator[RawClient]:
    """Yield a client of `server`, where the streams `SOURCE` and `SINK` are."""
    async with connect(server.url) as connected:
        stream = JetStream(connected)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
        yield connected


async def sink(client: RawClient) -> list[StoredMessage]:
    return await JetStream(client).stream_messages("SINK")


def assert_complete(stored: list[StoredMessage], count: int) -> None:
    """Assert that every number is stored once, and in order within its subject."""
    found = [int(message.payload) for message in stored]
    assert sorted(found) == list(range(count))
    for subject in {message.subject for message in stored}:
        of_subject = [int(message.payload) for message in stored if message.subject == subject]
        assert of_subject == sorted(of_subject)


def route_of(watch: Watch, index: int = 0) -> RouteState:
    assert watch.live is not None
    return watch.live.routes[index]


# --- each kind of route ----------------------------------------------------------------------------------------------


async def test_from_core_to_two_servers_as_core_and_as_jetstream(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, jetstream=False, name="near") as near,
        nats_server(tmp_path, name="far") as far,
        connect(near.url) as here,
        connect(far.url) as there,
    ):
        await JetStream(there).create_stream("SINK", ["sink.*"])
        near_copies = await here.subscribe("copy.*")
        far_copies = await there.subscribe("far.copy.*")
        to = [
            {"connection": "near", "subject": "copy.{{wildcard(1)}}"},
            {"connection": "far", "subject": "far.copy.{{wildcard(1)}}"},
            {"connection": "far", "subject": "sink.{{wildcard(1)}}", "jetstream": True},
        ]
        config = Settings(
            telemetry={"listen": ""},
            connections={"near": {"servers": [near.url]}, "far": {"servers": [far.url]}},
            # Messages whose hops are counted have a header more.
            routes=[{"name": "route", "from": {"connection": "near", "subject": "in.*"}, "to": to, "hop_limit": 0}],
        )
        async with watched(config) as watch:
            for number in range(200):
                headers = [("N", str(number)), ("N", "again")] if number % 2 else None
                await here.publish(f"in.{number % 3}", b"%d" % number, headers, reply=f"reply.{number}")
            route = route_of(watch)
            await eventually(lambda: set(route.routed.values()) == {200}, 10, lambda: (route.routed, route.failed))
            for copies, prefix in ((near_copies, "copy"), (far_copies, "far.copy")):
                for number in range(200):
                    message = await copies.next()
                    assert (message.subject, message.payload) == (f"{prefix}.{number % 3}", b"%d" % number)
                    # It is carried along on its own connection, and to no other one.
                    assert message.reply == (f"reply.{number}" if prefix == "copy" else None)
                    assert message.headers == ((("N", str(number)), ("N", "again")) if number % 2 else ())
            stored = await JetStream(there).stream_messages("SINK")
            assert [message.payload for message in stored] == [b"%d" % number for number in range(200)]
            assert len({message.header("Nats-Msg-Id") for message in stored}) == 200
            assert watch.live is not None
            assert watch.live.ledger()["far"]["settled"] == {
                "fenced": 200, "acked": 200, "dropped": 0, "failed": 0, "failed_open": 0
            }  # fmt: skip


async def test_from_a_stream_to_a_stream_on_another_server(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, name="near") as near,
        nats_server(tmp_path, name="far") as far,
        connect(near.url) as here,
        connect(far.url) as there,
    ):
        await JetStream(here).create_stream("SOURCE", ["source.*"])
        await JetStream(there).create_stream("SINK", ["sink.*"])
        await publish_numbered(JetStream(here), range(500))
        config = Settings(
            telemetry={"listen": ""},
            connections={"near": {"servers": [near.url]}, "far": {"servers": [far.url]}},
            routes=[
                {
                    "name": "route",
                    "from": {"connection": "near", "stream": "SOURCE", "durable": "router", "filter": "source.*"},
                    "to": [{"connection": "far", "subject": "sink.{{wildcard(1)}}", "jetstream": True}],
                }
            ],
        )
        async with watched(config):
            await publish_numbered(JetStream(here), range(500, 1000))
            await until_stored(JetStream(there), "SINK", 1000)
            await until_nothing_is_unacked(JetStream(here), 20)
        stored = await sink(there)
        assert_complete(stored, 1000)
        assert len({message.header("Nats-Msg-Id") for message in stored}) == 1000


async def test_routers_of_one_queue_group_share_messages(core_server: NatsServer) -> None:
    config = settings(core_server.url, routes=[core_route("in", "out", queue="routers")])
    async with watched(config) as one, watched(config) as other, connect(core_server.url) as client:
        copies = await client.subscribe("out")
        await client.publish_many([("in", b"%d" % number) for number in range(500)])
        await client.ping()
        found = sorted([int((await copies.next()).payload) for _ in range(500)])
        assert found == list(range(500))
        assert route_of(one).received + route_of(other).received == 500
        assert min(route_of(one).received, route_of(other).received) > 100


async def test_five_thousand_messages_through_a_handler_in_order(server: NatsServer, client: RawClient) -> None:
    count = 5000
    await publish_numbered(JetStream(client), range(count))
    watch = Watch()
    router = Router(settings(server.url), observers=[watch])

    @router.route(
        to={"subject": "sink.{{wildcard(1)}}", "jetstream": True}, stream="SOURCE", durable="router", filter="source.*"
    )
    async def number(message: Message) -> Message:
        if int(message.payload) % 100 == 0:
            await trio.lowlevel.checkpoint()
        return message.replace(headers=message.headers.set("Sequence", str(message.sequence)))

    async with watched(router, watch):
        await until_stored(JetStream(client), "SINK", count)
        await until_nothing_is_unacked(JetStream(client), 20)
    stored = await sink(client)
    assert [int(message.payload) for message in stored] == list(range(count))
    assert all(message.header("Sequence") == str(int(message.payload) + 1) for message in stored)


# --- the consumer, the stream ----------------------------------------------------------------------------------------


async def test_a_consumer_deleted_under_load(server: NatsServer, client: RawClient) -> None:
    count = 6000
    await publish_numbered(JetStream(client), range(count))
    async with watched(settings(server.url, routes=[STREAM_ROUTE])) as watch:
        route = route_of(watch)
        await eventually(lambda: sum(route.routed.values()) > count / 6)
        await JetStream(client).delete_consumer("SOURCE", "router")
        assert sum(route.routed.values()) < count, "deleted too late to prove anything"
        await until_stored(JetStream(client), "SINK", count)
        await until_nothing_is_unacked(JetStream(client), 20)
        await assert_alive(watch.live)  # type: ignore[arg-type]
        (lost,) = watch.of("NATS_SUBSCRIBE_ERROR")
        assert lost.reason in GONE
        assert route.received == count, "none was routed a second time"
    assert_complete(await sink(client), count)


async def test_a_stream_deleted_under_load_and_recreated(server: NatsServer, client: RawClient) -> None:
    stream = JetStream(client)
    await publish_numbered(JetStream(client), range(6000))
    async with watched(settings(server.url, routes=[STREAM_ROUTE, core_route("ping", "pong", name="core")])) as watch:
        route = route_of(watch)
        await eventually(lambda: sum(route.routed.values()) > 1000)
        await stream.delete_stream("SOURCE")
        await watch.until("NATS_SUBSCRIBE_ERROR", times=2, within=40)
        assert {event.reason for event in watch.of("NATS_SUBSCRIBE_ERROR")} <= GONE | {"stream_not_found"}
        assert route.state == FAILED
        assert route.unready is not None
        assert "there is no stream 'SOURCE'" in route.unready
        received = route.received
        assert 1000 < received < 6000, "deleted too late to prove anything"
        await eventually(lambda: sum(route.routed.values()) == received)
        await stream.create_stream("SOURCE", ["source.*"])
        await publish_numbered(JetStream(client), range(10_000, 10_500))
        await eventually(lambda: sum(route.routed.values()) == received + 500, 20)
        await until_nothing_is_unacked(JetStream(client), 20)
        assert route_of(watch, 1).state == RUNNING
    numbers = [int(message.payload) for message in await sink(client)]
    assert numbers == [*range(received), *range(10_000, 10_500)]


async def test_without_jetstream_the_reason_is_clear_and_other_routes_work(core_server: NatsServer) -> None:
    routes = [STREAM_ROUTE, core_route("ping", "pong", name="core")]
    async with watched(settings(core_server.url, routes=routes)) as watch, connect(core_server.url) as client:
        assert route_of(watch).state == FAILED
        assert "JetStream is not enabled" in (route_of(watch).reason or "")
        assert watch.of("NATS_SUBSCRIBE_ERROR")[0].reason == "jetstream_unavailable"
        pongs = await client.subscribe("pong")
        await client.publish("ping", b"x")
        assert (await pongs.next()).payload == b"x"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"filter_subject": "source.other"}, r"its filter is source\.other, the route's is source\.\*"),
        ({"filter_subject": "source.*", "ack_policy": "none"}, "explicit is needed"),
        ({"filter_subject": "source.*", "ack_policy": "all"}, "all, explicit is needed.*delete that consumer"),
        ({"filter_subject": "source.*", "deliver_subject": "push.here"}, "a pull consumer is needed"),
    ],
)
async def test_a_durable_with_another_configuration_is_left_alone(
    server: NatsServer, client: RawClient, config: dict[str, Any], text: str
) -> None:
    stream = JetStream(client)
    await stream.create_consumer("SOURCE", "router", **config)
    async with watched(settings(server.url, routes=[STREAM_ROUTE])) as watch:
        (event,) = watch.of("NATS_SUBSCRIBE_ERROR")[:1]
        assert event.reason == "consumer_mismatch"
        with pytest.raises(AssertionError, match=text):
            raise AssertionError(route_of(watch).reason)
        await stream.delete_consumer("SOURCE", "router")
        await eventually(lambda: route_of(watch).state == RUNNING, 20)


async def test_a_durable_whose_limits_refuse_the_pulls_is_reported_without_spinning(
    server: NatsServer, client: RawClient
) -> None:
    limits = {"filter_subject": "source.*", "max_expires": 1_000_000_000}
    await JetStream(client).create_consumer("SOURCE", "router", **limits)
    async with watched(settings(server.url, routes=[STREAM_ROUTE])) as watch:
        event = await watch.until("NATS_SUBSCRIBE_ERROR")
        assert event.reason == "consumer_limit"
        assert "MaxRequestExpires" in event.detail
        await trio.sleep(1.5)
        assert watch.count("NATS_SUBSCRIBE_ERROR") <= 4


# --- the end, and after it -------------------------------------------------------------------------------------------


async def test_a_restart_under_load_continues_at_its_position(server: NatsServer, client: RawClient) -> None:
    count = 6000
    await publish_numbered(JetStream(client), range(count))
    received: list[int] = []

    async def run(until: int) -> Watch:
        async with watched(settings(server.url, routes=[STREAM_ROUTE])) as watch:
            route = route_of(watch)
            await eventually(lambda: sum([*received, *route.routed.values()]) >= until, 20, lambda: str(route.routed))
        return watch

    for limit in (1000, 3000, count):
        watch = await run(limit)
        route = route_of(watch)
        received.append(route.received)
        assert watch.live is not None
        assert watch.live.unsettled == 0
        # Graceful: all received messages are settled and acked. Those that the server delivered while the subscription
        # ended are redelivered first in the next run, as the order shows.
        assert sum(route.routed.values()) == route.received
        assert watch.live.connections["main"].outbox.counters.succeeded["ack"] == route.received
    await until_nothing_is_unacked(JetStream(client), 20)
    assert sum(received) == count
    assert all(part > 0 for part in received)
    stored = await sink(client)
    assert [int(message.payload) for message in stored] == list(range(count))


async def test_leaving_under_load_settles_every_accepted_message(core_server: NatsServer) -> None:
    async with connect(core_server.url) as client:
        copies = await client.subscribe("out")
        async with watched(settings(core_server.url, routes=[core_route("in", "out")])) as watch:
            await client.publish_many([("in", b"%d" % number) for number in range(20_000)])
            await client.ping()
            live = watch.live
            assert live is not None
            receipts = [await live.publish("out", b"own") for _ in range(100)]
        assert {receipt.fate and receipt.fate.name for receipt in receipts} == {"fenced"}
        assert live.unsettled == 0
        assert route_of(watch).received == sum(route_of(watch).routed.values()) == 20_000
        await client.ping()
        assert len(copies.waiting()) == 20_100


# --- publishing ------------------------------------------------------------------------------------------------------


async def test_answers_of_a_stream_to_a_publish(server: NatsServer, client: RawClient) -> None:
    await JetStream(client).create_stream("SMALL", ["small"], max_msgs=1, discard="new")
    async with watched(settings(server.url)) as watch:
        live = watch.live
        assert live is not None
        receipt = await live.publish_with_ack("sink.x", b"1", {"Nats-Msg-Id": "a"})
        assert (receipt.status, receipt.stream, receipt.sequence, receipt.duplicate) == ("acked", "SINK", 1, False)
        receipt = await live.publish_with_ack("sink.x", b"1", {"Nats-Msg-Id": "a"})
        assert (receipt.status, receipt.sequence, receipt.duplicate) == ("acked", 1, True)
        await live.publish_with_ack("small", b"1")
        await JetStream(client).create_stream("SHORT", ["short"], max_msg_size=100)
        refusals: list[tuple[str, dict[str, str] | None, str]] = [
            ("sink.x", {"Nats-Expected-Last-Sequence": "9"}, "wrong_expectation"),
            ("sink.x", {"Nats-Expected-Stream": "OTHER"}, "wrong_expectation"),
            ("small", None, "limit"),
            ("short", {"A": "x" * 100}, "too_large"),
        ]
        for subject, headers, reason in refusals:
            began = trio.current_time()
            with pytest.raises(PublishError) as refused:
                await live.publish_with_ack(subject, b"x", headers)
            assert refused.value.reason == reason
            assert trio.current_time() - began < 2.0, "reported at once"
        with pytest.raises(PublishError) as refused:
            await live.publish_with_ack("nobody", b"x", timeout=0.6)
        assert refused.value.reason == "no_responders"
        entry = live.ledger()["main"]
        assert (entry["accepted"], entry["settled"]["acked"], entry["settled"]["failed"]) == (8, 3, 5)
