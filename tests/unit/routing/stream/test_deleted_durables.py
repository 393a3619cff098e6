"""A deleted durable is recreated where nothing settled is routed again, and nothing unsettled is skipped.

This holds even if the process knows little of it: after a restart, and when another process uses it as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.link import ConsumerSpec
from router_trio.routing.stream.pulling.checks import CHECK_EVERY, SHARED_CHECK_EVERY
from router_trio.states import RUNNING
from router_trio.testing import FakeBroker
from router_trio.testing.consumers import Consumer
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.recorder import Recorder
from tests.support.world import (
    Handled,
    World,
    all_acked,
    another_link,
    fill,
    handled,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

ROUTE = stream("IN", to("core", "edge"), connection="main", max_in_flight=16)


def arrived(brokers: dict[str, FakeBroker]) -> list[int]:
    """Return the numbers of the messages at a destination that stores nothing, so that each copy counts."""
    return [int(message.payload) for message in brokers["edge"].published]


def passed_on(w: World) -> int:
    """Return how many messages this process has routed."""
    return w.route.settled["routed"]


@pytest.mark.parametrize("deliver", ["all", "new"])
async def test_a_durable_deleted_soon_after_a_restart_starts_behind_the_settled_messages(
    deliver: str, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main", deliver=deliver)
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 300)
        await all_acked(w, 300)
    async with world([route], brokers=brokers) as w:
        assert w.route.state == RUNNING
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 10, first=300)
        await all_acked(w, 10)
    assert arrived(brokers) == list(range(310))


async def test_a_durable_deleted_right_after_a_restart_starts_behind_the_settled_messages(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    async with world([ROUTE], brokers=brokers) as w:
        fill(w.broker, 30)
        await all_acked(w, 30)
    opened, left = FakePullConsumer.opened, [1]

    async def opened_and_deleted(self: FakePullConsumer, spec: ConsumerSpec, consumer: Consumer) -> None:
        await opened(self, spec, consumer)
        if left:
            left.pop()
            brokers["main"].delete_consumer("IN", "router")

    monkeypatch.setattr(FakePullConsumer, "opened", opened_and_deleted)
    async with world([ROUTE], brokers=brokers) as w:
        fill(w.broker, 10, first=30)
        await all_acked(w, 10)
    assert arrived(brokers) == list(range(40))


async def test_a_durable_deleted_after_a_restart_redelivers_unsettled_messages(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    fails = True

    def pick(message: Message) -> Message:
        if fails and message.payload in (b"298", b"299"):
            raise ValueError("not yet")
        return message

    def route() -> Handled:
        return handled(pick, to=to("core", "edge"), stream="IN", durable="router", connection="main")

    async with world(handlers=[route()], brokers=brokers) as w:
        fill(w.broker, 300)
        await eventually(lambda: w.successes("ack") == 298)
    fails = False
    async with world(handlers=[route()], brokers=brokers) as w:
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 10, first=300)
        await eventually(lambda: len(arrived(brokers)) >= 310, 100)
        await eventually(lambda: unacked(w) == 0)
    assert sorted(arrived(brokers)) == list(range(310))


@pytest.mark.parametrize("idle", [True, False])
async def test_a_deleted_durable_that_two_processes_share_starts_behind_what_both_have_settled(
    idle: bool, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    async with world([ROUTE], brokers=brokers) as first, world([ROUTE], brokers=brokers) as second:
        for burst in range(10):
            fill(first.broker, 30, first=30 * burst)
            await eventually(lambda: passed_on(first) + passed_on(second) == len(first.broker.messages("IN")))
        assert passed_on(first)
        assert passed_on(second)
        await eventually(lambda: unacked(first) == 0)
        if idle:
            await trio.sleep(60)  # longer than messages of other processes are awaited
        await trio.sleep(2 * SHARED_CHECK_EVERY)  # by then each process has noticed what the other has settled
        first.broker.delete_consumer("IN", "router")
        fill(first.broker, 10, first=300)
        await eventually(lambda: passed_on(first) + passed_on(second) >= 310)
        await trio.sleep(60)
    assert sorted(arrived(brokers)) == list(range(310))


@asynccontextmanager
async def another_process(broker: FakeBroker, takes: int) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Let another process request `takes` messages. Yield a function that waits for them and returns them for a
    retry.
    """
    async with another_link(broker) as link:
        received = Recorder()
        spec = ConsumerSpec("IN", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=100_000)
        consumer = await link.open_consumer(spec, received)
        consumer.pull(takes, 1000.0)
        await link.fence()

        async def returned() -> None:
            for raw in await received.until_delivered(takes):
                link.nak(raw[1], 1000.0)
            await link.fence()

        yield returned


