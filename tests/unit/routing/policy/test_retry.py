"""When a failed message is retried: delays grow and are random, many are spread, and some failures are final."""

from __future__ import annotations

from bisect import bisect_left
from random import Random
from typing import Any

import pytest

from router_trio.routing.policy import retry
from router_trio.routing.policy.retry import (
    LONGEST_SPREAD,
    LONGEST_SPREAD_BY_HANDLER,
    LONGEST_SPREAD_BY_LIMIT,
    Failure,
    HalfOfLimit,
    RetryPolicy,
    policy_for,
)
from router_trio.settings import LimitSettings, RetrySettings, RouteSettings

RAISED = Failure("handler_error", "ValueError: x", ValueError)


def policy(most_in_hand: int = 1024, **settings: Any) -> RetryPolicy:
    """Return a policy that draws the longest delays."""
    return RetryPolicy(RetrySettings(**settings), most_in_hand, lambda low, high: high)


def test_the_last_attempt_is_final() -> None:
    one = policy(attempts=3)
    assert [one.over(RAISED, attempts) for attempts in (1, 2, 3, 4)] == [False, False, True, True]
    assert one.gives_up


def test_without_a_limit_attempts_never_end() -> None:
    one = policy()
    assert not one.over(RAISED, 10**6)
    assert not one.gives_up


def test_a_rejected_message_is_not_retried() -> None:
    assert policy().over(Failure("rejected"), 1)


@pytest.mark.parametrize(
    ("reasons", "over"),
    [
        (["mapping"], False),
        (["handler_error"], True),
        (["handler_error:UnicodeDecodeError"], True),
        (["handler_error:ValueError"], True),
        (["handler_error:KeyError", "handler_error:TypeError"], False),
    ],
)
def test_an_error_of_a_handler_is_matched_by_its_class_and_base_classes(reasons: list[str], over: bool) -> None:
    failure = Failure("handler_error", "", UnicodeDecodeError)
    one = policy(never=reasons)
    assert one.over(failure, 1) is over
    assert one.gives_up


def test_reasons_of_destinations_are_matched_by_name() -> None:
    one = policy(never=["too_large", "jetstream_10054"])
    reasons = ("too_large", "jetstream_10054", "timeout", "handler_error")
    assert [one.over(Failure(reason), 1) for reason in reasons] == [True, True, False, False]


def test_delays_grow_up_to_the_maximum() -> None:
    one = policy()
    delays = [one.delay(RAISED, attempts, 1000.0 * attempts) for attempts in range(1, 9)]
    assert [round(delay) for delay in delays] == [1, 2, 4, 8, 16, 32, 60, 60]
    one = policy(initial="100ms", factor=3.0, max="5s")
    delays = [one.delay(RAISED, attempts, 1000.0 * attempts) for attempts in (1, 2, 3, 4, 5, 1000, 10**9)]
    assert [round(delay, 1) for delay in delays] == [0.1, 0.3, 0.9, 2.7, 5.0, 5.0, 5.0]


def test_a_delay_is_drawn_between_zero_and_the_bound() -> None:
    one = RetryPolicy(RetrySettings(initial="10s"), 10**9, Random(1).uniform)
    delays = sorted(one.delay(RAISED, 1, 1000.0 * number) for number in range(1000))
    assert 0 <= delays[0] < 0.1
    assert 4 < delays[500] < 6
    assert 9.9 < delays[-1] <= 10.1


def test_a_handler_gets_exactly_the_delay_that_it_asks_for() -> None:
    one = policy(initial="10ms", max="20ms")
    assert [one.delay(Failure("retry", after=30.0), attempts, 0.0) for attempts in (1, 2, 9)] == [30.0, 30.0, 30.0]


