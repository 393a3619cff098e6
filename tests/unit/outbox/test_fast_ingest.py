"""Batches of fast ingest at the outbox: which publishes are in one, what confirms them, and what is sent again."""

from __future__ import annotations

import pytest

from router_trio.message import Fate, stored
from router_trio.outbox.batch import ENDS_WITHIN, LINGER, UNANSWERED_FOR
from router_trio.outbox.fast_ingest import MOST_FLOW, REST, WORTH
from router_trio.outbox.operation import Operation
from router_trio.outbox.retries import RESEND_UNACKED_AFTER
from router_trio.protocol import fast_ingest, framing
from tests.unit.outbox.desk import Desk
from tests.unit.outbox.ingest_desk import ACKED, INBOX, TO, IngestDesk


def sent(desk: IngestDesk, count: int = WORTH) -> bytes:
    """Have so many copies sent in a batch, with one more that waits. Return the batch."""
    desk.copies(count + 1)
    found = fast_ingest.answered(framing.published(desk.taken()[-1].frame)[1])
    assert found is not None
    return found[0]


def ending(desk: IngestDesk, stored: int, flow: int) -> bytes:
    """Have a batch end of which so many are stored, while another copy waits. Return the batch."""
    batch = sent(desk)
    desk.outbox.ingest.stored(batch, stored, flow)
    desk.now = 1.0
    desk.taken()
    desk.copies(1)
    assert desk.taken() == []
    return batch


def orders(operations: list[Operation]) -> list[int]:
    return [one.order for one in operations]


def reply_of(operation: Operation) -> bytes:
    return framing.published(operation.frame)[1]


# --- what is in a batch ---


def test_enough_at_one_time_is_a_batch_and_the_latest_waits_for_what_comes_then() -> None:
    desk = IngestDesk()
    desk.copies(WORTH)
    assert desk.replies() == [(b"abc-1", number) for number in range(1, WORTH)]
    assert desk.books() == (WORTH, 1, WORTH - 1, {})
    desk.copies(2)
    assert desk.replies() == [(b"abc-1", WORTH), (b"abc-1", WORTH + 1)]


def test_fewer_get_a_puback_each() -> None:
    desk = IngestDesk()
    desk.copies(WORTH - 1)
    assert desk.replies() == [None] * (WORTH - 1)


