"""A full outbox: which publishers wait, what is dropped and what is refused."""

from __future__ import annotations

import pytest

from router_trio.errors import PublishError
from router_trio.events import PublishQueued, QueueFull
from router_trio.message import Fate, stored
from router_trio.outbox import sender as sender_module
from router_trio.outbox.capacity import FORWARDED, REFUSES_FOR_LONG
from router_trio.outbox.operation import Operation
from router_trio.outbox.retries import RESEND_UNACKED_AFTER
from router_trio.protocol import framing
from tests.support.offers import next_order, offer_with_ack
from tests.unit.outbox.desk import Desk, connected, find, offer_frames


def test_drop_oldest_drops_the_oldest_and_notifies_its_owner() -> None:
    desk = Desk(max_operations=2)
    for _ in range(3):
        assert desk.offer() == "queued"
    assert desk.fates == {1: [Fate("dropped", "queue_full")]}
    assert desk.books() == (3, 2, 0, {"dropped": 1})
    assert desk.outbox.counters.dropped == {"queue_full": 1}
    assert (
        QueueFull(at=0.0, connection="main", reason="dropped_oldest", count=1, queue_size=2, max_size=2) in desk.events
    )


def test_drop_oldest_makes_room_for_the_bytes_of_the_new_publish() -> None:
    small = len(framing.publish(b"a", b"x" * 10))
    desk = Desk(max_bytes=3 * small)
    for _ in range(3):
        desk.offer(size=10)
    desk.offer(size=30)
    assert sorted(desk.fates) == [1, 2], "no more than needed"
    assert desk.books() == (4, 2, 0, {"dropped": 2})


def test_drop_oldest_accepts_a_publish_larger_than_the_queue_once_the_queue_is_empty() -> None:
    desk = Desk(max_bytes=100)
    desk.offer(size=500)
    desk.offer(size=500)
    assert desk.books() == (2, 1, 0, {"dropped": 1})


