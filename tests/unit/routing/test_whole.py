"""A route whose settings have changed, as a whole: the sums, and that they stay when what is earlier is settled."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.whole import count_on, whole
from router_trio.states import BreakerState, RouteState

COUNTS = st.lists(st.integers(0, 50), min_size=6, max_size=6)


class Holder:
    """Holds so many, as a route from a stream does."""

    def __init__(self, in_hand: int) -> None:
        self.in_hand = in_hand


def counted(counts: list[int], templates: tuple[str, ...] = ("a", "b"), *, from_stream: bool = False) -> RouteState:
    """A state of which so many messages were routed, forwarded, failed, filtered, came again, and are in hand."""
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
        state.holder = Holder(in_hand)
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
def test_the_whole_is_the_sum_of_what_it_was_and_is(drawn: list[tuple[list[int], bool]]) -> None:
    states = [counted(counts, from_stream=from_stream) for counts, from_stream in drawn]
    same = [counted(counts, from_stream=from_stream) for counts, from_stream in drawn]
    for earlier, later in pairwise(states):
        count_on(later, earlier)
    now = states[-1]
    for _ in range(2):  # looking changes nothing
        assert_sums(whole(now), same)
    # What is in hand is settled, one life after the other.
    for state, copy in zip(states, same, strict=True):
        for one in (state, copy):
            left = one.in_hand
            one.fates["lost"] += left
            one.elapsed.record(2.0, left)
            if one.holder is not None:
                one.holder = Holder(0)
            one.is_over = True
        assert_sums(whole(now), same)
    assert whole(now) is now
    assert now.earlier == []


def test_a_state_without_a_past_is_itself() -> None:
    state = counted([1, 2, 3, 4, 5, 6])
    assert whole(state) is state


def test_destinations_that_are_gone_keep_their_counts() -> None:
    now, before = counted([1, 0, 0, 0, 0, 0], ("c",)), counted([2, 3, 0, 0, 0, 1], ("a", "b"))
    count_on(now, before)
    assert whole(now).routed == {"a": 3, "b": 2, "c": 1}
    assert whole(now).destinations == ("c",)


def test_the_openings_of_a_breaker_go_on_and_its_state_is_that_of_now() -> None:
    now, before = counted([0] * 6), counted([0, 0, 0, 0, 0, 1])
    now.breakers = [BreakerState("main", "a"), BreakerState("main", "a"), BreakerState("main", "new")]
    before.breakers = [BreakerState("main", "a"), BreakerState("main", "a"), BreakerState("main", "gone")]
    for number, one in enumerate((*now.breakers, *before.breakers)):
        one.openings = 10**number
    before.breakers[0].state, now.breakers[1].state = "open", "half_open"
    count_on(now, before)
    expected = [("a", "closed", 1001), ("a", "half_open", 10010), ("new", "closed", 100)]
    assert [(one.template, one.state, one.openings) for one in whole(now).breakers] == expected
    before.elapsed.record(1.0)
    before.fates["lost"] += 1
    before.is_over = True
    for _ in range(2):
        assert whole(now) is now
        assert [(one.template, one.state, one.openings) for one in now.breakers] == expected
