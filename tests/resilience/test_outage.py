"""The promises of the first page, each with a real server and a real outage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from router_trio import Fate, Live, Receipt, Router
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings, stream_route
from tests.support.watch import (
    Watch,
    assert_accounted,
    assert_alive,
    cut_off,
    let_in,
    router_tasks,
    until_stored,
    watched,
)


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.nightly)])
async def test_killing_the_server_costs_a_stream_route_nothing(server: NatsServer, count: int) -> None:
    published = 0

    async def publish(numbers: int) -> None:
        nonlocal published
        these = range(published, published + numbers)
        published += numbers
        async with connect(server.url) as client:
            messages = [(f"source.{i % 10}", b"%d" % i, [("Nats-Msg-Id", f"id-{i}")]) for i in these]
            await JetStream(client).publish_many(messages)

    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
    await publish(count)
    route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*")
    async with watched(settings(server.url, routes=[route])) as watch:
        live = watch.live
        assert live is not None
        taken = live.routes[0]
        await eventually(lambda: sum(taken.routed.values()) > count / 3, 30)
        await stop_in_the_middle(server, live, lambda: publish(1000))
        await server.kill()
        assert sum(taken.routed.values()) < published, "the server was killed too late to prove anything"
        await watch.until("NATS_RECONNECT_ATTEMPT", times=2)
        await server.restart()
        await watch.until("NATS_RETRY_COMPLETE")
        # Not `routed`: messages that the restarted server redelivers are routed again, and stored once.
        async with connect(server.url) as client:
            await until_stored(JetStream(client), "SINK", published)
        await assert_alive(live)
        assert watch.gauges["main"] == [1.0, 0.5, 1.0]
    assert live.unsettled == 0
    lifecycle = [code for code in watch.codes if code.startswith(("NATS_CONNECTION_", "NATS_RETRY_"))]
    assert lifecycle[0] == "NATS_CONNECTION_ESTABLISHED"
    assert lifecycle[1] == "NATS_CONNECTION_LOST"
    assert set(lifecycle[2:-3]) == {"NATS_CONNECTION_FAILED"}
    assert lifecycle[-3:] == ["NATS_CONNECTION_RESTORED", "NATS_RETRY_PENDING", "NATS_RETRY_COMPLETE"]
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    assert len(stored) == published
    assert len({message.header("Nats-Msg-Id") for message in stored}) == published
    by_subject = defaultdict(list)
    for message in stored:
        by_subject[message.subject].append(int(message.payload))
    assert all(numbers == sorted(numbers) for numbers in by_subject.values())


async def stop_in_the_middle(server: NatsServer, live: Live, more: Callable[[], Awaitable[None]]) -> None:
    """Stop the server when data is written and not confirmed, so that a kill leaves its fate open.

    `more` publishes further messages: all may be settled by then.
    """
    while True:
        server.stop()
        await trio.testing.wait_all_tasks_blocked(0.02)
        if live.connections["main"].outbox.in_flight:
            return
        server.cont()
        await more()


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.nightly)])
async def test_a_cut_connection_loses_no_accepted_publish(server: NatsServer, proxy: TcpProxy, count: int) -> None:
    received: list[int] = []
    async with connect(server.url) as client:
        subscription = await client.subscribe("out")
        await client.ping()

        async def collect() -> None:
            while True:
                received.append(int((await subscription.next(within=60)).payload))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            # The queue holds all, so that none is dropped by policy: this test is about the cut.
            async with watched(settings(proxy.url, max_pending_operations=count)) as watch:
                live = watch.live
                assert live is not None
                receipts: list[Receipt] = []
                for number in range(count):
                    receipts.append(await live.publish("out", b"%d" % number))
                    if number in (count // 3, count // 2):
                        proxy.reset()
                await watch.until("NATS_CONNECTION_RESTORED")
                with trio.fail_after(30):
                    fates = [await receipt.settled() for receipt in receipts]
                assert {fate.name for fate in fates} == {"fenced"}
                assert watch.count("NATS_CONNECTION_LOST") >= 1
            await eventually(lambda: len(set(received)) == count, 10, lambda: len(set(received)))
            nursery.cancel_scope.cancel()
    assert first_arrivals(received) == list(range(count))


def first_arrivals(numbers: Sequence[int]) -> list[int]:
    """Return the numbers in the order of their first arrival."""
    return list(dict.fromkeys(numbers))


async def test_a_full_queue_drops_the_oldest_and_reports_it(server: NatsServer, proxy: TcpProxy) -> None:
    received: list[int] = []
    config = settings(proxy.url, max_pending_operations=100)
    async with watched(config) as watch:
        live = watch.live
        assert live is not None
        await cut_off(proxy, watch)
        await server.kill()
        receipts = [await live.publish("out", b"%d" % number) for number in range(1000)]
        assert {receipt.status for receipt in receipts} == {"queued"}
        outbox = live.connections["main"].outbox
        assert (outbox.pending, outbox.counters.dropped["queue_full"]) == (100, 900)
        assert outbox.counters.failed["publish", "not_connected"] == 1000
        assert_accounted(live)
        assert watch.count("NATS_QUEUE_FULL") == 900
        assert watch.count("NATS_PUBLISH_QUEUED") == 1000
        fates = [await receipt.settled() for receipt in receipts[:900]]
        assert set(fates) == {Fate("dropped", "queue_full")}
        await server.restart()
        async with connect(server.url) as client:
            # The router may connect once the subscriber is there: messages drained before that would reach no client.
            subscription = await client.subscribe("out")
            await client.ping()
            await let_in(proxy, watch)
            await watch.until("NATS_RETRY_COMPLETE")
            assert [(await receipt.settled()).name for receipt in receipts[900:]] == ["fenced"] * 100
            received = [int((await subscription.next()).payload) for _ in range(100)]
        retried = outbox.counters
        assert (retried.retried, retried.retry_succeeded, retried.retry_failed) == (100, 100, 0)
    assert received == list(range(900, 1000))


async def test_an_outage_longer_than_the_duplicate_window_logs_how_many_may_be_duplicated(
    server: NatsServer, proxy: TcpProxy
) -> None:
    """The stream has stored them all when the link is lost, and their PubAcks are lost with it."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"], duplicate_window=1_000_000_000)
        async with watched(settings(proxy.url)) as watch, trio.open_nursery() as publishers:
            proxy.blackhole("to_client")
            for number in range(20):
                publishers.start_soon(watch.router.publish_with_ack, "sink.a", b"%d" % number)
            await until_stored(stream, "SINK", 20)
            await cut_off(proxy, watch)
            proxy.clear()
            await trio.sleep(1.5)
            await let_in(proxy, watch)
            event = await watch.until("NATS_DUPLICATES_POSSIBLE")
            assert (event.connection, event.stream, event.count) == ("main", "SINK", 20)
            assert (event.window_seconds, event.window_assumed) == (1.0, False)
            assert 1.5 <= event.outage_seconds <= event.unanswered_seconds
            await until_stored(stream, "SINK", 40)


