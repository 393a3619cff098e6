"""How much is requested of a pull consumer, and what its statuses mean."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.connection import pull_credit
from router_trio.connection.pull_credit import LARGEST_REQUEST, PullBudget, PullCredit, Verdict

MIB = 1024 * 1024
SIZE = 100
"""Bytes of a message, where nothing else is given."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_budget(consumers: int = 1) -> PullBudget:
    budget = PullBudget(Clock())
    for _ in range(consumers):
        budget.join()
    return budget


def a_credit(window: int, window_bytes: int = 16 * MIB, budget: PullBudget | None = None) -> PullCredit:
    return PullCredit(window, window_bytes, budget or a_budget(), lambda: None)


def asked(credit: PullCredit, held: int, held_bytes: int | None = None) -> int:
    held_bytes = held * SIZE if held_bytes is None else held_bytes
    wanted = credit.want(held, held_bytes)
    size = credit.size(wanted, held_bytes) if wanted else 0
    if not size:
        return 0
    credit.asked(wanted, size)
    return wanted


def test_the_entire_window_is_requested_at_once_and_topped_up_when_half_of_it_is_free() -> None:
    credit = a_credit(10)
    assert asked(credit, 0) == 10
    assert asked(credit, 0) == 0
    credit.count_received(10, 10 * SIZE)
    assert asked(credit, 10) == 0
    credit = a_credit(10)
    asked(credit, 0)
    credit.count_received(4, 4 * SIZE)
    assert asked(credit, 0) == 0, "less than half is free"
    credit.count_received(1, 1 * SIZE)
    assert asked(credit, 0) == 5
    assert credit.outstanding == 10


def test_any_free_room_is_requested_when_nothing_is_outstanding() -> None:
    credit = a_credit(10)
    assert asked(credit, 9) == 1
    assert asked(credit, 9) == 0
    assert a_credit(1).want(0, 0) == 1
    assert a_credit(1).want(1, SIZE) == 0


def test_requested_and_held_messages_never_exceed_the_window() -> None:
    credit = a_credit(7)
    held = 0
    for step in range(500):
        asked(credit, held)
        assert credit.outstanding + held <= 7
        if step % 3 and credit.outstanding:
            credit.count_received(1, 1 * SIZE)
            held += 1
        elif held:
            held -= 1


def test_receiving_more_than_requested_leaves_no_debt() -> None:
    credit = a_credit(4)
    asked(credit, 0)
    credit.count_received(6, 6 * SIZE)
    assert credit.outstanding == 0
    assert credit.want(2, 2 * SIZE) == 2


@pytest.mark.parametrize(("unfilled", "left"), [(3, 7), (10, 0), (None, 0), (99, 0)])
@pytest.mark.parametrize("code", [404, 408])
def test_a_finished_request_returns_what_it_did_not_deliver(code: int, unfilled: int | None, left: int) -> None:
    credit = a_credit(10)
    asked(credit, 0)
    reading = credit.read_status(code, "Request Timeout", unfilled, None if unfilled is None else 0)
    assert reading.verdict is Verdict.ASK_AGAIN
    assert credit.outstanding == left


def test_a_heartbeat_changes_nothing() -> None:
    credit = a_credit(10)
    asked(credit, 0)
    assert credit.read_status(100, "Idle Heartbeat", None, None).verdict is Verdict.GO_ON
    assert credit.outstanding == 10


@pytest.mark.parametrize(
    ("code", "description", "verdict", "reason"),
    [
        (409, "Leadership Change", Verdict.ASK_AGAIN, ""),
        (409, "Server Shutdown", Verdict.ASK_AGAIN, ""),
        (409, "Consumer Deleted", Verdict.REOPEN, "consumer_deleted"),
        (409, "Exceeded MaxWaiting", Verdict.REOPEN, "consumer_limit"),
        (409, "Exceeded MaxRequestExpires of 10s", Verdict.REOPEN, "consumer_limit"),
        (409, "Consumer is push based", Verdict.REOPEN, "consumer_lost"),
        (503, "", Verdict.REOPEN, "no_responders"),
        (400, "Bad Request", Verdict.REOPEN, "consumer_lost"),
        (0, "", Verdict.REOPEN, "consumer_lost"),
    ],
)
def test_every_other_status_ends_all_requests(code: int, description: str, verdict: Verdict, reason: str) -> None:
    credit = a_credit(10)
    asked(credit, 0)
    reading = credit.read_status(code, description, None, None)
    assert (reading.verdict, reading.reason) == (verdict, reason)
    assert credit.outstanding == 0
    assert (reading.detail != "") == (verdict is Verdict.REOPEN)


