"""A destination that takes nothing keeps its share of the queue, and leaves the rest to others."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import PublishError
from router_trio.outbox.capacity import REFUSES_FOR_LONG
from router_trio.outbox.retries import ACK_BUDGET
from tests.support.eventually import eventually
from tests.support.world import World, core, to
from tests.unit.routing.neighbours import MESSAGES, REFUSED, assert_neighbours_continue, beside, flood, in_order, routed

pytestmark = pytest.mark.slow

# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_full", ["drop_oldest", "reject"])
async def test_a_destination_that_refuses_for_long_keeps_its_share_and_the_excess_is_counted(
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
        # The messages of one read are accepted together.
        most = 50 + count // 10
        assert outbox.pending + outbox.in_flight <= most
        assert route.failed["queue_full"] >= count - most
        await assert_neighbours_continue(w)
        w.entry()


@pytest.mark.parametrize("on_full", ["drop_oldest", "reject"])
@pytest.mark.parametrize("kind", ["missing", "leaderless"])
async def test_ever_new_subjects_use_up_no_more_than_a_share(
    autojump_clock: MockClock, kind: str, on_full: str
) -> None:
    async with beside(kind, REFUSED, on_pending_full=on_full, max_pending_operations=100) as w:
        outbox = w.live.connections["main"].outbox
        most = 0
        for second in range(40):
            for number in range(40):
                w.broker.publish(f"bad.{second}_{number}", b"")
            await trio.sleep(1)
            most = max(most, outbox.pending + outbox.in_flight)
        await assert_neighbours_continue(w)
        assert most < 480, "accepted before the destination counted as refusing for long"
        assert outbox.pending + outbox.in_flight < 160
        w.entry()


async def test_with_block_a_route_waits_for_its_destination_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with beside("missing", REFUSED, on_pending_full="block", max_pending_operations=100) as w:
        flood(w, 3000, 10)
        await trio.sleep(REFUSES_FOR_LONG * 2)
        await assert_neighbours_continue(w)
        w.broker.add_stream("BAD", ["bad.copy.>"])
        await routed(w, 3000, 20)
        assert in_order(w.payloads("BAD"), 10)


async def test_the_other_destination_of_a_route_continues_while_one_takes_nothing(autojump_clock: MockClock) -> None:
    both = core("bad.*", to("bad.copy.{{wildcard(1)}}", jetstream=True), to("fine.{{wildcard(1)}}"), name="both")
    async with beside("missing", both) as w:
        flood(w, MESSAGES // 2, 10)
        await trio.sleep(1)
        flood(w, MESSAGES // 2, 10)
        await trio.sleep(REFUSES_FOR_LONG)
        assert w.live.routes[3].routed["fine.{{wildcard(1)}}"] == MESSAGES
        flood(w, 250, 10)
        await eventually(lambda: w.live.routes[3].routed["fine.{{wildcard(1)}}"] == MESSAGES + 250, 1)


async def test_refusals_of_destinations_can_be_listed(autojump_clock: MockClock) -> None:
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
            await w.live.publish_with_ack("unheard.x", b"", timeout=0.6)
        assert len(outbox.capacity.refusals()) == 1


async def test_a_publish_without_room_in_its_share_fails_within_its_timeout(autojump_clock: MockClock) -> None:
    async with beside("missing", max_pending_operations=4) as w, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(partial(_fails_within, w, ACK_BUDGET * 2))
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(PublishError) as caught:
            await w.live.publish_with_ack("bad.copy.1", b"", timeout=2)
        assert caught.value.reason == "no_responders"
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        nursery.cancel_scope.cancel()


async def _fails_within(w: World, limit: float) -> None:
    with pytest.raises(PublishError):
        await w.live.publish_with_ack("bad.copy.1", b"", timeout=limit)
