"""A message that reached the limit of deliveries of its durable becomes one dead letter, or is counted and logged."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import ConsumerSpec, ConsumerState, Limits
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.stream.consumer.delivery_limit import Conclusion, Counts, conclude, never_acked
from router_trio.testing import FakeBroker
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import another_link, fill, handled, one_broker, stream, to, two_brokers, world
from tests.unit.routing.stream.test_reported_causes import advise

ROUTE = stream("IN", "out.x", dead_letter={"subject": "dead.x"})
COUNTS = (
    # Of `redelivered` and `unacked` messages at the server, `in_hand` are here, and `once` of them were delivered once.
    # alone, limited | redelivered, unacked, in_hand, once | given_up, all_here, exact
    #
    # A durable that never had a limit: only what is not even unacked is given up.
    ((True, False), (0, 0, 0, 0), (0, True, False)),
    ((True, False), (1, 1, 1, 0), (0, True, False)),  # a message in hand is tried again
    ((True, False), (1, 5, 5, 4), (0, True, False)),  # among others
    ((True, False), (1, 5, 5, 5), (0, True, False)),  # which was delivered once, as far as this process knows
    ((True, False), (1, 1, 0, 0), (0, False, False)),  # a message waits for its next attempt
    ((True, False), (3, 1, 1, 0), (2, True, False)),  # the server gave up two: it had a limit
    # It has a limit, or had one: what is in hand and was delivered once is not among the redelivered.
    ((True, True), (0, 0, 0, 0), (0, True, True)),
    ((True, True), (3, 0, 0, 0), (3, True, True)),
    ((True, True), (3, 5, 5, 5), (3, True, True)),
    ((True, True), (3, 5, 5, 3), (1, True, False)),  # two in hand may be among the three
    ((True, True), (2, 5, 5, 3), (0, True, False)),
    ((True, True), (1, 1, 1, 0), (0, True, False)),
    ((True, True), (3, 7, 5, 5), (1, False, False)),  # two were received or answered meanwhile, or are awaited
    ((True, True), (1, 7, 5, 5), (0, False, False)),
    ((True, True), (3, 4, 5, 5), (0, False, False)),  # another client has settled one that is in hand
    # Other processes have messages as well, which may have been delivered more than once.
    ((False, True), (3, 5, 5, 5), (0, False, False)),
    ((False, True), (6, 5, 5, 5), (1, False, False)),
    ((False, False), (6, 5, 5, 5), (1, False, False)),
    ((False, False), (5, 5, 5, 5), (0, False, False)),
)
"""Counts of a durable, and the conclusion from them: `alone` and `limited`, the counts, the conclusion."""

LIMITED = ConsumerSpec("IN", "router", (), ack_wait=1.0, max_deliver=2, max_ack_pending=1000)


def broker_with_dead() -> dict[str, FakeBroker]:
    brokers = one_broker()
    brokers["main"].add_stream("DEAD", ["dead.>"])
    return brokers


async def use_up(broker: FakeBroker, *acked: int) -> None:
    """Let a process receive all messages of the durable until it delivers none, and ack some of them."""
    received: list[RawMessage] = []
    async with another_link(broker) as link:
        consumer = await link.open_consumer(LIMITED, received.extend)
        for _ in range(3):
            consumer.pull(100, 2.0)
            await trio.sleep(2.5)
            for raw in received:
                if raw[1] and int(raw[1].split(b".")[5]) in acked:
                    link.ack([raw[1]])
        await link.fence()


async def add_limited(broker: FakeBroker) -> None:
    """Create the durable with a limit, which the router removes, and have its first message acked."""
    fill(broker, 1)
    async with another_link(broker) as link:
        received: list[RawMessage] = []
        consumer = await link.open_consumer(replace(LIMITED, ack_wait=30.0), received.extend)
        consumer.pull(1, 2.0)
        await eventually(lambda: bool(received))
        link.ack([received[0][1]])
        await link.fence()


@pytest.fixture
def work_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stream of each consumer be a work queue."""
    limits = vars(FakePullConsumer)["limits"].fget

    def of_work_queue(self: FakePullConsumer) -> Limits:
        found: Limits = limits(self)
        return replace(found, retention="workqueue")

    monkeypatch.setattr(FakePullConsumer, "limits", property(of_work_queue))


def state(**changes: Any) -> ConsumerState:
    values: dict[str, Any] = {"paused": None, "unacked": 0, "max_ack_pending": 9, "delivered": 9, "undelivered": 0}
    return ConsumerState(**values | changes)


def test_where_everything_that_a_work_queue_has_was_never_acked() -> None:
    assert never_acked(state(passed=4)) == range(1, 10)
    assert never_acked(state(passed=4, unacked=1)) == range(1, 5)
    assert state(redelivered=3, unacked=1).given_up == 2
    assert state(redelivered=1, unacked=3).given_up == 0


