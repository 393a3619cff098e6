"""Durables deleted when a process knows little of them: after a restart, or with messages held elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.simulation.schedule import Plan, Step

SHARE = 0.15
"""Share of the seeds in which a durable is deleted, if a route reads from a stream."""


def deleted(routes: Sequence[Plan], horizon: float, random: Random) -> tuple[tuple[Plan, ...], list[Step]]:
    """Return the routes and the steps that delete the durable of one of them."""
    if random.random() >= SHARE or not any(plan.stream for plan in routes):
        return tuple(routes), []
    plan = random.choice([plan for plan in routes if plan.stream])
    where = {"broker": plan.broker, "durable": plan.name}
    at = random.uniform(0.0, horizon / 2)
    steps = []
    if random.random() < 0.5:
        steps.append(Step(round(at, 3), "restart", 0.0, {"after": random.choice((0.0, 0.5))}))
        gone = at + random.uniform(0.0, 15.0)
    else:
        # All that it waits for from others is over before the durable is deleted.
        retry = {**plan.retry, "initial": 0.1, "max": 1.0}
        plan = replace(plan, source={**plan.source, "ack_wait": 2.0}, retry=retry)
        held = {**where, "count": random.choice((1, 3, 10)), "delay": random.choice((15.0, 30.0))}
        steps.append(Step(round(at, 3), "durable held", 0.0, held))
        gone = at + random.uniform(0.0, 15.0)
    steps.append(Step(round(gone, 3), "durable deleted", 0.0, where))
    return tuple(plan if one.name == plan.name else one for one in routes), steps
