"""Calls of handlers are counted, also while a shutdown cuts a reload short, which some seeds draw."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from tests.simulation.draw import draw
from tests.simulation.keyed import Calls
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Schedule, Step, Target, schedule_of

ONE_AT_A_TIME: dict[str, Any] = {}
ONE_OF_A_KEY = {"key": "subject", "concurrency": 2}

BURST = {"broker": "a", "subject": "core.r0", "count": 20, "headers": "", "size": 0, "keys": 4}


def _plan(**more: Any) -> Plan:
    return Plan("r0", "a", False, (Target("a", False),), "slow", {"subject": "core.r0.*"}, **more)


@pytest.mark.parametrize("limits", [ONE_AT_A_TIME, ONE_OF_A_KEY], ids=["one at a time", "one of a key"])
def test_a_reload_that_is_cut_short_keeps_the_limits_of_handlers(limits: dict[str, Any]) -> None:
    steps = [
        Step(1.0, "strangers publish", 0.0, BURST),
        Step(1.01, "reload", 0.0, {"routes": 1, "way": 0}),
        Step(1.02, "restart", 0.0, {"after": 0.0}),
    ]
    schedule = schedule_of(_plan(**limits), *steps, faults=("reload", "restart"))
    assert simulate(0, schedule).wrong == ()


@pytest.mark.parametrize(
    ("limits", "subjects", "reported"),
    [
        (ONE_AT_A_TIME, ("in.k0", "in.k1"), ["concurrency"]),
        (ONE_OF_A_KEY, ("in.k0", "in.k1"), []),
        (ONE_OF_A_KEY, ("in.k0", "in.k0"), ["one of a key"]),
        (ONE_OF_A_KEY, ("in.k0", "in.k1", "in.k2"), ["concurrency"]),
    ],
)
async def test_calls_beyond_the_limits_are_reported(
    limits: dict[str, Any], subjects: tuple[str, ...], reported: list[str], autojump_clock: MockClock
) -> None:
    broken: list[str] = []

    async def slow(_: Message) -> None:
        await trio.sleep(1)

    handler = Calls(_plan(**limits), lambda promise, _: broken.append(promise)).watched(slow)
    async with trio.open_nursery() as nursery:
        for subject in subjects:
            nursery.start_soon(handler, Message(subject, b""))
    assert broken == reported


def test_some_seeds_cut_a_reload_short_while_a_handler_is_busy() -> None:
    assert any(_cuts_short(draw(seed)) for seed in range(100))


def _cuts_short(schedule: Schedule) -> bool:
    """Return True if a burst to a core route, a reload and a restart follow each other at once."""

    def within(kind: str, begin: float) -> list[float]:
        return [step.at for step in schedule.steps if step.kind == kind and begin <= step.at <= begin + 0.2]

    bursts = [
        step.at for step in schedule.steps if not step.seconds and step.what.get("subject", "").startswith("core")
    ]
    return any(within("restart", reload) for burst in bursts for reload in within("reload", burst))
