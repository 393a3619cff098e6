"""When a worker is restarted: soon at first, less and less often, never all at once."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router_trio.router.workers.process import describe_exit
from router_trio.router.workers.restarts import FIRST_DELAY, LONGEST_DELAY, STABLE_AFTER, Restarts, ends_router


def test_delays_double_up_to_a_bound_and_start_over_after_a_long_run() -> None:
    restarts = Restarts(max)
    delays = [restarts.next_delay(1.0) for _ in range(12)]
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == LONGEST_DELAY
    assert restarts.next_delay(STABLE_AFTER) == FIRST_DELAY
    assert restarts.count == 13


def test_a_worker_that_ended_with_a_message_in_its_handler_is_restarted_within_a_second() -> None:
    restarts = Restarts(max)
    assert [restarts.next_delay(1.0, named=True) for _ in range(6)] == [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


@given(st.integers(0, 2**32), st.lists(st.floats(0, 100), max_size=40))
def test_no_delay_is_less_than_half_of_its_bound(seed: int, lives: list[float]) -> None:
    drawn, longest = Restarts(Random(seed).uniform), Restarts(max)
    for lived in lives:
        most = longest.next_delay(lived)
        assert most / 2 <= drawn.next_delay(lived) <= most


def test_an_error_of_configuration_ends_the_router_only_in_the_first_run() -> None:
    assert ends_router("AuthorizationError", first_run=True)
    assert not ends_router("AuthorizationError", first_run=False)
    assert ends_router("ConnectionExhaustedError", first_run=False)


def test_an_exit_code_is_described_in_words() -> None:
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-99) == "was killed by signal 99"
    assert describe_exit(3) == "has exited with 3"
