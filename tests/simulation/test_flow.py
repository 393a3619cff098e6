"""Exactly what the judge allows a route with a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.draw import draw
from tests.simulation.flow import Pace
from tests.simulation.schedule import Plan, Step, Target

PLAN = Plan("r0", "a", True, (Target("a", False),), None, {}, limit={"rate": "20/s", "burst": 5})


@pytest.mark.parametrize(
    ("kind", "began_at", "expected"),
    [
        ("reload", 1.0, []),
        ("restart", 1.0, []),
        ("crash", 1.0, []),
        ("cut", 1.0, ["26 messages of r0 in the first 1.000 s"]),
        ("reload", 1.1, ["26 messages of r0 in the first 1.000 s"]),
    ],
)
def test_a_limit_may_have_another_burst_only_once_it_has_started_over(
    kind: str, began_at: float, expected: list[str]
) -> None:
    wrong: list[str] = []
    steps = (Step(began_at, kind),)
    schedule = replace(draw(0), routes=(PLAN,), latency={"a": 0.0}, faults=(kind,), steps=steps)
    pace = Pace(schedule, lambda promise, detail: wrong.append(detail))
    for number in range(26):
        pace.arrived("r0", number, "k0", 1.0)
    assert wrong == expected


def test_each_start_allows_no_more_than_one_burst() -> None:
    wrong: list[str] = []
    schedule = replace(draw(0), routes=(PLAN,), latency={"a": 0.0}, faults=("reload",), steps=(Step(1.0, "reload"),))
    pace = Pace(schedule, lambda promise, detail: wrong.append(detail))
    for number in range(31):
        pace.arrived("r0", number, "k0", 1.0)
    assert wrong == ["31 messages of r0 in the first 1.000 s"]