@pytest.mark.parametrize("later", [0.0, 150.0])
@pytest.mark.parametrize("first", [True, False])
async def test_messages_that_another_process_has_returned_for_a_retry_are_redelivered(
    first: bool, later: float, autojump_clock: MockClock
) -> None:
    """`first`: the other process returned them before this one opened the durable."""
    brokers = two_brokers()
    broker = brokers["main"]
    async with AsyncExitStack() as processes:
        if first:
            fill(broker, 10)
            await (await processes.enter_async_context(another_process(broker, 10)))()
            w = await processes.enter_async_context(world([ROUTE], brokers=brokers))
        else:
            w = await processes.enter_async_context(world([ROUTE], brokers=brokers))
            returned = await processes.enter_async_context(another_process(broker, 10))
            fill(broker, 60)
            await returned()
        fill(broker, 20, first=100)
        await eventually(lambda: passed_on(w) >= len(broker.messages("IN")) - 10, 60)
        await trio.sleep(later)
        fill(broker, 20, first=120)
        await eventually(lambda: passed_on(w) >= len(broker.messages("IN")) - 10, 60)
        await trio.sleep(2 * CHECK_EVERY)
        broker.delete_consumer("IN", "router")
        await eventually(lambda: passed_on(w) == len(broker.messages("IN")), 100)
        await trio.sleep(60)
        assert len(arrived(brokers)) == len(set(arrived(brokers))) == len(broker.messages("IN"))


async def test_a_durable_is_not_recreated_behind_messages_that_another_process_received_after_a_restore(
    autojump_clock: MockClock,
) -> None:
    """This process has received no message that contradicts the ones it has settled, and later ones are no evidence."""
    brokers = two_brokers()
    broker = brokers["main"]
    route = stream("IN", to("core", "edge"), connection="main", max_in_flight=5)
    async with world([route], brokers=brokers) as w, another_process(broker, 9) as returned:
        fill(broker, 5)  # to the request that came first
        await eventually(lambda: passed_on(w) == 5)
        broker.trouble.restore("IN", 0)
        fill(broker, 9, first=5)
        await returned()
        fill(broker, 5, first=14)
        await eventually(lambda: passed_on(w) == 10)
        await trio.sleep(2 * CHECK_EVERY)
        assert arrived(brokers) == [*range(5), *range(14, 19)]
        assert not w.watch.count("STREAM_WENT_BACK")
        broker.delete_consumer("IN", "router")
        await w.watch.until("STREAM_WENT_BACK", within=100)
        await eventually(lambda: {*arrived(brokers)} == {*range(19)}, 100)


async def test_a_process_without_messages_that_notices_the_deletion_first_starts_behind_what_the_other_has_settled(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    async with world([ROUTE], brokers=brokers) as first:
        fill(first.broker, 300)
        await all_acked(first, 300)
        async with world([ROUTE], brokers=brokers) as second:
            await second.watch.until("ROUTE_READY")
            assert passed_on(second) == 0
            await trio.sleep(10)
            fill(first.broker, 100, first=300)
            await eventually(lambda: passed_on(first) + passed_on(second) == 400)
            await trio.sleep(10)
            first.broker.delete_consumer("IN", "router")
            fill(first.broker, 10, first=400)
            await eventually(lambda: passed_on(first) + passed_on(second) >= 410)
            await trio.sleep(60)
    assert sorted(arrived(brokers)) == list(range(410))


async def test_a_durable_deleted_while_its_filter_was_changed_starts_where_it_was_before(
    autojump_clock: MockClock,
) -> None:
    """The ack floor of a durable with a narrower filter passes over messages that this route takes."""
    brokers = one_broker()
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 20)
        await all_acked(w, 20)
        await trio.sleep(10)
        w.broker.trouble.edit_consumer("IN", "router", filters=("in.other",))  # type: ignore[arg-type]
        fill(w.broker, 20, first=20)
        await w.watch.until("NATS_SUBSCRIBE_ERROR", within=100)
        await trio.sleep(20)
        w.broker.delete_consumer("IN", "router")
        await all_acked(w, 40)
    assert [int(one) for one in w.payloads("OUT")] == list(range(40))
