"""A breaker: closed, open after failures in a row, half open while one message probes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router_trio.routing.policy.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from tests.support.drawn import examples


def opened(failures: int = 3, pause: float = 10.0) -> Breaker:
    breaker = Breaker(failures, pause)
    assert [breaker.message_failed(0.0, 0, "timeout") for _ in range(failures)] == [False] * (failures - 1) + [True]
    return breaker


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    breaker = opened()
    assert (breaker.state, breaker.reason, breaker.probe_at) == (OPEN, "timeout", 10.0)
    assert not breaker.admits(9.9)


def test_a_message_accepted_in_between_starts_a_new_row() -> None:
    breaker = Breaker(3, 10.0)
    for taken in range(20):
        assert not breaker.message_failed(0.0, taken // 2, "limit")
    assert breaker.in_a_row(9) == 2
    assert breaker.in_a_row(10) == 0
    assert breaker.message_failed(0.0, 9, "limit")


def test_a_successful_probe_closes_the_breaker() -> None:
    breaker = opened()
    assert breaker.admits(10.0)
    breaker.message_goes(10.0)
    assert breaker.state == HALF_OPEN
    assert not breaker.admits(99.0)
    assert breaker.message_passed()
    assert not breaker.message_passed()
    assert breaker.state == CLOSED
    assert breaker.in_a_row(1) == 0


def test_a_failed_probe_opens_the_breaker_again_without_counting_as_an_opening() -> None:
    breaker = opened()
    breaker.message_goes(10.0)
    assert not breaker.message_failed(11.0, 0, "no_responders")
    assert (breaker.state, breaker.probe_at) == (OPEN, 21.0)
    assert breaker.opened_at == 0.0


def test_late_failures_change_nothing_and_late_successes_close_nothing() -> None:
    breaker = opened()
    assert not breaker.retry_passed(0.0)
    assert not breaker.message_failed(5.0, 0, "timeout")
    assert breaker.probe_at == 10.0
    assert not breaker.message_passed()
    assert breaker.state == OPEN


def test_an_accepted_retry_that_was_sent_since_the_breaker_opened_closes_it() -> None:
    breaker = opened()
    assert breaker.retry_passed(0.1)
    assert not breaker.retry_passed(0.1)
    assert (breaker.state, breaker.in_a_row(0)) == (CLOSED, 0)


def test_an_inconclusive_probe_is_followed_by_another() -> None:
    breaker = opened()
    breaker.message_goes(10.0)
    breaker.inconclusive(10.5)
    assert breaker.state == OPEN
    assert breaker.admits(10.5)
    breaker = Breaker(3, 10.0)
    breaker.inconclusive(1.0)
    assert breaker.state == CLOSED


def test_a_probe_that_can_not_reach_the_destination_is_followed_by_another_after_the_pause() -> None:
    breaker = opened()
    breaker.message_goes(10.0)
    breaker.inconclusive(10.5, reachable=False)
    assert breaker.state == OPEN
    assert not breaker.admits(20.4)
    assert breaker.admits(20.5)


def test_no_probe_begins_before_its_time() -> None:
    breaker = opened()
    breaker.message_goes(9.0)
    assert breaker.state == OPEN


class Machine(RuleBasedStateMachine):
    """Random events: the breaker opens only after the given number of failures in a row, and one message at a time
    probes.
    """

    @initialize(failures=st.integers(1, 5))
    def begin_closed(self, failures: int) -> None:
        self.failures, self.now, self.taken, self.row = failures, 0.0, 0, 0
        self.breaker = Breaker(failures, 10.0)
        self.probes = 0

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.admits(self.now))
    @rule()
    def message_goes(self) -> None:
        was_closed = self.breaker.state == CLOSED
        self.breaker.message_goes(self.now)
        self.probes = 0 if was_closed else 1

    @rule()
    def message_is_taken(self) -> None:
        self.taken += 1
        self.row = 0
        probes = self.breaker.state == HALF_OPEN
        assert self.breaker.message_passed() is probes

    @rule(seconds=st.floats(0, 20))
    def retried_message_is_taken(self, seconds: float) -> None:
        self.taken += 1
        self.row = 0
        sent_at, before = self.now - seconds, self.breaker.state
        assert self.breaker.retry_passed(sent_at) is (before != CLOSED and sent_at > self.breaker.opened_at)

    @rule()
    def message_fails(self) -> None:
        was_closed = self.breaker.state == CLOSED
        self.row = self.row + 1 if was_closed else 0
        opens = self.breaker.message_failed(self.now, self.taken, "timeout")
        assert opens is (was_closed and self.row >= self.failures)
        if self.breaker.state == OPEN:
            self.row = 0

    @rule(reachable=st.booleans())
    def message_fails_by_its_own_fault(self, reachable: bool) -> None:
        was = self.breaker.state
        self.breaker.inconclusive(self.now, reachable=reachable)
        assert self.breaker.state == (OPEN if was == HALF_OPEN else was)

    @invariant()
    def half_open_lets_nothing_go(self) -> None:
        if hasattr(self, "breaker") and self.breaker.state == HALF_OPEN:
            assert not self.breaker.admits(self.now + 1e9)


Machine.TestCase.settings = settings(max_examples=examples(200))
TestBreaker = Machine.TestCase