@pytest.mark.parametrize(("known", "counts", "concluded"), COUNTS)
def test_each_row_of_counts_has_its_conclusion(
    known: tuple[bool, bool], counts: tuple[int, int, int, int], concluded: tuple[int, bool, bool]
) -> None:
    alone, limited = known
    assert conclude(Counts(*counts, alone=alone, limited=limited)) == Conclusion(*concluded)


def test_more_is_concluded_only_where_a_limit_is_known_and_never_more_than_was_redelivered() -> None:
    few = range(4)
    for redelivered, unacked, in_hand, once in product(few, few, few, few):
        for alone in (False, True):
            without = conclude(Counts(redelivered, unacked, in_hand, min(once, in_hand), alone, limited=False))
            limited = conclude(Counts(redelivered, unacked, in_hand, min(once, in_hand), alone, limited=True))
            assert without.given_up == max(0, redelivered - unacked) <= limited.given_up <= redelivered
            assert not without.exact
            assert limited.exact <= limited.all_here
            assert not limited.exact or limited.given_up == redelivered


async def test_the_only_message_at_the_limit_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 1)
    await use_up(brokers["main"])
    async with world([ROUTE], brokers=brokers) as w:
        await eventually(lambda: w.route.dead_lettered == 1, 60)
        (letter,) = w.broker.messages("DEAD")
        assert letter.payload == b"0"
        assert letter.headers["Router-Dead-Letter-Reason"] == "max_deliver"
        assert letter.headers["Router-Dead-Letter-Sequence"] == "1"
        assert letter.headers["Nats-Msg-Id"].startswith("IN:1:")
        await trio.sleep(60)
        assert w.route_ledger() == (1, 0, {"dead_lettered": 1})
        assert len(w.broker.messages("DEAD")) == 1
        fill(w.broker, 1, first=1)
        await eventually(lambda: w.payloads("OUT") == [b"1"])


@pytest.mark.usefixtures("work_queue")
async def test_each_message_that_a_work_queue_still_has_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 5)
    await use_up(brokers["main"])
    async with world([ROUTE], brokers=brokers) as w:
        await eventually(lambda: w.route.dead_lettered == 5, 60)
        assert sorted(w.payloads("DEAD")) == [b"0", b"1", b"2", b"3", b"4"]
        await trio.sleep(60)
        assert w.route_ledger() == (5, 0, {"dead_lettered": 5})


async def test_messages_that_were_acked_are_not_taken_for_others(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 5)
    await use_up(brokers["main"], 2, 4)
    async with world([ROUTE], brokers=brokers) as w:
        await eventually(lambda: w.route.dead_lettered == 3, 60)
        await trio.sleep(100)
        assert sorted(w.payloads("DEAD")) == [b"0", b"2", b"4"]
        assert w.route_ledger() == (3, 0, {"dead_lettered": 3})
        (event,) = w.watch.of("ROUTE_DELIVERY_LIMIT_REACHED")
        assert (event.count, event.from_sequence, event.to_sequence) == (3, 1, 5)
        # A message is terminated before its dead letter is stored.
        codes = [code for code in w.watch.codes if code.startswith(("ROUTE_DELIVERY", "ROUTE_MESSAGE"))]
        assert codes == ["ROUTE_DELIVERY_LIMIT_REACHED", *["ROUTE_MESSAGE_DEAD_LETTERED"] * 3]


async def test_a_message_behind_which_the_ack_floor_is_needs_to_be_named(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 3)
    await use_up(brokers["main"])
    fill(brokers["main"], 1, first=3)
    brokers["main"].trouble.take_by_hand("IN", "router", 1, ack=True)
    async with world([ROUTE], brokers=brokers) as w:
        event = await w.watch.until("ROUTE_DELIVERY_LIMIT_REACHED", within=100)
        assert (event.count, event.from_sequence, event.to_sequence) == (3, 1, 4)
        advise(w.broker, "max_deliveries", "IN", "router", stream_seq=2, deliveries=2)
        await eventually(lambda: w.payloads("DEAD") == [b"1"], 60)
        for sequence in (2, 4, 5, 99):
            advise(w.broker, "max_deliveries", "IN", "router", stream_seq=sequence, deliveries=2)
        await trio.sleep(60)
        assert w.route_ledger() == (1, 0, {"dead_lettered": 1}), "the server does not count the others"


async def test_two_processes_store_one_dead_letter_and_count_it_once(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 1)
    await use_up(brokers["main"])
    async with world([ROUTE], brokers=brokers) as one, world([ROUTE], brokers=brokers) as other:
        await eventually(lambda: one.route.dead_lettered + other.route.dead_lettered == 1, 60)
        await trio.sleep(60)
        assert len(one.broker.messages("DEAD")) == 1
        assert one.route.dead_lettered + other.route.dead_lettered == 1
        fates = [w.route_ledger()[2] for w in (one, other)]
        assert {"dead_lettered": 1} in fates
        assert all(fate in ({"dead_lettered": 1}, {"duplicate": 1}, {}) for fate in fates)


