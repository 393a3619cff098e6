"""Python handlers: how they are called, what they may answer, and what becomes of that."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Router, Settings
from router_trio.errors import ConfigurationError, HandlerError
from router_trio.message import Message
from router_trio.protocol import framing
from router_trio.protocol.headers import Headers
from router_trio.routing.handlers import Blocked, Handler, answers_of, as_message, begin, finished, load_handler
from router_trio.states import RUNNING
from router_trio.testing.frames import raw
from tests.support.eventually import eventually
from tests.support.world import Handled, all_acked, fill, handled, one_broker, overhearing, to, world

MESSAGE = Message("in.x", b"payload")
OTHER = Message("in.y", b"other")


# --- calling ---------------------------------------------------------------------------------------------------------


async def invoke(handler: Handler, message: Message) -> list[Message]:
    """As `Routing` does it."""
    answer = begin(handler, message)
    return answers_of(await finished(answer) if isinstance(answer, Blocked) else answer)


def generator(message: Message) -> Iterator[Message]:
    yield message
    yield OTHER


async def in_a_task(message: Message) -> list[Message]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
    return [message]


async def asynchronous(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return message


@pytest.mark.parametrize(
    ("handler", "answers"),
    [
        (lambda message: message, [MESSAGE]),
        (lambda message: None, []),
        (lambda message: [], []),
        (lambda message: (message, OTHER), [MESSAGE, OTHER]),
        (lambda message: {message: 1}.keys(), [MESSAGE]),
        (generator, [MESSAGE, OTHER]),
        (asynchronous, [MESSAGE]),
        (in_a_task, [MESSAGE]),
    ],
)
async def test_what_a_handler_may_return(handler: Any, answers: list[Message]) -> None:
    assert await invoke(handler, MESSAGE) == answers


class Once:
    """An awaitable whose iterator is a plain one: `yield from` takes that, too."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


async def test_an_awaitable_without_a_coroutine_is_awaited() -> None:
    assert await invoke(lambda message: Once(), MESSAGE) == []


async def test_what_does_not_block_is_answered_at_once_and_what_does_is_awaited() -> None:
    async def at_once(message: Message) -> Message:
        return message

    assert begin(at_once, MESSAGE) is MESSAGE
    blocked = begin(asynchronous, MESSAGE)
    assert isinstance(blocked, Blocked)
    assert await blocked is MESSAGE


async def test_a_blocked_handler_gets_what_it_waits_for_and_is_cancelled_where_it_waits() -> None:
    seen: list[str] = []

    async def sleeper(message: Message) -> Message:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        return message

    with trio.CancelScope() as scope:
        blocked = begin(sleeper, MESSAGE)
        assert isinstance(blocked, Blocked)
        scope.cancel()
        await blocked
    assert scope.cancelled_caught
    assert seen == ["cancelled"]


async def endless(message: Message) -> AsyncIterator[Message]:
    yield message


def three(message: Message, extra: int, more: int) -> None: ...


class Callable3:
    def __call__(self, message: Message, extra: int, more: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (three, r"takes \(message, extra, more\); give all other parameters a default"),
        (Callable3(), "give all other parameters a default"),
        (lambda: None, r"it is called with the message alone, and takes \(\)"),
        (lambda *, key: None, "give all other parameters a default"),
        (endless, "it is an async generator; return a list of messages instead"),
    ],
)
def test_a_function_that_can_not_be_a_handler_is_refused_before_it_is_called(handler: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Router(Settings(connections={"main": {"servers": ["nats://h"]}})).route("in", to="out", name="r")(handler)


def test_defaults_and_functions_of_no_signature_are_taken() -> None:
    router = Router(Settings(connections={"main": {"servers": ["nats://h"]}}))
    native: Any = dict
    router.route("in", to="out", name="a")(lambda message, more=1, *rest, key=2: message)
    router.route("in", to="out", name="b")(native)
    assert [route.name for route in router.settings.routes] == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (7, "int"),
        (True, "bool"),
        ("text", "str"),
        (b"", "bytes"),
        (bytearray(), "bytearray"),
        ({}, "dict"),
        ([MESSAGE, "text"], "str"),
        ([None], "NoneType"),
        (Message("in.x", "text"), "payload"),  # type: ignore[arg-type]
        (Message("in.x", b"", headers={"A": "1"}), "headers"),  # type: ignore[arg-type]
        (Message(b"in.x", b""), "subject"),  # type: ignore[arg-type]
        (Message("in.x", reply=b"x"), "reply"),  # type: ignore[arg-type]
        (endless(MESSAGE), "async_generator"),
    ],
)
async def test_what_a_handler_may_not_return(answer: object, told: str) -> None:
    with pytest.raises(HandlerError, match=told):
        await invoke(lambda message: answer, MESSAGE)


