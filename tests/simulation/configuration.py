"""What the router of a schedule is configured with."""

from __future__ import annotations

from typing import Any

from router_trio import Settings
from tests.simulation.schedule import Plan, Schedule


def settings_of(schedule: Schedule) -> Settings:
    """What the router is configured with, but for routes with handlers."""
    return Settings(
        router={"shutdown_timeout": schedule.shutdown_timeout},
        telemetry={"listen": ""},
        connections=schedule.connections,
        routes=[
            {"name": plan.name, "from": {"connection": plan.broker, **plan.source}, "to": destinations_of(plan)}
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
        }
        for index, target in enumerate(plan.targets)
    ]
