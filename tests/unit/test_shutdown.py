"""Leaving `Router.open()`: accepted messages are drained, cancelled or not; failed connections are not waited for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio import Fate, Live, Receipt, Router, Settings
from router_trio.errors import ConnectionExhaustedError, PublishError
from router_trio.testing import FakeBroker
from tests.support.settings import settings
from tests.support.watch import assert_accounted, router_tasks


def router(broker: FakeBroker, config: Settings) -> Router:
    return Router(config, connect=lambda name, settings: broker.connect)


async def test_a_cancelled_body_is_drained(autojump_clock: trio.testing.MockClock) -> None:
    broker = FakeBroker()
    receipts: list[Receipt] = []
    with trio.CancelScope() as scope:
        async with router(broker, settings("nats://fake:4222", liveness_interval="60s")).open() as live:
            broker.stall(2.0)
            receipts += [await live.publish("out", b"%d" % number) for number in range(100)]
            scope.cancel()
            cancelled_at = trio.current_time()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert {receipt.fate for receipt in receipts} == {Fate("fenced")}
    assert live.unsettled == 0
    assert 2.0 <= trio.current_time() - cancelled_at < 3.0, "as long as the server takes, and no longer"
    assert router_tasks() == []


async def test_a_cancelled_body_is_drained_over_a_reconnect(autojump_clock: trio.testing.MockClock) -> None:
    broker = FakeBroker()

    async def come_back() -> None:
        await trio.sleep(3)
        broker.up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        with trio.CancelScope() as scope:
            async with router(broker, settings("nats://fake:4222")).open() as live:
                broker.down()
                await trio.testing.wait_all_tasks_blocked()
                receipt = await live.publish("out", b"x")
                assert receipt.status == "queued"
                scope.cancel()
                await trio.sleep_forever()
        assert receipt.fate == Fate("fenced")
        assert live.unsettled == 0


async def test_a_failed_body_is_drained_and_its_error_is_raised_ungrouped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broker = FakeBroker()
    receipts: list[Receipt] = []

    async def fail() -> None:
        async with router(broker, settings("nats://fake:4222", liveness_interval="60s")).open() as live:
            broker.stall(2.0)
            receipts.append(await live.publish("out", b"x"))
            raise ValueError("a mistake of the program")

    with pytest.raises(ValueError, match="a mistake"):
        await fail()
    assert receipts[0].fate == Fate("fenced")


async def test_a_second_cancellation_cuts_the_drain_short(autojump_clock: trio.testing.MockClock) -> None:
    broker = FakeBroker()
    with trio.CancelScope() as scope:
        async with router(broker, settings("nats://fake:4222", liveness_interval="60s")).open() as live:
            broker.blackhole()
            receipt = await live.publish("out", b"x")
            scope.deadline = trio.current_time() + 1.0  # in the middle of the drain
            left_at = trio.current_time()
    assert trio.current_time() - left_at == pytest.approx(1.0)
    assert receipt.fate == Fate("dropped", "shutdown")
    assert live.unsettled == 1
    assert_accounted(live)


async def test_connections_that_have_failed_are_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    broker = FakeBroker()
    config = settings("nats://fake:4222", reconnect_attempts=2, on_reconnect_exhausted="stop")
    opened: list[Live] = []
    receipts: list[Receipt] = []

    async def exhaust() -> None:
        async with router(broker, config).open() as live:
            opened.append(live)
            broker.down()
            await trio.testing.wait_all_tasks_blocked()
            receipts.append(await live.publish("out", b"x"))
            await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(ConnectionExhaustedError):
        await exhaust()
    assert trio.current_time() - began < 1.0, "two attempts, and not the shutdown timeout on top"
    assert receipts[0].fate == Fate("dropped", "shutdown")
    assert opened[0].unsettled == 1


@pytest.mark.parametrize("with_ack", [False, True])
async def test_a_caller_outside_that_waits_for_room_is_refused_at_the_end(
    with_ack: bool, autojump_clock: trio.testing.MockClock
) -> None:
    broker = FakeBroker()
    config = settings("nats://fake:4222", max_pending_operations=1, on_pending_full="block")
    reasons: list[str] = []

    async def publish(live: Live) -> None:
        call = live.publish_with_ack if with_ack else live.publish
        with pytest.raises(PublishError) as caught, trio.fail_after(60):
            await call("out", b"waits")
        reasons.append(caught.value.reason)

    async with trio.open_nursery() as outside:
        with trio.CancelScope() as scope:
            async with router(broker, config).open() as live:
                broker.down()
                await trio.testing.wait_all_tasks_blocked()
                await live.publish("out", b"fills the queue")
                for _ in range(3):
                    outside.start_soon(publish, live)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
        ended_at = trio.current_time()
    assert reasons == ["shutdown"] * 3
    assert trio.current_time() == ended_at, "at once"
    assert_accounted(live)
