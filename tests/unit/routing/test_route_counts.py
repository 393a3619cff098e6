"""The total counts of a route whose settings have changed: sums over its generations, also after earlier ones ended."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.route_counts import MOST_PAST_DESTINATIONS, continue_counts, total
from router_trio.states import NOT_LOOKED_UP, BreakerState, DestinationState, Held, RouteCounts, RouteState
from tests.support.compiled import looks_inside

COUNTS = st.lists(st.integers(0, 50), min_size=6, max_size=6)


def settle(state: RouteState) -> None:
    """End a generation, with nothing in hand."""
    state.fates["lost"] += state.in_hand
    state.elapsed.record(1.0, state.in_hand)
    state.is_over = True


def counted(counts: list[int], templates: tuple[str, ...] = ("a", "b"), *, from_stream: bool = False) -> RouteState:
    """Return a state with these numbers of messages routed, forwarded, failed, filtered, redelivered, and in hand."""
    routed, forwarded, failed, filtered, again, in_hand = counts
    state = RouteState("route", "main", templates)
    state.received = routed + forwarded + failed + filtered + in_hand
    state.duplicates = again
    state.delivered[templates[-1]] = routed
    state.fates["routed"] += routed
    state.forwarded.record(0.1, forwarded)
    state.failed["mapping"] += failed
    state.fates["lost"] += failed
    state.filter_out("when", filtered)
    if from_stream:
        state.held_by(Held(in_hand))
        state.elapsed.record(1.0, routed)  # the others are settled without a duration
    else:
        state.elapsed.record(1.0, routed + failed + filtered)
    return state


def assert_sums(state: RouteState, parts: list[RouteState]) -> None:
    assert state.received == sum(one.received for one in parts)
    assert state.in_hand == sum(one.in_hand for one in parts)
    assert sum(state.routed.values()) == sum(sum(one.routed.values()) for one in parts)
    assert sum(state.durations.counts) == sum(sum(one.durations.counts) for one in parts)
    assert state.failed["mapping"] == sum(one.failed["mapping"] for one in parts)
    for fate in state.settled:
        assert state.settled[fate] == sum(one.settled[fate] for one in parts)
    assert state.received_in_all == state.in_hand + sum(state.settled.values())


@given(st.lists(st.tuples(COUNTS, st.booleans()), min_size=1, max_size=4))
def test_the_total_of_a_route_is_the_sum_over_its_generations(drawn: list[tuple[list[int], bool]]) -> None:
    states = [counted(counts, from_stream=from_stream) for counts, from_stream in drawn]
    same = [counted(counts, from_stream=from_stream) for counts, from_stream in drawn]
    for earlier, later in pairwise(states):
        continue_counts(later, earlier)
    now = states[-1]
    for _ in range(2):  # computing the total changes nothing
        assert_sums(total(now), same)
    # The messages in hand are settled, one generation after the other.
    for state, copy in zip(states, same, strict=True):
        for one in (state, copy):
            left = one.in_hand
            one.fates["lost"] += left
            one.elapsed.record(2.0, left)
            if one.holder.in_hand is not None:
                one.held_by(Held(0))
            one.is_over = True
        assert_sums(total(now), same)
    assert total(now) is now
    assert now.earlier == []


def test_the_total_of_a_state_without_a_past_is_itself() -> None:
    state = counted([1, 2, 3, 4, 5, 6])
    assert total(state) is state


def test_past_destinations_keep_their_counts() -> None:
    now, before = counted([1, 0, 0, 0, 0, 0], ("c",)), counted([2, 3, 0, 0, 0, 1], ("a", "b"))
    continue_counts(now, before)
    assert total(now).routed == {"a": 3, "b": 2, "c": 1}
    assert total(now).destinations == ("c",)


def test_the_openings_of_breakers_are_added_and_their_state_is_the_current_one() -> None:
    now, before = counted([0] * 6), counted([0, 0, 0, 0, 0, 1])
    now.openings.update({("main", "a"): 1, ("edge", "a"): 100})
    before.openings.update({("main", "a"): 10, ("main", "gone"): 1000})
    continue_counts(now, before)
    # The breakers may be made after earlier generations are added.
    now.breakers = [BreakerState("main", "a")]
    before.breakers = [BreakerState("main", "a"), BreakerState("main", "gone")]
    before.breakers[0].state = "open"
    expected = {("main", "a"): 11, ("edge", "a"): 100, ("main", "gone"): 1000}
    assert total(now).openings == expected
    assert [one.state for one in total(now).breakers] == ["closed"]
    settle(before)
    for _ in range(2):
        assert total(now) is now
        assert now.openings == expected


def test_the_openings_of_a_breaker_removed_and_added_again_are_kept() -> None:
    before = counted([0] * 6)
    before.breakers = [BreakerState("main", "a")]
    before.openings["main", "a"] = 3
    settle(before)
    without, now = counted([0] * 6), counted([0] * 6)
    continue_counts(without, before)
    settle(without)
    continue_counts(now, without)
    now.breakers = [BreakerState("main", "a")]
    now.openings["main", "a"] += 1
    assert total(now).openings == {("main", "a"): 4}


def test_the_oldest_openings_of_past_breakers_are_forgotten() -> None:
    state = counted([0] * 6, ("t0",))
    state.openings["main", "t0"] = 1
    for number in range(1, 3 * MOST_PAST_DESTINATIONS):
        settle(state)
        before, state = state, counted([0] * 6, (f"t{number}",))
        continue_counts(state, before)
        state.openings["main", f"t{number}"] += 1
        assert total(state).openings["main", f"t{number - 1}"] == 1
        assert len(state.openings) <= MOST_PAST_DESTINATIONS + 1


@pytest.mark.parametrize("over_by", ["while it is built", "later"])
def test_earlier_deliveries_to_a_destination_do_not_clear_its_trouble(over_by: str) -> None:
    before = counted([3, 2, 0, 0, 0, 1], ("a",))
    before.fates["dead_lettered"] = 1
    now = counted([0] * 6, ("a",))
    if over_by == "while it is built":
        settle(before)
    continue_counts(now, before)
    to = DestinationState(now, "main", "a", "a", waits_for_puback=True, shown={})
    dead = DestinationState(now, "main", "dead", "dead", waits_for_puback=True, shown={}, dead_letters=True)
    if over_by == "later":
        settle(before)
    assert total(now) is now
    assert (now.routed["a"], now.dead_lettered) == (5, 1)
    assert (to.trouble, dead.trouble) == (NOT_LOOKED_UP, NOT_LOOKED_UP)
    now.delivered["a"] += 1
    now.fates["dead_lettered"] += 1
    assert (to.trouble, dead.trouble) == (None, None)


COUNTED = {
    "received", "failed", "filtered", "given_up", "duplicates", "delivered", "delivered_earlier", "elapsed", "fates",
    "mirror_failed", "unanswered", "never_routed", "limited", "last_failure", "forwarded", "openings",
    "dead_lettered_earlier",
}  # fmt: skip
"""The fields that the total sums over generations."""

FIELDS = {name for kind in (RouteState, RouteCounts) for name in getattr(kind, "__slots__", ())} - {"__weakref__"}
"""The fields of a generation. Compiled classes have no `__slots__`."""

OF_ONE_LIFE = {"_report_suppressed", "_only_breaker", "holder", "earlier", "is_over", "mirrors_under_way"}
"""The fields of one generation that are never read from the total, or are already totals."""


@looks_inside
def test_fields_that_are_not_counts_come_from_the_current_generation() -> None:
    now, before = counted([1] * 6), counted([1] * 6)
    for number, name in enumerate(FIELDS - COUNTED - OF_ONE_LIFE):
        setattr(now, name, number if name != "destinations" else ("a", "b"))
    continue_counts(now, before)
    both = total(now)
    assert both is not now
    for name in FIELDS - COUNTED - OF_ONE_LIFE:
        assert getattr(both, name) == getattr(now, name), name


SECONDS = st.lists(st.floats(0, 100), max_size=4)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=4))
def test_the_sum_of_durations_does_not_change_when_earlier_generations_end(
    drawn: list[tuple[list[float], list[float]]],
) -> None:
    """A counter that falls by one bit looks like a reset to a query for its rate."""
    states = []
    for elapsed, forwarded in drawn:
        states.append(RouteState("route", "main", ["a"]))
        for histogram, seconds in ((states[-1].elapsed, elapsed), (states[-1].forwarded, forwarded)):
            for one in seconds:
                histogram.record(one)
        states[-1].received = len(elapsed) + len(forwarded)
    for earlier, later in pairwise(states):
        continue_counts(later, earlier)
    before = total(states[-1]).durations.total
    for state in states[:-1]:
        state.is_over = True
        assert total(states[-1]).durations.total == before
