"""The few JetStream calls with which the demo judges a router."""

from __future__ import annotations

import pytest

from router_trio.errors import LinkError, SourceError
from router_trio.nats.other_client import StoredMessage, add_streams, count_messages, stream_messages
from tests.support.odd_answers import BODIES
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.raw_server import Published, Sent, raw_server
from tests.support.servers import NatsServer


async def test_streams_are_created_counted_and_read_in_order(server: NatsServer) -> None:
    await add_streams(server.url, {"ORDERS": ["orders.*"], "EMPTY": ["empty"]})
    sent = [(f"orders.{number % 3}", b"%d" % number) for number in range(1_203)]
    async with connect(server.url) as client:
        await JetStream(client).publish_many([(subject, payload, None) for subject, payload in sent])
    assert await count_messages(server.url, "ORDERS") == len(sent)
    assert await stream_messages(server.url, "ORDERS") == [
        StoredMessage(number, subject, payload) for number, (subject, payload) in enumerate(sent, 1)
    ]
    assert await stream_messages(server.url, "EMPTY") == []


async def test_a_refusal_is_raised_ungrouped(server: NatsServer) -> None:
    with pytest.raises(SourceError, match="stream not found"):
        await stream_messages(server.url, "NONE")
    await add_streams(server.url, {"ONE": ["a.*"]})
    with pytest.raises(SourceError, match="subjects overlap"):
        await add_streams(server.url, {"TWO": ["a.>"]})


async def test_no_server_and_no_jetstream(core_server: NatsServer) -> None:
    with pytest.raises((LinkError, SourceError), match=core_server.url):
        await count_messages(core_server.url, "ORDERS")
    await core_server.kill()
    with pytest.raises(LinkError, match=f"can't talk to the server at {core_server.url}"):
        await count_messages(core_server.url, "ORDERS")


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_an_invalid_answer_is_an_error_that_names_the_server(body: bytes) -> None:
    def answer(published: Published) -> list[Sent]:
        return [Sent(published.reply, body)] if published.subject.startswith("$JS.API.") else []

    async with raw_server(answer) as (_, url):
        for ask in (count_messages(url, "ORDERS"), stream_messages(url, "ORDERS"), add_streams(url, {"A": ["a"]})):
            with pytest.raises(SourceError, match=url) as caught:
                await ask
            assert len(str(caught.value)) < 300
