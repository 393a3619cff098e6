"""Exactly what the judge allows for messages that were given up."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from router_trio.events import DeadLetterNotStored, Event, MessageGivenUp
from tests.simulation.draw import draw
from tests.simulation.failing import LEAST_FOR_DEAD_LETTERS
from tests.simulation.given_up import GivenUp
from tests.simulation.schedule import Plan, Schedule, Step, Target

SMALL = LEAST_FOR_DEAD_LETTERS - 1
PLAN = Plan("r0", "a", True, (Target("a", True),), None, {"max_in_flight": 3}, dead_letter="a")
SIX = [(number, f"k{number % 2}") for number in range(1, 7)]


def schedule(max_payload: int = SMALL, *, deleted_at: float | None = None, durable: str = "r0") -> Schedule:
    steps = () if deleted_at is None else (Step(deleted_at, "durable deleted", 0.0, {"durable": durable}),)
    return replace(draw(0), routes=(PLAN,), steps=steps, max_payload={"a": max_payload})


def given_up() -> Event:
    return MessageGivenUp(at=1.0, route="r0", reason="timeout", attempts=1, subject="in.k0", stream="IN", sequence=5)


def not_stored(reason: str = "too_large") -> Event:
    return DeadLetterNotStored(at=1.0, route="r0", reason=reason)


def test_only_a_later_process_may_retry_a_given_up_message() -> None:
    judge = GivenUp(schedule())
    judge.process_begins(1, 0.0)
    judge.reported(1, given_up(), 5)
    assert judge.retried_from("r0", 5, 20.0) == -inf, "the process that gave it up knows it"
    judge.process_begins(2, 7.0)
    judge.process_begins(3, 9.0)
    assert judge.retried_from("r0", 5, 20.0) == 7.0, "what the next one sent is behind it again"
    assert judge.retried_from("r0", 6, 20.0) == -inf


@pytest.mark.parametrize(
    ("deleted_at", "durable", "now", "expected"),
    [
        (None, "r0", 20.0, -inf),
        (8.0, "another", 20.0, -inf),
        (0.5, "r0", 20.0, -inf),  # the durable was created again before the message was given up
        (6.0, "r0", 20.0, 7.0),
        (8.0, "r0", 20.0, 9.0),  # the second process found the durable, and what it sent is behind the message
        (8.0, "r0", 7.5, -inf),  # it is not deleted yet
        (9.5, "r0", 20.0, 9.5),  # the third process may not have found it
    ],
)
def test_a_message_that_its_consumer_has_finished_with_is_redelivered_only_by_a_new_durable(
    deleted_at: float | None, durable: str, now: float, expected: float
) -> None:
    judge = GivenUp(schedule(deleted_at=deleted_at, durable=durable))
    judge.process_begins(1, 0.0)
    judge.reported(1, given_up(), 5)
    judge.done("r0", 5)
    judge.process_begins(2, 7.0)
    judge.process_begins(3, 9.0)
    assert judge.retried_from("r0", 5, now) == expected


def test_a_refused_message_whose_dead_letter_is_too_large_holds_back_its_key() -> None:
    judge = GivenUp(schedule())
    judge.reported(1, not_stored(), 3)
    judge.done("r0", 5)
    assert judge.stuck(PLAN, SIX[:4], lambda number: number == 3) == ({3}, False)
    assert judge.stuck(PLAN, [*SIX, (7, "k1"), (9, "k1")], lambda number: number == 3) == ({3, 7, 9}, True)


def test_a_message_that_failed_by_its_own_fault_holds_back_others_only_by_key() -> None:
    judge = GivenUp(schedule())
    judge.reported(1, not_stored(), 3)
    assert judge.stuck(PLAN, SIX, lambda number: False) == ({3}, False)
    assert judge.stuck(replace(PLAN, key="subject"), SIX, lambda number: False) == ({3, 5}, False)


@pytest.mark.parametrize(("reason", "max_payload"), [("permission_denied", SMALL), ("too_large", SMALL + 1)])
def test_a_dead_letter_that_may_be_stored_later_is_owed(reason: str, max_payload: int) -> None:
    judge = GivenUp(schedule(max_payload))
    judge.reported(1, not_stored(reason), 3)
    assert judge.stuck(PLAN, SIX, lambda number: True) == (set(), False)
