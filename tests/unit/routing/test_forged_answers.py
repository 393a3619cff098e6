"""Answers that a client makes other streams send to the inbox of our PubAcks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from router_trio import Live, Router, Settings
from router_trio.protocol.framing import RawMessage
from router_trio.testing import FakeBroker

SOURCE = {"connection": "main", "stream": "IN", "durable": "r", "ack_wait": 2.0}
LETTER = {"subject": "dead.{{wildcard(1)}}"}
SETTINGS = Settings(
    telemetry={"listen": ""},
    connections={"main": {"servers": ["nats://one:4222"]}},
    routes=[
        {
            "name": "r",
            "from": SOURCE | {"filter": "in.*"},
            "to": [{"connection": "main", "subject": "out.{{wildcard(1)}}", "jetstream": True}],
            "retry": {"attempts": 1},
            "dead_letter": LETTER,
        }
    ],
)


@asynccontextmanager
async def routing(broker: FakeBroker) -> AsyncIterator[Live]:
    for name in ("IN", "EVIL", "DEAD"):
        broker.add_stream(name, [f"{name.lower()}.*"])
    async with Router(SETTINGS, connect=lambda name, settings: broker.connect, log=False).open() as live:
        await trio.sleep(1)
        yield live


async def test_an_error_of_a_stream_that_is_not_known_yet_decides_nothing(autojump_clock: trio.abc.Clock) -> None:
    """No stream takes the message, and a subscriber hears the destination: then the server sends no answer."""
    broker = FakeBroker()
    broker.add_stream("OTHER", ["out.other"])
    heard: list[bytes] = []

    def forge(raw: RawMessage) -> None:
        heard.append(raw[1])
        if len(heard) == 1:
            broker.publish("evil.x", b"forged", {"Nats-Expected-Last-Sequence": "99"}, reply=raw[1].decode())

    async with routing(broker):
        broker._server.subscribe("out.*", None, forge)
        broker.publish("in.a", b"1")
        await trio.sleep(4)
        assert (len(heard), broker.messages("DEAD")) == (1, [])
        broker.delete_stream("OTHER")
        broker.add_stream("OUT", ["out.*"])
        await trio.sleep(4)
        assert [one.payload for one in broker.messages("OUT")] == [b"1"]
        assert broker.unacked("IN", "r") == 0
    assert broker.messages("DEAD") == []


@pytest.mark.parametrize(
    "junk",
    [b"", b"+OK", b'{"stream":"OUT","seq":0}', b'{"stream":"OUT","seq":18446744073709551616}', b'{"type":"x"}'],
)
async def test_an_answer_that_is_not_a_puback_decides_nothing(junk: bytes, autojump_clock: trio.abc.Clock) -> None:
    """It may be the answer of a service, or of the JetStream API, to another client's request."""
    broker = FakeBroker()

    def answer(raw: RawMessage) -> None:
        broker.publish(raw[1].decode(), junk)

    async with routing(broker):
        broker._server.subscribe("out.*", None, answer)
        broker.publish("in.a", b"1")
        await trio.sleep(4)
        assert broker.messages("DEAD") == []
        assert broker.unacked("IN", "r") == 1
        broker.add_stream("OUT", ["out.*"])
        await trio.sleep(10)
        assert [one.payload for one in broker.messages("OUT")] == [b"1"]
        assert broker.unacked("IN", "r") == 0
    assert broker.messages("DEAD") == []
