"""What the router of a schedule is configured with."""

from __future__ import annotations

from typing import Any

from router_trio import Settings
from tests.simulation.content import CHANGED
from tests.simulation.schedule import Plan, Schedule, Target


def settings_of(schedule: Schedule) -> Settings:
    """What the router is configured with, but for routes with handlers."""
    return Settings(
        router={"shutdown_timeout": schedule.shutdown_timeout},
        telemetry={"listen": ""},
        connections=schedule.connections,
        routes=[
            {
                "name": plan.name,
                "from": {"connection": plan.broker, **plan.source},
                "to": destinations_of(plan),
                "strategy": plan.strategy,
                **({"when": plan.when.expression} if plan.when else {}),
                **({"key": plan.key or "subject"} if plan.key or plan.strategy == "sticky" else {}),
                **failing_of(plan),
                **({"limit": plan.limit} if plan.limit else {}),
            }
            for plan in schedule.routes
            if plan.handler is None
        ],
    )


def destinations_of(plan: Plan) -> list[dict[str, Any]]:
    """Where a route sends: each destination has subjects of its own, which tell it apart."""
    last = "{{wildcard(1)}}" if plan.filter == "*" else plan.filter
    return [
        {
            "connection": target.broker,
            "subject": f"{'out' if target.jetstream else 'got'}.{plan.name}.d{index}.{last}",
            "jetstream": target.jetstream,
            **_content_of(target),
        }
        for index, target in enumerate(plan.targets)
    ]


def failing_of(plan: Plan) -> dict[str, Any]:
    """What a route does with messages that fail."""
    found: dict[str, Any] = {"retry": plan.retry} if plan.retry else {}
    if plan.dead_letter is not None:
        last = "{{wildcard(1)}}" if plan.filter == "*" else plan.filter
        found["dead_letter"] = {"connection": plan.dead_letter, "subject": f"dead.{plan.name}.{last}"}
    return found


def _content_of(target: Target) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if target.breaker is not None:
        options["breaker"] = target.breaker
    if target.when is not None:
        options["when"] = target.when.expression
    if target.weight > 1:
        options["weight"] = target.weight
    if target.mirror is not None:
        options["mirror"] = target.mirror
    if target.changed:
        options["payload"] = f'string(payload) + "{CHANGED.decode()}"'
        options["headers"] = {"set": {"X-From": "subject"}}
    return options
