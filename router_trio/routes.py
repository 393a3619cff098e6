"""Routes as plans: which messages they take, and where each would go. Pure; shared by routing and by `explain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import randrange
from typing import Any

from router_trio.mappings import Mapping
from router_trio.settings import RouteSettings
from router_trio.subjects import matches

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Destination:
    """One place that a route sends to. `template` is the configured subject; it labels metrics and spans.

    `id_suffix` is added to the `Nats-Msg-Id` of what goes there: see `compile_routes`.
    """

    connection: str
    template: str
    jetstream: bool
    mapping: Mapping
    id_suffix: str = ""


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route, compiled. `pattern` is what its subjects match: the subscription, or a stream's filter or `>`."""

    name: str
    connection: str
    pattern: str
    destinations: tuple[Destination, ...]
    settings: RouteSettings
    handler: Handler | None = field(default=None, compare=False)

    @property
    def stream(self) -> str | None:
        """The stream that it reads, or None for a core subscription."""
        return self.settings.source.stream

    @property
    def connections(self) -> frozenset[str]:
        """The connections that its destinations need."""
        return frozenset(destination.connection for destination in self.destinations)


def compile_routes(
    routes: Sequence[RouteSettings],
    handlers: dict[str, Handler] | None = None,
    random: Callable[[int], int] = randrange,
) -> list[RoutePlan]:
    """Compile validated route settings, in order. `handlers` are those of routes that have one, by route name.

    A copy of a message keeps the message's own `Nats-Msg-Id`, so that streams drop a resend. Two copies into one
    stream must not look like a resend of each other: on each connection the first JetStream destination of the whole
    configuration keeps the id as it is, every other one adds its route and position.
    """
    plans = []
    taken: set[str] = set()
    for route in routes:
        source = route.source
        destinations = []
        for index, to in enumerate(route.to):
            suffix = ""
            if to.jetstream:
                suffix = f":{route.name}:{index}" if to.connection in taken else ""
                taken.add(to.connection)
            mapping = source.mapping(to.subject, random)
            destinations.append(Destination(to.connection, to.subject, to.jetstream, mapping, suffix))
        handler = (handlers or {}).get(route.name)
        plans.append(RoutePlan(route.name, source.connection, source.pattern, tuple(destinations), route, handler))
    return plans


def routes_for(plans: Sequence[RoutePlan], subject: str) -> list[RoutePlan]:
    """The routes that would take a message with this subject, in order."""
    return [plan for plan in plans if matches(plan.pattern, subject)]
