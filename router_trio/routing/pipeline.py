"""Route one message from any source: call the handler, trace the message, send it to every destination."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import (
    EvaluationError,
    HandlerError,
    InvalidBodyError,
    MappingError,
    PublishError,
    RouterError,
    ScopesLostError,
    SubjectError,
    reasons,
)
from router_trio.errors.quotes import bounded
from router_trio.events import Emit, RouteInCircle
from router_trio.message import Message
from router_trio.outbox.operation import Operation, RouteOwner
from router_trio.protocol import message_ids
from router_trio.protocol.framing import text
from router_trio.routing.delivery import Delivery, sampled
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.calls import Blocked, Handler, begin, finished
from router_trio.routing.handlers.errors import explained, failure_of, raise_if_ours, raise_if_signal, text_of
from router_trio.routing.handlers.messages import as_message
from router_trio.routing.handlers.scopes import close_left_open, left_open, scopes_of_task
from router_trio.routing.handlers.tracebacks import Raised, message_failed, place_of
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.policy.retry import Failure, RetryStore
from router_trio.routing.responder import Responder
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.tracing import RouteTracing, Tracing
from router_trio.routing.turns import Turn
from router_trio.states import RouteState

if TYPE_CHECKING:
    from router_trio.routing.flow.control import FlowControl
    from router_trio.routing.schedule import Limits

D = TypeVar("D", bound=Delivery)


class BeforeSending(Protocol):
    """Compares messages with what destinations have, before they are sent: see `routing/newest.py`."""

    def needs(self, delivery: Delivery) -> bool:
        """Return True if a message must not be sent before it was compared."""
        ...

    def doubt(self, delivery: Delivery, template: str, operation: Operation) -> bool:
        """Return True if a copy whose id its stream has already must be compared before it counts as stored."""
        ...

    async def check_expiry(self) -> None:
        """Raise `SourceError` (`bucket_mismatch`) if values of the source expire, and those of a destination can't."""

    async def route(self, delivery: Delivery) -> None:
        """Compare a message, and send it unless it is out of date. Can be cancelled: then nothing was sent."""


