"""The outbox on a live link: what is sent, confirmed and left, and what the ledger counts."""

from __future__ import annotations

from math import inf

import pytest

from router_trio.events import PublishFailed, PublishWithAckFailed
from router_trio.message import FATES, FENCED, Fate, stored
from router_trio.outbox.ledger import Ledger
from router_trio.outbox.operation import FrameOwners, NumberedOwner, Operation
from router_trio.protocol import framing
from tests.support.compiled import looks_inside
from tests.unit.outbox.desk import Desk, connected, offer_frames

# --- connected ---


def test_a_core_publish_is_sent_and_fenced() -> None:
    desk = connected()
    assert desk.offer() == "sent"
    assert desk.books() == (1, 1, 0, {})
    assert desk.batch() == [1]
    assert desk.books() == (1, 0, 1, {})
    assert desk.batch() == []
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (1, 0, 0, {"fenced": 1})
    assert desk.fates == {1: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 1}
    assert desk.outbox.counters.failed == {}
    assert desk.events == []


def test_a_jetstream_publish_is_sent_and_acked() -> None:
    desk = connected()
    assert desk.offer(with_ack=True) == "sent"
    assert desk.batch() == [1]
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (1, 0, 1, {}), "a fence does not confirm a stream"
    desk.outbox.acked([(1, stored("ORDERS", 7, True))])
    assert desk.fates == {1: [Fate("acked", None, "ORDERS", 7, True)]}
    assert desk.outbox.counters.succeeded == {"publish_with_ack": 1}


@pytest.mark.parametrize("with_ack", [False, True])
def test_the_outbox_knows_since_when_nothing_was_confirmed(with_ack: bool) -> None:
    def confirm(order: int) -> None:
        if with_ack:
            desk.outbox.acked([(order, stored("S", order))])
        else:
            desk.outbox.fenced(order)

    desk = connected()
    assert desk.outbox.silent_since == inf
    for desk.now in (1.0, 2.0, 3.0):
        desk.offer(with_ack=with_ack)
        desk.batch()
    assert desk.outbox.silent_since == 1.0
    desk.now = 4.0
    desk.offer(with_ack=with_ack)
    assert desk.outbox.silent_since == 1.0, "the oldest written publish counts"
    desk.now = 5.0
    confirm(1)
    assert desk.outbox.silent_since == 5.0
    desk.outbox.link_down()
    desk.now = 9.0
    desk.outbox.link_up()
    assert desk.outbox.silent_since == 5.0, "resent and still unconfirmed"
    desk.batch()
    assert desk.outbox.silent_since == 5.0
    assert desk.batch() == []  # the previous batch is on the wire
    if not with_ack:
        desk.outbox.fenced(desk.outbox.fences.sent)
    else:
        desk.outbox.acked([(order, stored("S", order)) for order in (2, 3, 4)])
    assert desk.outbox.silent_since == inf


def test_a_second_puback_and_one_of_another_publish_are_ignored() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer()
    desk.batch()
    desk.outbox.acked([(1, stored("S", 1))])
    for order in (1, 2, 99):
        desk.outbox.acked([(order, stored("S", 1))])
        desk.outbox.refusals.ack_refused(order, "no_responders", "no responders", False)
    assert desk.books() == (2, 0, 1, {"acked": 1})


def test_publishing_wakes_the_sender() -> None:
    desk = connected()
    before = desk.wakes
    desk.offer()
    assert desk.wakes > before
    before = desk.wakes
    offer_frames(desk, [framing.publish(b"a", b"")])
    assert desk.wakes > before


def test_a_full_queue_blocks_publishers_while_connected_whatever_the_policy() -> None:
    for on_full in ("drop_oldest", "reject", "block"):
        desk = connected(on_full=on_full, max_operations=1)
        assert not desk.outbox.blocks
        desk.offer()
        assert desk.outbox.capacity.full
        assert desk.outbox.blocks
        desk.batch()
        assert not desk.outbox.blocks


def test_a_publish_with_ack_gets_its_number_from_the_call_that_offers_it() -> None:
    desk = connected()
    for number in range(1, 4):
        _, order = desk.outbox.offer_with_ack(b"a", b"x", b"", b"_INBOX.b")
        (operation,) = desk.outbox.sender.next_batch()
        assert operation.order == order == number
        assert operation.frame == b"PUB a _INBOX.b.%d 1\r\nx\r\n" % number


