"""JetStream refuses, is unavailable, or is changed under a route."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from router_trio import Fate, Message, Receipt, Router
from router_trio.embedded import quoted
from router_trio.errors import PublishError
from router_trio.states import FAILED, RUNNING
from tests.resilience.outage_codes import OUTAGE
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings
from tests.support.streams import ROUTE, assert_sink_is_whole, numbers_in, publish_numbered, route, source_and_sink
from tests.support.watch import Watch, assert_survived, cut_off, let_in, until_nothing_is_unacked, until_stored, watched


async def test_no_responders_delays_no_other_publish(server: NatsServer) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        live = watch.router
        with pytest.raises(PublishError) as caught:
            await live.publish_with_ack("sink.1", b"lost", timeout=0.4)
        assert caught.value.reason == "no_responders"
        assert watch.metric("router_nats_publish_with_ack_failures_total", reason="no_responders") == 1
        receipts: list[Receipt] = []
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                receipts.append(await live.publish_with_ack("sink.2", b"held"))

            nursery.start_soon(publish)
            await eventually(lambda: live.ledger()["main"]["accepted"] == 2)
            # A publish that no stream takes does not delay others.
            assert await (await live.publish("out", b"x")).settled() == Fate("fenced")
            await JetStream(client).create_stream("SINK", ["sink.*"])
        assert receipts[0].status == "acked", "tried again until the stream was there"
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
        assert [message.payload for message in await JetStream(client).stream_messages("SINK")] == [b"held"]


async def test_jetstream_not_enabled_is_reported_until_it_is_enabled(tmp_path: Path) -> None:
    other = core_route("in.*", "out.{{wildcard(1)}}", name="core")
    async with (
        nats_server(tmp_path, jetstream=False) as bare,
        watched(settings(bare.url, routes=[ROUTE, other])) as watch,
    ):
        live = watch.router
        refused = await watch.until("NATS_SUBSCRIBE_ERROR")
        assert (refused.reason, refused.route) == ("jetstream_unavailable", "route")
        assert [route.state for route in live.routes] == [FAILED, RUNNING]
        assert "JetStream is not enabled" in str(live.routes[0].reason)
        with pytest.raises(PublishError) as caught:
            await live.publish_with_ack("sink.1", b"x", timeout=0.3)
        assert caught.value.reason == "no_responders"
        async with connect(bare.url) as client:
            subscription = await client.subscribe("out.*")
            await client.publish("in.1", b"core works all the same")
            await subscription.next()
        # An administrator enables it.
        bare.write_config(f"jetstream {{ store_dir: {quoted(bare.directory / 'late')} }}\n")
        await bare.restart()
        async with connect(bare.url) as client:
            stream = await source_and_sink(client, 100)
            await until_stored(stream, "SINK", 100)
        await assert_survived(watch, seen=[*OUTAGE, "NATS_SUBSCRIBE_ERROR", "NATS_PUBLISH_WITH_ACK_ERROR"])


async def test_consumer_deleted_under_a_route(server: NatsServer) -> None:
    count = 3_000
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count)
        async with watched(settings(server.url, routes=[ROUTE])) as watch:
            route = watch.router.routes[0]
            await eventually(lambda: sum(route.routed.values()) > count / 5)
            await stream.delete_consumer("SOURCE", "router")
            lost = await watch.until("NATS_SUBSCRIBE_ERROR")
            # A waiting request is answered with an error; a later one has no responders; one in between is lost.
            assert lost.reason in ("consumer_deleted", "no_responders", "consumer_silent")
            await until_stored(stream, "SINK", count)
            await publish_numbered(stream, range(count, count + 100))
            await until_stored(stream, "SINK", count + 100)
            await assert_survived(watch, losses=0, seen=["NATS_SUBSCRIBE_ERROR"])
            assert watch.metric("router_nats_subscribe_failures_total", reason=lost.reason) == 1
    await assert_sink_is_whole(server.url, count + 100)


async def test_consumer_replaced_while_away(server: NatsServer, proxy: TcpProxy) -> None:
    """The new one starts from the beginning, as on a server without memory of it: messages settled before are only
    acked.
    """
    count = 2_000
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count)
        async with watched(settings(proxy.url, routes=[ROUTE])) as watch:
            live = watch.router
            await eventually(lambda: sum(live.routes[0].routed.values()) == count)
            await cut_off(proxy, watch)
            await stream.delete_consumer("SOURCE", "router")
            await stream.create_consumer("SOURCE", "router", filter_subject="source.*")
            await let_in(proxy, watch)
            await publish_numbered(stream, range(count, count + 100))
            await until_stored(stream, "SINK", count + 100, within=10)
            await until_nothing_is_unacked(stream)
            assert live.routes[0].duplicates == count
            assert watch.metric("router_messages_routed_total") == count + 100, "nothing was routed again"
            await assert_survived(watch, seen=OUTAGE)
    await assert_sink_is_whole(server.url, count + 100)


async def test_a_stream_deleted_while_publishing(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"])
        async with watched(settings(server.url)) as watch:
            live = watch.router
            assert (await live.publish_with_ack("sink.1", b"1")).sequence == 1
            await stream.delete_stream("SINK")
            with pytest.raises(PublishError) as caught:
                await live.publish_with_ack("sink.1", b"2", timeout=0.4)
            assert caught.value.reason == "no_responders"
            await stream.create_stream("SINK", ["sink.*"])
            receipt = await live.publish_with_ack("sink.1", b"3")
            assert (receipt.status, receipt.sequence, receipt.duplicate) == ("acked", 1, False)
            await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])


async def test_stream_at_its_limits(server: NatsServer) -> None:
    count = 100
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count, max_msgs=60, discard="new")
        async with watched(settings(server.url, routes=[route(retry={"initial": "100ms"})])) as watch:
            live = watch.router
            await watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
            with pytest.raises(PublishError) as caught:
                await live.publish_with_ack("sink.1", b"0")
            assert caught.value.reason == "limit"
            assert (await stream.stream_info("SINK"))["state"]["messages"] == 60
            # Those that were sent before it was known return to the hand of the route, which tries one of them.
            await eventually(lambda: "one message is tried every" in (live.routes[0].reason or ""))
            assert watch.metric("router_messages_failed_total", reason="limit") >= 1
            config = (await stream.stream_info("SINK"))["config"]
            await stream.api("STREAM.UPDATE.SINK", {**config, "max_msgs": -1})
            await until_stored(stream, "SINK", count)
            await eventually(lambda: sum(live.routes[0].routed.values()) == count)
            await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
    assert sorted(await numbers_in(server.url)) == list(range(count))


async def test_wrong_expected_sequence(server: NatsServer) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        live = watch.router
        await JetStream(client).create_stream("SINK", ["sink.*"])
        await live.publish_with_ack("sink.1", b"1")
        with pytest.raises(PublishError) as caught:
            await live.publish_with_ack("sink.1", b"2", {"Nats-Expected-Last-Sequence": "7"})
        assert caught.value.reason == "wrong_expectation"
        receipt = await live.publish_with_ack("sink.1", b"3", {"Nats-Expected-Last-Sequence": "1"})
        assert receipt.sequence == 2
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
        assert watch.metric("router_nats_publish_with_ack_failures_total", reason="wrong_expectation") == 1
        assert watch.metric("router_nats_publish_with_ack_total") == 2


async def test_ack_errors(server: NatsServer, proxy: TcpProxy) -> None:
    """A message settled while its source is disconnected: its ack cannot be sent, and is sent on the next link."""
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 1)
        config = settings(proxy.url)
        main = config.connections["main"]
        sink = main.model_copy(update={"servers": settings(server.url).connections["main"].servers})
        watch = Watch()
        entered, go = trio.Event(), trio.Event()
        router = Router(config.model_copy(update={"connections": {"main": main, "sink": sink}}), observers=[watch])

        @router.route(
            to={"connection": "sink", "subject": "sink.{{wildcard(1)}}", "jetstream": True},
            connection="main",
            stream="SOURCE",
            durable="router",
            filter="source.*",
            ack_wait="1s",
        )
        async def slow(message: Message) -> Message:
            entered.set()
            await go.wait()
            return message

        async with watched(router, watch):
            await entered.wait()
            await cut_off(proxy, watch)
            go.set()
            failed = await watch.until("NATS_ACK_ERROR")
            assert (failed.reason, failed.route) == ("not_connected", "slow")
            assert watch.metric("router_nats_ack_failures_total", reason="not_connected") == 1
            await let_in(proxy, watch)
            await until_nothing_is_unacked(stream)
            await assert_survived(watch, seen=[*OUTAGE, "NATS_ACK_ERROR"])
    assert await numbers_in(server.url) == [0]
