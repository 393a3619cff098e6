"""Fault injection on the fake broker and the autojump clock: which operations are struck, and how a link reacts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf, nan

import pytest
import trio
import trio.testing

from router_trio.errors import LinkError, SourceError
from router_trio.faults import OPERATIONS, Fault, Faults, Injection, close_connection, delay, error, timeout
from router_trio.link import ConsumerSpec, Link
from router_trio.testing import FakeBroker
from tests.support.recorder import Recorder, operation
from tests.unit.faults.faulty import faulty, with_orders

SPEC = ConsumerSpec("ORDERS", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=1000)


@pytest.fixture
def broker() -> FakeBroker:
    return with_orders()


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
def test_an_invalid_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Faults().inject("publish", error("x"), probability=probability)


def test_an_unknown_operation_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="connect, publish, publish_with_ack, ack, nak, subscribe"):
        Faults().inject("fence", error("x"))
    with pytest.raises(ValueError, match="times must be 1 or more, got 0"):
        Faults().inject("publish", error("x"), times=0)


@pytest.mark.parametrize("reason", ["", "Two Words", "x" * 41, "7up", "a{b}", "a\nb"])
def test_a_reason_that_is_not_a_valid_label_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match="label"):
        error(reason)


@pytest.mark.parametrize("seconds", [-1.0, inf, nan, 1e6])
def test_an_invalid_duration_is_refused(seconds: float) -> None:
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
def test_a_fault_describes_itself(fault: Fault, text: str) -> None:
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


# --- subscribe ---


@pytest.mark.parametrize("with_consumer", [False, True])
@pytest.mark.parametrize(("fault", "reason", "seconds"), [(error("no"), "no", 0.0), (timeout(4.0), "timeout", 4.0)])
async def test_subscribing_fails_and_the_link_survives(
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
    """Yield a link, and the reply subject of a message that it received from a stream."""
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
async def test_an_ack_or_nak_fails_at_once_and_the_link_survives(
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


async def test_acks_sent_together_are_struck_one_by_one(broker: FakeBroker) -> None:
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
async def test_the_link_dies_at_an_ack_or_nak(broker: FakeBroker, name: str) -> None:
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


async def test_delayed_acks_and_naks_keep_their_order(
    broker: FakeBroker, autojump_clock: trio.testing.MockClock
) -> None:
    faults = Faults()
    faults.inject("nak", delay(3.0), times=1)
    async with received(broker, faults) as (link, reply):
        link.nak(reply, 0.0)
        assert not link.ack([reply])  # not struck, and sent behind the nak all the same
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
