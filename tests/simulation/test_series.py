"""Reloads every 50 ms keep the order of messages and the limits of handlers; some seeds draw such a series."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.simulation.draw import draw
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Step, Target, schedule_of

ONE_AT_A_TIME: dict[str, Any] = {}
ONE_OF_A_KEY = {"key": "subject", "concurrency": 2}
CORE = Plan("r0", "a", False, (Target("a", False),), "slow", {"subject": "core.r0.*"})
STREAM = Plan(
    "r0",
    "a",
    True,
    (Target("a", True),),
    "slow",
    {"stream": "IN", "durable": "r0", "filter": "in.*", "max_in_flight": 8},
)


@pytest.mark.parametrize("apart", [0.05, 0.0])
@pytest.mark.parametrize("limits", [ONE_AT_A_TIME, ONE_OF_A_KEY], ids=["one at a time", "one of a key"])
@pytest.mark.parametrize("plan", [CORE, STREAM], ids=["core", "stream"])
def test_reloads_in_a_series_keep_the_order_and_the_limits_of_handlers(
    plan: Plan, limits: dict[str, Any], apart: float
) -> None:
    subject = "in" if plan.stream else "core.r0"
    burst = {"broker": "a", "subject": subject, "count": 60, "headers": "", "size": 0, "keys": 4}
    steps = [
        Step(1.0, "strangers publish", 1.5, burst),
        *(Step(round(1.0 + n * apart, 3), "reload", 0.0, {"routes": 1, "way": 2 * n}) for n in range(30)),
    ]
    schedule = schedule_of(replace(plan, **limits), *steps, faults=("reload",))
    assert simulate(0, schedule).wrong == ()


def test_some_seeds_reload_every_50_ms() -> None:
    def times(seed: int) -> list[float]:
        return [step.at for step in draw(seed).steps if step.kind == "reload"]

    assert any(sum(later - at < 0.06 for at, later in pairwise(times(seed))) >= 9 for seed in range(100))
