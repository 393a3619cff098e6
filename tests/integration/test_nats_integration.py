"""The complete path, against real servers: publishing, a core route, a JetStream route; in normal operation, failing
open, after a long failure, and over restarts of the router itself. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Fate, Live, Receipt, Router, Settings
from router_trio.states import PAUSED
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings
from tests.support.streams import ROUTE, assert_sink_is_whole, numbers_from, publish_numbered, route, source_and_sink
from tests.support.watch import Watch, assert_survived, until_stored, watched

LONG: dict[str, Any] = {"max_reconnect_delay": "100ms", "reconnect_attempts": 3}
"""An outage of several rounds is longer than every delay, and still short enough for a test."""


async def kill_for_long(server: NatsServer, watch: Watch, connection: str = "main") -> None:
    """Kill a server; return after three fruitless rounds of attempts to reconnect."""
    await server.kill()
    await watch.until("NATS_RECONNECT_EXHAUSTED", times=3)
    (lost,) = watch.of("NATS_CONNECTION_LOST")
    assert lost.connection == connection


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Run a second server, the source of messages while `server` is away."""
    async with nats_server(tmp_path, name="edge") as running:
        yield running


def two_connections(edge: NatsServer, main: NatsServer, routes: Sequence[dict[str, Any]], **to_main: Any) -> Settings:
    """Return routes from the connection `edge` to the connection `main`."""
    base = settings(edge.url)
    there = settings(main.url, **to_main).connections["main"]
    for one in routes:
        one["from"] = {**one["from"], "connection": "edge"}
        one["to"] = [{**to, "connection": "main"} for to in one["to"]]
    return Settings(
        telemetry={"listen": ""},
        connections={"edge": base.connections["main"], "main": there},
        routes=list(routes),
    )


@asynccontextmanager
async def client_with(url: str, *streams: tuple[str, str]) -> AsyncIterator[tuple[RawClient, JetStream]]:
    """Yield a client, and streams of these names and subjects."""
    async with connect(url) as client:
        stream = JetStream(client)
        for name, subject in streams:
            await stream.create_stream(name, [subject])
        yield client, stream


# --- normal operation ---


async def test_publish(server: NatsServer) -> None:
    async with client_with(server.url, ("SINK", "sink.*")) as (client, stream), watched(settings(server.url)) as watch:
        live = watch.router
        subscription = await client.subscribe("out")
        receipts = [await live.publish("out", b"%d" % number, {"n": str(number)}) for number in range(100)]
        assert {receipt.status for receipt in receipts} == {"sent"}
        assert {await receipt.settled() for receipt in receipts} == {Fate("fenced")}
        assert await numbers_from(subscription, 100) == list(range(100))
        acked = [await live.publish_with_ack("sink.1", b"%d" % number) for number in range(100)]
        assert [(receipt.status, receipt.stream, receipt.sequence) for receipt in acked] == [
            ("acked", "SINK", sequence) for sequence in range(1, 101)
        ]
        again = await live.publish_with_ack("sink.1", b"x", {"Nats-Msg-Id": "one"})
        assert (again.duplicate, (await live.publish_with_ack("sink.1", b"x", {"Nats-Msg-Id": "one"})).duplicate) == (
            False,
            True,
        )
        await assert_survived(watch, losses=0)
        assert watch.metric("router_nats_publish_total") == 100
        assert watch.metric("router_nats_publish_with_ack_total") == 102
        assert watch.metric("router_nats_publish_failures_total") == 0
        ids = [message.header("Nats-Msg-Id") for message in await stream.stream_messages("SINK")]
        assert len(set(ids)) == len(ids) == 101


async def test_core_route(server: NatsServer) -> None:
    route = core_route("in.*.*", "out.{{wildcard(2)}}.{{wildcard(1)}}") | {"hop_limit": 0}
    config = settings(server.url, routes=[route])
    async with connect(server.url) as client, watched(config) as watch:
        subscription = await client.subscribe("out.*.*")
        for number in range(100):
            await client.publish(f"in.a.{number}", b"%d" % number, {"n": str(number)}, reply="answer.here")
        for number in range(100):
            message = await subscription.next()
            assert (message.subject, message.payload) == (f"out.{number}.a", b"%d" % number)
            assert (message.headers, message.reply) == ((("n", str(number)),), "answer.here")
        await assert_survived(watch, losses=0)
        assert watch.metric("router_messages_received_total", route="route") == 100
        assert watch.metric("router_messages_routed_total", route="route") == 100
        assert watch.router.routes[0].durations.total > 0