@pytest.mark.parametrize("max_in_flight", [1, 10, 1024])
def test_retries_of_many_messages_are_spread(max_in_flight: int) -> None:
    one = policy(max_in_flight)
    due = sorted(one.delay(RAISED, 1, 0.0) for _ in range(40 * max_in_flight))
    most = max(bisect_left(due, start + 1) - bisect_left(due, start) for start in due if start < LONGEST_SPREAD)
    assert most <= max(1, max_in_flight // 2) + 1
    assert max(due) <= 1 + LONGEST_SPREAD, "the spread is bounded"


def limited(rate: str, burst: int | None = None) -> LimitSettings:
    return LimitSettings(rate=rate) if burst is None else LimitSettings(rate=rate, burst=burst)


@pytest.mark.parametrize(
    ("rate", "burst", "per_second"), [("30/s", 5, 30), ("1800/m", 100, 30), ("10/h", None, 1 / 360)]
)
def test_retries_use_up_at_most_half_of_the_limit(rate: str, burst: int | None, per_second: float) -> None:
    limit = limited(rate, burst)
    one = RetryPolicy(RetrySettings(initial="10ms"), 10**9, lambda low, high: low, limit)
    due = sorted(one.delay(RAISED, 1, 0.0, b"") for _ in range(200))
    for first, start in enumerate(due):
        if start >= LONGEST_SPREAD_BY_LIMIT:
            break
        for last in range(first, len(due)):
            if due[last] < LONGEST_SPREAD_BY_LIMIT:
                admitted = max(1.0, limit.most_at_once / 2) + per_second / 2 * (due[last] - start)
                assert last - first + 1 <= admitted + 1e-6
    assert max(due) <= LONGEST_SPREAD_BY_LIMIT, "the spread is bounded"


def test_retries_that_are_over_give_their_share_back() -> None:
    one = RetryPolicy(RetrySettings(initial="10ms"), 10**9, lambda low, high: low, limited("10/s", 1))
    assert [round(one.delay(RAISED, 1, 0.0, b""), 1) for _ in range(4)] == [0.0, 0.2, 0.4, 0.6]
    assert round(one.delay(RAISED, 1, 0.5, b""), 1) == 0.3
    assert one.delay(RAISED, 1, 10.0, b"") < 0.1


def test_each_value_has_half_of_its_own_limit() -> None:
    one = RetryPolicy(RetrySettings(initial="10ms"), 10**9, lambda low, high: low, limited("1/s", 1))
    assert [round(one.delay(RAISED, 1, 0.0, value)) for value in (b"a", b"b", b"a", b"b", b"c")] == [0, 0, 2, 2, 0]
    assert round(one.delay(RAISED, 1, 0.0, b"a" * 1000)) == 0


def test_an_attempt_that_uses_up_nothing_of_the_limit_does_not_wait_for_it() -> None:
    one = RetryPolicy(RetrySettings(initial="10ms"), 10**9, lambda low, high: low, limited("1/h"))
    assert max(one.delay(RAISED, 1, 0.0) for _ in range(100)) < 0.1


def test_retries_use_up_at_most_half_of_the_time_of_a_handler() -> None:
    one = RetryPolicy(RetrySettings(initial="10ms"), 10**9, lambda low, high: low, concurrency=2)
    assert one.delay(RAISED, 1, 0.0) < 0.1
    one.of_handler.used(3.0, 3.0)
    one.of_handler.used(5.0, 5.0)
    assert one.delay(RAISED, 2, 5.0) == pytest.approx(6.0), "both calls end at 11 s, if each is one of two"
    assert one.delay(Failure("retry", after=1.0), 2, 5.0) == 1.0
    assert one.backoff(2, 5.0) < 0.1, "only its dead letter is sent"
    assert one.delay(RAISED, 2, 20.0) < 0.1, "time without retries is not saved up"
    one.of_handler.used(10_000.0, 20.0)
    assert one.delay(RAISED, 2, 20.0) == LONGEST_SPREAD_BY_HANDLER, "the spread is bounded"


def test_values_without_planned_retries_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    half = HalfOfLimit(limited("1/s", 1))
    for number in range(1000):
        half.wait(b"%d" % number, number * 1.0)
    assert len(half) <= 3
    monkeypatch.setattr(retry, "MOST_VALUES", 2)
    half = HalfOfLimit(limited("1/s", 1))
    assert [half.wait(value, 0.0) for value in (b"a", b"b", b"c", b"d", b"a")] == [0, 0, 0, 2, 2], "others share one"
    assert len(half) == 2


def test_without_settings_a_stream_retries_for_ever_and_a_subject_never() -> None:
    def made(**source: str) -> RetryPolicy:
        return policy_for(RouteSettings(name="r", source=source, to=[{"subject": "x"}]), lambda low, high: high)

    assert not made(stream="S", durable="d").over(RAISED, 1000)
    assert made(subject="a").over(RAISED, 1)
