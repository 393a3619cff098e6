"""Messages of a stream that fail, or lose their link: which are redelivered, when, and which are given up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Reject
from router_trio.errors import LinkError
from router_trio.link import Link
from router_trio.message import Message
from router_trio.routing.stream import acks
from router_trio.routing.stream.source import StreamSource
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
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

# --- the source's link is down ---------------------------------------------------------------------------------------


async def test_acks_that_found_no_link_are_sent_on_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        brokers["edge"].stall(1.0)
        fill(w.broker, 10)
        await eventually(lambda: w.entry("edge")["in_flight"] == 10)
        await w.lose("main")
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 10)
        assert w.failures("ack") == {"not_connected": 10}
        assert w.watch.count("NATS_ACK_ERROR") == 10
        assert unacked(w) == 10
        await w.find("main")
        await eventually(lambda: unacked(w) == 0)
        await trio.sleep(120)
        assert (w.route.received, w.route.duplicates) == (10, 0)
        assert w.successes("ack") == 0, "an operation counts once"
        assert w.payloads("OUT", "edge") == numbers(10)


async def test_acks_lost_with_a_link_are_resent_on_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].trouble.travel(lambda: 0.05)
    async with world([REMOTE], brokers=brokers) as w:
        fill(w.broker, 10)
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 10)
        assert unacked(w) == 10
        await w.lose("main")
        assert w.failures("ack") == {}, "the acks were written"
        await w.find("main")
        await eventually(lambda: unacked(w) == 0)
        await trio.sleep(120)
        assert (w.route.received, w.route.duplicates) == (10, 0)
        assert w.successes("ack") == 10, "an operation counts once"


async def test_acks_lost_with_several_links_are_resent_on_the_first_one_that_survives(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Link] = []
    flush = acks.Acks.flush_unsent

    def flush_unsent(self: acks.Acks, link: Link) -> None:
        flush(self, link)
        written.append(link)

    def wrote() -> bool:
        return written[-1] is w.live.connections["main"].link

    monkeypatch.setattr(acks.Acks, "flush_unsent", flush_unsent)
    brokers = two_brokers()
    brokers["main"].trouble.travel(lambda: 0.05)
    async with world([REMOTE | {"from": REMOTE["from"] | {"ack_wait": "10m"}}], brokers=brokers) as w:
        fill(w.broker, 10)
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 10)
        for _ in range(3):
            await w.lose("main")
            assert unacked(w) == 10
            await w.find("main")
            await eventually(wrote)
        await w.lose("main")
        assert unacked(w) == 10
        await w.find("main")
        await eventually(lambda: unacked(w) == 0, 20.0)
        await trio.sleep(120)
        assert (w.route.received, w.route.duplicates) == (10, 0)
        assert w.successes("ack") == 10, "an operation counts once"


async def test_acks_that_found_no_link_and_are_refused_on_the_next_one_are_resent_once_permitted(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    async with world([REMOTE | {"from": REMOTE["from"] | {"ack_wait": "10m"}}], brokers=brokers) as w:
        brokers["edge"].stall(1.0)
        fill(w.broker, 10)
        await eventually(lambda: w.entry("edge")["in_flight"] == 10)
        await w.lose("main")
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 10)
        w.broker.deny_publish("$JS.ACK.>")
        await w.find("main")
        await eventually(lambda: "ack" in w.route.obstacles, 5.0)
        assert w.failures("ack") == {"not_connected": 10}, "an operation counts once"
        w.broker.allow_publish("$JS.ACK.>")
        await eventually(lambda: unacked(w) == 0, 7.0)
        await eventually(lambda: "ack" not in w.route.obstacles, 7.0)
        await trio.sleep(120)
        assert (w.route.received, w.route.duplicates) == (10, 0)


async def test_acks_that_the_server_refused_are_resent_once_permitted(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([LOCAL | {"from": LOCAL["from"] | {"ack_wait": "2m"}}], brokers=brokers) as w:
        w.broker.deny_publish("$JS.ACK.>")
        fill(w.broker, 10)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 10})
        w.broker.trouble.deliver_again("IN", "router", 3)  # acked again, and refused again
        await eventually(lambda: w.failures("ack") == {"permission_denied": 13})
        w.broker.allow_publish("$JS.ACK.>")
        w.broker.trouble.deliver_again("IN", "router", 3)  # acked again, and accepted
        await eventually(lambda: unacked(w) == 0, 7.0)
        await trio.sleep(1)
        assert w.successes("ack") == 10
        assert (w.route.received, w.route.duplicates) == (10, 6)


@pytest.mark.parametrize("lost_with", ["a refusal", "its link"])
async def test_a_message_that_was_given_up_is_settled_though_its_term_was_refused_or_lost(
    autojump_clock: MockClock, lost_with: str
) -> None:
    def fail(message: Message) -> Message:
        raise ValueError("always")

    made = handled(fail, to="out.x", stream="IN", durable="router", ack_wait="2m", retry={"attempts": 1})
    async with world(handlers=[made], brokers=one_broker()) as w:
        if lost_with == "a refusal":
            w.broker.deny_publish("$JS.ACK.>")
            fill(w.broker, 3)
            await eventually(lambda: w.failures("nak") == {"permission_denied": 3})
            w.broker.allow_publish("$JS.ACK.>")
        else:
            w.broker.trouble.travel(lambda: 0.05)
            fill(w.broker, 3)
            await eventually(lambda: w.route.fates["given_up"] == 3)
            await w.lose()
            await w.find()
        await eventually(lambda: unacked(w) == 0, 7.0)
        await trio.sleep(130)
        assert (w.route.received, w.route.duplicates) == (3, 0)


async def test_of_too_many_refused_acks_the_newest_are_resent(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "MOST_REFUSED", 4)
    async with world([LOCAL], brokers=one_broker()) as w:
        w.broker.deny_publish("$JS.ACK.>")
        fill(w.broker, 10)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 10})
        w.broker.allow_publish("$JS.ACK.>")
        await eventually(lambda: unacked(w) == 6, 7.0)
        await eventually(lambda: unacked(w) == 0, 30.0)
        assert w.payloads("OUT") == numbers(10)


async def test_refused_acks_of_a_replaced_stream_are_not_resent(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        w.broker.deny_publish("$JS.ACK.>")
        fill(w.broker, 5)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 5})
        w.broker.trouble.recreate("IN", "router")
        await eventually(lambda: w.watch.count("STREAM_WENT_BACK") == 1, 60.0)
        before = w.failures("ack")["permission_denied"]
        w.broker.allow_publish("$JS.ACK.>")
        await trio.sleep(20)
        assert w.successes("ack") == 0
        assert before == 5


async def test_a_message_redelivered_while_in_hand_is_not_routed_again(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    calls = 0
    gate = trio.Event()

    async def hold(message: Message) -> Message:
        nonlocal calls
        calls += 1
        await gate.wait()
        return message

    handler = handled(hold, to=to("core", "edge"), stream="IN", durable="router", connection="main", ack_wait="5s")
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.received == 3)
        await w.lose("main")
        await trio.sleep(20)
        await w.find("main")
        await eventually(lambda: w.route.duplicates == 3)
        gate.set()
        await all_acked(w, 3)
        assert (calls, w.route.received, len(brokers["edge"].published)) == (3, 3, 3)


async def test_a_message_whose_ack_was_lost_is_acked_again_and_not_routed_again(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main", ack_wait="5s")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 3)
        await all_acked(w, 3)
        w.broker.trouble.lose("ack", 4)
        fill(w.broker, 4, first=3)
        await eventually(lambda: w.successes("ack") == 7)
        assert unacked(w) == 4
        await eventually(lambda: w.route.duplicates == 4, 60)
        await eventually(lambda: unacked(w) == 0)
        assert [message.payload for message in brokers["edge"].published] == numbers(7)
        assert w.route.received == 7


async def test_a_restarted_server_redelivers_messages_lost_in_transit(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="10s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        assert w.route.received == 5
        w.broker.cut()
        w.broker.up()
        await eventually(lambda: sorted(w.payloads("OUT")) == sorted(numbers(10)), 60)
        await all_acked(w, 10)


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failed_message_is_redelivered_with_growing_delays(autojump_clock: MockClock) -> None:
    times: list[float] = []
    deliveries: list[int] = []

    def fail(message: Message) -> Message:
        times.append(trio.current_time())
        deliveries.append(message.deliveries)
        if len(times) < 9:
            raise ValueError("not yet")
        return message

    handler = handled(fail, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"initial": "1s"})
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await all_acked(w, 1)
        delays = [round(later - earlier) for earlier, later in pairwise(times)]
        assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
        assert deliveries == list(range(1, 10))
        assert dict(w.route.failed) == {"handler_error": 8}
        assert w.successes("nak") == 8
        assert (w.route.received, w.route.fates["given_up"]) == (9, 0)
        assert w.payloads("OUT") == [b"0"]


async def test_a_message_that_fails_holds_up_no_others(autojump_clock: MockClock) -> None:
    def pick(message: Message) -> Message:
        if message.payload == b"3":
            raise ValueError("never")
        return message.replace(subject="out.x")

    handler = handled(pick, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight=4)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 20)
        await eventually(lambda: w.successes("ack") == 19)
        assert w.payloads("OUT") == [payload for payload in numbers(20) if payload != b"3"]
        assert unacked(w) == 1


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_last_failed_delivery_is_counted_as_given_up(autojump_clock: MockClock, limit: int) -> None:
    calls = 0

    def fail(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("never")

    handler = handled(fail, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"attempts": limit})
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 2)
        await eventually(lambda: w.route.fates["given_up"] == 2)
        await trio.sleep(600)
        assert calls == 2 * limit
        assert dict(w.route.failed) == {"handler_error": 2 * limit}
        assert w.route.fates["given_up"] == 2
        given_up = w.watch.of("ROUTE_MESSAGE_GIVEN_UP")
        assert sorted((event.stream, event.sequence) for event in given_up) == [("IN", 1), ("IN", 2)]
        assert {(event.route, event.reason, event.attempts) for event in given_up} == {
            (w.route.name, "handler_error", limit)
        }


async def test_a_message_redelivered_while_in_hand_is_given_up_at_its_delivery_limit(autojump_clock: MockClock) -> None:
    gate = trio.Event()

    async def hold(message: Message) -> None:
        await gate.wait()
        raise ValueError("never")

    source = {"stream": "IN", "durable": "router", "connection": "main", "ack_wait": "5s"}
    handler = handled(hold, to=to("out.x", "edge"), retry={"attempts": 2}, **source)
    async with world(handlers=[handler], brokers=two_brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.received == 1)
        await w.lose("main")
        await trio.sleep(10)
        await w.find("main")
        await eventually(lambda: w.route.duplicates == 1)
        gate.set()
        await eventually(lambda: w.route.fates["given_up"] == 1)


ONCE = {"not": ["permission_denied"]}


async def test_a_failure_at_one_destination_fails_the_message(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["edge"].deny_publish("out.x")
    route = stream("IN", to("copy"), to("out.x", "edge", jetstream=True), connection="main", retry=ONCE)
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.fates["given_up"] == 1)
        assert dict(w.route.failed) == {"permission_denied": 1}
        assert [event.reason for event in w.watch.of("ROUTE_MESSAGE_GIVEN_UP")] == ["permission_denied"]
        assert w.route.routed == {"copy": 1, "out.x": 0}
        assert w.successes("nak") == 1


async def test_a_message_that_maps_to_no_subject_fails(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    route = stream("IN", "out.{{split(1,-)}}", filter="in.*", retry={"attempts": 1})
    async with world([route], brokers={"main": broker}) as w:
        for token in ("a-b", "--", "c"):
            broker.publish(f"in.{token}", b"x")
        await eventually(lambda: w.route.fates["given_up"] == 1)
        await eventually(lambda: w.successes("ack") == 2)
        assert dict(w.route.failed) == {"mapping": 1}
        assert w.watch.count("ROUTE_MESSAGE_FAILED") == 1


async def test_a_missing_destination_stream_is_waited_for_and_nothing_is_acked(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    async with world([stream("IN", "out.x")], brokers={"main": broker}) as w:
        fill(w.broker, 5)
        await trio.sleep(20)
        assert (unacked(w), w.route.duplicates) == (5, 0)
        broker.add_stream("OUT", ["out.>"])
        await all_acked(w, 5)
        assert w.payloads("OUT") == numbers(5)


async def test_a_destination_that_connects_after_a_route_found_its_consumer_is_noticed(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        await w.lose("edge")
        w.broker.delete_consumer("IN", "router")
        await w.watch.until("ROUTE_READY", times=2)
        await w.find("edge")
        fill(w.broker, 1)
        await eventually(lambda: w.payloads("OUT", "edge") == [b"0"], 30)


async def test_a_message_given_up_without_a_link_is_not_redelivered_on_the_next_one(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(1)
        raise Reject("no")

    route = handled(slow, to=to("out.x", jetstream=True), stream="IN", durable="router", ack_wait="5s")
    async with world(handlers=[route], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.received == 1)
        await w.lose()
        await eventually(lambda: w.route_ledger() == (1, 0, {"given_up": 1}))
        await w.find()
        await eventually(lambda: w.broker.unacked("IN", "router") == 0, 1)
        await trio.sleep(10)
        assert w.route_ledger() == (1, 0, {"given_up": 1})


async def test_an_ack_that_the_next_link_does_not_accept_is_sent_on_the_one_after(autojump_clock: MockClock) -> None:
    class Dead:
        def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
            return [(reply, LinkError("it died just now")) for reply in replies]

    dead: Any = Dead()
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        brokers["edge"].stall(1.0)
        fill(w.broker, 3)
        await eventually(lambda: w.entry("edge")["in_flight"] == 3)
        await w.lose("main")
        await eventually(lambda: w.failures("ack") == {"not_connected": 3})
        (source,) = [one for one in w.live.connections["main"]._sources if isinstance(one, StreamSource)]
        source.keeper.acks.flush_unsent(dead)
        await w.find("main")
        await eventually(lambda: w.broker.unacked("IN", "router") == 0, 2)
        assert w.route_ledger() == (3, 0, {"routed": 3})
