"""Reloads in a series, 50 ms apart or less, while messages arrive: each may begin before the one before it has ended.

Of reloads that are drawn apart, few meet. Most change routes alone, so that their connections last.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.simulation.cut_short import ALL_ROUTES
from tests.simulation.schedule import Plan, Step

SHARE = 0.25
"""Share of the seeds with a series of reloads."""

APART = (0.0, 0.01, 0.05, 0.05)
"""Seconds between two of them."""


def series(routes: Sequence[Plan], load: Sequence[Step], random: Random) -> list[Step]:
    """Draw up to forty reloads, from when messages begin to arrive."""
    if random.random() >= SHARE:
        return []
    busy = random.choice(load)
    at, apart = busy.at + random.uniform(-0.1, 0.1 + busy.seconds), random.choice(APART)
    with_connections = random.choice((0.0, 0.0, 0.2))
    steps = []
    for number in range(random.choice((3, 10, 40))):
        which = random.choice((ALL_ROUTES, random.randrange(1, 1 << len(routes))))
        way = random.choice((1, 3, 5, 7) if random.random() < with_connections else (0, 2, 4, 6))
        steps.append(Step(round(max(0.0, at + number * apart), 3), "reload", 0.0, {"routes": which, "way": way}))
    return steps