class Routing:
    """Takes the messages of one route to their destinations."""

    __slots__ = (
        "_delayed",
        "_emit",
        "_full_errors",
        "_hidden",
        "_named_in_spans",
        "_one_is_enough",
        "_shares",
        "as_it_comes",
        "connections",
        "flow",
        "lost",
        "needed",
        "newest",
        "outlets",
        "plan",
        "responder",
        "retry_schedules",
        "state",
        "tracing",
        "turn",
    )

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
        """`handler_errors`: "type" or "full", how much a span contains of an error that the handler raised.

        `stopwatch` times the calls of the handler.
        """
        self.plan: RoutePlan = plan
        self.outlets: tuple[Outlet, ...] = tuple(outlets)
        self.state: RouteState = state
        self.tracing: RouteTracing = RouteTracing(state.name, tracing)
        self.turn: Turn = Turn(stopwatch)
        """The turn in which the handler is called."""
        self._emit = emit
        self._named_in_spans = plan.settings.source.kind.named_in_spans(plan.settings.source)
        self._hidden = plan.hidden
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
        for outlet in () if plan.limits_hops else outlets:
            if outlet.contents.hops is not None:
                outlet.contents.hops.when_returned(partial(self._came_back, text(outlet.contents.hops.name)))
        self._one_is_enough = plan.settings.strategy == "fallback"
        self._delayed: tuple[Outlet, ...] = ()
        if not self._one_is_enough:
            delayed = (outlet for outlet in outlets if outlet.destination.schedule_prefix is not None)
            self._delayed = tuple(outlet for outlet in delayed if outlet.destination.mirror is None)
        """Outlets with a delay. Messages wait until it is known whether their streams publish copies later."""
        self.responder: Responder | None = None
        """Sends what the handler returns to the requester: see `respond_with`."""
        self.retry_schedules: RetryStore | None = None
        """Keeps messages for attempts that are far away: see `schedule_with`."""
        self.lost: ScopesLostError | None = None
        """Why the route has ended, if its handler left the scopes in which the route runs."""
        self.as_it_comes: bool = True
        """True if every message is sent to every destination, with only its subject changed."""
        self.newest: BeforeSending | None = None
        """Compares messages before they are sent; None unless the route copies a KV bucket. See `compare_with`."""
        self.flow: FlowControl | None = flow
        """None if the route has neither a limit nor a breaker."""

    def respond_with(self, responder: Responder) -> None:
        """Answer messages with this responder. Called before the route runs."""
        self.responder = responder
        self.as_it_comes = False
        self.connections = tuple(dict.fromkeys((*self.connections, responder.connection)))
        self.needed = tuple(dict.fromkeys((*self.needed, responder.connection)))

    def schedule_with(self, schedules: RetryStore) -> None:
        """Have another stream keep messages for attempts that are far away. Called before the route runs."""
        self.retry_schedules = schedules

    def compare_with(self, newest: BeforeSending) -> None:
        """Compare messages before they are sent. Called before the route runs."""
        self.newest = newest

    # --- order ---

    def order_key(self, delivery: Delivery, place: int) -> bytes:
        """Return the key by which messages are ordered: the subject, or the value of the route's key.

        A message without that value gets a key of its own, made from its `place`. Does not raise.
        """
        return delivery.raw[0]

    def lacks_key(self, key: bytes) -> bool:
        """Return True if `order_key` returned `key` for a message without a value of the route's key."""
        return False

    def fail_without_key(self, delivery: Delivery) -> None:
        """Settle a message without a key: it fails, unless the route filters it out."""
        raise AssertionError("every message has a subject")

    def value_limits(self, place_of: Callable[[D], int]) -> Limits[D]:
        """Return the limits by value for the messages of this route. `place_of` returns their order."""
        # Only for routes that keep their messages, so a plain core route does not wait for the import.
        from router_trio.routing.schedule import NoValueLimit

        return NoValueLimit()

    def limited_as(self, delivery: Delivery) -> bytes | None:
        """Return the value whose limit an attempt of a message uses up, empty if the route has one limit for all.

        None if the attempt uses up nothing, since the message has no value.
        """
        return b""

    @property
    def _awaited(self) -> Sequence[Connection]:
        """The connections that are waited for: not those of mirrors, and only one of several fallbacks."""
        if self._one_is_enough:
            return [connection for connection in self.needed if connection.connected] or self.needed
        return self.needed

    @property
    def _awaits_lookup(self) -> bool:
        """True while it is not known whether the stream of some destination keeps schedules."""
        return any(outlet.awaits_lookup for outlet in self._delayed)

    @property
    def waits_for(self) -> str | None:
        """The name of an awaited connection that is not connected, or None."""
        for connection in self._awaited:
            if not connection.connected:
                return connection.name
        return None

    async def ready(self) -> None:
        """Wait until every awaited destination is connected, has room, and is known to keep or to lose schedules."""
        while True:
            for connection in self._awaited:
                if not connection.connected:
                    await first_change(self.needed if self._one_is_enough else (connection,))
                    break
                if connection.outbox.blocks:
                    await connection.wait_for_capacity()
                    break
            else:
                for outlet in self._delayed:
                    if outlet.awaits_lookup:
                        await outlet.looked_up()
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
        return not (self._delayed and self._awaits_lookup)

    @property
    def has_capacity(self) -> bool:
        """Return True if `wait_for_capacity` would not wait."""
        for connection in self._awaited if self._one_is_enough else self.needed:
            if connection.outbox.blocks:
                return False
        if self._delayed and self._awaits_lookup:
            return False
        return not (self._shares and any(shares.is_used_up(destination) for shares, destination in self._shares))

    @property
    def lacks_capacity(self) -> bool:
        """Return True if a destination has no room for messages forwarded on arrival, and waiting may make some."""
        return (
            any(connection.outbox.over_limit for connection in self._awaited)
            or any(shares.is_used_up(destination) for shares, destination in self._shares)
            or self._awaits_lookup
        )

    async def wait_for_capacity(self) -> None:
        """Wait until every destination has room, or waiting would make none. For routes from a subject.

        Without the first lookup of a delayed destination, none of its messages could be sent: they would be lost.
        """
        for outlet in self._delayed:
            await outlet.looked_up()
        for shares, destination in self._shares:
            if shares.is_used_up(destination):
                await shares.wait(destination)
        for connection in self._awaited:
            if connection.outbox.blocks:
                await connection.wait_for_capacity()

    def _came_back(self, passed_as: str) -> None:
        """Record that a message has passed this route before, which has this name in its header."""
        now, state = trio.current_time(), self.state
        if received := state.came_back(passed_as, now):
            assert state.returning is not None
            returned = state.returning.returned
            self._emit(
                RouteInCircle(at=now, route=state.name, returned=returned, received=received, passed_as=passed_as)
            )

    def emit_failure(self, reason: str, detail: str, **more: Any) -> None:
        """Report that a message failed in this route. The delivery counts it.

        `more`: its source `subject`, its `origin` (see `Delivery`), what its handler `raised`, whether the text of that
        `is_public`, the number (`count`).
        """
        event = message_failed(self.state.name, reason, detail, full=self._full_errors, **more)
        shown = detail if event.error_type is None or event.is_public else None
        self.state.failed_at_last(reason, event.subject, event.sequence, place=event.place, detail=shown)
        self._emit(event)

    def emit_failure_of(
        self, delivery: Delivery, reason: str, detail: str, raised: Raised | None = None, *, is_public: bool = False
    ) -> None:
        """Report the failure of the message of a delivery."""
        self.emit_failure(
            reason,
            detail,
            subject=delivery.raw[0],
            origin=delivery.origin(),
            raised=raised,
            is_public=is_public,
        )

    def lose_unrouted(self, reason: str, detail: str, count: int) -> None:
        """Count messages of a subject that were received and are never routed, so they are lost."""
        self.state.failed[reason] += count
        if self.state.gives_up:
            self.state.given_up[reason] += count
        self.state.never_routed += count
        self.state.fates["lost"] += count
        self.emit_failure(reason, detail, count=count)

    async def route(self, handler: Handler, delivery: Delivery) -> None:
        """Pass one message to the handler, and send what the handler returns to every destination.

        Every error becomes the delivery's failure. If cancelled in the handler, nothing was sent. Nothing is sent
        either if an earlier message was refused while the handler ran: then the handler is called again, after that
        message.
        """
        waits = self.route_until_blocked(handler, delivery)
        if waits is not None:
            await waits

    def route_until_blocked(self, handler: Handler, delivery: Delivery) -> Awaitable[None] | None:
        """Do what `route` does until the handler is about to block; return what to await then, in this task."""
        if self.tracing.active and self.tracing.sampled((delivery.raw,)):
            self.begin_trace(delivery)
        return self.handle(handler, delivery)

    def trace_if_sampled(self, delivery: Delivery) -> None:
        """Begin the trace of a message if it is sampled. For messages that fail before they are routed."""
        if self.tracing.active and self.tracing.sampled((delivery.raw,)):
            self.begin_trace(delivery)

    def begin_trace(self, delivery: Delivery) -> None:
        """Begin the trace of a sampled message."""
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
        """Send one message to its destinations: unchanged to every one, unless the route decides by content."""
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
        """Filter a message out. The caller calls `Delivery.done`."""
        delivery.outcome = "filtered"
        self.state.filtered[reason] += 1

    def owner_of(self, delivery: Delivery, outlet: Outlet, copy: int, *, several: bool = False) -> RouteOwner:
        """Return the owner of one numbered copy of a message. `several`: a destination may get more than one."""
        several = several or len(self.outlets) > 1
        if outlet.breaker is not None and (several or not outlet.breaker.closed):
            return outlet.breaker.follow(delivery, copy)
        if several:
            return delivery.copy(outlet.template, copy)
        return delivery.owner_for(outlet.template)

    def forward_each(self, deliveries: Sequence[Delivery]) -> None:
        """Send messages unchanged to every destination. All are connected, and stay so during the call."""
        if self.tracing.active:
            for index in sampled(self.tracing, deliveries):
                self.begin_trace(deliveries[index])
        only = self.outlets[0]
        probing = self.flow is not None and not self.flow.quiet and self.flow.probing
        if len(self.outlets) > 1 or not only.waits_for_puback or not self.as_it_comes or probing:
            for delivery in deliveries:
                self.forward(delivery)
            return
        # In `Delivery.remaining`, the only destination takes the place of the routing itself.
        for refused, error in only.forward_each(deliveries):
            self.not_accepted(error, refused, only)

    @property
    def falls_back_to(self) -> int | None:
        """The place of the destination that gets new messages at present; None unless the strategy is `fallback`."""
        return None

    def takes_message(self, delivery: Delivery) -> bool:
        """Return True if the route accepts a message; else filter or fail it. The caller calls `Delivery.done`."""
        return True

    def handle(self, handler: Handler, delivery: Delivery) -> Awaitable[None] | None:
        """Pass one message to the handler, and send what the handler returns to every destination.

        Returns what to await if the handler is about to block.
        """
        if not self.takes_message(delivery):
            delivery.done()
            return None
        message = as_message(delivery.raw, self.plan.connection, **delivery.origin())
        if self._hidden:
            message = message.replace(subject=message.subject[self._hidden :])
        scopes, context = scopes_of_task(), self.context_of_call(delivery)
        try:
            answer = begin(handler, message, context)
            if isinstance(answer, Blocked):
                return self._finish(answer, message, delivery, scopes, context)
            answers = context.run(answers_of, answer)
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

    def context_of_call(self, delivery: Delivery) -> Context:
        """Return the context for a call of the handler: a copy of this one, with the span of the message if it has one.

        What the program and its lifespan have set is there, since the tasks of routes run in copies of their context.
        """
        context, attach = copy_context(), self.tracing.attach
        if attach is not None:
            context.run(attach, delivery.raw, delivery.trace)
        return context

    async def _finish(
        self, blocked: Blocked, message: Message, delivery: Delivery, scopes: Any, context: Context
    ) -> None:
        """Wait for the handler, and send its answers."""
        state = self.state
        state.handler_begins(trio.current_time())
        try:
            try:
                answers = await finished(blocked, scopes, context)
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
        """Close scopes that a handler left open without blocking, and fail its message. `error` is what it raised."""
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
        """Fail a message whose handler raised in this task. See `raise_if_ours` for errors that are raised again.

        The caller calls `Delivery.done`.
        """
        lost = isinstance(error, ScopesLostError)
        if not lost:  # else it is unknown whether this task is cancelled
            await raise_if_ours(error)
        self.handler_failed(error, delivery)
        if lost:
            where = f"route {self.state.name!r}, with a message on {text(delivery.raw[0])!r}"
            self.lost = ScopesLostError(f"{where}: the handler at {place_of(self.plan.handler)}: {text_of(error)}")
            raise self.lost

    def answered(self, answers: Sequence[Message], message: Message, delivery: Delivery) -> None:
        """Send the answers of a handler to every destination. Without answers, the message is filtered out."""
        if not answers:
            self.filter_out(delivery, reasons.HANDLER)
            return
        base = delivery.message_id or (self.connections[0].new_message_id() if len(answers) > 1 else b"")
        several = len(answers) * len(self.outlets) > 1 or self.responder is not None
        sent = self.responder is not None and self.responder.answer(answers, message, delivery)
        for index, answer in enumerate(answers):
            own_id, changed = base, answer
            if index:
                # Several answers are several messages, each with its own id, which is the same in each attempt.
                own_id = b"%b.%d" % (base, index)
                changed = _without_own_id(answer, message)
            sent |= self.send_answer(changed, message, delivery, index, own_id, several)
        if not sent:
            self.filter_out(delivery, reasons.UNMATCHED)

    def send_answer(
        self, answer: Message, message: Message, delivery: Delivery, number: int, own_id: bytes, several: bool
    ) -> bool:
        """Send one answer of a handler to every destination. Return False if there is no destination for it."""
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
        """Fail the message whose handler raised, or does not take its body."""
        if isinstance(error, InvalidBodyError):
            self._body_refused(error, delivery)
            return
        error = explained(error)
        raised, failure = Raised(error, self.plan.handler), failure_of(error)
        public, kind = not failure.quotes, raised.kind
        detail = failure.detail if public else bounded(text_of(error))
        failure = replace(failure, place=raised.place, quotes=not (public or self._full_errors))
        delivery.fail(failure.reason, failure)
        if delivery.trace is not None:
            delivery.trace.failed(kind, kind if failure.quotes else detail)
        self.emit_failure_of(delivery, failure.reason, detail, raised, is_public=public)
        if self.responder is not None:
            answer = f"{kind}: {detail}" if self._full_errors else kind
            delivery.when_given_up(partial(self.responder.answer_error, answer, delivery))

    def _body_refused(self, error: InvalidBodyError, delivery: Delivery) -> None:
        """Fail a message whose body does not fit its handler, which was not called."""
        reason, detail = error.reason, str(error)
        delivery.fail(reason, Failure(reason, detail))
        if delivery.trace is not None:
            delivery.trace.failed(reason, detail)
        self.emit_failure_of(delivery, reason, detail)
        if self.responder is not None:
            delivery.when_given_up(partial(self.responder.answer_error, f"{reason}: {detail}", delivery))

    def not_accepted(self, error: RouterError, delivery: Delivery, outlet: Outlet) -> None:
        """Record that an operation to a destination was not accepted."""
        reason = reason_of(error)
        if outlet.breaker is not None:
            outlet.breaker.spare(reason)
        delivery.fail(reason, Failure(reason, str(error)))
        if delivery.trace is not None:
            delivery.trace.refused(outlet.template, reason, str(error))
        self.emit_failure_of(delivery, reason, str(error))
        delivery.done()


def reason_of(error: RouterError) -> str:
    """Return the reason for which an error fails a message."""
    if isinstance(error, MappingError | PublishError | EvaluationError):
        return error.reason
    return reasons.INVALID_SUBJECT if isinstance(error, SubjectError) else reasons.ERROR


def _without_own_id(answer: Message, message: Message) -> Message:
    """Return a further answer without its id if that is the id of the source message."""
    name = message_ids.NAME
    if name not in answer.headers or answer.headers[name] != message.headers.get(name):
        return answer
    return answer.replace(headers=[pair for pair in answer.headers.pairs() if pair[0] != name])


def connections_of(outlets: Sequence[Outlet]) -> tuple[Connection, ...]:
    """Return the connections of destinations, each once."""
    return tuple({outlet.connection.name: outlet.connection for outlet in outlets}.values())


async def first_change(connections: Sequence[Connection]) -> None:
    """Wait until one of the connections connects or disconnects after this call."""
    # No tasks: they would miss a change that happens before they start.
    change = trio.Event()
    for connection in connections:
        connection.when_changed(change.set)
    try:
        await change.wait()
    finally:
        for connection in connections:
            connection.stop_notifying(change.set)
