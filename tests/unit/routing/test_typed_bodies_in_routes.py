"""Routes whose handlers take JSON bodies and return values, on a fake broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from pydantic import BaseModel
from trio.testing import MockClock

from router_trio import Message
from router_trio.protocol.framing import header_block, payload
from router_trio.protocol.headers import decode
from tests.support.eventually import eventually
from tests.support.world import handled, overhearing, to, world
from tests.unit.routing.stream.giving_up import FROM, NAME, brokers, dead


class Order(BaseModel):
    id: int
    total: float


class Priced(BaseModel):
    id: int
    cents: int


def price(order: Order) -> Priced | None:
    return None if order.total == 0 else Priced(id=order.id, cents=round(order.total * 100))


async def price_later(order: Order) -> Priced | None:
    await trio.sleep(0.01)
    return price(order)


BODIES = [b'{"id": 1, "total": 1.5}', b'{"id": 2, "total": "s3cr3t"}', b"no JSON", b'{"id": 3, "total": 0}']
TOTAL = "$.total: Input should be a valid number, unable to parse string as a number"


@pytest.mark.parametrize(
    ("handler", "more"),
    [(price, {}), (price, {"thread": True}), (price_later, {}), (price_later, {"concurrency": 4})],
)
async def test_values_are_routed_and_bodies_that_do_not_fit_become_dead_letters(
    autojump_clock: MockClock, handler: Callable[..., Any], more: dict[str, Any]
) -> None:
    keys = {**FROM, **more, "retry": {"not": ["invalid_body"]}}
    async with world(handlers=[handled(handler, to=to("out.x", jetstream=True), **keys)], brokers=brokers()) as w:
        for body in BODIES:
            w.broker.publish("in.x", body)
        await eventually(lambda: sum(w.route.settled.values()) == 4)
        assert w.payloads("OUT") == [b'{"id":1,"cents":150}']
        assert w.route_ledger() == (4, 0, {"routed": 1, "dead_lettered": 2, "filtered": 1})
        assert dict(w.route.failed) == {"invalid_body": 2}
        letters = sorted((one.payload, one.headers[f"{NAME}Detail"], one.headers[f"{NAME}Attempts"]) for one in dead(w))
        assert letters == [(BODIES[2], "the body is not JSON", "1"), (BODIES[1], TOTAL, "1")]
        assert {one.headers[f"{NAME}Reason"] for one in dead(w)} == {"invalid_body"}


async def test_a_body_that_does_not_fit_is_retried_by_default_and_holds_up_no_other_message(
    autojump_clock: MockClock,
) -> None:
    async with world(handlers=[handled(price, to=to("out.x", jetstream=True), **FROM)], brokers=brokers()) as w:
        w.broker.publish("in.x", BODIES[1])
        w.broker.publish("in.x", BODIES[0])
        await eventually(lambda: w.route.failed["invalid_body"] >= 3)
        assert w.payloads("OUT") == [b'{"id":1,"cents":150}']
        assert dead(w) == []


async def test_the_event_has_the_path_and_never_the_value(autojump_clock: MockClock) -> None:
    route = {"subject": "in.*", "to": to("out.x"), "retry": {"attempts": 1}}
    async with world(handlers=[handled(price, **route)]) as w:
        w.broker.publish("in.x", BODIES[1])
        await eventually(lambda: w.route.failed["invalid_body"] == 1)
        (event,) = w.watch.of("ROUTE_MESSAGE_FAILED")
        assert (event.reason, event.detail, event.error_type, event.traceback) == ("invalid_body", TOTAL, None, None)


async def test_a_generator_of_values_sends_each_of_them(autojump_clock: MockClock) -> None:
    def split(orders: list[Order]) -> Iterator[Order]:
        yield from orders

    async with world(handlers=[handled(split, subject="in.*", to=to("out.x"))]) as w:
        w.broker.publish("in.x", json.dumps([{"id": 1, "total": 1}, {"id": 2, "total": 2}]).encode())
        await eventually(lambda: len(w.broker.published) == 2)
        assert [one.payload for one in w.broker.published] == [b'{"id":1,"total":1.0}', b'{"id":2,"total":2.0}']


async def test_an_answer_that_does_not_fit_is_an_error_of_the_handler(autojump_clock: MockClock) -> None:
    def wrong(order: Order) -> Priced:
        return {"id": "s3cr3t"}  # type: ignore[return-value]

    async with world(
        handlers=[handled(wrong, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)], brokers=brokers()
    ) as w:
        w.broker.publish("in.x", BODIES[0])
        await eventually(lambda: w.route.dead_lettered == 1)
        (letter,) = dead(w)
        assert letter.headers[f"{NAME}Reason"] == "handler_error"
        assert (
            "the answer does not fit Priced: $.id: Input should be a valid integer" in letter.headers[f"{NAME}Detail"]
        )
        assert "s3cr3t" not in letter.headers[f"{NAME}Detail"]


async def test_a_request_with_a_body_that_does_not_fit_is_answered_with_the_path(autojump_clock: MockClock) -> None:
    route = handled(price, subject="calls.*", to=[], respond=True)
    async with world(handlers=[route]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        w.broker.publish("calls.x", BODIES[0], reply="_INBOX.asker.1")
        w.broker.publish("calls.x", BODIES[1], reply="_INBOX.asker.2")
        await eventually(lambda: len(heard) == 2)
        assert payload(heard[0]) == b'{"id":1,"cents":150}'
        assert dict(decode(header_block(heard[1])))["Nats-Service-Error"] == f"invalid_body: {TOTAL}"


async def test_a_message_may_be_returned_in_place_of_a_value(autojump_clock: MockClock) -> None:
    def decide(body: dict[str, int]) -> Message | dict[str, int]:
        return Message("out.own", b"x") if body else body

    async with world(handlers=[handled(decide, subject="in.*", to=to("out.x"))]) as w:
        w.broker.publish("in.x", b'{"a": 1}')
        w.broker.publish("in.x", b"{}")
        await eventually(lambda: len(w.broker.published) == 2)
        assert [(one.subject, one.payload) for one in w.broker.published] == [("out.own", b"x"), ("out.x", b"{}")]
