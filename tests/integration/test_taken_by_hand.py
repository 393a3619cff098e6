"""Somebody lays a hand on the durable of a route, on a real server.

Who takes one message does not end the order of the route; who resets the durable is told of in the log.
"""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Message, Router
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, until_nothing_is_unacked, until_stored, watched

SOURCE: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "filter": "in.*", "ack_wait": "2s"}
TO: dict[str, Any] = {"subject": "out.{{wildcard(1)}}", "jetstream": True}
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
async def test_what_follows_a_message_that_failed_on_its_key_waits_for_it_though_one_was_taken(
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


@needs_server(2, 14, lacks="resets of consumers")
@pytest.mark.parametrize(("sequence", "goes_on_with", "stored"), [(4, 4, 15), (0, 11, 15), (13, 13, 13)])
async def test_a_reset_is_said_with_where_it_stood_and_where_it_goes_on(
    server: NatsServer, sequence: int, goes_on_with: int, stored: int
) -> None:
    """Back, to the ack floor, and forward, while the route waits for messages."""
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
