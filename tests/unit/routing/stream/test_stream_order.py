"""Order per subject behind what a destination refused: what waits, for how long, and what goes on meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import SourceError
from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.stream import undelivered as module
from router_trio.states import PAUSED, RUNNING
from router_trio.testing import FakeBroker
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.world import (
    World,
    all_acked,
    another_link,
    eventually,
    handled,
    numbers,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)


def route(**source: Any) -> dict[str, Any]:
    """From `in.*` to the stream `OUT`."""
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", **source)


def remote(**source: Any) -> dict[str, Any]:
    """The same, to the stream of another connection."""
    to_edge = to("out.{{wildcard(1)}}", "edge", jetstream=True)
    return stream("IN", to_edge, connection="main", filter="in.*", **source)


def fill(broker: FakeBroker, subjects: str, count: int, *, first: int = 0) -> None:
    """Publish consecutive numbers, each to all of these subjects in turn."""
    for number in range(first, first + count):
        for subject in subjects:
            broker.publish(f"in.{subject}", b"%d" % number)


def arrived(w: World, subject: str, connection: str = "main") -> list[bytes]:
    """What the stream `OUT` holds of this subject, in order."""
    return [message.payload for message in w.brokers[connection].messages("OUT") if message.subject == f"out.{subject}"]


async def deaf_durable(broker: FakeBroker, max_ack_pending: int) -> None:
    """A durable that somebody made beforehand, with limits of its own."""
    async with another_link(broker) as link:
        spec = ConsumerSpec("IN", "router", "in.*", 30.0, -1, max_ack_pending)
        (await link.open_consumer(spec, lambda _: None)).close()


async def test_what_is_behind_a_refused_message_waits_and_other_subjects_go_on(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        fill(w.broker, "ab", 3)
        await all_acked(w, 6)
        w.broker.deny_publish("out.a")
        fill(w.broker, "ab", 50, first=3)
        await eventually(lambda: len(arrived(w, "b")) == 53)
        await trio.sleep(20)
        fill(w.broker, "ab", 50, first=53)
        await eventually(lambda: len(arrived(w, "b")) == 103)
        assert arrived(w, "a") == numbers(3)
        assert w.route.state == RUNNING
        assert w.route.reason is not None
        assert "wait" in w.route.reason
        w.broker.allow_publish("out.a")
        await all_acked(w, 206)
        assert arrived(w, "a") == arrived(w, "b") == numbers(103)
        assert w.route.duplicates == 0, "what waits is announced as in progress"
        await eventually(lambda: w.route.reason is None)


async def test_when_nothing_waits_any_more_the_route_says_so_at_once(autojump_clock: MockClock) -> None:
    """Though there is nothing more to ask for."""
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 1)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        fill(w.broker, "a", 1, first=1)
        await eventually(lambda: w.route.reason is not None)
        w.broker.allow_publish("out.a")
        await all_acked(w, 2)
        await eventually(lambda: w.route.reason is None, within=0.1)


async def test_while_a_destination_refuses_one_message_of_a_subject_is_tried_at_a_time(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(nak_delay="1s")], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 100)
        await eventually(lambda: w.route.failed["permission_denied"] == 100)
        await trio.sleep(100)
        # 1, 2, 4 ... 32 and 60 seconds later.
        assert 5 <= w.route.failed["permission_denied"] - 100 <= 7
        w.broker.allow_publish("out.a")
        await all_acked(w, 100)
        assert arrived(w, "a") == numbers(100)


@pytest.mark.parametrize("max_ack_pending", [4, 1000])
@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
async def test_what_waits_never_uses_up_the_room_of_what_has_to_come_again(
    autojump_clock: MockClock, max_in_flight: int, max_ack_pending: int
) -> None:
    brokers = one_broker()
    await deaf_durable(brokers["main"], max_ack_pending)
    async with world([route(max_in_flight=max_in_flight)], brokers=brokers) as w:
        for subject in "abc":
            w.broker.deny_publish(f"out.{subject}")
        fill(w.broker, "abc", 20)
        await eventually(lambda: w.route.state == PAUSED)
        await trio.sleep(300)
        assert unacked(w) <= 2 * max_in_flight + 1
        w.broker.allow_publish("out.b")
        w.broker.allow_publish("out.a")
        await trio.sleep(300)
        w.broker.allow_publish("out.c")
        await all_acked(w, 60)
        assert arrived(w, "a") == arrived(w, "b") == arrived(w, "c") == numbers(20)
        assert w.route.state == RUNNING


async def test_a_subject_that_is_given_up_waits_for_nobody(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route(max_deliver=3, max_in_flight=4)], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "ab", 10)
        await eventually(lambda: len(arrived(w, "b")) == 10 and w.route.dead_lettered >= 5, 300)
        w.broker.allow_publish("out.a")
        await eventually(lambda: len(arrived(w, "a")) + w.route.dead_lettered == 10, 300)
        given_up = w.route.dead_lettered
        assert arrived(w, "a") == numbers(10 - given_up, first=given_up)
        assert [event.sequence for event in w.watch.of("ROUTE_MESSAGE_DEAD_LETTERED")] == [
            2 * number + 1 for number in range(given_up)
        ]


async def test_one_that_fails_for_what_it_is_holds_up_nobody(autojump_clock: MockClock) -> None:
    broker = FakeBroker(max_payload=1000)
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])

    def grow(message: Message) -> Message:
        return message.replace(payload=b"x" * 2000) if message.payload == b"3" else message

    handler = handled(grow, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight=4)
    async with world(handlers=[handler], brokers={"main": broker}) as w:
        fill(w.broker, "x", 20)
        await eventually(lambda: w.successes("ack") == 19)
        assert arrived(w, "x") == [payload for payload in numbers(20) if payload != b"3"]
        assert set(w.route.failed) == {"too_large"}
        assert w.route.reason is None


async def test_what_is_refused_somewhere_waits_though_it_also_fails_for_what_it_is(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    copy = to("copy.{{split(1,-)}}", jetstream=True)
    both = stream("IN", copy, to("out.x", "edge", jetstream=True), connection="main", filter="in.*", max_deliver=3)
    async with world([both], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.x")
        w.broker.publish("in.--", b"0")  # maps to no subject
        await eventually(lambda: w.route.failed["mapping"] == 1)
        brokers["edge"].allow_publish("out.x")
        w.broker.publish("in.--", b"1")
        await eventually(lambda: w.route.dead_lettered == 2)
        assert arrived(w, "x", "edge") == [b"0", b"1"]


async def test_what_one_destination_refuses_holds_up_the_rest_before_another_has_answered(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    copy = to("copy.{{wildcard(1)}}", jetstream=True)
    both = stream("IN", copy, to("out.{{wildcard(1)}}", "edge", jetstream=True), connection="main", filter="in.*")
    async with world([both], brokers=brokers) as w:
        brokers["edge"].stall(3.0)
        w.broker.deny_publish("copy.a")
        fill(w.broker, "a", 1)
        await eventually(lambda: w.failures("publish_with_ack") == {"permission_denied": 1})
        assert not w.route.failed, "edge has not answered"
        w.broker.allow_publish("copy.a")
        fill(w.broker, "a", 5, first=1)
        await all_acked(w, 6)
        assert w.payloads("COPY") == arrived(w, "a", "edge") == numbers(6)


async def test_what_is_let_go_while_a_handler_works_is_neither_lost_nor_routed_twice(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    calls: list[tuple[str, bytes]] = []

    async def work(message: Message) -> Message:
        calls.append((message.subject, message.payload))
        await trio.sleep(0.3)
        return message.replace(subject=f"out.{message.subject[-1]}")

    destination = to("out.x", jetstream=True)
    handler = handled(work, to=destination, stream="IN", durable="router", filter="in.*", nak_delay="1s")
    async with world(handlers=[handler], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "ab", 10)
        await eventually(lambda: len(arrived(w, "b")) == 5, 60)
        w.broker.allow_publish("out.a")
        await all_acked(w, 20)
        assert arrived(w, "a") == arrived(w, "b") == numbers(10)
        assert len(calls) == 20 + sum(w.route.failed.values())


async def test_what_was_given_up_in_a_long_outage_of_a_stream_comes_before_what_is_behind_it(
    autojump_clock: MockClock,
) -> None:
    """Longer than a publish is tried: its failure must not be the chance of those that were tried later."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    async with world([route(max_in_flight=100)], brokers={"main": broker}) as w:
        for number in range(40):
            fill(broker, "ab", 1, first=number)
            await trio.sleep(1)
        assert w.failures("publish_with_ack")["out_of_turn"] > 0
        assert w.route.failed == {"no_responders": w.successes("nak")}, "what is taken back waits in hand"
        broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: len(w.payloads("OUT")) == 80, 120)
        assert arrived(w, "a") == arrived(w, "b") == numbers(40)
        await eventually(lambda: unacked(w) == 0)