def test_ever_smaller_batches_are_tried_when_the_server_refuses_a_large_one() -> None:
    credit = a_credit(10)
    sizes = []
    while credit.read_status(409, "Exceeded MaxRequestBatch of 0", None, None).verdict is Verdict.ASK_AGAIN:
        sizes.append(credit.window)
    assert sizes == [5, 2, 1]


def test_redeliveries_that_are_due_are_requested_however_much_is_held() -> None:
    credit = a_credit(10)
    assert credit.want(10, 10 * SIZE) == 0
    assert (credit.want_again(3), credit.want_again(0), credit.want_again(99)) == (3, 0, 10)
    credit.asked(2, 2 * SIZE)
    assert (credit.want_again(3), credit.want_again(1)) == (1, 0)


# --- bytes ---


def too_large(credit: PullCredit, messages: int, left: int) -> Verdict:
    return credit.read_status(409, "Message Size Exceeds MaxBytes", messages, left).verdict


def test_a_request_is_for_twice_the_bytes_of_the_latest_messages_but_never_for_more_than_is_free() -> None:
    credit = a_credit(1000)
    assert credit.size(1000, 0) == 2 * 1000 * pull_credit.ASSUMED_SIZE
    credit.asked(1000, 2 * MIB)
    credit.count_received(500, 500 * 300)
    assert credit.size(500, 500 * 300) == 2 * 500 * 300
    credit.count_received(500, 500 * 5000)
    assert credit.size(1000, 0) == 1000 * 5000 * 2
    credit.count_received(1, MIB)
    assert credit.size(1000, 0) == 16 * MIB
    assert credit.size(1000, 15 * MIB) == MIB


def test_held_bytes_limit_requests_as_held_messages_do() -> None:
    credit = a_credit(1000, MIB)
    assert credit.want(1, MIB) == 0
    assert credit.want(1, MIB - pull_credit.SMALLEST_REQUEST + 1) == 0
    assert credit.want(1, MIB - pull_credit.SMALLEST_REQUEST) == 999
    assert credit.want(0, 0) == 1000, "a message larger than the limit of held bytes is requested alone"


def test_the_bytes_of_a_finished_request_are_returned() -> None:
    credit = a_credit(10)
    assert asked(credit, 0) == 10
    credit.count_received(4, 4 * SIZE)
    assert credit.read_status(409, "Batch Completed", 0, credit.outstanding_bytes - 50).verdict is Verdict.ASK_AGAIN
    assert (credit.outstanding, credit.outstanding_bytes) == (6, 50)
    assert too_large(credit, 6, 50) is Verdict.ASK_AGAIN
    assert (credit.outstanding, credit.outstanding_bytes) == (0, 0)


def test_a_request_filled_to_the_last_byte_is_finished() -> None:
    credit = a_credit(10)
    asked(credit, 0)
    credit.count_received(3, credit.outstanding_bytes)
    assert (credit.outstanding, credit.outstanding_bytes) == (0, 0)
    assert credit.want(3, 3 * SIZE) == 7


def test_a_status_after_its_last_message_does_not_affect_later_requests() -> None:
    credit = a_credit(2)
    assert asked(credit, 1) == 1
    left = credit.outstanding_bytes - SIZE
    credit.count_received(1, SIZE)
    assert asked(credit, 0) == 2
    assert credit.read_status(409, "Batch Completed", 0, left).verdict is Verdict.ASK_AGAIN
    credit.count_received(1, SIZE)
    assert (credit.outstanding, credit.want(1, SIZE)) == (1, 0), "the other message is still requested"


