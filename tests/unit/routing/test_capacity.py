"""What can't be sent never takes the room of what can: a destination that takes nothing, beside others that work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import PublishError
from router_trio.outbox.capacity import REFUSES_FOR_LONG
from router_trio.outbox.retries import ACK_BUDGET
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, overhearing, stream, to, world

MESSAGES = 40_000
SUBJECTS = 1_000
PUBLISHERS = 10_000

HEALTHY = [
    core("core.*", "fine.{{wildcard(1)}}", name="core"),
    stream("IN", "out.{{wildcard(1)}}", route="stream", filter="in.*"),
    core("store.*", to("out.stored.{{wildcard(1)}}", jetstream=True), name="store"),
]

pytestmark = pytest.mark.timeout(240)
"""They move 40,000 messages each: some ten seconds of one processor, several times that where it is shared."""

REFUSED = core("bad.*", to("bad.copy.{{wildcard(1)}}", jetstream=True), name="refused")

KINDS = ["missing", "leaderless", "silent"]


@asynccontextmanager
async def beside(kind: str, *routes: dict[str, Any], **options: Any) -> AsyncIterator[World]:
    """Routes that work and `routes`, whose destination `bad.copy.>` takes nothing: no stream, no leader, no answer."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.add_stream("SRC", ["src.*"])
    if kind == "leaderless":
        broker.add_stream("BAD", ["bad.copy.>"])
        broker.trouble.elect("BAD", 1e6)
    async with world([*HEALTHY, *routes], brokers={"main": broker}, shutdown_timeout=1.0, **options) as w:
        if kind == "silent":
            async with overhearing(broker, "bad.copy.>"):
                yield w
        else:
            yield w


def flood(w: World, count: int = MESSAGES, subjects: int = SUBJECTS) -> None:
    """Messages for the destination that takes nothing: consecutive numbers."""
    for number in range(count):
        w.broker.publish(f"bad.{number % subjects}", b"%d" % number)


async def assert_neighbours_go_on(w: World) -> None:
    """Publishes and routes that have to do with the connection alone take no second."""
    before = [sum(route.routed.values()) for route in w.live.routes[:3]]
    with trio.fail_after(1):
        await w.live.publish("x", b"")
    with trio.fail_after(1):
        await w.live.publish_with_ack("out.published", b"")
    with trio.fail_after(1):
        for subject in ("core.1", "in.1", "store.1"):
            w.broker.publish(subject, b"")
        after = [number + 1 for number in before]
        await eventually(lambda: [sum(route.routed.values()) for route in w.live.routes[:3]] == after, 1)


async def routed(w: World, count: int, within: float) -> None:
    """Wait until so many messages for the destination that took nothing are stored."""
    await eventually(lambda: w.live.routes[3].routed["bad.copy.{{wildcard(1)}}"] == count, within)


def in_order(payloads: list[bytes], subjects: int = SUBJECTS) -> bool:
    last: dict[int, int] = {}
    for number in map(int, payloads):
        if number <= last.get(number % subjects, -1):
            return False
        last[number % subjects] = number
    return True


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [1, SUBJECTS, MESSAGES])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_route_can_not_send_stops_nobody_else(autojump_clock: MockClock, kind: str, subjects: int) -> None:
    async with beside(kind, REFUSED) as w:
        flood(w, subjects=subjects)
        for _ in range(8):
            await assert_neighbours_go_on(w)
            await trio.sleep(0.7)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_program_can_not_send_stops_nobody_else(autojump_clock: MockClock, kind: str) -> None:
    reasons = []

    async def publish(w: World, number: int) -> None:
        try:
            await w.live.publish_with_ack(f"bad.copy.{number % SUBJECTS}", b"%d" % number)
        except PublishError as error:
            reasons.append(error.reason)

    async with beside(kind) as w:
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for number in range(PUBLISHERS):
                nursery.start_soon(publish, w, number)
            await trio.lowlevel.checkpoint()
            for _ in range(5):
                await assert_neighbours_go_on(w)
                await trio.sleep(0.4)
        assert trio.current_time() - began < 7, "the time of a publish is over after 5 s, wherever it waits"
        assert len(reasons) == PUBLISHERS
        assert set(reasons) == {"timeout"} if kind == "silent" else "no_responders" in reasons


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_route_whose_destination_takes_nothing_stops_nobody_else(
    autojump_clock: MockClock, kind: str
) -> None:
    broken = [
        stream(
            "SRC",
            f"bad.copy.{n}.{{{{wildcard(1)}}}}",
            route=f"bad{n}",
            durable=f"bad{n}",
            filter="src.*",
            max_in_flight=1000,
        )
        for n in range(10)
    ]
    async with beside(kind, *broken) as w:
        for number in range(2000):
            w.broker.publish(f"src.{number}", b"")
        for _ in range(8):
            await assert_neighbours_go_on(w)
            await trio.sleep(0.7)