async def test_what_is_sent_behind_a_refused_message_is_taken_back_when_the_link_is_lost(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()

    def choose(message: Message) -> Message:
        return message.replace(subject="out.a" if message.payload in numbers(2) else "missing.a")

    destination = to("out.x", "edge", jetstream=True)
    source = {"stream": "IN", "durable": "router", "connection": "main", "filter": "in.*"}
    async with world(handlers=[handled(choose, to=destination, **source)], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, "a", 6)
        await eventually(lambda: w.route.failed["permission_denied"] == 2)
        assert w.entry("edge")["settled"] == {"failed": 2}, "the others wait for a stream that takes them"
        await w.lose("edge")
        await eventually(lambda: w.failures("publish_with_ack", "edge").get("out_of_turn") == 4)
        assert w.route.failed == {"permission_denied": 2}
        brokers["edge"].allow_publish("out.a")
        brokers["edge"].add_stream("MISSING", ["missing.>"])
        await w.find("edge")
        await all_acked(w, 6)
        assert [message.payload for message in brokers["edge"].published[-6:]] == numbers(6)


# --- when it does not come again -------------------------------------------------------------------------------------


async def test_what_a_handler_works_on_is_not_sent_if_a_message_before_it_is_refused_meanwhile(
    autojump_clock: MockClock,
) -> None:
    go_on, worked_on = trio.Event(), list[bytes]()

    async def work(message: Message) -> Message:
        worked_on.append(message.payload)
        if message.payload == b"1":
            await go_on.wait()
        return message

    destination = to("out.{{wildcard(1)}}", jetstream=True)
    handler = handled(work, to=destination, stream="IN", durable="router", filter="in.*")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 3)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        go_on.set()
        await all_acked(w, 3)
        assert arrived(w, "a") == numbers(3)
        assert worked_on == [b"0", b"1", b"0", b"1", b"2"]


