"""Build routes from plans: each with its outlets, its state, and what it shares with other routes of its connection.

Modules that only some routes need are imported for the first such route, so a plain core route does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.events import Emit
from router_trio.routing.core.batch_route import BatchRoute
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.handlers.threads import left_behind_by
from router_trio.routing.handlers.tracebacks import message_failed
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.route_counts import continue_counts
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.source import KeptSource
from router_trio.routing.tracing import RouteTracing, Tracing
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.states import REPLY, RouteState

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters
    from router_trio.routing.flow.control import FlowControl
    from router_trio.routing.kept_route import KeptRoute, Started


def _not_tapped(tracing: RouteTracing) -> None:
    """Do nothing, for a router without taps."""


class RouteBuilder:
    """Builds the routes of one router, and keeps what they share as long as one of them exists."""

    def __init__(
        self,
        emit: Emit,
        tracing: Tracing,
        *,
        handler_errors: str = "type",
        built: Callable[[RouteTracing], None] = _not_tapped,
        name: str = "",
    ) -> None:
        """`handler_errors`: see `Routing`. `built` is called with the tracing of each route.

        `name` is that of the router.
        """
        self._emit = emit
        self._report_suppressed = partial(_report_suppressed, emit)
        self._tracing = tracing
        self._handler_errors = handler_errors
        self._built = built
        self._name = name
        self._passthrough: dict[Connection, Passthrough] = {}
        self._shared: WeakValueDictionary[tuple[Connection, str, str | None], SharedSubscription] = (
            WeakValueDictionary()
        )

    def build(self, plan: RoutePlan, connections: Mapping[str, Connection], before: Route | None = None) -> Route:
        """Return the route of a plan. The caller attaches it to its connection.

        `before` is the same route with its previous settings, whose counts continue. A route from a stream has ended.
        """
        routing, letters = self._routing(plan, connections, before)
        return self._route(routing, connections[plan.connection], letters, before)

    def change(
        self, route: KeptRoute[Any], plan: RoutePlan, connections: Mapping[str, Connection], deadline: float
    ) -> Started:
        """Have a route use other settings, whose source stays: see `Source.stays`. Return what was started before.

        The source of the route has made way. The caller attaches the new one to its connection.
        """
        route.state.is_over = True
        routing, letters = self._routing(plan, connections, route)
        source, connection = route.source, connections[plan.connection]
        if isinstance(source, SubjectSource):
            from router_trio.routing.core.keeper import KeptSubject

            assert isinstance(source, KeptSubject), "it has a route that keeps its messages"
            shared = self._shared_by(plan, connection)
            follows: KeptSource[Any] | None = KeptSubject(routing, connection, self._emit, letters, shared, source)
        else:
            follows = source.go_on(routing, connection, letters)
        assert follows is not None, "it stays"
        return route.use(routing, follows, deadline)

    def _routing(
        self, plan: RoutePlan, connections: Mapping[str, Connection], before: Route | None
    ) -> tuple[Routing, DeadLetters | None]:
        connection, state = connections[plan.connection], _state(plan, connections, self._report_suppressed)
        if before is not None:
            continue_counts(state, before.state)
            theirs = {outlet.connection for outlet in before.routing.outlets}
            for old in before.state.to:
                for one in state.to:
                    if connections[one.connection] in theirs:  # else it is another server, or another user
                        one.go_on(old)
            # Calls of its own handler may still be left behind, but no more of earlier generations' handlers.
            *older, last = before.state.left_behind or [()]
            state.left_behind += [*filter(None, older), last]
        state.left_behind.append(left_behind_by(plan.handler))
        outlets, flow = outlets_of(plan, connections, state, self._emit)
        if flow is not None and before is not None and before.routing.flow is not None:
            flow.go_on(before.routing.flow)
        kind = _content_routing() if plan.looks else Routing
        routing = kind(
            plan,
            outlets,
            state,
            self._emit,
            self._tracing,
            flow,
            handler_errors=self._handler_errors,
            stopwatch=connection.platform.stopwatch,
        )
        if plan.copies_bucket:
            from router_trio.routing.newest import NewestCheck

            routing.compare_with(NewestCheck(routing, connection, self._emit))
        elif plan.retry_schedule is not None and any(one.kind.is_bucket for one in plan.destinations):
            from router_trio.routing.superseded import SupersededCheck

            routing.compare_with(SupersededCheck(routing, connection))
        self._built(routing.tracing)
        letters = None
        if (dead := plan.dead_letter) is not None:
            from router_trio.routing.dead_letters import DeadLetters

            letters = DeadLetters(dead, connections[dead.connection], state)
        if plan.retry_schedule is not None:
            from router_trio.routing.stream.retries.schedules import RetrySchedules

            routing.schedule_with(RetrySchedules(plan.retry_schedule, plan.numbering, connection, state))
        if plan.settings.respond:
            from router_trio.routing.responder import Responder

            routing.respond_with(Responder(state, connection, plan))
        return routing, letters

    def _route(
        self,
        routing: Routing,
        connection: Connection,
        letters: DeadLetters | None,
        before: Route | None,
    ) -> Route:
        """Return a route around its source, which continues from the source of `before` if it can."""
        plan, settings = routing.plan, routing.plan.settings
        source = None if before is None else before.source.go_on(routing, connection, letters)
        if source is None and partitioning_of(settings.source) is not None:
            from router_trio.routing.stream.partitions.source import PartitionedSource

            source = PartitionedSource(routing, connection, self._emit, letters, router=self._name)
        if source is None and plan.retry_schedule is not None:
            from router_trio.routing.stream.retries.source import RetryingSource

            source = RetryingSource(routing, connection, self._emit, letters)
        if source is None and settings.source.kind.consumer(settings.source) is not None:
            from router_trio.routing.stream.source import StreamSource

            source = StreamSource(routing, connection, self._emit, letters)
        if source is None:
            shared = self._shared_by(plan, connection)
            if not (settings.holds_failed_messages or plan.by_key or _has_flow_settings(plan)):
                outlets = routing.outlets
                passthrough = self._passthrough_to(outlets[0].connection if outlets else connection)
                return BatchRoute(routing, SubjectSource(routing, connection, self._emit, shared), passthrough)
            from router_trio.routing.core.keeper import KeptSubject

            source = KeptSubject(routing, connection, self._emit, letters, shared)
        from router_trio.routing.kept_route import KeptRoute

        return KeptRoute(routing, source)

    def forget_connection(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._passthrough.pop(connection, None)

    def _passthrough_to(self, connection: Connection) -> Passthrough:
        found = self._passthrough.get(connection)
        if found is None:
            found = self._passthrough[connection] = Passthrough(connection, self._tracing)
        return found

    def _shared_by(self, plan: RoutePlan, connection: Connection) -> SharedSubscription:
        """Return the subscription shared by all routes that read this subject, in this queue group if there is one."""
        subscription = plan.settings.source.kind.subscription(plan.settings.source)
        assert subscription is not None
        key = (connection, *subscription)
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = SharedSubscription(*subscription)
        return found


def outlets_of(
    plan: RoutePlan, connections: Mapping[str, Connection], state: RouteState, emit: Emit
) -> tuple[list[Outlet], FlowControl | None]:
    """Return the outlets of a route, and its flow control; None if nothing of it may have to wait."""
    theirs = [connections[destination.connection] for destination in plan.destinations]
    flow = None
    holds = plan.settings.holds_failed_messages
    if holds or _has_flow_settings(plan):
        from router_trio.routing.flow.control import FlowControl

        flow = FlowControl(plan, theirs, state, emit, holds=holds)
    outlets = [
        Outlet(destination, connection, None if flow is None else flow.breaker_of(place), state.to[place])
        for place, (destination, connection) in enumerate(zip(plan.destinations, theirs, strict=True))
    ]
    return outlets, flow


def _has_flow_settings(plan: RoutePlan) -> bool:
    """Return True if the settings limit the messages that may be sent, or have a breaker."""
    return plan.settings.limit is not None or any(to.breaker is not None for to in plan.settings.to)


def _report_suppressed(emit: Emit, route: str, detail: str, count: int) -> None:
    emit(message_failed(route, reasons.DUPLICATE, detail, count=count))


def _state(
    plan: RoutePlan, connections: Mapping[str, Connection], report_suppressed: Callable[[str, str, int], None]
) -> RouteState:
    templates = [destination.template for destination in plan.destinations] + [REPLY] * plan.settings.respond
    own_ids = plan.settings.source.own_ids
    state = RouteState(plan.name, plan.connection, templates, own_ids=own_ids, report_suppressed=report_suppressed)
    source = plan.settings.source
    state.source, state.redelivers = source.kind.reads(source), source.kind.redelivers
    state.gives_up = plan.settings.gives_up
    for one in plan.destinations:
        to = one.state(state)
        to.has_alternatives = plan.settings.strategy == "fallback"
        to.fails_streamless = plan.settings.fails_without_stream
        state.to.append(to)
        connections[one.connection].destinations.add(to)
    return state


def _content_routing() -> type[Routing]:
    from router_trio.routing.content.routing import ContentRouting

    return ContentRouting