async def test_a_message_that_the_route_awaits_is_not_forgotten_at_the_limit(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()

    def fail(message: Message) -> None:
        raise ValueError("never")

    handler = handled(
        fail,
        to=to("out.x", jetstream=True),
        stream="IN",
        durable="router",
        ack_wait="2s",
        dead_letter={"subject": "dead.x"},
        retry={"initial": "20s", "max": "20s"},
    )
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 2)
        await eventually(lambda: w.route.failed["handler_error"] == 4, 60)
        w.broker.trouble.edit_consumer("IN", "router", max_deliver=2)
        w.broker.trouble.fix_consumer("IN", "router")
        await eventually(lambda: w.route.dead_lettered == 2, 120, lambda: w.route_ledger())
        await trio.sleep(60)
        received, in_hand, fates = w.route_ledger()
        assert in_hand == 0
        assert received == sum(fates.values())
        assert fates["dead_lettered"] == 2
        assert len(w.broker.messages("DEAD")) == 2


async def test_without_dead_letters_the_number_is_logged(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    fill(brokers["main"], 3)
    await use_up(brokers["main"])
    async with world([stream("IN", "out.x")], brokers=brokers) as w:
        event = await w.watch.until("ROUTE_DELIVERY_LIMIT_REACHED", within=60)
        assert (event.count, event.from_sequence, event.to_sequence) == (3, 1, 3)
        await trio.sleep(60)
        assert w.route_ledger() == (0, 0, {})


async def test_a_dead_letter_that_is_refused_is_tried_again(autojump_clock: MockClock) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 1)
    await use_up(brokers["main"])
    brokers["main"].deny_publish("dead.>")
    async with world([ROUTE], brokers=brokers) as w:
        await w.watch.until("ROUTE_DEAD_LETTER_NOT_STORED", within=60)
        w.broker.allow_publish("dead.>")
        await eventually(lambda: w.route.dead_lettered == 1, 120)
        received, in_hand, fates = w.route_ledger()
        assert in_hand == 0
        assert received == sum(fates.values())
        assert len(w.broker.messages("DEAD")) == 1


async def test_a_durable_without_a_limit_causes_no_lookups(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stored(*_: Any) -> list[RawMessage]:
        raise AssertionError("nothing reached a limit")

    monkeypatch.setattr(FakePullConsumer, "stored", stored)
    calls = 0

    def fail_once(message: Message) -> Message:
        nonlocal calls
        calls += 1
        if message.deliveries < 3:
            raise ValueError("not yet")
        return message.replace(subject="out.x")

    handler = handled(fail_once, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 20)
        await eventually(lambda: w.route.settled["routed"] == 20, 120)
        await trio.sleep(30)
        assert not w.watch.of("ROUTE_DELIVERY_LIMIT_REACHED")


async def test_a_message_that_was_terminated_is_dead_lettered_although_the_link_dies_next(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 3)
    await use_up(brokers["main"])
    claim, tried = FakePullConsumer.claim, 0
    async with world([ROUTE], brokers=brokers) as w:

        async def claimed(self: FakePullConsumer, sequence: int, counted: int) -> bool | None:
            nonlocal tried
            tried += 1
            if tried == 2:
                await w.lose()
            return await claim(self, sequence, counted)

        monkeypatch.setattr(FakePullConsumer, "claim", claimed)
        await eventually(lambda: tried == 2, 60)
        await w.find()
        await eventually(lambda: w.route.dead_lettered == 3, 120)
        assert sorted(w.payloads("DEAD")) == [b"0", b"1", b"2"]


async def test_messages_are_found_although_new_ones_have_moved_the_ack_floor_past_them(
    autojump_clock: MockClock,
) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 5)
    await use_up(brokers["main"], 2)
    async with world([ROUTE], brokers=brokers) as w:
        for first in range(5, 105):
            fill(w.broker, 1, first=first)
            await trio.sleep(0.2)
        assert sorted(w.payloads("DEAD")) == [b"0", b"2", b"3", b"4"]
        await eventually(lambda: w.route.settled["routed"] == 100)
        assert w.route_ledger() == (104, 0, {"dead_lettered": 4, "routed": 100})


