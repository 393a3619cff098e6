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


UNUSED = ("Nats-Incr", "Nats-Rollup", "Nats-Marker-Reason")
"""Control headers that no message has."""


def changed(settings: Settings, dice: int) -> Settings:
    """Return settings of which the routes differ that `dice` has a bit for, in what no message notices."""
    routes = list(settings.routes)
    for index, route in enumerate(routes):
        if dice >> index & 1:
            first, *others = route.to
            headers = first.headers.model_copy(update={"keep": [UNUSED[dice % len(UNUSED)]]})
            to = [first.model_copy(update={"headers": headers}), *others]
            routes[index] = route.model_copy(update={"to": to})
    return settings.model_copy(update={"routes": routes})


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
