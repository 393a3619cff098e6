"""Reloads that a shutdown cuts short: while a handler is busy, several at one moment, and the shutdown soon after.

A core route that a reload changes is replaced at once, and its successor begins once it has ended. Of bursts, reloads
and restarts that are drawn apart, few meet within that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.simulation.handlers import SLOW
from tests.simulation.schedule import Plan, Step

SHARE = 0.6
"""Share of the seeds in which a reload is cut short, if a core route has such a handler."""

BUSY = ("async", "takes long", *SLOW)
"""Handlers that are busy with a burst."""

ALL_ROUTES = 15
"""The bits of `reload` for as many routes as a schedule has at most."""


def cut_short(routes: Sequence[Plan], load: Sequence[Step], random: Random) -> list[Step]:
    """Draw a burst to a core route that its handler needs time for, one to three reloads then, and a restart."""
    subjects = [f"core.{plan.name}" for plan in routes if not plan.stream and plan.handler in BUSY]
    if random.random() >= SHARE or not subjects:
        return []
    subject = random.choice(subjects)
    usual = random.choice([step for step in load if step.what.get("subject") == subject])
    at = usual.at + random.uniform(0.0, usual.seconds)
    what = usual.what | {"count": random.choice((20, 60)), "keys": random.choice((1, 2, 4))}
    reloaded = at + random.choice((0.0, random.uniform(0.0, 0.1)))  # a far broker delivers after 20 ms
    changes = [{"routes": ALL_ROUTES, "way": random.randrange(8)} for _ in range(random.choice((1, 1, 2, 3)))]
    ended = reloaded + random.choice((0.0, random.uniform(0.0, 0.02), random.uniform(0.0, 0.1)))
    return [
        replace(usual, at=round(at, 3), seconds=0.0, what=what),
        *(Step(round(reloaded, 3), "reload", 0.0, change) for change in changes),
        Step(round(ended, 3), "restart", 0.0, {"after": random.choice((0.0, 0.5))}),
    ]
