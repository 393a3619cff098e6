"""An operator interferes with the durable of a route, on a real server.

Taking one message does not end the order of the route; a reset of the durable is reported in the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router
from router_trio.link import LISTEN_FOR, ConsumerSpec
from router_trio.router.options import DestinationOptions
from router_trio.routing.stream.pulling import checks
from tests.integration.dial import link_to
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.recorder import Recorder
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.watch import Watch, until_nothing_is_unacked, until_stored, watched

SOURCE: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "filter": "in.*", "ack_wait": "2s"}
TO: DestinationOptions = {"subject": "out.{{wildcard(1)}}", "jetstream": True}
COUNT = 90


async def take_one(client: RawClient, stream: JetStream, *, ack: bool) -> None:
    """Take one message by a pull request, as `nats consumer next` does, while the route waits for messages too."""
    inbox = client.new_inbox()
    taken = await client.subscribe(inbox)
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.SOURCE.router", b'{"batch": 1, "expires": 5000000000}', reply=inbox)
    await client.ping()
    await stream.publish_many([("in.other", b"%d" % number, None) for number in range(1000, 1008)])
    message = await taken.next()
    if ack:
        await client.publish(str(message.reply), b"+ACK")
    await client.ping()


async def came(stream: JetStream) -> list[int]:
    return [number for one in await stream.stream_messages("SINK") if (number := int(one.payload)) < COUNT]


async def check_order(stream: JetStream) -> None:
    await until_nothing_is_unacked(stream)
    numbers = await came(stream)
    assert sorted(numbers) == list(range(COUNT))
    for subject in range(3):
        mine = [number for number in numbers if number % 3 == subject]
        assert mine == sorted(mine)


@pytest.mark.parametrize("ack", [True, False])
async def test_messages_behind_a_failed_one_of_their_key_wait_even_if_one_was_taken(
    server: NatsServer, ack: bool
) -> None:
    tried: set[int] = set()
    watch = Watch()
    made = Router(settings(server.url), observers=[watch])

    @made.route(to=TO, name="copies", key="subject", retry={"initial": "200ms"}, **SOURCE)
    async def handler(message: Message) -> Message:
        number = int(message.payload)
        if number % 5 == 0 and number not in tried and number < COUNT:
            tried.add(number)
            raise ValueError("not yet")
        return message

    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        async with watched(made, watch):
            (running,) = watch.router.routes
            await take_one(client, stream, ack=ack)
            await eventually(lambda: running.settled["routed"] >= 7, 20)
            for number in range(COUNT):
                await stream.publish(f"in.{number % 3}", b"%d" % number)
            await eventually(lambda: running.settled["routed"] >= COUNT + (7 if ack else 8), 30)
            await check_order(stream)


@pytest.mark.parametrize("another", [False, True])
async def test_acks_of_the_own_link_are_not_mistaken_for_those_of_another_process(
    server: NatsServer, another: bool
) -> None:
    spec, delivered = (
        ConsumerSpec("SOURCE", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=100),
        Recorder(),
    )
    async with connect(server.url) as client, link_to(server.url) as link:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.publish_many([("in.0", b"%d" % number, None) for number in range(5)])
        consumer = await link.open_consumer(spec, delivered)
        consumer.pull(4, 5.0)
        await delivered.until_delivered(4)
        consumer.close()
        acks, naked, in_progress, last = [raw[1] for raw in delivered.messages]

        async def answer() -> None:
            await trio.sleep(LISTEN_FOR / 3)
            link.ack([acks])
            link.nak(naked, 60.0)
            link.in_progress(in_progress)
            if another:
                await client.publish(last.decode(), b"+ACK")

        again = replace(spec, stream_created=consumer.stream_created, start_sequence=1, others_seen=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            consumer = await link.open_consumer(again, Recorder())
        assert consumer.progress.in_use is another


@needs_server(2, 14, lacks="resets of consumers")
@pytest.mark.parametrize(("sequence", "goes_on_with", "stored"), [(4, 4, 15), (0, 11, 15), (13, 13, 13)])
async def test_a_reset_is_logged_with_the_old_and_the_new_position(
    server: NatsServer, sequence: int, goes_on_with: int, stored: int
) -> None:
    """Reset back, to the ack floor, and forward, while the route waits for messages."""
    route = {"name": "copies", "from": SOURCE, "to": [TO]}
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        async with watched(settings(server.url, routes=[route])) as watch:
            for number in range(10):
                await stream.publish("in.a", b"%d" % number)
            await until_stored(stream, "SINK", 10)
            await until_nothing_is_unacked(stream)
            await stream.api("CONSUMER.RESET.SOURCE.router", {"seq": sequence} if sequence else None)
            event = await watch.until("ROUTE_CONSUMER_RESET")
            assert (event.stream, event.durable) == ("SOURCE", "router")
            assert (event.from_sequence, event.to_sequence) == (11, goes_on_with)
            for number in range(10, 15):
                await stream.publish("in.a", b"%d" % number)
            await until_stored(stream, "SINK", stored)
            await until_nothing_is_unacked(stream)
            assert len(watch.of("ROUTE_CONSUMER_RESET")) == 1
        assert len(await stream.stream_messages("SINK")) == stored


async def pause(stream: JetStream) -> None:
    await stream.pause_consumer("SOURCE", "router", 2)


async def reset_back(stream: JetStream) -> None:
    floor = (await stream.consumer_info("SOURCE", "router"))["ack_floor"]["stream_seq"]
    await stream.api("CONSUMER.RESET.SOURCE.router", {"seq": max(1, floor // 2)})


async def edit(stream: JetStream) -> None:
    await stream.edit_consumer("SOURCE", "router", max_deliver=3, ack_wait=5_000_000_000)


async def remove(stream: JetStream) -> None:
    await stream.delete_consumer("SOURCE", "router")


@pytest.mark.parametrize(
    ("interfere", "code"),
    [
        pytest.param(pause, "ROUTE_CONSUMER_PAUSED", marks=needs_server(2, 11, lacks="pause of consumers")),
        pytest.param(reset_back, "ROUTE_CONSUMER_RESET", marks=needs_server(2, 14, lacks="resets of consumers")),
        (edit, "ROUTE_CONSUMER_LIMITS_REMOVED"),
        (remove, "NATS_SUBSCRIBE_ERROR"),
    ],
)
async def test_under_load_the_ledger_adds_up_and_the_log_has_what_happened(
    server: NatsServer, interfere: Callable[[JetStream], Awaitable[None]], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    route = {"name": "copies", "from": SOURCE, "to": [TO]}
    async with connect(server.url) as client, connect(server.url) as sender:
        stream, publisher = JetStream(client), JetStream(sender)
        await stream.create_stream("SOURCE", ["in.*"])
        # Without a window: a copy that is sent twice is stored twice.
        await stream.create_stream("SINK", ["out.*"], duplicate_window=100_000_000)
        async with watched(settings(server.url, routes=[route])) as watch, trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(0, 3000, 20):
                    await publisher.publish_many((f"in.{n % 7}", b"%d" % n, None) for n in range(number, number + 20))
                    await trio.sleep(0.01)

            nursery.start_soon(publish)
            await until_stored(stream, "SINK", 300)
            await interfere(stream)
            event = await watch.until(code)
            assert event.route == "copies"
            await until_stored(stream, "SINK", 3000)
            await until_nothing_is_unacked(stream)
            (state,) = watch.router.routes
            await eventually(lambda: not state.in_hand)
            assert state.received_in_all == sum(state.settled.values())
            assert state.settled["routed"] == 3000
            assert not watch.of("STREAM_WENT_BACK")
            assert not watch.of("ROUTE_MESSAGE_FAILED")
            others = {"ROUTE_CONSUMER_PAUSED", "ROUTE_CONSUMER_RESET", "ROUTE_CONSUMER_LIMITS_REMOVED"} - {code}
            assert not others.intersection(watch.codes)
        assert sorted(int(one.payload) for one in await stream.stream_messages("SINK")) == [*range(3000)]


async def test_a_delivery_limit_that_can_not_be_removed_is_reported_once_and_the_route_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    config = """authorization { users: [
      { user: router, password: router, permissions: { publish: { deny: "$JS.API.CONSUMER.DURABLE.CREATE.>" } } }
      { user: other, password: other }
    ] }"""
    route = {"name": "copies", "from": SOURCE, "to": [TO]}
    async with (
        nats_server(tmp_path, config=config) as server,
        connect(server.url, user="other", password="other") as client,
    ):
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        await stream.create_consumer(
            "SOURCE", "router", filter_subject="in.*", ack_wait=2_000_000_000, max_ack_pending=8192
        )
        url = server.url.replace("nats://", "nats://router:router@")
        async with watched(settings(url, routes=[route])) as watch:
            await stream.publish("in.a", b"0")
            await until_stored(stream, "SINK", 1)
            await edit(stream)
            event = await watch.until("ROUTE_CONSUMER_DIFFERS")
            assert "max_deliver" in event.detail
            await stream.publish("in.a", b"1")
            await until_stored(stream, "SINK", 2)
            await trio.sleep(2)
            assert watch.count("ROUTE_CONSUMER_DIFFERS") == 1
            assert watch.count("NATS_SUBSCRIBE_ERROR") == 1, "it is opened again once"
