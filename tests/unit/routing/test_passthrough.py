"""Messages forwarded while they arrive: offered together whatever their route, and counted for each route."""

from __future__ import annotations

import re

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio import Receipt
from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.link import SharedDelivery, SubscriptionBatch
from router_trio.outbox.capacity import FORWARDED
from router_trio.outbox.operation import FrameOwners
from router_trio.outbox.outbox import Outbox
from router_trio.routing.core.batch_route import BatchRoute
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.tracing import NoTracing
from router_trio.testing import FakeBroker
from tests.performance.instructions import Bench
from tests.support.compiled import looks_inside
from tests.support.eventually import eventually
from tests.support.world import core, to, world


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets the counts of the owners of each offer made while connected."""
    seen: list[list[int]] = []
    offer_frames = Outbox.offer_frames

    def offered(outbox: Outbox, frames: list[bytes], runs: FrameOwners) -> None:
        if outbox.connected:
            seen.append([*runs.counts])
        offer_frames(outbox, frames, runs)

    monkeypatch.setattr(Outbox, "offer_frames", offered)
    return seen


@looks_inside
async def test_messages_of_one_read_for_many_routes_are_one_offer(
    autojump_clock: MockClock, offers: list[list[int]]
) -> None:
    routes = [core(f"in.{number}.*", f"out.{number}.{{{{wildcard(1)}}}}") for number in range(10)]
    for number, route in enumerate(routes):
        route["name"] = f"r{number}"
    async with world(routes) as w:
        for number in (*range(10), 3, 3):
            w.broker.publish(f"in.{number}.x", b"")
        await eventually(lambda: sum(sum(route.routed.values()) for route in w.live.routes) == 12)
        assert offers == [[3 if number == 3 else 1 for number in range(10)]]
        assert [route.received for route in w.live.routes] == [3 if number == 3 else 1 for number in range(10)]
        assert [sum(route.durations.counts) for route in w.live.routes] == [route.received for route in w.live.routes]
        assert w.entry()["settled"] == {"fenced": 12}


async def test_messages_wait_only_behind_others_of_their_route(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(2)
    outbox = bench.outbox
    passthrough = Passthrough(bench.connection, NoTracing())
    shared = SharedSubscription("in.>", None)
    first, second = (
        BatchRoute(one, SubjectSource(one, bench.connection, lambda event: None, shared), passthrough)
        for one in bench.routings
    )
    inbox = first._intake

    def deliver(numbers: dict[BatchRoute, int]) -> None:
        touched = []
        for route, number in numbers.items():
            deliver = route.source.deliver
            assert isinstance(deliver, SharedDelivery)
            subject = b"in.%04d.%d" % (number // 100, number)
            touched.append(SubscriptionBatch(deliver.key, [(subject, b"", 0, 0, b"0\r\n\r\n")]))
        passthrough.deliver(touched)

    def left() -> list[int]:
        """Return the numbers of the messages that are sent now."""
        return [int(one) for frame in bench.written() for one in re.findall(rb"PUB out\.\d+\.(\d+) ", frame)]

    deliver({first: 1, second: 101})
    assert left() == [1, 101]
    outbox.fenced(outbox.fences.sent)
    while not outbox.over_limit:
        outbox.offer_frames([b"PUB x 0\r\n\r\n"] * 10_000, FrameOwners([Receipt()], [10_000]))
    deliver({first: 2, second: 102})
    assert (len(inbox), len(second._intake)) == (1, 1)
    while outbox.over_limit:
        assert left() == []
        outbox.fenced(outbox.fences.sent)
    second._intake.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.run)
        await wait_all_tasks_blocked()
        deliver({first: 3, second: 103})
        assert len(inbox) == 2, "behind the waiting message"
        assert left() == [103]
        nursery.start_soon(first.run)
        await wait_all_tasks_blocked()
        assert left() == [2, 3]
        deliver({first: 4})
        assert len(inbox) == 0
        assert left() == [4], "no message waits any more"
        assert not passthrough._behind
        nursery.cancel_scope.cancel()


@looks_inside
async def test_a_message_that_fails_is_counted_and_the_others_of_its_read_are_forwarded(
    autojump_clock: MockClock, offers: list[list[int]]
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker(max_payload=100)}
    route = core("in.*", to("out.{{split(1,-)}}", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        for token, size in (("a-b", 100), ("--x", 0), ("large", 101), ("c", 0)):
            w.broker.publish(f"in.{token}", b"x" * size)
        await eventually(lambda: sum(w.route.routed.values()) == 2)
        assert offers == [[2]]
        assert w.subjects("edge") == ["out.a.b", "out.c"]
        assert w.route.failed == {"mapping": 1, "too_large": 1}
        assert w.watch.count("ROUTE_MESSAGE_FAILED") == 2
        assert (w.route.received, sum(w.route.durations.counts)) == (4, 4)
        for _ in range(3):
            w.broker.publish("in.--x", b"")
        await eventually(lambda: w.route.failed["mapping"] == 4)
        assert w.entry("edge")["accepted"] == 2


@pytest.mark.slow
async def test_messages_without_room_in_a_crowded_outbox_wait_and_later_ones_stay_behind_them(
    autojump_clock: MockClock,
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    route = core("in", to("out", "edge"), connection="main")
    async with world([route], brokers=brokers, connections={"edge": {"max_pending_operations": 1}}) as w:
        brokers["edge"].stall(1.0)
        published = 0
        while not w.live.connections["edge"].outbox.over_limit:
            for _ in range(FORWARDED // 4):
                w.broker.publish("in", b"%09d" % published)
                published += 1
            await trio.sleep(0.01)
        for _ in range(3):
            w.broker.publish("in", b"%09d" % published)
            published += 1
            await trio.sleep(0.01)
        w.broker.publish("in", b"%09d" % published)
        await eventually(lambda: w.route.routed["out"] == published + 1, 60)
        w.broker.publish("in", b"%09d" % (published + 1))
        await eventually(lambda: w.route.routed["out"] == published + 2)
        assert [int(message.payload) for message in brokers["edge"].published] == [*range(published + 2)]
        assert not w.route.failed
