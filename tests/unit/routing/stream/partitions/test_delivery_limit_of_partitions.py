"""Messages of partitions that reached the limit of deliveries of their durable become dead letters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from tests.support.eventually import eventually
from tests.support.world import another_link, handled, to, world
from tests.unit.routing.stream.partitions.test_partitions_of_routes import (
    KEYS,
    PARTITIONS,
    group_broker,
    publish,
    route,
    shown,
)

TO = to("out.{{wildcard(1)}}.{{wildcard(2)}}", jetstream=True)


@pytest.mark.parametrize("by_key", [False, True])
async def test_messages_of_partitions_that_reached_the_limit_become_dead_letters(
    by_key: bool, autojump_clock: MockClock
) -> None:
    broker = group_broker()
    broker.add_stream("DEAD", ["dead.>"])

    async def handle(message: Message) -> Message:
        return message.replace(subject="out.x")

    def process() -> Any:
        letters = {"subject": "dead.{{wildcard(1)}}"}
        if not by_key:
            return world([route() | {"dead_letter": letters}], brokers={"main": broker})
        one = handled(handle, to=TO, concurrency=8, dead_letter=letters, **route()["from"])
        return world(handlers=[one], brokers={"main": broker})

    async with process() as w:
        await eventually(lambda: len(shown(w.route).led) == PARTITIONS)
    publish(broker, KEYS)
    async with another_link(broker):
        await eventually(lambda: len(broker.messages("ORDERS-router")) == KEYS)
        copied = Counter(message.subject.split(".")[0] for message in broker.messages("ORDERS-router"))
        for number, count in copied.items():
            broker.trouble.edit_consumer("ORDERS-router", f"router-{number}", max_deliver=1)
            broker.trouble.take_by_hand("ORDERS-router", f"router-{number}", count, ack=False)
        await trio.sleep(60)
    async with process() as one, process() as other:
        await eventually(lambda: one.route.dead_lettered + other.route.dead_lettered == KEYS, 120)
        letters = broker.messages("DEAD")
        assert sorted(int(letter.payload) for letter in letters) == list(range(KEYS))
        assert {letter.headers["Router-Dead-Letter-Subject"] for letter in letters} == {
            f"orders.{number}.{number % 3}" for number in range(KEYS)
        }
        publish(broker, KEYS)
        await eventually(lambda: len(broker.messages("OUT")) == KEYS)
        await trio.sleep(60)
        assert len(broker.messages("DEAD")) == KEYS
        for w in (one, other):
            received, in_hand, fates = w.route_ledger()
            assert in_hand == 0
            assert received == sum(fates.values())
