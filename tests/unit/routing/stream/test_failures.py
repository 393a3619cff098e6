"""Messages that failed: attempts are counted here, delays grow, retries are spread, memory is bounded."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from router_trio.routing.stream import failures
from router_trio.routing.stream.failures import LONGEST_DELAY, Failures, RetryPolicy


def test_attempts_are_counted_for_each_message_until_it_is_settled() -> None:
    one = Failures()
    assert [one.add(7) for _ in range(3)] == [1, 2, 3]
    assert one.add(8) == 1
    one.discard([7])
    assert one.add(7) == 1


def test_the_last_attempt_is_the_last() -> None:
    one = RetryPolicy(1.0, 3, 1024)
    assert [one.over(attempts) for attempts in (1, 2, 3, 4)] == [False, False, True, True]
    assert one.limited


def test_without_a_limit_there_is_no_end() -> None:
    one = RetryPolicy(1.0, 0, 1024)
    assert not one.over(10**6)
    assert not one.limited


def test_delays_double_up_to_a_minute() -> None:
    one = RetryPolicy(1.0, 0, 1024)
    delays = [one.delay(attempts, 1000.0 * attempts) for attempts in range(1, 9)]
    assert [round(delay) for delay in delays] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_was_delivered_is_remembered_until_the_message_is() -> None:
    one = Failures()
    one.copied(7, 0)
    assert one.attempts(7) == 0
    one.add(7)
    one.copied(7, 2)
    assert (one.attempts(7), one.copies(7)) == (1, {0, 2})
    assert (one.attempts(8), one.copies(8)) == (0, set())
    one.discard([7])
    assert not one


@pytest.mark.parametrize("max_in_flight", [1, 10, 1024])
def test_retries_of_many_are_spread(max_in_flight: int) -> None:
    one = RetryPolicy(1.0, 0, max_in_flight)
    due = sorted(one.delay(1, 0.0) for _ in range(40 * max_in_flight))
    most = max(bisect_left(due, start + 1) - bisect_left(due, start) for start in due if start < LONGEST_DELAY)
    assert most <= max(1, max_in_flight // 2) + 1
    assert max(due) <= 1 + LONGEST_DELAY, "and nobody waits for ever"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_REMEMBERED", 100)
    one = Failures()
    for sequence in range(1000):
        one.add(sequence)
    assert len(one._failed) == 100
    assert one.add(999) == 2
    assert one.add(0) == 1
