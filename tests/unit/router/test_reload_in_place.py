"""Reloads of routes from a stream that stay: their settings change while calls of their handlers go on."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.message import Message
from tests.support.eventually import eventually
from tests.support.world import World, fill, numbers, one_broker, stream, world


class Gate:
    """The calls of `wait`, those that have not returned, and when those for a subject and payload may return."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.running: list[tuple[str, bytes]] = []
        self.shut: dict[tuple[str, bytes], trio.Event] = {}


GATE = Gate()


@pytest.fixture(autouse=True)
def fresh() -> None:
    GATE.__init__()  # type: ignore[misc]


def shut(subject: str, payload: bytes) -> trio.Event:
    """Let the call for such a message wait until the event is set."""
    return GATE.shut.setdefault((subject, payload), trio.Event())


async def wait(message: Message) -> Message:
    one = message.subject, message.payload
    GATE.calls.append(one)
    GATE.running.append(one)
    try:
        if one in GATE.shut:
            await GATE.shut[one].wait()
    finally:
        GATE.running.remove(one)
    return message


WAITS = {"handler": f"{__name__}:wait"}
BY_SUBJECT = {"concurrency": 4, "key": "subject"}


def stored(w: World, subject: str) -> list[bytes]:
    return [one.payload for one in w.broker.messages("OUT") if one.subject == subject]


@pytest.mark.parametrize("new", [WAITS | BY_SUBJECT, BY_SUBJECT, WAITS | {"concurrency": 2, "key": "subject + '!'"}])
async def test_other_keys_have_the_new_settings_while_a_call_under_the_old_ones_goes_on(
    new: dict[str, Any], autojump_clock: MockClock
) -> None:
    first = shut("in.a", b"0")
    old = stream("IN", "out.{{wildcard(1)}}", filter="in.*") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 3, subjects="a")
        await eventually(lambda: GATE.running == [("in.a", b"0")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(stream("IN", "out.new", filter="in.*") | new))
            await wait_all_tasks_blocked()
            fill(w.broker, 3, first=3, subjects="b")
            await eventually(lambda: stored(w, "out.new") == numbers(3, first=3))
            assert trio.current_time() < 10, "nobody waits for the call"
            assert stored(w, "out.a") == []
            first.set()
        await eventually(lambda: stored(w, "out.new") == [b"3", b"4", b"5", b"1", b"2"])
        assert stored(w, "out.a") == [b"0"], "what is in a handler ends under the settings that it began with"
        assert w.route_ledger() == (6, 0, {"routed": 6}), "no message was returned"


async def test_a_route_without_a_handler_overtakes_no_call_of_the_one_that_it_had(autojump_clock: MockClock) -> None:
    first = shut("in.x", b"0")
    async with world([stream("IN", "out.$1", filter="in.*") | WAITS], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 2)
        await eventually(lambda: GATE.running == [("in.x", b"0")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(stream("IN", "out.$1", filter="in.*")))
            await wait_all_tasks_blocked()
            fill(w.broker, 2, first=2)
            await trio.sleep(5)
            assert w.payloads("OUT") == []
            first.set()
        await eventually(lambda: w.payloads("OUT") == numbers(4))
        assert GATE.calls == [("in.x", b"0")]
        assert w.route_ledger() == (4, 0, {"routed": 4})


@pytest.mark.parametrize("left", [1, 2])
async def test_a_route_whose_task_waits_for_messages_begins_no_call_beside_too_many(
    left: int, autojump_clock: MockClock
) -> None:
    """Fewer calls are in progress than were allowed, and more than are allowed now."""
    ends = [shut(f"in.{name}", b"0") for name in "abc"]
    old = stream("IN", "out.{{wildcard(1)}}", filter="in.*") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 1, subjects="abc"[:left])
        await eventually(lambda: len(GATE.running) == left)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(stream("IN", "out.new", filter="in.*") | WAITS))
            await wait_all_tasks_blocked()
            fill(w.broker, 2, first=1, subjects="ab")
            for end in ends[:left]:
                await trio.sleep(1)
                assert not stored(w, "out.new"), "a later message of any subject waits"
                end.set()
        await eventually(lambda: stored(w, "out.new") == [b"1", b"1", b"2", b"2"])
        assert len(GATE.calls) == left + 4


@pytest.mark.parametrize("concurrency", [1, 2, 8])
async def test_with_another_concurrency_no_more_calls_begin_than_are_allowed(
    concurrency: int, autojump_clock: MockClock
) -> None:
    names = "abcdefgh"
    ends = [shut(f"in.{name}", b"0") for name in names]
    old = stream("IN", "out.{{wildcard(1)}}", filter="in.*") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 1, subjects=names)
        await eventually(lambda: len(GATE.running) == 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(old | {"concurrency": concurrency}))
            await trio.sleep(1)
            for ended, end in enumerate(ends):
                left = min(8 - ended, max(concurrency, 4 - ended))
                assert len(GATE.running) == left, (ended, GATE.running)
                end.set()
                await trio.sleep(1)
        await eventually(lambda: w.route_ledger() == (8, 0, {"routed": 8}))


async def test_a_call_that_is_cancelled_makes_room_for_its_message(autojump_clock: MockClock) -> None:
    shut("in.x", b"0")
    one: dict[str, Any] = {"filter": "in.*", "max_in_flight": 1}
    async with world([stream("IN", "out.$1", **one) | WAITS], brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 3)
        await eventually(lambda: len(GATE.calls) == 1)
        await w.live.reload(w.configuration(stream("IN", "out.$1", **one)))
        await eventually(lambda: w.payloads("OUT") == numbers(3))
        assert w.route_ledger() == (4, 0, {"returned": 1, "routed": 3})


async def test_the_router_ends_while_a_call_under_earlier_settings_goes_on(autojump_clock: MockClock) -> None:
    shut("in.x", b"0")
    async with trio.open_nursery() as nursery:
        async with world(
            [stream("IN", "out.$1", filter="in.*") | WAITS], brokers=one_broker(), shutdown_timeout=5.0
        ) as w:
            fill(w.broker, 3)
            await eventually(lambda: len(GATE.calls) == 1)
            nursery.start_soon(w.live.reload, w.configuration(stream("IN", "out.$1", filter="in.*")))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert w.route_ledger() == (3, 0, {"returned": 3})
