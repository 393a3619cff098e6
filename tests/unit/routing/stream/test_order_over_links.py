"""Order per subject across lost links, recreated consumers and streams, and at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import SourceError
from router_trio.link import ConsumerState
from router_trio.message import Message
from router_trio.routing.stream.consumer import undelivered as module
from router_trio.states import PAUSED
from router_trio.testing import FakeBroker
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import World, all_acked, fill, handled, numbers, one_broker, to, two_brokers, unacked, world
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


async def test_messages_that_another_process_has_in_hand_are_not_requested_on_the_second_link_either(
    autojump_clock: MockClock,
) -> None:
    """The first link is lost before it received anything. The other process has no request pending."""
    brokers, go_on = one_broker(), trio.Event()
    fill(brokers["main"], 2)

    async def work(message: Message) -> Message:
        await go_on.wait()
        return message

    destination = to("out.{{wildcard(1)}}", jetstream=True)
    busy = handled(work, to=destination, stream="IN", durable="router", filter="in.*", max_in_flight=2)
    async with world(handlers=[busy], brokers=brokers) as first:
        await eventually(lambda: first.route.in_hand == 2)
        async with world([route()], brokers=brokers, servers=["nats://second:4222"]) as second:
            await eventually(lambda: len(second.watch.of("ROUTE_READY")) == 1)
            brokers["main"].cut("second:4222")
            await eventually(lambda: len(second.watch.of("ROUTE_READY")) == 2)
            await trio.sleep(2.0)
            assert second.route.received == 0
            go_on.set()
            await all_acked(first, 2)
            assert second.route.received == 0


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


@asynccontextmanager
async def undelivered(ack_wait: str) -> AsyncIterator[World]:
    """Yield a world whose route waits for messages 1 to 3: a dead link did not deliver them, and naks are refused."""
    async with world([route(ack_wait=ack_wait)], brokers=one_broker()) as w:
        fill(w.broker, 1, subjects="a")
        await all_acked(w, 1)
        w.broker.trouble.break_after(from_server=0)  # the next deliveries are lost
        fill(w.broker, 3, first=1, subjects="a")
        w.broker.deny_publish("$JS.ACK.>")
        await eventually(lambda: w.watch.of("NATS_CONNECTION_LOST"))
        await eventually(lambda: w.route.state == PAUSED and "must be redelivered first" in (w.route.reason or ""))
        yield w
        w.broker.allow_publish("$JS.ACK.>")


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


@pytest.mark.parametrize(("before", "after"), [("2s", 20.0), ("20s", 2.0), ("7s", 12.0)])
async def test_they_are_routed_first_though_the_ack_wait_is_edited_while_they_are_waited_for(
    before: str, after: float, autojump_clock: MockClock
) -> None:
    async with undelivered(before) as w:
        w.broker.trouble.edit_consumer("IN", "router", ack_wait=after)
        fill(w.broker, 3, first=4, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 7, 30)
        assert arrived(w, "a") == numbers(7)


async def test_they_are_routed_first_though_the_ack_wait_is_edited_twice(autojump_clock: MockClock) -> None:
    async with undelivered("5s") as w:
        fill(w.broker, 3, first=4, subjects="a")
        w.broker.trouble.edit_consumer("IN", "router", ack_wait=10.0)
        await trio.sleep(9)
        w.broker.trouble.edit_consumer("IN", "router", ack_wait=20.0)
        await eventually(lambda: len(arrived(w, "a")) == 7, 30)
        assert arrived(w, "a") == numbers(7)


async def test_new_messages_are_requested_after_the_ack_wait_though_it_may_not_be_looked_up(
    autojump_clock: MockClock,
) -> None:
    async with undelivered("5s") as w:
        w.broker.deny_publish("$JS.API.CONSUMER.INFO.>")
        fill(w.broker, 3, first=4, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 7, 8)
        assert arrived(w, "a") == numbers(7)
        w.broker.allow_publish("$JS.API.CONSUMER.INFO.>")


class Scripted(FakePullConsumer):
    """A consumer with an ack wait of 5 s when it was opened, whose checks have these results."""

    ack_wait = 5.0

    def __init__(self, *results: ConsumerState | str) -> None:
        self._results = list(results)

    async def check(self, *, oldest: bool = False) -> ConsumerState:
        result = self._results.pop(0)
        if isinstance(result, str):
            raise SourceError("the lookup failed", reason=result)
        return result


def state(ack_wait: float, *lifted: str) -> ConsumerState:
    return ConsumerState(None, 3, 1000, 3, 3, lifted=lifted, ack_wait=ack_wait)


@pytest.mark.parametrize(
    ("results", "until", "postponed"),
    [
        ([state(5.0)], 5.1, []),
        ([state(1.0)], 5.1, []),
        ([state(0.0)], 5.1, []),
        ([state(9.0), state(12.0), state(12.0)], 12.1, [9.1, 12.1]),
        (["permission_denied"], 5.1, []),
        (["consumer_not_found"], 5.1, []),
        (["timeout", "jetstream_unavailable", state(5.0)], 7.1, [6.1, 7.1]),
        (["timeout", state(9.0), "permission_denied"], 9.1, [6.1, 9.1]),
    ],
)
async def test_the_ack_wait_is_looked_up_when_it_should_be_over(
    results: list[ConsumerState | str], until: float, postponed: list[float], autojump_clock: MockClock
) -> None:
    began, later = trio.current_time(), list[float]()
    await module.wait_for_redeliveries(Scripted(*results), began + 5.1, later.append, lambda _: None)
    assert trio.current_time() - began == pytest.approx(until)
    assert [one - began for one in later] == pytest.approx(postponed)


async def test_a_limit_that_the_lookup_has_removed_is_reported(autojump_clock: MockClock) -> None:
    lifted: list[str] = []
    consumer = Scripted(state(5.0, "inactive_threshold = 60"))
    await module.wait_for_redeliveries(consumer, trio.current_time(), lambda _: None, lifted.extend)
    assert lifted == ["inactive_threshold = 60"]


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