async def test_jetstream_route(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 500)
        async with watched(settings(server.url, routes=[ROUTE])) as watch:
            await until_stored(stream, "SINK", 500)
            await publish_numbered(stream, range(500, 1000))
            await until_stored(stream, "SINK", 1000)
            await assert_survived(watch, losses=0)
            await eventually(lambda: watch.metric("router_nats_ack_total") == 1000)
            assert watch.metric("router_messages_routed_total", route="route") == 1000
        info = await stream.consumer_info("SOURCE", "router")
        assert (info["num_ack_pending"], info["num_pending"], info["num_redelivered"]) == (0, 0, 0)
        ids = [message.header("Nats-Msg-Id") for message in await stream.stream_messages("SINK")]
        places = [message_id.split(":")[:2] for message_id in ids if message_id is not None]
        assert places == [["SOURCE", str(number)] for number in range(1, 1001)], "one subscription, one order"
    await assert_sink_is_whole(server.url, 1000)


# --- failing open ---


async def test_fail_open_publish(server: NatsServer) -> None:
    """Publishes without a connection are dropped, at once and counted; those before and after arrive."""
    async with client_with(server.url, ("SINK", "sink.*")):
        pass
    async with watched(settings(server.url, fail_open=True)) as watch:
        live = watch.router
        await live.publish_with_ack("sink.1", b"before")
        await server.kill()
        await watch.until("NATS_CONNECTION_LOST")
        with trio.fail_after(1):
            receipts = [await live.publish_with_ack("sink.1", b"during") for _ in range(100)]
            receipts += [await live.publish("out", b"during") for _ in range(100)]
        assert {receipt.status for receipt in receipts} == {"failed_open"}
        assert {receipt.fate for receipt in receipts} == {Fate("failed_open", "not_connected")}
        await server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        await live.publish_with_ack("sink.1", b"after")
        await assert_survived(watch, seen=["NATS_PUBLISH_FAIL_OPEN"])
        assert watch.count("NATS_PUBLISH_FAIL_OPEN") == 200
        assert watch.metric("router_nats_operations_settled_total", fate="failed_open") == 200
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    assert [message.payload for message in stored] == [b"before", b"after"]


async def test_fail_open_core_route(server: NatsServer, edge: NatsServer) -> None:
    config = two_connections(edge, server, [core_route("in.*", "sink.{{wildcard(1)}}")], fail_open=True)
    async with client_with(server.url, ("SINK", "sink.*")):
        pass
    async with connect(edge.url) as source, watched(config) as watch:
        await source.publish("in.1", b"before")
        await eventually(lambda: watch.metric("router_messages_routed_total") == 1)
        await server.kill()
        await watch.until("NATS_CONNECTION_LOST")
        await source.publish_many([("in.1", b"during")] * 50)
        await eventually(lambda: watch.metric("router_messages_failed_total", reason="not_connected") == 50)
        assert watch.router.ledger()["main"]["pending"] == 0
        await server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        await source.publish("in.1", b"after")
        await eventually(lambda: watch.metric("router_messages_routed_total") == 2)
        await assert_survived(watch, seen=["NATS_PUBLISH_FAIL_OPEN"])
        assert watch.metric("router_messages_received_total") == 52
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    assert [message.payload for message in stored] == [b"before", b"after"]


async def test_fail_open_jetstream_route(server: NatsServer, edge: NatsServer) -> None:
    """A stream keeps its messages: those that the destination drops are redelivered later, and nothing is lost."""
    count = 1000
    config = two_connections(edge, server, [route(ack_wait="1s", retry={"initial": "50ms"})], fail_open=True)
    async with client_with(server.url, ("SINK", "sink.*")):
        pass
    async with client_with(edge.url, ("SOURCE", "source.*")) as (_, source), watched(config) as watch:
        await publish_numbered(source, range(count))
        await eventually(lambda: watch.metric("router_messages_routed_total") > 100)
        await server.kill()
        await watch.until("NATS_CONNECTION_LOST")
        await eventually(lambda: watch.router.routes[0].state == PAUSED)
        await publish_numbered(source, range(count, 2 * count))
        await server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        async with connect(server.url) as client:
            await until_stored(JetStream(client), "SINK", 2 * count)
        await assert_survived(watch)
        assert watch.gauges["edge"] == [1.0]
    await assert_sink_is_whole(server.url, 2 * count, in_order=False)


# --- a long failure, and recovery ---


