"""A connection fails, and recovers.

Each test ends with `assert_survived`: alive, accounted, visible. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

import json
from itertools import groupby

import pytest
import trio
import trio.testing

from router_trio import Fate
from router_trio.errors import PublishError
from router_trio.telemetry.http.status import health, readiness
from router_trio.testing import FakeBroker
from tests.resilience.outage_codes import KEPT, OUTAGE
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings
from tests.support.streams import ROUTE, assert_sink_is_whole, numbers_from, publish_numbered, source_and_sink
from tests.support.watch import assert_survived, cut_off, let_in, until_settled, until_stored, watched

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
            # Each publish accepted while disconnected is a failure, and stays one: none is counted twice.
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
        assert (unconfirmed.status, unconfirmed.fate) == ("sent", None), "it was not confirmed"
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
                await publish_numbered(stream, range(times * each, (times + 1) * each))
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
    rounds = [number for number, _ in groupby(attempt.attempt for attempt in attempts)]
    assert rounds == [*range(1, 11)] * 6, "early attempts have the number of the one after them"
    (lost,) = watch.of("NATS_CONNECTION_LOST")
    delays = [attempt.delay_ms for attempt in attempts]
    bounds = [100, *(min(30_000, 1000 * 2**step) for step in range(59))]
    counted = [list(made) for _, made in groupby(attempts, lambda attempt: attempt.attempt)]
    for made, bound in zip(counted, bounds, strict=True):
        assert 0 <= sum(attempt.delay_ms for attempt in made) <= bound + len(made), "each rounded to a millisecond"
        for attempt in made:
            away = attempt.at - lost.at - attempt.delay_ms / 1000
            assert attempt.delay_ms <= max(1000, 1000 * away / 2) + 1
    longest = delays[-50:]
    assert len(set(longest)) > 40, "jitter: hardly two are alike"
    assert min(longest) < 10_000 < 20_000 < max(longest), "full jitter: over the whole of 0 to 30 s"


# --- recovery ---


async def test_recovery_after_a_short_drop(server: NatsServer, proxy: TcpProxy) -> None:
    config = settings(proxy.url, routes=[ROUTE], reconnect_delay="1s", max_reconnect_delay="30s")
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        # A link that has lived is stable: the first retry is made at once.
        async with watched(config.model_copy(deep=True)) as watch:
            await eventually(lambda: trio.current_time() - watch.of("NATS_CONNECTION_ESTABLISHED")[0].at > 1.0)
            proxy.cut()
            restored = await watch.until("NATS_CONNECTION_RESTORED")
            (attempt,) = watch.of("NATS_RECONNECT_ATTEMPT")
            assert attempt.delay_ms <= 100
            assert restored.outage_seconds < 1.0
            await publish_numbered(stream, range(100))
            await until_stored(stream, "SINK", 100)
            await assert_survived(watch, seen=OUTAGE)
    await assert_sink_is_whole(server.url, 100)


async def test_recovery_after_a_long_drop(server: NatsServer, proxy: TcpProxy) -> None:
    """The drop is longer than `max_reconnect_delay`, over several rounds of attempts."""
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
            await publish_numbered(stream, range(100, 200))
            await until_stored(stream, "SINK", 200)
            await assert_survived(watch, seen=[*OUTAGE, *KEPT, "NATS_RECONNECT_EXHAUSTED"])
            assert watch.metric("router_nats_reconnection_exhausted_total") >= 4
    await assert_sink_is_whole(server.url, 200)


async def test_retries_of_queued_work_first_in_first_out(server: NatsServer, proxy: TcpProxy) -> None:
    """Both kinds of publishes, and new ones during the drain: what was accepted first is sent first."""
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