# --- what waits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "leaderless"])
async def test_what_waits_is_delivered_in_order_when_the_stream_is_there(autojump_clock: MockClock, kind: str) -> None:
    async with beside(kind, REFUSED) as w:
        flood(w)
        await trio.sleep(REFUSES_FOR_LONG / 2)
        if kind == "missing":
            w.broker.add_stream("BAD", ["bad.copy.>"])
        else:
            w.broker.trouble.elect("BAD", 0)
        await routed(w, MESSAGES, 20)
        assert in_order(w.payloads("BAD"))
        assert not w.live.routes[3].failed
        assert w.live.connections["main"].outbox.capacity.refusals() == []


async def test_a_stream_that_was_slow_to_answer_gets_everything_once_and_in_order(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED) as w:
        w.broker.add_stream("BAD", ["bad.copy.>"])
        w.broker.trouble.slow_down("BAD", 1.0)
        flood(w, 20_000)
        for _ in range(3):
            await assert_neighbours_go_on(w)
        await routed(w, 20_000, 20)
        assert in_order(w.payloads("BAD"))
        assert w.failures("publish_with_ack") == {}


async def test_the_thousand_subjects_of_a_missing_stream_are_no_flood(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED) as w:
        flood(w)
        await trio.sleep(1)
        tried = len(w.broker.published)
        await trio.sleep(4)
        assert len(w.broker.published) - tried <= 4.5 * 1024


async def test_one_of_two_streams_behind_a_template_goes_on_when_it_has_a_leader(autojump_clock: MockClock) -> None:
    """A missing stream with many subjects does not keep the other one's publishes from being tried."""
    async with beside("missing", REFUSED) as w:
        w.broker.add_stream("GOOD", ["bad.copy.good"])
        w.broker.trouble.elect("GOOD", 3)
        w.broker.publish("bad.good", b"")
        flood(w, 200, 200)
        await eventually(lambda: len(w.broker.messages("GOOD")) == 1, 5)


async def test_an_election_beside_a_missing_stream_loses_nothing(autojump_clock: MockClock) -> None:
    elected = core("elect.*", to("elected.{{wildcard(1)}}", jetstream=True), name="elected")
    async with beside("missing", REFUSED, elected) as w:
        w.broker.add_stream("ELECTED", ["elected.*"])
        flood(w)
        await trio.sleep(1)
        w.broker.trouble.elect("ELECTED", 6)
        for number in range(6000):
            w.broker.publish(f"elect.{number % 10}", b"%d" % number)
            if number % 10 == 0:
                await trio.sleep(0.01)
        await eventually(lambda: w.live.routes[4].routed["elected.{{wildcard(1)}}"] == 6000, 5)
        assert in_order(w.payloads("ELECTED"), 10)


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_full", ["drop_oldest", "reject"])
async def test_a_destination_that_refuses_for_long_keeps_its_share_and_the_rest_is_accounted(
    autojump_clock: MockClock, on_full: str
) -> None:
    count = 3000
    async with beside("missing", REFUSED, on_pending_full=on_full, max_pending_operations=100) as w:
        flood(w, 10, 10)
        await trio.sleep(REFUSES_FOR_LONG)
        for _ in range(10):
            flood(w, count // 10, 10)
            await trio.sleep(0.1)
        route, outbox = w.live.routes[3], w.live.connections["main"].outbox
        # What one read brings is accepted together.
        most = 50 + count // 10
        assert outbox.pending + outbox.in_flight <= most
        assert route.failed["queue_full"] >= count - most
        await assert_neighbours_go_on(w)
        w.entry()


@pytest.mark.parametrize("on_full", ["drop_oldest", "reject"])
@pytest.mark.parametrize("kind", ["missing", "leaderless"])
async def test_new_subjects_without_end_use_up_no_more_than_a_share(
    autojump_clock: MockClock, kind: str, on_full: str
) -> None:
    async with beside(kind, REFUSED, on_pending_full=on_full, max_pending_operations=100) as w:
        outbox = w.live.connections["main"].outbox
        most = 0
        for second in range(40):
            for number in range(500):
                w.broker.publish(f"bad.{second}_{number}", b"")
            await trio.sleep(1)
            most = max(most, outbox.pending + outbox.in_flight)
        await assert_neighbours_go_on(w)
        assert most < 6_000, "what came before it was known to refuse for long"
        assert outbox.pending + outbox.in_flight < 2_000
        w.entry()


async def test_with_block_a_route_waits_for_its_destination_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED, on_pending_full="block", max_pending_operations=100) as w:
        flood(w, 3000, 10)
        await trio.sleep(REFUSES_FOR_LONG * 2)
        await assert_neighbours_go_on(w)
        w.broker.add_stream("BAD", ["bad.copy.>"])
        await routed(w, 3000, 20)
        assert in_order(w.payloads("BAD"), 10)


