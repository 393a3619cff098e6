"""Drawn routes that retry failed messages, give them up, and have dead letters: the fates that a message may have.

A route with `dead_letter` gives up nothing silently: a stream message that its consumer has finished with is at its
destination, or its dead letter is stored. Attempts are counted by a process, so a process that ends forgets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from router_trio import Live
from router_trio.errors import reasons
from router_trio.routing.policy.retry import LONGEST_SPREAD
from tests.simulation.handlers import FAIL, FAILS_EACH_TIME, FAILS_EVERY, RAISED
from tests.simulation.schedule import Plan, Step

SHARE = 0.4
"""Share of the seeds in which routes have retries of their own."""

RAISES = "handler_error:ValueError"

OF_DESTINATIONS = frozenset({"permission_denied", "limit", "no_responders", "timeout", "unanswered", "bad_answer"})
"""Reasons that are the fault of a destination: they use up no attempt, and end none unless a route names them."""

REFUSING = 0.5
"""Share of the routes with a limit of attempts whose destinations refuse everything for a while."""

LEAST_FOR_DEAD_LETTERS = 2000
"""Payload limit, in bytes, below which a dead letter may not fit: its headers are larger than those of its message."""


def failing(plan: Plan, connections: list[str], random: Random) -> Plan:
    """Return the route with a retry, dead letters, and perhaps a handler that decides the fate of a message."""
    retry: dict[str, Any] = {
        "initial": random.choice((0.05, 0.1, 1.0)),
        "factor": random.choice((1.5, 2.0, 3.0)),
        "max": random.choice((1.0, 5.0)),
        "attempts": random.choice((0, 1, 2, 4)),
    }
    if random.random() < 0.3:
        retry["not"] = random.choice(([RAISES], ["permission_denied", "timeout"], ["too_large"]))
    decides = plan.strategy != "all" or plan.when is not None
    handler = random.choice([*FAIL, "poison", "raises once"])
    return replace(
        plan,
        retry=retry if random.random() < 0.8 else plan.retry,
        dead_letter=random.choice(connections) if random.random() < 0.7 else None,
        # Routes with handlers are added by a decorator, which leaves the choice to the destinations.
        handler=plan.handler if decides or random.random() < 0.5 else handler,
    )


def trouble(routes: tuple[Plan, ...], horizon: float, random: Random) -> list[Step]:
    """Return the steps during which dead letters may not be published."""
    steps = []
    for plan in routes:
        if plan.dead_letter is not None and random.random() < 0.4:
            what = {"broker": plan.dead_letter[0], "pattern": "dead.>"}
            at, seconds = round(random.uniform(0.0, horizon), 3), random.choice((0.6, 5.0, 20.0))
            steps.append(Step(at, "publish denied", seconds, what))
    return steps


def refusing(routes: tuple[Plan, ...], random: Random, when: Callable[[Random], float]) -> list[Step]:
    """Return the steps during which a destination of a route with a limit of attempts refuses everything."""
    steps = []
    for plan in routes:
        targets = [(index, target) for index, target in enumerate(plan.targets) if target.jetstream]
        if plan.retry.get("attempts") and targets and random.random() < REFUSING:
            index, target = random.choice(targets)
            kind, details = random.choice(
                (
                    ("publish denied", {"pattern": f"out.{plan.name}.d{index}.>"}),
                    ("full stream", {"more": 0}),
                    ("sink missing", {}),
                )
            )
            what = {"broker": target.broker[0], **details}
            steps.append(Step(when(random), kind, random.choice((5.0, 20.0)), what))
    return steps


def owes_dead_letter(plan: Plan, outcome: str | None, max_payload: Mapping[str, int]) -> bool:
    """Return True if a stream message fails each time and is finally given up, so that its dead letter must be stored.

    `outcome` is the last result of its handler.
    """
    if plan.dead_letter is None or outcome != RAISED or max_payload[plan.dead_letter[0]] < LEAST_FOR_DEAD_LETTERS:
        return False
    attempts, never = plan.retry.get("attempts", 0), plan.retry.get("not", ())
    return plan.handler == "rejects" or (plan.handler == "poison" and (attempts > 0 or RAISES in never))


def retried_for(plan: Plan, numbers: Iterable[int], without_end: int = 0) -> float:
    """Return the seconds that a route needs to retry those of these messages that fail; all are still untried.

    Within a second, or within the first delay, no more messages are retried than half of what the route may have in
    hand: see `RetryPolicy`. By key, each failed message also holds back the next one until its last attempt.

    `without_end` is the number of messages that fail at each attempt. Each of them always has its place among the
    retries, so every other retry waits for all of them: once for a message that failed before the last fault, which may
    hold back those that are still untried, and then again after each failure.
    """
    every = FAILS_EVERY.get(plan.handler or "")
    count = 0 if every is None else sum(number % every == 0 for number in numbers)
    retry: dict[str, Any] = {"initial": 1.0, "factor": 2.0, "max": 60.0, "attempts": 0, "not": ()} | plan.retry
    if retry["attempts"] == 1:
        return 0.0
    spacing = min(retry["initial"], 1.0) / max(1.0, plan.source["max_in_flight"] / 2)
    behind = 0.0 if reasons.TOO_LARGE in retry["not"] else min(without_end * spacing, LONGEST_SPREAD)
    retries = 1
    if plan.handler in FAILS_EACH_TIME:
        # Without a dead letter, or an end of the retries, the first attempt accounts for the message.
        retries = max(0, retry["attempts"] - 1) if plan.dead_letter is not None else 0
    if not count or not retries or RAISES in retry["not"]:
        return behind
    delays = sum(behind + min(retry["initial"] * retry["factor"] ** one, retry["max"]) for one in range(retries))
    return float(behind + count * retries * spacing + delays * (count if plan.one_of_a_key else 1))


def left_waiting(live: Live, routes: tuple[Plan, ...]) -> int:
    """Return how many core messages waited for another attempt at the end: no other process has them."""
    kept = {plan.name for plan in routes if not plan.stream and plan.retry}
    return sum(route.failed["shutdown"] for route in live.routes if route.name in kept)