def test_an_answer_is_for_a_part_of_what_is_sent_at_a_time_so_that_no_window_has_to_wait_for_it() -> None:
    desk = IngestDesk()
    desk.copies(WORTH)
    assert reply_of(desk.taken()[0]) == b"_INBOX.abc.abc-1.%d.fail.1.0.$FI" % (WORTH // 4)
    desk = IngestDesk()
    desk.copies(1500)
    assert b".%d.fail.1.0." % MOST_FLOW in desk.taken()[0].frame


@pytest.mark.parametrize("shares", [False, True])
def test_what_has_the_id_of_its_sender_keeps_its_puback(shares: bool) -> None:
    desk = IngestDesk()
    desk.copies(WORTH, shares=shares)
    assert (desk.replies()[0] is not None) is shares


def test_another_destination_has_nothing_to_do_with_it() -> None:
    desk, other = IngestDesk(), Desk()
    desk.copies(WORTH)
    for _ in range(WORTH):
        frame = framing.publish(b"in.a", b"", reply=b"%b.%d" % (INBOX, desk.outbox.next_order))
        desk.outbox.offer(frame, with_ack=True, owner=other, ingest_to=("other", "in.>"))
    assert [reply is not None for reply in desk.replies()] == [True] * (WORTH - 1) + [False] * WORTH


def test_without_a_stream_for_it_there_is_no_batch_on_this_link_or_the_next() -> None:
    desk = IngestDesk()
    desk.outbox.ingest.use_for(TO, None)
    desk.copies(WORTH)
    assert desk.replies() == [None] * WORTH
    desk = IngestDesk()
    desk.outbox.link_down("closed")
    desk.outbox.link_up(INBOX)
    desk.copies(WORTH)
    assert desk.replies() == [None] * WORTH, "nobody has looked at the streams on this link yet"


# --- what confirms ---


def test_an_answer_confirms_all_up_to_its_number_once() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.outbox.ingest.stored(batch, 10, 10)
    desk.outbox.ingest.stored(batch, 10, 10)
    desk.outbox.ingest.stored(batch, 5, 10)
    assert desk.told == {order: [ACKED] for order in range(1, 11)}
    assert desk.books() == (WORTH + 1, 1, WORTH - 10, {"acked": 10})
    desk.outbox.ingest.stored(batch, 10_000, 10)
    assert desk.books() == (WORTH + 1, 1, 0, {"acked": WORTH})
    desk.outbox.ingest.stored(b"other-1", 10, 10)


def test_the_latest_is_the_last_when_nothing_comes_for_a_moment_and_confirms_the_rest() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.outbox.ingest.stored(batch, 24, 16)
    assert desk.outbox.sender.next_batch_at() == pytest.approx(LINGER)
    assert desk.taken() == []
    desk.now = LINGER + 1e-9
    (last,) = desk.taken()
    assert reply_of(last).endswith(b".fail.%d.2.$FI" % (WORTH + 1))
    assert desk.outbox.sender.next_batch_at() is None
    desk.outbox.ingest.ended(batch, WORTH + 1)
    assert desk.books() == (WORTH + 1, 0, 0, {"acked": WORTH + 1})
    desk.copies(WORTH)
    assert desk.replies()[0] == (b"abc-2", 1)


def test_what_is_too_little_for_an_answer_is_not_left_unanswered_though_more_comes() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.outbox.ingest.stored(batch, 24, 1_000)
    desk.now = UNANSWERED_FOR + 1e-9
    desk.copies(1)
    assert reply_of(desk.taken()[-1]).endswith(b".2.$FI")


def test_while_an_answer_is_to_come_more_is_sent() -> None:
    desk = IngestDesk()
    sent(desk)
    desk.now = 1.0
    desk.copies(1)
    assert desk.replies() == [(b"abc-1", WORTH + 1)]


def test_what_comes_while_a_batch_ends_waits_until_it_is_known_to_be_stored() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.now = 1.0
    desk.taken()
    desk.copies(3)
    desk.offer(b"core")
    assert orders(desk.taken()) == [WORTH + 5], "others go on"
    assert desk.books()[1:3] == (3, WORTH + 2)
    desk.outbox.ingest.ended(batch, WORTH + 1)
    assert orders(desk.taken()) == [WORTH + 2, WORTH + 3, WORTH + 4]


def test_a_batch_that_ends_may_take_long_as_long_as_it_is_answered() -> None:
    desk = IngestDesk()
    batch = ending(desk, 8, 8)
    for answer in (16, 24):
        desk.now += 0.9 * ENDS_WITHIN
        assert desk.taken() == []
        desk.outbox.ingest.stored(batch, answer, 8)
    desk.now += 0.9 * ENDS_WITHIN
    assert desk.taken() == []
    desk.outbox.ingest.ended(batch, WORTH + 1)
    assert orders(desk.taken()) == [WORTH + 2]


def test_an_end_that_is_not_answered_holds_nobody_up_for_long() -> None:
    desk = IngestDesk()
    ending(desk, 24, 16)
    assert desk.outbox.sender.next_batch_at() == 1.0 + ENDS_WITHIN
    desk.now = 1.0 + ENDS_WITHIN
    assert desk.taken() == []
    assert orders(desk.taken()) == list(range(25, WORTH + 3)), "what is not known to be stored first"


def test_what_has_to_have_a_puback_ends_the_batch_before_it() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.copies(1)
    desk.copies(1, shares=False)
    assert orders(desk.taken()) == [WORTH + 1, WORTH + 2]
    assert desk.taken() == []
    desk.outbox.ingest.ended(batch, WORTH + 2)
    assert desk.replies() == [None]


def test_a_link_that_is_left_ends_its_batches_at_once() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.copies(1)
    desk.outbox.sender.hold_back()
    assert orders(desk.taken()) == [WORTH + 1]
    assert desk.taken() == []
    desk.outbox.ingest.ended(batch, WORTH + 1)
    assert desk.books() == (WORTH + 2, 1, 0, {"acked": WORTH + 1})


# --- what is sent again ---


@pytest.mark.parametrize("how", ["gap", "short", "silence", "taken back"])
def test_what_is_not_known_to_be_stored_is_sent_again_first_in_order_with_a_puback_each(how: str) -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.copies(WORTH)
    desk.outbox.ingest.stored(batch, 28, 8)
    if how == "gap":
        desk.outbox.ingest.ended(batch, None)
    elif how == "short":
        desk.outbox.ingest.ended(batch, 28)
    elif how == "silence":
        desk.now = RESEND_UNACKED_AFTER
        desk.outbox.refusals.sweep()
    else:
        desk.outbox.recall(lambda operation: operation.order > WORTH)
        desk.now = LINGER + 1e-9
        assert desk.taken() == [], "there is nothing that could end the batch"
    again = desk.taken()
    assert orders(again) == list(range(29, WORTH + 1 if how == "taken back" else 2 * WORTH + 2))
    assert [reply_of(one) for one in again] == [b"%b.%d" % (INBOX, one.order) for one in again]
    desk.outbox.acked([(one.order, stored("IN", one.order)) for one in again])
    assert desk.books()[1:3] == (0, 0)


def test_after_trouble_a_destination_has_no_batch_for_a_while() -> None:
    desk = IngestDesk()
    desk.outbox.ingest.ended(sent(desk), None)
    desk.outbox.acked([(one.order, stored("IN", one.order)) for one in desk.taken()])
    desk.copies(WORTH)
    assert desk.replies() == [None] * WORTH
    desk.now = REST
    desk.copies(WORTH)
    assert desk.replies()[0] == (b"abc-2", 1)


def test_one_that_is_refused_fails_alone() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.outbox.ingest.one_refused(batch, 10, "too_large", "message size exceeds maximum allowed", False)
    again = desk.taken()
    assert orders(again) == [order for order in range(1, WORTH + 2) if order != 10]
    desk.outbox.ingest.ended(batch, 9)
    desk.outbox.acked([(one.order, stored("IN", one.order)) for one in again])
    assert desk.told[10] == [Fate("failed", "too_large")]
    assert desk.books() == (WORTH + 1, 0, 0, {"acked": WORTH, "failed": 1})


def test_one_that_is_refused_for_now_is_tried_again_before_those_behind_it() -> None:
    desk = IngestDesk()
    batch = sent(desk)
    desk.outbox.ingest.one_refused(batch, 10, "no_responders", "no stream takes this subject", True)
    assert desk.taken() == [], "its subject has a lane, in which the oldest is tried"
    desk.now = 1.0
    assert orders(desk.taken()) == [1]
    desk.outbox.acked([(1, stored("IN", 1))])
    again = desk.taken()
    assert orders(again) == list(range(2, WORTH + 2))
    assert [reply_of(one) for one in again] == [b"%b.%d" % (INBOX, order) for order in orders(again)]


@pytest.mark.parametrize("how", ["denied", "not written"])
def test_one_that_never_reached_the_stream_has_those_behind_it_sent_again(how: str) -> None:
    desk = IngestDesk()
    desk.copies(9)
    desk.copies(1, subject=b"in.denied")
    desk.copies(WORTH)
    taken = desk.taken()
    if how == "denied":
        desk.outbox.refusals.publish_denied(b"in.denied", "Permissions Violation")
    else:
        desk.outbox.refusals.write_refused(taken[9], "too_large", "more than max_payload")
    assert orders(desk.taken()) == [*range(1, 10), *range(11, WORTH + 11)]
    assert desk.books()[3] == {"failed": 1}
