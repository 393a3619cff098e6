"""Seeds of several routers that share partitions: the promises hold, and each run is reproducible."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.__main__ import KINDS, story
from tests.simulation.partitions.draw import KINDS as STEPS
from tests.simulation.partitions.draw import draw
from tests.simulation.partitions.run import shrink, simulate

SEEDS = 12
AT_A_TIME = 4


@pytest.mark.parametrize("first", range(0, SEEDS, AT_A_TIME))
def test_the_promises_hold(first: int) -> None:
    for seed in range(first, first + AT_A_TIME):
        outcome = simulate(seed)
        assert not outcome.wrong, f"{KINDS['partitions'].command(seed)}\n{story(shrink(outcome))}"


def test_the_promises_hold_with_forged_members() -> None:
    # The first two seeds that draw some.
    for seed in (12, 13):
        assert "forge" in {step.kind for step in draw(seed).steps}
        outcome = simulate(seed)
        assert outcome.codes["ROUTE_PARTITIONS_UNLED"]
        assert not outcome.wrong, f"{KINDS['partitions'].command(seed)}\n{story(shrink(outcome))}"


def test_a_run_is_reproducible() -> None:
    assert simulate(3).digest == simulate(3).digest != simulate(4).digest


def test_every_kind_of_step_is_drawn_by_some_seed() -> None:
    drawn = {step.kind for seed in range(200) for step in draw(seed).steps}
    assert drawn == {*STEPS, "publish"}


@pytest.mark.nightly
@pytest.mark.timeout(20_000)
def test_ten_thousand_seeds() -> None:
    arguments = ["--kind", "partitions", "--seeds", "10000", "--first", "1000"]
    subprocess.run([sys.executable, "-m", "tests.simulation", *arguments], check=True)
