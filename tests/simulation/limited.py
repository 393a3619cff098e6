"""Durables that somebody gives a limit of deliveries, which a router removes. No message reaches it.

From then on a router looks for messages at the limit, and has to tell them from those that are only tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.simulation.faults import FAULTS, OF_LIMITS
from tests.simulation.schedule import Plan, Step

SHARE = 0.25
"""Share of the seeds in which durables are limited, if a route reads from a stream."""


def limited(brokers: Sequence[str], routes: Sequence[Plan], horizon: float, random: Random) -> list[Step]:
    """Return when durables are limited."""
    steps: list[Step] = []
    if random.random() >= SHARE:
        return steps
    (kind,) = OF_LIMITS
    for _ in range(random.choice((1, 3))):
        drawn = FAULTS[kind].draw(random, brokers, routes)
        if drawn is not None:
            steps.append(Step(round(random.uniform(0.0, horizon), 3), kind, drawn.seconds, drawn.what))
    return steps