async def test_the_other_destination_of_a_route_goes_on_though_one_takes_nothing(autojump_clock: MockClock) -> None:
    both = core("bad.*", to("bad.copy.{{wildcard(1)}}", jetstream=True), to("fine.{{wildcard(1)}}"), name="both")
    async with beside("missing", both) as w:
        flood(w, 5000, 10)
        await trio.sleep(1)
        flood(w, 5000, 10)
        await trio.sleep(REFUSES_FOR_LONG)
        assert w.live.routes[3].routed["fine.{{wildcard(1)}}"] == 10_000
        flood(w, 1000, 10)
        await eventually(lambda: w.live.routes[3].routed["fine.{{wildcard(1)}}"] == 11_000, 1)


async def test_a_refusal_can_be_asked_for(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED) as w:
        outbox = w.live.connections["main"].outbox
        assert outbox.capacity.refusals() == []
        began = trio.current_time()
        flood(w, 20, 4)
        await trio.sleep(1)
        (refusal,) = outbox.capacity.refusals()
        assert refusal.destination == "destination bad.copy.{{wildcard(1)}} of route refused"
        assert refusal.subject.startswith("bad.copy.")
        assert (refusal.subjects, refusal.reason) == (4, "no_responders")
        assert refusal.held <= 20
        assert began <= refusal.since < began + 0.1
        with pytest.raises(PublishError):
            await w.live.publish_with_ack("nobody.listens", b"", timeout=0.6)
        assert len(outbox.capacity.refusals()) == 1


async def test_a_publish_that_no_share_has_room_for_is_told_within_its_time(autojump_clock: MockClock) -> None:
    async with beside("missing", max_pending_operations=4) as w, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(partial(_told, w, ACK_BUDGET * 2))
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(PublishError) as caught:
            await w.live.publish_with_ack("bad.copy.1", b"", timeout=2)
        assert caught.value.reason == "no_responders"
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        nursery.cancel_scope.cancel()


async def _told(w: World, limit: float) -> None:
    with pytest.raises(PublishError):
        await w.live.publish_with_ack("bad.copy.1", b"", timeout=limit)


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_ack", [False, True])
async def test_who_waits_for_room_outside_of_open_is_told_at_its_end(autojump_clock: MockClock, with_ack: bool) -> None:
    told: list[str] = []

    async def publish(w: World) -> None:
        try:
            await (w.live.publish_with_ack if with_ack else w.live.publish)("a", b"")
        except PublishError as error:
            told.append(error.reason)

    async with trio.open_nursery() as outside:
        async with world(max_pending_operations=2, on_pending_full="block", shutdown_timeout=1.0) as w:
            await w.lose()
            for _ in range(2):
                await w.live.publish("a", b"")
            for _ in range(10):
                outside.start_soon(publish, w)
            await trio.sleep(1)
            assert told == []
        outside.cancel_scope.deadline = trio.current_time() + 1
    assert told == ["shutdown"] * 10


async def test_who_waits_for_the_share_of_a_destination_is_told_at_the_end(autojump_clock: MockClock) -> None:
    told: list[str] = []

    async def publish(w: World) -> None:
        try:
            await w.live.publish_with_ack("bad.copy.1", b"", timeout=1e6)
        except PublishError as error:
            told.append(error.reason)

    async with trio.open_nursery() as outside:
        async with beside("missing", max_pending_operations=4) as w:
            for _ in range(20):
                outside.start_soon(publish, w)
            await trio.sleep(1)
        outside.cancel_scope.deadline = trio.current_time() + 1
    assert told == ["shutdown"] * 20
