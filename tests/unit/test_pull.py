"""How much is asked of a pull consumer, and what its statuses mean."""

from __future__ import annotations

import pytest

from router_trio.pull import PullCredit, Verdict


def asked(credit: PullCredit, held: int) -> int:
    wanted = credit.want(held)
    credit.asked(wanted)
    return wanted


def test_the_whole_window_is_asked_for_at_once_and_topped_up_when_half_of_it_is_free() -> None:
    credit = PullCredit(10)
    assert asked(credit, 0) == 10
    assert asked(credit, 0) == 0
    credit.received(10)
    assert asked(credit, 10) == 0
    credit = PullCredit(10)
    asked(credit, 0)
    credit.received(4)
    assert asked(credit, 0) == 0, "less than half is free"
    credit.received(1)
    assert asked(credit, 0) == 5
    assert credit.outstanding == 10


def test_whatever_is_free_is_asked_for_when_nothing_is_outstanding() -> None:
    credit = PullCredit(10)
    assert asked(credit, 9) == 1
    assert asked(credit, 9) == 0
    assert PullCredit(1).want(0) == 1
    assert PullCredit(1).want(1) == 0


def test_never_more_than_the_window_is_asked_for_and_held() -> None:
    credit = PullCredit(7)
    held = 0
    for step in range(500):
        asked(credit, held)
        assert credit.outstanding + held <= 7
        if step % 3 and credit.outstanding:
            credit.received(1)
            held += 1
        elif held:
            held -= 1


def test_more_than_was_asked_for_leaves_no_debt() -> None:
    credit = PullCredit(4)
    asked(credit, 0)
    credit.received(6)
    assert credit.outstanding == 0
    assert credit.want(2) == 2


@pytest.mark.parametrize(("unfilled", "left"), [(3, 7), (10, 0), (None, 0), (99, 0)])
@pytest.mark.parametrize("code", [404, 408])
def test_a_request_that_ended_gives_back_what_it_did_not_bring(code: int, unfilled: int | None, left: int) -> None:
    credit = PullCredit(10)
    asked(credit, 0)
    reading = credit.status(code, "Request Timeout", unfilled)
    assert reading.verdict is Verdict.ASK_AGAIN
    assert credit.outstanding == left


def test_a_heartbeat_changes_nothing() -> None:
    credit = PullCredit(10)
    asked(credit, 0)
    assert credit.status(100, "Idle Heartbeat", None).verdict is Verdict.GO_ON
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
    credit = PullCredit(10)
    asked(credit, 0)
    reading = credit.status(code, description, None)
    assert (reading.verdict, reading.reason) == (verdict, reason)
    assert credit.outstanding == 0
    assert (reading.detail != "") == (verdict is Verdict.REOPEN)


def test_a_smaller_batch_is_tried_when_the_server_refuses_a_large_one_until_there_is_none() -> None:
    credit = PullCredit(10)
    sizes = []
    while credit.status(409, "Exceeded MaxRequestBatch of 0", None).verdict is Verdict.ASK_AGAIN:
        sizes.append(credit.window)
    assert sizes == [5, 2, 1]


def test_what_is_due_again_is_asked_for_whatever_is_held() -> None:
    credit = PullCredit(10)
    assert (credit.want(10), credit.want_again(3), credit.want_again(0), credit.want_again(99)) == (0, 3, 0, 10)
    credit.asked(2)
    assert (credit.want_again(3), credit.want_again(1)) == (1, 0)
