"""States: whether each is ready and why not, and counts in buckets that lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio import states
from router_trio.states import CONNECTED, DISCONNECTED, DURATION_BOUNDS, RECONNECTING, RUNNING, Exemplar, Histogram


@pytest.fixture
def wall() -> list[float]:
    """Return a settable Unix clock."""
    return [1000.0]


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_connection_starts_disconnected_with_everything_at_zero(wall: list[float]) -> None:
    state = states.ConnectionState("main", lambda: wall[0])
    assert (state.name, state.state, state.since, state.server) == ("main", DISCONNECTED, wall[0], None)
    assert state.gauge == 0.0
    counts = (state.attempts, state.established, state.lost, state.restored, state.failures)
    assert counts == (0, 0, 0, 0, 0)
    assert (state.reconnect_attempts, state.reconnect_failures, state.exhausted) == (0, 0, 0)


@pytest.mark.parametrize(("name", "gauge"), [(DISCONNECTED, 0.0), (RECONNECTING, 0.5), (CONNECTED, 1.0)])
def test_the_gauge_of_each_state(name: str, gauge: float) -> None:
    state = states.ConnectionState("main")
    state.enter(name)
    assert state.gauge == gauge


def test_since_is_the_time_of_the_last_change(wall: list[float]) -> None:
    state = states.ConnectionState("main", lambda: wall[0])
    wall[0] = 1001.0
    state.enter(CONNECTED, server="a:4222")
    assert (state.since, state.server) == (1001.0, "a:4222")
    wall[0] = 1002.0
    state.enter(CONNECTED, server="b:4222")
    assert (state.since, state.server) == (1001.0, "b:4222"), "another server, the same state"
    wall[0] = 1003.0
    state.enter(RECONNECTING)
    assert (state.since, state.server) == (1003.0, None)


def test_a_connection_is_ready_while_its_last_fence_is_young() -> None:
    state = states.ConnectionState("main")
    state.fence_bound = 10.0
    assert state.unready(0.0) == "disconnected"
    state.last_error = "connection refused"
    assert state.unready(0.0) == "disconnected: connection refused"
    state.enter(CONNECTED, server="a:4222")
    assert state.unready(0.0) == "the server has answered no fence for more than 10 s", "none was answered at all"
    state.fenced_at = 5.0
    assert state.unready(15.0) is None
    assert state.unready(15.1) == "the server has answered no fence for more than 10 s"
    state.enter(RECONNECTING)
    assert state.unready(5.0) == "reconnecting: connection refused"


# --- routes ----------------------------------------------------------------------------------------------------------


def test_a_route_is_ready_while_it_runs_and_otherwise_gives_the_reason() -> None:
    state = states.RouteState("eu", "main", ["eu.{{wildcard(1)}}", "audit"])
    assert state.unready == "starting"
    state.enter(RUNNING)
    assert state.unready is None
    state.enter(states.PAUSED, "destination 'core' is not connected")
    assert state.unready == "destination 'core' is not connected"
    state.enter(states.FAILED)
    assert state.unready == "failed"
    state.enter(RUNNING)
    assert (state.unready, state.reason) == (None, None)


def test_every_destination_of_a_route_is_at_zero_from_the_start() -> None:
    state = states.RouteState("eu", "main", ["a", "b"])
    assert state.destinations == ("a", "b")
    assert state.routed == {"a": 0, "b": 0}
    assert (state.received, state.in_hand, state.dead_lettered, state.duplicates) == (0, 0, 0, 0)
    assert state.settled == dict.fromkeys(states.ROUTE_FATES, 0)
    assert sum(state.filtered.values()) == 0
    assert sum(state.failed.values()) == 0
    assert sum(state.durations.counts) == 0


def test_a_forwarded_message_is_routed_to_the_first_destination_and_timed() -> None:
    state = states.RouteState("eu", "main", ["a", "b"])
    state.delivered["a"] = state.delivered["b"] = 2
    state.elapsed.record(0.3, 2)
    state.forwarded.record(0.3, 3)
    state.forwarded.record(70.0)
    assert state.routed == {"a": 6, "b": 2}
    assert sum(state.durations.counts) == 6
    assert state.durations.counts[-1] == 1
    assert state.durations.total == pytest.approx(0.3 * 5 + 70.0)
    assert (sum(state.elapsed.counts), sum(state.forwarded.counts)) == (2, 4), "reading adds nothing up"


# --- the histogram ---------------------------------------------------------------------------------------------------


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.record(value)
    assert histogram.counts == [2, 2, 1]
    histogram.record(0.5, 10)
    assert histogram.counts == [12, 2, 1]
    assert histogram.total == pytest.approx(6.6 + 5.0)


def test_a_histogram_keeps_the_newest_exemplar_of_each_bucket() -> None:
    one, other = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    first, second, third = Exemplar("a", 0.5, 10.0), Exemplar("b", 1.0, 11.0), Exemplar("c", 3.0, 12.0)
    one.keep(second)
    one.keep(first)
    other.keep(first)
    other.keep(third)
    assert one.exemplars == {0: second}
    assert (one + other).exemplars == (other + one).exemplars == {0: second, 2: third}
    assert (one.exemplars, other.exemplars) == ({0: second}, {0: first, 2: third})
    other.add(one)
    assert other.exemplars == {0: second, 2: third}


def test_the_bounds_of_durations_are_in_order() -> None:
    assert list(DURATION_BOUNDS) == sorted(set(DURATION_BOUNDS))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), max_size=20))
def test_no_value_is_lost(values: list[tuple[float, int]]) -> None:
    histogram = Histogram(DURATION_BOUNDS)
    for value, count in values:
        histogram.record(value, count)
    assert sum(histogram.counts) == sum(count for _, count in values)
    assert histogram.total == pytest.approx(sum(value * count for value, count in values), abs=100e-9)
    for index, bound in enumerate(DURATION_BOUNDS):
        assert sum(histogram.counts[: index + 1]) == sum(count for value, count in values if value <= bound)
