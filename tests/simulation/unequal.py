"""Messages of very different sizes to routes that share the bytes of a connection, whose process is killed meanwhile.

What is unacked then is redelivered, and is more than a route may request at a time: requests end at messages for which
they have no room. Sizes and kills that are drawn apart seldom meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.simulation.schedule import Plan, Step

SHARE = 0.15
"""Share of the seeds with such routes, if it has one from a stream and none with expressions."""

SIZES = (0, 5_000, 300_000, 700_000)
EACH = 8
"""Messages of each size."""

BURST = 30.0
"""Latest begin of the burst, in seconds."""


def unequal(routes: tuple[Plan, ...], random: Random) -> tuple[tuple[Plan, ...], Sequence[Step]]:
    """Return the routes with three like one of them, and a burst that is more than their share, with kills."""
    plans = [plan for plan in routes if plan.stream]
    if any(plan.when or any(one.when or one.changed for one in plan.targets) for plan in plans):
        return routes, ()  # an expression over a large payload takes too long, on each attempt
    if random.random() >= SHARE or not plans:
        return routes, ()
    chosen = replace(random.choice(plans), limit=None)
    names = [f"{chosen.name}{letter}" for letter in "xyz"]
    like = [
        replace(chosen, name=name, source=chosen.source | {"durable": name, "max_in_flight": 100}) for name in names
    ]
    at = random.uniform(0.0, BURST)
    lasts = random.choice((0.0, 0.5))
    what = {"broker": chosen.broker, "subject": "in", "headers": "", "keys": random.choice((1, 2)), "count": EACH}
    bursts = [
        Step(round(at + index * 0.001, 3), "strangers publish", lasts, what | {"size": size})
        for index, size in enumerate(SIZES)
    ]
    kills = [
        Step(round(at + lasts + random.uniform(0.0, 0.2), 3), "crash", 0.0, {"after": random.choice((0.0, 0.5))})
        for _ in range(random.choice((1, 2, 3)))
    ]
    return (*routes, *like), [*bursts, *kills]
