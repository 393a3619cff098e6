"""Frames that are kept together as one operation, until something happens to one of them."""

from __future__ import annotations

import pytest

from router_trio.client.receipt import Receipt
from router_trio.events import PendingDropped
from router_trio.message import FENCED, Fate
from router_trio.outbox.outbox import SAME_TIME
from router_trio.protocol import framing
from tests.unit.outbox.desk import Desk, connected, offer_frames

# --- connected ---


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_frame_of_a_batch_can_be_refused_and_fails_alone(part: int) -> None:
    desk = connected()
    receipts = [Receipt(), Receipt(), Receipt()]
    desk.offer()
    for receipt in receipts:
        desk.outbox.offer(framing.publish(b"a", b""), owner=receipt, together=True)
    _, batch = desk.outbox.sender.next_batch()
    desk.outbox.refusals.write_refused(batch.split()[part], "fault", "injected")
    assert desk.books() == (4, 0, 3, {"failed": 1})
    desk.outbox.sender.next_batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    expected = [FENCED, FENCED, FENCED]
    expected[part] = Fate("failed", "fault")
    assert [receipt.fate for receipt in receipts] == expected
    assert desk.books() == (4, 0, 0, {"fenced": 3, "failed": 1})


def test_single_frames_offered_at_the_same_time_are_batched_and_each_owner_gets_its_fate() -> None:
    desk = connected()
    receipts = [Receipt(), Receipt(), Receipt()]
    for receipt in receipts:
        desk.wakes = 0
        assert desk.outbox.offer(framing.publish(b"a", b""), owner=receipt, together=True) == "sent"
        assert desk.wakes
    assert desk.outbox.pending == 3
    (batch,) = desk.outbox.sender.next_batch()
    assert (batch.order, batch.count, batch.frame) == (3, 3, 3 * framing.publish(b"a", b""))
    assert [receipt.fate for receipt in receipts] == [None] * 3
    desk.outbox.sender.next_batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert [receipt.fate for receipt in receipts] == [FENCED] * 3


# --- full ---


def test_frames_of_a_route_are_accepted_together() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(b"a", b"1"), framing.publish(b"b", b"2")])
    assert desk.books() == (2, 2, 0, {})
    assert desk.batch() == [1, 2]
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.fates == {1: [FENCED], 2: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 2}


def test_one_frame_of_a_batch_can_be_denied_and_the_others_are_fenced() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(subject, b"") for subject in (b"a", b"secret", b"a")])
    assert len(desk.outbox.sender.next_batch()) == 1
    desk.batch()
    mark = desk.outbox.fences.sent
    desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.fenced(mark)
    assert desk.fates == {1: [FENCED], 2: [Fate("failed", "permission_denied")], 3: [FENCED]}
    assert desk.books() == (3, 0, 0, {"fenced": 2, "failed": 1})


@pytest.mark.parametrize("denied", [False, True])
def test_each_frame_of_a_refused_batch_fails_once(denied: bool) -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(subject, b"") for subject in (b"a", b"secret", b"a")])
    (taken,) = desk.outbox.sender.next_batch()
    if denied:
        desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.refusals.write_refused(taken, "fault", "injected")
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    reasons = ["fault", "permission_denied" if denied else "fault", "fault"]
    assert desk.fates == {order: [Fate("failed", reason)] for order, reason in enumerate(reasons, 1)}
    assert desk.books() == (3, 0, 0, {"failed": 3})
    assert sum(desk.outbox.counters.failed.values()) == 3


def test_the_frames_of_a_batch_are_single_again_after_a_loss() -> None:
    desk = connected(max_age=10.0)
    for _ in range(2):
        offer_frames(desk, [framing.publish(b"a", b"12"), framing.publish(b"b", b"")])
    assert desk.batch() == [1, 2, 3, 4]
    offer_frames(desk, [framing.publish(b"a", b"")] * 2)
    desk.outbox.link_down()
    assert desk.books() == (6, 6, 0, {})
    assert desk.outbox.refusals.give_up(desk.outbox._queue._waiting[2], "timeout", "timed out")
    desk.outbox.link_up()
    assert [one.order for one in desk.outbox.sender.next_batch()] == [1, 2, 4, 5, 6]
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (6, 0, 0, {"failed": 1, "fenced": 5})


def test_frames_of_several_routes_are_batched_and_each_route_gets_the_fates_of_its_frames() -> None:
    desk, other = connected(), Desk()
    for frames, owner in ((2, desk), (1, other), (1, desk)):
        offer_frames(desk, [framing.publish(b"a", b"")] * frames, owner)
    assert [one.count for one in desk.outbox.sender.next_batch()] == [4]
    desk.batch()
    offer_frames(desk, [framing.publish(b"a", b"")], other)
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert sum(len(fates) for fates in desk.fates.values()) == 3
    assert sum(len(fates) for fates in other.fates.values()) == 1
    desk.outbox.link_down()
    assert [(one.order, one.count) for one in desk.outbox._queue._waiting] == [(5, 1), (6, 1)]
    desk.outbox.link_up()
    desk.batch()
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.fates[6] == other.fates[5] == [FENCED]


def test_frames_accepted_at_different_times_are_different_operations() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.now = SAME_TIME
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.offer()
    offer_frames(desk, [framing.publish(b"a", b"")])
    found = [(one.order, one.accepted_at) for one in desk.outbox.sender.next_batch()]
    assert found == [(1, 0.0), (2, SAME_TIME), (3, SAME_TIME), (4, SAME_TIME)]


def test_the_frames_of_a_batch_expire_together() -> None:
    desk = connected(max_age=10.0)
    offer_frames(desk, [framing.publish(b"a", b"")] * 3)
    desk.now = 10.1
    assert desk.batch() == []
    assert desk.books() == (3, 0, 0, {"dropped": 3})
    assert desk.outbox.counters.dropped == {"expired": 3}
    assert [e.count for e in desk.events if isinstance(e, PendingDropped)] == [3]
