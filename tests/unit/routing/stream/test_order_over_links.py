"""Order per subject across lost links, recreated consumers and streams, and at the end."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.stream.consumer import undelivered as module
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import all_acked, fill, handled, numbers, one_broker, to, two_brokers, unacked, world
from tests.unit.routing.stream.refusing import arrived, remote, route

# --- links, consumers and streams that are lost and replaced ---


async def test_a_nak_that_found_no_link_is_sent_on_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([remote()], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        brokers["edge"].stall(1.0)
        fill(w.broker, 5, subjects="a")
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        await w.lose("main")
        await eventually(lambda: w.route.failed["permission_denied"] == 5)
        assert w.failures("nak") == {"not_connected": 5}
        brokers["edge"].allow_publish("out.a")
        await w.find("main")
        began = trio.current_time()
        fill(w.broker, 5, first=5, subjects="a")
        await all_acked(w, 10)
        assert trio.current_time() - began < 5, "far less than the ack wait"
        assert arrived(w, "a", "edge") == numbers(10)


@pytest.mark.parametrize(("max_in_flight", "within"), [(1024, 5), (2, 65)])
async def test_a_recreated_consumer_delivers_awaited_messages_first(
    autojump_clock: MockClock, max_in_flight: int, within: float
) -> None:
    """With little room, the deletion is noticed when messages are requested again."""
    brokers = one_broker()
    async with world([route(retry={"initial": "60s"}, max_in_flight=max_in_flight)], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 10, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == min(max_in_flight, 10))
        w.broker.allow_publish("out.a")
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 10, first=10, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 20, within)
        assert arrived(w, "a") == numbers(20)
        await eventually(lambda: unacked(w) == 0)


async def test_a_consumer_recreated_while_the_link_is_down_delivers_awaited_messages_at_once(
    autojump_clock: MockClock,
) -> None:
    async with world([route(retry={"initial": "60s"}, max_in_flight=2)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 10, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 2)
        w.broker.allow_publish("out.a")
        await w.lose()
        w.broker.delete_consumer("IN", "router")
        await w.find()
        await eventually(lambda: arrived(w, "a") == numbers(10), 5)


async def test_waiting_messages_are_routed_when_their_stream_is_replaced(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        fill(w.broker, 3, first=1, subjects="a")
        await eventually(lambda: w.route.received == 4)
        w.broker.allow_publish("out.a")
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        await eventually(lambda: len(arrived(w, "a")) == 3)
        fill(w.broker, 2, first=10, subjects="a")
        await all_acked(w, 2)
        assert arrived(w, "a") == [*numbers(3, first=1), b"10", b"11"]


# --- the end ---


async def test_at_the_end_messages_behind_one_that_will_not_arrive_are_returned_at_once(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(retry={"initial": "60s"})], brokers=brokers, shutdown_timeout=20) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 5, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 5)
        fill(w.broker, 5, first=5, subjects="a")
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
async def test_at_the_end_messages_behind_one_in_hand_wait_for_its_fate(
    autojump_clock: MockClock, allowed: bool
) -> None:
    brokers = two_brokers()
    async with world([remote()], brokers=brokers, shutdown_timeout=20) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, 5, subjects="a")
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


async def test_a_refused_message_whose_nak_is_lost_is_still_redelivered_when_its_room_is_taken(
    autojump_clock: MockClock,
) -> None:
    """It is requested from the time it was due; the messages that the server delivers instead take all the room."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    async with world([route(max_in_flight=2, ack_wait="5s", retry={"initial": "50ms"})], brokers={"main": broker}) as w:
        broker.deny_publish("out.a")
        broker.trouble.lose("nak")
        fill(broker, 1, subjects="a")
        await eventually(lambda: sum(w.route.failed.values()) == 1)
        broker.allow_publish("out.a")
        for number in range(1, 10):
            fill(broker, 1, first=number, subjects="a")
            await trio.sleep(0.2)
        await eventually(lambda: arrived(w, "a") == numbers(10), 60)
        await eventually(lambda: unacked(w) == 0)


async def test_acks_of_the_route_itself_are_not_taken_for_those_of_another_process(
    autojump_clock: MockClock,
) -> None:
    async def takes_a_moment(message: Message) -> Message:
        await trio.sleep(0.2)
        return message

    source = {"connection": "main", "stream": "IN", "durable": "router", "filter": "in.*", "ack_wait": "5s"}
    copies = handled(takes_a_moment, to=to("out.{{wildcard(1)}}", "edge", jetstream=True), key="subject", **source)
    async with world(handlers=[copies], brokers=two_brokers()) as w:
        w.broker.trouble.redeliver_by_hand("IN", "router", 1)  # so the route expects other processes on the next link
        fill(w.broker, 5, subjects="a")
        await eventually(lambda: w.route.in_hand == 5)
        w.broker.trouble.break_after(from_server=0)  # the next deliveries are lost
        fill(w.broker, 5, first=5, subjects="a")
        await eventually(lambda: w.watch.of("NATS_CONNECTION_LOST"))
        fill(w.broker, 5, first=10, subjects="a")
        await all_acked(w, 15)
        assert arrived(w, "a", "edge") == numbers(15)


# --- naks that the server refuses ---


async def test_messages_that_a_dead_link_did_not_deliver_are_routed_first_though_naks_are_refused(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(ack_wait="5s")], brokers=brokers) as w:
        fill(w.broker, 1, subjects="a")
        await all_acked(w, 1)
        w.broker.trouble.break_after(from_server=0)  # the next deliveries are lost
        fill(w.broker, 3, first=1, subjects="a")
        w.broker.deny_publish("$JS.ACK.>")
        await eventually(lambda: w.watch.of("NATS_CONNECTION_LOST"))
        await eventually(lambda: w.live.connections["main"].connected)
        fill(w.broker, 3, first=4, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 7, 20)
        assert arrived(w, "a") == numbers(7)
        w.broker.allow_publish("$JS.ACK.>")


async def test_messages_delivered_without_payload_are_routed_first_though_naks_are_refused(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(ack_wait="20s")], brokers=brokers) as w:
        fill(w.broker, 1, subjects="a")
        await all_acked(w, 1)
        w.broker.trouble.edit_consumer("IN", "router", headers_only=True)
        fill(w.broker, 3, first=1, subjects="a")
        await trio.sleep(1)
        w.broker.deny_publish("$JS.ACK.>")
        w.broker.trouble.edit_consumer("IN", "router", headers_only=False)
        await trio.sleep(6)  # by then the route has noticed that it delivers payloads
        fill(w.broker, 3, first=4, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 7, 60)
        assert arrived(w, "a") == numbers(7)
        w.broker.allow_publish("$JS.ACK.>")
