"""What the consumers of one connection may ask for together."""

from __future__ import annotations

from functools import partial

from router_trio.connection import pull_credit
from router_trio.connection.pull_credit import CONNECTION_BYTES, PullBudget, PullCredit
from tests.unit.connection.test_pull_credit import MIB, Clock, a_budget, asked, too_large


def test_all_consumers_of_a_connection_have_an_equal_share_and_borrow_from_the_rest() -> None:
    budget = a_budget(100)
    told: list[int] = []
    credits = [PullCredit(1000, 16 * MIB, budget, partial(told.append, number)) for number in range(100)]
    for credit in credits:
        assert asked(credit, 0) > 0
    assert sum(credit.outstanding_bytes for credit in credits) <= CONNECTION_BYTES // 2
    sizes = [0] * 100
    for _ in range(25):  # each has a message of a megabyte
        for number, credit in enumerate(credits):
            if sizes[number] < MIB:
                if credit.outstanding:
                    too_large(credit, credit.outstanding, credit.outstanding_bytes)
                asked(credit, 0)
                sizes[number] = credit.outstanding_bytes
        assert sum(credit.outstanding_bytes for credit in credits) <= CONNECTION_BYTES
        served = [number for number, size in enumerate(sizes) if MIB <= size < 2**40]
        for number in served:
            assert credits[number].borrowed
            credits[number].count_received(1, MIB)
            assert not credits[number].borrowed or credits[number].outstanding_bytes > budget.share
            credits[number].clear()
            sizes[number] = 2**40
    assert sizes == [2**40] * 100
    assert told, "whoever waited for others to give back was told"
    assert budget.lent == 0


def test_a_connection_that_is_cut_is_asked_for_half_and_later_for_all_again() -> None:
    clock = Clock()
    budget = PullBudget(clock)
    budget.join()
    budget.cut()
    assert budget.limit == CONNECTION_BYTES // 2
    clock.now += pull_credit.GROWS_AFTER
    assert budget.limit == CONNECTION_BYTES
    for _ in range(20):
        budget.cut()
    assert budget.limit == pull_credit.LEAST_CONNECTION_BYTES
    clock.now += pull_credit.GROWS_AFTER
    assert budget.limit == pull_credit.LEAST_CONNECTION_BYTES, "it takes longer each time"
    for _ in range(5):
        clock.now += pull_credit.LONGEST_UNTIL_GROWTH
        assert budget.limit > pull_credit.LEAST_CONNECTION_BYTES
    assert budget.limit == CONNECTION_BYTES
