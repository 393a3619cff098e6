"""Reduction of a schedule that breaks a promise to the few steps that are needed (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from router_trio.errors import ConfigurationError
from tests.simulation.run import Outcome, simulate
from tests.simulation.schedule import Plan, Schedule, Step

MOST_RUNS = 400


def shrink(outcome: Outcome[Schedule], tell: Callable[[str], None] = lambda _: None) -> Outcome[Schedule]:
    """Return the smallest schedule found that breaks one of the same promises. Each remaining step is needed for it."""
    return _Search(outcome, tell).smallest()


class _Search:
    def __init__(self, outcome: Outcome[Schedule], tell: Callable[[str], None]) -> None:
        self._best = outcome
        self._promises = outcome.promises
        self._tell = tell
        self._runs = 0

    def smallest(self) -> Outcome[Schedule]:
        self._without_steps()
        self._without_routes()
        self._with_less()
        self._without_steps()
        return self._best

    def _breaks(self, schedule: Schedule) -> bool:
        if self._runs >= MOST_RUNS:
            return False
        self._runs += 1
        try:
            outcome = simulate(schedule.seed, schedule)
        except ConfigurationError:
            return False  # the rest of a route is invalid: only a mirror of nothing, for example
        if not outcome.promises & self._promises:
            return False
        self._best = outcome
        self._tell(f"{len(schedule.steps)} steps, {len(schedule.routes)} routes after {self._runs} runs")
        return True

    def _without_steps(self) -> None:
        without_steps(
            self._best.schedule.steps, lambda kept: self._breaks(replace(self._best.schedule, steps=tuple(kept)))
        )

    def _without_routes(self) -> None:
        for plan in self._best.schedule.routes:
            schedule = self._best.schedule
            kept = tuple(one for one in schedule.routes if one.name != plan.name)
            if kept:
                self._breaks(replace(schedule, routes=kept))

    def _with_less(self) -> None:
        """Try fewer messages in each step, and fewer destinations of each route."""
        for index in range(len(self._best.schedule.steps)):
            while (less := halved(self._best.schedule.steps[index])) is not None:
                steps = list(self._best.schedule.steps)
                steps[index] = less
                if not self._breaks(replace(self._best.schedule, steps=tuple(steps))):
                    break
        for index, plan in enumerate(self._best.schedule.routes):
            for target in plan.targets[1:]:
                now = self._best.schedule.routes[index]
                kept = replace(now, targets=tuple(one for one in now.targets if one is not target))
                self._breaks(replace(self._best.schedule, routes=_with(self._best.schedule.routes, index, kept)))


def without_steps(steps: Sequence[Step], breaks: Callable[[Sequence[Step]], bool]) -> None:
    """Leave out ever smaller pieces of a schedule, as long as the rest still `breaks` the promise."""
    size = max(1, len(steps) // 2)
    while True:
        start, smaller = 0, False
        while start < len(steps):
            kept = [*steps[:start], *steps[start + size :]]
            if breaks(kept):
                smaller, steps = True, kept
            else:
                start += size
        if size == 1 and not smaller:
            return
        size = max(1, size // 2)


def halved(step: Step) -> Step | None:
    """Return the step with half of its messages; None if it has one at most."""
    count = step.what.get("count", 1)
    return replace(step, what=step.what | {"count": count // 2}) if count > 1 else None


def _with(items: Sequence[Plan], index: int, item: Plan) -> tuple[Plan, ...]:
    return (*items[:index], item, *items[index + 1 :])
