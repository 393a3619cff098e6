"""Publishing while disconnected or with a full queue: what is kept, dropped and reported."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Fate, Receipt
from router_trio.errors import PublishError
from tests.support.world import world
from tests.unit.client.publishing import (
    WITH_ACK,
    broker_with_stream,
    confirmed,
    event,
    fates,
    operation,
    payloads,
    publish,
)

# --- not connected ---


@WITH_ACK
async def test_publishes_are_queued_while_disconnected_and_drained_in_order(
    autojump_clock: MockClock, with_ack: bool
) -> None:
    async with world(brokers=broker_with_stream()) as w:
        await w.lose()
        receipts = []
        for number in range(50):
            receipts.append(await publish(w.live, b"%d" % number, with_ack=with_ack))
            # Stored exactly once, and before the caller gets its answer.
            assert w.failures(operation(with_ack)) == {"not_connected": number + 1}
            assert w.watch.count(event("QUEUED", with_ack)) == number + 1
        assert {receipt.status for receipt in receipts} == {"queued"}
        assert w.entry() == {"accepted": 50, "pending": 50, "in_flight": 0, "settled": {}}
        await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 50
        if with_ack:
            assert [receipt.sequence for receipt in receipts] == list(range(1, 51))
        assert payloads(w) == [b"%d" % number for number in range(50)]
        assert w.failures(operation(with_ack)) == {"not_connected": 50}
        assert w.successes(operation(with_ack)) == 0, "counted as a failure already"
        assert w.entry()["settled"] == {confirmed(with_ack): 50}
        counters = w.live.connections["main"].outbox.counters
        assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (50, 50, 0)
        assert w.watch.of("NATS_RETRY_PENDING")[0].pending_count == 50
        assert w.watch.of("NATS_RETRY_COMPLETE")[0].success_count == 50


@WITH_ACK
async def test_fail_open_mode_keeps_nothing_while_disconnected(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), fail_open=True, max_pending_operations=1) as w:
        await w.lose()
        for number in range(3):
            receipt = await publish(w.live, with_ack=with_ack)
            assert receipt.status == "failed_open"
            assert await receipt.settled() == Fate("failed_open", "not_connected")
            assert w.failures(operation(with_ack)) == {"not_connected": number + 1}
        assert w.watch.count("NATS_PUBLISH_FAIL_OPEN") == 3
        assert w.watch.count(event("QUEUED", with_ack)) == 0
        assert w.entry() == {"accepted": 3, "pending": 0, "in_flight": 0, "settled": {"failed_open": 3}}
        await w.find()
        await trio.sleep(1)
        assert payloads(w) == []
        assert (await publish(w.live, with_ack=with_ack)).status == ("acked" if with_ack else "sent")


async def test_a_link_lost_while_waiting_for_the_ack(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.sleep(1)
            w.broker.down()

        w.broker.blackhole()
        nursery.start_soon(lose)
        receipt = await w.live.publish_with_ack("s.x", b"x")
        assert (receipt.status, receipt.fate) == ("queued", None)
        assert trio.current_time() == pytest.approx(1.0, abs=0.1)
        assert w.entry() == {"accepted": 1, "pending": 1, "in_flight": 0, "settled": {}}
        w.broker.up()
        assert await receipt.settled() == Fate("acked", None, "S", 1, False)
        assert (receipt.status, receipt.stream, receipt.sequence) == ("queued", "S", 1)


async def test_a_link_lost_after_the_stream_stored_it_gives_a_duplicate(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.lowlevel.checkpoint()
            w.broker.cut()

        nursery.start_soon(lose)
        receipts = [await w.live.publish_with_ack("s.x", b"%d" % number) for number in range(3)]
        assert await fates(receipts) == ["acked"] * 3
        assert [message.payload for message in w.broker.messages("S")] == [b"0", b"1", b"2"]


@WITH_ACK
async def test_a_link_lost_in_fail_open_mode_drops_unconfirmed_publishes(
    autojump_clock: MockClock, with_ack: bool
) -> None:
    async with world(brokers=broker_with_stream(), fail_open=True) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.sleep(1)
            w.broker.down()

        w.broker.blackhole()
        nursery.start_soon(lose)
        receipt = await publish(w.live, with_ack=with_ack)
        assert await receipt.settled() == Fate("failed_open", "not_connected")
        assert receipt.status == ("failed_open" if with_ack else "sent")
        assert w.failures(operation(with_ack)) == {"not_connected": 1}


async def test_a_publish_behind_a_drain_is_queued_and_keeps_the_order(autojump_clock: MockClock) -> None:
    async with world(max_pending_operations=5000) as w:
        await w.lose()
        receipts = [await w.live.publish("a", b"%d" % number) for number in range(3000)]
        w.broker.up()
        await w.live.connections["main"].changed()
        receipts.append(await w.live.publish("a", b"3000"))
        assert receipts[-1].status == "queued"
        await fates(receipts)
        assert payloads(w) == [b"%d" % number for number in range(3001)]
        receipt = await w.live.publish("a", b"last")
        assert receipt.status == "sent"


async def test_a_publisher_that_never_waits_lets_the_router_reconnect(autojump_clock: MockClock) -> None:
    async with world(max_pending_operations=10) as w:
        await w.lose()
        w.broker.up()
        with trio.fail_after(60):
            while (await w.live.publish("a", b"x")).status == "queued":
                autojump_clock.jump(0.001)
        assert w.live.connections["main"].connected


# --- a full queue ---


@WITH_ACK
async def test_drop_oldest(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3) as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(5)]
        assert {receipt.status for receipt in receipts} == {"queued"}
        assert [receipt.fate for receipt in receipts] == [Fate("dropped", "queue_full")] * 2 + [None] * 3
        assert w.watch.count("NATS_QUEUE_FULL") == 2
        assert w.failures(operation(with_ack)) == {"not_connected": 5}
        assert w.live.connections["main"].outbox.counters.dropped["queue_full"] == 2
        await w.find()
        await fates(receipts)
        assert payloads(w) == [b"2", b"3", b"4"]
        assert w.entry()["settled"] == {"dropped": 2, confirmed(with_ack): 3}


@WITH_ACK
async def test_drop_oldest_by_bytes(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_bytes="1KiB") as w:
        await w.lose()
        receipts = [await publish(w.live, b"x" * 400, with_ack=with_ack) for _ in range(4)]
        assert [receipt.fate for receipt in receipts] == [Fate("dropped", "queue_full")] * 2 + [None] * 2
        await w.find()
        await fates(receipts)


@WITH_ACK
async def test_reject(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3, on_pending_full="reject") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(3)]
        with pytest.raises(PublishError, match=r"3 of 3 operations.*max_pending_operations") as refused:
            await publish(w.live, b"3", with_ack=with_ack)
        assert refused.value.reason == "queue_full"
        assert w.failures(operation(with_ack)) == {"not_connected": 4}, "once an operation, whatever becomes of it"
        assert w.watch.count("NATS_QUEUE_FULL") == 1
        assert w.entry()["accepted"] == 3
        await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 3


@WITH_ACK
async def test_block(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3, on_pending_full="block") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(3)]
        async with trio.open_nursery() as nursery:

            async def blocked(number: int) -> None:
                receipts.append(await publish(w.live, b"%d" % number, with_ack=with_ack))

            for number in (3, 4):
                nursery.start_soon(blocked, number)
            await trio.sleep(5)
            assert len(receipts) == 3
            # Counted before it waits.
            assert w.failures(operation(with_ack)) == {"not_connected": 5}
            assert w.watch.count("NATS_QUEUE_FULL") == 2
            assert w.entry()["accepted"] == 3
            await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 5
        assert sorted(payloads(w)) == [b"0", b"1", b"2", b"3", b"4"]
        assert payloads(w)[:3] == [b"0", b"1", b"2"]
        assert w.failures(operation(with_ack)) == {"not_connected": 5}
        assert w.successes(operation(with_ack)) == 0


@WITH_ACK
@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_while_connected_a_full_queue_waits_for_the_wire_under_any_policy(
    autojump_clock: MockClock, policy: str, with_ack: bool
) -> None:
    async with world(
        brokers=broker_with_stream(), max_pending_operations=5, on_pending_full=policy, liveness_interval="60s"
    ) as w:
        w.broker.stall(5.0)
        receipts: list[Receipt] = []
        large = b"x" * 100_000  # the socket takes only a few of these

        async def one() -> None:
            options: dict[str, Any] = {"timeout": 30} if with_ack else {}
            receipts.append(await publish(w.live, large, with_ack=with_ack, **options))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)
            await trio.sleep(4)
            assert w.entry()["accepted"] < 30
            assert w.entry()["pending"] <= 5
        assert await fates(receipts) == [confirmed(with_ack)] * 30
        assert (w.failures(operation(with_ack)), w.watch.count("NATS_QUEUE_FULL")) == ({}, 0)


async def test_expiry(autojump_clock: MockClock) -> None:
    async with world(pending_max_age="10s") as w:
        await w.lose()
        old = await w.live.publish("a", b"old")
        await trio.sleep(8)
        young = await w.live.publish("a", b"young")
        await trio.sleep(4)
        assert (old.fate, young.fate) == (Fate("dropped", "expired"), None)
        await w.find()
        assert (await young.settled()).name == "fenced"
        assert payloads(w) == [b"young"]


@WITH_ACK
async def test_publishes_left_at_the_end_are_dropped_and_reported(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), shutdown_timeout=1) as w:
        await w.lose()
        receipts = [await publish(w.live, with_ack=with_ack) for _ in range(3)]
    assert [receipt.fate for receipt in receipts] == [Fate("dropped", "shutdown")] * 3
    assert w.live.unsettled == 3
