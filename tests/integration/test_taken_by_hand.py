"""Somebody takes one message of a route's durable by hand, on a real server: the route keeps its order all the same."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Message, Router
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, until_nothing_is_unacked, watched

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
