"""Send messages to the destinations that their content chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from router_trio.errors import BodyError, EvaluationError, PublishError, RouterError
from router_trio.errors.reasons import OUT_OF_TURN, UNMATCHED, WHEN
from router_trio.events import Emit
from router_trio.expressions.message import Facts
from router_trio.message import Message
from router_trio.outbox.operation import Owner
from router_trio.protocol import framing, headers
from router_trio.protocol.framing import RawMessage
from router_trio.routing.content.choice import Content
from router_trio.routing.delivery import Delivery, MirrorCopy
from router_trio.routing.outlets.outlet import Outlet, is_healthy
from router_trio.routing.pipeline import Routing, reason_of
from router_trio.routing.policy.retry import Failure
from router_trio.routing.policy.sticky import key_of
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.schedule import Limits, ValueLimit
from router_trio.routing.tracing import Tracing
from router_trio.states import RouteState

if TYPE_CHECKING:
    from router_trio.routing.flow.control import FlowControl

D = TypeVar("D", bound=Delivery)

_NO_KEY = b"\0"
"""The first byte of what represents the key of a message without a key."""

LONGEST_KEY = 64
"""Bytes of the longest value of `key` that is kept unchanged for each message in hand; longer ones are hashed."""


class ContentRouting(Routing):
    """The routing of a route that decides by content, or changes its messages. Expressions may fail a message."""

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
        super().__init__(plan, outlets, state, emit, tracing, flow, handler_errors=handler_errors, stopwatch=stopwatch)
        self.content: Content = Content(plan, self._is_healthy)
        self.as_it_comes: bool = False
        self._has_key: bool = plan.by_key and plan.key is not None
        self._falls_back: bool = plan.settings.strategy == "fallback"

    def _is_healthy(self, place: int) -> bool:
        outlet = self.outlets[place]
        return is_healthy(outlet.connection, outlet.breaker, self.state.to[place])

    @property
    def falls_back_to(self) -> int | None:
        return self.content.falls_back_to if self._falls_back else None

    def takes_message(self, delivery: Delivery) -> bool:
        if self._has_to_wait(delivery):
            return False
        taken = self._accepts(delivery)
        if delivery.outcome == "filtered":
            self._give_token_back()
        return taken

    def _has_to_wait(self, delivery: Delivery) -> bool:
        """Return True if a message waits until another destination has answered for an earlier one."""
        if not (self._falls_back and delivery.out_of_turn):
            return False
        delivery.fail(OUT_OF_TURN)
        self._give_token_back()
        return True

    def _accepts(self, delivery: Delivery) -> bool:
        """Return True if the route accepts a message; else filter or fail it."""
        if delivery.was_accepted:
            return True
        try:
            taken = self.content.takes(self.content.facts(delivery.raw, delivery))
        except EvaluationError as error:
            self.expression_failed(error, delivery)
            return False
        if not taken:
            self.filter_out(delivery, WHEN)
        return taken

    def _give_token_back(self) -> None:
        """Return the token of a message that is not sent after it had taken one."""
        if self.flow is not None:
            self.flow.filtered(1)

    def limited_value(self, raw: RawMessage, delivery: Delivery | None = None) -> bytes | None:
        """Return the value by which a message is limited; None if the route does not accept the message.

        `delivery` is that of a message from a stream. Raises `EvaluationError` if there is no such value.
        """
        facts = self.content.facts(raw, delivery)
        try:
            if (delivery is None or not delivery.was_accepted) and not self.content.takes(facts):
                return None
        except EvaluationError:
            return None  # it fails with the same error when it is routed
        per = self.plan.per
        assert per is not None
        return key_of(per.evaluate(facts))

    def value_limits(self, place_of: Callable[[D], int]) -> Limits[D]:
        """Return the limits by the values of an expression. A message without the value fails."""
        flow = self.flow
        if flow is None or flow.values is None:
            return super().value_limits(place_of)

        def value_of(delivery: D) -> bytes | None:
            return self.limited_value(delivery.raw, delivery)

        def has_no_value(delivery: D, error: EvaluationError) -> None:
            self.trace_if_sampled(delivery)
            self.expression_failed(error, delivery)
            delivery.done()

        return ValueLimit(flow.values, value_of, place_of, has_no_value, lambda: flow.hold_back(1), flow.nothing_waits)

    def limited_as(self, delivery: Delivery) -> bytes | None:
        if self.flow is None or self.flow.values is None:
            return super().limited_as(delivery)
        try:
            return self.limited_value(delivery.raw, delivery)
        except EvaluationError:
            return None

    def order_key(self, delivery: Delivery, place: int) -> bytes:
        if not self._has_key:
            return super().order_key(delivery, place)
        try:
            return self.value_of_key(delivery.raw, delivery)
        except EvaluationError:
            return b"%b%d" % (_NO_KEY, place)

    def lacks_key(self, key: bytes) -> bool:
        return self._has_key and key.startswith(_NO_KEY)

    def fail_without_key(self, delivery: Delivery) -> None:
        self.trace_if_sampled(delivery)
        # It has taken no token of the limit, so it gives none back.
        if self._accepts(delivery):
            try:
                self.value_of_key(delivery.raw, delivery)
                # An expression may read `deliveries`, which grows while the message waits.
                error = EvaluationError("the key had no value when the message was received")
            except EvaluationError as missing:
                error = missing
            self.expression_failed(error, delivery)
        delivery.done()

    def value_of_key(self, raw: RawMessage, delivery: Delivery | None = None) -> bytes:
        """Return the value of the route's key for a message. Raises `EvaluationError` if it has none.

        `delivery` is that of a message from a stream.
        """
        expression = self.plan.key
        assert expression is not None
        key = key_of(expression.evaluate(self.content.facts(raw, delivery)))
        # A long key is hashed, and marked by a letter of its own. No key begins with NUL, which marks a missing key.
        return key if len(key) <= LONGEST_KEY else b"#" + blake2b(key, digest_size=LONGEST_KEY - 1).digest()

    def forward(self, delivery: Delivery) -> None:
        """Send one message to the destinations that its content chooses."""
        if self._has_to_wait(delivery):
            delivery.done()
            return
        content = self.content
        try:
            facts = content.facts(delivery.raw, delivery)
            if not delivery.was_accepted and not content.takes(facts):
                self.filter_out(delivery, WHEN)
                self._give_token_back()
            else:
                self.forward_chosen(delivery, facts, content.choose_for(facts, delivery, 0))
        except EvaluationError as error:
            self.expression_failed(error, delivery)
        delivery.done()

    def forward_chosen(self, delivery: Delivery, facts: Facts, chosen: Sequence[int]) -> None:
        """Send one message to the destinations at these places, if any. The caller calls `Delivery.done`."""
        if not chosen:
            self.filter_out(delivery, UNMATCHED)

        def send(outlet: Outlet, owner: Owner, trace_parent: bytes | None) -> None:
            outlet.forward(delivery.raw, owner, delivery, trace_parent, facts)

        self._send_copies(delivery, chosen, send)

    def _send_copies(
        self,
        delivery: Delivery,
        chosen: Sequence[int],
        send: Callable[[Outlet, Owner, bytes | None], None],
        *,
        number: int = 0,
        several: bool = False,
        size: int | None = None,
    ) -> None:
        """Send one copy, with its own owner, to each destination at these places that has none yet.

        `number`, `several`: see `send_answer`. `size`: see `Outlet.trace`.
        """
        for place in chosen:
            outlet = self.outlets[place]
            copy = number * len(self.outlets) + place
            if place in self.content.mirrors:
                mirror = MirrorCopy(self.state, outlet.template)
                try:
                    send(outlet, mirror, None)
                except RouterError as error:
                    mirror.count_failure(reason_of(error))
            elif not delivery.has_copied(copy):
                owner = self.owner_of(delivery, outlet, copy, several=several)
                try:
                    send(outlet, owner, outlet.trace(delivery, size))
                except RouterError as error:
                    self.not_accepted(error, delivery, outlet)

    def expression_failed(self, error: EvaluationError | PublishError, delivery: Delivery) -> None:
        """Fail a message for which an expression has no value, or with headers that can't be written.

        Or one whose body does not fit the schema, which is answered if the route responds. The caller calls
        `Delivery.done`.
        """
        reason, detail = error.reason, str(error)
        delivery.fail(reason, Failure(reason, detail))
        if delivery.trace is not None:
            delivery.trace.failed(reason, detail)
        self.emit_failure_of(delivery, reason, detail)
        if self.responder is not None and isinstance(error, BodyError):
            delivery.when_given_up(partial(self.responder.answer_error, f"{reason}: {detail}", delivery))

    def send_answer(
        self, answer: Message, message: Message, delivery: Delivery, number: int, own_id: bytes, several: bool
    ) -> bool:
        """Send one answer of a handler where its own contents direct it. Return False if it has no destination."""
        unchanged = answer.headers is message.headers
        content = self.content
        try:
            block = framing.header_block(delivery.raw) if unchanged else headers.encode(answer.headers)
            facts = content.facts_of(answer.subject, block, answer.payload, delivery)
            chosen = content.choose_for(facts, delivery, number)
        except (EvaluationError, PublishError) as error:
            self.expression_failed(error, delivery)
            return True

        def send(outlet: Outlet, owner: Owner, trace_parent: bytes | None) -> None:
            outlet.forward_message(
                answer, message, delivery.raw, owner, message_id=own_id, trace_parent=trace_parent, facts=facts
            )

        self._send_copies(delivery, chosen, send, number=number, several=several, size=len(answer.payload))
        return bool(chosen)
