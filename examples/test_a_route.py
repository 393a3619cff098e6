"""Test a route and its handler without a server and without waiting: an outage of an hour takes milliseconds.

    pytest examples/test_a_route.py

`router` belongs in a module of your program, with its production settings. The tests open it on an in-memory broker and
without HTTP. They need pytest and pytest-trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio import Live, Message, Reject, Router, Settings
from router_trio.testing import FakeBroker

# --- the program ---

router = Router(Settings(connections={"main": {"servers": ["nats://nats.example.com:4222"]}}))


@router.route(
    stream="ORDERS",
    durable="enrich",
    filter="orders.*",
    to={"subject": "enriched.{{wildcard(1)}}", "jetstream": True},
    dead_letter={"subject": "dead.{{wildcard(1)}}"},
)
async def enrich(message: Message) -> Message | None:
    if message.payload == b"test":
        return None
    if not message.payload:
        raise Reject("it is empty")
    return message.replace(payload=message.payload.upper())


# --- its tests ---


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.*"])
    broker.add_stream("ENRICHED", ["enriched.*"])
    broker.add_stream("DEAD", ["dead.*"])
    return broker


@asynccontextmanager
async def running(broker: FakeBroker) -> AsyncIterator[Live]:
    async with router.open(connect=lambda name, settings: broker.connect, listen="") as live:
        yield live


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):  # on the simulated clock of the test, where a minute takes no time
        while not condition():
            await trio.sleep(0.1)


def payloads(broker: FakeBroker, stream: str) -> list[tuple[str, bytes]]:
    return [(message.subject, message.payload) for message in broker.messages(stream)]


@pytest.mark.trio
async def test_an_order_is_enriched(broker: FakeBroker, autojump_clock: Any) -> None:
    async with running(broker):
        broker.publish("orders.7", b"hello")
        await broker.stored("ENRICHED", 1)  # fails with the traceback of the handler if that raises
    assert payloads(broker, "ENRICHED") == [("enriched.7", b"HELLO")]
    assert broker.unacked("ORDERS", "enrich") == 0


@pytest.mark.trio
async def test_an_empty_order_is_a_dead_letter(broker: FakeBroker, autojump_clock: Any) -> None:
    async with running(broker):
        broker.publish("orders.7")
        (dead,) = await broker.stored("DEAD", 1)
    assert dead.headers["Router-Dead-Letter-Detail"] == "it is empty"


@pytest.mark.trio
async def test_a_test_order_goes_nowhere(broker: FakeBroker, autojump_clock: Any) -> None:
    async with running(broker) as live:
        broker.publish("orders.7", b"test")
        await until(lambda: live.routes[0].settled["filtered"] == 1)
    assert payloads(broker, "ENRICHED") == []


@pytest.mark.trio
async def test_an_outage_of_an_hour_loses_nothing(broker: FakeBroker, autojump_clock: Any) -> None:
    async with running(broker):
        broker.down()
        broker.publish("orders.1", b"while it is down")
        await trio.sleep(3600)
        broker.up()
        broker.publish("orders.2", b"afterwards")
        await broker.stored("ENRICHED", 2)
    assert payloads(broker, "ENRICHED") == [("enriched.1", b"WHILE IT IS DOWN"), ("enriched.2", b"AFTERWARDS")]
