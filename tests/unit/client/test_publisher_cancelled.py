"""Callers that are cancelled while they publish: an accepted message stays accepted."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from router_trio import Fate, Receipt
from router_trio.errors import PublishError
from router_trio.outbox.operation import OperationWithAck
from tests.support.eventually import eventually
from tests.support.world import world
from tests.unit.client.publishing import WITH_ACK, broker_with_stream, fates, operation, payloads, publish


@WITH_ACK
@pytest.mark.parametrize("connected", [True, False])
async def test_cancelled_before_the_offer_nothing_is_accepted(
    autojump_clock: MockClock, with_ack: bool, connected: bool
) -> None:
    async with world(brokers=broker_with_stream()) as w:
        if not connected:
            await w.lose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await publish(w.live, with_ack=with_ack)
        assert scope.cancelled_caught
        assert w.entry()["accepted"] == 0
        assert w.failures(operation(with_ack)) == {}


@WITH_ACK
async def test_cancelled_while_waiting_for_room_nothing_is_accepted(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=2, on_pending_full="block") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(2)]
        with trio.move_on_after(5) as scope:
            await publish(w.live, b"never", with_ack=with_ack)
        assert scope.cancelled_caught
        assert w.entry() == {"accepted": 2, "pending": 2, "in_flight": 0, "settled": {}}
        assert w.failures(operation(with_ack)) == {"not_connected": 3}
        await w.find()
        await fates(receipts)
        assert payloads(w) == [b"0", b"1"]


async def test_cancelled_while_waiting_for_the_ack_the_message_stays_accepted(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream(), liveness_interval="60s") as w:
        w.broker.stall(10.0)
        with trio.move_on_after(1) as scope:
            await w.live.publish_with_ack("s.x", b"x", timeout=5)
        assert scope.cancelled_caught
        assert w.entry() == {"accepted": 1, "pending": 0, "in_flight": 1, "settled": {}}
        await eventually(lambda: w.entry()["settled"] == {"acked": 1}, 30)
        assert len(w.broker.messages("S")) == 1
        assert w.successes("publish_with_ack") == 1


async def test_the_deadline_of_a_publish_ends_with_its_link(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream(), liveness_interval="60s") as w:
        w.broker.stall(1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.lose)
            receipt = await w.live.publish_with_ack("s.x", b"x", timeout=5)
        assert receipt.status == "queued"
        await trio.sleep(20)
        assert w.entry() == {"accepted": 1, "pending": 1, "in_flight": 0, "settled": {}}
        await w.find()
        assert (await receipt.settled()).name == "acked"


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
async def test_an_invalid_timeout_is_refused_before_anything_is_accepted(
    autojump_clock: MockClock,
    timeout: float,  # noqa: ASYNC109 - it is what is tested
) -> None:
    async with world(brokers=broker_with_stream()) as w:
        with pytest.raises(ValueError, match="0 or more"):
            await w.live.publish_with_ack("s.x", b"x", timeout=timeout)
        assert w.entry()["accepted"] == 0


async def test_every_waiter_for_a_fate_is_woken(autojump_clock: MockClock) -> None:
    receipt = Receipt()
    first = receipt.event()
    assert receipt.event() is first
    first.set()
    second = receipt.event()
    assert second is not first
    operation = OperationWithAck(1, b"", owner=receipt, accepted_at=0.0, clean=True)
    operation.settle(Fate("acked", None, "S", 7), trio.current_time())
    assert second.is_set()
    assert receipt.event().is_set(), "asked for too late, it has happened already"
    assert await receipt.settled() == Fate("acked", None, "S", 7)
    assert receipt.sequence == 7


async def test_a_cancelled_wait_for_the_fate_changes_nothing(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.lose()
        receipt = await w.live.publish("a", b"x")
        with trio.move_on_after(1) as scope:
            await receipt.settled()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receipt.settled)
            await w.find()
        with trio.CancelScope() as scope:
            scope.cancel()
            await receipt.settled()
        assert scope.cancelled_caught
        assert await receipt.settled() == Fate("fenced")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_callers_cancelled_at_any_moment_of_any_outage(autojump_clock: MockClock, policy: str, seed: int) -> None:
    choose = random.Random(seed)
    answered: dict[int, Receipt] = {}
    refused: set[int] = set()
    async with world(
        brokers=broker_with_stream(), max_pending_operations=15, on_pending_full=policy, liveness_interval="1s"
    ) as w:

        async def one(number: int) -> None:
            await trio.sleep(choose.uniform(0, 20))
            with trio.move_on_after(choose.choice([0, 0.001, 0.1, 1, 5])):
                try:
                    answered[number] = await publish(w.live, b"%d" % number, with_ack=bool(number % 2))
                except PublishError:
                    refused.add(number)

        troubles: list[Callable[[], None]] = [w.broker.cut, w.broker.down, w.broker.blackhole]

        async def trouble() -> None:
            for _ in range(8):
                await trio.sleep(choose.uniform(0, 2))
                choose.choice(troubles)()
                await trio.sleep(choose.uniform(0, 2))
                w.broker.up()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            for number in range(300):
                nursery.start_soon(one, number)
        w.broker.up()
        await eventually(lambda: w.entry()["pending"] == w.entry()["in_flight"] == 0, 120)
        # A caller with an answer has a fate; confirmed messages have arrived; the world checks that the rest adds up.
        came = set(map(int, payloads(w)))
        for number, receipt in answered.items():
            assert receipt.fate is not None
            assert number in came or not receipt.fate.delivered
        delivered = sum(count for fate, count in w.entry()["settled"].items() if fate in ("acked", "fenced"))
        assert delivered <= len(came)
        assert w.entry()["accepted"] >= len(answered)
        stored = [int(message.payload) for message in w.broker.messages("S") if int(message.payload) % 2]
        assert len(stored) == len(set(stored))
