"""Faults of publishes: which publishes they strike, and which they leave alone."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.client.receipt import Receipt
from router_trio.errors import LinkError
from router_trio.faults import Faults, close_connection, delay, error, timeout
from router_trio.link import Refusal
from router_trio.outbox.operation import FrameOwners, OperationBatch
from router_trio.protocol.framing import publish
from router_trio.testing import FakeBroker
from tests.support.recorder import Recorder, operation, operation_with_ack
from tests.unit.faults.faulty import faulty, with_orders


@pytest.fixture
def broker() -> FakeBroker:
    return with_orders()


def payloads(broker: FakeBroker) -> list[bytes]:
    return [message.payload for message in broker.published]


# --- publish ---


async def test_an_error_refuses_only_the_publish_that_it_strikes(broker: FakeBroker) -> None:
    faults = Faults()
    faults.inject("publish", error("overloaded"), times=2)
    recorder = Recorder()
    async with faulty(broker, faults, recorder) as link:
        batch = [operation(n, b"out", b"%d" % n) for n in range(4)]
        refusals = await link.send([*batch, operation_with_ack(9, b"orders.1", b"9")])
        await link.fence()
    assert [(one.operation, one.reason, one.retriable) for one in refusals] == [
        (batch[0], "overloaded", False),
        (batch[1], "overloaded", False),
    ]
    assert payloads(broker) == [b"2", b"3", b"9"]
    assert faults.struck == {"publish": 2}
    assert faults.active() == ()


async def test_publishes_of_one_batch_are_struck_one_by_one(broker: FakeBroker) -> None:
    faults = Faults()
    faults.inject("publish", error("overloaded"), times=2)
    frames = [publish(b"out", b"%d" % n) for n in range(4)]
    joined = OperationBatch(4, frames, 0, FrameOwners([Receipt()], [4]), 0.0)
    async with faulty(broker, faults) as link:
        refusals = await link.send([joined])
        await link.fence()
    assert [(one.operation.order, one.operation.count, one.reason) for one in refusals] == [
        (1, 1, "overloaded"),
        (2, 1, "overloaded"),
    ]
    assert payloads(broker) == [b"2", b"3"]


async def test_a_core_publish_that_times_out_is_sent_behind_its_batch(
    broker: FakeBroker, autojump_clock: trio.testing.MockClock
) -> None:
    faults = Faults()
    faults.inject("publish", timeout(2.0), times=1)
    began = trio.current_time()
    async with faulty(broker, faults) as link, trio.open_nursery() as nursery:
        refusals: list[Refusal] = []

        async def send() -> None:
            refusals.extend(await link.send([operation(n, b"out", b"%d" % n) for n in range(3)]))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert payloads(broker) == [b"1", b"2"]
        assert trio.current_time() == began
    assert [(one.operation.order, one.reason) for one in refusals] == [(0, "timeout")]
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_a_jetstream_publish_that_times_out_holds_up_nothing(
    broker: FakeBroker, autojump_clock: trio.testing.MockClock
) -> None:
    faults = Faults()
    faults.inject("publish_with_ack", timeout(2.0), times=1)
    recorder = Recorder()
    began = trio.current_time()
    async with faulty(broker, faults, recorder) as link:
        assert await link.send([operation_with_ack(n, b"orders.1", b"%d" % n) for n in (1, 2)]) == []
        assert await link.send([operation_with_ack(3, b"orders.1", b"3")]) == []
        await recorder.until(lambda told: len(told.acks) == 2)
        assert trio.current_time() == began
        await recorder.until(lambda told: told.refusals)
        assert trio.current_time() - began == pytest.approx(2.0)
    assert recorder.refusals == {1: ("timeout", False)}
    assert payloads(broker) == [b"2", b"3"]


@pytest.mark.parametrize("with_ack", [False, True])
async def test_the_link_dies_before_the_write(broker: FakeBroker, with_ack: bool) -> None:
    faults = Faults()
    make = operation_with_ack if with_ack else operation

    async def use_a_link() -> None:
        async with faulty(broker, faults) as link:
            await link.send([make(1, b"orders.1", b"1")])
            faults.inject("publish_with_ack" if with_ack else "publish", close_connection())
            await link.send([make(2, b"orders.1", b"2")])

    with pytest.raises(LinkError) as caught:
        await use_a_link()
    assert caught.value.reason == "closed"
    assert payloads(broker) == [b"1"]
    assert broker.links == 0


async def test_publishes_before_a_closed_connection_are_written(broker: FakeBroker) -> None:
    faults = Faults()
    faults.inject("publish_with_ack", close_connection())
    with pytest.raises(LinkError):
        async with faulty(broker, faults) as link:
            await link.send([operation(1, b"a"), operation_with_ack(2, b"orders.1"), operation(3, b"b")])
    assert [message.subject for message in broker.published] == ["a"]


async def test_a_delay_keeps_the_order(broker: FakeBroker, autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    faults.inject("publish", delay(2.0), probability=0.5, seed=1)
    began = trio.current_time()
    async with faulty(broker, faults) as link:
        assert await link.send([operation(n, b"out", b"%d" % n) for n in range(20)]) == []
        await link.fence()
    assert 0 < faults.struck["publish"] < 20
    assert payloads(broker) == [b"%d" % n for n in range(20)]
    assert trio.current_time() - began == pytest.approx(2.0), "each is as late as the others, not later"


async def test_the_same_seed_strikes_the_same_publishes(broker: FakeBroker) -> None:
    async def refused(seed: int) -> list[int]:
        faults = Faults()
        faults.inject("publish", error("x"), probability=0.3, seed=seed)
        async with faulty(broker, faults) as link:
            return [one.operation.order for one in await link.send([operation(n, b"out") for n in range(200)])]

    first = await refused(7)
    assert 30 < len(first) < 90
    assert await refused(7) == first
    assert await refused(8) != first
