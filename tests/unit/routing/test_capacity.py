"""Publishes that can't be sent never take the room of those that can: a blocked destination beside working ones."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import PublishError
from router_trio.outbox.capacity import REFUSES_FOR_LONG
from tests.support.eventually import eventually
from tests.support.world import World, core, stream, to, world
from tests.unit.routing.neighbours import (
    MESSAGES,
    PART,
    REFUSED,
    SUBJECTS,
    assert_neighbours_continue,
    beside,
    flood,
    in_order,
    routed,
)

PUBLISHERS = 625

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
"""A test here moves 40,000 messages: some ten seconds of one processor, several times that if it is shared."""

KINDS = ["missing", "leaderless", "silent"]


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [1, SUBJECTS, MESSAGES])
@pytest.mark.parametrize("kind", KINDS)
async def test_messages_that_a_route_can_not_send_hold_up_no_others(
    autojump_clock: MockClock, kind: str, subjects: int
) -> None:
    async with beside(kind, REFUSED) as w:
        flood(w, subjects=subjects)
        for _ in range(8):
            await assert_neighbours_continue(w)
            await trio.sleep(0.7)


async def test_messages_that_a_route_can_not_send_hold_up_no_others_with_the_real_limits(
    autojump_clock: MockClock,
) -> None:
    async with beside("silent", REFUSED, part=1) as w:
        flood(w, MESSAGES * PART)
        for _ in range(8):
            await assert_neighbours_continue(w)
            await trio.sleep(0.7)


@pytest.mark.parametrize("kind", KINDS)
async def test_publishes_that_a_program_can_not_send_hold_up_no_others(autojump_clock: MockClock, kind: str) -> None:
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
                await assert_neighbours_continue(w)
                await trio.sleep(0.4)
        assert trio.current_time() - began < 7, "a publish times out after 5 s, wherever it waits"
        assert len(reasons) == PUBLISHERS
        assert set(reasons) == {"timeout"} if kind == "silent" else "no_responders" in reasons


@pytest.mark.parametrize("kind", KINDS)
async def test_routes_from_a_stream_to_a_blocked_destination_hold_up_no_others(
    autojump_clock: MockClock, kind: str
) -> None:
    broken = [
        stream(
            "SRC",
            f"bad.copy.{n}.{{{{wildcard(1)}}}}",
            route=f"bad{n}",
            durable=f"bad{n}",
            filter="src.*",
            max_in_flight=125,
        )
        for n in range(10)
    ]
    async with beside(kind, *broken) as w:
        for number in range(250):
            w.broker.publish(f"src.{number}", b"")
        for _ in range(8):
            await assert_neighbours_continue(w)
            await trio.sleep(0.7)


# --- waiting publishes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "leaderless"])
async def test_waiting_publishes_are_delivered_in_order_once_the_stream_is_available(
    autojump_clock: MockClock, kind: str
) -> None:
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


async def test_a_stream_that_answers_slowly_gets_each_message_once_and_in_order(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED) as w:
        w.broker.add_stream("BAD", ["bad.copy.>"])
        w.broker.trouble.slow_down("BAD", 1.0)
        flood(w, MESSAGES // 2)
        for _ in range(3):
            await assert_neighbours_continue(w)
        await routed(w, MESSAGES // 2, 20)
        assert in_order(w.payloads("BAD"))
        assert w.failures("publish_with_ack") == {}


async def test_retries_to_the_many_subjects_of_a_missing_stream_are_paced(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED) as w:
        flood(w, 10_000, 1000)
        await trio.sleep(1)
        tried = len(w.broker.published)
        await trio.sleep(4)
        assert len(w.broker.published) - tried <= 4.5 * 1024


async def test_one_of_two_streams_behind_a_template_continues_once_it_has_a_leader(autojump_clock: MockClock) -> None:
    """A missing stream with many subjects does not keep the publishes of the other stream from being tried."""
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
        for number in range(1500):
            w.broker.publish(f"elect.{number % 10}", b"%d" % number)
            if number % 5 == 0:
                await trio.sleep(0.02)
        await eventually(lambda: w.live.routes[4].routed["elected.{{wildcard(1)}}"] == 1500, 5)
        assert in_order(w.payloads("ELECTED"), 10)


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_ack", [False, True])
async def test_a_publisher_outside_of_open_that_waits_for_room_fails_at_its_end(
    autojump_clock: MockClock, with_ack: bool
) -> None:
    reasons: list[str] = []

    async def publish(w: World) -> None:
        try:
            await (w.live.publish_with_ack if with_ack else w.live.publish)("a", b"")
        except PublishError as error:
            reasons.append(error.reason)

    async with trio.open_nursery() as outside:
        async with world(max_pending_operations=2, on_pending_full="block", shutdown_timeout=1.0) as w:
            await w.lose()
            for _ in range(2):
                await w.live.publish("a", b"")
            for _ in range(10):
                outside.start_soon(publish, w)
            await trio.sleep(1)
            assert reasons == []
        outside.cancel_scope.deadline = trio.current_time() + 1
    assert reasons == ["shutdown"] * 10


async def test_a_publisher_that_waits_for_the_share_of_a_destination_fails_at_the_end(
    autojump_clock: MockClock,
) -> None:
    reasons: list[str] = []

    async def publish(w: World) -> None:
        try:
            await w.live.publish_with_ack("bad.copy.1", b"", timeout=1e6)
        except PublishError as error:
            reasons.append(error.reason)

    async with trio.open_nursery() as outside:
        async with beside("missing", max_pending_operations=4) as w:
            for _ in range(20):
                outside.start_soon(publish, w)
            await trio.sleep(1)
        outside.cancel_scope.deadline = trio.current_time() + 1
    assert reasons == ["shutdown"] * 20