@pytest.mark.parametrize("moment", ["at once", "connecting", "connected", "traffic", "blackholed", "away"])
async def test_cancelling_open_is_done_within_the_shutdown_deadline(
    server: NatsServer, proxy: TcpProxy, moment: str
) -> None:
    async with connect(server.url) as client:
        await JetStream(client).create_stream("SINK", ["sink.*"])
    base = settings(proxy.url, routes=[core_route("in.*", "out.{{wildcard(1)}}")])
    config = base.model_copy(update={"router": base.router.model_copy(update={"shutdown_timeout": 1.0})})
    if moment == "connecting":
        proxy.blackhole()
    opened: list[Live] = []
    watch = Watch()
    with trio.CancelScope() as scope:
        if moment == "at once":
            scope.cancel()
        elif moment == "connecting":
            scope.deadline = trio.current_time() + 0.3
        async with Router(config, observers=[watch]).open() as live:
            opened.append(live)
            if moment in ("traffic", "blackholed"):
                for number in range(100):
                    await live.publish(f"in.{number}", b"x")
            if moment == "blackholed":
                proxy.blackhole()
                await live.publish("out.late", b"x" * 500_000)
            if moment == "away":
                await server.kill()
                await watch.until("NATS_CONNECTION_LOST")
                await live.publish("out.late", b"x")
            scope.cancel()
            cancelled_at = trio.current_time()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    if opened:
        assert trio.current_time() - cancelled_at < 1.0 + 1.0 + 0.5
        assert_accounted(opened[0])
        entry = opened[0].ledger()["main"]
        assert entry["pending"] == entry["in_flight"] == 0
        assert opened[0].unsettled == entry["settled"]["dropped"]
        if moment in ("blackholed", "away"):
            assert entry["settled"]["dropped"] >= 1
    # A fixture checks for threads and children that a run leaves behind; tasks and sockets are checked here.
    assert router_tasks() == []
