"""A connection fails, in every way that servers and networks have, and comes back.

Each test ends with `assert_survived`: alive, accounted, visible. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from router_trio import Fate, Message, Receipt, Router
from router_trio.embedded import quoted
from router_trio.errors import PublishError
from router_trio.states import FAILED, PAUSED, RUNNING
from router_trio.telemetry.http.status import health, readiness
from router_trio.testing import FakeBroker
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import NoResponders, RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.streams import ROUTE, assert_sink_is_whole, fill, numbers_from, numbers_in, route, source_and_sink
from tests.support.watch import (
    Watch,
    assert_survived,
    core_route,
    cut_off,
    eventually,
    let_in,
    settings,
    until_settled,
    until_stored,
    watched,
)

OUTAGE = ("NATS_CONNECTION_LOST", "NATS_RECONNECT_ATTEMPT", "NATS_CONNECTION_RESTORED")
KEPT = ("NATS_RETRY_PENDING", "NATS_RETRY_COMPLETE")
CORE = core_route("in.*", "out.{{wildcard(1)}}")


# --- basics ---


async def test_stays_alive_on_loss(server: NatsServer) -> None:
    async with watched(settings(server.url, routes=[CORE])) as watch:
        live = watch.router
        await server.kill()
        await watch.until("NATS_CONNECTION_FAILED", times=3)
        assert health(live)[0] == 200
        code, why = readiness(live, trio.current_time())
        assert code == 503
        assert {"connection", "route"} <= {key for reason in why["reasons"] for key in reason}
        receipt = await live.publish("out.1", b"kept")
        assert receipt.status == "queued"
        await server.restart()
        assert await receipt.settled() == Fate("fenced")
        await assert_survived(watch, seen=[*OUTAGE, "NATS_CONNECTION_FAILED", "NATS_PUBLISH_QUEUED"])
        assert readiness(live, trio.current_time())[0] == 200


async def test_reconnects_after_failure(server: NatsServer) -> None:
    async with watched(settings(server.url, routes=[CORE])) as watch:
        await server.kill()
        lost = await watch.until("NATS_CONNECTION_LOST")
        await server.restart()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert restored.outage_seconds == pytest.approx(restored.at - lost.at, abs=0.001)
        assert restored.reconnect_attempts == len(watch.of("NATS_RECONNECT_ATTEMPT"))
        await assert_survived(watch, seen=OUTAGE)
        async with connect(server.url) as client:
            subscription = await client.subscribe("out.*")
            await client.publish("in.7", b"hello")
            assert (await subscription.next()).subject == "out.7"


async def test_fail_open_mode(server: NatsServer, proxy: TcpProxy) -> None:
    async with connect(server.url) as client, watched(settings(proxy.url, fail_open=True)) as watch:
        live = watch.router
        await JetStream(client).create_stream("SINK", ["sink.*"])
        await cut_off(proxy, watch)
        receipts = [await live.publish("out", b"x"), await live.publish_with_ack("sink.1", b"x")]
        assert [receipt.status for receipt in receipts] == ["failed_open"] * 2
        assert [await receipt.settled() for receipt in receipts] == [Fate("failed_open", "not_connected")] * 2
        assert live.ledger()["main"]["pending"] == 0
        await let_in(proxy, watch)
        assert (await live.publish_with_ack("sink.1", b"y")).status == "acked"
        await assert_survived(watch, seen=[*OUTAGE, "NATS_PUBLISH_FAIL_OPEN"])
        assert not set(KEPT) & set(watch.codes), "nothing was kept"
        assert [message.payload for message in await JetStream(client).stream_messages("SINK")] == [b"y"]


async def test_metrics_on_failure(server: NatsServer, proxy: TcpProxy) -> None:
    async with connect(server.url) as client, watched(settings(proxy.url)) as watch:
        live = watch.router
        await JetStream(client).create_stream("SINK", ["sink.*"])
        assert watch.metric("router_nats_connection_status") == 1
        await cut_off(proxy, watch)
        assert watch.metric("router_nats_connection_status") == 0.5
        for number in range(3):
            await live.publish("out", b"%d" % number)
            await live.publish_with_ack("sink.1", b"%d" % number)
        for operation in ("publish", "publish_with_ack"):
            assert watch.metric(f"router_nats_{operation}_failures_total", reason="not_connected") == 3
        assert watch.metric("router_nats_pending_operations_count") == 6
        await watch.until("NATS_CONNECTION_FAILED", times=2)
        await let_in(proxy, watch)
        await watch.until("NATS_RETRY_COMPLETE")
        failures = watch.count("NATS_CONNECTION_FAILED")
        assert watch.metric("router_nats_connection_failures_total") == failures
        assert watch.metric("router_nats_reconnect_failures_total") == failures
        assert watch.metric("router_nats_reconnect_attempts_total") == failures + 1
        for word in ("retry", "retry_success"):
            assert watch.metric(f"router_nats_pending_operations_{word}_total") == 6
        for operation, fate in (("publish", "fenced"), ("publish_with_ack", "acked")):
            # Accepted while away each is a failure, and stays one: none is counted twice.
            assert watch.metric(f"router_nats_{operation}_failures_total") == 3
            assert watch.metric(f"router_nats_{operation}_total") == 0
            assert watch.metric("router_nats_operations_settled_total", fate=fate) == 3
        assert watch.metric("router_nats_operations_accepted_total") == 6
        await assert_survived(watch, seen=[*OUTAGE, *KEPT])


async def test_logs_on_failure(proxy: TcpProxy, capfd: pytest.CaptureFixture[str]) -> None:
    async with watched(settings(proxy.url), log=True) as watch:
        live = watch.router
        await cut_off(proxy, watch)
        for _ in range(50):
            await live.publish("out", b"s3cret")
        await let_in(proxy, watch)
        await watch.until("NATS_RETRY_COMPLETE")
        await assert_survived(watch, seen=[*OUTAGE, *KEPT])
    written = capfd.readouterr().err
    assert "s3cret" not in written
    lines = [json.loads(line) for line in written.splitlines()]
    first = {line["error_code"]: line for line in reversed(lines)}
    for code, level in (
        ("NATS_CONNECTION_ESTABLISHED", "INFO"),
        ("NATS_CONNECTION_LOST", "ERROR"),
        ("NATS_RECONNECT_ATTEMPT", "INFO"),
        ("NATS_PUBLISH_QUEUED", "WARN"),
        ("NATS_CONNECTION_RESTORED", "INFO"),
        ("NATS_RETRY_PENDING", "INFO"),
        ("NATS_RETRY_COMPLETE", "INFO"),
    ):
        assert (first[code]["level"], first[code]["connection"]) == (level, "main"), code
    assert first["NATS_CONNECTION_LOST"]["error_tag"] == "nats_connection_failure"
    assert first["NATS_RECONNECT_ATTEMPT"]["error_tag"] == "nats_reconnecting"
    assert {"attempt", "max_attempts", "delay_ms"} <= first["NATS_RECONNECT_ATTEMPT"].keys()
    assert first["NATS_RETRY_PENDING"]["pending_count"] == 50
    assert (first["NATS_RETRY_COMPLETE"]["success_count"], first["NATS_RETRY_COMPLETE"]["failed_count"]) == (50, 0)
    queued = [line for line in lines if line["error_code"] == "NATS_PUBLISH_QUEUED"]
    assert len(queued) < 10, "what can happen for every message is merged"
    assert sum(line.get("count", 1) for line in queued) == 50


async def test_queued_messages_delivered_after_reconnect(server: NatsServer, proxy: TcpProxy) -> None:
    async with connect(server.url) as client, watched(settings(proxy.url)) as watch:
        live = watch.router
        subscription = await client.subscribe("out")
        await cut_off(proxy, watch)
        receipts = [await live.publish("out", b"%d" % number) for number in range(300)]
        assert {receipt.status for receipt in receipts} == {"queued"}
        await let_in(proxy, watch)
        assert await numbers_from(subscription, 300) == list(range(300))
        assert {await receipt.settled() for receipt in receipts} == {Fate("fenced")}
        await assert_survived(watch, seen=[*OUTAGE, *KEPT])
        assert subscription.waiting() == []


# --- short drops ---


async def test_tcp_connection_broken(server: NatsServer, proxy: TcpProxy) -> None:
    count = 5_000
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count)
        async with watched(settings(proxy.url, routes=[ROUTE])) as watch:
            route = watch.router.routes[0]
            await eventually(lambda: sum(route.routed.values()) > count / 5)
            proxy.reset()
            assert sum(route.routed.values()) < count, "it was reset too late to prove anything"
            await watch.until("NATS_CONNECTION_RESTORED")
            await until_stored(stream, "SINK", count)
            await assert_survived(watch, seen=OUTAGE)
            (lost,) = watch.of("NATS_CONNECTION_LOST")
            assert lost.reason == "closed"
    await assert_sink_is_whole(server.url, count)


async def test_operations_that_time_out(server: NatsServer) -> None:
    async with connect(server.url) as client:
        await JetStream(client).create_stream("SINK", ["sink.*"])
    config = settings(server.url, liveness_interval="500ms", connect_timeout="300ms")
    async with watched(config) as watch:
        live = watch.router
        server.stop()
        unconfirmed = await live.publish("out", b"x")
        with pytest.raises(PublishError) as caught:
            await live.publish_with_ack("sink.1", b"gone", timeout=0.1)
        assert caught.value.reason == "timeout"
        assert (unconfirmed.status, unconfirmed.fate) == ("sent", None), "nobody confirmed it"
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert lost.reason == "liveness", "the socket says nothing"
        failed = await watch.until("NATS_CONNECTION_FAILED")
        assert failed.reason == "timeout", "a server that accepts and does not speak"
        server.cont()
        assert await unconfirmed.settled() == Fate("fenced")
        await assert_survived(watch, seen=[*OUTAGE, "NATS_PUBLISH_WITH_ACK_ERROR"])
        assert watch.metric("router_nats_publish_with_ack_failures_total", reason="timeout") == 1
        assert watch.metric("router_nats_operations_settled_total", fate="failed") == 1


# --- long trouble ---


async def test_flapping(server: NatsServer, proxy: TcpProxy) -> None:
    flaps, each = 6, 500
    count = flaps * each
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        async with watched(settings(proxy.url, routes=[ROUTE])) as watch:
            for times in range(flaps):
                await fill(stream, range(times * each, (times + 1) * each))
                proxy.reset()
                await watch.until("NATS_CONNECTION_RESTORED", times + 1)
            await until_stored(stream, "SINK", count)
            await assert_survived(watch, losses=flaps, seen=OUTAGE)
            attempts = watch.of("NATS_RECONNECT_ATTEMPT")
            assert len(attempts) == flaps, "one attempt a flap is enough: the server is there"
            assert all(attempt.delay_ms <= 300 for attempt in attempts)
    await assert_sink_is_whole(server.url, count)


async def test_many_attempts_with_backoff_and_jitter(autojump_clock: trio.testing.MockClock) -> None:
    broker = FakeBroker()
    config = settings("nats://fake:4222", reconnect_delay="1s", max_reconnect_delay="30s", liveness_interval="5s")
    async with watched(config, connect=lambda name, settings: broker.connect) as watch:
        await trio.sleep(60)
        broker.down()
        await watch.until("NATS_RECONNECT_EXHAUSTED", times=6, within=3600)
        attempts = watch.of("NATS_RECONNECT_ATTEMPT")
        broker.up()
        await watch.until("NATS_CONNECTION_RESTORED", within=60)
        await assert_survived(watch, seen=[*OUTAGE, "NATS_RECONNECT_EXHAUSTED"])
        assert watch.metric("router_nats_reconnection_exhausted_total") == 6
    assert len(attempts) == 60
    assert [attempt.attempt for attempt in attempts] == [*range(1, 11)] * 6
    bounds = [100, *(min(30_000, 1000 * 2**step) for step in range(59))]
    delays = [attempt.delay_ms for attempt in attempts]
    assert all(0 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    longest = delays[10:]
    assert len(set(longest)) > 40, "jitter: hardly two are alike"
    assert min(longest) < 10_000 < 20_000 < max(longest), "full jitter: over the whole of 0 to 30 s"


# --- JetStream errors ---


async def test_no_responders(server: NatsServer) -> None:
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
            # What nobody takes holds up nobody else.
            assert await (await live.publish("out", b"x")).settled() == Fate("fenced")
            await JetStream(client).create_stream("SINK", ["sink.*"])
        assert receipts[0].status == "acked", "tried again until the stream was there"
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
        assert [message.payload for message in await JetStream(client).stream_messages("SINK")] == [b"held"]


async def test_jetstream_not_enabled(tmp_path: Path) -> None:
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
        # Somebody switches it on.
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
            # A request that waited is told so; one that comes later finds nobody; one that comes in between is lost.
            assert lost.reason in ("consumer_deleted", "no_responders", "consumer_silent")
            await until_stored(stream, "SINK", count)
            await fill(stream, range(count, count + 100))
            await until_stored(stream, "SINK", count + 100)
            await assert_survived(watch, losses=0, seen=["NATS_SUBSCRIBE_ERROR"])
            assert watch.metric("router_nats_subscribe_failures_total", reason=lost.reason) == 1
    await assert_sink_is_whole(server.url, count + 100)


async def test_consumer_replaced_while_away(server: NatsServer, proxy: TcpProxy) -> None:
    """The new one starts from the beginning, as a server does that has forgotten: what is settled is only acked."""
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
            await fill(stream, range(count, count + 100))
            await until_stored(stream, "SINK", count + 100, within=10)
            await until_nothing_is_unacked(stream)
            assert live.routes[0].duplicates == count
            assert watch.metric("router_messages_routed_total") == count + 100, "nothing was routed again"
            await assert_survived(watch, seen=OUTAGE)
    await assert_sink_is_whole(server.url, count + 100)


async def test_stream_deleted_while_publishing(server: NatsServer) -> None:
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
        async with watched(settings(server.url, routes=[route(nak_delay="100ms")])) as watch:
            live = watch.router
            await watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
            with pytest.raises(PublishError) as caught:
                await live.publish_with_ack("sink.1", b"0")
            assert caught.value.reason == "limit"
            assert (await stream.stream_info("SINK"))["state"]["messages"] == 60
            assert watch.metric("router_nats_nak_total") > 0, "what was refused comes again"
            config = (await stream.stream_info("SINK"))["config"]
            await stream.api("STREAM.UPDATE.SINK", {**config, "max_msgs": -1})
            await until_stored(stream, "SINK", count)
            await eventually(lambda: sum(live.routes[0].routed.values()) == count)
            await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
            assert watch.metric("router_messages_failed_total", reason="limit") >= 40
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
    """A message that is settled when its source is away: its ack meets no link, and is sent on the next one."""
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


async def until_nothing_is_unacked(stream: JetStream) -> None:
    """Wait until the consumer knows that nothing is left to do."""
    with trio.fail_after(10):
        while True:
            info = await stream.consumer_info("SOURCE", "router")
            if info["num_pending"] == info["num_ack_pending"] == 0:
                return
            await trio.sleep(0.02)


# --- workflows in a failure ---


async def test_incoming_requests_while_down(server: NatsServer, proxy: TcpProxy) -> None:
    async with connect(server.url) as client, watched(settings(proxy.url)) as watch:
        live = watch.router
        await JetStream(client).create_stream("SINK", ["sink.*"])
        await cut_off(proxy, watch)
        receipts: list[Receipt] = []

        async def call(number: int) -> None:
            receipts.append(await live.publish(f"out.{number}", b"x"))
            receipts.append(await live.publish_with_ack(f"sink.{number}", b"x"))

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(call, number)
        assert {receipt.status for receipt in receipts} == {"queued"}, "everybody has an answer at once"
        await let_in(proxy, watch)
        names = [(await receipt.settled()).name for receipt in receipts]
        assert (names.count("fenced"), names.count("acked")) == (50, 50)
        await assert_survived(watch, seen=[*OUTAGE, *KEPT, "NATS_PUBLISH_QUEUED", "NATS_PUBLISH_WITH_ACK_QUEUED"])


async def test_requests_through_a_route_while_down(server: NatsServer, proxy: TcpProxy) -> None:
    async with (
        connect(server.url) as client,
        watched(settings(proxy.url, routes=[core_route("ask.*", "answer.{{wildcard(1)}}")])) as watch,
        trio.open_nursery() as nursery,
    ):
        service = await client.subscribe("answer.*")

        async def answer() -> None:
            async for request in service:
                assert request.reply is not None
                await client.publish(request.reply, b"yes, " + request.payload)

        nursery.start_soon(answer)
        assert (await client.request("ask.1", b"a")).payload == b"yes, a"
        await cut_off(proxy, watch)
        await until_nobody_answers(client, "ask.1")
        await let_in(proxy, watch)
        await assert_survived(watch, seen=OUTAGE)
        assert (await client.request("ask.1", b"c")).payload == b"yes, c"
        nursery.cancel_scope.cancel()


async def until_nobody_answers(client: RawClient, subject: str) -> None:
    """Ask until the server says that nobody is there: it notices a moment later that a subscriber has gone."""
    with trio.fail_after(5):
        while True:
            try:
                await client.request(subject, within=0.1)
            except NoResponders:
                return
            except trio.TooSlowError:
                continue


async def test_messages_in_flight_at_the_moment_of_loss(server: NatsServer, proxy: TcpProxy) -> None:
    async with connect(server.url) as client, watched(settings(proxy.url, liveness_interval="30s")) as watch:
        live = watch.router
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"])
        subscription = await client.subscribe("out")
        proxy.blackhole("to_client")
        receipts = [await live.publish("out", b"%d" % number) for number in range(50)]
        with_ack: list[Receipt] = []
        async with trio.open_nursery() as nursery:

            async def publish(number: int) -> None:
                with_ack.append(await live.publish_with_ack("sink.1", b"%d" % number))

            for number in range(50):
                nursery.start_soon(publish, number)
            await until_stored(stream, "SINK", 50)
            assert await numbers_from(subscription, 50) == list(range(50))
            entry = live.ledger()["main"]
            assert (entry["in_flight"], sum(entry["settled"].values())) == (100, 0), "written, and nobody confirmed it"
            await cut_off(proxy, watch)
            proxy.clear()
            assert live.ledger()["main"]["pending"] == 100
        assert {receipt.status for receipt in with_ack} == {"queued"}, "the link went while they waited"
        await let_in(proxy, watch)
        assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
        fates = [await receipt.settled() for receipt in with_ack]
        assert {(fate.name, fate.duplicate) for fate in fates} == {("acked", True)}, "the stream had them all"
        await assert_survived(watch, seen=[*OUTAGE, *KEPT])
        assert await numbers_from(subscription, 50) == list(range(50)), "a core publish may come twice, and in order"
        assert len(await stream.stream_messages("SINK")) == 50


async def test_core_route_in_a_failure(server: NatsServer, proxy: TcpProxy, tmp_path: Path) -> None:
    """The destination is away: what comes is kept, and sent in order."""
    async with (
        nats_server(tmp_path, jetstream=False, name="edge") as edge,
        connect(edge.url) as source,
        connect(server.url) as sink,
    ):
        config = settings(proxy.url)
        main = config.connections["main"]
        away = main.model_copy(update={"servers": settings(edge.url).connections["main"].servers})
        watch = Watch()
        router = Router(config.model_copy(update={"connections": {"main": main, "edge": away}}), observers=[watch])

        @router.route("in.*", to={"connection": "main", "subject": "out"}, connection="edge")
        def through(message: Message) -> Message:
            return message

        async with watched(router, watch):
            live = watch.router
            subscription = await sink.subscribe("out")
            await cut_off(proxy, watch)
            await source.publish_many([("in.1", b"%d" % number) for number in range(500)])
            await eventually(lambda: live.ledger()["main"]["pending"] == 500)
            assert live.routes[0].state == RUNNING, "a core route goes on receiving"
            await let_in(proxy, watch)
            assert await numbers_from(subscription, 500) == list(range(500))
            await assert_survived(watch, seen=[*OUTAGE, *KEPT, "NATS_PUBLISH_QUEUED"])
            assert watch.metric("router_messages_routed_total") == 500
            assert watch.gauges["edge"] == [1.0], "the other connection never noticed"


async def test_jetstream_route_in_a_failure(server: NatsServer, proxy: TcpProxy) -> None:
    """The destination is away: the route stops pulling, and another route on the same source goes on."""
    count = 3_000
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        config = settings(server.url)
        main = config.connections["main"]
        other = main.model_copy(update={"servers": settings(proxy.url).connections["main"].servers})
        both = config.model_copy(update={"connections": {"main": main, "sink": other}})
        watch = Watch()
        router = Router(both, observers=[watch])

        @router.route(
            to={"connection": "sink", "subject": "sink.{{wildcard(1)}}", "jetstream": True},
            connection="main",
            stream="SOURCE",
            durable="router",
            filter="source.*",
        )
        def through(message: Message) -> Message:
            return message

        @router.route("source.*", to={"connection": "main", "subject": "copy"}, connection="main")
        def copied(message: Message) -> Message:
            return message

        async with watched(router, watch):
            live = watch.router
            copies = await client.subscribe("copy")
            await cut_off(proxy, watch)
            await eventually(lambda: live.routes[0].state == PAUSED)
            await fill(stream, range(count))
            assert len(await numbers_from(copies, count)) == count, "the route beside it goes on"
            held = (await stream.consumer_info("SOURCE", "router"))["num_ack_pending"]
            assert held <= 1024, "it holds no more than max_in_flight"
            assert live.ledger()["sink"]["pending"] <= 1024
            await let_in(proxy, watch)
            await until_stored(stream, "SINK", count)
            await assert_survived(watch, connection="sink", seen=OUTAGE)
            assert watch.gauges["main"] == [1.0]
    await assert_sink_is_whole(server.url, count)


# --- recovery ---


async def test_recovery_after_a_short_drop(server: NatsServer, proxy: TcpProxy) -> None:
    config = settings(proxy.url, routes=[ROUTE], reconnect_delay="1s", max_reconnect_delay="30s")
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        # A link that has lived is stable: the first retry comes at once.
        async with watched(config.model_copy(deep=True)) as watch:
            await eventually(lambda: trio.current_time() - watch.of("NATS_CONNECTION_ESTABLISHED")[0].at > 1.0)
            proxy.cut()
            restored = await watch.until("NATS_CONNECTION_RESTORED")
            (attempt,) = watch.of("NATS_RECONNECT_ATTEMPT")
            assert attempt.delay_ms <= 100
            assert restored.outage_seconds < 1.0
            await fill(stream, range(100))
            await until_stored(stream, "SINK", 100)
            await assert_survived(watch, seen=OUTAGE)
    await assert_sink_is_whole(server.url, 100)


async def test_recovery_after_a_long_one(server: NatsServer, proxy: TcpProxy) -> None:
    """Longer than `max_reconnect_delay`, over several rounds of attempts."""
    config = settings(proxy.url, routes=[ROUTE], reconnect_attempts=3, max_reconnect_delay="100ms")
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        async with watched(config) as watch:
            live = watch.router
            await cut_off(proxy, watch)
            receipts = [await live.publish_with_ack(f"sink.{n % 10}", b"%d" % n) for n in range(100)]
            exhausted = await watch.until("NATS_RECONNECT_EXHAUSTED", times=4)
            assert (exhausted.reconnect_attempts, exhausted.action) == (3, "keep_trying")
            assert trio.current_time() - watch.of("NATS_CONNECTION_LOST")[0].at > 0.1
            opened_at = trio.current_time()
            await let_in(proxy, watch)
            assert trio.current_time() - opened_at < 0.1 + 1.0, "one delay, and the time to connect"
            assert {(await receipt.settled()).name for receipt in receipts} == {"acked"}
            await fill(stream, range(100, 200))
            await until_stored(stream, "SINK", 200)
            await assert_survived(watch, seen=[*OUTAGE, *KEPT, "NATS_RECONNECT_EXHAUSTED"])
            assert watch.metric("router_nats_reconnection_exhausted_total") >= 4
    await assert_sink_is_whole(server.url, 200)


async def test_retries_of_queued_work_first_in_first_out(server: NatsServer, proxy: TcpProxy) -> None:
    """Both kinds of publishes, and new ones while the drain runs: what was accepted first goes first."""
    async with connect(server.url) as client, watched(settings(proxy.url)) as watch:
        live = watch.router
        await JetStream(client).create_stream("SINK", ["mixed"])
        subscription = await client.subscribe("mixed")
        await cut_off(proxy, watch)
        for number in range(400):
            publish = live.publish if number % 3 else live.publish_with_ack
            assert (await publish("mixed", b"%d" % number)).status == "queued"
        proxy.throttle(20_000, "to_server")
        await let_in(proxy, watch)
        late = await live.publish("mixed", b"400")
        assert late.status == "queued", "it goes behind the drain"
        proxy.clear()
        assert await late.settled() == Fate("fenced")
        complete = await watch.until("NATS_RETRY_COMPLETE")
        assert (complete.success_count, complete.failed_count) == (400, 0)
        assert await numbers_from(subscription, 401) == list(range(401))
        await until_settled(live)
        await assert_survived(watch, seen=[*OUTAGE, *KEPT])
        assert watch.metric("router_nats_pending_operations_retry_success_total") == 400