async def test_publish_over_a_long_failure(server: NatsServer) -> None:
    async with client_with(server.url, ("SINK", "sink.*")):
        pass
    async with watched(settings(server.url, **LONG)) as watch:
        live = watch.router
        receipts = [await live.publish_with_ack("sink.1", b"%d" % number) for number in range(10)]
        await kill_for_long(server, watch)
        receipts += [await live.publish_with_ack("sink.1", b"%d" % number) for number in range(10, 500)]
        await server.restart()
        fates = [await receipt.settled() for receipt in receipts]
        assert {fate.name for fate in fates} == {"acked"}
        assert [fate.sequence for fate in fates] == list(range(1, 501)), "in the order in which they were accepted"
        await assert_survived(watch, seen=["NATS_RECONNECT_EXHAUSTED", "NATS_RETRY_COMPLETE"])
        assert watch.metric("router_nats_pending_operations_retry_success_total") == 490
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    assert [int(message.payload) for message in stored] == list(range(500))


async def test_core_route_over_a_long_failure(server: NatsServer, edge: NatsServer) -> None:
    config = two_connections(edge, server, [core_route("in.*", "sink.{{wildcard(1)}}")], **LONG)
    async with client_with(server.url, ("SINK", "sink.*")):
        pass
    async with connect(edge.url) as source, watched(config) as watch:
        await kill_for_long(server, watch)
        await source.publish_many([("in.1", b"%d" % number) for number in range(500)])
        await eventually(lambda: watch.router.ledger()["main"]["pending"] == 500)
        await server.restart()
        await watch.until("NATS_RETRY_COMPLETE")
        await source.publish("in.1", b"500")
        await eventually(lambda: watch.metric("router_messages_routed_total") == 501)
        await assert_survived(watch, seen=["NATS_RECONNECT_EXHAUSTED", "NATS_PUBLISH_QUEUED"])
        assert watch.gauges["edge"] == [1.0]
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    assert [int(message.payload) for message in stored] == list(range(501))


async def test_jetstream_route_over_a_long_failure(server: NatsServer) -> None:
    """Source and destination are one server, and away; both streams are unchanged when it is back."""
    count = 3000
    async with connect(server.url) as client:
        await source_and_sink(client, count)
    async with watched(settings(server.url, routes=[ROUTE], **LONG)) as watch:
        await eventually(lambda: watch.metric("router_messages_routed_total") > count / 5)
        await kill_for_long(server, watch)
        assert watch.metric("router_messages_routed_total") < count, "it was killed too late to prove anything"
        await server.restart()
        async with connect(server.url) as client:
            stream = JetStream(client)
            await until_stored(stream, "SINK", count)
            await publish_numbered(stream, range(count, count + 500))
            await until_stored(stream, "SINK", count + 500)
        await assert_survived(watch, seen=["NATS_RECONNECT_EXHAUSTED"])
    await assert_sink_is_whole(server.url, count + 500)


# --- shutdown and restart ---


async def test_restarts_of_the_router_under_load(server: NatsServer) -> None:
    """Five routers, one after the other, on the same durable and without a pause in the load: ended in order, cut short
    by a cancellation, or drained. No acked message is lost, nothing is stored twice.
    """
    acked: list[Receipt] = []
    total = 0
    stop = trio.Event()
    config = settings(server.url, routes=[ROUTE])

    async def load(stream: JetStream) -> None:
        nonlocal total
        while not stop.is_set():
            await publish_numbered(stream, range(total, total + 100))
            total += 100

    async def publish(live: Live) -> None:
        while True:
            acked.append(await live.publish_with_ack("other.1", b"%d" % len(acked)))

    async with connect(server.url) as client, connect(server.url) as filler, trio.open_nursery() as nursery:
        stream = await source_and_sink(client)
        await stream.create_stream("OTHER", ["other.*"])
        nursery.start_soon(load, JetStream(filler))
        for number in range(5):
            watch = Watch()
            router = Router(config, observers=[watch])
            with trio.CancelScope() as scope:
                async with watched(router, watch), trio.open_nursery() as publishers:
                    publishers.start_soon(publish, watch.router)
                    routed, before = watch.router.routes[0], len(acked)
                    await eventually(lambda routed=routed: sum(routed.routed.values()) > 300)  # type: ignore[misc]
                    await eventually(lambda before=before: len(acked) > before)  # type: ignore[misc]
                    publishers.cancel_scope.cancel()
                    if number % 2:
                        scope.cancel()
            assert watch.router.unsettled == 0
            assert watch.codes[-1] == "ROUTER_STOPPED"
        stop.set()
        async with watched(config) as watch:
            await eventually(lambda: total > 0)
            await until_stored(stream, "SINK", total)
            await assert_survived(watch, losses=0)
        kept = [int(message.payload) for message in await stream.stream_messages("OTHER")]
        sequences = [receipt.sequence or 0 for receipt in acked]
        assert {receipt.status for receipt in acked} == {"acked"}
        assert sequences == sorted(set(sequences))
        assert len(kept) >= len(acked) > 0
    await assert_sink_is_whole(server.url, total)
