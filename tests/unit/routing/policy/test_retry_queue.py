"""Messages that wait for their next attempt: in the order in which they are due, within bounds."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.policy import retry_queue
from router_trio.routing.policy.retry_queue import RetryQueue


@given(st.lists(st.integers(0, 5)))
def test_messages_are_taken_in_the_order_in_which_they_are_due_and_were_added(dues: list[int]) -> None:
    queue: RetryQueue[int] = RetryQueue()
    for number, due in enumerate(dues):
        assert queue.add(number, 1, due, number)
    assert queue.first_due == min(dues, default=inf)
    taken = []
    for now in range(6):
        while (one := queue.pop_due(now)) is not None:
            taken.append(one)
            assert dues[one] <= now
        assert queue.first_due > now
    assert taken == sorted(range(len(dues)), key=lambda number: (dues[number], number))
    assert len(queue) == 0


def test_the_number_of_waiting_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "MOST_MESSAGES", 2)
    queue: RetryQueue[int] = RetryQueue()
    assert [queue.add(number, 1, 0.0, number) for number in range(3)] == [True, True, False]
    assert queue.pop_due(0.0) == 0
    assert queue.add(3, 1, 0.0, 3)


def test_the_bytes_of_waiting_messages_are_bounded_but_one_may_be_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "MOST_BYTES", 10)
    queue: RetryQueue[int] = RetryQueue()
    assert queue.add(0, 100, 0.0, 0)
    assert not queue.add(1, 1, 0.0, 1)
    assert queue.take_all() == [0]
    assert [queue.add(number, 5, 0.0, number) for number in range(3)] == [True, True, False]