class Replaces:
    """An owner that publishes something else as soon as a publish fails, as a route does with dead letters."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self._desk.settle(operation, count, fate, now)
        self._desk.offer(b"dead", with_ack=True)


def test_a_replacement_published_while_dropping_gets_a_later_number_than_the_publish_it_made_room_for() -> None:
    desk = connected(max_operations=2)
    publish = framing.publish(b"a", b"")
    offer_with_ack(desk.outbox, publish, owner=Replaces(desk))
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    desk.now += REFUSES_FOR_LONG
    expected = next_order(desk.outbox)
    offer_with_ack(desk.outbox, publish, owner=desk)
    assert desk.fates == {1: [Fate("dropped", "queue_full")]}
    assert find(desk, expected).subject == b"a", "its reply subject has this number"
    assert find(desk, expected + 1).subject == b"dead"
    assert desk.books() == (3, 2, 0, {"dropped": 1})


def test_a_replacement_published_while_dropping_without_a_link_gets_a_later_number() -> None:
    desk = Desk(max_operations=2)
    publish = framing.publish(b"a", b"")
    offer_with_ack(desk.outbox, publish, owner=Replaces(desk))
    desk.offer(b"b")
    expected = next_order(desk.outbox)
    offer_with_ack(desk.outbox, publish, owner=desk)
    assert find(desk, expected).subject == b"a"
    assert find(desk, expected + 1).subject == b"dead"
    assert desk.fates == {1: [Fate("dropped", "queue_full")], 2: [Fate("dropped", "queue_full")]}
    assert desk.books() == (4, 2, 0, {"dropped": 2})


@pytest.mark.parametrize("on_full", ["reject", "block"])
def test_without_room_a_publish_that_can_not_wait_is_refused_and_never_accepted(on_full: str) -> None:
    desk = Desk(max_operations=1, on_full=on_full)
    desk.offer()
    with pytest.raises(PublishError, match=r"'main' is not connected and its queue is full \(1 of 1 operations\)") as e:
        desk.offer(with_ack=True)
    assert e.value.reason == "queue_full"
    assert desk.books() == (1, 1, 0, {})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1, ("publish_with_ack", "not_connected"): 1}
    assert desk.kinds() == [PublishQueued, QueueFull]
    assert desk.outbox.blocks is (on_full == "block")


def test_a_publisher_that_waited_for_room_is_counted_once() -> None:
    desk = Desk(max_operations=1, on_full="block")
    desk.offer()
    desk.outbox.capacity.blocked(True)
    assert desk.outbox.counters.failed["publish_with_ack", "not_connected"] == 1
    assert desk.events[-1] == QueueFull(at=0.0, connection="main", reason="blocked", queue_size=1, max_size=1)
    desk.outbox.link_up()
    desk.batch()
    assert desk.offer(with_ack=True, blocked=True) == "queued"
    desk.batch()
    desk.outbox.acked([(2, stored("S", 1))])
    assert desk.outbox.counters.failed["publish_with_ack", "not_connected"] == 1
    assert desk.outbox.counters.succeeded["publish_with_ack"] == 0


def test_frames_of_a_route_that_find_no_room_fail() -> None:
    desk = Desk(max_operations=2, on_full="reject")
    offer_frames(desk, [framing.publish(b"a", b"")] * 3)
    assert desk.fates == {3: [Fate("failed", "queue_full")]}
    assert desk.books() == (2, 2, 0, {})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 3}


def test_a_forwarded_read_may_exceed_the_limit_while_connected() -> None:
    desk = connected(max_operations=1)
    offer_frames(desk, [framing.publish(b"a", b"")] * (FORWARDED - 1))
    assert desk.outbox.blocks
    assert not desk.outbox.over_limit
    desk.offer()
    assert desk.outbox.over_limit
    desk.outbox.link_down()
    assert not desk.outbox.over_limit, "waiting would make no room"
    desk = Desk(max_operations=2, on_full="block")
    desk.offer()
    assert not desk.outbox.over_limit
    desk.offer()
    assert desk.outbox.over_limit


def test_publishes_held_in_a_lane_leave_room_for_others() -> None:
    desk = connected(max_bytes=1000, max_operations=2)
    for size in (600, 600, 600):
        desk.offer(size=size, with_ack=True)
        desk.batch()
    for order in (1, 2, 3):
        desk.outbox.refusals.ack_refused(order, "no_responders", "no responders", True)
    assert (desk.outbox.pending, desk.outbox.capacity.full, desk.outbox.over_limit) == (3, False, False)
    desk.offer(b"b", size=300)
    assert not desk.outbox.capacity.full
    desk.offer(b"b", size=200)
    assert desk.outbox.capacity.full, "held publishes have half of the bytes"


def test_a_careful_sender_that_may_send_nothing_more_is_not_woken() -> None:
    desk = connected()
    for _ in range(4):
        desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.link_down("closed")
    desk.outbox.link_up()
    assert desk.batch() == [1]
    wakes = desk.wakes
    assert desk.batch() == []
    assert desk.wakes == wakes


def test_a_long_run_of_held_batches_yields_to_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BATCH_OPERATIONS", 2)
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    for _ in range(2 * sender_module.BATCHES_HELD):
        desk.offer(with_ack=True)
    desk.offer(b"b")
    wakes = desk.wakes
    assert desk.batch() == []
    assert desk.wakes == wakes + 1
    assert desk.batch() == [2 * sender_module.BATCHES_HELD + 2]


# --- the share of a destination ---


@pytest.mark.parametrize(("subjects", "max_operations"), [((b"r.1", b"r.2"), 4), ((b"r.1",), 1)])
def test_publishes_being_retried_use_up_the_share_and_are_counted_in_the_refusal(
    subjects: tuple[bytes, ...], max_operations: int
) -> None:
    desk = _being_retried(subjects, max_operations, "reject")
    waiting = len(subjects)
    with pytest.raises(PublishError, match=rf"for 10 s \(unanswered\), and {waiting} publishes wait for it") as caught:
        desk.offer(b"r.1", with_ack=True)
    assert caught.value.reason == "queue_full"
    (full,) = [event for event in desk.events if isinstance(event, QueueFull)]
    assert (full.reason, full.queue_size, full.max_size, full.count) == ("rejected", waiting, waiting, 1)
    desk.outbox.acked([(1, stored("S", 1))])
    desk.offer(b"r.1", with_ack=True)
    assert desk.books() == (waiting + 1, 1, waiting - 1, {"acked": 1}), "it takes publishes again"


def test_publishes_being_retried_are_not_dropped_and_are_counted_when_a_held_one_is() -> None:
    desk = _being_retried((b"r.1", b"r.2"), 4, "drop_oldest")
    desk.offer(b"r.1", with_ack=True)
    assert desk.batch() == [], "held behind the one that is being retried"
    assert desk.kinds() == [], "there was none to drop"
    desk.offer(b"r.1", with_ack=True)
    assert desk.fates == {3: [Fate("dropped", "queue_full")]}
    (full,) = [event for event in desk.events if isinstance(event, QueueFull)]
    assert (full.reason, full.queue_size, full.max_size, full.count) == ("dropped_oldest", 3, 2, 1)


def _being_retried(subjects: tuple[bytes, ...], max_operations: int, on_full: str) -> Desk:
    """Return an outbox with a publish to each subject that is in flight again, unanswered for long."""
    desk = connected(max_operations=max_operations, on_full=on_full)
    for subject in subjects:
        desk.offer(subject, with_ack=True)
    orders = [*range(1, len(subjects) + 1)]
    assert desk.batch() == orders
    while desk.now < RESEND_UNACKED_AFTER + REFUSES_FOR_LONG:
        desk.now += RESEND_UNACKED_AFTER
        desk.outbox.refusals.sweep()
        assert sorted(desk.batch()) == orders
    assert (desk.outbox.pending, desk.outbox.in_flight) == (0, len(orders))
    return desk
