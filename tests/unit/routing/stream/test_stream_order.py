"""Order per subject behind a message that a destination refused: what waits, and what continues meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import Retry
from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.states import PAUSED, RUNNING
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import (
    all_acked,
    another_link,
    fill,
    handled,
    numbers,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)
from tests.unit.routing.stream.refusing import arrived, route


async def deaf_durable(broker: FakeBroker, max_ack_pending: int) -> None:
    """Create a durable beforehand, with limits other than the route's."""
    async with another_link(broker) as link:
        spec = ConsumerSpec("IN", "router", ("in.*",), 30.0, -1, max_ack_pending)
        (await link.open_consumer(spec, lambda _: None)).close()


async def test_messages_behind_a_refused_one_wait_and_other_subjects_continue(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        fill(w.broker, 3, subjects="ab")
        await all_acked(w, 6)
        w.broker.deny_publish("out.a")
        fill(w.broker, 50, first=3, subjects="ab")
        await eventually(lambda: len(arrived(w, "b")) == 53)
        await trio.sleep(20)
        fill(w.broker, 50, first=53, subjects="ab")
        await eventually(lambda: len(arrived(w, "b")) == 103)
        assert arrived(w, "a") == numbers(3)
        assert w.route.state == RUNNING
        assert w.route.reason is not None
        assert "wait" in w.route.reason
        w.broker.allow_publish("out.a")
        await all_acked(w, 206)
        assert arrived(w, "a") == arrived(w, "b") == numbers(103)
        assert w.route.duplicates == 0, "waiting messages are announced as in progress"
        await eventually(lambda: w.route.reason is None)


async def test_a_route_reports_at_once_that_nothing_waits_any_more(autojump_clock: MockClock) -> None:
    """This holds though there is nothing more to request."""
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        fill(w.broker, 1, first=1, subjects="a")
        await eventually(lambda: w.route.reason is not None)
        w.broker.allow_publish("out.a")
        await all_acked(w, 2)
        await eventually(lambda: w.route.reason is None, within=0.1)


async def test_while_a_destination_refuses_one_message_of_a_subject_is_tried_at_a_time(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(retry={"initial": "1s"})], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 100, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 100)
        await trio.sleep(100)
        # After 1, 2, 4, 8 seconds, and then every 10.
        assert 10 <= w.route.failed["permission_denied"] - 100 <= 13
        w.broker.allow_publish("out.a")
        await all_acked(w, 100)
        assert arrived(w, "a") == numbers(100)


@pytest.mark.slow
@pytest.mark.parametrize("max_ack_pending", [4, 1000])
@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
async def test_waiting_messages_never_use_up_the_room_for_redeliveries(
    autojump_clock: MockClock, max_in_flight: int, max_ack_pending: int
) -> None:
    brokers = one_broker()
    await deaf_durable(brokers["main"], max_ack_pending)
    async with world([route(max_in_flight=max_in_flight)], brokers=brokers) as w:
        for subject in "abc":
            w.broker.deny_publish(f"out.{subject}")
        fill(w.broker, 20, subjects="abc")
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


async def test_messages_behind_one_that_is_given_up_do_not_wait_for_it(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route(retry={"not": ["permission_denied"]}, max_in_flight=4)], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 10, subjects="ab")
        await eventually(lambda: len(arrived(w, "b")) == 10 and w.route.fates["given_up"] >= 5, 300)
        w.broker.allow_publish("out.a")
        await eventually(lambda: len(arrived(w, "a")) + w.route.fates["given_up"] == 10, 300)
        given_up = w.route.fates["given_up"]
        assert arrived(w, "a") == numbers(10 - given_up, first=given_up)
        assert [event.sequence for event in w.watch.of("ROUTE_MESSAGE_GIVEN_UP")] == [
            2 * number + 1 for number in range(given_up)
        ]


