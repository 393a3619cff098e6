"""Answers: send what a handler returns to the reply subject of the message, over the connection it was received on.

An answer is an ordinary core publish, confirmed by a fence. The sender chooses the reply subject, so answers are sent
to inboxes, and elsewhere only where the route's `reply_to` allows it. They are never sent to a subject that begins with
`$`, nor to an inbox of a router: otherwise a sender could use the router's permissions to make any JetStream request,
or forge PubAcks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from router_trio.connection.supervisor import Connection
from router_trio.errors import PublishError, RouterError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.message import Message
from router_trio.protocol import framing, headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.protocol.headers import Headers
from router_trio.routing.delivery import Delivery
from router_trio.routing.outlets.contents import measure
from router_trio.routing.policy import hops
from router_trio.routing.policy.retry import Failure
from router_trio.routing.route_plans import RoutePlan
from router_trio.states import REPLY, RouteState
from router_trio.subjects.inboxes import SHARED
from router_trio.subjects.patterns import is_valid_subject, matches

ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
"""The headers with which a NATS service (ADR-32) reports a failure."""

FAILED = "500"
"""The code for a handler that raised, as in HTTP."""


class Responder:
    """Sends the answers of one route with a handler."""

    def __init__(self, state: RouteState, connection: Connection, plan: RoutePlan) -> None:
        self.connection = connection
        self._reply_to = plan.settings.reply_to
        self._never_replied_to = plan.never_replied_to
        self._state = state
        self._control = ControlHeaders()
        self._hops = hops.Hops(plan.hop_limit, plan.passed_as) if plan.hop_limit else None

    def answer(self, answers: Sequence[Message], message: Message, delivery: Delivery) -> bool:
        """Answer with the messages that the handler returned. Return False if there is no subject to answer to.

        If an answer is too large, the message fails.
        """
        reply = self._reply_of(delivery)
        if reply is None:
            return False
        for index, one in enumerate(answers):
            copy = -1 - index
            if delivery.has_copied(copy):
                continue
            owner = delivery.copy(REPLY, copy)
            try:
                block = self._counted(self._headers(one, message, delivery), delivery)
                measure(self.connection, len(block) + len(one.payload))
                frame = framing.publish(reply, one.payload, headers=block)
                self.connection.outbox.offer(frame, owner=owner)
            except RouterError as error:
                reason = error.reason if isinstance(error, PublishError) else reasons.ERROR
                delivery.fail(reason, Failure(reason, str(error)))
                if delivery.trace is not None:
                    delivery.trace.refused(REPLY, reason, str(error))
                delivery.done()
        return True

    def answer_error(self, described: str, delivery: Delivery) -> None:
        """Answer that the handler failed. `described` is the error text for the requester."""
        reply = self._reply_of(delivery)
        if reply is None:
            return
        block = headers.encode(Headers({ERROR: excerpt(described), ERROR_CODE: FAILED}))
        with suppress(PublishError):  # the outbox has counted it
            self.connection.outbox.offer(framing.publish(reply, b"", headers=block))

    def _reply_of(self, delivery: Delivery) -> bytes | None:
        """Return the subject to answer to. If there is none, count the reason and return None."""
        reply = delivery.raw[1]
        if not reply:
            why = reasons.NO_REPLY
        elif not self._may_answer_at(reply):
            why = reasons.RESERVED_SUBJECT
        else:
            return reply
        self._state.unanswered[why] += 1
        return None

    def _may_answer_at(self, reply: bytes) -> bool:
        subject = framing.text(reply)
        if reply.startswith(self._never_replied_to) or not is_valid_subject(subject):
            return False
        return reply.startswith(SHARED) or any(matches(pattern, subject) for pattern in self._reply_to)

    def _counted(self, block: bytes, delivery: Delivery) -> bytes:
        """Return the header block of an answer with the count of the request, if it has one. Raises `PublishError`."""
        lines = b"" if self._hops is None else self._hops.lines(framing.header_block(delivery.raw))
        return hops.with_lines(hops.without(block), lines) if lines else block

    def _headers(self, answer: Message, message: Message, delivery: Delivery) -> bytes:
        """Return the header block of an answer, without control headers that the handler left unchanged."""
        if answer.headers is message.headers or answer.headers == message.headers:
            block = headers.without_status(framing.header_block(delivery.raw))
            block = message_ids.remove(self._control.removed(block)) if block else b""
            block = b"" if block == headers.VERSION + headers.END else block
        else:
            kept = self._control.removed_from(answer.headers, message.headers).pairs()
            came = message.headers.get(message_ids.NAME)
            block = headers.encode(Headers(pair for pair in kept if pair != (message_ids.NAME, came)))
        if delivery.trace is None:
            return block
        parent = delivery.trace.send(REPLY, self.connection.name, len(answer.payload))
        if parent is None:
            return block
        changed = headers.without(block, b"traceparent:") if block else b""
        return headers.replace(changed, b"traceparent", parent)
