"""Messages that failed: attempts are counted for each, and memory is bounded."""

from __future__ import annotations

import pytest

from router_trio.errors import reasons
from router_trio.routing.policy import failed_messages
from router_trio.routing.policy.failed_messages import FailedMessages, Numbering
from router_trio.routing.policy.retry import Failure, GivenUp

WEIGHTED = Numbering("weighted", (b"a", b"b", None, b"c"))


def failed(one: FailedMessages, sequence: int, reason: str = reasons.HANDLER_ERROR) -> int:
    """Count a failure of a message. Return the attempts that it has used up."""
    known = one.known(sequence)
    known.count(reason)
    return known.attempts


def test_a_failure_that_no_message_can_cause_uses_up_no_attempt() -> None:
    one = FailedMessages()
    for reason in (reasons.PERMISSION_DENIED, reasons.LIMIT, reasons.NO_RESPONDERS, reasons.TIMEOUT):
        assert failed(one, 7, reason) == 0
    assert failed(one, 7) == 1
    assert (one.attempts(7), one.failures(7), one.was_tried(7)) == (1, 5, True)


def test_attempts_are_counted_for_each_message_until_it_is_settled() -> None:
    one = FailedMessages()
    assert [failed(one, 7) for _ in range(3)] == [1, 2, 3]
    assert failed(one, 8) == 1
    one.discard([7])
    assert failed(one, 7) == 1


def test_delivered_copies_are_remembered_as_long_as_their_message() -> None:
    one = FailedMessages()
    one.copied(7, 0, WEIGHTED)
    assert one.attempts(7) == 0
    failed(one, 7)
    one.copied(7, 2, WEIGHTED)
    assert (one.attempts(7), one.copies(7, WEIGHTED)) == (1, {0, 2})
    assert (one.attempts(8), one.copies(8, WEIGHTED)) == (0, set())
    one.discard([7])
    assert (one.failed, one.given_up) == ({}, {})


def test_a_message_that_is_given_up_is_remembered_until_its_dead_letter_is_stored() -> None:
    one = FailedMessages()
    dead = GivenUp(Failure("timeout"), 3)
    one.keep_given_up(7, dead)
    one.keep_given_up(7, dead)
    assert one.given_up == {7: dead}
    assert dead.tries == 2
    one.discard([7])
    assert (one.failed, one.given_up) == ({}, {})


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_messages, "MOST_REMEMBERED", 100)
    one = FailedMessages()
    for sequence in range(1000):
        failed(one, sequence)
        one.keep_given_up(sequence, GivenUp(Failure("timeout"), 1))
    assert len(one.failed) == len(one.given_up) == 100
    assert failed(one, 999) == 2
    assert failed(one, 0) == 1


def test_copies_and_choices_follow_their_destinations_to_other_places() -> None:
    one = FailedMessages()
    one.copied(7, 0, WEIGHTED)
    one.copied(7, 4 + 3, WEIGHTED)  # a copy of the second answer of its handler
    one.keep_choices(7, {0: (0, 2), 1: (3,), 2: ()}, WEIGHTED)
    now = Numbering("weighted", (b"c", None, b"d", b"b", b"a"))
    assert one.copies(7, now) == {4, 5 + 0}
    assert [one.choice(7, number, now) for number in range(4)] == [[4], [0], [], None]
    assert (one.copies(8, now), one.choice(8, 0, now)) == (set(), None)


def test_copies_and_choices_of_a_removed_destination_are_forgotten() -> None:
    one = FailedMessages()
    one.copied(7, 0, WEIGHTED)
    one.copied(7, 1, WEIGHTED)
    one.keep_choices(7, {0: (0, 1), 1: (1,), 2: (3, 2)}, WEIGHTED)
    now = Numbering("weighted", (b"b", b"c"))
    assert one.copies(7, now) == {0}
    assert [one.choice(7, number, now) for number in range(3)] == [None, [0], [1]]
    one.copied(7, 1, now)
    assert one.copies(7, WEIGHTED) == {1, 3}, "a destination added again starts without copies"


def test_another_strategy_chooses_again_and_keeps_the_delivered_copies() -> None:
    one = FailedMessages()
    failed(one, 7)
    one.copied(7, 1, WEIGHTED)
    one.keep_choices(7, {0: (1, 3)}, WEIGHTED)
    now = Numbering("first_match", WEIGHTED.names)
    assert (one.attempts(7), one.copies(7, now), one.choice(7, 0, now)) == (1, {1}, None)
