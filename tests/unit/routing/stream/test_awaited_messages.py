"""A refused message that is awaited: for how long, and what shows that it is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import SourceError
from router_trio.link import ConsumerState
from router_trio.message import Message
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from router_trio.states import RUNNING
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import (
    Handled,
    World,
    all_acked,
    fill,
    handled,
    numbers,
    one_broker,
    to,
    two_brokers,
    world,
)
from tests.unit.routing.by_key import Calls, by_key, publish
from tests.unit.routing.stream.refusing import arrived, remote, route


async def test_a_message_in_its_handler_is_not_sent_if_an_earlier_one_is_refused_meanwhile(
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
        fill(w.broker, 3, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        go_on.set()
        await all_acked(w, 3)
        assert arrived(w, "a") == numbers(3)
        assert worked_on == [b"0", b"1", b"0", b"1", b"2"]


async def test_refused_messages_that_another_process_has_acked_are_awaited_until_the_next_check(
    autojump_clock: MockClock,
) -> None:
    async with world([route(ack_wait="30s", max_in_flight=4)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.*")
        fill(w.broker, 1, subjects="ab")
        await eventually(lambda: w.route.failed["permission_denied"] == 2)
        w.broker.allow_publish("out.*")
        for sequence in (1, 2):
            w.broker._server.consumers["IN", "router"].ack(sequence)
        fill(w.broker, 3, first=1, subjects="ab")
        await eventually(lambda: len(w.broker.messages("OUT")) == 6, CHECK_EVERY + 1)
        assert arrived(w, "a") == arrived(w, "b") == numbers(3, first=1)
        await eventually(lambda: w.route.state == RUNNING)


async def test_messages_that_others_settled_are_awaited_while_an_earlier_one_is_unacked(
    autojump_clock: MockClock,
) -> None:
    """A server counts unacked messages and says up to where all are settled, but not which of the others are."""
    async with world([route(ack_wait="10s", retry={"initial": "10s"})], brokers=one_broker()) as w:
        consumer = w.broker._server.consumers["IN", "router"]
        w.broker.trouble.take_by_hand("IN", "router", ack=False)
        fill(w.broker, 1, subjects="z")
        await eventually(consumer.left_unacked)
        consumer.again([1], trio.current_time() + 1000.0)
        w.broker.deny_publish("out.*")
        for subject in "abc":
            fill(w.broker, 1, subjects=subject)
            await trio.sleep(3.0)
        assert w.route.failed["permission_denied"] == 3
        w.broker.allow_publish("out.*")
        for sequence in (2, 3, 4):
            consumer.ack(sequence)
        fill(w.broker, 1, first=1, subjects="abc")
        await trio.sleep(15.0)
        assert not w.broker.messages("OUT")
        consumer.ack(1)
        await eventually(lambda: len(w.broker.messages("OUT")) == 3, CHECK_EVERY + 1)


async def test_a_refused_message_delivered_after_others_has_room_as_soon_as_it_is_due(
    autojump_clock: MockClock,
) -> None:
    """The others fill the room in hand, and the server has one more of them that is due first."""
    raised: set[bytes] = set()

    async def work(message: Message) -> Message:
        if message.payload not in raised:
            raised.add(message.payload)
            raise ValueError("the first time only")
        return message

    source = {"stream": "IN", "durable": "router", "filter": "in.*", "max_in_flight": 2, "retry": {"initial": "1s"}}
    handler = handled(work, to=to("out.{{wildcard(1)}}", jetstream=True), ack_wait="30s", **source)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 6, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1, 10)
        w.broker.allow_publish("out.a")
        began = trio.current_time()
        await all_acked(w, 6)
        assert trio.current_time() - began < 15
        assert arrived(w, "a") == numbers(6)


async def test_a_refused_message_is_requested_to_probe_its_destination_though_one_that_waits_behind_it_is_in_hand(
    autojump_clock: MockClock,
) -> None:
    """The one behind it was recalled from the destination, and waits until a probe may go."""
    brokers = two_brokers()
    async with world([remote(ack_wait="30s", max_in_flight=2, retry={"initial": "100ms"})], brokers=brokers) as w:
        w.brokers["edge"].trouble.limit("OUT", 0)
        fill(w.broker, 1, subjects="a")
        await trio.sleep(0.03)
        fill(w.broker, 1, first=1, subjects="a")
        await eventually(lambda: w.route.failed["limit"] == 1)
        w.brokers["edge"].trouble.limit("OUT", None)
        await all_acked(w, 2)
        assert trio.current_time() < 3
        assert arrived(w, "a", "edge") == numbers(2)


async def test_a_message_returned_to_make_room_for_one_whose_nak_was_lost_is_redelivered_soon(
    autojump_clock: MockClock,
) -> None:
    """The message is redelivered after its ack wait; the message returned for it need not wait for as long again."""
    brokers = one_broker()
    async with world([route(ack_wait="30s", max_in_flight=2, retry={"initial": "100ms"})], brokers=brokers) as w:
        w.broker.trouble.lose("nak")
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        began = trio.current_time()
        for number in range(1, 9):
            await trio.sleep(0.1)
            fill(w.broker, 1, first=number, subjects="a")
        await all_acked(w, 9)
        assert arrived(w, "a") == numbers(9)
        assert 29 < trio.current_time() - began < 32


async def test_a_message_returned_to_make_room_is_redelivered_as_soon_as_no_other_is_awaited(
    autojump_clock: MockClock,
) -> None:
    """It was returned for an ack wait, and the message in front of it is redelivered on the next link."""
    brokers = one_broker()
    async with world([route(ack_wait="30s", max_in_flight=2, retry={"initial": "100ms"})], brokers=brokers) as w:
        w.broker.trouble.lose("nak")
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        for number in range(1, 9):
            await trio.sleep(0.1)
            fill(w.broker, 1, first=number, subjects="a")
        await eventually(lambda: w.route.settled["returned"] > 1)
        began = trio.current_time()
        w.broker.cut()
        await all_acked(w, 9)
        assert arrived(w, "a") == numbers(9)
        assert trio.current_time() - began < 10


async def test_a_refused_message_that_the_stream_still_has_is_waited_for_however_long_it_takes(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([route(ack_wait="1s", retry={"initial": "10s"})], brokers=brokers) as w:
        await _one_is_awaited(w)
        w.broker.trouble.pause_consumer("IN", "router", 600)
        await trio.sleep(500)
        assert arrived(w, "a") == []
        assert "is paused on the server" in str(w.route.reason)
        await all_acked(w, 20)
        assert arrived(w, "a") == numbers(20)


async def test_while_the_stream_can_not_be_looked_up_late_messages_are_awaited_and_reported(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(
        consumer: FakePullConsumer, awaited: Mapping[int, bytes], in_hand: Callable[[], int]
    ) -> Collection[int]:
        asked.append((list(awaited), in_hand()))
        raise SourceError("no answer", reason="timeout")

    async def refuse(consumer: FakePullConsumer, *, oldest: bool = False) -> ConsumerState:
        raise SourceError("no answer", reason="timeout")

    asked: list[tuple[list[int], int]] = []
    brokers = one_broker()
    async with world([route(ack_wait="10s", retry={"initial": "10s"})], brokers=brokers) as w:
        await _one_is_awaited(w)
        w.broker._server.consumers["IN", "router"].ack(1)
        with monkeypatch.context() as patch:
            patch.setattr(FakePullConsumer, "gone", ask)
            patch.setattr(FakePullConsumer, "check", refuse)
            await eventually(lambda: asked, 60)
            await eventually(lambda: "still has them failed: no answer" in (w.route.reason or ""), 0.1)
            await trio.sleep(200)
        assert asked == [([1], 19)] * 20, "every 10.1 s"
        assert arrived(w, "a") == []
        await all_acked(w, 19)
        assert arrived(w, "a") == numbers(19, first=1)
        await eventually(lambda: w.route.reason is None)


def failing_once(calls: Calls) -> Handled:
    """Return a route with a key whose first message fails once."""
    failures = iter((True,))

    async def work(message: Message) -> Message:
        if message.payload == b"0" and next(failures, False):
            raise ValueError("not yet")
        return await calls(message)

    handler: Handled = by_key(work, ack_wait="5s", retry={"initial": "1s"})
    return handler


async def nothing() -> None:
    """Do nothing."""


def as_a_server_answers(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[None]] = nothing
) -> list[Collection[int]]:
    """Have `gone` know what a real link knows: a server counts unacked messages, and does not name them.

    `meanwhile` is called during each lookup. Return a list of the messages that were asked about, which grows.
    """
    asked: list[Collection[int]] = []

    async def gone(consumer: FakePullConsumer, awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> list[int]:
        asked.append([*awaited])
        await meanwhile()
        state = await consumer.check()
        last = state.delivered if state.unacked <= in_hand() else state.passed
        return [sequence for sequence in awaited if sequence <= last]

    monkeypatch.setattr(FakePullConsumer, "gone", gone)
    return asked


async def test_messages_acked_during_the_lookup_do_not_hide_one_to_be_redelivered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer is paused, so the message is late; the server counts unacked messages after two others were
    acked.
    """
    calls = Calls()

    async def ack_two() -> None:
        calls.let_go("a", "b")
        await trio.sleep(1.0)

    asked = as_a_server_answers(monkeypatch, ack_two)
    async with world(handlers=[failing_once(calls)], brokers=one_broker()) as w:
        publish(w.broker, "f:0", "a:1", "b:2", "c:3")
        await eventually(lambda: w.route.fates["returned"] == 1 and len(calls.active) == 3)
        w.broker.trouble.pause_consumer("IN", "router", 20.0)
        await eventually(lambda: asked, 20)
        calls.let_go("c", "f")
        await eventually(lambda: sorted(one.payload for one in w.broker.messages("OUT")) == numbers(4), 60)


