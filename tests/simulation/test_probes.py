"""Exactly what the judge allows a message that is sent when all is well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router_trio.routing.stream.pulling.checks import DENIED_CHECK_EVERY
from tests.simulation.draw import draw
from tests.simulation.handlers import LONG, is_busy
from tests.simulation.schedule import Plan, Step, Target
from tests.simulation.simulation import PROBED_LATE_WITHIN, PROBED_WITHIN, probed_within

PLAN = Plan("r0", "a", True, (Target("a", True),), "takes long", {}, retry={"max": LONG})


@pytest.mark.parametrize(
    ("changes", "failing", "expected"),
    [
        ({}, range(100), True),  # three of them take long
        ({}, range(1, 100), True),
        ({}, range(1, 80), False),  # while it waits for its next attempt, others are delivered
        ({}, [], False),
        ({"retry": {"max": LONG + 0.1}}, range(1, 100), False),
        ({"retry": {}}, range(1, 100), False),
        ({"retry": {"max": LONG, "attempts": 3}}, range(1, 100), False),
        ({"concurrency": 2}, range(1, 100), False),
        ({"handler": "slow"}, range(1, 100), False),
        ({"handler": None}, range(1, 100), False),
    ],
)
def test_a_handler_is_busy_only_with_several_long_calls_that_fail_each_time(
    changes: dict[str, Any], failing: list[int], expected: bool
) -> None:
    assert is_busy(replace(PLAN, **changes), failing) is expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("second process",), PROBED_LATE_WITHIN),
        (("message lost",), PROBED_LATE_WITHIN),
        (("half-open",), PROBED_LATE_WITHIN),
        (("small max_payload",), PROBED_LATE_WITHIN),
        (("reload",), PROBED_WITHIN),
        (("cut",), PROBED_WITHIN),
        (("second process", "durable deleted", "requests refused"), PROBED_LATE_WITHIN + DENIED_CHECK_EVERY),
        (("second process", "durable deleted"), PROBED_LATE_WITHIN),
        (("second process", "requests refused"), PROBED_LATE_WITHIN),
        (("durable deleted", "requests refused"), PROBED_WITHIN),
    ],
)
def test_a_probe_may_be_late_only_where_something_is_found_out_late(kinds: tuple[str, ...], expected: float) -> None:
    steps = tuple(Step(1.0, kind, 0.0, {}) for kind in kinds)
    assert probed_within(replace(draw(0), faults=kinds, steps=steps)) == expected
