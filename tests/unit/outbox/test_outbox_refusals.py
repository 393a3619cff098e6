"""Publishes that a server or a stream refuses or never answers: which are tried again, in which order, how long."""

from __future__ import annotations

import time
from math import inf

import pytest

from router_trio.events import PublishWithAckFailed
from router_trio.message import FENCED, Fate, stored
from router_trio.outbox import sender as sender_module
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER, RETRY_REFUSED_AFTER
from router_trio.outbox.sender import MAX_UNFENCED
from router_trio.protocol.framing import publish
from tests.unit.outbox.desk import connected, find

HEADERS = b"NATS/1.0\r\nA: b\r\n\r\n"


# --- refused ---


def test_a_permanent_refusal_fails_the_publish_at_once() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "limit", "maximum messages exceeded", False)
    assert desk.fates == {1: [Fate("failed", "limit")]}
    assert desk.outbox.counters.failed == {("publish_with_ack", "limit"): 1}
    assert desk.kinds() == [PublishWithAckFailed]


def test_a_stream_without_a_leader_holds_back_its_subject_in_order_and_nothing_else() -> None:
    desk = connected()
    for order in range(1, 4):
        desk.offer(with_ack=True)
        assert desk.batch() == [order]
    for order in (1, 2, 3):
        desk.outbox.refusals.ack_refused(order, "no_responders", "no responders", True)
    assert desk.books() == (3, 3, 0, {})
    desk.offer(with_ack=True)
    desk.offer(b"other", with_ack=True)
    desk.offer()
    assert desk.batch() == [5, 6]
    assert desk.batch() == []
    assert desk.outbox.sender.next_batch_at() == RETRY_REFUSED_AFTER
    desk.now = RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    assert desk.batch() == [], "one publish per subject is tried at a time"
    before = desk.wakes
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.wakes > before
    assert desk.batch() == [2, 3, 4]


def test_a_publish_that_is_refused_and_retried_has_been_answered() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    assert desk.outbox.silent_since == 0.0
    for desk.now in (5.0, 10.0):
        desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
        assert desk.outbox.silent_since == inf, "nothing is on its way"
        desk.now += RETRY_REFUSED_AFTER
        assert desk.batch() == [1]
        assert desk.outbox.silent_since == desk.outbox.undelivered_since(1.0) == desk.now
    desk.outbox.link_down()
    desk.now = 20.0
    desk.outbox.link_up()
    assert desk.outbox.silent_since == 10.0 + RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    assert desk.outbox.silent_since == 20.0


def test_a_full_batch_behind_a_refused_publish_does_not_block_other_subjects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "BATCH_OPERATIONS", 2)
    desk = connected()
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    for _ in range(5):
        desk.offer(with_ack=True)
    desk.offer(b"other")
    assert desk.batch() == [7]


def test_a_publish_without_responders_is_retried_until_its_budget_ends() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    tries = 0
    while not desk.fates:
        assert desk.batch() == [1]
        tries += 1
        desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
        desk.now += RETRY_REFUSED_AFTER
    assert desk.now == pytest.approx(ACK_BUDGET + RETRY_REFUSED_AFTER)
    assert tries == ACK_BUDGET / RETRY_REFUSED_AFTER + 1
    assert desk.fates == {1: [Fate("failed", "no_responders")]}


def test_a_publish_held_behind_a_refused_one_fails_for_the_same_reason() -> None:
    """It was never sent, so no stream left it without an answer."""
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    desk.outbox.refusals.ack_refused(1, "no_responders", "no stream takes this subject", True)
    desk.offer(with_ack=True)
    assert desk.batch() == []
    desk.now = ACK_BUDGET
    desk.outbox.refusals.sweep()
    refused = [Fate("failed", "no_responders")]
    assert desk.fates == {1: refused, 2: refused}
    assert [event.detail for event in desk.events if isinstance(event, PublishWithAckFailed)] == [
        "no PubAck within 30 s, and the last answer was: no stream takes this subject",
        "no PubAck within 30 s, and the last answer to a publish before it was: no stream takes this subject",
    ]