async def test_a_message_acked_by_another_process_does_not_hide_one_to_be_redelivered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was redelivered there while the link was down, and is still in hand here."""
    calls = Calls()
    asked = as_a_server_answers(monkeypatch)
    async with world(handlers=[failing_once(calls)], brokers=one_broker()) as w:
        publish(w.broker, "f:0", "a:1")
        await eventually(lambda: w.route.fates["returned"] == 1 and len(calls.active) == 1)
        w.broker.trouble.pause_consumer("IN", "router", 30.0)
        await w.lose()
        w.broker._server.consumers["IN", "router"].ack(2)
        await w.find()
        await eventually(lambda: asked, 30)
        calls.let_go("a", "f")
        await eventually(lambda: sorted(one.payload for one in w.broker.messages("OUT")) == numbers(2), 60)


async def test_messages_settled_by_other_processes_do_not_hide_one_to_be_redelivered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message in hand was redelivered to another process, which has acked it, and one that it received itself."""
    calls = Calls()
    asked = as_a_server_answers(monkeypatch)
    async with world(handlers=[failing_once(calls)], brokers=one_broker()) as w:
        publish(w.broker, "f:0", "a:1")
        await eventually(lambda: w.route.fates["returned"] == 1 and len(calls.active) == 1)
        w.broker.trouble.take_by_hand("IN", "router", ack=True)
        publish(w.broker, "b:2", "c:3")
        await eventually(lambda: len(calls.active) == 2)
        w.broker._server.consumers["IN", "router"].ack(2)
        w.broker.trouble.pause_consumer("IN", "router", 30.0)
        await eventually(lambda: asked, 30)
        calls.let_go("a", "c", "f")
        arrive = [b"0", b"1", b"3"]
        await eventually(lambda: sorted(one.payload for one in w.broker.messages("OUT")) == arrive, 60)


