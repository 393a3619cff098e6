"""The configuration of the router of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router_trio import Settings
from tests.simulation.content import CHANGED
from tests.simulation.schedule import Plan, Schedule, Target

NOTHING: Mapping[str, Any] = {}


def settings_of(
    schedule: Schedule, routes: Sequence[dict[str, Any]] | None = None, more: Mapping[str, Any] = NOTHING
) -> Settings:
    """Return the settings of the router: with these routes, by default all but those with handlers.

    `more` is added to the drawn settings of its connections.
    """
    without_handler = [_route(plan) for plan in schedule.routes if plan.handler is None]
    return Settings(
        router={"shutdown_timeout": schedule.shutdown_timeout},
        telemetry={"listen": "", "handler_errors": "type"},
        connections={name: {**options, **more} for name, options in schedule.connections.items()},
        routes=without_handler if routes is None else routes,
    )


def _route(plan: Plan) -> dict[str, Any]:
    by_key = plan.key or plan.strategy == "sticky"
    return {
        "name": plan.name,
        "from": {"connection": plan.broker, **plan.source},
        "to": destinations_of(plan),
        "strategy": plan.strategy,
        "concurrency": plan.concurrency,
        "loop": plan.loop,
        **({"when": plan.when.expression} if plan.when else {}),
        **({"key": plan.key or "subject"} if by_key else {}),
        **failing_of(plan),
        **({"limit": plan.limit} if plan.limit else {}),
    }


UNUSED = ("Nats-Incr", "Nats-Rollup", "Nats-Marker-Reason")
"""Control headers that no message has."""


FEWEST_AT_ONCE = 2
"""The fewest messages at a time that a reload allows a route which handles several: with one, other orders hold."""


def changed(schedule: Schedule, which: int, way: int) -> Settings:
    """Return settings in which the routes selected by the bits of `which` differ, in ways that no message notices; with
    an odd `way` the connections differ as well. Fewer messages may be handled at a time, never more than are drawn.

    A route that has a handler is listed only if it differs: otherwise it stays, or becomes, the route that the program
    added.
    """
    routes = []
    for index, plan in enumerate(schedule.routes):
        route, differs = _route(plan), _differs(which, index)
        if differs:
            first = route["to"][0]
            first["headers"] = {**first.get("headers", {}), "keep": [UNUSED[way % len(UNUSED)]]}
            if plan.concurrency > FEWEST_AT_ONCE:
                route["concurrency"] = min(plan.concurrency, FEWEST_AT_ONCE + way // 2)
        if differs or plan.handler is None:
            routes.append(route)
    return settings_of(schedule, routes, {"connect_timeout": 1.0 + way / 10} if way % 2 else NOTHING)


def starts_over(schedule: Schedule, index: int) -> list[float]:
    """Return when reloads may end this route of a schedule and begin its successor, in order.

    A reload that leaves a route as it was at first ends it too, if an earlier reload may have changed it.
    """
    times: list[float] = []
    for step in schedule.steps:
        if step.kind == "reload" and (times or _differs(step.what["routes"], index) or step.what["way"] % 2):
            times.append(step.at)
    return times


def _differs(which: int, index: int) -> bool:
    return bool(which >> index & 1)


def destinations_of(plan: Plan) -> list[dict[str, Any]]:
    """Return the destinations of a route: each has subjects of its own, by which it is recognised."""
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
    """Return the settings of a route for messages that fail."""
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