def test_a_message_that_is_too_large_is_requested_with_more_bytes_and_with_all_when_nothing_is_held() -> None:
    credit = a_credit(100, 2 * MIB)
    asked(credit, 0)
    credit.count_received(2, 2 * 900_000)
    too_large(credit, 98, credit.outstanding_bytes)
    assert credit.want(2, 2 * 900_000) == 0, "that would still be too little"
    assert asked(credit, 1, 900_000) > 0
    assert credit.outstanding_bytes >= 900_000
    credit.clear()
    assert asked(credit, 0) > 0
    while credit.outstanding_bytes < 5 * MIB:
        assert too_large(credit, credit.outstanding, credit.outstanding_bytes) is Verdict.ASK_AGAIN
        assert credit.want(1, 10_000) == 0, "larger than the limit of held bytes: it is requested alone"
        assert asked(credit, 0) > 0
    credit.count_received(1, 5 * MIB)
    credit.clear()
    assert credit.size(100, 0) == 2 * MIB


def test_nothing_is_borrowed_again_for_a_message_that_was_not_delivered() -> None:
    """The message was deleted, or delivered to another process."""
    budget = a_budget(1000)
    credit = a_credit(100, 16 * MIB, budget)
    asked(credit, 0)
    too_large(credit, 100, credit.outstanding_bytes)
    asked(credit, 0)
    assert credit.borrowed
    credit.read_status(408, "Request Timeout", 100, credit.outstanding_bytes)
    assert asked(credit, 0) == 100
    assert credit.outstanding_bytes == budget.share
    assert (credit.borrowed, budget.lent) == (False, 0)


def test_a_message_too_large_for_any_request_ends_in_an_error() -> None:
    credit = a_credit(100)
    for _ in range(64):
        asked(credit, 0)
        reading = credit.read_status(409, "Message Size Exceeds MaxBytes", None, None)
        if reading.verdict is Verdict.REOPEN:
            break
    assert (reading.verdict, reading.reason) == (Verdict.REOPEN, "consumer_limit")
    assert str(LARGEST_REQUEST) in reading.detail


def test_smaller_requests_are_tried_when_the_consumer_limits_their_bytes() -> None:
    credit = a_credit(1000)
    asked(credit, 0)
    while credit.size(1000, 0) > 40_000:
        assert credit.read_status(409, "Exceeded MaxRequestMaxBytes of 40000", None, None).verdict is Verdict.ASK_AGAIN
    assert asked(credit, 0) == 1000
    assert credit.outstanding_bytes > 20_000


@given(
    sizes=st.lists(st.integers(1, 3 * MIB), max_size=60) | st.lists(st.integers(1, 3 * SIZE), max_size=60),
    window=st.integers(1, 50),
    window_bytes=st.integers(1, 4 * MIB),
    consumers=st.integers(1, 400),
    rounds=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    late=st.lists(st.booleans(), min_size=1, max_size=60),
)
def test_every_message_is_delivered_in_the_end_within_the_limits(
    sizes: list[int], window: int, window_bytes: int, consumers: int, rounds: list[int], late: list[bool]
) -> None:
    """The server delivers what fits, one request after the other. Some statuses arrive a read later."""
    budget = a_budget(consumers)
    credit = a_credit(window, window_bytes, budget)
    backlog, held = deque(sizes), deque[int]()
    largest = max(sizes, default=0)
    requests: deque[list[int]] = deque()
    completed: list[tuple[int, int]] = []
    turn = idle = 0
    while backlog or held:
        before = (len(backlog), len(held), credit.size(1, sum(held)), len(requests))
        wanted = credit.want(len(held), sum(held))
        size = credit.size(wanted, sum(held)) if wanted else 0
        if size:
            credit.asked(wanted, size)
            requests.append([wanted, size])
        while completed:
            credit.read_status(409, "Batch Completed", *completed.pop())
        assert sum(messages for messages, _ in requests) <= credit.outstanding
        assert len(held) + credit.outstanding <= window
        assert sum(held) + credit.outstanding_bytes <= max(window_bytes, 2 * largest, 2 * pull_credit.SMALLEST_REQUEST)
        assert credit.outstanding_bytes <= budget.share + budget.lent
        while requests and backlog and backlog[0] > requests[0][1]:
            assert too_large(credit, *requests.popleft()) is Verdict.ASK_AGAIN
        if requests and backlog:
            held.append(backlog.popleft())
            requests[0][0] -= 1
            requests[0][1] -= held[-1]
            credit.count_received(1, held[-1])
            if not requests[0][0] or not requests[0][1]:
                messages, left = requests.popleft()
                if left:
                    completed.append((messages, left))
        if not late[turn % len(late)]:
            while completed:
                credit.read_status(409, "Batch Completed", *completed.pop())
        for _ in range(min(len(held), rounds[turn % len(rounds)])):
            held.popleft()
        turn += 1
        idle = idle + 1 if before == (len(backlog), len(held), credit.size(1, sum(held)), len(requests)) else 0
        assert idle < len(rounds) + 2 or not any(rounds), "it makes progress"
        if not any(rounds) and held and idle > 2:
            held.popleft()
    credit.clear()
    assert budget.lent == 0