async def _one_is_awaited(w: World) -> None:
    """Have the first of twenty messages refused, and the others wait for it."""
    w.broker.deny_publish("out.a")
    fill(w.broker, 1, subjects="a")
    await eventually(lambda: w.route.failed["permission_denied"] == 1)
    w.broker.allow_publish("out.a")
    fill(w.broker, 19, first=1, subjects="a")
    await eventually(lambda: w.route.received == 20)


async def test_a_pause_does_not_count_as_waiting(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    async with world([remote(ack_wait="1s", max_in_flight=2)], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.a")
        fill(w.broker, 20, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] >= 2)
        await w.lose("edge")
        await trio.sleep(100)
        brokers["edge"].allow_publish("out.a")
        await w.find("edge")
        await all_acked(w, 20)
        assert arrived(w, "a", "edge") == numbers(20)


@pytest.mark.parametrize("ack", [True, False])
@pytest.mark.parametrize("taken", ["a new message", "the refused one"])
async def test_order_is_kept_though_another_client_takes_a_message_by_hand(
    autojump_clock: MockClock, taken: str, ack: bool
) -> None:
    async with world([route(ack_wait="5s")], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 3, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 3)
        w.broker.trouble.take_by_hand("IN", "router", ack=ack)
        if taken == "a new message":
            fill(w.broker, 1, first=3, subjects="c")
        else:
            await trio.sleep(3.0)  # the message is due, and tried by the other client
        fill(w.broker, 1, first=4, subjects="c")
        await eventually(lambda: b"4" in arrived(w, "c"))
        fill(w.broker, 40, first=5, subjects="a")
        await trio.sleep(3.0)
        assert not arrived(w, "a")
        w.broker.allow_publish("out.a")
        lost = 1 if ack and taken == "the refused one" else 0
        await eventually(lambda: len(arrived(w, "a")) == 43 - lost, 60)
        assert sorted(arrived(w, "a"), key=int) == arrived(w, "a")


async def test_order_is_kept_though_another_client_had_the_refused_message_and_nothing_was_requested_since(
    autojump_clock: MockClock,
) -> None:
    """The messages behind it fill the hand, so nothing is requested until one of them is returned to make room."""
    source = route(ack_wait="30s", max_in_flight=2, retry={"initial": "100ms"})
    async with world([source], brokers=one_broker()) as w:
        w.broker.trouble.travel(lambda: 0.001)
        w.broker.trouble.lose("nak")
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        await trio.sleep(10.0)
        w.broker.trouble.redeliver_by_hand("IN", "router", 1)
        fill(w.broker, 9, first=1, subjects="a")
        await all_acked(w, 10)
        assert arrived(w, "a") == numbers(10)


async def test_order_is_kept_though_another_client_takes_a_message_by_hand_now_and_then(
    autojump_clock: MockClock,
) -> None:
    async with world([route(ack_wait="30s")], brokers=one_broker()) as w:
        for pause in (0.0, 36.0, 36.0):
            await trio.sleep(pause)
            w.broker.trouble.take_by_hand("IN", "router", ack=True)
            fill(w.broker, 2, subjects="c")
            await trio.sleep(0.1)
        assert len(arrived(w, "c")) == 3, "every second message was taken"
        w.broker.deny_publish("out.a")
        fill(w.broker, 3, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 3)
        fill(w.broker, 40, first=3, subjects="a")
        await trio.sleep(0.1)
        assert w.route.failed["permission_denied"] == 3, "the new messages wait behind the refused ones"
        w.broker.allow_publish("out.a")
        await eventually(lambda: len(arrived(w, "a")) == 43, 60)
        assert arrived(w, "a") == numbers(43)


async def test_messages_are_not_awaited_while_others_share_the_durable_for_long(autojump_clock: MockClock) -> None:
    async with world([route(ack_wait="5s")], brokers=one_broker()) as w:

        async def share(seconds: int) -> None:
            for _ in range(seconds):
                w.broker.trouble.take_by_hand("IN", "router", ack=True)
                fill(w.broker, 1, first=100, subjects="b")
                fill(w.broker, 1, first=100, subjects="b")
                await trio.sleep(1.0)

        await share(45)
        w.broker.deny_publish("out.a")
        fill(w.broker, 10, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 10)
        fill(w.broker, 1, first=10, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] >= 11, 0.1)
        w.broker.allow_publish("out.a")
        await eventually(lambda: len(arrived(w, "a")) == 11)
        await trio.sleep(10.0)
        w.broker.deny_publish("out.a")
        failed = w.route.failed["permission_denied"]
        fill(w.broker, 1, first=11, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] > failed)
        fill(w.broker, 20, first=12, subjects="a")
        await trio.sleep(0.5)
        w.broker.allow_publish("out.a")
        await eventually(lambda: len(arrived(w, "a")) == 32)
        assert arrived(w, "a")[11:] == numbers(21, first=11), "the earlier messages are gone"


