"""Stream routes in trouble: consumers and streams that go and come, and the end. Nothing is lost on the way."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Source, delivery_of
from router_trio.routing.stream.pulling import pull_loop as module
from router_trio.states import FAILED, PAUSED, RUNNING, RouteState
from router_trio.testing import FakeBroker
from router_trio.testing.frames import raw
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
    another_link,
    core,
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

# --- the consumer, the stream ----------------------------------------------------------------------------------------


async def test_a_missing_stream_leaves_others_working_and_is_found_when_it_is_made(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    async with world(
        [stream("IN", "out.x", route="missing"), core("ping", "pong", name="core")], brokers={"main": broker}
    ) as w:
        missing, plain = w.live.routes
        assert missing.state == FAILED
        assert missing.unready is not None
        assert "'IN'" in missing.unready
        broker.publish("ping", b"x")
        await eventually(lambda: plain.routed["pong"] == 1)
        await w.watch.until("NATS_SUBSCRIBE_ERROR", times=6, within=120)
        assert set(w.failures("subscribe")) == {"stream_not_found"}
        broker.add_stream("IN", ["in.*"])
        fill(broker, 5)
        await all_acked(w, 5)
        assert missing.state == RUNNING


async def test_a_durable_with_another_filter_is_refused_with_the_difference(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 2)
        await all_acked(w, 2)
    async with world([stream("IN", "out.y", filter="in.other")], brokers=brokers) as w:
        assert w.route.state == FAILED
        assert w.route.reason is not None
        assert "in.other" in w.route.reason
        assert "in.*" in w.route.reason
        assert w.failures("subscribe") == {"consumer_mismatch": 1}


async def test_a_deleted_consumer_is_made_again_behind_what_is_settled(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 100)
        await all_acked(w, 100)
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 50, first=100)
        await all_acked(w, 150)
        assert [message.payload for message in brokers["edge"].published] == numbers(150)
        assert (w.route.received, w.route.duplicates) == (150, 0)
        assert w.failures("subscribe") == {"consumer_deleted": 1}
        assert (w.watch.count("ROUTE_READY"), w.route.state) == (2, RUNNING)


async def test_a_deleted_consumer_while_messages_are_in_hand_loses_none_and_repeats_none(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    failing = True

    def pick(message: Message) -> Message:
        if failing and message.payload in (b"3", b"40"):
            raise ValueError("not yet")
        return message

    source = {
        "stream": "IN",
        "durable": "router",
        "connection": "main",
        "max_in_flight": 16,
        "retry": {"initial": "60s"},
    }
    handler = handled(pick, to=to("core", "edge"), **source)
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 60)
        await eventually(lambda: w.successes("ack") == 58)
        brokers["edge"].stall(3.0)
        fill(w.broker, 8, first=60)
        await eventually(lambda: w.entry("edge")["in_flight"] == 8)
        failing = False
        w.broker.delete_consumer("IN", "router")
        await eventually(lambda: w.watch.count("ROUTE_READY") == 2)
        fill(w.broker, 2, first=68)
        await eventually(lambda: len(brokers["edge"].published) == 70, 300)
        await eventually(lambda: unacked(w) == 0)
        # 3 and 40 had failed and would have come again: they still do, and what was settled between them does not.
        assert sorted(int(message.payload) for message in brokers["edge"].published) == list(range(70))


async def test_a_consumer_deleted_while_the_link_is_away_starts_behind_what_is_settled(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 20)
        await all_acked(w, 20)
        await w.lose("main")
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 5, first=20)
        await w.find("main")
        await all_acked(w, 25)
        assert [message.payload for message in brokers["edge"].published] == numbers(25)
        assert w.route.received == 25


async def test_a_consumer_deleted_before_it_could_repeat_what_got_lost_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        # Delivered into a connection that is dead already: the server waits for their acks for half a minute.
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        w.broker.delete_consumer("IN", "router")
        w.broker.up()
        fill(w.broker, 5, first=10)
        await eventually(lambda: len(w.payloads("OUT")) == 15)
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: unacked(w) == 0)


async def test_what_got_lost_with_a_link_comes_again_at_once_and_before_what_is_new(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        fill(w.broker, 5, first=10)
        w.broker.up()
        found_at = trio.current_time()
        await eventually(lambda: len(w.payloads("OUT")) == 15)
        assert trio.current_time() - found_at < 5
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: unacked(w) == 0)


async def test_nothing_new_is_asked_for_while_it_is_not_known_what_went_astray(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(consumer: FakePullConsumer, first: int) -> None:
        return None

    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        monkeypatch.setattr(FakePullConsumer, "unacked", unknown)
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        fill(w.broker, 5, first=10)
        w.broker.up()
        await eventually(lambda: w.route.state == PAUSED)
        assert w.route.reason is not None
        assert "come again first" in w.route.reason
        await all_acked(w, 15)
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: w.route.state == RUNNING and w.route.reason is None)


async def test_a_deleted_stream_is_waited_for_and_its_successor_starts_at_the_beginning(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        w.broker.delete_stream("IN")
        await eventually(lambda: w.route.state == FAILED)
        await trio.sleep(100)
        assert set(w.failures("subscribe")) == {"consumer_deleted", "stream_not_found"}
        w.broker.add_stream("IN", ["in.*"])
        fill(w.broker, 5, first=10)
        await all_acked(w, 15)
        assert [message.payload for message in brokers["edge"].published] == numbers(15)


async def test_what_is_in_hand_of_a_deleted_stream_acks_nothing_of_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    gate = trio.Event()

    async def hold(message: Message) -> Message:
        if message.payload in numbers(3):
            await gate.wait()
        return message

    handler = handled(hold, to=to("core", "edge"), stream="IN", durable="router", connection="main")
    async with world(handlers=[handler], brokers=brokers, shutdown_timeout=5) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.received == 3)
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        await eventually(lambda: w.watch.count("ROUTE_READY") == 2)
        fill(w.broker, 5, first=10)
        await eventually(lambda: w.route.received == 8)
        # The same sequences, other messages: nothing of the new stream is done yet.
        assert unacked(w) == 5
        gate.set()
        await all_acked(w, 5)
        assert [int(message.payload) for message in brokers["edge"].published] == [0, 1, 2, 10, 11, 12, 13, 14]
        assert w.route.duplicates == 0


async def test_acks_owed_to_a_deleted_stream_are_not_paid_to_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    broker = brokers["main"]
    async with world([REMOTE], brokers=brokers) as w, another_link(broker) as other:
        brokers["edge"].stall(1.0)
        fill(broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        broker.refuse_credentials()
        broker.cut("fake:4222")
        await eventually(lambda: w.failures("ack") == {"not_connected": 5})
        # Meanwhile the stream is made anew, and another process takes messages with the same sequences.
        broker.delete_stream("IN")
        broker.add_stream("IN", ["in.*"])
        taken: list[RawMessage] = []
        consumer = await other.open_consumer(ConsumerSpec("IN", "router", ("in.*",), 30.0, -1, 100), taken.extend)
        consumer.pull(5, 30.0)
        fill(broker, 5, first=5)
        await eventually(lambda: len(taken) == 5)
        broker.accept_credentials()
        await eventually(lambda: w.route.state == RUNNING)
        assert unacked(w) == 5
        await all_acked(w, 5)  # when the other one has not acked them in time
        assert w.payloads("OUT", "edge") == numbers(10)


async def test_a_consumer_that_falls_silent_is_opened_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = one_broker()
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        consumer = w.broker._server.consumers["IN", "router"]
        # The server forgets the pull requests, as one does that loses its interest in them: nobody is told.
        consumer._requests.clear()
        await w.watch.until("NATS_SUBSCRIBE_ERROR", within=60)
        assert w.failures("subscribe") == {"consumer_silent": 1}
        assert trio.current_time() <= module.SILENCE + 1
        fill(w.broker, 5, first=5)
        await all_acked(w, 10)
        assert w.payloads("OUT") == numbers(10)


async def test_retries_grow_while_the_consumer_is_lost_again_and_again(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        for _ in range(6):
            ready = w.watch.count("ROUTE_READY")
            w.broker.delete_consumer("IN", "router")
            await eventually(lambda ready=ready: w.watch.count("ROUTE_READY") > ready, 60)  # type: ignore[misc]
        times = [event.at for event in w.watch.of("NATS_SUBSCRIBE_ERROR")]
        delays = [later - earlier for earlier, later in pairwise(times)]
        assert delays[-1] > 4 * delays[0]
        fill(w.broker, 5)
        await all_acked(w, 5)
        w.broker.delete_consumer("IN", "router")
        began = trio.current_time()
        await eventually(lambda: w.watch.count("ROUTE_READY") == 8)
        assert trio.current_time() - began <= 0.6, "it had worked: the next loss waits the shortest time again"


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_what_is_in_hand_at_the_end_is_settled_and_acked(autojump_clock: MockClock) -> None:
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


async def test_what_was_under_way_at_the_end_needs_not_come_again(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        brokers["main"].stall(1.0)
        fill(brokers["main"], 20)
        await trio.lowlevel.checkpoint()
    assert w.route.received == 20
    assert unacked(w) == 0
    assert [message.payload for message in brokers["edge"].published] == numbers(20)


async def test_a_handler_that_does_not_end_is_cancelled_and_its_message_comes_again(
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
    assert w.live.unsettled == 0, "the stream still has them"
    assert dict(w.route.failed) == {}
    assert w.successes("nak") == 3
    assert w.entry()["accepted"] == 2
    patient = False
    began = trio.current_time()
    async with world(handlers=[handler()], brokers=brokers) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        assert trio.current_time() - began < 1.0, "given back, not left to the ack wait"
        await eventually(lambda: unacked(w) == 0)


async def test_what_waits_for_a_destination_at_the_end_is_given_back(autojump_clock: MockClock) -> None:
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


async def test_what_is_accepted_and_unconfirmed_at_the_end_is_counted_and_not_acked(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers, shutdown_timeout=2) as w:
        brokers["edge"].blackhole()
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
    assert w.live.unsettled == 5
    assert w.entry("edge")["settled"] == {"dropped": 5}
    assert w.successes("ack") == 0
    brokers["edge"].up()
    async with world([REMOTE], brokers=brokers) as w:
        await eventually(lambda: unacked(w) == 0, 120)
        assert w.payloads("OUT", "edge") == numbers(5)


@pytest.mark.parametrize("moment", [0.0, 0.0005, 0.3, 0.6, 1.5])
async def test_cancelled_at_any_moment_nothing_is_lost(autojump_clock: MockClock, moment: float) -> None:
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
async def test_what_anybody_publishes_to_the_inbox_ends_no_router(autojump_clock: MockClock, reply: str | None) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await all_acked(w, 1)
        inbox = w.live.connections["main"].inbox.decode()
        w.broker.publish(f"{inbox}-pull-1", b"x", reply=reply)
        fill(w.broker, 2)
        await all_acked(w, 3)
        assert len(w.payloads("OUT")) == 3
        assert b"x" not in w.payloads("OUT")


def test_what_looks_like_a_delivery_and_is_none_tells_nothing_wrong() -> None:
    source = cast(Source, SimpleNamespace(state=RouteState("route", "main", ("out.x",))))
    message = raw(b"in.x", b"$JS.ACK.IN.router.x.9.9.y.z", b"", b"")
    delivery = delivery_of(source, StreamCursor(), message, 0.0)
    assert delivery.deliveries == 0
    assert delivery.origin() == {"stream": "IN", "sequence": 9, "deliveries": 0, "timestamp": 0.0}


async def test_what_is_larger_than_all_that_may_be_in_hand_comes_alone(autojump_clock: MockClock) -> None:
    """In the order of the stream, between small ones, and nothing else is in hand with it."""
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


async def test_a_consumer_that_is_gone_has_borrowed_nothing(autojump_clock: MockClock) -> None:
    too_large = b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\n\r\n"
    async with world([LOCAL], brokers=one_broker()) as w:
        budget = w.live.connections["main"].pull_budget
        for _ in range(999):
            budget.join()
        await trio.sleep(40)  # what was asked for before that has expired
        await hear(w.broker, w.live.connections["main"].inbox + b"-pull-1", too_large)
        assert budget.lent > 0
        await trio.sleep(10)
        assert budget.lent == 0, "it is not kept for long when nothing comes"
        await hear(w.broker, w.live.connections["main"].inbox + b"-pull-1", too_large)
        assert budget.lent > 0
        await w.lose()
        assert budget.lent == 0
        await w.find()
        w.broker.publish("in.x", b"x" * 40_000)
        await all_acked(w, 1)
        assert budget.lent == 0, "given back as soon as the message has come"
