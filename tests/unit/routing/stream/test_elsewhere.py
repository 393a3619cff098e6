"""Awaited messages that another process has: the server redelivers in the order of the due times."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router_trio.routing.stream.pulling import elsewhere
from router_trio.routing.stream.pulling.elsewhere import Elsewhere

LATE: Mapping[int, float] = {5: 10.0}
"""Message 5 is late at 10 s."""


def at_ten_seconds() -> Elsewhere:
    """Return what is known when message 5 is late and another process has messages."""
    known = Elsewhere(30.0)
    assert known.among(LATE, 10.0, others=True) == []
    return known


def test_a_late_message_is_elsewhere_once_nothing_that_became_due_so_early_is_left() -> None:
    known = at_ten_seconds()
    known.none_due_before = 39.0
    assert known.among(LATE, 45.0, others=False) == []
    known.none_due_before = 40.0
    assert known.among(LATE, 46.0, others=False) == [5]


def test_a_message_that_is_redelivered_twice_shows_that_nothing_which_became_due_before_the_first_time_is_left() -> (
    None
):
    known = at_ten_seconds()
    known.redelivered([3], 40.0)
    assert known.among(LATE, 41.0, others=True) == []
    known.redelivered([3], 42.0)
    assert known.among(LATE, 43.0, others=True) == [5]


def test_redeliveries_of_different_messages_show_nothing() -> None:
    """Each of them may have become due before the late one."""
    known = at_ten_seconds()
    for sequence in range(100, 200):
        known.redelivered([sequence], float(sequence))
    assert known.among(LATE, 300.0, others=True) == []


def test_a_message_that_is_late_a_moment_after_another_one_is_elsewhere_with_it() -> None:
    """Nothing is heard of the other process any more when they are looked up the next time."""
    known = Elsewhere(30.0)
    assert known.among({5: 10.0, 6: 10.5}, 10.0, others=True) == []
    known.none_due_before = 40.5
    assert known.among({5: 10.0, 6: 10.5}, 41.0, others=False) == [5, 6]


def test_a_message_that_came_and_was_refused_again_counts_from_its_next_redelivery() -> None:
    known = at_ten_seconds()
    known.none_due_before = 50.0
    assert known.among({5: 45.0}, 50.0, others=True) == []
    known.none_due_before = 75.0
    assert known.among({5: 45.0}, 75.0, others=True) == [5]


def test_a_message_that_was_not_awaited_meanwhile_starts_again() -> None:
    known = at_ten_seconds()
    assert known.among({}, 20.0, others=True) == []
    known.none_due_before = 60.0
    assert known.among(LATE, 60.0, others=True) == []


def test_without_another_process_no_message_is_elsewhere() -> None:
    known = Elsewhere(30.0)
    for now in (10.0, 50.0, 100.0):
        known.none_due_before = now
        assert known.among(LATE, now, others=False) == []


def test_the_number_of_redeliveries_that_are_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "MOST_REMEMBERED", 2)
    known = at_ten_seconds()
    known.redelivered([1, 2, 3], 40.0)
    known.redelivered([1], 41.0)
    assert known.among(LATE, 42.0, others=True) == [], "the oldest of them was forgotten"
    known.redelivered([3], 43.0)
    assert known.among(LATE, 44.0, others=True) == [5]
