"""Exactly which messages of subjects the judge lets wait for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router_trio.events import MessageFailed
from tests.simulation.configuration import settings_of
from tests.simulation.content import Sent
from tests.simulation.draw import draw
from tests.simulation.held_back import HeldBack
from tests.simulation.schedule import PAIRS, Plan, Target

PER = {"rate": "20/s", "burst": 5, "per": "tokens[size(tokens) - 1]"}
AWAY = (Target("a", False), Target("b", False))
PLAN = Plan("r0", "a", False, AWAY, None, {"subject": "core.r0.*"}, strategy="sticky", retry={"initial": 0.1})
SIZES = {1: 0, 2: 300, 3: 0, 4: 0, 5: 300, 6: 0}
"""Sizes of messages by their numbers; the even ones have the key k0."""


class Judged:
    """A judge of a route, and what it has seen: each message in the second of its number, by two processes."""

    def __init__(self, plan: Plan = PLAN, *, max_payload: int = 200, too_long: int = 0) -> None:
        self.plan = plan
        sent = {number: Sent(f"k{number % 2}", "", size) for number, size in SIZES.items()}
        if too_long:
            sent[too_long] = Sent("k" * 4000, "", 0)
        schedule = replace(draw(0), routes=(plan,), max_payload={"a": 1024, "b": max_payload})
        self.judge = HeldBack(schedule, {number: float(number) for number in SIZES}, sent, {too_long})
        self.judge.process_begins(1, 0.0)
        self.judge.process_begins(2, 2.5)
        for number in SIZES:
            self.judge.published("a", "core.r0", number)

    def fails(self, process: int = 1, key: str = "k0", reason: str = "too_large", at: float = 4.5) -> None:
        self.judge.reported(process, MessageFailed(at=at, route="r0", reason=reason, subject=f"core.r0.{key}"))

    def held(self, process: int = 1) -> set[int]:
        return self.judge.held(process, self.plan)

    def waiting(self, process: int = 1) -> list[int]:
        return [number for number in SIZES if self.judge.waits(process, self.plan, number)]


def test_a_message_that_is_too_large_holds_back_its_key_while_it_is_retried() -> None:
    judged = Judged()
    assert (judged.held(), judged.waiting()) == (set(), [])
    judged.fails()
    assert judged.held() == {2, 4, 6}
    assert judged.waiting() == [2, 4], "6 was published since the last failure"
    judged.fails(at=7.0)
    assert judged.waiting() == [2, 4, 6]
    judged.fails(key="k1")
    assert judged.held() == {2, 4, 5, 6}, "1 and 3 are ahead of the first one that is too large"


def test_a_process_has_nothing_that_was_published_before_its_start() -> None:
    judged = Judged()
    judged.fails()
    assert (judged.held(2), judged.waiting(2)) == (set(), []), "another process reported it"
    judged.fails(2)
    judged.fails(2, key="k1", at=6.5)
    assert (judged.held(2), judged.waiting(2)) == ({5}, [5])


def test_a_subject_that_is_too_long_fails_each_time_too() -> None:
    judged = Judged(max_payload=1024, too_long=4)
    judged.fails(key="k" * 100)
    assert judged.held() == set(), "it is another subject"
    judged.fails(key="k" * 100 + "…")
    assert judged.waiting() == [4]


@pytest.mark.parametrize(
    "changes",
    [
        {"retry": {}},
        {"retry": {"attempts": 4}},
        {"retry": {"not": ["timeout", "too_large"]}},
        {"strategy": "all"},
        {"strategy": "weighted"},
        {"handler": "sync"},
        {"stream": True},
    ],
)
def test_no_message_waits_for_ever_if_the_others_are_given_up_or_hold_back_no_key(changes: dict[str, Any]) -> None:
    judged = Judged(replace(PLAN, **changes))
    judged.fails()
    assert (judged.held(), judged.waiting()) == (set(), [])


def test_other_failures_and_messages_of_other_routes_hold_back_nothing() -> None:
    judged = Judged()
    judged.fails(reason="timeout")
    assert judged.held() == set()
    for plan, max_payload in ((PLAN, 1024), (replace(PLAN, broker="b"), 200), (replace(PLAN, name="r1"), 200)):
        judged = Judged(plan, max_payload=max_payload)
        judged.fails()
        assert judged.held() == set()
    judged = Judged(replace(PLAN, source={"subject": "core.r0.k1"}))
    judged.fails()
    assert judged.held() == set()


@pytest.mark.parametrize("strategy", ["all", "sticky"])
@pytest.mark.parametrize("key", [None, "subject", PAIRS])
@pytest.mark.parametrize(
    "more",
    [
        {"retry": {}},
        {"retry": {"attempts": 2}},
        {"retry": {}, "dead_letter": "a"},
        {"retry": {}, "limit": PER},
        {"retry": {}, "limit": {"rate": "20/s"}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_judge_knows_which_routes_have_one_message_of_a_key_at_a_time(
    strategy: str, key: str | None, more: dict[str, Any], stream: bool
) -> None:
    source = {"stream": "IN", "durable": "r0", "filter": "in.*"} if stream else PLAN.source
    plan = replace(PLAN, stream=stream, source=source, strategy=strategy, key=key, **more)
    connections = {name: {"servers": ["nats://one:4222"]} for name in "ab"}
    (route,) = settings_of(replace(draw(0), routes=(plan,), connections=connections)).routes
    follows_at_once = stream and strategy == "sticky"
    assert plan.one_of_a_key is (route.goes_by_key(handled=False) and not follows_at_once)
