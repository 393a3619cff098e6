"""The ledger of a route from a stream: received = in hand + settled, at each step, and each delivery has one fate."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.stream.acks import Acks
from tests.support.drawn import examples
from tests.support.eventually import eventually
from tests.support.world import (
    World,
    fill,
    handled,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

FROM: dict[str, Any] = {"stream": "IN", "durable": "router", "retry": {"initial": "100ms"}}


async def until(w: World, received: int, in_hand: int, **settled: int) -> None:
    await eventually(lambda: w.route_ledger() == (received, in_hand, settled), 60, w.route_ledger)


async def test_a_message_that_a_destination_has_not_confirmed_is_in_hand(autojump_clock: MockClock) -> None:
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main")
    async with world([route], brokers=two_brokers()) as w:
        fill(w.broker, 3)
        await until(w, 3, 0, routed=3)
        await w.lose("edge")
        fill(w.broker, 5)
        await until(w, 8, 5, routed=3)
        await trio.sleep(30)
        await until(w, 8, 5, routed=3)
        await w.find("edge")
        await until(w, 8, 0, routed=8)


async def test_a_failed_message_is_returned_and_its_redelivery_counts_again(autojump_clock: MockClock) -> None:
    left = 3

    def fail(message: Message) -> Message | None:
        nonlocal left
        if message.payload == b"1" and left:
            left -= 1
            raise ValueError("not yet")
        return message if message.payload != b"2" else None

    async with world(handlers=[handled(fail, to=to("out.x", jetstream=True), **FROM)], brokers=one_broker()) as w:
        fill(w.broker, 4)
        await until(w, 7, 0, routed=3, returned=3, filtered=1)
        assert w.route.filtered == {"handler": 1}
        assert w.route.failed == {"handler_error": 3}


async def test_a_refused_message_is_returned_and_those_behind_it_stay_in_hand(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.x", filter="in.*", retry={"initial": "10s"})], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 1)
        await until(w, 1, 0, returned=1)
        fill(w.broker, 2, first=1)
        await until(w, 3, 2, returned=1)
        w.broker.allow_publish("out.x")
        await until(w, 4, 0, routed=3, returned=1)


async def test_a_message_that_is_given_up_was_returned_at_each_earlier_attempt(autojump_clock: MockClock) -> None:
    def fail(message: Message) -> Message:
        if message.payload in (b"1", b"3"):
            raise ValueError("never")
        return message

    handler = handled(fail, to=to("out.x", jetstream=True), **FROM | {"retry": {"attempts": 3, "initial": "100ms"}})
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await until(w, 9, 0, routed=3, returned=4, given_up=2)
        await trio.sleep(300)
        await until(w, 9, 0, routed=3, returned=4, given_up=2)
        assert w.route.fates["given_up"] == 2


async def test_a_delivery_repeated_while_in_hand_or_settled_is_a_duplicate(autojump_clock: MockClock) -> None:
    gate = trio.Event()

    async def hold(message: Message) -> Message:
        await gate.wait()
        return message

    handler = handled(hold, to=to("core", "edge"), connection="main", ack_wait="5s", **FROM)
    async with world(handlers=[handler], brokers=two_brokers()) as w:
        fill(w.broker, 3)
        await until(w, 3, 3)
        await w.lose("main")
        await trio.sleep(20)
        await w.find("main")
        await until(w, 6, 3, duplicate=3)
        assert w.successes("ack") == 0, "the messages may still fail"
        gate.set()
        await until(w, 6, 0, routed=3, duplicate=3)
        w.broker.blackhole()
        await trio.sleep(1)
        w.broker.cut()
        w.broker.up()
        fill(w.broker, 1)
        await eventually(lambda: w.route_ledger()[2]["routed"] == 4)


async def test_a_message_that_its_destination_has_deduplicated_is_a_duplicate(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    broker.add_stream("OTHER", ["other.*"], duplicate_window=1.0)
    route = stream("OTHER", "out.x", message_id="sender")
    async with world([route], brokers={"main": broker}) as w:
        for number in range(4):
            broker.publish("other.x", b"%d" % number, {"Nats-Msg-Id": "id"})
            await trio.sleep(2.0)
        await until(w, 4, 0, routed=1, duplicate=3)
        assert w.route.failed == {"duplicate": 3}


async def test_a_message_refused_by_one_of_two_destinations_is_returned(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    destinations = to("out.x", "edge", jetstream=True), to("core")
    async with world([stream("IN", *destinations, connection="main", retry={"initial": "10s"})], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.x")
        fill(w.broker, 1)
        await until(w, 1, 0, returned=1)
        brokers["edge"].allow_publish("out.x")
        await until(w, 2, 0, routed=1, returned=1)
        assert w.route.routed == {"out.x": 1, "core": 1}


async def test_messages_not_routed_at_the_shutdown_are_returned(autojump_clock: MockClock) -> None:
    async def never(message: Message) -> Message:
        if message.payload != b"0":
            await trio.sleep_forever()
        return message

    handler = handled(never, to=to("out.x", jetstream=True), **FROM)
    async with world(handlers=[handler], brokers=one_broker(), shutdown_timeout=1.0) as w:
        fill(w.broker, 4)
        await until(w, 4, 3, routed=1)
    assert w.route_ledger() == (4, 0, {"routed": 1, "returned": 3})


async def test_an_answer_returned_after_the_shutdown_changes_no_fate(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return message

    handler = handled(slow, to=to("out.x", jetstream=True), **FROM)
    async with world(handlers=[handler], brokers=one_broker(), shutdown_timeout=1.0) as w:
        fill(w.broker, 3)
        await until(w, 3, 3)
    assert w.route_ledger() == (3, 0, {"returned": 3})


async def test_messages_that_an_outbox_has_not_sent_at_the_shutdown_are_returned(autojump_clock: MockClock) -> None:
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main")
    brokers = two_brokers()
    async with world([route], brokers=brokers, shutdown_timeout=1.0) as w:
        brokers["edge"].blackhole()
        fill(w.broker, 4)
        await until(w, 4, 4)
    assert w.route_ledger() == (4, 0, {"returned": 4})


async def test_messages_behind_a_refused_one_at_the_shutdown_are_returned(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.x", filter="in.*", retry={"initial": "60s"})], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 1)
        await until(w, 1, 0, returned=1)
        fill(w.broker, 2, first=1)
        await until(w, 3, 2, returned=1)
    assert w.route_ledger() == (3, 0, {"returned": 3})


async def test_messages_in_hand_of_a_recreated_stream_are_routed_or_lost(autojump_clock: MockClock) -> None:
    """They are routed to the end, and those that fail are lost: there is no stream to return them to."""
    brokers = two_brokers()
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main", retry={"initial": "100ms"})
    async with world([route], brokers=brokers) as w:
        await w.lose("edge")
        fill(w.broker, 3)
        await until(w, 3, 3)
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        fill(w.broker, 2, first=3)
        await w.find("edge")
        await eventually(lambda: w.route_ledger() == (5, 0, {"routed": 5}), 300, w.route_ledger)


async def test_messages_in_hand_of_an_earlier_stream_at_the_shutdown_are_lost(autojump_clock: MockClock) -> None:
    async def never(message: Message) -> Message:
        await trio.sleep_forever()
        raise AssertionError

    handler = handled(never, to=to("out.x", jetstream=True), **FROM)
    async with world(handlers=[handler], brokers=one_broker(), shutdown_timeout=1.0) as w:
        fill(w.broker, 3)
        await until(w, 3, 3)
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        fill(w.broker, 2)
        await until(w, 5, 5)
    assert w.route_ledger() == (5, 0, {"lost": 3, "returned": 2})


DRAWN = st.lists(st.sampled_from(["good", "filtered", "once", "never"]), max_size=12)


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(kinds=DRAWN, most=st.integers(1, 3), blocks=st.booleans())
def test_the_ledger_adds_up_for_a_mixture_of_good_and_failing_messages(
    kinds: list[str], most: int, blocks: bool
) -> None:
    """Each failed attempt has its own fate: `returned`, and `given_up` for the last one."""
    tried: set[bytes] = set()

    async def mixed(message: Message) -> Message | None:
        kind = kinds[int(message.payload)]
        if blocks:
            await trio.sleep(0.01)
        first = message.payload not in tried
        tried.add(message.payload)
        if kind == "never" or (kind == "once" and first):
            raise ValueError(kind)
        return None if kind == "filtered" else message

    async def run() -> None:
        handler = handled(
            mixed,
            to=[to("out.x", jetstream=True), to("core")],
            **FROM | {"retry": {"attempts": most, "initial": "100ms"}},
        )
        async with world(handlers=[handler], brokers=one_broker()) as w:
            fill(w.broker, len(kinds))
            once, never = kinds.count("once"), kinds.count("never")
            expected = {
                "routed": kinds.count("good") + (once if most > 1 else 0),
                "filtered": kinds.count("filtered"),
                "returned": never * (most - 1) + (once if most > 1 else 0),
                "given_up": never + (once if most == 1 else 0),
            }
            expected = {fate: count for fate, count in expected.items() if count}
            await until(w, sum(expected.values()), 0, **expected)
            assert unacked(w) == 0

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_the_ledger_adds_up_at_each_answer_to_the_server(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker copies its counts before bytes leave, and the rest of a reload is added up once nothing is in hand."""
    sent: list[str] = []

    def look_before(answer: str) -> None:
        send = getattr(Acks, answer)

        def look(acks: Acks, *what: Any) -> None:
            received, in_hand, settled = w.route_ledger()
            assert received == in_hand + sum(settled.values()), answer
            sent.append(answer)
            send(acks, *what)

        monkeypatch.setattr(Acks, answer, look)

    def fail(message: Message) -> Message:
        if message.payload != b"0":
            raise ValueError("no")
        return message

    for answer in ("ack", "nak", "term"):
        look_before(answer)
    dead = {"dead_letter": {"subject": "out.dead"}, "retry": {"initial": "100ms", "attempts": 2}}
    brokers = one_broker()
    async with world(handlers=[handled(fail, to=to("out.x", jetstream=True), **FROM | dead)], brokers=brokers) as w:
        fill(w.broker, 2)
        await until(w, 3, 0, routed=1, returned=1, dead_lettered=1)
        again = w.broker.messages("OUT")
        w.broker.trouble.lose("ack", 1)
        fill(w.broker, 1)
        await until(w, 5, 0, routed=2, returned=1, dead_lettered=1, duplicate=1)
        assert {*sent} == {"ack", "nak", "term"}
        assert len(w.broker.messages("OUT")) == len(again) + 1
