"""Run messages through one route without sending anything, and return what the route would send.

The same code as for any message calls the handler, evaluates expressions, chooses destinations, maps subjects and makes
ids. Retries, limits, breakers and sending are left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors.reasons import UNMATCHED
from router_trio.link import Link, LinkListener
from router_trio.outbox.operation import CoreOperation, OperationWithAck
from router_trio.protocol import ack_reply, framing
from router_trio.protocol.copies import Copied
from router_trio.routing.core.delivery import CoreDelivery
from router_trio.routing.delivery import Delivery, MirrorCopy
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.failed_messages import Numbering
from router_trio.routing.policy.retry import Failure
from router_trio.routing.policy.server_clock import ServerClock
from router_trio.routing.route_plans import Destination, Handler, RoutePlan, compile_routes
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Doubt, StreamDelivery
from router_trio.routing.tracing import NoTracing
from router_trio.settings import RouteSettings, Settings
from router_trio.states import RouteState


@dataclass(frozen=True, slots=True)
class Copy:
    """A publish that a route would make. `mirror`: nothing depends on its delivery.

    `stream` is the stream that the destination names, which may not have the subject.
    """

    connection: str
    subject: str
    headers: bytes
    payload: bytes
    jetstream: bool
    mirror: bool = False
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a message in its stream, and the time it was stored, in nanoseconds since 1970."""

    stream: str
    sequence: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message as a route receives it. The ids of its copies begin with `message_id`.

    `place` is None for a message from a core subscription.
    """

    subject: str
    headers: bytes
    payload: bytes
    message_id: bytes
    place: Place | None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The outcome of a message in a route: copies, why it `failed`, or the reason for which it was `filtered` out."""

    copies: tuple[Copy, ...]
    failed: Failure | None = None
    filtered: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The maximum sizes that the server of a connection accepts, in bytes."""

    max_payload: int
    max_control_line: int


class Rehearsal:
    """A route whose connections have no links."""

    def __init__(
        self,
        settings: Settings,
        route: RouteSettings,
        handlers: dict[str, Handler],
        limits: Mapping[str, Limits],
        *,
        to_each: bool = False,
    ) -> None:
        """`limits` are the limits of every connection that the route sends to, by name.

        With `to_each` a message has the copies of all destinations that the strategy could choose.
        """
        bare = [to.model_copy(update={"breaker": None}) for to in route.to]
        changes = {"limit": None, "retry": None, "dead_letter": None, "respond": False, "to": bare}
        one = settings.model_copy(update={"routes": [route.model_copy(update=changes)]})
        (plan,) = compile_routes(one, handlers)
        if to_each:  # after its strategy has decided about the ids
            plan = replace(plan, settings=plan.settings.model_copy(update={"strategy": "all"}))
        self._plan: RoutePlan = plan
        self._connections = {name: _connection(name, settings, limits[name]) for name in sorted(self._plan.connections)}
        self._routing = _routing(self._plan, self._connections)
        self.source_clock: ServerClock = ServerClock()
        """The clock of the server that stored the messages; until it is set, that of this machine counts."""
        for outlet in self._routing.outlets:
            outlet.contents.source_clock = self.source_clock
        self._keeper = _NoKeeper(self._routing)

    @property
    def destinations(self) -> Sequence[Destination]:
        """The destinations of the route, in order."""
        return self._plan.destinations

    @property
    def calls_handler(self) -> bool:
        """Return True if `run` calls a handler, which may have side effects."""
        return self._plan.handler is not None

    async def run(self, message: Arrived) -> Rehearsed:
        """Return what the route would send for a message. Waits as long as its handler blocks."""
        state = self._routing.state
        state.filtered.clear()
        delivery = self._delivery(message)
        try:
            if self._plan.handler is None:
                self._routing.forward(delivery)
            else:
                await self._routing.route(self._plan.handler, delivery)
            failed, outcome = delivery.failure, delivery.outcome
        finally:
            copies = [copy for connection in self._connections.values() for copy in self._taken_from(connection)]
        if failed is not None:
            return Rehearsed((), failed=failed)
        if outcome == "filtered":
            return Rehearsed((), filtered=next(iter(state.filtered), UNMATCHED))
        return Rehearsed(tuple(copies))

    def _delivery(self, message: Arrived) -> Delivery:
        now, keeper, place = trio.current_time(), self._keeper, message.place
        reply, time = b"", b""
        if place is not None:  # as its first delivery by a consumer
            time = b"%d" % place.time_ns
            stream = framing.wire(place.stream)
            reply = ack_reply.subject(stream, b"rehearsal", sequence=place.sequence, number=1, time=place.time_ns)
        frame = framing.publish(framing.wire(message.subject), message.payload, reply=reply, headers=message.headers)
        raw = framing.published(frame)
        if place is None:
            delivery = CoreDelivery(keeper, keeper.state, raw, now, 0)
            delivery.message_id = message.message_id
            return delivery
        return StreamDelivery(keeper, StreamCursor(), raw, now, place.sequence, 1, time, message.message_id)

    def _taken_from(self, connection: Connection) -> Sequence[Copy]:
        """Take the accepted copies for a connection out of its outbox, in order."""
        copies: list[Copy] = []
        for operation in connection.outbox.take_pending():
            assert isinstance(operation, CoreOperation), "copies of one message are accepted one by one"
            raw = framing.published(operation.frame)
            mirror = isinstance(operation.owner, MirrorCopy)
            subject, block, payload = framing.text(raw[0]), framing.header_block(raw), framing.payload(raw)
            named = operation.puback_from if isinstance(operation, OperationWithAck) else None
            stream = named if isinstance(named, str) else None
            copies.append(Copy(connection.name, subject, block, payload, operation.with_ack, mirror, stream))
        return copies


class _NoKeeper:
    """The keeper of the rehearsed message, whose fate `run` reads."""

    def __init__(self, routing: Routing) -> None:
        self.state: RouteState = routing.state
        self.numbering: Numbering = routing.plan.numbering
        self.copied: Copied | None = None
        self.doubt: Doubt | None = None
        self.stored: list[StreamDelivery] = []

    def destination_refused(self, delivery: StreamDelivery) -> None: ...

    def finished(self, delivery: Delivery) -> None: ...

    def passes_by(self, delivery: StreamDelivery) -> bool:
        return False

    def first_stored(self) -> None: ...

    def order_key(self, delivery: StreamDelivery) -> bytes:
        return delivery.raw[0]


def _connection(name: str, settings: Settings, limits: Limits) -> Connection:
    connection = Connection(name, settings.connections[name], _never, lambda event: None)
    connection.max_payload = limits.max_payload
    connection.max_control_line = limits.max_control_line
    connection.outbox.link_up()
    return connection


def _never(server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
    raise AssertionError("a rehearsal connects to nothing")


def _routing(plan: RoutePlan, connections: Mapping[str, Connection]) -> Routing:
    state = RouteState(
        plan.name, plan.connection, [one.template for one in plan.destinations], own_ids=plan.settings.source.own_ids
    )
    for one in plan.destinations:
        state.to.append(one.state(state))
    outlets = [Outlet(one, connections[one.connection]) for one in plan.destinations]
    for counting in (outlet.contents.hops for outlet in outlets):
        if counting is not None:
            counting.begin_none()
    if plan.looks:
        from router_trio.routing.content.routing import ContentRouting

        return ContentRouting(plan, outlets, state, lambda event: None, NoTracing())
    return Routing(plan, outlets, state, lambda event: None, NoTracing())