async def test_a_refused_message_that_somebody_else_has_acked_is_waited_for_only_so_long(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(ack_wait="10s", max_in_flight=4)], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 1)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        w.broker._server.consumers["IN", "router"].ack(1)
        began = trio.current_time()
        fill(w.broker, "a", 20, first=1)
        await eventually(lambda: len(arrived(w, "a")) == 20, 60)
        assert 10 <= trio.current_time() - began <= 22
        assert arrived(w, "a") == numbers(20, first=1)
        await eventually(lambda: w.route.state == RUNNING)


async def test_a_refused_message_that_comes_behind_others_has_room_as_soon_as_it_is_due(
    autojump_clock: MockClock,
) -> None:
    """The others fill the hand, and the server has one more of them that is due before it."""
    raised: set[bytes] = set()

    async def work(message: Message) -> Message:
        if message.payload not in raised:
            raised.add(message.payload)
            raise ValueError("the first time only")
        return message

    source = {"stream": "IN", "durable": "router", "filter": "in.*", "max_in_flight": 2, "nak_delay": "1s"}
    handler = handled(work, to=to("out.{{wildcard(1)}}", jetstream=True), ack_wait="30s", **source)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 6)
        await eventually(lambda: w.route.failed["permission_denied"] == 1, 10)
        w.broker.allow_publish("out.a")
        began = trio.current_time()
        await all_acked(w, 6)
        assert trio.current_time() - began < 15
        assert arrived(w, "a") == numbers(6)


