"""The destinations that each strategy chooses, for one message and for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import EvaluationError
from router_trio.routing.policy.strategies import Candidate, Strategy, smooth_round, strategy_for


def holds(facts: set[str], what: str) -> bool:
    """Return whether the message, a set of words, contains `what`; fail if it contains `broken`."""
    if "broken" in facts:
        raise EvaluationError("no such key")
    return what in facts


def candidate(when: str | None = None, weight: int = 1, mirror: str | None = None, name: str = "") -> Candidate:
    evaluate = None if when is None else lambda facts: holds(facts, when)
    return Candidate(name.encode(), evaluate, weight, None if mirror is None else Fraction(mirror))


def chosen(strategy: Strategy, facts: set[str] | None = None, *, times: int = 1) -> list[tuple[int, ...]]:
    return [tuple(strategy.choose(facts or set())) for _ in range(times)]


def windows(turns: Sequence[Any], length: int) -> list[Sequence[Any]]:
    return [turns[start : start + length] for start in range(len(turns) - length + 1)]


# --- all ---


def test_all_chooses_every_destination_without_an_allocation() -> None:
    strategy = strategy_for("all", [candidate(), candidate(), candidate()])
    assert chosen(strategy) == [(0, 1, 2)]
    assert strategy.choose(set()) is strategy.choose(set())


@pytest.mark.parametrize(
    ("facts", "expected"), [({"a", "b"}, (0, 1, 2)), ({"a"}, (0, 1)), ({"b"}, (1, 2)), (set[str](), (1,))]
)
def test_all_evaluates_the_condition_of_each_destination(facts: set[str], expected: tuple[int, ...]) -> None:
    strategy = strategy_for("all", [candidate("a"), candidate(), candidate("b")])
    assert chosen(strategy, facts) == [expected]


def test_all_chooses_nothing_if_no_condition_holds() -> None:
    assert chosen(strategy_for("all", [candidate("a"), candidate("b")]), {"c"}) == [()]


def test_a_condition_that_fails_fails_the_message() -> None:
    with pytest.raises(EvaluationError):
        strategy_for("all", [candidate(), candidate("a")]).choose({"broken"})


# --- first_match ---


@pytest.mark.parametrize(("facts", "expected"), [({"a", "b"}, (0,)), ({"b"}, (1,)), (set[str](), (2,))])
def test_first_match_chooses_the_first_destination_whose_condition_holds(
    facts: set[str], expected: tuple[int, ...]
) -> None:
    strategy = strategy_for("first_match", [candidate("a"), candidate("b"), candidate()])
    assert chosen(strategy, facts) == [expected]


def test_first_match_chooses_nothing_if_no_condition_holds() -> None:
    assert chosen(strategy_for("first_match", [candidate("a"), candidate("b")]), {"c"}) == [()]


def test_first_match_evaluates_no_condition_after_the_first_that_holds() -> None:
    never = Candidate(b"", lambda facts: pytest.fail("evaluated"))
    assert chosen(strategy_for("first_match", [candidate("a"), never]), {"a"}) == [(0,)]


def test_first_match_fails_at_the_first_condition_that_fails() -> None:
    with pytest.raises(EvaluationError):
        strategy_for("first_match", [candidate("a"), candidate()]).choose({"broken"})


# --- weighted ---


def test_weighted_is_the_smooth_weighting_of_nginx() -> None:
    strategy = strategy_for("weighted", [candidate(weight=5), candidate(), candidate()])
    assert chosen(strategy, times=7) == [(0,), (0,), (1,), (0,), (2,), (0,), (0,)]


def test_weights_of_one_two_and_seven_are_exact_in_every_window_of_ten() -> None:
    strategy = strategy_for("weighted", [candidate(weight=weight) for weight in (1, 2, 7)])
    counts = [Counter(window) for window in windows(chosen(strategy, times=10_000), 10)]
    assert all(count == {(0,): 1, (1,): 2, (2,): 7} for count in counts)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_every_window_of_one_round_is_exact(weights: list[int]) -> None:
    turns = smooth_round(weights)
    length = len(turns)
    assert sum(weights) % length == 0
    share = sum(weights) // length
    for window in windows(turns * 2, length):
        assert {at: count * share for at, count in Counter(window).items()} == dict(enumerate(weights))


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_turns_are_spread_evenly(weights: list[int]) -> None:
    turns = smooth_round(weights)
    for at, weight in enumerate(weights):
        for length in range(1, len(turns)):
            due = Fraction(weight * length, sum(weights))
            assert abs(turns[:length].count(at) - due) < len(weights), "a destination is far ahead or behind"


def test_only_the_proportion_of_weights_counts() -> None:
    assert len(smooth_round([1000, 500])) == 3


@given(st.lists(st.binary(max_size=3), max_size=20))
def test_a_key_read_from_a_header_chooses_like_its_text(values: list[bytes]) -> None:
    def text(facts: Any) -> str:
        return str(facts.decode("utf-8", "surrogateescape"))

    places = [candidate(name=f"d{number}") for number in range(5)]
    direct = strategy_for("sticky", places, key=text, key_header=lambda raw: raw[0]).choose_raw
    assert direct is not None
    for value in values * 2:
        strategy = strategy_for("sticky", places, key=text)
        assert strategy.choose_raw is None
        assert direct((value, b"", 0, 0, b"")) == strategy.choose(value)


def test_weighted_leaves_out_mirrors() -> None:
    strategy = strategy_for("weighted", [candidate(weight=2), candidate(mirror="1"), candidate()])
    assert chosen(strategy, times=3) == [(0, 1), (2, 1), (0, 1)]


# --- fallback ---


def test_fallback_chooses_the_first_healthy_destination_and_returns_to_it() -> None:
    ill: set[int] = set()
    strategy = strategy_for("fallback", [candidate(), candidate(), candidate()], healthy=lambda index: index not in ill)
    found = []
    for now in (set[int](), {0}, {0, 1}, {1}, {0, 1, 2}):
        ill.clear()
        ill.update(now)
        found += chosen(strategy)
    assert found == [(0,), (1,), (2,), (0,), (0,)]


def test_fallback_uses_the_index_in_the_configuration() -> None:
    asked: list[int] = []

    def healthy(index: int) -> bool:
        asked.append(index)
        return index == 2

    strategy = strategy_for("fallback", [candidate(mirror="1"), candidate(), candidate()], healthy=healthy)
    assert chosen(strategy) == [(2, 0)]
    assert asked == [1, 2]


# --- mirrors ---


@given(st.fractions(0, 1, max_denominator=50).filter(bool), st.integers(1, 60))
def test_a_mirror_gets_its_share_of_every_window_to_within_one(share: Fraction, length: int) -> None:
    strategy = strategy_for("all", [candidate(), Candidate(b"", mirror=share)])
    copies = [1 in places for places in chosen(strategy, times=300)]
    for window in windows(copies, length):
        assert abs(sum(window) - share * length) < 1


def test_a_share_of_a_tenth_is_exact() -> None:
    strategy = strategy_for("all", [candidate(), candidate(mirror="0.1")])
    assert sum(1 in places for places in chosen(strategy, times=100_000)) == 10_000


def test_each_mirror_counts_by_itself_and_only_routed_messages() -> None:
    strategy = strategy_for("first_match", [candidate("a"), candidate(mirror="1/2"), candidate(mirror="1")])
    found = [strategy.choose(facts) for facts in ({"a"}, {"b"}, {"a"}, set[str](), {"a"}, {"a"})]
    assert [tuple(one) for one in found] == [(0, 2), (), (0, 1, 2), (), (0, 2), (0, 1, 2)]


def test_a_failing_message_does_not_count() -> None:
    strategy = strategy_for("all", [candidate("a"), candidate(mirror="1/2")])
    found = []
    for facts in ({"a"}, {"broken"}, {"a"}):
        try:
            found.append(tuple(strategy.choose(facts)))
        except EvaluationError:
            found.append(())
    assert found == [(0,), (), (0, 1)]


# --- redeliveries ---


@pytest.mark.parametrize("name", ["all", "first_match", "weighted", "sticky"])
def test_a_redelivered_message_keeps_its_choice_and_does_not_count(name: str) -> None:
    def made() -> Strategy:
        options = [candidate(weight=2, name="x"), candidate(weight=3, name="y"), candidate(mirror="1/3")]
        return strategy_for(name, options, key=lambda facts: len(facts))

    once, retried = made(), made()
    for _ in range(20):
        choice = retried.choose(set())
        assert tuple(retried.choose_again(choice)) == tuple(choice) == tuple(once.choose(set()))


def test_an_undelivered_message_may_fall_back_and_keeps_its_mirrors() -> None:
    ill: set[int] = set()
    options = [candidate(), candidate(), candidate(mirror="1/2"), candidate(mirror="1")]
    strategy = strategy_for("fallback", options, healthy=lambda index: index not in ill)
    first, second = strategy.choose(None), strategy.choose(None)
    ill.add(0)
    assert [tuple(first), tuple(strategy.choose_again(first))] == [(0, 3), (1, 3)]
    assert [tuple(second), tuple(strategy.choose_again(second))] == [(0, 2, 3), (1, 2, 3)]


STATEFUL: list[Callable[[], Strategy]] = [
    lambda: strategy_for("weighted", [candidate(weight=2), candidate(weight=3)]),
    lambda: strategy_for("all", [candidate(), candidate(mirror="1/3")]),
]


@pytest.mark.parametrize("made", STATEFUL)
def test_each_route_counts_by_itself(made: Callable[[], Strategy]) -> None:
    one, other = made(), made()
    expected = chosen(made(), times=6)
    mixed = [tuple(strategy.choose(set())) for _ in range(6) for strategy in (one, other)]
    assert mixed[::2] == mixed[1::2] == expected