async def test_messages_held_behind_one_that_is_given_up_are_sent_before_those_that_wait_for_the_limit(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    both = [to("got.{{wildcard(1)}}"), to("out.{{wildcard(1)}}", jetstream=True)]
    limited = stream("IN", *both, filter="in.*", retry={"not": ["limit"]}) | {"limit": {"rate": "20/s", "burst": 5}}
    async with world([limited], brokers=brokers) as w:
        w.broker.trouble.limit("OUT", 3)
        fill(w.broker, 30, subjects="a")
        await eventually(lambda: w.route.fates["given_up"] == 27, 60)
        got = [message.payload for message in w.broker.published if message.subject == "got.a"]
        assert list(dict.fromkeys(got)) == numbers(30)


@pytest.mark.parametrize(
    "limit", [{}, {"limit": {"rate": "100/s", "burst": 10, "per": "subject"}}], ids=["", "limited"]
)
async def test_a_message_in_a_handler_does_not_overtake_those_released_behind_one_that_was_given_up(
    autojump_clock: MockClock, limit: dict[str, Any]
) -> None:
    async def handler(message: Message) -> Message:
        if message.payload == b"2":
            await trio.sleep(1)
        return message

    both: Any = [to("got.x"), to("out.x", jetstream=True)]
    made = handled(handler, to=both, stream="IN", durable="router", retry={"not": ["limit"]}, **limit)
    async with world(handlers=[made], brokers=one_broker()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 5)
        await eventually(lambda: w.route.fates["given_up"] == 1, 0.5)
        w.broker.trouble.limit("OUT", None)
        await eventually(lambda: len(w.payloads("OUT")) == 4, 30)
        assert w.payloads("OUT") == numbers(4, first=1)


async def test_a_message_that_fails_by_its_own_fault_holds_up_no_others(autojump_clock: MockClock) -> None:
    broker = FakeBroker(max_payload=1000)
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])

    def grow(message: Message) -> Message:
        return message.replace(payload=b"x" * 2000) if message.payload == b"3" else message

    handler = handled(grow, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight=4)
    async with world(handlers=[handler], brokers={"main": broker}) as w:
        fill(w.broker, 20, subjects="x")
        await eventually(lambda: w.successes("ack") == 19)
        assert arrived(w, "x") == [payload for payload in numbers(20) if payload != b"3"]
        assert set(w.route.failed) == {"too_large"}
        assert w.route.reason is None


@pytest.mark.parametrize("content", [False, True], ids=["unchanged", "by content"])
@pytest.mark.parametrize(
    "given",
    [
        {"Größe": "7"},
        {"a b": "1"},
        {"A": "1\r\n2"},
        {"A": "\ud800"},
        {"Nats-Msg-Id": "\ud800"},
        {"\ud800": "1"},
        [("A", 1)],
        [("A", ["1", "2"])],
        [("Nats-Msg-Id", 5)],
        [(b"A", "1")],
    ],
    ids=repr,
)
async def test_an_answer_with_a_header_that_can_not_be_written_fails_alone(
    autojump_clock: MockClock, given: Any, content: bool
) -> None:
    """It holds up nothing behind it on its subject either."""

    def add(message: Message) -> Message:
        return message.replace(headers=given) if message.payload == b"3" else message

    destination = to("out.x", jetstream=True) | ({"when": "size < 1000"} if content else {})
    handler = handled(add, to=destination, stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 20, subjects="x")
        await eventually(lambda: w.successes("ack") == 19)
        assert arrived(w, "x") == [payload for payload in numbers(20) if payload != b"3"]
        assert set(w.route.failed) == {"invalid_header"}
        assert w.route.reason is None