def test_a_publish_held_behind_one_that_is_no_longer_answered_fails_as_unanswered() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    desk.outbox.refusals.ack_refused(1, "no_responders", "no stream takes this subject", True)
    desk.offer(with_ack=True)
    assert desk.batch() == []
    desk.now = RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    desk.now += RESEND_UNACKED_AFTER
    desk.outbox.refusals.sweep()
    desk.now = ACK_BUDGET
    desk.outbox.refusals.sweep()
    unanswered = [Fate("failed", "timeout")]
    assert desk.fates == {1: unanswered, 2: unanswered}


def test_when_a_publish_fails_the_next_one_to_its_subject_is_tried() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    desk.outbox.refusals.ack_refused(2, "no_responders", "no responders", True)
    desk.now = RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    assert desk.outbox.refusals.give_up(find(desk, 1), "timeout", "timed out")
    assert desk.wakes > before
    assert desk.batch() == [2]


@pytest.mark.parametrize("where", ["held", "released"])
def test_a_new_link_starts_a_new_budget(where: str) -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(2, "no_responders", "no responders", True)
    if where == "released":
        desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.link_down()
    desk.now = 2 * ACK_BUDGET
    desk.outbox.link_up()
    assert 2 in desk.batch()
    desk.outbox.refusals.ack_refused(2, "no_responders", "no responders", True)
    assert 2 not in desk.fates, "the outage counted against the budget"


def test_a_publish_that_the_link_will_not_write_is_retried_until_its_budget_ends() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    while not desk.fates:
        assert desk.batch() == [1]
        desk.outbox.refusals.write_refused(find(desk, 1), "fault", "injected", True)
        desk.now += RETRY_REFUSED_AFTER
        assert desk.now < 2 * ACK_BUDGET
    assert desk.now > ACK_BUDGET
    assert desk.fates == {1: [Fate("failed", "fault")]}


def test_a_core_publish_that_the_link_refuses_fails_even_if_a_retry_might_succeed() -> None:
    desk = connected()
    desk.offer()
    (taken,) = desk.outbox.sender.next_batch()
    desk.outbox.refusals.write_refused(taken, "fault", "injected", True)
    desk.outbox.refusals.write_refused(taken, "fault", "injected", True)
    assert desk.books() == (1, 0, 0, {"failed": 1})


def test_a_denied_publish_fails_and_its_neighbours_are_fenced() -> None:
    desk = connected()
    desk.offer(b"a")
    desk.offer(b"secret")
    desk.offer(b"a")
    desk.batch()
    desk.batch()
    mark = desk.outbox.fences.sent
    desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.fenced(mark)
    assert desk.fates == {1: [FENCED], 2: [Fate("failed", "permission_denied")], 3: [FENCED]}
    assert desk.outbox.counters.succeeded == {"publish": 2}
    assert desk.outbox.counters.failed == {("publish", "permission_denied"): 1}


def test_if_one_of_several_core_publishes_to_a_subject_is_denied_none_counts_as_confirmed() -> None:
    """A permission is revoked while they are in flight: the first was received, and the error concerns the second."""
    desk = connected()
    for subject in (b"secret", b"a", b"secret"):
        desk.offer(subject)
    desk.batch()
    desk.batch()
    mark = desk.outbox.fences.sent
    desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    desk.outbox.fenced(mark)
    denied = Fate("failed", "permission_denied")
    assert desk.fates == {1: [denied], 2: [FENCED], 3: [denied]}


def test_a_denied_publish_makes_room_and_wakes_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "MAX_UNACKED", 1)
    desk = connected()
    desk.offer(b"secret", with_ack=True)
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    desk.outbox.refusals.publish_denied(b"secret", "Permissions Violation")
    assert desk.wakes > before
    assert desk.batch() == [2]


# --- without an answer ---


def test_an_unanswered_publish_is_resent_and_fails_at_the_end_of_its_budget() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    desk.now = RESEND_UNACKED_AFTER - 0.1
    desk.outbox.refusals.sweep()
    assert desk.batch() == []
    writes = 1
    while not desk.fates:
        desk.now += 1.0
        desk.outbox.refusals.sweep()
        writes += len(desk.batch())
        assert desk.now < 2 * ACK_BUDGET
    assert writes == 6
    assert desk.now >= ACK_BUDGET
    assert desk.fates == {1: [Fate("failed", "timeout")]}
    assert desk.books() == (1, 0, 0, {"failed": 1})