def test_a_message_for_a_handler_has_what_the_raw_one_has() -> None:
    block = b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n"
    message = as_message(raw(b"in.\xff", b"reply.to", block, b"payload"), "main")
    assert message == Message(
        framing.text(b"in.\xff"), b"payload", Headers([("A", "1"), ("A", "2")]), reply="reply.to", connection="main"
    )
    message = as_message(raw(b"in.x", b"$JS.ACK.x", b"", b""), "main", stream="S", sequence=3, deliveries=2)
    assert (message.reply, message.stream, message.sequence, message.deliveries) == (None, "S", 3, 2)


def test_a_handler_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good_handlers.py").write_text("def handle(message): return message\nnumber = 7\n")
    (tmp_path / "broken_handlers.py").write_text("1 / 0\n")
    assert load_handler("good_handlers:handle")(MESSAGE) is MESSAGE
    for name, told in (
        ("good_handlers:nothing", "no function 'nothing'"),
        ("good_handlers:number", "no function 'number'"),
        ("no_such_module:handle", r"can't import 'no_such_module'.*sys\.path"),
        ("broken_handlers:handle", "ZeroDivisionError"),
    ):
        with pytest.raises(HandlerError, match=told):
            load_handler(name)
    del sys.modules["good_handlers"]


# --- in a route ------------------------------------------------------------------------------------------------------


def core_handler(handler: Any, *destinations: dict[str, Any]) -> Handled:
    return handled(handler, subject="in.*", to=list(destinations) or to("out.{{wildcard(1)}}"))


async def test_what_it_leaves_alone_goes_on_as_it_came(autojump_clock: MockClock) -> None:
    # Headers that are not as they should be, but that a server relays.
    strange = b"NATS/1.0\r\nodd name: \xff\r\nno colon\r\n\r\n"
    async with world(handlers=[core_handler(lambda message: message)]) as w, overhearing(w.broker, "out.*") as heard:
        message = raw(b"in.x", b"odd*reply.\xff", strange, b"payload")
        for interest in w.broker._server._interests:
            if interest.pattern == "in.*":
                interest.receive(message)
        await eventually(lambda: heard)
        assert heard == [raw(b"out.x", b"odd*reply.\xff", strange, b"payload")]
        await eventually(lambda: w.route.routed["out.{{wildcard(1)}}"] == 1)


async def test_it_may_change_everything(autojump_clock: MockClock) -> None:
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


async def test_a_reply_can_be_taken_away_and_one_answer_of_several_can_have_another_subject(
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


async def test_none_filters_out_and_is_counted(autojump_clock: MockClock) -> None:
    def odd(message: Message) -> Message | None:
        return message.replace(subject="out.x") if int(message.payload) % 2 else None

    handler = handled(odd, to=to("out.x", jetstream=True), stream="IN", durable="router")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        assert (w.route.filtered, w.route.routed["out.x"], dict(w.route.failed)) == ({"handler": 5}, 5, {})


async def test_several_answers_each_have_an_id_of_their_own(autojump_clock: MockClock) -> None:
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


async def test_the_ids_of_answers_are_the_same_when_the_message_comes_again(autojump_clock: MockClock) -> None:
    calls = 0

    def three(message: Message) -> list[Message]:
        nonlocal calls
        calls += 1
        # The last one is refused the first time, when the others are stored already.
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
        (bad_header, "invalid_header"),
        (bad_subject, "invalid_subject"),
        (bad_reply, "invalid_subject"),
        (unpaired_surrogate, "invalid_subject"),
        (too_large, "too_large"),
    ],
)
async def test_what_goes_wrong_fails_the_message_and_never_the_router(
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


async def test_a_handler_that_blocks_holds_up_nothing_that_was_handled_before_it(autojump_clock: MockClock) -> None:
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
