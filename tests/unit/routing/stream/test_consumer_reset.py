"""A reset of the durable of a running route by an administrator: the log reports from where to where."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.eventually import eventually
from tests.support.world import LOCAL, World, all_acked, fill, numbers, one_broker, world

CODE = "ROUTE_CONSUMER_RESET"


async def routed(w: World, count: int) -> None:
    await eventually(lambda: w.route.settled["routed"] == count)


async def test_after_a_reset_backwards_settled_messages_are_acked_and_not_routed_again(
    autojump_clock: MockClock,
) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await routed(w, 10)
        w.broker.trouble.reset_consumer("IN", "router", 4)
        await all_acked(w, 10 + 7)
        (event,) = w.watch.of(CODE)
        assert (event.route, event.stream, event.durable) == ("route", "IN", "router")
        assert (event.from_sequence, event.to_sequence) == (11, 4)
        assert "not routed again" in event.sentence()
        fill(w.broker, 5, first=10)
        await routed(w, 15)
        await trio.sleep(60)
        assert w.payloads("OUT") == numbers(15)
        assert len(w.watch.of(CODE)) == 1, "reported once"
        assert not w.watch.of("STREAM_WENT_BACK")


async def test_after_a_reset_forwards_skipped_messages_are_reported_though_none_arrive(
    autojump_clock: MockClock,
) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await routed(w, 10)
        w.broker.trouble.pause_consumer("IN", "router")
        fill(w.broker, 5, first=10)
        await trio.sleep(1)
        w.broker.trouble.reset_consumer("IN", "router", 16)
        w.broker.trouble.pause_consumer("IN", "router", 0)
        event = await w.watch.until(CODE)
        assert (event.from_sequence, event.to_sequence) == (11, 16)
        assert "skipped" in event.sentence()
        fill(w.broker, 5, first=15)
        await routed(w, 15)
        await trio.sleep(60)
        assert len(w.watch.of(CODE)) == 1
        assert w.payloads("OUT") == numbers(10) + numbers(5, first=15)


async def test_each_reset_is_reported_and_none_loses_messages_in_hand(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        for number in range(3):
            fill(w.broker, 20, first=20 * number)
            w.broker.trouble.reset_consumer("IN", "router", 1)
            await routed(w, 20 * (number + 1))
            await w.watch.until(CODE, number + 1)
        await eventually(lambda: not w.broker.unacked("IN", "router"))
        assert w.payloads("OUT") == numbers(60)


async def test_a_deleted_durable_is_not_reported_as_a_reset(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await routed(w, 10)
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 10, first=10)
        await routed(w, 20)
        await trio.sleep(60)
        assert not w.watch.of(CODE)