def test_a_late_puback_counts_also_for_a_publish_held_for_another_try() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.now = RESEND_UNACKED_AFTER
    desk.outbox.refusals.sweep()
    assert desk.books() == (2, 2, 0, {})
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.fates == {1: [Fate("acked", None, "S", 1, False)]}
    assert desk.batch() == [2], "the stream accepts messages again"
    desk.outbox.acked([(2, stored("S", 2))])
    assert desk.books() == (2, 0, 0, {"acked": 2})


def test_a_resend_does_not_overtake_an_older_publish_that_was_released() -> None:
    """A leader fails with four publishes unanswered, the last a second younger than the others."""
    desk = connected()
    for _ in range(3):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2, 3]
    desk.now = 1.0
    desk.offer(with_ack=True)
    assert desk.batch() == [4]
    desk.now = RESEND_UNACKED_AFTER
    desk.outbox.refusals.sweep()
    assert desk.batch() == [1]
    desk.now = RESEND_UNACKED_AFTER + 1.0
    desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.refusals.sweep()
    written = []
    for _ in range(9):
        batch = desk.batch()
        written += batch
        for order in batch:
            desk.outbox.acked([(order, stored("S", order))])
    assert written == [2, 3, 4]


def test_a_fence_that_makes_room_for_core_publishes_wakes_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_UNFENCED > 1
    monkeypatch.setattr(sender_module, "MAX_UNFENCED", 1)
    monkeypatch.setattr(sender_module, "BATCH_OPERATIONS", 1)
    desk = connected()
    desk.offer()
    desk.offer()
    assert desk.batch() == [1]
    assert desk.batch() == []
    before = desk.wakes
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.wakes > before
    assert desk.batch() == [2]


# --- denied ---


def test_a_denied_core_publish_is_not_taken_for_a_jetstream_publish_to_its_subject() -> None:
    """The server accepted the JetStream publish before the permission was revoked; its PubAck may be late."""
    desk = connected()
    desk.offer(b"a", with_ack=True)
    desk.offer(b"a")
    desk.batch()
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    assert desk.fates == {2: [Fate("failed", "permission_denied")]}
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.fates[1] == [stored("S", 1)]


def test_core_and_jetstream_publishes_to_a_denied_subject_each_fail_once() -> None:
    desk = connected()
    for with_ack in (True, False, False, True, False):
        desk.offer(b"a", with_ack=with_ack)
    desk.batch()
    for _ in range(5):
        assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    denied = [Fate("failed", "permission_denied")]
    assert desk.fates == dict.fromkeys(range(1, 6), denied)
    assert not desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")


def test_a_denial_after_a_fence_concerns_a_later_publish() -> None:
    desk = connected()
    for _ in range(3):
        desk.offer(b"a")
    desk.batch()
    desk.outbox.sender.next_batch()
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    desk.outbox.fenced(desk.outbox.fences.sent)
    desk.offer(b"a", with_ack=True)
    desk.batch()
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    assert desk.fates[4] == [Fate("failed", "permission_denied")]


def test_a_denied_reply_subject_fails_the_publishes_that_carry_it() -> None:
    desk = connected()
    for frame in (publish(b"a", b""), publish(b"a", b"", reply=b"r"), publish(b"a", b"x", reply=b"r", headers=HEADERS)):
        desk.outbox.offer(frame, owner=desk)
    desk.batch()
    for _ in range(2):
        assert desk.outbox.refusals.reply_denied(b"r", "Permissions Violation"), "there is one denial for each"
        assert [*desk.fates] == [2, 3]
    assert not desk.outbox.refusals.reply_denied(b"r", "Permissions Violation")


def test_after_a_denial_that_can_not_be_attributed_no_core_publish_counts_as_sent() -> None:
    desk = connected()
    desk.offer(b"a")
    desk.offer(b"b", with_ack=True)
    desk.offer(b"c")
    desk.batch()
    assert desk.outbox.refusals.something_denied("Permissions Violation") == [b"a", b"c"]
    assert [*desk.fates] == [1, 3]
    desk.outbox.acked([(2, stored("S", 1))])
    assert desk.fates[2] == [stored("S", 1)]


def test_a_denial_of_a_core_publish_already_failed_is_not_taken_for_a_jetstream_publish_to_its_subject() -> None:
    desk = connected()
    desk.offer(b"a", with_ack=True)
    desk.offer(b"a")
    desk.batch()
    desk.outbox.refusals.something_denied("Permissions Violation")
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    assert [*desk.fates] == [2]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    assert desk.fates[1] == [Fate("failed", "permission_denied")]


