"""Drawn histories of KV buckets, one way and both ways: in the end both have the same values."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import KINDS, story

SEEDS = 8
NIGHTLY = 1_000


def assert_equal_in_the_end(seeds: range, *, both: bool) -> None:
    kind = KINDS["two-way-buckets" if both else "buckets"]
    for seed in seeds:
        outcome = kind.simulate(seed)
        assert not outcome.wrong, f"{kind.command(seed)}\n{story(outcome)}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_buckets_are_equal_after_faults(both: bool) -> None:
    assert_equal_in_the_end(range(SEEDS), both=both)


@pytest.mark.nightly
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_buckets_are_equal_after_faults_in_many_histories(both: bool) -> None:
    assert_equal_in_the_end(range(SEEDS, NIGHTLY), both=both)