async def test_nothing_is_tried_while_a_redelivered_message_is_in_hand(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = broker_with_dead()
    fill(brokers["main"], 3)
    await use_up(brokers["main"])
    release = trio.Event()

    async def fail_once(message: Message) -> Message:
        if message.deliveries == 1:
            raise ValueError("not yet")
        await release.wait()
        return message.replace(subject="out.x")

    claims = 0
    claim = FakePullConsumer.claim

    async def claimed(self: FakePullConsumer, sequence: int, counted: int) -> bool | None:
        nonlocal claims
        claims += 1
        return await claim(self, sequence, counted)

    monkeypatch.setattr(FakePullConsumer, "claim", claimed)
    handler = handled(
        fail_once,
        to=to("out.x", jetstream=True),
        stream="IN",
        durable="router",
        dead_letter={"subject": "dead.x"},
        retry={"initial": "1s", "max": "1s"},
    )
    fill(brokers["main"], 1, first=3)
    async with world(handlers=[handler], brokers=brokers) as w:
        await w.watch.until("ROUTE_DELIVERY_LIMIT_REACHED", within=60)
        await trio.sleep(20)
        assert not claims, "its ack would reduce the number that the server counts"
        release.set()
        await eventually(lambda: w.route.dead_lettered == 3, 60)
        assert w.route_ledger() == (5, 0, {"dead_lettered": 3, "routed": 1, "returned": 1})


async def second_attempt_lasts(message: Message) -> Message:
    """Fail at the first delivery, and take long at the second."""
    if message.deliveries % 2:
        raise ValueError("not yet")
    await trio.sleep(11)
    return message.replace(subject="out.x")


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("letters", [{}, {"dead_letter": {"subject": "dead.x"}}])
async def test_a_message_that_is_tried_again_is_not_taken_for_one_at_the_limit(
    autojump_clock: MockClock, letters: dict[str, Any], limited: bool
) -> None:
    brokers = broker_with_dead()
    if limited:
        await add_limited(brokers["main"])
    retry = {"initial": "1s", "max": "1s"}
    route = {"stream": "IN", "durable": "router", "retry": retry, "concurrency": 4, **letters}
    handler = handled(second_attempt_lasts, to=to("out.x", jetstream=True), **route)
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 2, subjects="ab")
        await eventually(lambda: w.route.settled["routed"] == 4, 120)
        assert w.route.failed["handler_error"] == 4
        assert bool(w.watch.of("ROUTE_CONSUMER_LIMITS_REMOVED")) is limited
        assert not w.watch.of("ROUTE_DELIVERY_LIMIT_REACHED")


async def test_messages_that_wait_for_a_destination_at_their_second_delivery_are_not_at_the_limit(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    async with world([stream("IN", to("out.x", "edge", jetstream=True), connection="main")], brokers=brokers) as w:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_for, w.broker, 30)
            await trio.sleep(5)
            brokers["edge"].deny_publish("out.>")
            await trio.sleep(0.15)
            brokers["edge"].allow_publish("out.>")
            brokers["edge"].trouble.lose("puback", 1_000_000)  # what is sent again is in hand until the server is away
            await trio.sleep(2)
            await w.lose("edge")
            brokers["edge"].trouble.lose("puback", 0)
            assert w.broker._server.consumers["IN", "router"].state_at(trio.current_time()).redelivered
            await trio.sleep(10)
            await w.find("edge")
        await eventually(lambda: w.route.settled["routed"] == 3_000, 60)
        assert not w.watch.of("ROUTE_DELIVERY_LIMIT_REACHED")


async def publish_for(broker: FakeBroker, seconds: int) -> None:
    """Publish 100 messages a second."""
    for tenth in range(10 * seconds):
        fill(broker, 10, first=10 * tenth)
        await trio.sleep(0.1)


async def test_a_redelivery_that_was_lost_with_a_link_is_not_taken_for_a_message_at_the_limit(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    await add_limited(brokers["main"])
    release = trio.Event()

    async def wait(message: Message) -> Message:
        await release.wait()
        return message.replace(subject="out.x")

    handler = handled(wait, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.in_hand == 3)
        assert w.watch.of("ROUTE_CONSUMER_LIMITS_REMOVED")
        w.broker.trouble.redeliver_by_hand("IN", "router", 1)
        await w.lose()
        await w.find()
        await trio.sleep(20)
        fill(w.broker, 1, first=3)
        await trio.sleep(20)
        release.set()
        await eventually(lambda: w.route.settled["routed"] == 4, 60)
        assert not w.watch.of("ROUTE_DELIVERY_LIMIT_REACHED")


async def test_messages_in_hand_that_were_delivered_once_do_not_hide_those_at_the_limit(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    fill(brokers["main"], 3)
    await use_up(brokers["main"])
    release = trio.Event()

    async def wait(message: Message) -> Message:
        await release.wait()
        return message.replace(subject="out.x")

    handler = handled(wait, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 8, first=3)
        event = await w.watch.until("ROUTE_DELIVERY_LIMIT_REACHED", within=60)
        assert (event.count, w.route.in_hand) == (3, 8)
        release.set()
        await eventually(lambda: w.route.settled["routed"] == 8)
