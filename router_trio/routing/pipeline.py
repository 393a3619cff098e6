"""Take one message through the handler, the trace and every destination, whatever its source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import (
    EvaluationError,
    HandlerError,
    MappingError,
    PublishError,
    RouterError,
    ScopesLostError,
    SubjectError,
    reasons,
)
from router_trio.errors.quotes import bounded
from router_trio.events import Emit
from router_trio.message import Message
from router_trio.outbox.operation import RouteOwner
from router_trio.protocol import message_ids
from router_trio.protocol.framing import text
from router_trio.routing.delivery import Delivery, sampled
from router_trio.routing.handler_messages import as_message
from router_trio.routing.handlers import (
    Blocked,
    Handler,
    answers_of,
    begin,
    failure_of,
    finished,
    raise_if_ours,
    raise_if_signal,
    text_of,
)
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.policy.retry import Failure
from router_trio.routing.responder import Responder
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.scopes import close_left_open, left_open, scopes_of_task
from router_trio.routing.tracebacks import Raised, message_failed, place_of
from router_trio.routing.tracing import Tracing
from router_trio.routing.turns import Turn
from router_trio.states import RouteState

if TYPE_CHECKING:
    from router_trio.routing.flow.control import FlowControl
    from router_trio.routing.schedule import Limits

D = TypeVar("D", bound=Delivery)


class Routing:
    """The way of one route from a message to its destinations."""

    def __init__(
        self,
        plan: RoutePlan,
        outlets: Sequence[Outlet],
        state: RouteState,
        emit: Emit,
        tracing: Tracing,
        flow: FlowControl | None = None,
        *,
        handler_errors: str = "type",
        stopwatch: Callable[[], float] = perf_counter,
    ) -> None:
        """`handler_errors`: "type" or "full", what a span says of an error that the handler raises.

        `stopwatch` times the calls of the handler.
        """
        self.plan = plan
        self.outlets: tuple[Outlet, ...] = tuple(outlets)
        self.state = state
        self.tracing = tracing
        self.turn: Turn = Turn(stopwatch)
        """For the calls of its handler."""
        self._emit = emit
        self._named_in_spans = plan.settings.source.kind.named_in_spans(plan.settings.source)
        self._full_errors = handler_errors == "full"
        self._shares = [
            (outlet.connection.shares, (state.name, outlet.template))
            for outlet in outlets
            if outlet.waits_for_puback and outlet.destination.mirror is None
        ]
        self.connections: tuple[Connection, ...] = connections_of(outlets)
        self.needed: tuple[Connection, ...] = connections_of(
            [outlet for outlet in outlets if outlet.destination.mirror is None]
        )
        self._one_is_enough = plan.settings.strategy == "fallback"
        self.responder: Responder | None = None
        """Sends what the handler returns to whoever asked: see `respond_with`."""
        self.lost: ScopesLostError | None = None
        """Why the route has ended, if its handler has left the scopes in which the route runs."""
        self.as_it_comes: bool = True
        """True if every message goes to every destination, but for its subject as it came."""
        self.flow: FlowControl | None = flow
        """None if it has neither a limit nor a breaker."""

    def respond_with(self, responder: Responder) -> None:
        """Answer what comes. Before the route runs."""
        self.responder = responder
        self.as_it_comes = False
        self.connections = tuple(dict.fromkeys((*self.connections, responder.connection)))
        self.needed = tuple(dict.fromkeys((*self.needed, responder.connection)))

    # --- what is in order with what ---

    def order_key(self, delivery: Delivery, place: int) -> bytes:
        """Return what is the same for messages that are in order: their subject, or the value of the route's key.

        A message that has no such value is in order with no other: `place` is its own. Does not raise.
        """
        return delivery.raw[0]

    def lacks_key(self, key: bytes) -> bool:
        """Return True if `order_key` returned `key` for a message that has no value of the route's key."""
        return False

    def fail_without_key(self, delivery: Delivery) -> None:
        """Settle a message without a key: it fails, unless the route does not take it."""
        raise AssertionError("every message has a subject")

    def value_limits(self, place_of: Callable[[D], int]) -> Limits[D]:
        """Return the limits by value that the messages of this route wait for. `place_of` gives their order."""
        # For routes that keep their messages: a plain core route does not wait for the import.
        from router_trio.routing.schedule import NoValueLimit

        return NoValueLimit()

    @property
    def _awaited(self) -> Sequence[Connection]:
        """The connections that must be there: mirrors are not waited for, and of fallbacks one is enough."""
        if self._one_is_enough:
            return [connection for connection in self.needed if connection.connected] or self.needed
        return self.needed

    @property
    def waits_for(self) -> str | None:
        """The name of a destination's connection that is not there, or None."""
        for connection in self._awaited:
            if not connection.connected:
                return connection.name
        return None

    async def ready(self) -> None:
        """Wait until every destination that must be there is connected and has room."""
        while True:
            for connection in self._awaited:
                if not connection.connected:
                    await first_change(self.needed if self._one_is_enough else (connection,))
                    break
                if connection.outbox.blocks:
                    await connection.wait_for_capacity()
                    break
            else:
                return

    @property
    def is_ready(self) -> bool:
        """Return True if `ready` would not wait."""
        for connection in self._awaited if self._one_is_enough else self.needed:
            outbox = connection.outbox
            if not outbox.connected or outbox.blocks:
                return False
        return True

    @property
    def has_capacity(self) -> bool:
        """Return True if `wait_for_capacity` would not wait."""
        for connection in self._awaited if self._one_is_enough else self.needed:
            if connection.outbox.blocks:
                return False
        return not (self._shares and any(shares.is_used_up(destination) for shares, destination in self._shares))

    @property
    def lacks_capacity(self) -> bool:
        """Return True if a destination has no room for what is forwarded as it comes, and waiting may make some."""
        return any(connection.outbox.over_limit for connection in self._awaited) or any(
            shares.is_used_up(destination) for shares, destination in self._shares
        )

    async def wait_for_capacity(self) -> None:
        """Wait until every destination has room, or waiting would not make any. For routes that no stream holds up."""
        for shares, destination in self._shares:
            if shares.is_used_up(destination):
                await shares.wait(destination)
        for connection in self._awaited:
            if connection.outbox.blocks:
                await connection.wait_for_capacity()

    def emit_failure(self, reason: str, detail: str, **more: Any) -> None:
        """Say that a message failed in this route. Counting is the delivery's.

        `more`: its `subject` as it came, its `origin` (see `Delivery`), what its handler `raised`, how many (`count`).
        """
        event = message_failed(self.state.name, reason, detail, full=self._full_errors, **more)
        # Of what a handler raised the delivery tells, which knows whether that may be shown.
        shown = detail if event.error_type is None else None
        self.state.failed_at_last(reason, event.subject, event.sequence, place=event.place, detail=shown)
        self._emit(event)

    def emit_failure_of(self, delivery: Delivery, reason: str, detail: str, raised: Raised | None = None) -> None:
        """Emit the failure of one message that is followed."""
        self.emit_failure(reason, detail, subject=delivery.raw[0], origin=delivery.origin(), raised=raised)

    def lose_unrouted(self, reason: str, detail: str, count: int) -> None:
        """Count messages of a subject that were received and are never routed: nobody else has them."""
        self.state.failed[reason] += count
        self.state.never_routed += count
        self.state.fates["lost"] += count
        self.emit_failure(reason, detail, count=count)

    async def route(self, handler: Handler, delivery: Delivery) -> None:
        """Take one message through the handler, and what that makes of it to every destination.

        Every error becomes the delivery's failure. Cancelled in the handler, nothing was sent. Nor if a message before
        it was refused while the handler worked: then it goes through the handler once more, behind that one.
        """
        waits = self.route_until_blocked(handler, delivery)
        if waits is not None:
            await waits

    def route_until_blocked(self, handler: Handler, delivery: Delivery) -> Awaitable[None] | None:
        """Begin with `route`, and go on until the handler is about to block: return what to await, in this task."""
        if self.tracing.active and self.tracing.sampled((delivery.raw,)):
            self.begin_trace(delivery)
        return self.handle(handler, delivery)

    def begin_trace(self, delivery: Delivery) -> None:
        """Begin the trace of a message that is sampled."""
        origin = delivery.origin()
        delivery.trace = self.tracing.begin(
            self.state.name,
            self.plan.pattern,
            delivery.raw,
            source=self._named_in_spans,
            sequence=origin.get("sequence"),
            deliveries=origin.get("deliveries"),
        )

    def forward(self, delivery: Delivery) -> None:
        """Take one message to its destinations: every one, as it is, if its content decides nothing."""
        for copy, outlet in enumerate(self.outlets):
            if delivery.has_copied(copy):
                continue
            owner = self.owner_of(delivery, outlet, copy)
            try:
                outlet.forward(delivery.raw, owner, delivery, outlet.trace(delivery))
            except RouterError as error:
                self.not_accepted(error, delivery, outlet)
        delivery.done()

    def filter_out(self, delivery: Delivery, reason: str) -> None:
        """The message goes nowhere. `Delivery.done` is the caller's."""
        delivery.outcome = "filtered"
        self.state.filtered[reason] += 1

    def owner_of(self, delivery: Delivery, outlet: Outlet, copy: int, *, several: bool = False) -> RouteOwner:
        """Return the owner of one copy of a message, by its number. `several`: there may be more to one destination."""
        several = several or len(self.outlets) > 1
        if outlet.breaker is not None and (several or not outlet.breaker.closed):
            return outlet.breaker.follow(delivery, copy)
        if several:
            return delivery.copy(outlet.template, copy)
        return delivery.owner_for(outlet.template)

    def forward_each(self, deliveries: Sequence[Delivery]) -> None:
        """Take messages, as they are, to every destination; all of which are connected, and stay so meanwhile."""
        if self.tracing.active:
            for index in sampled(self.tracing, deliveries):
                self.begin_trace(deliveries[index])
        only = self.outlets[0]
        probing = self.flow is not None and self.flow.probing
        if len(self.outlets) > 1 or not only.waits_for_puback or not self.as_it_comes or probing:
            for delivery in deliveries:
                self.forward(delivery)
            return
        # What counts as the routing in each of them (see `Delivery`) is their only destination here.
        for refused, error in only.forward_each(deliveries):
            self.not_accepted(error, refused, only)

    def takes_message(self, delivery: Delivery) -> bool:
        """Return True if the route takes a message, else it is filtered or failed. `Delivery.done` is the caller's."""
        return True

    def handle(self, handler: Handler, delivery: Delivery) -> Awaitable[None] | None:
        """Take one message through the handler, and what that makes of it to every destination.

        Returns what to await if the handler is about to block.
        """
        if not self.takes_message(delivery):
            delivery.done()
            return None
        message = as_message(delivery.raw, self.plan.connection, **delivery.origin())
        scopes = scopes_of_task()
        try:
            answer = begin(handler, message)
            if isinstance(answer, Blocked):
                return self._finish(answer, message, delivery, scopes)
            answers = answers_of(answer)
        except BaseException as error:
            if left_open(scopes):
                return self.scope_left_open(scopes, error, delivery)
            raise_if_signal(error)
            self.handler_failed(error, delivery)
        else:
            if left_open(scopes):
                return self.scope_left_open(scopes, None, delivery)
            self.answered(answers, message, delivery)
        delivery.done()
        return None

    async def _finish(self, blocked: Blocked, message: Message, delivery: Delivery, scopes: Any) -> None:
        """See `handle`: wait for the handler, and go on with what it makes of the message."""
        state = self.state
        state.handler_begins(trio.current_time())
        try:
            try:
                answers = await finished(blocked, scopes)
            finally:
                state.handler_returns(trio.current_time())
                self.turn.begin()
            if delivery.out_of_turn:
                delivery.fail(reasons.OUT_OF_TURN)
                delivery.done()
                return
        except BaseException as error:
            await self.handler_raised(error, delivery)
        else:
            self.answered(answers, message, delivery)
        delivery.done()

    async def scope_left_open(self, scopes: Any, error: BaseException | None, delivery: Delivery) -> None:
        """Close what a handler that has not blocked left open, and fail its message. `error` is what it raised."""
        state = self.state
        state.handler_begins(trio.current_time())
        left: HandlerError
        try:
            left = await close_left_open(scopes)
            left.__cause__ = error
        except ScopesLostError as lost:
            left = lost
        finally:
            state.handler_returns(trio.current_time())
            self.turn.begin()
        if error is not None:
            raise_if_signal(error)
        await self.handler_raised(left, delivery)
        delivery.done()

    async def handler_raised(self, error: BaseException, delivery: Delivery) -> None:
        """Fail a message whose handler, called in this task, raised. See `raise_if_ours` for what is raised again.

        `Delivery.done` is the caller's.
        """
        lost = isinstance(error, ScopesLostError)
        if not lost:  # else nobody can tell whether this task is cancelled
            await raise_if_ours(error)
        self.handler_failed(error, delivery)
        if lost:
            where = f"route {self.state.name!r}, with a message on {text(delivery.raw[0])!r}"
            self.lost = ScopesLostError(f"{where}: the handler at {place_of(self.plan.handler)}: {text_of(error)}")
            raise self.lost

    def answered(self, answers: Sequence[Message], message: Message, delivery: Delivery) -> None:
        """Take what a handler made of a message to every destination; nothing of it: it was filtered out."""
        if not answers:
            self.filter_out(delivery, reasons.HANDLER)
            return
        base = delivery.message_id or (self.connections[0].new_message_id() if len(answers) > 1 else b"")
        several = len(answers) * len(self.outlets) > 1 or self.responder is not None
        sent = self.responder is not None and self.responder.answer(
            answers, message, delivery, len(answers) * len(self.outlets)
        )
        for index, answer in enumerate(answers):
            own_id, changed = base, answer
            if index:
                # Several answers to one message are several messages: each has an id of its own, the same each time.
                own_id = b"%b.%d" % (base, index)
                changed = _without_own_id(answer, message)
            sent |= self.send_answer(changed, message, delivery, index, own_id, several)
        if not sent:
            self.filter_out(delivery, reasons.UNMATCHED)

    def send_answer(
        self, answer: Message, message: Message, delivery: Delivery, number: int, own_id: bytes, several: bool
    ) -> bool:
        """Take one of the messages that a handler made of one to every destination. Return False if none is for it."""
        for place, outlet in enumerate(self.outlets):
            copy = number * len(self.outlets) + place
            if delivery.has_copied(copy):
                continue
            owner = self.owner_of(delivery, outlet, copy, several=several)
            trace_parent = outlet.trace(delivery, len(answer.payload))
            try:
                outlet.forward_message(
                    answer, message, delivery.raw, owner, message_id=own_id, trace_parent=trace_parent
                )
            except RouterError as error:
                self.not_accepted(error, delivery, outlet)
        return bool(self.outlets)

    def handler_failed(self, error: BaseException, delivery: Delivery) -> None:
        """The handler raised: the message failed, and nothing else."""
        raised, detail = Raised(error, self.plan.handler), bounded(text_of(error))
        kind = raised.kind
        failure = replace(failure_of(error), place=raised.place, quotes=not self._full_errors)
        delivery.fail(failure.reason, failure)
        if delivery.trace is not None:
            # What it says may quote the payload.
            delivery.trace.failed(kind, detail if self._full_errors else kind)
        self.emit_failure_of(delivery, failure.reason, detail, raised)
        if self.responder is not None:
            answer = f"{kind}: {detail}" if self._full_errors else kind
            delivery.when_given_up(partial(self.responder.answer_error, answer, delivery))

    def not_accepted(self, error: RouterError, delivery: Delivery, outlet: Outlet) -> None:
        """A destination's operation was never accepted."""
        if outlet.breaker is not None:
            outlet.breaker.spare()
        reason = reason_of(error)
        delivery.fail(reason, Failure(reason, str(error)))
        if delivery.trace is not None:
            delivery.trace.refused(outlet.template, reason, str(error))
        self.emit_failure_of(delivery, reason, str(error))
        delivery.done()


def reason_of(error: RouterError) -> str:
    """Return why a message failed."""
    if isinstance(error, MappingError | PublishError | EvaluationError):
        return error.reason
    return reasons.INVALID_SUBJECT if isinstance(error, SubjectError) else reasons.ERROR


def _without_own_id(answer: Message, message: Message) -> Message:
    """A further answer that merely carries the source's id along gets one of its own."""
    name = message_ids.NAME
    if name not in answer.headers or answer.headers[name] != message.headers.get(name):
        return answer
    return answer.replace(headers=[pair for pair in answer.headers.pairs() if pair[0] != name])


def connections_of(outlets: Sequence[Outlet]) -> tuple[Connection, ...]:
    """Return the connections of destinations, each once."""
    return tuple({outlet.connection.name: outlet.connection for outlet in outlets}.values())


async def first_change(connections: Sequence[Connection]) -> None:
    """Wait until one of the connections comes or goes, from this very call on."""
    # No tasks: a connection that comes before they begin would have come unnoticed.
    change = trio.Event()
    for connection in connections:
        connection.when_changed(change.set)
    try:
        await change.wait()
    finally:
        for connection in connections:
            connection.stop_notifying(change.set)
