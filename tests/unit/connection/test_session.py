"""The life of one link, with a link controlled by the test and a clock that jumps."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio.connection.latch import Latch
from router_trio.connection.session import FENCE_EVERY, SHARED_WITHIN
from router_trio.errors import LinkError
from router_trio.link import Link
from router_trio.message import Fate
from router_trio.outbox.fences import SHARED_FENCE
from router_trio.outbox.operation import FrameOwners, Operation
from router_trio.protocol.framing import publish
from tests.unit.connection.sessions import INTERVAL, SessionSetup, StubSource, serving

# --- the dial ---


async def test_a_failed_dial_is_reported_and_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_error = LinkError("connection refused")
    await setup.run()
    assert setup.session.error is setup.dial_error
    assert setup.session.ended.is_set()
    assert not setup.session.connected.is_set()


async def test_a_dial_takes_no_longer_than_its_timeout(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_takes = 10.0
    await setup.run()
    assert trio.current_time() == 2.0
    assert setup.session.error is not None
    assert setup.session.error.reason == "timeout"
    assert setup.closed


async def test_a_session_can_be_ended_before_it_is_connected(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_takes = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.run)
        await trio.sleep(0.5)
        setup.session.end()
        await setup.session.ended.wait()
        assert trio.current_time() == 0.5
    assert setup.session.error is None
    assert not setup.session.connected.is_set()


async def test_a_session_can_be_ended_before_it_begins() -> None:
    setup = SessionSetup()
    setup.session.end()
    await setup.run()
    assert setup.session.ended.is_set()
    assert setup.session.link is None


async def test_a_link_lost_before_it_serves_is_reported(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    death = LinkError("gone")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.run)
        await setup.session.connected.wait()
        setup.die(death)
        await setup.session.ended.wait()
    assert setup.session.error is death
    assert setup.session.link is None


async def test_another_error_is_not_swallowed(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await setup.run()
    assert setup.session.ended.is_set()


# --- the liveness fence ---


async def test_an_idle_link_is_fenced_at_even_intervals(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        await trio.sleep(10 * INTERVAL)
    due = [round(FENCE_EVERY * INTERVAL * number, 6) for number in range(1, 14)]
    assert setup.link.fences == due
    assert setup.fenced == due


async def test_a_busy_link_needs_no_fence_of_its_own(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        published = 0
        while trio.current_time() < 10 * INTERVAL:
            setup.publish()
            published += 1
            await trio.sleep(0.5)
    assert len(setup.link.fences) == published


@pytest.mark.parametrize("latency", [0.1, 0.49, 0.51, 0.75, 0.95])
async def test_a_slow_answer_is_an_answer(latency: float, autojump_clock: MockClock) -> None:
    """An answer counts even if it arrives after the next fence was sent."""
    setup = SessionSetup()
    setup.link.latency = latency * INTERVAL
    async with serving(setup) as session:
        await trio.sleep(50 * INTERVAL)
        assert not session.ended.is_set()
    assert session.error is None


async def test_a_link_that_answers_neither_of_two_fences_is_ended(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup) as session:
        await trio.sleep(1.0)
        setup.link.latency = 1000.0
        await session.ended.wait()
        assert trio.current_time() == 1.75 * INTERVAL
        assert len(setup.link.fences) == 2
    assert session.error is not None
    assert session.error.reason == "liveness"
    assert "no answer to a fence for 7.0 s" in str(session.error)
    assert setup.closed


async def test_a_blocked_writer_does_not_hide_a_dead_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.send_takes = setup.link.latency = 1000.0
    async with serving(setup) as session:
        receipt = setup.publish()
        await session.ended.wait()
        assert trio.current_time() == 1.75 * INTERVAL
        setup.outbox.link_down()
    assert receipt.fate is None
    assert (setup.outbox.pending, setup.outbox.in_flight) == (1, 0)


# --- sending ---


async def test_publishes_are_sent_and_confirmed(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        receipts = [setup.publish(b"%d" % number) for number in range(10)]
        assert {(await one.settled()).name for one in receipts} == {"fenced"}
    assert setup.link.sent == [publish(b"out", b"%d" % number) for number in range(10)]
    assert len(setup.link.fences) == 1


async def test_a_fence_confirms_nothing_that_was_sent_after_it(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.latency = 1.0
    async with serving(setup):
        first = setup.publish()
        await trio.sleep(0.5)
        second = setup.publish()
        await first.settled()
        assert trio.current_time() == 1.0
        assert second.fate is None
        await second.settled()
        assert trio.current_time() == 2.0


async def test_a_publish_that_the_link_refuses_fails_and_the_others_are_sent(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.refuse = lambda operation: b"large" in operation.frame
    async with serving(setup):
        receipts = [setup.publish(payload) for payload in (b"1", b"large", b"2")]
        assert [(await one.settled()).name for one in receipts] == ["fenced", "failed", "fenced"]
    assert receipts[1].fate is not None
    assert receipts[1].fate.reason == "too_large"


async def test_publishers_waiting_for_room_are_woken_by_each_batch_that_is_taken(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.send_takes = 1.0
    async with serving(setup), trio.open_nursery() as nursery:
        for _ in range(2):
            setup.publish()
            nursery.start_soon(setup.room.park)
            await trio.testing.wait_all_tasks_blocked()
        assert len(setup.room) == 1, "the second waits while the first batch is written"
        await trio.sleep(1.1)
        assert len(setup.room) == 0


async def test_publishers_waiting_for_room_are_woken_by_a_failure(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup), trio.open_nursery() as nursery:
        _, order = setup.outbox.offer_with_ack(b"stored", b"x", b"", b"_INBOX.x")
        await trio.sleep(1.0)
        nursery.start_soon(setup.room.park)
        await trio.testing.wait_all_tasks_blocked()
        setup.outbox.refusals.ack_refused(order, "limit", "the stream is full", retriable=False)
        await trio.testing.wait_all_tasks_blocked()
        assert len(setup.room) == 0


async def test_a_link_that_is_left_gets_nothing_more_and_confirms_what_it_has(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.latency = 1.0
    async with serving(setup) as session:
        first = setup.publish(b"1")
        await trio.sleep(0.1)
        session.leave()
        second = setup.publish(b"2")
        await trio.sleep(5.0)
        assert first.fate is not None
        assert first.fate.name == "fenced"
        assert second.fate is None
    assert setup.link.sent == [publish(b"out", b"1")]


# --- the end ---


async def test_several_tasks_that_find_the_link_dead_make_one_loss(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.die(LinkError("gone"))
    async with serving(setup, StubSource(fails=LinkError("dead"))) as session:
        await session.ended.wait()
    assert str(session.error) in ("gone", "dead")


async def test_a_link_that_dies_when_the_session_is_cancelled_raises_nothing(autojump_clock: MockClock) -> None:
    """Some tasks see the cancellation and some the dead link: only the cancellation is left."""
    setup = SessionSetup()

    class DiesWhenCancelled:
        async def serve(self, link: Link, tried: Latch) -> NoReturn:
            tried.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                raise LinkError("it died first") from None

    with trio.CancelScope() as scope:
        async with serving(setup, DiesWhenCancelled(), StubSource()):
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert setup.session.ended.is_set()
    assert setup.closed


# --- fences that are shared ---


class ForwardedOwner:
    """An owner whose fates are not awaited."""

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Ignore the fate."""


