"""Limits of core routes: waiting messages use the room of the intake queue, and interrupt no handler."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing import turns
from router_trio.routing.core import intake_queue
from router_trio.routing.core.keeper import KeptSubject
from router_trio.testing import FakeBroker
from router_trio.testing.frames import raw
from tests.support.eventually import eventually
from tests.support.world import core, numbers, overhearing, world
from tests.unit.routing.policy.test_limit import assert_bounded
from tests.unit.routing.test_limits_of_routes import Times

calls: list[float] = []


either_way = pytest.mark.parametrize("more", [{}, {"retry": {}}], ids=["passed on", "kept"])
"""A route that passes messages on, and one that keeps each message until it has its fate."""


def limited_core(more: dict[str, Any], rate: str, burst: int | None = None, per: str | None = None) -> dict[str, Any]:
    limit = {"rate": rate} | ({} if burst is None else {"burst": burst}) | ({} if per is None else {"per": per})
    return core("in.*", "out.{{wildcard(1)}}") | {"limit": limit} | more


@either_way
async def test_a_limit_delays_messages_of_a_core_route(more: dict[str, Any], autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    times = Times(broker)
    async with (
        overhearing(broker, "out.*") as heard,
        world([limited_core(more, "20/s", 10)], brokers={"main": broker}) as w,
    ):
        for number in numbers(10):
            broker.publish("in.x", number)
        await eventually(lambda: len(heard) == 10, within=0.1)
        for number in numbers(90, first=10):
            broker.publish("in.x", number)
        await eventually(lambda: w.route_ledger() == (100, 0, {"routed": 100}), within=30)
        assert_bounded(times.all, 20, 1, 10)
        assert times.all[-1] - times.all[0] == pytest.approx(90 / 20, abs=0.1)
        assert w.route.limited == 90


@either_way
async def test_messages_beyond_the_intake_queue_are_counted(
    more: dict[str, Any], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_queue, "MAX_MESSAGES", 50)
    broker = FakeBroker()
    for per in (None, "tokens[1]"):
        async with world([limited_core(more, "10/s", 1, per)], brokers={"main": broker}) as w:
            for number in numbers(200):
                broker.publish("in.x", number)
                await trio.lowlevel.checkpoint()
            await eventually(lambda: w.route.in_hand == 0, within=60)
            settled = w.route_ledger()[2]
            assert settled["routed"] + settled["lost"] == 200
            assert 50 <= settled["routed"] <= 53, "the queue, what was taken from it, and the burst"
            assert w.route.failed["slow_consumer"] == settled["lost"]


@either_way
async def test_each_value_of_a_core_route_has_its_own_limit_and_others_pass(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    broker = FakeBroker()
    times = Times(broker)
    async with (
        overhearing(broker, "out.*") as heard,
        world([limited_core(more, "10/s", 2, "tokens[1]")], brokers={"main": broker}) as w,
    ):
        for number in numbers(30):
            broker.publish("in.a", number)
        broker.publish("in.b", b"passes")
        await eventually(lambda: "out.b" in times.of, within=0.1)
        await eventually(lambda: w.route_ledger() == (31, 0, {"routed": 31}), within=30)
        assert_bounded(times.of["out.a"], 10, 1, 2)
        assert len(heard) == 31


@either_way
async def test_a_core_route_reports_at_its_end_the_messages_it_has_not_routed(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    broker = FakeBroker()
    for per in (None, "tokens[1]"):
        async with world([limited_core(more, "1/h", 1, per)], brokers={"main": broker}, shutdown_timeout=2.0) as w:
            for number in numbers(5):
                broker.publish("in.a", number)
            await trio.sleep(1)
        assert w.route.settled["lost"] == 4
        assert w.route.failed["shutdown"] == 4
        assert w.live.unsettled == 4


@either_way
async def test_a_message_due_after_its_limit_interrupts_no_handler(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    broker = FakeBroker()
    settings = limited_core(more, "1/s", 1, "tokens[1]") | {"handler": f"{__name__}:takes_its_time"}
    async with world([settings], brokers={"main": broker}) as w:
        broker.publish("in.a", b"goes")
        broker.publish("in.a", b"waits for a second")
        await trio.sleep(0.9)
        broker.publish("in.b", b"is in its handler then")
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 3}), within=10)


async def takes_its_time(message: Message) -> Message:
    await trio.sleep(0.3)
    return message


@pytest.mark.parametrize("per", [None, "tokens[1]"])
async def test_each_attempt_counts_against_the_limit(per: str | None, autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    retry = {"retry": {"initial": "10ms", "max": "10ms", "attempts": 4}, "handler": f"{__name__}:fails"}
    calls.clear()
    async with world([limited_core(retry, "5/s", 1, per)], brokers={"main": broker}) as w:
        for number in numbers(5):
            broker.publish("in.a", number)
        await eventually(lambda: w.route_ledger() == (5, 0, {"lost": 5}), within=20)
        assert len(calls) == 20
        assert_bounded(calls, 5, 1, 1)


async def fails(message: Message) -> Message:
    calls.append(trio.current_time())
    raise ValueError("no")


@pytest.mark.parametrize("per", [None, "tokens[1]"])
async def test_retries_of_a_core_route_leave_half_of_the_limit_to_new_messages(
    per: str | None, autojump_clock: MockClock
) -> None:
    broker = FakeBroker(max_payload=200)
    retry = {"retry": {"initial": "100ms", "max": "1s", "attempts": 0}}
    async with world([limited_core(retry, "30/s", 5, per)], brokers={"main": broker}, shutdown_timeout=0.1) as w:
        for _ in range(100):
            broker.publish("in.x", b"x" * 300)
        await eventually(lambda: w.route.failed["too_large"] >= 300, within=60)
        for number in numbers(60):
            broker.publish("in.x", number)
        began = trio.current_time()
        await eventually(lambda: w.route.settled["routed"] == 60, within=60)
        assert trio.current_time() - began < 60 / 15 + 1


async def test_a_message_without_the_value_is_retried_like_others(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    retry = {"retry": {"initial": "10ms", "attempts": 3}}
    async with world([limited_core(retry, "5/s", 1, 'headers["tenant"]')], brokers={"main": broker}) as w:
        broker.publish("in.a", b"has none")
        await eventually(lambda: w.route_ledger() == (1, 0, {"lost": 1}), within=20)
        assert dict(w.route.failed) == {"expression": 3}


async def test_messages_left_for_the_next_turn_count_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LONGEST_TURN", -1.0)  # each turn is over at once
    count = 2 * turns.BETWEEN_TWO_LOOKS
    async with world([limited_core({"when": "size > 0"}, "1/h", count)]) as w:
        (source,) = [one for one in w.live.connections["main"]._sources if isinstance(one, KeptSubject)]
        source.keeper.received([raw(b"in.x", b"", b"", b"1")] * count)
        await eventually(lambda: w.route_ledger() == (count, 0, {"routed": count}))


async def test_a_limit_of_values_is_reported_again_after_a_time_without_waiting_messages(
    autojump_clock: MockClock,
) -> None:
    async with world([limited_core({}, "1/s", 1, "subject")]) as w:
        for times in (1, 2):
            for number in numbers(3):
                w.broker.publish("in.x", number)
            await eventually(lambda: w.route_ledger()[2].get("routed") == 3 * times)  # noqa: B023
            assert len(w.watch.of("ROUTE_LIMITED")) == times
            await trio.sleep(5)


async def test_later_messages_do_not_overtake_those_that_wait_for_the_limit(autojump_clock: MockClock) -> None:
    async with world([limited_core({}, "10/s", 2)]) as w:
        (source,) = [one for one in w.live.connections["main"]._sources if isinstance(one, KeptSubject)]
        first, next_one = numbers(3), numbers(1, first=3)
        for batch in (first, next_one):  # before the route has looked at the first one
            source.keeper.received([raw(b"in.x", b"", b"", payload) for payload in batch])
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))
        assert [one.payload for one in w.broker.published] == numbers(4)
