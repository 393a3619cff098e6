"""Fault injection: what is struck, and what that does to a link. On the fake broker and the autojump clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf, nan

import pytest
import trio
import trio.testing

from router_trio.client.receipt import Receipt
from router_trio.errors import LinkError, SourceError
from router_trio.faults import OPERATIONS, Fault, Faults, Injection, close_connection, delay, error, timeout
from router_trio.link import ConsumerSpec, Link, Refusal
from router_trio.outbox.operation import FrameOwners, OperationBatch
from router_trio.protocol.framing import publish
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder, operation, operation_with_ack

SPEC = ConsumerSpec("ORDERS", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=1000)


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.*"])
    return broker


@asynccontextmanager
async def faulty(broker: FakeBroker, faults: Faults, listener: Recorder | None = None) -> AsyncIterator[Link]:
    async with faults.around(broker.connect)("nats://fake:4222", INBOX, listener or Recorder()) as link:
        yield link


def payloads(broker: FakeBroker) -> list[bytes]:
    return [message.payload for message in broker.published]


# --- the registry ---


def test_a_fault_is_in_force_until_it_is_cleared() -> None:
    faults = Faults()
    assert faults.active() == ()
    faults.inject("publish", error("overloaded"))
    faults.inject("ack", delay(1.0), probability=0.5, seed=7, times=3)
    assert faults.active() == (
        Injection("publish", Fault("error", "overloaded"), 1.0, None, None),
        Injection("ack", Fault("delay", "", 1.0), 0.5, 7, 3),
    )
    faults.clear("publish")
    assert [one.operation for one in faults.active()] == ["ack"]
    faults.clear()
    assert faults.active() == ()


def test_a_new_fault_replaces_the_old_one_of_its_operation() -> None:
    faults = Faults()
    faults.inject("publish", error("one"))
    faults.inject("publish", error("two"))
    assert [one.fault.reason for one in faults.active()] == ["two"]


@pytest.mark.parametrize("probability", [0.0, -1.0, 1.1, nan])
def test_a_probability_that_is_none_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Faults().inject("publish", error("x"), probability=probability)


def test_an_unknown_operation_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="connect, publish, publish_with_ack, ack, nak, subscribe"):
        Faults().inject("fence", error("x"))
    with pytest.raises(ValueError, match="times must be 1 or more, got 0"):
        Faults().inject("publish", error("x"), times=0)


@pytest.mark.parametrize("reason", ["", "Two Words", "x" * 41, "7up", "a{b}", "a\nb"])
def test_a_reason_that_is_no_label_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match="label"):
        error(reason)


@pytest.mark.parametrize("seconds", [-1.0, inf, nan, 1e6])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    for make in (timeout, delay):
        with pytest.raises(ValueError, match="not a valid duration"):
            make(seconds)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (error("overloaded"), "error(overloaded)"),
        (timeout(0.5), "timeout(0.5 s)"),
        (delay(2), "delay(2 s)"),
        (close_connection(), "close_connection"),
    ],
)
def test_a_fault_says_what_it_is(fault: Fault, text: str) -> None:
    assert str(fault) == text


# --- connect ---


@pytest.mark.parametrize(
    ("fault", "reason", "seconds"),
    [(error("down"), "down", 0.0), (timeout(3.0), "timeout", 3.0), (close_connection(), "closed", 0.0)],
)
async def test_connect_fails(
    broker: FakeBroker, autojump_clock: trio.testing.MockClock, fault: Fault, reason: str, seconds: float
) -> None:
    faults = Faults()
    faults.inject("connect", fault)
    began = trio.current_time()
    with pytest.raises(LinkError) as caught:
        async with faulty(broker, faults):
            pytest.fail("connected")
    assert caught.value.reason == reason
    assert trio.current_time() - began == pytest.approx(seconds)
    assert broker.connect_attempts == 0


async def test_connect_is_delayed(broker: FakeBroker, autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    faults.inject("connect", delay(2.0), times=1)
    began = trio.current_time()
    async with faulty(broker, faults) as link:
        assert trio.current_time() - began == pytest.approx(2.0)
        await link.fence()
    async with faulty(broker, faults):
        assert trio.current_time() - began == pytest.approx(2.0)


# --- publish ---


async def test_an_error_refuses_what_it_strikes_and_nothing_else(broker: FakeBroker) -> None:
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


async def test_publishes_that_stay_together_are_struck_one_by_one(broker: FakeBroker) -> None:
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


async def test_a_core_publish_that_times_out_lets_its_batch_go_first(
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


async def test_what_is_before_a_closed_connection_is_written(broker: FakeBroker) -> None:
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


async def test_the_same_seed_strikes_the_same(broker: FakeBroker) -> None:
    async def refused(seed: int) -> list[int]:
        faults = Faults()
        faults.inject("publish", error("x"), probability=0.3, seed=seed)
        async with faulty(broker, faults) as link:
            return [one.operation.order for one in await link.send([operation(n, b"out") for n in range(200)])]

    first = await refused(7)
    assert 30 < len(first) < 90
    assert await refused(7) == first
    assert await refused(8) != first


# --- subscribe ---


@pytest.mark.parametrize("with_consumer", [False, True])
@pytest.mark.parametrize(("fault", "reason", "seconds"), [(error("no"), "no", 0.0), (timeout(4.0), "timeout", 4.0)])
async def test_subscribing_fails_and_the_link_lives(
    broker: FakeBroker,
    autojump_clock: trio.testing.MockClock,
    fault: Fault,
    reason: str,
    seconds: float,
    with_consumer: bool,
) -> None:
    faults = Faults()
    faults.inject("subscribe", fault, times=1)
    recorder = Recorder()

    async def subscribe(link: Link) -> None:
        await (link.open_consumer(SPEC, recorder) if with_consumer else link.subscribe("in", recorder))

    async with faulty(broker, faults) as link:
        began = trio.current_time()
        with pytest.raises(SourceError) as caught:
            await subscribe(link)
        assert caught.value.reason == reason
        assert trio.current_time() - began == pytest.approx(seconds)
        await subscribe(link)


async def test_the_link_dies_when_subscribing(broker: FakeBroker) -> None:
    faults = Faults()
    faults.inject("subscribe", close_connection())
    with pytest.raises(LinkError, match="subscribe"):
        async with faulty(broker, faults) as link:
            await link.subscribe("in", Recorder())


# --- ack and nak ---


@asynccontextmanager
async def received(broker: FakeBroker, faults: Faults) -> AsyncIterator[tuple[Link, bytes]]:
    """A link, and the reply subject of a message that it received from a stream."""
    broker.publish("orders.1", b"x")
    recorder = Recorder()
    async with faulty(broker, faults) as link:
        consumer = await link.open_consumer(SPEC, recorder)
        consumer.pull(1, 5.0)
        (message,) = await recorder.until_delivered(1)
        yield link, message[1]


def answer(link: Link, name: str, reply: bytes) -> None:
    if name == "nak":
        link.nak(reply, 60.0)
    for _, failure in link.ack([reply]) if name == "ack" else ():
        raise failure


@pytest.mark.parametrize("name", ["ack", "nak"])
@pytest.mark.parametrize(("fault", "reason"), [(error("no"), "no"), (timeout(4.0), "timeout")])
async def test_an_answer_fails_at_once_and_the_link_lives(
    broker: FakeBroker, fault: Fault, reason: str, name: str
) -> None:
    faults = Faults()
    faults.inject(name, fault, times=1)
    async with received(broker, faults) as (link, reply):
        with pytest.raises(LinkError) as caught:
            answer(link, name, reply)
        assert caught.value.reason == reason
        await link.fence()
        assert broker.unacked("ORDERS", "router") == 1
        assert not link.ack([reply])
        await link.fence()
        assert broker.unacked("ORDERS", "router") == 0


async def test_of_acks_that_are_sent_together_each_is_struck_by_itself(broker: FakeBroker) -> None:
    faults = Faults()
    broker.publish("orders.2", b"y")
    async with received(broker, faults) as (link, first):
        consumer = await link.open_consumer(SPEC, recorder := Recorder())
        consumer.pull(1, 5.0)
        ((_, second, *_),) = await recorder.until_delivered(1)
        faults.inject("ack", error("no"), times=1)
        ((refused, why),) = link.ack([first, second])
        await link.fence()
        assert (refused, why.reason) == (first, "no")
        assert broker.unacked("ORDERS", "router") == 1


@pytest.mark.parametrize("name", ["ack", "nak"])
async def test_the_link_dies_at_an_answer(broker: FakeBroker, name: str) -> None:
    faults = Faults()
    faults.inject(name, close_connection(), times=1)

    async def use_a_link() -> None:
        async with received(broker, faults) as (link, reply):
            with pytest.raises(LinkError):
                answer(link, name, reply)
            ((refused, _),) = link.ack([reply])
            assert refused == reply
            with pytest.raises(LinkError):
                await link.send([operation(1, b"out")])
            await trio.sleep_forever()

    with pytest.raises(LinkError) as caught:
        await use_a_link()
    assert caught.value.reason == "closed"
    assert broker.unacked("ORDERS", "router") == 1


async def test_answers_are_delayed_in_order(broker: FakeBroker, autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults()
    faults.inject("nak", delay(3.0), times=1)
    async with received(broker, faults) as (link, reply):
        link.nak(reply, 0.0)
        assert not link.ack([reply])  # not struck, and behind the nak all the same
        await link.fence()
        assert broker.unacked("ORDERS", "router") == 1
        await trio.sleep(3.5)
        await link.fence()
        assert broker.unacked("ORDERS", "router") == 0


def test_every_operation_can_be_struck() -> None:
    faults = Faults()
    for name in OPERATIONS:
        faults.inject(name, close_connection())
    assert [one.operation for one in faults.active()] == list(OPERATIONS)
