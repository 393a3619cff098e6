"""The outbox, case by case: what becomes of a publish in each state of the link, and what is counted and told of it."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from router_trio.client.receipt import Receipt
from router_trio.errors import PublishError
from router_trio.events import (
    Event,
    PendingDropped,
    PublishFailed,
    PublishFailedOpen,
    PublishQueued,
    PublishWithAckFailed,
    PublishWithAckQueued,
    QueueFull,
    RetryComplete,
    RetryPending,
)
from router_trio.message import FATES, FENCED, Fate, stored
from router_trio.outbox import outbox as outbox_module
from router_trio.outbox.capacity import FORWARDED
from router_trio.outbox.ledger import Ledger
from router_trio.outbox.operation import FrameOwners, Operation, OperationWithAck
from router_trio.outbox.outbox import MAX_UNFENCED, SAME_TIME, Outbox
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER, RETRY_REFUSED_AFTER
from router_trio.protocol import framing
from tests.support.settled import Settled


class Desk:
    """An outbox with a clock that is moved by hand, and all that it says."""

    def __init__(self, **changes: Any) -> None:
        options: dict[str, Any] = {
            "fail_open": False,
            "max_operations": 100,
            "max_bytes": 1_000_000,
            "on_full": "drop_oldest",
            "max_age": 0.0,
        }
        self.now = 0.0
        self.events: list[Event] = []
        self.wakes = 0
        self.told: dict[int, list[Fate]] = {}
        self.settled = Settled()
        self.outbox = Outbox("main", emit=self.hear, clock=lambda: self.now, wake=self._wake, **(options | changes))

    def hear(self, event: Event) -> None:
        self.events.append(event)

    def _wake(self) -> None:
        self.wakes += 1

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        assert now == self.now
        for order in self.settled.orders(operation, count):
            self.told.setdefault(order, []).append(fate)

    def offer(self, subject: bytes = b"a", *, with_ack: bool = False, size: int = 0, blocked: bool = False) -> str:
        frame = framing.publish(subject, b"x" * size)
        return self.outbox.offer(frame, with_ack=with_ack, owner=self, blocked=blocked)

    def batch(self) -> list[int]:
        return [one.order for one in _single(self.outbox.next_batch())]

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def books(self) -> tuple[int, int, int, dict[str, int]]:
        """Accepted, pending, in flight, and settled by fate; checks that they add up."""
        ledger = self.outbox.ledger
        settled = {fate: count for fate, count in ledger.settled.items() if count}
        books = (ledger.accepted, self.outbox.pending, self.outbox.in_flight, settled)
        assert books[0] == books[1] + books[2] + sum(settled.values())
        assert all(len(fates) == 1 for fates in self.told.values())
        return books


def offer_frames(desk: Desk, frames: list[bytes], owner: Desk | None = None) -> None:
    desk.outbox.offer_frames(frames, FrameOwners([owner or desk], [len(frames)]))


def connected(**changes: Any) -> Desk:
    desk = Desk(**changes)
    desk.outbox.link_up()
    return desk


# --- connected -------------------------------------------------------------------------------------------------------


def test_a_core_publish_is_sent_and_fenced() -> None:
    desk = connected()
    assert desk.offer() == "sent"
    assert desk.books() == (1, 1, 0, {})
    assert desk.batch() == [1]
    assert desk.books() == (1, 0, 1, {})
    assert desk.batch() == []
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (1, 0, 0, {"fenced": 1})
    assert desk.told == {1: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 1}
    assert desk.outbox.counters.failed == {}
    assert desk.events == []


def test_a_jetstream_publish_is_sent_and_acked() -> None:
    desk = connected()
    assert desk.offer(with_ack=True) == "sent"
    assert desk.batch() == [1]
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (1, 0, 1, {}), "a fence says nothing of a stream"
    desk.outbox.acked([(1, stored("ORDERS", 7, True))])
    assert desk.told == {1: [Fate("acked", None, "ORDERS", 7, True)]}
    assert desk.outbox.counters.succeeded == {"publish_with_ack": 1}


def test_a_second_puback_and_a_foreign_one_are_ignored() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer()
    desk.batch()
    desk.outbox.acked([(1, stored("S", 1))])
    for order in (1, 2, 99):
        desk.outbox.acked([(order, stored("S", 1))])
        desk.outbox.ack_refused(order, "no_responders", "nobody", False)
    assert desk.books() == (2, 0, 1, {"acked": 1})


def test_publishers_wake_whoever_writes() -> None:
    desk = connected()
    before = desk.wakes
    desk.offer()
    assert desk.wakes > before
    before = desk.wakes
    offer_frames(desk, [framing.publish(b"a", b"")])
    assert desk.wakes > before


@pytest.mark.parametrize("part", [0, 1, 2])
def test_of_frames_that_stay_together_one_may_be_refused_and_fails_alone(part: int) -> None:
    desk = connected()
    receipts = [Receipt(), Receipt(), Receipt()]
    desk.offer()
    for receipt in receipts:
        desk.outbox.offer_frame(framing.publish(b"a", b""), receipt)
    _, batch = desk.outbox.next_batch()
    desk.outbox.refused(batch.split()[part], "fault", "injected")
    assert desk.books() == (4, 0, 3, {"failed": 1})
    desk.outbox.next_batch()
    desk.outbox.fenced(desk.outbox.sent)
    expected = [FENCED, FENCED, FENCED]
    expected[part] = Fate("failed", "fault")
    assert [receipt.fate for receipt in receipts] == expected
    assert desk.books() == (4, 0, 0, {"fenced": 3, "failed": 1})


def test_single_frames_of_the_same_time_stay_together_and_each_owner_is_told() -> None:
    desk = connected()
    receipts = [Receipt(), Receipt(), Receipt()]
    for receipt in receipts:
        desk.wakes = 0
        assert desk.outbox.offer_frame(framing.publish(b"a", b""), receipt) == "sent"
        assert desk.wakes
    assert desk.outbox.pending == 3
    (batch,) = desk.outbox.next_batch()
    assert (batch.order, batch.count, batch.frame) == (3, 3, 3 * framing.publish(b"a", b""))
    assert [receipt.fate for receipt in receipts] == [None] * 3
    desk.outbox.next_batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert [receipt.fate for receipt in receipts] == [FENCED] * 3


def test_a_full_queue_blocks_publishers_while_connected_under_every_policy() -> None:
    for on_full in ("drop_oldest", "reject", "block"):
        desk = connected(on_full=on_full, max_operations=1)
        assert not desk.outbox.blocks
        desk.offer()
        assert desk.outbox.capacity.full
        assert desk.outbox.blocks
        desk.batch()
        assert not desk.outbox.blocks


def test_next_order_is_the_number_that_the_next_one_gets() -> None:
    desk = connected()
    for _ in range(3):
        expected = desk.outbox.next_order
        desk.offer()
        assert desk.batch() == [expected]


# --- a batch that the link has in hand -------------------------------------------------------------------------------


def test_a_fence_that_overtakes_a_batch_in_hand_confirms_nothing_of_it() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    assert desk.outbox.unfenced == 0
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (1, 0, 1, {})
    desk.batch()
    assert desk.outbox.unfenced == 1
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (1, 0, 0, {"fenced": 1})


def test_one_that_the_link_refuses_is_not_confirmed_by_a_fence_meanwhile() -> None:
    desk = connected()
    desk.offer()
    desk.offer(size=100)
    taken = desk.outbox.next_batch()
    desk.outbox.fenced(desk.outbox.sent)
    desk.outbox.refused(taken[1], "too_large", "more than max_payload")
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.told == {1: [FENCED], 2: [Fate("failed", "too_large")]}
    assert desk.outbox.counters.succeeded == {"publish": 1}
    assert desk.outbox.counters.failed == {("publish", "too_large"): 1}
    assert desk.kinds() == [PublishFailed]


# --- not connected ---------------------------------------------------------------------------------------------------


def test_without_a_link_a_publish_is_queued_and_counted_as_failed_once() -> None:
    desk = Desk()
    assert desk.offer() == "queued"
    assert desk.offer(with_ack=True) == "queued"
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1, ("publish_with_ack", "not_connected"): 1}
    assert desk.kinds() == [PublishQueued, PublishWithAckQueued]
    desk.outbox.link_up()
    assert desk.batch() == [1, 2]
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    desk.outbox.acked([(2, stored("S", 1))])
    assert desk.books() == (2, 0, 0, {"fenced": 1, "acked": 1})
    assert desk.outbox.counters.succeeded == Counter(), "counted as failed, so not as succeeded too"
    assert sum(desk.outbox.counters.failed.values()) == 2


def test_while_a_drain_runs_new_publishes_queue_behind_it() -> None:
    desk = Desk()
    desk.offer()
    desk.offer(with_ack=True)
    desk.outbox.link_up()
    assert desk.outbox.settlement.draining
    assert desk.offer() == "queued"
    assert desk.batch() == [1, 2, 3]
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.outbox.settlement.draining
    desk.outbox.acked([(2, stored("S", 1))])
    assert not desk.outbox.settlement.draining
    assert desk.offer() == "sent"
    counters = desk.outbox.counters
    assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (2, 2, 0)
    assert [e for e in desk.events if isinstance(e, RetryPending | RetryComplete)] == [
        RetryPending(at=0.0, connection="main", pending_count=2),
        RetryComplete(at=0.0, connection="main", success_count=2, failed_count=0),
    ]


def test_a_drain_that_an_outage_cuts_short_starts_again_with_what_is_left() -> None:
    desk = Desk()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.outbox.link_up()
    desk.batch()
    desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.link_down()
    assert not desk.outbox.settlement.draining
    desk.outbox.link_up()
    desk.batch()
    desk.outbox.ack_refused(2, "limit", "maximum messages exceeded", False)
    counters = desk.outbox.counters
    assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (3, 1, 1)
    assert [e.pending_count for e in desk.events if isinstance(e, RetryPending)] == [2, 1]
    assert [(e.success_count, e.failed_count) for e in desk.events if isinstance(e, RetryComplete)] == [(0, 1)]


def test_what_was_in_flight_is_sent_again_first_and_in_order() -> None:
    desk = connected()
    for order in range(1, 5):
        desk.offer(with_ack=order % 2 == 0)
    assert desk.batch() == [1, 2, 3, 4]
    desk.outbox.acked([(2, stored("S", 1))])
    desk.outbox.link_down()
    assert desk.books() == (4, 3, 0, {"acked": 1})
    desk.offer()
    desk.outbox.link_up()
    assert desk.batch() == [1, 3, 4, 5]
    desk.outbox.acked([(4, stored("S", 2))])
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (5, 0, 0, {"acked": 2, "fenced": 3})
    assert desk.outbox.counters.succeeded == {"publish": 2, "publish_with_ack": 2}
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1}


def test_a_fence_of_a_dead_link_confirms_nothing_on_the_next_one() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    desk.batch()
    mark = desk.outbox.sent
    desk.outbox.link_down()
    desk.outbox.link_up()
    desk.batch()
    desk.batch()
    desk.outbox.fenced(mark)
    assert desk.books() == (1, 0, 1, {})


# --- full ------------------------------------------------------------------------------------------------------------


def test_drop_oldest_lets_go_of_the_oldest_and_tells_its_owner() -> None:
    desk = Desk(max_operations=2)
    for _ in range(3):
        assert desk.offer() == "queued"
    assert desk.told == {1: [Fate("dropped", "queue_full")]}
    assert desk.books() == (3, 2, 0, {"dropped": 1})
    assert desk.outbox.counters.dropped == {"queue_full": 1}
    assert (
        QueueFull(at=0.0, connection="main", reason="dropped_oldest", count=1, queue_size=2, max_size=2) in desk.events
    )


def test_drop_oldest_makes_room_for_the_bytes_of_the_new_one() -> None:
    small = len(framing.publish(b"a", b"x" * 10))
    desk = Desk(max_bytes=3 * small)
    for _ in range(3):
        desk.offer(size=10)
    desk.offer(size=30)
    assert sorted(desk.told) == [1, 2], "no more than it takes"
    assert desk.books() == (4, 2, 0, {"dropped": 2})


def test_drop_oldest_takes_one_that_is_larger_than_the_queue_when_nothing_is_left_to_drop() -> None:
    desk = Desk(max_bytes=100)
    desk.offer(size=500)
    desk.offer(size=500)
    assert desk.books() == (2, 1, 0, {"dropped": 1})


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


def test_frames_of_a_route_are_accepted_together() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(b"a", b"1"), framing.publish(b"b", b"2")])
    assert desk.books() == (2, 2, 0, {})
    assert desk.batch() == [1, 2]
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.told == {1: [FENCED], 2: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 2}


def test_frames_of_a_route_that_find_no_room_fail_at_their_owner() -> None:
    desk = Desk(max_operations=2, on_full="reject")
    offer_frames(desk, [framing.publish(b"a", b"")] * 3)
    assert desk.told == {0: [Fate("failed", "queue_full")]}
    assert desk.books() == (2, 2, 0, {})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 3}


def test_of_frames_that_stay_together_one_can_be_denied_and_the_others_are_fenced() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(subject, b"") for subject in (b"a", b"secret", b"a")])
    assert len(desk.outbox.next_batch()) == 1
    desk.batch()
    mark = desk.outbox.sent
    desk.outbox.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.fenced(mark)
    assert desk.told == {1: [FENCED], 2: [Fate("failed", "permission_denied")], 3: [FENCED]}
    assert desk.books() == (3, 0, 0, {"fenced": 2, "failed": 1})


@pytest.mark.parametrize("denied", [False, True])
def test_frames_that_stay_together_and_are_refused_all_fail_once(denied: bool) -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(subject, b"") for subject in (b"a", b"secret", b"a")])
    (taken,) = desk.outbox.next_batch()
    if denied:
        desk.outbox.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.refused(taken, "fault", "injected")
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    reasons = ["fault", "permission_denied" if denied else "fault", "fault"]
    assert desk.told == {order: [Fate("failed", reason)] for order, reason in enumerate(reasons, 1)}
    assert desk.books() == (3, 0, 0, {"failed": 3})
    assert sum(desk.outbox.counters.failed.values()) == 3


def test_frames_that_stayed_together_are_single_again_after_a_loss() -> None:
    desk = connected(max_age=10.0)
    for _ in range(2):
        offer_frames(desk, [framing.publish(b"a", b"12"), framing.publish(b"b", b"")])
    assert desk.batch() == [1, 2, 3, 4]
    offer_frames(desk, [framing.publish(b"a", b"")] * 2)
    desk.outbox.link_down()
    assert desk.books() == (6, 6, 0, {})
    assert desk.outbox.give_up(desk.outbox._queue._waiting[2], "timeout", "its time is over")
    desk.outbox.link_up()
    assert [one.order for one in desk.outbox.next_batch()] == [1, 2, 4, 5, 6]
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (6, 0, 0, {"failed": 1, "fenced": 5})


def test_frames_of_several_routes_stay_together_and_each_route_is_told_of_its_own() -> None:
    desk, other = connected(), Desk()
    for frames, owner in ((2, desk), (1, other), (1, desk)):
        offer_frames(desk, [framing.publish(b"a", b"")] * frames, owner)
    assert [one.count for one in desk.outbox.next_batch()] == [4]
    desk.batch()
    offer_frames(desk, [framing.publish(b"a", b"")], other)
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.outbox.fenced(desk.outbox.sent)
    assert sum(len(fates) for fates in desk.told.values()) == 3
    assert sum(len(fates) for fates in other.told.values()) == 1
    desk.outbox.link_down()
    assert [(one.order, one.count) for one in desk.outbox._queue._waiting] == [(5, 1), (6, 1)]
    desk.outbox.link_up()
    desk.batch()
    desk.batch()
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.told[6] == other.told[5] == [FENCED]


def test_frames_that_were_accepted_at_another_time_are_another_operation() -> None:
    desk = connected()
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.now = SAME_TIME
    offer_frames(desk, [framing.publish(b"a", b"")])
    desk.offer()
    offer_frames(desk, [framing.publish(b"a", b"")])
    found = [(one.order, one.accepted_at) for one in desk.outbox.next_batch()]
    assert found == [(1, 0.0), (2, SAME_TIME), (3, SAME_TIME), (4, SAME_TIME)]


def test_a_read_that_is_forwarded_may_go_beyond_the_limit_while_connected() -> None:
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


def test_frames_that_stay_together_expire_together() -> None:
    desk = connected(max_age=10.0)
    offer_frames(desk, [framing.publish(b"a", b"")] * 3)
    desk.now = 10.1
    assert desk.batch() == []
    assert desk.books() == (3, 0, 0, {"dropped": 3})
    assert desk.outbox.counters.dropped == {"expired": 3}
    assert [e.count for e in desk.events if isinstance(e, PendingDropped)] == [3]


def test_what_is_held_back_in_a_lane_leaves_room_for_what_is_not() -> None:
    desk = connected(max_bytes=1000, max_operations=2)
    for size in (600, 600, 600):
        desk.offer(size=size, with_ack=True)
        desk.batch()
    for order in (1, 2, 3):
        desk.outbox.ack_refused(order, "no_responders", "nobody", True)
    assert (desk.outbox.pending, desk.outbox.capacity.full, desk.outbox.over_limit) == (3, False, False)
    desk.offer(b"b", size=300)
    assert not desk.outbox.capacity.full
    desk.offer(b"b", size=200)
    assert desk.outbox.capacity.full, "half of the bytes is theirs"


def test_who_begins_carefully_and_may_send_nothing_more_yet_is_not_woken_for_it() -> None:
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


def test_many_batches_that_are_all_held_back_let_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "BATCH_OPERATIONS", 2)
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    for _ in range(2 * outbox_module.BATCHES_HELD):
        desk.offer(with_ack=True)
    desk.offer(b"b")
    wakes = desk.wakes
    assert desk.batch() == []
    assert desk.wakes == wakes + 1
    assert desk.batch() == [2 * outbox_module.BATCHES_HELD + 2]


# --- fail-open -------------------------------------------------------------------------------------------------------


def test_fail_open_keeps_nothing_while_not_connected() -> None:
    desk = Desk(fail_open=True)
    assert desk.offer() == "failed_open"
    assert desk.told == {1: [Fate("failed_open", "not_connected")]}
    assert desk.books() == (1, 0, 0, {"failed_open": 1})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1}
    assert desk.kinds() == [PublishFailedOpen]
    assert not desk.outbox.blocks


def test_fail_open_lets_go_of_what_a_dead_link_had() -> None:
    desk = connected(fail_open=True)
    desk.offer()
    desk.offer(with_ack=True)
    desk.batch()
    desk.offer()
    desk.outbox.link_down()
    assert desk.books() == (3, 0, 0, {"failed_open": 3})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 2, ("publish_with_ack", "not_connected"): 1}
    assert desk.events == [PublishFailedOpen(at=0.0, connection="main", reason="not_connected", count=3)]


def test_fail_open_lets_go_of_what_fails_while_connected() -> None:
    desk = connected(fail_open=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "limit", "maximum messages exceeded", False)
    assert desk.told == {1: [Fate("failed_open", "limit")]}
    assert desk.outbox.counters.failed == {("publish_with_ack", "limit"): 1}
    assert desk.kinds() == [PublishWithAckFailed, PublishFailedOpen]


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_refusal_that_no_second_try_helps_fails_at_once() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "limit", "maximum messages exceeded", False)
    assert desk.told == {1: [Fate("failed", "limit")]}
    assert desk.outbox.counters.failed == {("publish_with_ack", "limit"): 1}
    assert desk.kinds() == [PublishWithAckFailed]


def test_a_stream_without_a_leader_holds_back_its_subject_in_order_and_nothing_else() -> None:
    desk = connected()
    for order in range(1, 4):
        desk.offer(with_ack=True)
        assert desk.batch() == [order]
    for order in (1, 2, 3):
        desk.outbox.ack_refused(order, "no_responders", "nobody", True)
    assert desk.books() == (3, 3, 0, {})
    desk.offer(with_ack=True)
    desk.offer(b"other", with_ack=True)
    desk.offer()
    assert desk.batch() == [5, 6]
    assert desk.batch() == []
    assert desk.outbox.next_due() == RETRY_REFUSED_AFTER
    desk.now = RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    assert desk.batch() == [], "one of a subject is tried at a time"
    before = desk.wakes
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.wakes > before
    assert desk.batch() == [2, 3, 4]


def test_a_whole_batch_behind_a_refused_publish_does_not_hide_what_is_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "BATCH_OPERATIONS", 2)
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    for _ in range(5):
        desk.offer(with_ack=True)
    desk.offer(b"other")
    assert desk.batch() == [7]


def test_nobody_listens_for_as_long_as_the_budget_lasts() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    tries = 0
    while not desk.told:
        assert desk.batch() == [1]
        tries += 1
        desk.outbox.ack_refused(1, "no_responders", "nobody", True)
        desk.now += RETRY_REFUSED_AFTER
    assert desk.now == pytest.approx(ACK_BUDGET + RETRY_REFUSED_AFTER)
    assert tries == ACK_BUDGET / RETRY_REFUSED_AFTER + 1
    assert desk.told == {1: [Fate("failed", "no_responders")]}


def test_when_one_fails_the_next_one_of_its_subject_is_tried() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    desk.outbox.ack_refused(2, "no_responders", "nobody", True)
    desk.now = RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    assert desk.outbox.give_up(_find(desk, 1), "timeout", "its time is over")
    assert desk.wakes > before
    assert desk.batch() == [2]


@pytest.mark.parametrize("where", ["held", "released"])
def test_a_new_link_starts_a_new_budget(where: str) -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(2, "no_responders", "nobody", True)
    if where == "released":
        desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.link_down()
    desk.now = 2 * ACK_BUDGET
    desk.outbox.link_up()
    assert 2 in desk.batch()
    desk.outbox.ack_refused(2, "no_responders", "nobody", True)
    assert 2 not in desk.told, "it failed for the time of the outage"


def test_a_link_that_will_not_write_a_publish_is_asked_again_within_its_budget() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    while not desk.told:
        assert desk.batch() == [1]
        desk.outbox.refused(_find(desk, 1), "fault", "injected", True)
        desk.now += RETRY_REFUSED_AFTER
        assert desk.now < 2 * ACK_BUDGET
    assert desk.now > ACK_BUDGET
    assert desk.told == {1: [Fate("failed", "fault")]}


def test_a_core_publish_that_the_link_refuses_fails_even_if_a_later_try_might_not() -> None:
    desk = connected()
    desk.offer()
    (taken,) = desk.outbox.next_batch()
    desk.outbox.refused(taken, "fault", "injected", True)
    desk.outbox.refused(taken, "fault", "injected", True)
    assert desk.books() == (1, 0, 0, {"failed": 1})


def test_a_denied_publish_fails_and_its_neighbours_are_fenced() -> None:
    desk = connected()
    desk.offer(b"a")
    desk.offer(b"secret")
    desk.offer(b"a")
    desk.batch()
    desk.batch()
    mark = desk.outbox.sent
    desk.outbox.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.fenced(mark)
    assert desk.told == {1: [FENCED], 2: [Fate("failed", "permission_denied")], 3: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 2}
    assert desk.outbox.counters.failed == {("publish", "permission_denied"): 1}


def test_a_denied_publish_makes_room_and_wakes_whoever_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_UNACKED", 1)
    desk = connected()
    desk.offer(b"secret", with_ack=True)
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    desk.outbox.publish_denied(b"secret", "Permissions Violation")
    assert desk.wakes > before
    assert desk.batch() == [2]


# --- without an answer -----------------------------------------------------------------------------------------------


def test_a_publish_without_an_answer_is_sent_again_and_fails_at_the_end_of_its_budget() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    desk.now = RESEND_UNACKED_AFTER - 0.1
    desk.outbox.sweep()
    assert desk.batch() == []
    writes = 1
    while not desk.told:
        desk.now += 1.0
        desk.outbox.sweep()
        writes += len(desk.batch())
        assert desk.now < 2 * ACK_BUDGET
    assert writes == 6
    assert desk.now >= ACK_BUDGET
    assert desk.told == {1: [Fate("failed", "timeout")]}
    assert desk.books() == (1, 0, 0, {"failed": 1})


def test_a_late_puback_counts_also_when_its_publish_is_held_for_another_try() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.now = RESEND_UNACKED_AFTER
    desk.outbox.sweep()
    assert desk.books() == (2, 2, 0, {})
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.told == {1: [Fate("acked", None, "S", 1, False)]}
    assert desk.batch() == [2], "the stream takes again"
    desk.outbox.acked([(2, stored("S", 2))])
    assert desk.books() == (2, 0, 0, {"acked": 2})


def test_a_resend_does_not_overtake_an_older_one_that_was_released_and_waits() -> None:
    """A leader dies with four publishes unanswered, the last a second younger than the others."""
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    desk.now = 1.0
    desk.offer(with_ack=True)
    assert desk.batch() == [4]
    desk.now = RESEND_UNACKED_AFTER
    desk.outbox.sweep()
    assert desk.batch() == [1]
    desk.now = RESEND_UNACKED_AFTER + 1.0
    desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.sweep()
    written = []
    for _ in range(9):
        batch = desk.batch()
        written += batch
        for order in batch:
            desk.outbox.acked([(order, stored("S", order))])
    assert written == [2, 3, 4]


def test_room_under_the_bound_of_unconfirmed_core_publishes_wakes_whoever_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_UNFENCED > 1
    monkeypatch.setattr(outbox_module, "MAX_UNFENCED", 1)
    monkeypatch.setattr(outbox_module, "BATCH_OPERATIONS", 1)
    desk = connected()
    desk.offer()
    desk.offer()
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.wakes > before
    assert desk.batch() == [2]


# --- giving up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pending", "in flight", "held"])
def test_give_up_fails_an_operation_wherever_it_is_and_once(where: str) -> None:
    desk = connected()
    desk.offer(with_ack=True)
    operation = _find(desk, 1)
    if where != "pending":
        desk.batch()
    if where == "held":
        desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    assert desk.outbox.give_up(operation, "timeout", "its time is over")
    assert not desk.outbox.give_up(operation, "timeout", "its time is over")
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.told == {1: [Fate("failed", "timeout")]}
    assert desk.books() == (1, 0, 0, {"failed": 1})
    assert desk.outbox.queue.find(1) is None
    assert desk.outbox.next_due() is None


def test_what_waited_too_long_is_dropped_also_while_connected() -> None:
    desk = Desk(max_age=10.0)
    desk.offer()
    desk.now = 5.0
    desk.offer()
    desk.now = 10.0
    desk.outbox.sweep()
    assert desk.told == {}, "as old as the limit is not older"
    desk.now = 10.1
    desk.outbox.sweep()
    assert desk.told == {1: [Fate("dropped", "expired")]}
    desk.now = 15.1
    desk.outbox.link_up()
    assert desk.batch() == []
    assert desk.told == {1: [Fate("dropped", "expired")], 2: [Fate("dropped", "expired")]}
    assert desk.outbox.counters.dropped == {"expired": 2}
    assert [e.count for e in desk.events if isinstance(e, PendingDropped)] == [1, 1]
    assert [(e.success_count, e.failed_count) for e in desk.events if isinstance(e, RetryComplete)] == [(0, 1)]


def test_publishes_that_wait_share_the_time_of_the_first_of_their_millisecond() -> None:
    desk = Desk(max_age=10.0)
    for at in (1.0, 1.0 + SAME_TIME / 2, 1.0 + SAME_TIME * 2):
        desk.now = at
        desk.offer()
    assert desk.outbox.queue.oldest_accepted_at == 1.0
    desk.now = 11.0 + SAME_TIME / 4
    desk.outbox.sweep()
    assert sorted(desk.told) == [1, 2]


def test_a_publish_of_128_bytes_that_waits_takes_at_most_400() -> None:
    clock = itertools.count(0.5)  # each at its own time: the worst case
    count = 2000
    outbox = Outbox(
        "main",
        emit=lambda _: None,
        clock=lambda: next(clock),
        wake=lambda: None,
        fail_open=False,
        max_operations=count,
        max_bytes=1_000_000,
        on_full="reject",
        max_age=0.0,
    )
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            outbox.offer(framing.publish(b"out.0001", b"x" * 128), owner=Receipt())
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Without what the allocator rounds up: five objects to multiples of 16.
    assert (after - before) / count < 380


def test_without_a_limit_nothing_expires() -> None:
    desk = Desk()
    desk.offer()
    desk.now = 1e9
    desk.outbox.sweep()
    assert desk.books() == (1, 1, 0, {})


def test_shutting_down_settles_everything_wherever_it_is() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    desk.outbox.acked([(3, stored("S", 1))])
    desk.offer()
    assert desk.outbox.shut_down() == 3
    assert desk.books() == (4, 0, 0, {"acked": 1, "dropped": 3})
    assert desk.outbox.counters.dropped == {"shutdown": 3}
    assert desk.outbox.shut_down() == 0
    desk.outbox.acked([(2, stored("S", 2))])
    assert desk.books() == (4, 0, 0, {"acked": 1, "dropped": 3})
    assert desk.outbox.counters.failed == {}


# --- leaving a link --------------------------------------------------------------------------------------------------


def test_a_link_that_is_being_left_gets_nothing_more() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    desk.offer()
    desk.outbox.hold_back()
    assert desk.batch() == []
    desk.outbox.fenced(desk.outbox.sent)
    assert desk.books() == (2, 1, 0, {"fenced": 1}), "what was written is still confirmed"
    desk.outbox.link_down()
    desk.outbox.link_up()
    assert desk.batch() == [2]


def test_everyone_who_waits_for_an_empty_flight_is_told_once() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    told: list[str] = []
    desk.outbox.when_nothing_in_flight(lambda: told.append("first"))
    desk.outbox.when_nothing_in_flight(lambda: told.append("second"))
    desk.outbox.acked([(1, stored("S", 1))])
    assert told == []
    desk.outbox.ack_refused(2, "no_responders", "nobody", True)
    assert told == ["first", "second"], "one that is held is not in flight"
    desk.outbox.acked([(2, stored("S", 1))])
    assert told == ["first", "second"]


def test_refused_before_it_was_accepted_is_counted_and_not_in_the_ledger() -> None:
    desk = connected()
    desk.outbox.settlement.not_accepted(True, "too_large", "more than max_payload")
    assert desk.books() == (0, 0, 0, {})
    assert desk.outbox.counters.failed == {("publish_with_ack", "too_large"): 1}
    assert desk.kinds() == [PublishWithAckFailed]


def test_the_ledger_knows_every_fate_from_the_start() -> None:
    ledger = Ledger()
    assert ledger.settled == dict.fromkeys(FATES, 0)
    ledger.accepted += 3
    ledger.settle("acked")
    ledger.settle("fenced", 1)
    assert ledger.unsettled == 1


def _single(operations: Sequence[Operation]) -> list[Operation]:
    return [one for operation in operations for one in operation.split()]


def _find(desk: Desk, order: int) -> Operation:
    found = desk.outbox.queue.find(order)
    assert found is not None
    return found


# --- what its owner would not send now -------------------------------------------------------------------------------


def test_what_is_pending_can_be_taken_back_and_what_is_in_flight_can_not() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer()
    assert desk.batch() == [1, 2]
    for with_ack in (True, False, True):
        desk.offer(with_ack=with_ack)
    wakes = desk.wakes
    desk.outbox.recall(lambda operation: operation.order in (1, 2, 4, 5))
    out_of_turn = Fate("failed", "out_of_turn")
    assert desk.told == {4: [out_of_turn], 5: [out_of_turn]}
    assert desk.wakes == wakes + 1
    assert desk.books() == (5, 1, 2, {"failed": 2})
    assert desk.outbox.queue.pending_bytes == len(framing.publish(b"a", b""))
    assert desk.kinds() == [PublishFailed, PublishWithAckFailed]
    assert desk.outbox.counters.failed == {("publish", "out_of_turn"): 1, ("publish_with_ack", "out_of_turn"): 1}
    assert desk.batch() == [3]


def test_what_a_lane_holds_can_be_taken_back() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    for order in (1, 2, 3):
        desk.outbox.ack_refused(order, "no_responders", "nobody", True)
    desk.now += RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    desk.outbox.recall(lambda operation: operation.order > 1)
    assert desk.books() == (3, 0, 1, {"failed": 2})
    desk.outbox.acked([(1, stored("ORDERS", 1))])
    desk.offer(with_ack=True)
    assert desk.batch() == [4], "the lane is gone"


def test_what_was_in_flight_on_a_dead_link_can_be_taken_back() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    desk.outbox.publish_denied(b"a", "no")
    desk.outbox.link_down()
    told: list[int] = []
    desk.outbox.when_nothing_in_flight(lambda: told.append(1))
    desk.outbox.recall(lambda operation: True)
    assert desk.books() == (3, 0, 0, {"failed": 3})
    assert told == [1], "whoever waits for the end hears of it"
    desk.outbox.link_up()
    assert desk.batch() == []
    assert RetryPending not in desk.kinds()


def test_an_owner_may_take_back_the_rest_when_it_is_told_of_a_failure() -> None:
    desk = connected()

    class Owner:
        def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
            desk.settle(operation, count, fate, now)
            if fate.reason != "out_of_turn":
                desk.outbox.recall(lambda one: isinstance(one, OperationWithAck) and one.owner is self)

    owner = Owner()
    for _ in range(4):
        desk.outbox.offer(framing.publish(b"a", b""), with_ack=True, owner=owner)
    assert desk.batch() == [1, 2, 3, 4]
    for order in (1, 2, 3, 4):
        desk.outbox.ack_refused(order, "no_responders", "nobody", True)
    desk.now += ACK_BUDGET
    assert desk.batch() == [1]
    desk.outbox.ack_refused(1, "no_responders", "nobody", True)
    assert desk.told == {1: [Fate("failed", "no_responders")]} | {
        order: [Fate("failed", "out_of_turn")] for order in (2, 3, 4)
    }
    assert desk.books() == (4, 0, 0, {"failed": 4})


# --- the sum, at every moment ----------------------------------------------------------------------------------------


class Onlooker(Desk):
    """A desk that looks at the books whenever it is told something: an event, or a fate."""

    def hear(self, event: Event) -> None:
        super().hear(event)
        self.books()

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        super().settle(operation, count, fate, now)
        self.books()


def _deny(desk: Desk) -> None:
    desk.outbox.publish_denied(b"a", "no")


def _recall(desk: Desk) -> None:
    desk.outbox.refused(OperationWithAck(0, b"", None, 0.0, True), "gone", "")
    desk.outbox.link_down()
    desk.outbox.link_up()
    desk.outbox.recall(lambda operation: operation.with_ack)


def _expire_budget(desk: Desk) -> None:
    desk.now = ACK_BUDGET
    desk.outbox.sweep()


def _go_away(desk: Desk) -> None:
    desk.outbox.link_down()
    desk.outbox.link_up()


def _grow_old(desk: Desk) -> None:
    desk.outbox.link_down()
    desk.now = 1000.0
    desk.outbox.sweep()


def _refuse(desk: Desk) -> None:
    desk.outbox.ack_refused(1, "limit", "full", False)


def _stop(desk: Desk) -> None:
    desk.outbox.shut_down()


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("happens", [_deny, _recall, _expire_budget, _go_away, _grow_old, _refuse, _stop])
def test_whoever_is_told_something_sees_a_sum_that_is_right(happens: Callable[[Desk], None], fail_open: bool) -> None:
    desk = Onlooker(fail_open=fail_open, max_age=60.0)
    desk.outbox.link_up()
    for _ in range(3):
        desk.offer(with_ack=True)
        desk.offer()
    desk.batch()
    happens(desk)
    desk.books()
    assert desk.events, "nobody was told anything: no test"
