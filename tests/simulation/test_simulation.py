"""Seeds of the simulation: the promises hold, each run is reproducible, and known faults are found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import command, story
from tests.simulation.draw import draw
from tests.simulation.faults import FAULTS, NOT_YET
from tests.simulation.handlers import MAKE
from tests.simulation.run import simulate
from tests.simulation.shrink import shrink

SEEDS = 150
AT_A_TIME = 25
TWICE = range(0, SEEDS, 25)
"""Seeds whose trace is compared with that of a second run, in this process and in another."""


@pytest.mark.parametrize("first", range(0, SEEDS, AT_A_TIME))
def test_the_promises_hold(first: int) -> None:
    for seed in range(first, first + AT_A_TIME):
        outcome = simulate(seed)
        assert not outcome.wrong, f"{command(seed)}\n{story(shrink(outcome))}"


def test_a_run_is_reproducible_in_one_process() -> None:
    for seed in TWICE:
        assert simulate(seed).digest == simulate(seed).digest, command(seed)


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_a_run_is_reproducible_in_another_process_with_another_hash_seed(hash_seed: str) -> None:
    program = f"from tests.simulation.run import simulate; print(*(simulate(seed).digest for seed in {TWICE}))"
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert other.stdout.split() == [simulate(seed).digest for seed in TWICE]


def test_seeds_differ() -> None:
    assert len({simulate(seed).digest for seed in range(10)}) == 10


def test_drawing_is_deterministic_and_draws_known_steps() -> None:
    assert draw(7) == draw(7)
    assert all(step.kind in FAULTS or "publish" in step.kind for seed in range(100) for step in draw(seed).steps)


def test_every_fault_and_handler_is_drawn_by_some_seed() -> None:
    drawn = [draw(seed) for seed in range(400)]
    faults = {kind for schedule in drawn for kind in schedule.faults}
    assert faults == FAULTS.keys() - NOT_YET.keys()
    assert {plan.handler for schedule in drawn for plan in schedule.routes} >= MAKE.keys() - NOT_YET.keys()


@pytest.mark.nightly
@pytest.mark.timeout(20_000)
def test_a_hundred_thousand_seeds() -> None:
    run = [sys.executable, "-m", "tests.simulation", "--seeds", "100000", "--first", "1000"]
    subprocess.run(run, check=True)