@pytest.mark.slow
@pytest.mark.parametrize("subjects", ["equal", "distinct"])
@pytest.mark.parametrize("kind", ["core", "jetstream", "both"])
def test_a_flood_of_denials_takes_linear_time(kind: str, subjects: str) -> None:
    def flood(count: int) -> float:
        desk = connected(max_operations=count)
        sent = []
        for number in range(count):
            sent.append(b"a" if subjects == "equal" else b"a.%d" % (number // (1 + (kind == "both"))))
            desk.offer(sent[-1], with_ack=kind == "jetstream" or (kind == "both" and number % 2 == 0))
        while desk.outbox.pending:
            if not desk.batch():
                break
        in_flight = desk.outbox.in_flight
        assert in_flight > 0.9 * count
        started = time.thread_time()
        for subject in sent:
            desk.outbox.refusals.publish_denied(subject, "Permissions Violation")
        took = time.thread_time() - started
        assert len(desk.fates) >= in_flight
        return took

    # Quadratic work would take 16 times as long.
    assert any(flood(4000) < 9 * flood(1000) for _ in range(5))


def test_a_publish_refused_again_on_the_next_link_expects_one_denial_there() -> None:
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    desk.outbox.link_down()  # the denial is lost with the link
    desk.now = 1.0
    desk.outbox.link_up()
    assert desk.batch() == [1]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    desk.now = 2.0
    desk.offer(with_ack=True)
    assert desk.batch() == [2]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    denied = [Fate("failed", "permission_denied")]
    assert desk.fates == {1: denied, 2: denied}, "the second refusal concerns the second publish"


@pytest.mark.parametrize("before", ["held", "refused", "unanswered"])
def test_only_a_publish_sent_again_without_an_answer_may_be_denied_twice(before: str) -> None:
    desk = connected()
    desk.offer(with_ack=True)
    assert desk.batch() == [1]
    if before == "unanswered":
        desk.now = RESEND_UNACKED_AFTER
        desk.outbox.refusals.sweep()
    else:
        desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    second = 1
    if before == "held":
        desk.offer(with_ack=True)
        assert desk.batch() == []
        second = 2
    desk.now += RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    if before == "held":
        desk.outbox.acked([(1, stored("S", 1))])
        assert desk.batch() == [2]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    denied = [Fate("failed", "permission_denied")]
    assert desk.fates[second] == denied
    desk.offer(with_ack=True)
    assert desk.batch() == [second + 1]
    if before == "unanswered":
        assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
        assert second + 1 not in desk.fates, "it may be the denial of the first time"
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    assert desk.fates[second + 1] == denied


def test_a_publish_held_on_the_next_link_before_it_was_written_there_is_denied_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = connected()
    for _ in range(2):
        desk.offer(with_ack=True)
    assert desk.batch() == [1, 2]
    desk.outbox.link_down()  # neither was answered
    desk.outbox.link_up()
    monkeypatch.setattr(sender_module, "BATCH_OPERATIONS", 1)
    assert desk.batch() == [1]
    desk.outbox.refusals.ack_refused(1, "no_responders", "no responders", True)
    assert desk.batch() == []  # the second one is held
    desk.now += RETRY_REFUSED_AFTER
    assert desk.batch() == [1]
    desk.outbox.acked([(1, stored("S", 1))])
    assert desk.batch() == [2]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    desk.offer(with_ack=True)
    assert desk.batch() == [3]
    assert desk.outbox.refusals.publish_denied(b"a", "Permissions Violation")
    denied = [Fate("failed", "permission_denied")]
    assert (desk.fates[2], desk.fates.get(3)) == (denied, denied)


def test_a_refusal_on_an_earlier_link_is_no_answer_on_the_next_one() -> None:
    """The next server may accept the publish: its PubAck may be late, and only its own refusal counts."""
    desk = connected()
    desk.outbox.link_up(b"_INBOX.x")
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "limit", "maximum messages exceeded", False)
    desk.outbox.link_down("closed")
    desk.outbox.link_up(b"_INBOX.y")
    assert desk.batch() == [1]
    desk.now += 1.0
    desk.outbox.refusals.sweep()
    assert desk.fates == {}
    assert desk.books() == (1, 0, 1, {})
