"""Promises of a route with a key, from any source: how many concurrent calls, and the order of each key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.errors import Retry
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import LOCAL, Handled, World, all_acked, core, handled, one_broker, to, world
from tests.unit.routing.by_key import (
    HASHED_TO_NUL,
    IN,
    KEY,
    OUT,
    Calls,
    payloads_of,
    publish,
    takes_a_second,
    unchanged,
)


@dataclass(frozen=True)
class Source:
    """A kind of source, and how to observe what happened to its messages."""

    origin: dict[str, Any]
    to: dict[str, Any]
    without_handler: dict[str, Any]
    brokers: Callable[[], dict[str, FakeBroker]]
    sent: Callable[[World, str], list[bytes]]
    """Returns the payloads that were sent for a key, in order."""
    all_sent: Callable[[World, int], Awaitable[None]]
    """Waits until this many messages were sent, and each has its fate."""

    def by_key(self, handler: Callable[..., Any], **more: Any) -> Handled:
        return handled(handler, **{"to": self.to, **self.origin, "key": KEY, "concurrency": 4, **more})


def sent_by_core(w: World, key: str) -> list[bytes]:
    return [one.payload for one in w.broker.published if one.headers.get("key") == key]


async def all_sent_by_core(w: World, count: int) -> None:
    await eventually(lambda: len(w.broker.published) == count, 60)
    await eventually(lambda: w.route_ledger() == (count, 0, {"routed": count}))


SUBJECT = "in.*"
CORE = to("out.{{wildcard(1)}}")
SOURCES = {
    "core": Source(
        {"subject": SUBJECT},
        CORE,
        core(SUBJECT, CORE) | {"key": KEY},
        lambda: {"main": FakeBroker()},
        sent_by_core,
        all_sent_by_core,
    ),
    "stream": Source(IN, OUT, LOCAL | {"key": KEY}, one_broker, payloads_of, all_acked),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    return SOURCES[request.param]


async def test_calls_are_limited_to_the_concurrency_and_to_one_for_each_key(
    autojump_clock: MockClock, source: Source
) -> None:
    calls = Calls()
    async with world(handlers=[source.by_key(calls, concurrency=3)], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4", "d:5")
        await eventually(lambda: len(calls.active) == 3)
        await trio.sleep(5)
        assert calls.active == ["a", "b", "c"]
        assert w.route.in_hand == 5
        calls.let_go("b")
        await eventually(lambda: calls.active == ["a", "c", "d"])
        calls.let_go("a", "c", "d")
        await source.all_sent(w, 5)
        assert (calls.most, source.sent(w, "a")) == (3, [b"1", b"2"])


async def test_without_a_key_calls_are_ordered_by_subject(autojump_clock: MockClock, source: Source) -> None:
    calls = Calls()
    async with world(handlers=[source.by_key(calls, key=None)], brokers=source.brokers()) as w:
        for subject in ("in.a", "in.b", "in.a", "in.b", "in.a"):
            publish(w.broker, ":x", subject=subject)
        await eventually(lambda: calls.active == ["in.a", "in.b"])
        calls.let_go("in.a", "in.b")
        await source.all_sent(w, 5)


async def test_a_message_waiting_for_its_next_attempt_holds_back_only_its_key(
    autojump_clock: MockClock, source: Source
) -> None:
    failed: list[bytes] = []

    def handler(message: Message) -> Message:
        if message.payload == b"1" and len(failed) < 3:
            failed.append(message.payload)
            raise Retry(after=5)
        return message

    async with world(handlers=[source.by_key(handler, retry={"attempts": 5})], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "a:4")
        await eventually(lambda: source.sent(w, "b") == [b"3"], 1)
        await eventually(lambda: len(failed) == 3, 60)
        assert source.sent(w, "a") == []
        await source.all_sent(w, 4)
        assert source.sent(w, "a") == [b"1", b"2", b"4"]


async def test_a_filtered_message_needs_no_key(autojump_clock: MockClock, source: Source) -> None:
    route = source.without_handler | {"when": '"key" in headers'}
    async with world([route], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", ":2")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 1, "filtered": 1}))


async def test_a_limit_counts_messages_of_all_keys(autojump_clock: MockClock, source: Source) -> None:
    route = source.without_handler | {"limit": {"rate": "1/s", "burst": 1}}
    async with world([route], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", "b:2", "a:3", "b:4")
        began = trio.current_time()
        await source.all_sent(w, 4)
        assert 3 <= trio.current_time() - began < 4


async def test_a_limit_for_each_value_holds_back_the_key(autojump_clock: MockClock, source: Source) -> None:
    """A message that waits for the limit of its value is not overtaken by another of its key, whatever its value."""
    route = source.without_handler | {"limit": {"rate": "1/s", "burst": 1, "per": "string(size)"}}
    async with world([route], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", "a:2", "a:33", "b:44", "b:555")
        await source.all_sent(w, 5)
        assert (source.sent(w, "a"), source.sent(w, "b")) == ([b"1", b"2", b"33"], [b"44", b"555"])
        assert w.route.limited == 1


async def test_the_end_waits_for_messages_that_can_still_be_handled(autojump_clock: MockClock, source: Source) -> None:
    calls = Calls()
    calls.takes = takes_a_second
    async with world(handlers=[source.by_key(calls, concurrency=2)], brokers=source.brokers()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4")
        await eventually(lambda: w.route.in_hand == 4)
        route = w.route
    assert route.settled["routed"] == 4


async def test_a_key_that_is_hashed_is_never_taken_for_a_missing_one(autojump_clock: MockClock, source: Source) -> None:
    async with world(handlers=[source.by_key(unchanged)], brokers=source.brokers()) as w:
        publish(w.broker, f"{HASHED_TO_NUL}:1")
        await source.all_sent(w, 1)
        assert source.sent(w, HASHED_TO_NUL) == [b"1"]