def test_limits_lowered_by_statuses_are_restored_when_the_consumer_is_reopened() -> None:
    """A client that may publish to the inbox can forge them; the route must not stay slow for ever."""
    credit = a_credit(100)
    for description in ("Exceeded MaxRequestBatch of 1", "Exceeded MaxRequestMaxBytes of 1") * 30:
        credit.read_status(409, description, None, None)
    assert (credit.window, credit.size(1, 0)) == (1, 1)
    credit.reopened(100)
    assert credit.want(0, 0) == 100
    assert credit.size(100, 0) > 100 * SIZE


# --- messages of an earlier link or process, whose order only the server keeps ---


LARGEST = MIB + 8192


def redelivering(budget: PullBudget | None = None, window_bytes: int = 16 * MIB) -> PullCredit:
    credit = a_credit(1000, window_bytes, budget)
    credit.redeliver(LARGEST)
    return credit


def request(credit: PullCredit, held: int = 0, held_bytes: int = 0) -> tuple[int, int] | None:
    """Make the next request, and return its messages and its limit in bytes, 0 for none."""
    wanted = credit.want(held, held_bytes)
    size = credit.size(wanted, held_bytes) if wanted else 0
    if not size:
        return None
    batch = credit.batch(wanted, size)
    credit.asked(batch, size)
    return batch, credit.max_bytes(batch, size)


def test_redeliveries_are_requested_with_room_for_as_many_of_the_largest_size_and_one_request_at_a_time() -> None:
    credit = redelivering()
    assert request(credit) == (15, 16 * MIB)
    assert request(credit) is None
    credit.count_received(14, 14 * SIZE)
    assert request(credit, 14, 14 * SIZE) is None, "another request would get what this one has no room for"
    assert credit.want_again(9) == 0
    credit.redelivered(2 * SIZE)
    credit.count_received(1, SIZE)
    batch, limit = request(credit, 15, 15 * SIZE) or (0, 0)
    assert batch == 985, "all that is free, at twice the largest size that was seen"
    assert limit == LARGEST


def test_a_single_redelivery_is_requested_without_a_limit_of_bytes() -> None:
    """A share of the connection is a little more than a message of the largest size."""
    credit = redelivering(a_budget(12))
    assert request(credit) == (1, 0)
    assert credit.outstanding_bytes >= LARGEST


@pytest.mark.parametrize(("consumers", "window_bytes"), [(1, 16 * MIB), (1, 1000), (16, 16 * MIB), (400, 16 * MIB)])
def test_a_redelivery_that_had_no_room_is_put_back_and_the_next_request_has_no_limit(
    consumers: int, window_bytes: int
) -> None:
    credit = redelivering(a_budget(consumers), window_bytes)
    credit.redelivered(SIZE)
    assert request(credit)
    assert too_large(credit, credit.outstanding, credit.outstanding_bytes) is Verdict.ASK_AGAIN
    assert credit.moved
    credit.moved = False  # it was put back
    assert request(credit) == (1, 0)
    assert credit.outstanding_bytes >= LARGEST, "its room is accounted for, lent if the share is smaller"
    assert credit.borrowed == (consumers >= 16)


def test_redeliveries_end_when_nothing_is_due_and_with_the_link() -> None:
    for end in (PullCredit.nothing_due, lambda credit: credit.reopened(1000)):
        credit = redelivering()
        request(credit)
        too_large(credit, 15, credit.outstanding_bytes)
        end(credit)
        assert (credit.redelivers, credit.moved) == (False, False)


def test_a_change_of_leaders_moves_redeliveries() -> None:
    credit = redelivering()
    request(credit)
    assert credit.read_status(409, "Leadership Change", None, None).verdict is Verdict.ASK_AGAIN
    assert credit.moved
