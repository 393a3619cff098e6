"""From plans to routes: each with its outlets, its state, and what it shares with others of its connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.routing.by_key.core_route import CoreRouteByKey
from router_trio.routing.by_key.stream_route import StreamRouteByKey
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.route import CoreRoute, shared_subscriptions
from router_trio.routing.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.plans import RoutePlan
from router_trio.routing.reply.responder import Responder
from router_trio.routing.retrying.dead_letters import DeadLetters
from router_trio.routing.retrying.route import RetryingRoute
from router_trio.routing.route import Route
from router_trio.routing.stream.route import StreamRoute
from router_trio.routing.tracing import Tracing
from router_trio.states import REPLY, DestinationState, RouteState


def build_routes(
    plans: Sequence[RoutePlan],
    connections: Mapping[str, Connection],
    emit: Emit,
    tracing: Tracing,
    *,
    handler_errors: str = "type",
) -> list[Route]:
    """Return a route for each plan, attached to its connection. `handler_errors`: see `Routing`."""
    passthrough = {name: Passthrough(connection, tracing) for name, connection in connections.items()}
    shared = shared_subscriptions(plans)
    routes: list[Route] = []
    for plan in plans:
        connection, state = connections[plan.connection], _state(plan, connections)
        outlets = [Outlet(destination, connections[destination.connection]) for destination in plan.destinations]
        kind = _content_routing() if plan.looks else Routing
        routing = kind(plan, outlets, state, emit, tracing, handler_errors=handler_errors)
        dead = plan.dead_letter
        letters = None if dead is None else DeadLetters(dead, connections[dead.connection], state)
        route: Route
        if plan.stream is not None:
            route = (StreamRouteByKey if plan.by_key else StreamRoute)(routing, connection, emit, letters)
        else:
            if plan.settings.respond:
                routing.respond_with(Responder(state, connection))
            first = passthrough[outlets[0].connection.name if outlets else connection.name]
            route = _core_route(routing, connection, first, emit, letters, shared.get(plan.name))
        connection.attach(route)
        routes.append(route)
    return routes


def _core_route(
    routing: Routing,
    connection: Connection,
    passthrough: Passthrough,
    emit: Emit,
    dead_letters: DeadLetters | None,
    shared: SharedSubscription | None,
) -> CoreRoute:
    """Return a route from a core subscription, which keeps its messages if its settings want that."""
    if routing.plan.by_key:
        return CoreRouteByKey(routing, connection, passthrough, emit, dead_letters, shared)
    if routing.plan.settings.retry is None and dead_letters is None:
        return CoreRoute(routing, connection, passthrough, emit, shared)
    return RetryingRoute(routing, connection, passthrough, emit, dead_letters, shared)


def _state(plan: RoutePlan, connections: Mapping[str, Connection]) -> RouteState:
    templates = [destination.template for destination in plan.destinations] + [REPLY] * plan.settings.respond
    state = RouteState(plan.name, plan.connection, templates, own_ids=plan.settings.source.own_ids)
    source = plan.settings.source
    keys = ("subject", "queue") if plan.stream is None else ("stream", "durable", "filter")
    state.source = {key: value for key in keys if (value := getattr(source, key)) is not None}
    for one in plan.destinations:
        to = DestinationState(state, one.connection, one.template, one.mapping.pattern, jetstream=one.jetstream)
        state.to.append(to)
        connections[one.connection].destinations.add(to)
    return state


def _content_routing() -> type[Routing]:
    # Only for routes with expressions: what those need takes its time to import.
    from router_trio.routing.content.routing import ContentRouting

    return ContentRouting
