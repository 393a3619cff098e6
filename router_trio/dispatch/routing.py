"""What happens to one message, whatever kind of source it came from: the handler, the trace, every destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from router_trio import protocol
from router_trio.dispatch.delivery import Delivery
from router_trio.dispatch.handlers import as_message, invoke
from router_trio.dispatch.outlet import Outlet, new_message_id
from router_trio.errors import MappingError, PublishError, RouterError, SubjectError
from router_trio.events import Emit, MessageFailed
from router_trio.message import Message
from router_trio.routes import RoutePlan
from router_trio.states import RouteState
from router_trio.tracing import Tracing


class Routing:
    """One route's way from a message to its destinations."""

    def __init__(
        self, plan: RoutePlan, outlets: Sequence[Outlet], state: RouteState, emit: Emit, tracing: Tracing
    ) -> None:
        self.plan = plan
        self.outlets = tuple(outlets)
        self.state = state
        self.tracing = tracing
        self._emit = emit
        self._connections = tuple({outlet.connection.name: outlet.connection for outlet in outlets}.values())

    @property
    def waits_for(self) -> str | None:
        """The name of a destination's connection that is not there, or None."""
        for connection in self._connections:
            if not connection.connected:
                return connection.name
        return None

    async def destinations_up(self) -> None:
        """Wait until every destination is connected."""
        for connection in self._connections:
            while not connection.connected:
                await connection.changed()

    async def room(self) -> None:
        """Wait until every destination has room, or waiting would not make any."""
        for connection in self._connections:
            if connection.outbox.blocks:
                await connection.room()

    def fail(self, reason: str, detail: str, *, error_type: str | None = None, count: int = 1) -> None:
        """Say that a message failed in this route. Counting is the delivery's."""
        self._emit(
            MessageFailed(
                at=trio.current_time(),
                route=self.state.name,
                reason=reason,
                count=count,
                error_type=error_type,
                detail=detail,
            )
        )

    async def route(
        self, raw: protocol.RawMessage, delivery: Delivery, *, message_id: bytes | None = None, **origin: Any
    ) -> None:
        """Take one message through the handler, if there is one, to every destination.

        Every error becomes the delivery's failure. Cancelled in a handler, nothing was sent.
        """
        if self.tracing.active:
            delivery.trace = self.tracing.begin(
                self.state.name,
                self.plan.pattern,
                raw,
                stream=origin.get("stream"),
                sequence=origin.get("sequence"),
                deliveries=origin.get("deliveries", 1),
            )
        if self.plan.handler is None:
            for outlet in self.outlets:
                self._forward(raw, outlet, delivery, message_id, with_reply="stream" not in origin)
        else:
            await self._handle(raw, delivery, message_id, origin)
        delivery.done()

    def _forward(
        self, raw: protocol.RawMessage, outlet: Outlet, delivery: Delivery, message_id: bytes | None, with_reply: bool
    ) -> None:
        leg = delivery.leg(outlet.template)
        try:
            outlet.forward(
                raw,
                leg,
                message_id=message_id,
                trace_parent=self._trace(outlet, delivery, raw[3] - raw[2]),
                with_reply=with_reply,
            )
        except RouterError as error:
            self._refused(error, delivery)

    async def _handle(
        self, raw: protocol.RawMessage, delivery: Delivery, message_id: bytes | None, origin: dict[str, Any]
    ) -> None:
        assert self.plan.handler is not None
        message = as_message(raw, self.plan.connection, **origin)
        try:
            answers = await invoke(self.plan.handler, message)
        except Exception as error:
            self._handler_failed(error, delivery)
            return
        if not answers:
            self.state.filtered += 1
        base = message_id or new_message_id()
        for index, answer in enumerate(answers):
            # Several answers to one message are several messages: each has an id of its own, the same on a redelivery.
            own_id = base if index == 0 else b"%b.%d" % (base, index)
            changed = answer if index == 0 else _without_own_id(answer, message)
            for outlet in self.outlets:
                leg = delivery.leg(outlet.template)
                try:
                    outlet.forward_message(
                        changed,
                        message,
                        leg,
                        message_id=own_id,
                        trace_parent=self._trace(outlet, delivery, len(answer.payload)),
                    )
                except RouterError as error:
                    self._refused(error, delivery)

    def _handler_failed(self, error: Exception, delivery: Delivery) -> None:
        kind = type(error).__qualname__
        delivery.fail("handler_error")
        if delivery.trace is not None:
            delivery.trace.failed(kind, str(error))
        self.fail("handler_error", str(error), error_type=kind)

    def _refused(self, error: RouterError, delivery: Delivery) -> None:
        """A destination's operation was never accepted."""
        reason = error.reason if isinstance(error, PublishError) else _REASONS.get(type(error), "error")
        delivery.fail(reason)
        if delivery.trace is not None:
            delivery.trace.failed(type(error).__qualname__, str(error))
        self.fail(reason, str(error))
        delivery.done()

    def _trace(self, outlet: Outlet, delivery: Delivery, size: int) -> bytes | None:
        if delivery.trace is None:
            return None
        return delivery.trace.send(outlet.template, outlet.connection.name, size)


_REASONS: dict[type[RouterError], str] = {MappingError: "mapping", SubjectError: "invalid_subject"}


def _without_own_id(answer: Message, message: Message) -> Message:
    """A further answer that merely carries the source's id along gets one of its own."""
    name = "Nats-Msg-Id"
    if name not in answer.headers or answer.headers[name] != message.headers.get(name):
        return answer
    return answer.replace(headers=[pair for pair in answer.headers.pairs() if pair[0] != name])
