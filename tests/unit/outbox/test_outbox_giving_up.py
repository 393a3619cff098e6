"""Publishes that are given up, expire or are taken back, wherever they are in the outbox."""

from __future__ import annotations

import pytest

from router_trio.events import PendingDropped, PublishFailed, PublishWithAckFailed, RetryComplete, RetryPending
from router_trio.message import Fate, stored
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.retries import ACK_BUDGET, RETRY_REFUSED_AFTER
from router_trio.protocol import framing
from tests.support.offers import INBOX, offer_with_ack
from tests.unit.outbox.desk import Desk, connected, find

# --- giving up ---


@pytest.mark.parametrize("where", ["pending", "in flight", "held"])
def test_giving_up_fails_an_operation_wherever_it_is_and_only_once(where: str) -> None:
    desk = connected()
    desk.offer(with_ack=True)
    operation = find(desk, 1)
    if where != "pending":
        desk.batch()
    if where == "held":
        desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    assert desk.outbox.refusals.give_up(operation, "timeout", "timed out")
    assert not desk.outbox.refusals.give_up(operation, "timeout", "timed out")
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.fates == {1: [Fate("failed", "timeout")]}
    assert desk.books() == (1, 0, 0, {"failed": 1})
    assert desk.outbox._queue.find(1) is None
    assert desk.outbox.sender.next_batch_at() is None


def test_a_publish_that_waited_too_long_is_dropped_also_while_connected() -> None:
    desk = Desk(max_age=10.0)
    desk.offer()
    desk.now = 5.0
    desk.offer()
    desk.now = 10.0
    desk.outbox.refusals.sweep()
    assert desk.fates == {}, "exactly as old as the limit"
    desk.now = 10.1
    desk.outbox.refusals.sweep()
    assert desk.fates == {1: [Fate("dropped", "expired")]}
    desk.now = 15.1
    desk.outbox.link_up()
    assert desk.batch() == []
    assert desk.fates == {1: [Fate("dropped", "expired")], 2: [Fate("dropped", "expired")]}
    assert desk.outbox.counters.dropped == {"expired": 2}
    assert [e.count for e in desk.events if isinstance(e, PendingDropped)] == [1, 1]
    assert [(e.success_count, e.failed_count) for e in desk.events if isinstance(e, RetryComplete)] == [(0, 1)]


def test_without_a_maximum_age_nothing_expires() -> None:
    desk = Desk()
    desk.offer()
    desk.now = 1e9
    desk.outbox.refusals.sweep()
    assert desk.books() == (1, 1, 0, {})


def test_shutting_down_settles_everything_wherever_it_is() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    desk.outbox.acked([(3, stored("S", 1))])
    desk.offer()
    assert desk.outbox.shut_down() == 3
    assert desk.books() == (4, 0, 0, {"acked": 1, "dropped": 3})
    assert desk.outbox.counters.dropped == {"shutdown": 3}
    assert desk.outbox.shut_down() == 0
    desk.outbox.acked([(2, stored("S", 2))])
    assert desk.books() == (4, 0, 0, {"acked": 1, "dropped": 3})
    assert desk.outbox.counters.failed == {}


# --- what its owner would not send now ---


def test_a_pending_publish_can_be_taken_back_but_not_one_in_flight() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer()
    assert desk.batch() == [1, 2]
    for with_ack in (True, False, True):
        desk.offer(with_ack=with_ack)
    wakes = desk.wakes
    desk.outbox.recall(lambda operation: operation.order in (1, 2, 4, 5))
    out_of_turn = Fate("failed", "out_of_turn")
    assert desk.fates == {4: [out_of_turn], 5: [out_of_turn]}
    assert desk.wakes == wakes + 1
    assert desk.books() == (5, 1, 2, {"failed": 2})
    assert desk.outbox.pending_bytes == len(framing.publish(b"a", b"", INBOX + b".3"))
    assert desk.kinds() == [PublishFailed, PublishWithAckFailed]
    assert desk.outbox.counters.failed == {("publish", "out_of_turn"): 1, ("publish_with_ack", "out_of_turn"): 1}
    assert desk.batch() == [3]


def test_a_publish_held_in_a_lane_can_be_taken_back() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    for order in (1, 2, 3):
        desk.outbox.refusals.ack_refused(order, "no_responders", "no responders", True)
    desk.now += RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    desk.outbox.recall(lambda operation: operation.order > 1)
    assert desk.books() == (3, 0, 1, {"failed": 2})
    desk.outbox.acked([(1, stored("ORDERS", 1))])
    desk.offer(with_ack=True)
    assert desk.batch() == [4], "the lane is gone"


def test_a_publish_that_was_in_flight_on_a_lost_link_can_be_taken_back() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    desk.outbox.refusals.publish_denied(b"a", "no")
    desk.outbox.link_down()
    notified: list[int] = []
    desk.outbox.when_nothing_in_flight(lambda: notified.append(1))
    desk.outbox.recall(lambda operation: True)
    assert desk.books() == (3, 0, 0, {"failed": 3})
    assert notified == [1], "the callback for nothing in flight is called"
    desk.outbox.link_up()
    assert desk.batch() == []
    assert RetryPending not in desk.kinds()


def test_an_owner_may_take_back_the_rest_when_one_publish_fails() -> None:
    desk = connected()

    class Owner:
        def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
            desk.settle(operation, count, fate, now)
            if fate.reason != "out_of_turn":
                desk.outbox.recall(lambda one: isinstance(one, OperationWithAck) and one.owner is self)

    owner = Owner()
    for _ in range(4):
        offer_with_ack(desk.outbox, framing.publish(b"a", b""), owner=owner)
    assert desk.batch() == [1, 2, 3, 4]
    for order in (1, 2, 3, 4):
        desk.outbox.refusals.ack_refused(order, "no_responders", "no responders", True)
    desk.now += ACK_BUDGET
    assert desk.batch() == [1]
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    assert desk.fates == {1: [Fate("failed", "no_responders")]} | {
        order: [Fate("failed", "out_of_turn")] for order in (2, 3, 4)
    }
    assert desk.books() == (4, 0, 0, {"failed": 4})
