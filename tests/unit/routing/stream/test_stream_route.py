"""Routes from a stream, on fake brokers: which messages are routed, which wait, and which are redelivered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.protocol.headers import Headers
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import delivery_of
from router_trio.states import PAUSED, RUNNING
from router_trio.testing import FakeBroker
from tests.performance.instructions import Bench, delivered
from tests.support.eventually import eventually
from tests.support.recorder import Recorder
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
    another_link,
    core,
    fill,
    handled,
    numbers,
    one_broker,
    overhearing,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

# --- routing ---------------------------------------------------------------------------------------------------------


async def test_a_message_is_acked_once_all_its_destinations_have_it(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    route = stream(
        "IN",
        to("copy.{{wildcard(1)}}", jetstream=True),
        to("core.{{wildcard(1)}}"),
        to("out.{{wildcard(1)}}", "edge", jetstream=True),
        to("core.{{wildcard(1)}}.x", "edge"),
        connection="main",
        filter="in.*",
    )
    fill(brokers["main"], 50)
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 50, first=50)
        await all_acked(w, 100)
        assert set(w.route.routed.values()) == {100}
        assert w.payloads("COPY") == w.payloads("OUT", "edge") == numbers(100)
        for connection, subject in (("main", "core.x"), ("edge", "core.x.x")):
            assert [m.payload for m in w.brokers[connection].published if m.subject == subject] == numbers(100)
        assert (w.route.received, w.route.duplicates, dict(w.route.failed)) == (100, 0, {})
        assert sum(w.route.durations.counts) == 100
        assert w.entry()["settled"] == w.entry("edge")["settled"] == {"acked": 100, "fenced": 100}


async def test_only_messages_that_match_the_filter_are_routed(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.>"])
    async with world([stream("IN", to("out"), filter="in.*.a")], brokers={"main": broker}) as w:
        for token in ("a", "b", "a", "c"):
            broker.publish(f"in.1.{token}", token.encode())
        await eventually(lambda: w.route.routed["out"] == 2)
        await all_acked(w, 2)
        assert w.route.received == 2


async def test_headers_are_forwarded_and_the_reply_subject_for_acks_is_not(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    route = stream("IN", to("core"), to("out.x", jetstream=True))
    async with world([route], brokers={"main": broker}) as w, overhearing(broker, "core") as heard:
        broker.publish("in.x", b"1", [("A", "1"), ("A", "2"), ("Nats-Expected-Last-Sequence", "0")], reply="who")
        await all_acked(w, 1)
        (message,) = heard
        assert message[1] == b""
        found = {m.subject: m.headers for m in broker.published}
        assert found["core"] == Headers([("A", "1"), ("A", "2")])
        assert found["out.x"].pairs()[:2] == (("A", "1"), ("A", "2"))
        assert [name for name, _ in found["out.x"].pairs()] == ["A", "A", "Nats-Msg-Id"]


@pytest.mark.parametrize(("message_id", "first"), [(None, "IN"), ("own", "IN"), ("sender", "own")])
async def test_the_message_id_identifies_the_copy(
    autojump_clock: MockClock, message_id: str | None, first: str
) -> None:
    broker = one_broker()["main"]
    broker.publish("in.x", b"own", {"Nats-Msg-Id": "own"})
    broker.publish("in.x", b"made")
    source = {} if message_id is None else {"message_id": message_id}
    async with world([stream("IN", "out.a", "out.b", **source)], brokers={"main": broker}) as w:
        await all_acked(w, 2)
        ids = {(m.subject, m.payload): m.headers["Nats-Msg-Id"].split(":") for m in broker.published}
        stream_name, sequence, timestamp, _ = ids["out.a", b"made"]
        assert (stream_name, sequence) == ("IN", "2")
        assert int(timestamp) > 1_000_000_000_000_000_000
        assert ids["out.a", b"own"][0] == ids["out.b", b"own"][0] == first
        for payload in (b"own", b"made"):
            (*a, copy_a), (*b, copy_b) = ids["out.a", payload], ids["out.b", payload]
            assert a == b
            assert copy_a != copy_b
        assert ids["out.a", b"own"][-1] == ids["out.a", b"made"][-1], "the end identifies the copy, not the message"


@pytest.mark.parametrize("message_id", ["own", "sender"])
async def test_an_empty_id_of_a_sender_counts_as_missing(autojump_clock: MockClock, message_id: str) -> None:
    """Its copies get the same id each time: otherwise a redelivered message would be stored twice."""
    broker = one_broker()["main"]
    broker.publish("in.x", b"1", {"Nats-Msg-Id": ""})
    async with world([stream("IN", "out.a", "out.b", message_id=message_id)], brokers={"main": broker}) as w:
        await all_acked(w, 1)
        ids = [m.headers["Nats-Msg-Id"].split(":") for m in broker.published]
        assert [one[:2] for one in ids] == [["IN", "1"], ["IN", "1"]]


async def test_no_more_messages_than_the_window_are_in_hand(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    held = 0

    async def hold(message: Message) -> Message:
        nonlocal held
        held += 1
        await gate.wait()
        return message.replace(subject="out.x")

    brokers = one_broker()
    fill(brokers["main"], 50)
    handler = handled(hold, to=to("out.x", jetstream=True), stream="IN", durable="router", max_in_flight=10)
    async with world(handlers=[handler], brokers=brokers) as w:
        await trio.sleep(60)
        assert (held, w.route.received, unacked(w)) == (1, 10, 10)
        gate.set()
        await all_acked(w, 50)
        assert w.payloads("OUT") == numbers(50)


async def test_the_order_of_each_subject_is_kept_across_a_lost_link(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    fill(brokers["main"], 300)
    async with world([REMOTE], brokers=brokers) as w:
        await eventually(lambda: w.route.received > 0)
        brokers["edge"].cut()
        await all_acked(w, 300)
        assert w.payloads("OUT", "edge") == numbers(300)
        assert w.route.received == 300


# --- a destination is down -------------------------------------------------------------------------------------------


async def test_a_destination_that_is_down_pauses_only_the_routes_that_need_it(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("COPY", ["copy.*"])
    routes = [
        stream(
            "IN",
            to("out.{{wildcard(1)}}", "edge", jetstream=True),
            to("copy.{{wildcard(1)}}", jetstream=True),
            route="both",
            durable="both",
            connection="main",
            filter="in.*",
            max_in_flight=20,
        ),
        stream("IN", to("copy.other", jetstream=True), route="local", durable="local", connection="main"),
        core("in.*", to("seen.{{wildcard(1)}}"), name="core", connection="main"),
    ]
    async with world(routes, brokers=brokers) as w:
        both, local, plain = w.live.routes
        await w.lose("edge")
        await eventually(lambda: both.state == PAUSED)
        assert both.reason is not None
        assert "'edge'" in both.reason
        for number in range(200):
            w.broker.publish("in.x", b"%d" % number)
            await trio.sleep(0.1)
        await eventually(lambda: local.routed["copy.other"] == 200)
        assert plain.routed["seen.{{wildcard(1)}}"] == 200
        assert local.state == plain.state == RUNNING
        # Messages that were requested arrive; then the pulls stop, and memory does not fill.
        assert both.received == 20
        assert w.broker.unacked("IN", "both") == 20
        assert sum(both.routed.values()) == 0
        assert w.entry("edge")["accepted"] == 0
        await w.find("edge")
        await eventually(lambda: both.routed["out.{{wildcard(1)}}"] == 200)
        assert both.state == RUNNING
        assert w.payloads("OUT", "edge") == numbers(200)
        assert (both.received, both.duplicates, dict(both.failed)) == (200, 0, {})


async def test_messages_waiting_for_a_destination_are_announced_as_in_progress(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main", ack_wait="3s")
    async with world([route], brokers=brokers) as w:
        await w.lose("edge")
        fill(w.broker, 30)
        await eventually(lambda: w.route.received == 30)
        await trio.sleep(40)
        assert (w.route.received, w.route.duplicates, unacked(w)) == (30, 0, 30)
        await w.find("edge")
        await all_acked(w, 30)
        assert w.payloads("OUT", "edge") == numbers(30)


async def test_messages_announced_as_in_progress_keep_their_order(autojump_clock: MockClock) -> None:
    """If this process dies, they are redelivered to another one first."""
    brokers = two_brokers()
    route = stream("IN", to("out.x", "edge", jetstream=True), connection="main", ack_wait="3s", max_in_flight=6)
    async with world([route], brokers=brokers) as w, another_link(w.broker) as other:
        await w.lose("edge")
        fill(w.broker, 3)
        await trio.sleep(1.5)
        fill(w.broker, 3, first=3)
        await trio.sleep(1.0)
        w.broker.trouble.lose("in_progress", 1_000)
        received = Recorder()
        spec = ConsumerSpec("IN", "router", (), ack_wait=3.0, max_deliver=-1, max_ack_pending=6)
        consumer = await other.open_consumer(spec, received)
        await trio.sleep(4.0)
        consumer.pull(6, 5.0)
        raws = await received.until_delivered(6)
        assert [int(raw[1].split(b".")[5]) for raw in raws] == [1, 2, 3, 4, 5, 6]
        await w.find("edge")


async def test_messages_taken_back_are_announced_though_younger_ones_are_before_them(autojump_clock: MockClock) -> None:
    source = Bench(1, stream=True).stream_source()
    taken_back, young = (delivery_of(source.keeper, StreamCursor("x"), delivered(number), number) for number in (1, 4))
    source.keeper.hand.open = {4: young, 1: taken_back}
    announced: list[bytes] = []
    link = cast(Any, SimpleNamespace(in_progress=announced.append))
    consumer = cast(Any, SimpleNamespace(ack_wait=3.0, hold_lead=lambda: False))
    await trio.sleep_until(4.5)
    with trio.move_on_after(0.1):
        await source._pull_loop._report_progress(link, consumer)
    assert announced == [young.ack_subject, taken_back.ack_subject]


async def test_a_long_pause_is_not_taken_for_a_lost_consumer(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        await w.lose("edge")
        await trio.sleep(100)
        await w.find("edge")
        await eventually(lambda: w.route.state == RUNNING)
        fill(w.broker, 5)
        await all_acked(w, 5)
        assert w.watch.count("ROUTE_READY") == 1
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0


async def test_an_idle_route_renews_its_pulls_and_stays_ready(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        await trio.sleep(600)
        fill(w.broker, 3)
        await all_acked(w, 3)
        assert (w.watch.count("ROUTE_READY"), w.watch.count("NATS_SUBSCRIBE_ERROR")) == (1, 0)


async def test_a_route_waits_until_both_destinations_are_connected(autojump_clock: MockClock) -> None:
    brokers = two_brokers() | {"third": FakeBroker()}
    brokers["third"].add_stream("OUT", ["out.>"])
    route = stream("IN", to("out.x", "edge", jetstream=True), to("out.x", "third", jetstream=True), connection="main")
    async with world([route], brokers=brokers) as w:
        await w.lose("edge")
        await w.lose("third")
        fill(w.broker, 5)
        await w.find("edge")
        await eventually(lambda: w.route.received == 5)
        await w.lose("edge")
        await w.find("third")
        await trio.sleep(5)
        assert w.entry("edge")["accepted"] == w.entry("third")["accepted"] == 0
        await w.find("edge")
        await all_acked(w, 5)
        assert w.payloads("OUT", "edge") == w.payloads("OUT", "third") == numbers(5)


async def test_a_destination_lost_while_a_handler_works_stops_the_batch(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    fill(brokers["main"], 100)
    calls: list[Message] = []
    step = trio.Semaphore(0)

    async def slow(message: Message) -> Message:
        calls.append(message)
        await step.acquire()
        return message

    destination = to("out.x", "edge", jetstream=True)
    handler = handled(slow, to=destination, connection="main", stream="IN", durable="router")
    small = {"edge": {"max_pending_operations": 2}}
    async with world(handlers=[handler], brokers=brokers, connections=small) as w:
        await eventually(lambda: len(calls) == 1)
        await w.lose("edge")
        for _ in range(100):
            step.release()
        await trio.sleep(5)
        # The message in the handler is kept for the destination; no other message is sent where it would be dropped.
        assert len(calls) == 1
        assert w.entry("edge") == {"accepted": 1, "pending": 1, "in_flight": 0, "settled": {}}
        await w.find("edge")
        await all_acked(w, 100)
        assert w.payloads("OUT", "edge") == numbers(100)
        assert w.entry("edge")["settled"] == {"acked": 100}