async def test_a_handler_may_return_a_dict_of_headers(autojump_clock: MockClock) -> None:
    def add(message: Message) -> Message:
        return message.replace(headers={**message.headers, "Name": "Größe"})

    handler = handled(add, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        w.broker.publish("in.x", b"1", headers={"Color": "red"})
        await all_acked(w, 1)
        (message,) = w.broker.messages("OUT")
        assert (message.headers["Color"], message.headers["Name"]) == ("red", "Größe")


async def test_a_message_refused_at_one_destination_waits_though_it_also_fails_by_its_own_fault(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    copy = to("copy.{{split(1,-)}}", jetstream=True)
    both = stream(
        "IN", copy, to("out.x", "edge", jetstream=True), connection="main", filter="in.*", retry={"attempts": 3}
    )
    async with world([both], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.x")
        w.broker.publish("in.--", b"0")  # maps to no subject
        await eventually(lambda: w.route.failed["mapping"] == 1)
        brokers["edge"].allow_publish("out.x")
        w.broker.publish("in.--", b"1")
        await eventually(lambda: w.route.fates["given_up"] == 2)
        assert arrived(w, "x", "edge") == [b"0", b"1"]


async def test_a_refusal_by_one_destination_holds_up_later_messages_before_another_has_answered(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    copy = to("copy.{{wildcard(1)}}", jetstream=True)
    both = stream("IN", copy, to("out.{{wildcard(1)}}", "edge", jetstream=True), connection="main", filter="in.*")
    async with world([both], brokers=brokers) as w:
        brokers["edge"].stall(3.0)
        w.broker.deny_publish("copy.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.failures("publish_with_ack") == {"permission_denied": 1})
        assert not w.route.failed, "edge has not answered"
        w.broker.allow_publish("copy.a")
        fill(w.broker, 5, first=1, subjects="a")
        await all_acked(w, 6)
        assert w.payloads("COPY") == arrived(w, "a", "edge") == numbers(6)


async def test_messages_released_by_a_refusal_are_routed_before_another_destination_has_answered(
    autojump_clock: MockClock,
) -> None:
    """An older message that its handler failed is redelivered while a refused one is tried, and waits for that one."""
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    brokers["edge"].trouble.travel(lambda: 0.5)
    calls: list[bytes] = []

    def handler(message: Message) -> Message:
        calls.append(message.payload)
        if len(calls) == 1:
            raise Retry(2.5)
        return message

    both: Any = [to("out.x", "edge", jetstream=True), to("copy.x", jetstream=True)]
    made = handled(handler, to=both, connection="main", stream="IN", durable="router", retry={"initial": "1s"})
    async with world(handlers=[made], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.x")
        w.broker.deny_publish("copy.x")
        fill(w.broker, 2)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("copy.x")
        w.broker.trouble.slow_down("COPY", 3.0)
        await eventually(lambda: w.failures("publish_with_ack", "edge") == {"permission_denied": 2})
        await trio.sleep(0.1)
        assert calls == [b"0", b"1", b"1", b"0"]
        assert w.entry()["in_flight"] == 2, "the other destination has not answered"
        brokers["edge"].allow_publish("out.x")
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(2), 30)


async def test_messages_released_while_a_handler_works_are_neither_lost_nor_routed_twice(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    calls: list[tuple[str, bytes]] = []

    async def work(message: Message) -> Message:
        calls.append((message.subject, message.payload))
        await trio.sleep(0.3)
        return message.replace(subject=f"out.{message.subject[-1]}")

    destination = to("out.x", jetstream=True)
    handler = handled(work, to=destination, stream="IN", durable="router", filter="in.*", retry={"initial": "1s"})
    async with world(handlers=[handler], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 10, subjects="ab")
        await eventually(lambda: len(arrived(w, "b")) == 5, 60)
        w.broker.allow_publish("out.a")
        await all_acked(w, 20)
        assert arrived(w, "a") == arrived(w, "b") == numbers(10)
        assert len(calls) == 20 + sum(w.route.failed.values())


async def test_messages_wait_in_order_for_a_stream_that_is_missing_for_long(autojump_clock: MockClock) -> None:
    """The outage outlasts the budget of a publish, and nothing is published in it."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    async with world([route(max_in_flight=100)], brokers={"main": broker}) as w:
        for number in range(40):
            fill(broker, 1, first=number, subjects="ab")
            await trio.sleep(1)
        assert not w.route.failed
        assert [one.subject for one in broker.published if one.subject.startswith("out.")] == [], "none takes it"
        broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: len(w.payloads("OUT")) == 80, 120)
        assert arrived(w, "a") == arrived(w, "b") == numbers(40)
        await eventually(lambda: unacked(w) == 0)


async def test_publishes_behind_a_refused_message_are_taken_back_when_the_link_is_lost(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()

    def choose(message: Message) -> Message:
        return message.replace(subject="out.a" if message.payload in numbers(2) else "missing.a")

    destination = to("out.x", "edge", jetstream=True)
    source = {"stream": "IN", "durable": "router", "connection": "main", "filter": "in.*"}
    async with world(handlers=[handled(choose, to=destination, **source)], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, 6, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 2)
        assert w.entry("edge")["settled"] == {"failed": 2}, "the other publishes wait for a stream that takes them"
        await w.lose("edge")
        await eventually(lambda: w.failures("publish_with_ack", "edge").get("out_of_turn") == 4)
        assert w.route.failed == {"permission_denied": 2}
        brokers["edge"].allow_publish("out.a")
        brokers["edge"].add_stream("MISSING", ["missing.>"])
        await w.find("edge")
        await all_acked(w, 6)
        assert [message.payload for message in brokers["edge"].published[-6:]] == numbers(6)
