"""Answers of handlers in a route: where they are sent, and which fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.protocol import framing
from router_trio.states import RUNNING
from router_trio.testing import FakeBroker
from router_trio.testing.frames import raw
from tests.support.eventually import eventually
from tests.support.world import Handled, all_acked, fill, handled, one_broker, overhearing, to, world
from tests.unit.routing.handler_functions import asynchronous

# --- in a route ------------------------------------------------------------------------------------------------------


def core_handler(handler: Any, *destinations: dict[str, Any]) -> Handled:
    return handled(handler, subject="in.*", to=list(destinations) or to("out.{{wildcard(1)}}"))


async def test_a_message_that_the_handler_does_not_change_is_forwarded_unchanged(autojump_clock: MockClock) -> None:
    # Malformed headers that a server relays all the same.
    strange = b"NATS/1.0\r\nodd name: \xff\r\nno colon\r\n\r\n"
    async with world(handlers=[core_handler(lambda message: message)]) as w, overhearing(w.broker, "out.*") as heard:
        message = raw(b"in.x", b"odd*reply.\xff", strange, b"payload")
        for interest in w.broker._server._interests:
            if interest.pattern == "in.*":
                interest.receive(message)
        await eventually(lambda: heard)
        assert heard == [raw(b"out.x", b"odd*reply.\xff", strange, b"payload")]
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 1)


async def test_a_handler_may_change_everything(autojump_clock: MockClock) -> None:
    def change(message: Message) -> Message:
        return message.replace(
            subject="elsewhere", payload=message.payload.upper(), headers={"B": ["1", "2"]}, reply="other.reply"
        )

    async with (
        world(handlers=[core_handler(change, to("out"), to("more"))]) as w,
        overhearing(w.broker, "elsewhere") as heard,
    ):
        w.broker.publish("in.x", b"payload", {"A": "1"}, reply="reply.to")
        await eventually(lambda: len(heard) == 2)
        assert heard == [raw(b"elsewhere", b"other.reply", b"NATS/1.0\r\nB: 1\r\nB: 2\r\n\r\n", b"PAYLOAD")] * 2
        await eventually(lambda: w.route.routed == {"out": 1, "more": 1})


async def test_a_handler_may_remove_the_reply_and_give_one_of_several_answers_another_subject(
    autojump_clock: MockClock,
) -> None:
    def split(message: Message) -> list[Message]:
        return [message.replace(reply=None), message.replace(subject="second", reply="x")]

    async with world(handlers=[core_handler(split)]) as w, overhearing(w.broker, ">") as heard:
        w.broker.publish("in.a", b"1", reply="reply.to")
        await eventually(lambda: len(heard) == 3)
        assert [message[:2] for message in heard[1:]] == [(b"out.a", b""), (b"second", b"x")]
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 2)
        assert sum(w.route.durations.counts) == 1


async def test_a_message_answered_by_none_is_filtered_and_counted(autojump_clock: MockClock) -> None:
    def odd(message: Message) -> Message | None:
        return message.replace(subject="out.x") if int(message.payload) % 2 else None

    handler = handled(odd, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        assert (w.route.filtered, w.route.routed["out.x"], dict(w.route.failed)) == ({"handler": 5}, 5, {})


async def test_each_of_several_answers_has_its_own_id(autojump_clock: MockClock) -> None:
    def three(message: Message) -> Iterator[Message]:
        for part in "abc":
            yield message.replace(subject=f"out.{part}", payload=part.encode())

    destinations = [to("out.x", jetstream=True), to("out.y", jetstream=True)]
    handler = handled(three, to=destinations, stream="IN", durable="router")
    broker = one_broker()["main"]
    broker.publish("in.x", b"", {"Nats-Msg-Id": "own"})
    broker.publish("in.x", b"")
    async with world(handlers=[handler], brokers={"main": broker}) as w:
        await all_acked(w, 2)
        ids = [message.headers["Nats-Msg-Id"] for message in broker.messages("OUT")]
        assert len(ids) == len(set(ids)) == 12
        firsts = [message_id.rpartition(":")[0] for message_id in ids]
        assert [first.split(":")[:2] for first in firsts] == [["IN", "1"]] * 6 + [["IN", "2"]] * 6
        assert firsts[6:] == [firsts[6] + answer for answer in ("", ".1", ".2") for _ in destinations]


async def test_the_ids_of_answers_are_the_same_for_a_redelivery(autojump_clock: MockClock) -> None:
    calls = 0

    def three(message: Message) -> list[Message]:
        nonlocal calls
        calls += 1
        # The last answer is refused the first time, when the others are stored already.
        last = "out.no wildcard" if calls == 1 else "out.c"
        return [message.replace(subject=subject) for subject in ("out.a", "out.b", last)]

    handler = handled(three, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await all_acked(w, 1)
        assert calls == 2
        assert [message.subject for message in w.broker.messages("OUT")] == ["out.a", "out.b", "out.c"]
        assert dict(w.route.failed) == {"invalid_subject": 1}


def bad_header(message: Message) -> Message:
    return message.replace(headers={"A": "1\r\n2"})


def bad_reply(message: Message) -> Message:
    return message.replace(reply="a b")


def bad_subject(message: Message) -> Message:
    return message.replace(subject="out.*")


def unpaired_surrogate(message: Message) -> Message:
    return message.replace(subject="out.\ud800")


def too_large(message: Message) -> Message:
    return message.replace(payload=b"x" * (1024 * 1024 + 1))


def raises(message: Message) -> Message:
    raise KeyError("what it was")


async def raises_group(message: Message) -> Message:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asynchronous, message)
        raise KeyError("what it was")


def half_of_it(message: Message) -> Iterator[Message]:
    yield message
    raise KeyError("what it was")


def nonsense(message: Message) -> object:
    return 7


def without_end(message: Message) -> Iterator[Message]:
    while True:
        yield message


async def an_async_generator(message: Message) -> AsyncIterator[Message]:
    await trio.lowlevel.checkpoint()
    while True:
        yield message


def wrong_payload(message: Message) -> Message:
    return message.replace(payload="text")  # type: ignore[arg-type]


@pytest.mark.parametrize("jetstream", [False, True])
@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (raises, "handler_error"),
        (raises_group, "handler_error"),
        (half_of_it, "handler_error"),
        (nonsense, "handler_error"),
        (wrong_payload, "handler_error"),
        (without_end, "handler_error"),
        (an_async_generator, "handler_error"),
        (bad_header, "invalid_header"),
        (bad_subject, "invalid_subject"),
        (bad_reply, "invalid_subject"),
        (unpaired_surrogate, "invalid_subject"),
        (too_large, "too_large"),
    ],
)
async def test_a_bad_answer_fails_the_message_and_never_the_router(
    autojump_clock: MockClock, handler: Any, reason: str, jetstream: bool
) -> None:
    def sometimes(message: Message) -> Any:
        return handler(message) if message.payload == b"bad" else message

    broker = one_broker()["main"]
    async with world(
        handlers=[core_handler(sometimes, to("out.{{wildcard(1)}}", jetstream=jetstream))], brokers={"main": broker}
    ) as w:
        for payload in (b"1", b"bad", b"2"):
            broker.publish("in.x", payload)
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 2)
        assert dict(w.route.failed) == {reason: 1}
        (event,) = w.watch.of("ROUTE_MESSAGE_FAILED")
        assert event.reason == reason
        if handler is raises:
            assert (event.error_type, event.detail) == ("KeyError", "'what it was'")
        assert w.entry()["accepted"] == 2
        assert sum(w.route.durations.counts) == 3
        assert w.route.state == RUNNING


async def test_a_slow_handler_keeps_the_order(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(0.1 if int(message.payload) % 2 else 0.3)
        return message

    async with world(handlers=[core_handler(slow)]) as w:
        for number in range(20):
            w.broker.publish("in.x", b"%d" % number)
        await eventually(lambda: len(w.broker.published) == 20)
        assert [int(message.payload) for message in w.broker.published] == list(range(20))


async def test_a_slow_handler_holds_up_no_other_route(autojump_clock: MockClock) -> None:
    async def hang(message: Message) -> Message:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    def other(message: Message) -> Message:
        return message

    handlers = [
        handled(hang, subject="in.*", to=to("never")),
        handled(other, subject="in.*", to=to("out"), name="other"),
    ]
    async with world(handlers=handlers, shutdown_timeout=0.5) as w:
        for _ in range(10):
            w.broker.publish("in.x", b"x")
        await eventually(lambda: w.live.routes[1].routed["out"] == 10)
    assert w.live.unsettled == 10


async def test_a_handler_that_blocks_holds_up_no_message_handled_before(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        if message.payload == b"slow":
            await trio.sleep(100)
        return message.replace(payload=message.payload.upper())

    async with world(handlers=[core_handler(slow)]) as w, overhearing(w.broker, "out.>") as heard:
        began = trio.current_time()
        for body in (b"1", b"2", b"slow", b"3"):
            w.broker.publish("in.a", body)
        await eventually(lambda: len(heard) >= 2)
        assert trio.current_time() - began < 1
        assert [framing.payload(message) for message in heard] == [b"1", b"2"]
        await eventually(lambda: len(heard) == 4, 200)
        assert [framing.payload(message) for message in heard] == [b"1", b"2", b"SLOW", b"3"]
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 4)
        assert sum(w.route.durations.counts) == 4


# --- messages that fail each time -------------------------------------------------------------------------------------


def awaits(clock: MockClock) -> Any:
    async def handler(message: Message) -> Message:
        await trio.sleep(0.05)
        return message

    return handler


def blocks(clock: MockClock) -> Any:
    def handler(message: Message) -> Message:
        clock.jump(0.05)
        return message

    return handler


@pytest.mark.parametrize("handler", [awaits, blocks])
@pytest.mark.parametrize(
    "source", [{"stream": "IN", "durable": "router", "filter": "in.*"}, {"subject": "in.*"}], ids=["stream", "subject"]
)
async def test_messages_that_fail_by_their_own_fault_leave_half_of_the_time_of_a_handler_to_others(
    source: dict[str, Any], handler: Any, autojump_clock: MockClock
) -> None:
    broker = FakeBroker(max_payload=200)
    broker.add_stream("IN", ["in.*"])
    retry = {"initial": "100ms", "max": "1s", "attempts": 0}
    route = handled(handler(autojump_clock), to=to("out.{{wildcard(1)}}"), retry=retry, **source)
    async with world(handlers=[route], brokers={"main": broker}, shutdown_timeout=0.1) as w:
        for _ in range(60):
            broker.publish("in.x", b"x" * 300)
        # More calls would be due than there is time for.
        await eventually(lambda: w.route.failed["too_large"] >= 300, within=60)
        fill(broker, 40)
        began = trio.current_time()
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 40, within=60)
        assert trio.current_time() - began < 40 * 0.05 * 2 + 1
        failed = w.route.failed["too_large"]
        await trio.sleep(20)
        assert w.route.failed["too_large"] - failed == pytest.approx(0.5 * 20 / 0.05, abs=20), "they get the other half"
