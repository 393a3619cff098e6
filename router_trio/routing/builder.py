"""From plans to routes: each with its outlets, its state, and what it shares with others of its connection.

A kind of route is imported for the first route of its kind, and so is what only some routes have: a plain core route
does not wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.routing.core.batch_route import BatchRoute
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.route import CoreRoute
from router_trio.routing.handlers import left_behind_by
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.plans import RoutePlan
from router_trio.routing.route import Route
from router_trio.routing.tracing import Tracing
from router_trio.routing.whole import count_on
from router_trio.states import REPLY, RouteState

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters


class RouteBuilder:
    """Makes the routes of one router, and keeps what they share for as long as one of them is there."""

    def __init__(self, emit: Emit, tracing: Tracing, *, handler_errors: str = "type") -> None:
        """`handler_errors`: see `Routing`."""
        self._emit = emit
        self._tracing = tracing
        self._handler_errors = handler_errors
        self._passthrough: dict[Connection, Passthrough] = {}
        self._shared: WeakValueDictionary[tuple[Connection, str, str | None], SharedSubscription] = (
            WeakValueDictionary()
        )

    def build(self, plan: RoutePlan, connections: Mapping[str, Connection], before: Route | None = None) -> Route:
        """Return the route of a plan. Whoever builds it attaches it to its connection.

        `before` is the same route with its settings before, of which the counts go on. One from a stream is over.
        """
        connection, state = connections[plan.connection], _state(plan, connections)
        if before is not None:
            count_on(state, before.state)
            # Its own may still leave some behind, those before it none any more.
            *older, last = before.state.left_behind or [()]
            state.left_behind += [*filter(None, older), last]
        state.left_behind.append(left_behind_by(plan.handler))
        outlets = [Outlet(destination, connections[destination.connection]) for destination in plan.destinations]
        kind = _content_routing() if plan.looks else Routing
        routing = kind(plan, outlets, state, self._emit, self._tracing, handler_errors=self._handler_errors)
        routing.turn.clock = connection.platform.stopwatch
        letters = None
        if (dead := plan.dead_letter) is not None:
            from router_trio.routing.dead_letters import DeadLetters

            letters = DeadLetters(dead, connections[dead.connection], state)
        if state.redelivers:
            return _stream_route(routing, connection, self._emit, letters, before)
        if plan.settings.respond:
            from router_trio.routing.responder import Responder

            routing.respond_with(Responder(state, connection, plan))
        first = self._passthrough_to(outlets[0].connection if outlets else connection)
        return _core_route(routing, connection, first, self._emit, letters, self._shared_by(plan, connection))

    def forget_connection(self, connection: Connection) -> None:
        """This connection has ended: no route is built on it any more."""
        self._passthrough.pop(connection, None)

    def _passthrough_to(self, connection: Connection) -> Passthrough:
        found = self._passthrough.get(connection)
        if found is None:
            found = self._passthrough[connection] = Passthrough(connection, self._tracing)
        return found

    def _shared_by(self, plan: RoutePlan, connection: Connection) -> SharedSubscription:
        """Return the subscription that all routes share which read this subject, in this queue group if in any."""
        subscription = plan.settings.source.kind.subscription(plan.settings.source)
        assert subscription is not None
        key = (connection, *subscription)
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = SharedSubscription(*subscription)
        return found


def _stream_route(
    routing: Routing,
    connection: Connection,
    emit: Emit,
    dead_letters: DeadLetters | None,
    before: Route | None,
) -> Route:
    """Return a route from a stream, which goes on where the one before it was, if that is the same consumer."""
    from router_trio.routing.stream.route import StreamRoute

    known: StreamRoute | None = None
    if before is not None and before.has_consumer(connection, routing.plan.settings.source):
        known = cast(StreamRoute, before)
    return StreamRoute(routing, connection, emit, dead_letters, known)


def _core_route(
    routing: Routing,
    connection: Connection,
    passthrough: Passthrough,
    emit: Emit,
    dead_letters: DeadLetters | None,
    shared: SharedSubscription,
) -> CoreRoute:
    """Return a route from a core subscription, which keeps its messages if its settings want that."""
    plan = routing.plan
    if plan.settings.retry is None and dead_letters is None and routing.flow is None and not plan.by_key:
        return BatchRoute(routing, connection, passthrough, emit, shared)
    from router_trio.routing.core.kept_route import KeptRoute

    return KeptRoute(routing, connection, emit, dead_letters, shared)


def _state(plan: RoutePlan, connections: Mapping[str, Connection]) -> RouteState:
    templates = [destination.template for destination in plan.destinations] + [REPLY] * plan.settings.respond
    state = RouteState(plan.name, plan.connection, templates, own_ids=plan.settings.source.own_ids)
    source = plan.settings.source
    state.source, state.redelivers = source.kind.reads(source), source.kind.redelivers
    for one in plan.destinations:
        to = one.state(state)
        state.to.append(to)
        connections[one.connection].destinations.add(to)
    return state


def _content_routing() -> type[Routing]:
    from router_trio.routing.content.routing import ContentRouting

    return ContentRouting