class Numbered(NumberedOwner):
    """An owner that records which of its publishes have which fate."""

    def __init__(self) -> None:
        self.fates: list[tuple[int, Fate]] = []

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self.settle_up_to(operation.order, operation, count, fate, now)

    def settle_up_to(self, last: int, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self.fates += [(order, fate) for order in range(last - count + 1, last + 1)]


def frames(count: int) -> list[bytes]:
    return [framing.publish(b"a", b"")] * count


@looks_inside
def test_an_owner_knows_which_of_its_publishes_failed_in_a_batch_shared_with_others() -> None:
    desk = connected()
    desk.offer()
    one, between, other = Numbered(), Numbered(), Numbered()
    assert desk.outbox.offer_frames(frames(5), FrameOwners([one, between, other], [2, 1, 2])) == 2
    assert desk.outbox.offer_frames(frames(3), FrameOwners([other, one], [1, 2])) == 7
    assert desk.outbox.offer_frames([], FrameOwners([], [])) == 10
    assert len(desk.outbox.sender.next_batch()) == 2
    assert (one.fates, other.fates) == ([], [])
    desk.outbox.refusals.something_denied("Permissions Violation")
    denied = Fate("failed", "permission_denied")
    assert one.fates == [(order, denied) for order in (2, 3, 8, 9)]
    assert other.fates == [(order, denied) for order in (5, 6, 7)]
    assert between.fates == [(4, denied)]


@looks_inside
def test_a_refused_frame_has_a_number_like_any_other() -> None:
    desk = Desk(max_operations=1, on_full="reject")
    owner = Numbered()
    desk.outbox.offer_frames(frames(3), FrameOwners([owner], [3]))
    full = Fate("failed", "queue_full")
    assert owner.fates == [(2, full), (3, full)]
    desk.outbox.shut_down()
    assert owner.fates[2:] == [(1, Fate("dropped", "shutdown"))]


def test_reserved_numbers_are_not_given_to_other_publishes_and_may_stay_unused() -> None:
    desk = connected()
    first = desk.outbox.take_numbers(3)
    desk.outbox.offer_each(first, [framing.publish(b"a", b"")] * 2, [desk, desk], None)
    desk.offer()
    assert desk.batch() == [first, first + 1, first + 3]


# --- a batch that the link has in hand ---


def test_a_fence_that_overtakes_a_batch_in_hand_confirms_nothing_of_it() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    assert desk.outbox.fences.unfenced == 0
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (1, 0, 1, {})
    desk.batch()
    assert desk.outbox.fences.unfenced == 1
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (1, 0, 0, {"fenced": 1})


def test_a_publish_that_the_link_refuses_is_not_confirmed_by_a_fence_meanwhile() -> None:
    desk = connected()
    desk.offer()
    desk.offer(size=100)
    taken = desk.outbox.sender.next_batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    desk.outbox.refusals.write_refused(taken[1], "too_large", "more than max_payload")
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.fates == {1: [FENCED], 2: [Fate("failed", "too_large")]}
    assert desk.outbox.counters.succeeded == {"publish": 1}
    assert desk.outbox.counters.failed == {("publish", "too_large"): 1}
    assert desk.kinds() == [PublishFailed]


# --- leaving a link ---


def test_a_link_that_is_being_left_gets_nothing_more() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    desk.offer()
    desk.outbox.sender.hold_back()
    assert desk.batch() == []
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (2, 1, 0, {"fenced": 1}), "what was written is still confirmed"
    desk.outbox.link_down()
    desk.outbox.link_up()
    assert desk.batch() == [2]


def test_each_callback_for_nothing_in_flight_is_called_once() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    notified: list[str] = []
    desk.outbox.when_nothing_in_flight(lambda: notified.append("first"))
    desk.outbox.when_nothing_in_flight(lambda: notified.append("second"))
    desk.outbox.acked([(1, stored("S", 1))])
    assert notified == []
    desk.outbox.refusals.ack_refused(2, "no_responders", "no responders", True)
    assert notified == ["first", "second"], "a publish held in a lane is not in flight"
    desk.outbox.acked([(2, stored("S", 1))])
    assert notified == ["first", "second"]


def test_a_publish_refused_before_acceptance_is_counted_but_not_in_the_ledger() -> None:
    desk = connected()
    desk.outbox.settlement.not_accepted(True, "too_large", "more than max_payload")
    assert desk.books() == (0, 0, 0, {})
    assert desk.outbox.counters.failed == {("publish_with_ack", "too_large"): 1}
    assert desk.kinds() == [PublishWithAckFailed]


def test_the_ledger_has_a_count_for_every_fate_from_the_start() -> None:
    ledger = Ledger()
    assert ledger.settled == dict.fromkeys(FATES, 0)
    ledger.accepted += 3
    ledger.settle("acked")
    ledger.settle("fenced", 1)
    assert ledger.unsettled == 1