def forward(setup: SessionSetup) -> None:
    """Publish as a route that forwards from a subject."""
    setup.outbox.offer_frames([publish(b"out", b"x")], FrameOwners([ForwardedOwner()], [1]))


async def test_publishes_forwarded_at_about_the_same_time_share_a_fence(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for number in range(20):
            forward(setup)
            await trio.sleep(0.0002)
            assert setup.outbox.in_flight <= 11, number
        assert len(setup.link.sent) == 20
        # One publish in each two milliseconds has its own fence.
        assert 2 <= len(setup.link.fences) <= 3
        await trio.sleep(1)
        assert setup.outbox.in_flight == 0
        assert len(setup.link.fences) <= 4


async def test_a_lone_forwarded_publish_is_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for _ in range(3):
            forward(setup)
            await trio.testing.wait_all_tasks_blocked()
            assert setup.outbox.in_flight == 0
            await trio.sleep(0.01)
        assert len(setup.link.fences) == 3


async def test_a_forwarded_publish_that_none_follows_is_fenced_soon(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        assert setup.outbox.in_flight == 1
        await trio.sleep(SHARED_WITHIN + 0.0005)
        assert setup.outbox.in_flight == 0


async def test_many_publishes_forwarded_together_are_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(SHARED_FENCE):
            forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        assert setup.outbox.in_flight == 0


async def test_the_publish_of_a_program_is_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for _ in range(3):
            setup.publish()
            await trio.testing.wait_all_tasks_blocked()
            assert setup.outbox.in_flight == 0
