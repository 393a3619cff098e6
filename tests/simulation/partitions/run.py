"""Execution of a schedule of several routers, and its reduction to the steps that break a promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.partitions.draw import draw
from tests.simulation.partitions.schedule import Schedule
from tests.simulation.partitions.world import World
from tests.simulation.run import Outcome, executed
from tests.simulation.schedule import Step
from tests.simulation.shrink import halved, without_steps
from tests.simulation.trace import Trace
from tests.support.suspension import Suspensions

MOST_RUNS = 200


def simulate(seed: int, schedule: Schedule | None = None, *, keep: bool = False) -> Outcome[Schedule]:
    """Draw the schedule of a seed, unless it is given, and execute it. `keep` keeps all lines of the trace."""
    schedule = schedule or draw(seed)
    trace = Trace(keep=keep)
    world = World(schedule, trace)
    return executed(seed, schedule, world.run, world, trace, [Suspensions()])


def shrink(outcome: Outcome[Schedule], notify: Callable[[str], None] = lambda _: None) -> Outcome[Schedule]:
    """Return the smallest schedule found that breaks one of the same promises. Each remaining step is needed for it."""
    best, runs = outcome, 0

    def breaks(steps: Sequence[Step]) -> bool:
        nonlocal best, runs
        if runs >= MOST_RUNS:
            return False
        runs += 1
        found = simulate(outcome.schedule.seed, replace(outcome.schedule, steps=tuple(steps)))
        if not found.promises & outcome.promises:
            return False
        best = found
        notify(f"{len(steps)} steps after {runs} runs")
        return True

    without_steps(outcome.schedule.steps, breaks)
    for place in range(len(best.schedule.steps)):
        while (less := halved(best.schedule.steps[place])) is not None:
            steps = list(best.schedule.steps)
            steps[place] = less
            if not breaks(steps):
                break
    return best
