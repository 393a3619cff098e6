"""Exactly which messages of subjects must be settled before a run ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.simulation import handlers
from tests.simulation.content import Test
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Schedule, Step, Target, schedule_of

ONLY_1 = Target("a", True, when=Test("number", (1,)))
"""A destination to which no probe of these tests goes, so that none waits for what is ahead of it."""

PLAN = Plan("r0", "a", False, (ONLY_1,), None, {"subject": "core.r0.*"})
TAKES_LONG = replace(PLAN, handler="takes long")


def schedule(plan: Plan, count: int) -> Schedule:
    """Return a schedule that ends as strangers publish `count` messages, and whose shutdown lasts a second."""
    load: dict[str, Any] = {"broker": "a", "subject": "core.r0", "count": count, "headers": "", "size": 0, "keys": 4}
    return schedule_of(plan, Step(1.0, "strangers publish", 0.0, load))


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        (TAKES_LONG, handlers.LONG_EVERY + 1),
        (TAKES_LONG, handlers.LONG_EVERY - 1),  # the probe takes long
        (replace(TAKES_LONG, dead_letter="a"), handlers.LONG_EVERY + 1),
        (replace(PLAN, limit={"rate": "20/s", "burst": 1}), 61),
    ],
)
def test_no_message_that_only_takes_long_is_left_to_the_shutdown(plan: Plan, count: int) -> None:
    assert simulate(0, schedule(plan, count)).wrong == ()


@pytest.mark.parametrize("count", [handlers.LONG_EVERY + 1, handlers.LONG_EVERY - 1])
def test_a_message_that_is_never_settled_is_reported(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(handlers, "LONG", 1000.0)
    (promise, detail), *_ = simulate(0, schedule(TAKES_LONG, count)).wrong
    assert promise == "liveness"
    assert "r0 has" in detail