async def test_a_refused_message_acked_by_hand_holds_up_its_subject_for_a_bounded_time(
    autojump_clock: MockClock,
) -> None:
    async with world([route(ack_wait="5s")], brokers=one_broker()) as w:
        w.broker.deny_publish("out.a")
        w.broker.deny_publish("out.b")
        fill(w.broker, 2, subjects="ab")  # 1 and 3 are of a, 2 and 4 of b
        await eventually(lambda: w.route.failed["permission_denied"] == 4)
        consumer = w.broker._server.consumers["IN", "router"]
        consumer.again([2], trio.current_time() + 1000.0)
        w.broker.allow_publish("out.b")
        w.broker.trouble.redeliver_by_hand("IN", "router", 1)
        consumer.ack(2)
        fill(w.broker, 5, first=2, subjects="b")
        await eventually(lambda: len(arrived(w, "b")) == 6, 120)
        assert arrived(w, "b") == numbers(6, first=1)
        assert not arrived(w, "a")


async def test_a_refused_message_acked_by_hand_holds_up_its_subject_for_a_bounded_time_though_others_fail_each_time(
    autojump_clock: MockClock,
) -> None:
    """The server always has a failed message to redeliver, and each request ends with one."""

    async def work(message: Message) -> Message:
        if message.subject == "in.z":
            raise ValueError("each time")
        return message

    source = {"stream": "IN", "durable": "router", "filter": "in.*", "ack_wait": "5s", "max_in_flight": 4}
    retry = {"initial": "100ms", "max": "2s"}
    handler = handled(work, to=to("out.{{wildcard(1)}}", jetstream=True), retry=retry, **source)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 2, subjects="z")
        await eventually(lambda: w.route.failed["handler_error"] > 4, 10)
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        consumer = w.broker._server.consumers["IN", "router"]
        consumer.again([1], trio.current_time() + 1000.0)
        w.broker.trouble.redeliver_by_hand("IN", "router", 1)
        consumer.ack(3)
        w.broker.allow_publish("out.a")
        fill(w.broker, 2, first=1, subjects="a")
        await eventually(lambda: len(arrived(w, "a")) == 2, 120)
        assert arrived(w, "a") == numbers(2, first=1)
