"""Where a route from a stream starts: with all messages or with new ones, also when its durable is deleted."""

from __future__ import annotations

from trio.testing import MockClock

from tests.support.eventually import eventually
from tests.support.world import all_acked, fill, numbers, one_broker, stream, world

NEW = stream("IN", "out.{{wildcard(1)}}", filter="in.*", deliver="new")


async def test_a_route_that_starts_with_new_messages_skips_old_ones(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    async with world([NEW], brokers=brokers) as w:
        fill(w.broker, 5, first=5)
        await all_acked(w, 5)
        assert w.payloads("OUT") == numbers(5, first=5)
        assert w.watch.of("ROUTE_CONSUMER_DIFFERS") == []
    async with world([NEW], brokers=brokers) as w:
        fill(w.broker, 5, first=10)
        await all_acked(w, 5)
    assert w.payloads("OUT") == numbers(10, first=5)


async def test_a_durable_deleted_before_its_first_delivery_starts_at_the_same_place_again(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    async with world([NEW], brokers=brokers) as w:
        assert w.route.state == "running"
        await w.lose()
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 5, first=5)
        await w.find()
        await all_acked(w, 5)
        assert w.payloads("OUT") == numbers(5, first=5), (
            "neither the old messages, nor only those after the durable was recreated"
        )
        assert w.watch.of("ROUTE_CONSUMER_DIFFERS") == []


async def test_a_route_that_starts_at_a_sequence_continues_there_after_a_deletion(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    third = stream("IN", "out.{{wildcard(1)}}", filter="in.*", deliver=3)
    async with world([third], brokers=brokers) as w:
        await all_acked(w, 3)
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 5, first=5)
        await w.find()
        await all_acked(w, 8)
        assert w.payloads("OUT") == numbers(8, first=2)
        assert w.watch.of("ROUTE_CONSUMER_DIFFERS") == []


async def test_a_durable_with_another_start_is_reported_and_continues(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.{{wildcard(1)}}", filter="in.*")], brokers=brokers):
        pass
    fill(brokers["main"], 5)
    async with world([NEW], brokers=brokers) as w:
        await all_acked(w, 5)
        assert w.payloads("OUT") == numbers(5)
        await eventually(lambda: bool(w.watch.of("ROUTE_CONSUMER_DIFFERS")))
        (event,) = w.watch.of("ROUTE_CONSUMER_DIFFERS")
        assert event.detail == "deliver is all there and new here"
