"""Seeds of the simulation: the promises hold, each run is reproducible, and known faults are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import KINDS, command, story
from tests.simulation.draw import draw
from tests.simulation.faults import FAULTS, NOT_YET
from tests.simulation.handlers import ASYNC, MAKE
from tests.simulation.run import simulate
from tests.simulation.shrink import shrink

SEEDS = 100
AT_A_TIME = 20
TWICE = range(0, SEEDS, AT_A_TIME)
"""Seeds whose trace is compared with that of a second run, in this process and in others."""


@pytest.mark.parametrize("first", range(0, SEEDS, AT_A_TIME))
def test_the_promises_hold(first: int) -> None:
    digests = set()
    for seed in range(first, first + AT_A_TIME):
        outcome = simulate(seed)
        assert not outcome.wrong, f"{command(seed)}\n{story(shrink(outcome))}"
        digests.add(outcome.digest)
    assert len(digests) == AT_A_TIME, "seeds differ"


def test_a_route_that_waits_for_earlier_deliveries_before_it_makes_room_does_not_go_round() -> None:
    assert not simulate(60003400).wrong


@pytest.mark.timeout(120)
def test_a_run_is_reproducible_in_this_process_and_in_others_with_another_hash_seed() -> None:
    program = f"from tests.simulation.run import simulate; print(*(simulate(seed).digest for seed in {TWICE}))"
    elsewhere = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("0", "77")
    ]
    try:
        here = [simulate(seed).digest for seed in TWICE]
        assert [simulate(seed).digest for seed in TWICE] == here
        assert [one.communicate(timeout=100)[0].split() for one in elsewhere] == [here, here]
    finally:
        for one in elsewhere:
            one.kill()
            one.communicate()


def test_drawing_is_deterministic_and_draws_known_steps() -> None:
    assert draw(7) == draw(7)
    assert all(step.kind in FAULTS or "publish" in step.kind for seed in range(100) for step in draw(seed).steps)


def test_every_fault_and_handler_is_drawn_by_some_seed() -> None:
    drawn = [draw(seed) for seed in range(SEEDS)]
    faults = {kind for schedule in drawn for kind in schedule.faults}
    assert faults == FAULTS.keys() - NOT_YET.keys()
    assert {plan.handler for schedule in drawn for plan in schedule.routes} >= MAKE.keys() - NOT_YET.keys()
    assert {plan.handler for schedule in drawn for plan in schedule.routes if plan.loop == "asyncio"} == {*ASYNC}


def test_many_seeds_of_each_kind_are_run_by_one_target_and_named(capfd: pytest.CaptureFixture[str]) -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    found = re.search(r"^KINDS \?= (.*)$", makefile, re.MULTILINE)
    assert found is not None
    assert found[1].split() == [*KINDS], "a kind that the nightly run does not draw"
    subprocess.run([sys.executable, "-m", "tests.simulation", "--kind", "buckets", "--seeds", "2", "--first", "7"])
    assert capfd.readouterr().out.startswith("buckets: seeds 7 to 8\n2 seeds, 0 broken, ")


@pytest.mark.nightly
@pytest.mark.timeout(20_000)
def test_a_hundred_thousand_seeds() -> None:
    run = [sys.executable, "-m", "tests.simulation", "--seeds", "100000", "--first", "1000"]
    subprocess.run(run, check=True)
