"""Attempts of a message from a stream, on fake brokers: only failures seen by this process count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
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


def durable(**changes: Any) -> ConsumerSpec:
    values: dict[str, Any] = {"ack_wait": 5.0, "max_deliver": 3, "max_ack_pending": 1000} | changes
    return ConsumerSpec("IN", "router", (), **values)


async def slow(message: Message) -> Message:
    await trio.sleep(0.02)
    return message.replace(subject="out.x")


async def test_restarts_and_losses_use_up_no_attempts(autojump_clock: MockClock) -> None:
    """Naks at a shutdown, kills and lost links use up deliveries of messages that no handler was called for."""
    brokers = one_broker()
    broker = brokers["main"]
    broker.trouble.add_consumer(durable())
    fill(broker, 500)
    for _ in range(5):
        handler = handled(slow, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"attempts": 3})
        async with world(handlers=[handler], brokers=brokers, shutdown_timeout=0.1) as w:
            await trio.sleep(0.5)
            broker.cut()
            await trio.sleep(0.5)
    handler = handled(slow, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"attempts": 3})
    async with world(handlers=[handler], brokers=brokers) as w:
        await eventually(lambda: len(w.payloads("OUT")) >= 500, 600)
        assert sorted(map(int, w.payloads("OUT"))) == list(range(500))
        assert w.route.fates["given_up"] == 0


async def test_a_message_that_was_given_up_is_not_retried_though_its_term_was_lost(
    autojump_clock: MockClock,
) -> None:
    async with world(
        [stream("IN", "out.x", retry={"not": ["permission_denied"]}, ack_wait="5s")], brokers=one_broker()
    ) as w:
        w.broker.deny_publish("out.x")
        w.broker.trouble.lose("nak", 1)
        fill(w.broker, 1)
        await eventually(lambda: w.route.fates["given_up"] == 1)
        w.broker.allow_publish("out.x")
        fill(w.broker, 1, first=1)
        await eventually(lambda: w.route.duplicates == 1, 20)
        await eventually(lambda: unacked(w) == 0)
        assert w.payloads("OUT") == [b"1"]
        assert w.route.fates["given_up"] == 1


async def test_a_delivery_limit_that_may_not_be_lifted_is_reported_and_respected(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.trouble.add_consumer(durable(ack_wait=7.0))
    broker.trouble.fix_consumer("IN", "router")

    def fail(message: Message) -> None:
        raise ValueError("never")

    handler = handled(fail, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"initial": "10ms"})
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(broker, 2)
        await eventually(lambda: w.route.fates["given_up"] == 2)
        await trio.sleep(600)
        assert w.route.fates["given_up"] == 2, "each message once"
        (event,) = w.watch.of("ROUTE_CONSUMER_DIFFERS")
        assert "max_deliver is 3 there and -1 here" in event.detail
        assert "ack_wait in seconds is 7 there and 30 here" in event.detail


async def test_a_message_is_given_up_once_whatever_the_limit_of_its_durable(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.trouble.add_consumer(durable(max_deliver=10))
    calls: Counter[bytes] = Counter()

    def fail(message: Message) -> None:
        calls[message.payload] += 1
        raise ValueError("never")

    handler = handled(fail, to=to("out.x"), stream="IN", durable="router", retry={"attempts": 3, "initial": "10ms"})
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(broker, 3)
        await eventually(lambda: w.route.fates["given_up"] == 3)
        await trio.sleep(600)
        assert set(calls.values()) == {3}
        assert w.route.fates["given_up"] == 3
        assert w.broker.unacked("IN", "router") == 0, "the messages are terminated"
        await w.lose()
        await w.find()
        (event,) = w.watch.of("ROUTE_CONSUMER_LIMITS_REMOVED")
        assert (event.route, event.durable, event.detail) == (w.route.name, "router", "max_deliver = 10")


async def test_deliveries_without_a_call_of_the_handler_are_no_attempts(autojump_clock: MockClock) -> None:
    """A message that fails gets all its attempts, however often it was delivered before."""
    brokers = one_broker()
    broker = brokers["main"]
    fill(broker, 1)
    arrived: list[RawMessage] = []
    async with another_link(broker) as link:
        consumer = await link.open_consumer(durable(max_deliver=-1), arrived.extend)
        for _ in range(5):
            consumer.pull(1, 5.0)
            await trio.sleep(1)
            link.nak(arrived[-1][1], 0)
        assert len(arrived) == 5
        await link.fence()
    calls = 0

    def fail(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("never")

    handler = handled(fail, to=to("out.x"), stream="IN", durable="router", retry={"attempts": 3, "initial": "10ms"})
    async with world(handlers=[handler], brokers=brokers) as w:
        await eventually(lambda: w.route.fates["given_up"] == 1, 60)
        assert calls == 3
        assert [event.attempts for event in w.watch.of("ROUTE_MESSAGE_GIVEN_UP")] == [3]


@pytest.mark.parametrize("failing", [25, 200])
async def test_messages_that_fail_by_their_own_fault_do_not_keep_others_out(
    autojump_clock: MockClock, failing: int
) -> None:
    def pick(message: Message) -> Message:
        if int(message.payload) < failing:
            raise ValueError("bad")
        return message.replace(subject="out.x")

    handler = handled(pick, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight=10)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, failing)
        await eventually(lambda: w.route.failed["handler_error"] >= failing, 60)
        fill(w.broker, 20, first=failing)
        await eventually(lambda: len(w.payloads("OUT")) == 20, 5)
        assert w.payloads("OUT") == numbers(20, first=failing)


async def test_a_retry_is_sent_only_to_destinations_that_have_not_confirmed(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["edge"].deny_publish("out.x")
    route = stream("IN", to("copy"), to("out.x", "edge", jetstream=True), connection="main", retry={"initial": "1s"})
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 20)
        await trio.sleep(25)
        brokers["edge"].allow_publish("out.x")
        await all_acked(w, 20)
        assert Counter(w.subjects("main")) == {"copy": 20}
        assert w.payloads("OUT", "edge") == numbers(20)
        assert w.route.routed == {"copy": 20, "out.x": 20}


async def test_a_retry_of_several_answers_sends_only_those_that_were_not_confirmed(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.deny_publish("out.bad")

    def both(message: Message) -> list[Message]:
        return [message.replace(subject=subject) for subject in ("out.good", "out.bad")]

    handler = handled(both, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"initial": "1s"})
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(broker, 5)
        await trio.sleep(20)
        broker.allow_publish("out.bad")
        await all_acked(w, 5)
        assert Counter(subject for subject in w.subjects() if subject == "out.good") == {"out.good": 5}
        assert len(w.payloads("OUT")) == 10


@pytest.mark.parametrize("kind", ["stream", "core"])
async def test_a_message_with_the_id_of_another_one_is_reported_as_a_duplicate_and_not_routed(
    autojump_clock: MockClock, kind: str
) -> None:
    """The deduplication window of the sink is longer than that of the source, and a sender uses its ids again."""
    brokers = one_broker()
    broker = brokers["main"]
    source: dict[str, Any] = {"filter": "in.*", "message_id": "sender"}
    route = stream("IN", "out.x", **source)
    if kind == "core":
        route = {"name": "route", "from": {"subject": "in.*"}, "to": [to("out.x", jetstream=True)]}
    async with world([route], brokers=brokers) as w:
        for number in range(10):
            message_id = f"id-{number % 5}" if number else ""
            broker.publish("in.x", b"%d" % number, {"Nats-Msg-Id": message_id})
            await trio.sleep(130 if kind == "stream" and number == 4 else 0.1)
        await eventually(lambda: w.route.received == 10, 600)
        stored = len(w.payloads("OUT"))
        await eventually(lambda: w.route.routed["out.x"] + w.route.failed["duplicate"] == 10)
        assert w.route.routed["out.x"] == stored
        assert {event.reason for event in w.watch.of("ROUTE_MESSAGE_FAILED")} <= {"duplicate"}
        assert (stored < 10) is (kind == "core")


@pytest.mark.parametrize("kind", ["stream", "handler"])
async def test_a_message_handled_singly_with_the_id_of_another_one_is_reported_as_a_duplicate(
    autojump_clock: MockClock, kind: str
) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"], duplicate_window=1.0)
    broker.add_stream("OUT", ["out.>"])
    routes, handlers = [stream("IN", "out.x", message_id="sender")], []
    if kind == "handler":
        routes, handlers = [], [handled(slow, subject="in.*", to=to("out.x", jetstream=True))]
    async with world(routes, handlers=handlers, brokers={"main": broker}) as w:
        for number in range(2):
            broker.publish("in.x", b"%d" % number, {"Nats-Msg-Id": "id"})
            await trio.sleep(2.0)
        await eventually(lambda: w.route.routed["out.x"] + w.route.failed["duplicate"] == 2)
        assert (w.route.routed["out.x"], w.route.failed["duplicate"]) == (1, 1)
        assert [event.reason for event in w.watch.of("ROUTE_MESSAGE_FAILED")] == ["duplicate"]
        assert w.payloads("OUT") == [b"0"]


async def test_a_message_that_the_router_itself_has_resent_counts_as_routed(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main", message_id="sender")
    async with world([route], brokers=brokers) as w:
        brokers["edge"].stall(1.0)
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        await trio.sleep(1.0)
        brokers["edge"].cut()
        await all_acked(w, 5)
        assert (w.route.routed["out.x"], w.route.failed["duplicate"]) == (5, 0)
