"""Exactly what the judge allows a route with a limit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

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
    steps = (Step(began_at, kind, 0.0, {"routes": 0b1, "way": 0}),)
    schedule = replace(draw(0), routes=(PLAN,), latency={"a": 0.0}, faults=(kind,), steps=steps)
    pace = Pace(schedule, lambda promise, detail: wrong.append(detail))
    for number in range(26):
        pace.arrived("r0", number, "k0", 1.0)
    assert wrong == expected


def test_each_start_allows_no_more_than_one_burst() -> None:
    wrong: list[str] = []
    steps = (Step(1.0, "reload", 0.0, {"routes": 0b1, "way": 0}),)
    schedule = replace(draw(0), routes=(PLAN,), latency={"a": 0.0}, faults=("reload",), steps=steps)
    pace = Pace(schedule, lambda promise, detail: wrong.append(detail))
    for number in range(31):
        pace.arrived("r0", number, "k0", 1.0)
    assert wrong == ["31 messages of r0 in the first 1.000 s"]


@pytest.mark.parametrize(
    ("reloads", "bursts"),
    [
        ([(0b11, 0)], (2, 2)),
        ([(0b01, 0)], (2, 1)),
        ([(0b01, 0), (0b00, 0)], (3, 1)),  # changed, and changed back
        ([(0b00, 1)], (2, 2)),  # of the connections
        ([(0b00, 1), (0b00, 0)], (3, 3)),
        ([(0b100, 0)], (1, 1)),  # of another route
    ],
)
def test_a_reload_allows_another_burst_only_to_the_routes_that_it_changes(
    reloads: list[tuple[int, int]], bursts: tuple[int, int]
) -> None:
    plans = (PLAN, replace(PLAN, name="r1", limit={"rate": "20/s", "burst": 5, "per": "tokens[size(tokens) - 1]"}))
    steps = tuple(Step(0.5, "reload", 0.0, {"routes": routes, "way": way}) for routes, way in reloads)
    schedule = replace(draw(0), routes=plans, latency={"a": 0.0}, faults=("reload",), steps=steps)
    for plan, expected in zip(plans, bursts, strict=True):
        wrong: list[tuple[str, str]] = []
        pace = Pace(schedule, partial(_append, wrong))
        for number in range(5 * expected + 20):
            pace.arrived(plan.name, number, "k0", 1.0)
        assert wrong == []
        pace.arrived(plan.name, 100, "k0", 1.0)
        assert wrong, "one more"


def _append(wrong: list[tuple[str, str]], promise: str, detail: str) -> None:
    wrong.append((promise, detail))
