"""How long the judge waits for messages that fail, and are retried, only after the last fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router_trio.routing.policy import retry
from tests.simulation.failing import RAISES, retried_for
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Schedule, Step, Target, schedule_of

SOURCE = {"stream": "IN", "durable": "r0", "filter": "in.*", "max_in_flight": 5, "ack_wait": 2.0}
RETRY = {"initial": 1.0, "factor": 3.0, "max": 1.0, "attempts": 4}

POISON = Plan("r0", "a", True, (Target("a", True),), "poison", SOURCE, retry=RETRY, dead_letter="a")
ONCE = replace(POISON, handler="raises once", retry={})


LOAD: dict[str, Any] = {"broker": "a", "subject": "in", "headers": "", "size": 0, "keys": 4}
NARROW = replace(ONCE, source={**SOURCE, "max_in_flight": 2})


def schedule(plan: Plan, count: int) -> Schedule:
    """Return a schedule without faults, in which strangers publish `count` messages at once."""
    load = {**LOAD, "count": count}
    return schedule_of(plan, Step(1.0, "strangers publish", 0.0, load))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (POISON, 40 * 3 * 0.4 + 3 * 1.0),
        (replace(POISON, retry={**RETRY, "initial": 0.1, "max": 5.0}), 40 * 3 * 0.04 + 0.1 + 0.3 + 0.9),
        (replace(POISON, source={**SOURCE, "max_in_flight": 1}), 40 * 3 * 1.0 + 3 * 1.0),
        (replace(POISON, retry={**RETRY, "attempts": 1}), 0.0),
        (replace(POISON, retry={**RETRY, "attempts": 0}), 0.0),
        (replace(POISON, retry={**RETRY, "not": [RAISES]}), 0.0),
        (replace(POISON, dead_letter=None), 0.0),
        (replace(POISON, handler="rejects"), 0.0),
        (replace(POISON, handler=None), 0.0),
        (ONCE, 24 * 0.4 + 1.0),
        (replace(ONCE, retry={"attempts": 1}), 0.0),
        (replace(ONCE, handler="slow and fails", key="subject"), 24 * 0.4 + 24 * 1.0),
    ],
)
def test_the_judge_waits_as_long_as_the_retries_are_spread(plan: Plan, expected: float) -> None:
    assert retried_for(plan, range(1, 121)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("plan", "without_end", "expected"),
    [
        (NARROW, 20, 20.0 + 24 * 1.0 + 20.0 + 1.0),
        (NARROW, 1000, 60.0 + 24 * 1.0 + 60.0 + 1.0),
        (replace(NARROW, source=SOURCE), 20, 8.0 + 24 * 0.4 + 8.0 + 1.0),
        (replace(NARROW, handler="slow and fails", key="subject"), 20, 20.0 + 24 * 1.0 + 24 * (20.0 + 1.0)),
        (replace(NARROW, handler=None), 20, 20.0),
        (replace(NARROW, retry={"attempts": 1}), 20, 0.0),
        (replace(NARROW, retry={"not": ["too_large"]}), 20, 24 * 1.0 + 1.0),
        (POISON, 20, 8.0 + 40 * 3 * 0.4 + 3 * (8.0 + 1.0)),
    ],
)
def test_the_judge_waits_for_retries_among_those_of_messages_that_fail_without_end(
    plan: Plan, without_end: int, expected: float
) -> None:
    assert retried_for(plan, range(1, 121), without_end) == pytest.approx(expected)


def test_messages_that_are_retried_among_those_that_fail_without_end_are_delivered_in_time() -> None:
    """Two retries wait for those of 60 messages, one after the other.

    The first one is that of a refused message. It holds back the messages that fail after it, until a minute later.
    """
    denied = Step(0.5, "short window", 15.0, {"broker": "a", "pattern": "out.*.d0.>"})
    large = Step(1.0, "strangers publish", 0.0, {**LOAD, "count": 60, "size": 300})
    small = Step(2.0, "strangers publish", 0.0, {**LOAD, "count": 20, "keys": 1})
    among = replace(
        schedule(NARROW, 0),
        faults=("short window", "small max_payload"),
        max_payload={"a": 200},
        steps=(denied, large, small),
    )
    assert simulate(0, among).wrong == ()


def test_many_messages_that_fail_only_after_the_last_fault_are_given_up_in_time() -> None:
    """The retries of 60 messages take longer than the minute in which everything else is delivered."""
    assert retried_for(POISON, range(1, 181)) > 60.0
    assert simulate(0, schedule(POISON, 180)).wrong == ()


def test_messages_that_are_retried_later_than_their_route_spreads_them_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = retry.RetryPolicy.backoff
    monkeypatch.setattr(retry.RetryPolicy, "backoff", lambda *args: 60.0 + prompt(*args))
    (promise, _), *_ = simulate(0, schedule(POISON, 180)).wrong
    assert promise == "liveness"
