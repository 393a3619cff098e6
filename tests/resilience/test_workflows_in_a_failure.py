"""Requests, messages in flight and routes while the connection fails."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from router_trio import Message, Receipt, Router
from router_trio.states import PAUSED, RUNNING
from tests.resilience.outage_codes import KEPT, OUTAGE
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import NoResponders, RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings
from tests.support.streams import assert_sink_is_whole, numbers_from, publish_numbered, source_and_sink
from tests.support.watch import Watch, assert_survived, cut_off, let_in, until_stored, watched


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
        await until_no_responders(client, "ask.1")
        await let_in(proxy, watch)
        await assert_survived(watch, seen=OUTAGE)
        assert (await client.request("ask.1", b"c")).payload == b"yes, c"
        nursery.cancel_scope.cancel()


async def until_no_responders(client: RawClient, subject: str) -> None:
    """Send requests until the server answers that there are no responders: it notices the end of a subscriber with a
    delay.
    """
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
            assert (entry["in_flight"], sum(entry["settled"].values())) == (100, 0), "written, and it was not confirmed"
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
    """The destination is disconnected: messages are kept, and sent in order."""
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
    """The destination is disconnected: the route stops pulling, and another route on the same source goes on."""
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
            max_in_flight=1024,
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
            await publish_numbered(stream, range(count))
            assert len(await numbers_from(copies, count)) == count, "the route beside it goes on"
            held = (await stream.consumer_info("SOURCE", "router"))["num_ack_pending"]
            assert held <= 1024, "it holds no more than max_in_flight"
            assert live.ledger()["sink"]["pending"] <= 1024
            await let_in(proxy, watch)
            await until_stored(stream, "SINK", count)
            await assert_survived(watch, connection="sink", seen=OUTAGE)
            assert watch.gauges["main"] == [1.0]
    await assert_sink_is_whole(server.url, count)
