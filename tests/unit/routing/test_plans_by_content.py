"""The parts of a plan that decide by content, as compiled from a configuration."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from router_trio.errors import EvaluationError
from router_trio.expressions.message import Facts
from router_trio.routing.route_plans import RoutePlan, compile_routes
from router_trio.settings import Settings


def plan_of(*to: dict[str, Any], source: dict[str, Any] | None = None, **route: Any) -> RoutePlan:
    destinations = [{"subject": f"out.{index}", **one} for index, one in enumerate(to)]
    settings = Settings(
        connections={"main": {"servers": ["nats://h"]}},
        routes=[{"name": "r", "from": source or {"subject": "in.*"}, "to": destinations, **route}],
    )
    [plan] = compile_routes(settings)
    return plan


def facts(plan: RoutePlan, payload: bytes = b"{}", subject: str = "in.7") -> Facts:
    return Facts(subject, b"", payload, plan.reader())


def test_a_plain_route_has_no_decisions() -> None:
    plan = plan_of({}, {"jetstream": True})
    assert (plan.decides, plan.transforms, plan.expressions) == (False, False, [])
    assert tuple(plan.strategy().choose(facts(plan))) == (0, 1)


@pytest.mark.parametrize(
    ("route", "to"),
    [
        ({"when": "true"}, [{}]),
        ({"strategy": "weighted"}, [{}, {}]),
        ({"strategy": "fallback"}, [{}, {}]),
        ({}, [{"when": "true"}]),
        ({}, [{}, {"mirror": 0.5}]),
    ],
)
def test_a_route_with_conditions_a_strategy_or_a_mirror_decides_by_content(
    route: dict[str, Any], to: list[dict[str, Any]]
) -> None:
    assert plan_of(*to, **route).decides


def test_the_share_of_a_mirror_is_exact() -> None:
    assert plan_of({}, {"mirror": 0.1}).destinations[1].mirror == Fraction(1, 10)
    assert plan_of({}, {"mirror": 1}).destinations[1].mirror == 1


def test_first_match_evaluates_conditions_on_bodies_in_order() -> None:
    plan = plan_of(
        {"when": "body.total > 100"}, {"when": 'body.kind == "small"'}, strategy="first_match", when="has(body.total)"
    )
    strategy = plan.strategy()
    assert plan.when is not None
    for payload, takes, chosen in (
        (b'{"total": 150, "kind": "small"}', True, [0]),
        (b'{"total": 5, "kind": "small"}', True, [1]),
        (b'{"total": 5, "kind": "large"}', True, []),
        (b'{"kind": "small"}', False, None),
    ):
        message = facts(plan, payload)
        assert plan.when.evaluate(message) is takes
        if chosen is not None:
            assert list(strategy.choose(message)) == chosen


@pytest.mark.parametrize("payload", [b"no JSON", b"{}", b'{"total": "150"}', b""])
def test_a_condition_that_fails_to_evaluate_does_not_count_as_false(payload: bytes) -> None:
    plan = plan_of({"when": "body.total > 100"}, {})
    with pytest.raises(EvaluationError) as failed:
        plan.strategy().choose(facts(plan, payload))
    assert failed.value.reason == "expression"


def test_sticky_follows_the_key_and_distinguishes_equal_destinations() -> None:
    same = {"subject": "out", "payload": "subject"}
    plan = plan_of({}, {}, same, same, strategy="sticky", key="body.customer")
    strategy = plan.strategy()
    found = {strategy.choose(facts(plan, b'{"customer": %d}' % number))[0] for number in range(200)}
    assert found == {0, 1, 2, 3}
    assert strategy.choose(facts(plan, b'{"customer": 7}')) == strategy.choose(facts(plan, b'{"customer": 7.0}'))


def test_fallback_checks_the_health_of_a_destination() -> None:
    plan = plan_of({}, {}, strategy="fallback")
    assert tuple(plan.strategy(lambda index: index == 1).choose(facts(plan))) == (1,)


def test_each_strategy_starts_its_own_count() -> None:
    plan = plan_of({"weight": 2}, {}, strategy="weighted")
    one, other = plan.strategy(), plan.strategy()
    assert [one.choose(None) for _ in range(3)] == [other.choose(None) for _ in range(3)] == [(0,), (1,), (0,)]


def test_all_expressions_share_one_decoded_body() -> None:
    plan = plan_of(
        {"when": "body.a == 1", "payload": "body.b.c", "headers": {"set": {"X": "string(body.d)"}}},
        {},
        when="body.e > 0",
        key="subject",
    )
    assert len(plan.expressions) == 5
    message = facts(plan, b'{"a": 1, "b": {"c": [1, 2]}, "d": 4, "e": 5}')
    transform = plan.destinations[0].transform()
    assert transform is not None
    assert plan.when is not None
    assert plan.when.evaluate(message) is True
    assert tuple(plan.strategy().choose(message)) == (0, 1)
    assert transform.payload(message, message.payload, 100) == b"[1,2]"
    assert b"X: 4" in transform.headers(message, b"", 100)


def test_expressions_of_a_route_from_a_stream_have_its_variables() -> None:
    source = {"stream": "S", "durable": "d", "filter": "in.*"}
    plan = plan_of({}, source=source, when='stream == "S" && sequence > 5 && deliveries < 3')
    assert plan.when is not None
    found = [
        plan.when.evaluate(Facts("in.1", b"", b"", plan.reader(), stream="S", sequence=sequence, deliveries=1))
        for sequence in (5, 6)
    ]
    assert found == [False, True]


def test_two_plans_of_one_configuration_are_equal() -> None:
    changes: dict[str, Any] = {"when": "body.a > 1", "strategy": "weighted"}
    assert plan_of({}, {"weight": 2}, **changes) == plan_of({}, {"weight": 2}, **changes)
    assert plan_of({}, {"weight": 2}, **changes) != plan_of({}, {"weight": 3}, **changes)
