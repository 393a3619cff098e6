"""Messages that wait for the limit of their value: none overtakes another of its value, and other values overtake
them.
"""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.policy.limit import ValueLimits
from router_trio.routing.policy.value_queues import ValueQueues
from tests.unit.routing.policy.test_limit import BURSTS, RATES, assert_bounded


@given(
    RATES,
    BURSTS,
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=60),
    st.sampled_from([0, 1, 100]),
)
def test_all_messages_pass_in_the_order_of_their_value_within_its_limit(
    rate: tuple[int, int], burst: int, arrivals: list[tuple[str, float]], most: int
) -> None:
    waiting: ValueQueues[tuple[str, int]] = ValueQueues(ValueLimits(*rate, burst, most=most))
    now = 0.0
    passed: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for place, (value, gap) in enumerate(arrivals):
        now += gap
        while (item := waiting.pop_due(now)) is not None:
            passed[item[0]].append((now, item[1]))
        if waiting.admit(value.encode(), place, (value, place), now):
            passed[value].append((now, place))
    while waiting.count:
        assert waiting.due_at < float("inf")
        now = max(now, waiting.due_at)
        item = waiting.pop_due(now)
        if item is not None:
            passed[item[0]].append((now, item[1]))
    assert waiting.due_at == float("inf")
    for value, times in passed.items():
        assert [place for _, place in times] == [place for place, (one, _) in enumerate(arrivals) if one == value]
        assert_bounded([at for at, _ in times], *rate, burst)
    assert sum(map(len, passed.values())) == len(arrivals)


def test_a_redelivered_message_is_sent_before_those_behind_it() -> None:
    waiting: ValueQueues[int] = ValueQueues(ValueLimits(1, 1, 1))
    assert waiting.admit(b"a", 1, 1, 0.0)
    for place in (5, 6, 1):
        assert not waiting.admit(b"a", place, place, 0.0)
    assert [waiting.pop_due(at) for at in (1.1, 2.2, 3.3, 4.4)] == [1, 5, 6, None]


def test_clearing_returns_all_in_order() -> None:
    waiting: ValueQueues[int] = ValueQueues(ValueLimits(1, 1, 1))
    for place in (1, 3, 2, 4):
        waiting.admit(b"a", place, place, 0.0)
    assert waiting.clear() == [2, 3, 4]
    assert (waiting.count, waiting.due_at, waiting.pop_due(9.0)) == (0, float("inf"), None)
