"""At most burst + rate x t messages pass in any time t, whenever they arrive."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router_trio.routing.policy.limit import LONGEST_VALUE, Limit, ValueLimits

RATES = st.tuples(st.integers(1, 10_000), st.sampled_from([1, 60, 3600]))
BURSTS = st.integers(1, 50)
GAPS = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 1e-6), st.floats(0, 0.1), st.floats(0, 100), st.floats(0, 5000)), max_size=60
)


def assert_bounded(passed: list[float], messages: int, seconds: int, burst: float) -> None:
    """Assert at most burst + rate x t in each time from one message to another, both included."""
    times = sorted(Counter(int(at * 1e9) for at in passed).items())
    for first, (begin, _) in enumerate(times):
        count = 0
        for end, more in times[first:]:
            count += more
            # count <= burst + rate x t, in whole numbers.
            assert (count - burst) * seconds * 10**9 <= messages * (end - begin), (begin, end, count)


@given(RATES, BURSTS, GAPS, st.integers(1, 100), st.floats(0, 1e8))
def test_no_interval_has_more_messages_than_burst_and_rate(
    rate: tuple[int, int], burst: int, gaps: list[float], wanted: int, now: float
) -> None:
    limit = Limit(*rate, burst)
    passed: list[float] = []
    for gap in gaps:
        now += gap
        count = min(limit.available(now), wanted)
        limit.charge(count, now)
        passed += [now] * count
    assert_bounded(passed, *rate, burst)


@given(RATES, BURSTS, st.floats(0, 1e8))
def test_a_message_may_pass_exactly_at_the_time_given_by_the_limit(
    rate: tuple[int, int], burst: int, now: float
) -> None:
    limit = Limit(*rate, burst)
    assert limit.available(now) == burst
    limit.charge(burst, now)
    for count in (1, burst):
        at = limit.free_at(count)
        assert limit.available(at) >= count
        assert limit.available(at - 2e-6) < count or at - 2e-6 < now
    assert limit.free_at(burst + 1) == inf


@given(RATES, BURSTS, GAPS, st.integers(0, 49))
def test_returned_tokens_count_as_never_taken(
    rate: tuple[int, int], burst: int, gaps: list[float], returned: int
) -> None:
    limit, other = Limit(*rate, burst), Limit(*rate, burst)
    now, passed = 5.0, []
    for gap in gaps:
        now += gap
        count = limit.available(now)
        limit.charge(count, now)
        limit.give_back(min(returned, count))
        kept = count - min(returned, count)
        other.charge(kept, now)
        assert limit.available(now) == other.available(now)
        passed += [now] * kept
    assert_bounded(passed, *rate, burst)


@given(
    RATES,
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 3)), max_size=80),
    st.integers(0, 6),
)
def test_each_value_has_its_own_limit_however_few_are_remembered(
    rate: tuple[int, int], burst: int, arrivals: list[tuple[str, float]], most: int
) -> None:
    limits = ValueLimits(*rate, burst, most=most)
    now = 0.0
    passed: dict[str, list[float]] = defaultdict(list)
    for value, gap in arrivals:
        now += gap
        again = limits.charge(value.encode(), now)
        if not again:
            passed[value].append(now)
        else:
            assert again > now
        assert len(limits) <= most
    for times in passed.values():
        assert_bounded(times, *rate, burst)


@given(RATES, BURSTS, st.lists(st.floats(0, 10), max_size=60))
def test_a_single_value_is_limited_like_a_plain_limit(rate: tuple[int, int], burst: int, gaps: list[float]) -> None:
    limits, limit = ValueLimits(*rate, burst), Limit(*rate, burst)
    now = 0.0
    for gap in gaps:
        now += gap
        goes = limit.available(now) > 0
        if goes:
            limit.charge(1, now)
        again = limits.charge(b"x", now)
        assert (again == 0) is goes
        assert goes or again == limit.free_at()


@given(
    RATES,
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.5)), max_size=40),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=40),
    st.floats(0, 100),
    st.integers(0, 6),
)
def test_messages_passed_while_time_stood_still_stay_within_the_limit(
    rate: tuple[int, int],
    burst: int,
    before: list[tuple[str, float]],
    after: list[tuple[str, float]],
    stood_still: float,
    most: int,
) -> None:
    """Messages sent since the clock stopped get through when it continues, all at once, if that is within a burst."""
    limits = ValueLimits(*rate, burst, most=most)
    since = now = limits.answered_until = 1.0
    passed: dict[str, list[float]] = defaultdict(list)
    through = since + stood_still + sum(gap for _, gap in before)
    for value, gap in before:
        now += gap
        if not limits.charge(value.encode(), now):
            passed[value].append(through)
    for times in passed.values():
        assume(len(times) <= burst)
    limits.stand_still(since, through)
    now = through
    for value, gap in after:
        now += gap
        again = limits.charge(value.encode(), now)
        if not again:
            passed[value].append(now)
        else:
            assert again > now
    for times in passed.values():
        assert_bounded(times, *rate, burst)


@given(RATES, BURSTS, st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=20))
def test_a_clock_stopped_repeatedly_falls_behind_no_more_than_one_stopped_once(
    rate: tuple[int, int], burst: int, stops: list[tuple[float, float]]
) -> None:
    """A message waits no longer than if the clock had been stopped once, from the earliest of these times."""
    limits = ValueLimits(*rate, burst)
    now = earliest = 100.0
    for _ in range(burst):
        assert limits.charge(b"x", now) == 0
    for gap, back in stops:
        now += gap
        limits.stand_still(now - back, now)
        earliest = min(earliest, now - back)
    messages, seconds = rate
    assert limits.charge(b"x", now) <= now + (100.0 - earliest) + seconds / messages + 1e-6


def test_a_bucket_that_was_full_only_while_the_clock_stood_still_is_remembered() -> None:
    limits = ValueLimits(2, 1, 1)
    limits.answered_until = 1.0
    assert limits.charge(b"b", 1.0) == 0
    assert limits.charge(b"a", 1.5) == 0
    limits.stand_still(1.0, 1.5)
    assert limits.charge(b"b", 1.5) > 1.5
    limits.answered_until = 4.0
    assert limits.charge(b"c", 4.0) == 0
    assert len(limits) == 1


def test_overlapping_stops_of_a_clock_are_counted_once() -> None:
    limits = ValueLimits(1, 1, 1)
    assert limits.charge(b"x", 10.0) == 0
    limits.stand_still(10.0, 14.0)
    limits.stand_still(10.0, 18.0)
    limits.stand_still(12.0, 16.0)
    assert limits.charge(b"x", 18.0) == pytest.approx(19.0)
    assert limits.charge(b"x", 19.1) == 0


def test_other_values_overtake_a_waiting_one() -> None:
    limits = ValueLimits(1, 60, 1)
    assert limits.charge(b"a", 0.0) == 0
    assert limits.charge(b"a", 0.0) == pytest.approx(60.0)
    assert limits.charge(b"b", 0.0) == 0


@pytest.mark.slow
def test_a_million_values_take_bounded_memory() -> None:
    """A million values arrive within a minute: each bucket is full again after a second, and forgotten."""
    limits = ValueLimits(1, 1, 1)
    for number in range(1_000_000):
        limits.charge(b"s%d" % number, number * 60e-6)
        assert len(limits) < 20_000
    # None is ever full again: a thousand values have their own bucket, and the others share one.
    limits = ValueLimits(1, 3600, 1, most=1_000)
    passed = sum(not limits.charge(b"s%d" % number, number * 60e-6) for number in range(100_000))
    assert len(limits) == 1_000
    assert passed == 1_001


def test_long_values_are_kept_as_hashes() -> None:
    limits = ValueLimits(1, 3600, 1)
    long = b"s" + b"x" * 1_000_000
    assert limits.charge(long, 0.0) == 0
    assert limits.charge(long, 0.0) > 0
    assert limits.charge(long + b"y", 0.0) == 0
    assert max(sys.getsizeof(value) for value in limits._full_at) <= sys.getsizeof(b"x" * LONGEST_VALUE)


@given(RATES, BURSTS, GAPS, st.integers(0, 60), st.integers(0, 60))
def test_a_limit_that_continues_an_equal_one_admits_no_burst(
    rate: tuple[int, int], burst: int, gaps: list[float], wanted: int, after: int
) -> None:
    limit, now, passed = Limit(*rate, burst), 5.0, []
    for number, gap in enumerate(gaps):
        now += gap
        if number == after:
            before, limit = limit, Limit(*rate, burst)
            limit.go_on(before, now)
        count = min(limit.available(now), wanted)
        limit.charge(count, now)
        passed += [now] * count
    assert_bounded(passed, *rate, burst)


@given(RATES, BURSTS, RATES, BURSTS, st.integers(0, 50))
def test_a_limit_that_continues_another_lacks_the_tokens_that_were_taken(
    rate: tuple[int, int], burst: int, next_rate: tuple[int, int], next_burst: int, taken: int
) -> None:
    taken, now = min(taken, burst), 5.0
    before, limit = Limit(*rate, burst), Limit(*next_rate, next_burst)
    before.charge(taken, now)
    limit.go_on(before, now)
    assert limit.available(now) == max(0, next_burst - taken)


def test_the_limits_of_values_that_continue_others_admit_no_burst() -> None:
    before, limits = ValueLimits(1, 60, 3), ValueLimits(1, 10, 5)
    for _ in range(3):
        assert before.charge(b"a", 100.0) == 0.0
    assert before.charge(b"b", 100.0) == 0.0
    limits.go_on(before, 100.0)
    assert [limits.charge(b"a", 100.0) for _ in range(2)] == [0.0, 0.0]
    assert limits.charge(b"a", 100.0) == pytest.approx(110.0)
    assert [limits.charge(b"b", 100.0) for _ in range(4)] == [0.0] * 4
    assert limits.charge(b"b", 100.0) > 100.0
    assert [limits.charge(b"c", 100.0) for _ in range(5)] == [0.0] * 5
