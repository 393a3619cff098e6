"""A route continues where the push consumer of another program stands, and that program where the route stands.

The consumer is the one that FastStream 0.7 creates for `subscriber("orders.*", queue="worker", stream="SOURCE")`: it
calls `subscribe` of nats-py with these arguments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import nats
import pytest
import trio
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from router_trio.errors import reasons
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import until_nothing_is_unacked, until_stored, watched

COUNT = 10


def route(**source: Any) -> dict[str, Any]:
    return {
        "name": "ship",
        "from": {"stream": "SOURCE", "filter": "orders.*", "durable": "router"} | source,
        "to": [{"subject": "shipped.{{wildcard(1)}}", "jetstream": True}],
    }


async def program(url: str, count: int, acked: Collection[int], **config: Any) -> list[int]:
    """Run a program of FastStream until it has `count` messages, and return their numbers. It acks only `acked`."""
    received: list[int] = []

    async def main() -> None:
        client = await nats.connect(url)
        enough = asyncio.Event()

        async def handler(message: Msg) -> None:
            received.append(int(message.data))
            if int(message.data) in acked:
                await message.ack_sync()
            if len(received) == count:
                enough.set()

        await client.jetstream().subscribe(
            subject="orders.*",
            queue="worker",
            cb=handler,
            config=ConsumerConfig(filter_subjects=[], **config),
            durable=None,
            stream="SOURCE",
            manual_ack=True,
        )
        async with asyncio.timeout(10):
            await enough.wait()
        await client.close()

    await trio.to_thread.run_sync(asyncio.run, main())
    return received


async def numbers(stream: JetStream) -> list[int]:
    return [int(one.payload) for one in await stream.stream_messages("SHIPPED")]


async def filled(stream: JetStream, **config: Any) -> None:
    """Create the streams, with the messages 1 to `COUNT`, whose numbers are their sequences."""
    await stream.create_stream("SOURCE", ["orders.*"], **config)
    await stream.create_stream("SHIPPED", ["shipped.*"])
    for number in range(1, COUNT + 1):
        await stream.publish(f"orders.{number}", b"%d" % number)


async def test_a_route_continues_where_a_push_consumer_stands_and_back(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await filled(stream)
        # With several handler calls at a time, messages above the ack floor may be acked, too: here 5 and 7.
        assert await program(server.url, COUNT, acked={1, 2, 3, 5, 7}) == list(range(1, COUNT + 1))
        async with watched(settings(server.url, routes=[route(durable="worker")])) as watch:
            refused = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert refused.reason == reasons.CONSUMER_MISMATCH
            assert "With another `durable` and deliver = 4 the route continues" in refused.detail
        async with watched(settings(server.url, routes=[route(deliver=4)])) as watch:
            await until_stored(stream, "SHIPPED", 7)
            await stream.publish("orders.11", b"11")
            await until_stored(stream, "SHIPPED", 8)
            await until_nothing_is_unacked(stream)
            assert watch.of("ROUTE_CONSUMER_DIFFERS") == []
        assert await numbers(stream) == list(range(4, 12))  # none is skipped; 5 and 7 are repeated
        # A restarted router continues where it was, whatever `deliver` is.
        await stream.publish("orders.12", b"12")
        async with watched(settings(server.url, routes=[route(deliver=4)])):
            await until_stored(stream, "SHIPPED", 9)
            await until_nothing_is_unacked(stream)
        # Back: a new push consumer behind the ack floor of the route.
        await stream.publish("orders.13", b"13")
        floor = (await stream.consumer_info("SOURCE", "router"))["ack_floor"]["stream_seq"]
        assert floor == 12
        await stream.delete_consumer("SOURCE", "worker")
        start = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": floor + 1}
        assert await program(server.url, 1, acked={13}, **start) == [13]


async def test_of_a_work_queue_the_push_consumer_is_deleted_and_nothing_is_skipped(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await filled(stream, retention="workqueue")
        await program(server.url, COUNT, acked={1, 2, 3, 5, 7})
        # The server gives a message of a work queue to one consumer only.
        with pytest.raises(JetStreamError):
            await stream.create_consumer("SOURCE", "router", filter_subject="orders.*", ack_policy="explicit")
        await stream.delete_consumer("SOURCE", "worker")
        async with watched(settings(server.url, routes=[route()])):
            await until_stored(stream, "SHIPPED", 5)
            await until_nothing_is_unacked(stream)
        assert await numbers(stream) == [4, 6, 8, 9, 10]
        assert (await stream.stream_info("SOURCE"))["state"]["messages"] == 0


async def test_of_an_interest_stream_the_route_starts_before_the_push_consumer_is_deleted(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["orders.*"], retention="interest")
        await stream.create_stream("SHIPPED", ["shipped.*"])

        async def has_consumer() -> bool:
            return bool((await stream.stream_info("SOURCE"))["state"]["consumer_count"])

        async def publish() -> None:
            await eventually(has_consumer)
            for number in range(1, COUNT + 1):
                await stream.publish(f"orders.{number}", b"%d" % number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await program(server.url, COUNT, acked={1, 2, 3, 5, 7})
        async with watched(settings(server.url, routes=[route(deliver=4)])):
            await until_stored(stream, "SHIPPED", 5)
            await stream.delete_consumer("SOURCE", "worker")
            await until_nothing_is_unacked(stream)
        assert await numbers(stream) == [4, 6, 8, 9, 10]
