"""The end of a route from a stream, and what other clients publish to its inbox."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Keeper, delivery_of
from router_trio.routing.stream.source import StreamSource
from router_trio.states import RouteState
from router_trio.testing.frames import raw
from tests.support.eventually import eventually
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
    fill,
    handled,
    hear,
    numbers,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

# --- the end ---------------------------------------------------------------------------------------------------------


async def test_messages_in_hand_at_the_end_are_settled_and_acked(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main", max_in_flight=32)
    async with world([route], brokers=brokers) as w:
        brokers["edge"].stall(2.0)
        fill(brokers["main"], 200)
        await eventually(lambda: w.route.received == 32)
    assert w.live.unsettled == 0
    done = w.route.routed["core"]
    assert done == w.route.received == w.successes("ack")
    assert unacked(w) == 0
    async with world([route], brokers=brokers) as w:
        await eventually(lambda: len(brokers["edge"].published) == 200)
        await eventually(lambda: unacked(w) == 0)
    assert [message.payload for message in brokers["edge"].published] == numbers(200)


@pytest.mark.parametrize("with_handler", [True, False])
async def test_messages_that_arrive_after_the_route_has_stopped_are_nak_ed(
    with_handler: bool, autojump_clock: MockClock
) -> None:
    """The link is silent until the shutdown timeout, when the last acks are in transit."""
    brokers = one_broker()
    routes = handled(lambda message: message, to="out.x", stream="IN", durable="router", filter="in.*")
    made: dict[str, Any] = {"handlers": [routes]} if with_handler else {"routes": [LOCAL]}
    async with world(**made, brokers=brokers, shutdown_timeout=1.0) as w:
        await trio.sleep(1.0)
        w.broker.stall(1.5)
        fill(w.broker, 3)
    assert w.route.in_hand == 0
    assert w.route.received == 0
    assert w.payloads("OUT") == []
    async with world([LOCAL], brokers=brokers) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(3), 1.0)


async def test_a_message_that_a_breaker_takes_back_after_the_end_is_returned(autojump_clock: MockClock) -> None:
    """It is written at the shutdown timeout, and its PubAck is late while the last naks are in transit."""
    brokers = two_brokers()
    for broker in brokers.values():
        broker.trouble.travel(lambda: 0.02)
    out = to("out.x", "edge", jetstream=True) | {"breaker": {"failures": 1, "pause": "1s"}}
    retry = {"initial": "100ms", "attempts": 3}
    route = stream("IN", out, connection="main", max_in_flight=5, ack_wait="2s", retry=retry)
    async with world([route], brokers=brokers, shutdown_timeout=10.53) as w:
        brokers["edge"].trouble.lose("puback", 1_000_000)
        fill(brokers["main"], 1)
        await trio.sleep(1.0)
        fill(brokers["main"], 1, first=1)
        await trio.sleep(0.37)
    assert w.route_ledger() == (2, 0, {"returned": 2})


async def test_messages_in_transit_at_the_end_are_routed_and_not_redelivered(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        brokers["main"].stall(1.0)
        fill(brokers["main"], 20)
        await trio.lowlevel.checkpoint()
    assert w.route.received == 20
    assert unacked(w) == 0
    assert [message.payload for message in brokers["edge"].published] == numbers(20)


async def test_a_handler_that_does_not_end_is_cancelled_and_its_message_is_redelivered(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    patient = True

    async def hang(message: Message) -> Message:
        if patient and message.payload == b"2":
            await trio.sleep_forever()
        return message

    def handler() -> Any:
        return handled(hang, to=to("out.x", jetstream=True), stream="IN", durable="router")

    fill(brokers["main"], 5)
    async with world(handlers=[handler()], brokers=brokers, shutdown_timeout=3) as w:
        await eventually(lambda: w.successes("ack") == 2)
        began = trio.current_time()
    assert trio.current_time() - began <= 4.1
    assert w.live.unsettled == 0, "the stream still has the messages"
    assert dict(w.route.failed) == {}
    assert w.successes("nak") == 3
    assert w.entry()["accepted"] == 2
    patient = False
    began = trio.current_time()
    async with world(handlers=[handler()], brokers=brokers) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        assert trio.current_time() - began < 1.0, "returned, not left to the ack wait"
        await eventually(lambda: unacked(w) == 0)


async def test_a_message_in_a_handler_that_can_not_be_cancelled_is_returned_once(autojump_clock: MockClock) -> None:
    async def shielded(message: Message) -> Message:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        return message

    route = handled(shielded, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[route], brokers=one_broker(), shutdown_timeout=1) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.received == 3)
    assert w.successes("nak") == 3
    assert w.route_ledger() == (3, 0, {"returned": 3})


async def test_messages_waiting_for_a_destination_at_the_end_are_returned(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers, shutdown_timeout=2) as w:
        await w.lose("edge")
        fill(w.broker, 5)
        await eventually(lambda: w.route.received == 5)
    assert w.live.unsettled == 0
    assert w.entry("edge")["accepted"] == 0
    brokers["edge"].up()
    began = trio.current_time()
    async with world([REMOTE], brokers=brokers) as w:
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(5))
        assert trio.current_time() - began < 1.0


async def test_messages_in_handlers_when_the_end_is_cut_short_count_as_to_be_redelivered(
    autojump_clock: MockClock,
) -> None:
    async def wait(message: Message) -> Message:
        await trio.sleep(60)
        return message

    brokers = one_broker()
    made = handled(wait, to="out.x", stream="IN", durable="router", key="string(sequence)", concurrency=3)
    with trio.CancelScope() as cut_short:
        async with world(handlers=[made], brokers=brokers) as w:
            fill(brokers["main"], 8)
            await eventually(lambda: w.route.received == 8)
            cut_short.deadline = trio.current_time() + 0.5
    assert w.live.unsettled == 0
    (stopped,) = w.watch.of("ROUTER_STOPPED")
    assert stopped.redelivered == 8


@pytest.mark.parametrize("attempts", [0, 1])
async def test_messages_accepted_and_unconfirmed_at_the_end_are_redelivered(
    attempts: int, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    route = REMOTE | {"retry": {"attempts": attempts}}
    async with world([route], brokers=brokers, shutdown_timeout=2) as w:
        brokers["edge"].blackhole()
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
    assert w.live.unsettled == 0
    (stopped,) = w.watch.of("ROUTER_STOPPED")
    assert stopped.redelivered == 5
    assert w.entry("edge")["settled"] == {"dropped": 5}
    assert w.successes("ack") == 0
    assert w.route_ledger() == (5, 0, {"returned": 5})
    assert dict(w.route.failed) == {}, "a shutdown is no attempt"
    brokers["edge"].up()
    async with world([REMOTE], brokers=brokers) as w:
        await eventually(lambda: unacked(w) == 0, 120)
        assert w.payloads("OUT", "edge") == numbers(5)


@pytest.mark.parametrize("moment", [0.0, 0.0005, 0.3, 0.6, 1.5])
async def test_a_cancellation_at_any_moment_loses_nothing(autojump_clock: MockClock, moment: float) -> None:
    brokers = two_brokers()
    fill(brokers["main"], 40)

    async def work(message: Message) -> Message:
        await trio.sleep(0.05)
        return message.replace(subject="out.x")

    def handler() -> Any:
        destination = to("out.x", "edge", jetstream=True)
        return handled(work, to=destination, stream="IN", durable="router", connection="main")

    with trio.CancelScope() as scope:
        async with world(handlers=[handler()], brokers=brokers, shutdown_timeout=1) as w:
            brokers["edge"].stall(0.2)
            scope.deadline = trio.current_time() + moment
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert w.entry("edge")["accepted"] == sum(w.entry("edge")["settled"].values())
    brokers["edge"].up()
    async with world(handlers=[handler()], brokers=brokers) as w:
        await eventually(lambda: unacked(w) == 0 and len(w.payloads("OUT", "edge")) == 40, 120)
    assert sorted(map(int, w.payloads("OUT", "edge"))) == list(range(40))


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.x",
        "$JS.ACK.IN.router.1.x.1.1700000000000000000.0",
        "$JS.ACK.a.b.c.1.x.3.4.5",
        "elsewhere",
        None,
    ],
)
async def test_nothing_that_a_client_publishes_to_the_inbox_ends_the_router(
    autojump_clock: MockClock, reply: str | None
) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await all_acked(w, 1)
        inbox = w.live.connections["main"].inbox.decode()
        w.broker.publish(f"{inbox}-pull-1", b"x", reply=reply)
        fill(w.broker, 2)
        await all_acked(w, 3)
        assert len(w.payloads("OUT")) == 3
        assert b"x" not in w.payloads("OUT")


def test_a_malformed_delivery_has_no_misleading_origin() -> None:
    source = cast(Keeper, SimpleNamespace(state=RouteState("route", "main", ("out.x",)), copied=None))
    message = raw(b"in.x", b"$JS.ACK.IN.router.x.9.9.y.z", b"", b"")
    delivery = delivery_of(source, StreamCursor(), message, 0.0)
    assert delivery.deliveries == 0
    assert delivery.origin() == {"stream": "IN", "sequence": 9, "deliveries": 0, "timestamp": 0.0}


async def test_a_message_larger_than_the_limit_in_hand_is_delivered_alone(autojump_clock: MockClock) -> None:
    """It keeps its place in the order of the stream, and nothing else is in hand with it."""
    held: list[int] = []

    async def look(message: Message) -> Message:
        await trio.sleep(0.1)
        held.append(unacked(w))
        return message

    sizes = [10, 300_000, 10, 10, 150_000, 200_000, 10]
    handler = handled(look, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight_bytes="100KiB")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        for size in sizes:
            w.broker.publish("in.x", b"x" * size)
        await all_acked(w, len(sizes))
        assert [len(payload) for payload in w.payloads("OUT")] == sizes
        assert [count for count, size in zip(held, sizes, strict=True) if size > 100_000] == [1, 1, 1]
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0


async def test_a_lost_consumer_returns_the_bytes_it_has_borrowed(autojump_clock: MockClock) -> None:
    too_large = b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\n\r\n"
    async with world([LOCAL], brokers=one_broker()) as w:
        budget = w.live.connections["main"].pull_budget
        for _ in range(999):
            budget.join()
        await trio.sleep(40)  # earlier requests have expired
        await hear(w.broker, w.live.connections["main"].inbox + b"-pull-1", too_large)
        assert budget.lent > 0
        await trio.sleep(10)
        assert budget.lent == 0, "it is not kept for long if nothing arrives"
        await hear(w.broker, w.live.connections["main"].inbox + b"-pull-1", too_large)
        assert budget.lent > 0
        await w.lose()
        assert budget.lent == 0
        await w.find()
        w.broker.publish("in.x", b"x" * 40_000)
        await all_acked(w, 1)
        assert budget.lent == 0, "returned as soon as the message has arrived"


@pytest.mark.parametrize("more", [{}, {"concurrency": 2}], ids=["in order", "by key"])
async def test_messages_that_a_limit_holds_back_at_the_end_are_returned_at_once(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    async def drop(message: Message) -> None:
        await trio.sleep(1)

    limit = {"limit": {"rate": "1/h", "burst": 1, "per": "subject"}}
    source = {"stream": "IN", "durable": "router", "filter": "in.*"}
    async with world(handlers=[handled(drop, to=to("out.x"), **source, **limit, **more)], brokers=one_broker()) as w:
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route_ledger() == (1, 0, {"filtered": 1}))
        fill(w.broker, 1, subjects="b")
        await trio.sleep(0.5)
        fill(w.broker, 1, subjects="ba" if more else "a")
        await eventually(lambda: w.route.in_hand > 1)
        ended = trio.current_time()
    assert trio.current_time() - ended < 5
    assert w.route.settled["filtered"] == 2


async def test_the_end_does_not_wait_for_a_message_that_becomes_free_when_another_is_returned(
    autojump_clock: MockClock,
) -> None:
    """The older of two refused messages is redelivered last, while the other is tried and waits for the limit."""
    route = stream("IN", "out.$1", filter="in.*", retry={"initial": "1s"}, ack_wait="5s")
    route |= {"limit": {"rate": "1/h", "burst": 1, "per": "headers.key"}}
    async with world([route], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        w.broker.trouble.lose("nak")
        for key in ("1", "2"):
            w.broker.publish("in.a", key.encode(), headers={"key": key})
        await eventually(lambda: w.route.failed["permission_denied"] == 2)
        (source,) = [one for one in w.live.connections["main"]._sources if isinstance(one, StreamSource)]
        source.keeper.elsewhere([1])
        await eventually(lambda: (source.keeper.hand.limits.count, source.keeper.hand.held) == (1, 1))
        began = trio.current_time()
    assert trio.current_time() - began < 2