async def test_a_refused_message_that_the_stream_still_has_is_waited_for_however_long_it_takes(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(ack_wait="1s", nak_delay="10s")], brokers=brokers) as w:
        await _one_is_awaited(w)
        w.broker.trouble.pause_consumer("IN", "router", 600)
        await trio.sleep(500)
        assert arrived(w, "a") == []
        assert "is paused on the server" in str(w.route.reason)
        await all_acked(w, 20)
        assert arrived(w, "a") == numbers(20)


async def test_while_the_stream_can_not_be_asked_what_is_late_is_waited_for_and_the_route_says_so(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(consumer: FakePullConsumer, awaited: Mapping[int, bytes], in_hand: int) -> Collection[int]:
        asked.append((list(awaited), in_hand))
        raise SourceError("no answer", reason="timeout")

    asked: list[tuple[list[int], int]] = []
    brokers = one_broker()
    async with world([route(ack_wait="10s", nak_delay="10s")], brokers=brokers) as w:
        await _one_is_awaited(w)
        w.broker._server.consumers["IN", "router"].ack(1)
        with monkeypatch.context() as patch:
            patch.setattr(FakePullConsumer, "gone", ask)
            await eventually(lambda: asked, 60)
            await eventually(lambda: "can't be found out: no answer" in (w.route.reason or ""), 0.1)
            await trio.sleep(200)
        assert asked == [([1], 19)] * 20, "every 10.1 s"
        assert arrived(w, "a") == []
        await all_acked(w, 19)
        assert arrived(w, "a") == numbers(19, first=1)
        await eventually(lambda: w.route.reason is None)


async def _one_is_awaited(w: World) -> None:
    """The first of twenty messages was refused, and the others wait for it."""
    w.broker.deny_publish("out.a")
    fill(w.broker, "a", 1)
    await eventually(lambda: w.route.failed["permission_denied"] == 1)
    w.broker.allow_publish("out.a")
    fill(w.broker, "a", 19, first=1)
    await eventually(lambda: w.route.received == 20)


async def test_a_pause_does_not_count_as_waiting(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([remote(ack_wait="1s", max_in_flight=2)], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, "a", 20)
        await eventually(lambda: w.route.failed["permission_denied"] >= 2)
        await w.lose("edge")
        await trio.sleep(100)
        brokers["edge"].allow_publish("out.a")
        await w.find("edge")
        await all_acked(w, 20)
        assert arrived(w, "a", "edge") == numbers(20)


async def test_where_others_take_from_the_durable_too_nobody_waits(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w, another_link(w.broker) as other:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 10)
        await eventually(lambda: w.route.failed["permission_denied"] == 10)
        fill(w.broker, "a", 1, first=10)
        await eventually(lambda: w.route.received == 11)
        assert w.route.failed["permission_denied"] == 10, "as yet nobody else was seen: it waits"
        taken: list[RawMessage] = []
        consumer = await other.open_consumer(ConsumerSpec("IN", "router", "in.*", 30.0, -1, 2048), taken.extend)
        w.broker._server.consumers["IN", "router"]._requests.rotate(-1)
        consumer.pull(1, 30.0)
        w.broker._server.consumers["IN", "router"]._requests.rotate(1)
        fill(w.broker, "b", 2)
        await eventually(lambda: len(taken) == 1 and len(arrived(w, "b")) == 1)
        failed = w.route.failed["permission_denied"]
        fill(w.broker, "a", 1, first=11)
        await eventually(lambda: w.route.failed["permission_denied"] >= failed + 1, 0.1)


# --- links, consumers and streams that come and go -------------------------------------------------------------------


async def test_a_nak_that_met_no_link_is_said_again_on_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([remote()], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        brokers["edge"].stall(1.0)
        fill(w.broker, "a", 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        await w.lose("main")
        await eventually(lambda: w.route.failed["permission_denied"] == 5)
        assert w.failures("nak") == {"not_connected": 5}
        brokers["edge"].allow_publish("out.a")
        await w.find("main")
        began = trio.current_time()
        fill(w.broker, "a", 5, first=5)
        await all_acked(w, 10)
        assert trio.current_time() - began < 5, "far less than the ack wait"
        assert arrived(w, "a", "edge") == numbers(10)


@pytest.mark.parametrize(("max_in_flight", "within"), [(1024, 5), (2, 65)])
async def test_a_consumer_made_again_brings_what_is_awaited_first(
    autojump_clock: MockClock, max_in_flight: int, within: float
) -> None:
    """With little room the loss is noticed when something is asked for again."""
    brokers = one_broker()
    async with world([route(nak_delay="60s", max_in_flight=max_in_flight)], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 10)
        await eventually(lambda: w.route.failed["permission_denied"] == min(max_in_flight, 10))
        w.broker.allow_publish("out.a")
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, "a", 10, first=10)
        await eventually(lambda: len(arrived(w, "a")) == 20, within)
        assert arrived(w, "a") == numbers(20)
        await eventually(lambda: unacked(w) == 0)


async def test_what_waits_is_routed_when_its_stream_is_another_one(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 1)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        fill(w.broker, "a", 3, first=1)
        await eventually(lambda: w.route.received == 4)
        w.broker.allow_publish("out.a")
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        await eventually(lambda: len(arrived(w, "a")) == 3)
        fill(w.broker, "a", 2, first=10)
        await all_acked(w, 2)
        assert arrived(w, "a") == [*numbers(3, first=1), b"10", b"11"]


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_at_the_end_what_waits_for_what_does_not_come_is_given_back_at_once(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route(nak_delay="60s")], brokers=brokers, shutdown_timeout=20) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, "a", 5)
        await eventually(lambda: w.route.failed["permission_denied"] == 5)
        fill(w.broker, "a", 5, first=5)
        await eventually(lambda: w.route.received == 10)
        began = trio.current_time()
    assert trio.current_time() - began < 2
    assert w.live.unsettled == 0
    assert w.successes("nak") == 10
    brokers["main"].allow_publish("out.a")
    began = trio.current_time()
    async with world([route()], brokers=brokers) as w:
        await eventually(lambda: len(arrived(w, "a")) == 10)
        assert trio.current_time() - began < 2
        assert arrived(w, "a") == numbers(10)
        await eventually(lambda: unacked(w) == 0)


@pytest.mark.parametrize("allowed", [False, True])
async def test_at_the_end_what_waits_for_one_in_hand_waits_for_its_fate(
    autojump_clock: MockClock, allowed: bool
) -> None:
    brokers = two_brokers()
    async with world([remote()], brokers=brokers, shutdown_timeout=20) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, "a", 5)
        await eventually(lambda: w.route.failed["permission_denied"] == 5)
        if allowed:
            brokers["edge"].allow_publish("out.a")
        brokers["edge"].stall(4.0)
        await eventually(lambda: w.route.received == 10)
        began = trio.current_time()
    assert 1 < trio.current_time() - began < 5
    assert w.live.unsettled == 0
    assert arrived(w, "a", "edge") == (numbers(5) if allowed else [])
    assert w.successes("ack") == (5 if allowed else 0)
    assert module.OVERDUE < 1


async def test_a_refused_message_whose_nak_is_lost_still_comes_when_its_room_was_taken(
    autojump_clock: MockClock,
) -> None:
    """It is asked for from when it was to come; what the server has instead until its ack wait ends takes all room."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    async with world([route(max_in_flight=2, ack_wait="5s", nak_delay="50ms")], brokers={"main": broker}) as w:
        broker.deny_publish("out.a")
        broker.trouble.lose("nak")
        fill(broker, "a", 1)
        await eventually(lambda: sum(w.route.failed.values()) == 1)
        broker.allow_publish("out.a")
        for number in range(1, 10):
            fill(broker, "a", 1, first=number)
            await trio.sleep(0.2)
        await eventually(lambda: arrived(w, "a") == numbers(10), 60)
        await eventually(lambda: unacked(w) == 0)
