"""The bytes that the consumers of one connection may request together."""

from __future__ import annotations

from functools import partial

from router_trio.connection import pull_credit
from router_trio.connection.pull_credit import CONNECTION_BYTES, PullBudget, PullCredit
from tests.unit.connection.test_pull_credit import MIB, Clock, a_budget, asked, too_large


def test_all_consumers_of_a_connection_have_an_equal_share_and_borrow_from_the_rest() -> None:
    budget = a_budget(100)
    notified: list[int] = []
    credits = [PullCredit(1000, 16 * MIB, budget, partial(notified.append, number)) for number in range(100)]
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
    assert notified, "consumers that waited for bytes were notified"
    assert budget.lent == 0


def test_after_a_cut_the_limit_of_a_connection_is_lowered_and_later_restored() -> None:
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
    assert budget.limit == pull_credit.LEAST_CONNECTION_BYTES, "each cut makes it wait longer"
    for _ in range(5):
        clock.now += pull_credit.LONGEST_UNTIL_GROWTH
        assert budget.limit > pull_credit.LEAST_CONNECTION_BYTES
    assert budget.limit == CONNECTION_BYTES
