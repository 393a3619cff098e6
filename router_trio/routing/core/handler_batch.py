"""Send the answers of a handler to the messages of one batch together: the fast path to core subjects.

Answers are collected until the batch ends or the handler is about to block, whichever is first, so that no answer waits
for the I/O of another message. Any other result than one plain answer (none, several, an error, a refusal) is processed
like a single message, after the answers collected before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextvars import Context, copy_context
from typing import Any

import trio
from trio.lowlevel import current_task

from router_trio.errors import RouterError
from router_trio.message import Message
from router_trio.outbox.operation import FrameOwners, Owner
from router_trio.protocol import framing, headers
from router_trio.routing.delivery import BatchDelivery, Delivery
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.calls import OVER, Blocked, Handler, HandlerCalls, Pair, begin, finished
from router_trio.routing.handlers.errors import raise_if_signal
from router_trio.routing.handlers.messages import as_message
from router_trio.routing.handlers.scopes import scopes_of_task
from router_trio.routing.pipeline import Routing


class HandlerBatch:
    """A batch that is passed to a handler. `offer_kept` is called at the end.

    Fast path of `Routing.route`; held equal by
    tests/unit/routing/test_both_ways.py::test_messages_handled_in_a_batch_are_handled_like_single_ones, worth 650
    instructions a message (tests/performance/test_fast_paths.py::test_messages_that_are_handled_together).
    """

    def __init__(self, routing: Routing, handler: Handler, received_at: float) -> None:
        self.routing: Routing = routing
        self._handler = handler
        self._received_at = received_at
        self._outlets = routing.outlets
        # Without destinations, one list that stays empty.
        self._frames: list[list[bytes]] = [[] for _ in self._outlets] or [[]]
        self._followed: dict[int, list[Owner]] = {}
        self._together = routing.as_it_comes and not any(outlet.waits_for_puback for outlet in self._outlets)
        self._only = self._outlets[0] if self._together and len(self._outlets) == 1 else None
        self._turn = routing.turn
        self._task: Any = current_task()
        self._scopes = scopes_of_task()
        self.between_calls: bool = False
        """True while the awaitable that `handle_each` returned lets other tasks run: no message is in the handler."""

    def handle_each(self, calls: HandlerCalls) -> Awaitable[None] | None:
        """Pass messages to the handler until one blocks or the turn is over; return what to await before the next.

        If that is cancelled, nothing of the message was sent.
        """
        only = self._only
        keep = self._frames[0].append
        call, steps = calls.call, calls.steps
        clock, until = self._turn.clock, self._turn.until
        task, scopes, empty = self._task, self._scopes, headers.EMPTY
        self.between_calls = False
        while True:
            context = copy_context()
            step = context.run(next, steps, OVER)
            if step is not call:
                if step is OVER:
                    return None
                self.offer_kept()
                raw, message = call[0]
                return self._blocked(calls.blocked(step, context), message, self._delivery(raw), context)
            (raw, message), answer, error = call
            if error is not None:
                call[2] = None
                if (left_open := self._failed_at_once(error, self._delivery(raw))) is not None:
                    return left_open
                if clock() < until:
                    continue
                return self._let_turn()
            kind = type(answer)  # a variable, or mypyc would assume a payload of bytes before that is checked
            if (
                only is not None
                and kind is Message
                and answer[0] is message[0]
                and type(answer[1]) is bytes
                and answer[2] is empty  # or the handler removed them all
                and answer[3] is message[3]
                and task._cancel_status is scopes
            ):
                # Only the payload has changed, as with most handlers, so no further checks are needed.
                # Fast path of _answered; held equal by
                # tests/unit/routing/test_both_ways.py::test_a_changed_payload_is_sent_like_any_other_answer, worth 195
                # instructions a message
                # (tests/performance/test_fast_paths.py::test_answers_with_only_a_new_payload).
                try:
                    keep(only.frame_of(answer[1], raw))
                    if clock() < until:
                        continue
                    return self._let_turn()
                except RouterError:
                    pass  # refused: counted below, as for a single message
            if (left_open := self._answered(answer, message, self._delivery(raw), context)) is not None:
                return left_open
            if clock() >= until:
                return self._let_turn()

    def let_turn(self) -> Awaitable[None] | None:
        """Return what to await before the next message, if the turn is over."""
        return self._let_turn() if self._turn.over else None

    def _let_turn(self) -> Awaitable[None]:
        self.offer_kept()
        self.between_calls = True
        return self._turn.give_way()

    def handle_traced(self, raw: framing.RawMessage) -> Awaitable[None] | None:
        """Call the handler with one sampled message."""
        self.between_calls = False
        delivery = self._delivery(raw)
        self.routing.begin_trace(delivery)
        if not self._takes(delivery):
            return None
        message, context = as_message(raw, self.routing.plan.connection), self.routing.context_of_call(delivery)
        try:
            answer = begin(self._handler, message, context)
        except BaseException as error:
            return self._failed_at_once(error, delivery)
        if isinstance(answer, Blocked):
            self.offer_kept()
            return self._blocked(answer, message, delivery, context)
        return self._answered(answer, message, delivery, context)

    def wants(self, pair: Pair) -> bool:
        """Return True if the route accepts a message, else settle it. Called just before the handler is."""
        return self._takes(self._delivery(pair[0]))

    def _takes(self, delivery: Delivery) -> bool:
        """Return True if the route accepts a message, else settle it."""
        taken = self.routing.takes_message(delivery)
        if not taken:
            delivery.done()
        return taken

    def _delivery(self, raw: framing.RawMessage) -> Delivery:
        return Delivery(self.routing.state, raw, self._received_at)

    async def _blocked(self, blocked: Awaitable[Any], message: Message, delivery: Delivery, context: Context) -> None:
        state = self.routing.state
        state.handler_begins(trio.current_time())
        try:
            answers = await finished(blocked, self._scopes, context)
        except BaseException as error:
            await self.routing.handler_raised(error, delivery)
            delivery.done()
        else:
            self._made(answers, message, delivery)
        finally:
            state.handler_returns(trio.current_time())
            self._turn.begin()

    def _answered(self, answer: Any, message: Message, delivery: Delivery, context: Context) -> Awaitable[None] | None:
        """Process what a handler returned without blocking. Return what to await if it left a scope open."""
        try:
            answers = context.run(answers_of, answer)
        except BaseException as error:
            return self._failed_at_once(error, delivery)
        if self._task._cancel_status is not self._scopes:
            self.offer_kept()
            return self.routing.scope_left_open(self._scopes, None, delivery)
        self._made(answers, message, delivery)
        return None

    def _made(self, answers: Sequence[Message], message: Message, delivery: Delivery) -> None:
        # While a connection is away, messages are queued one by one: each has its own fate at each destination.
        together = self._together and (len(self._outlets) == 1 or self.routing.waits_for is None)
        if len(answers) == 1 and together and self._kept(answers[0], message, delivery):
            return
        if answers:
            self.offer_kept()
        self.routing.answered(answers, message, delivery)
        delivery.done()

    def _kept(self, answer: Message, message: Message, delivery: Delivery) -> bool:
        """Collect the answer for all destinations; return False if one of them refuses it."""
        raw = delivery.raw
        try:
            frames = [outlet.frame(answer, message, raw) for outlet in self._outlets]
        except RouterError:
            return False
        if delivery.trace is not None:
            size = len(answer.payload)
            self._followed[len(self._frames[0])] = [delivery.owner_for(outlet.template) for outlet in self._outlets]
            frames = [
                outlet.traced(framing.published(frame), outlet.trace(delivery, size))
                for outlet, frame in zip(self._outlets, frames, strict=True)
            ]
            delivery.done()
        for kept, frame in zip(self._frames, frames, strict=True):
            kept.append(frame)
        return True

    def _failed_at_once(self, error: BaseException, delivery: Delivery) -> Awaitable[None] | None:
        """Process the error of a handler that raised without blocking. Return what to await if it left a scope open."""
        if self._task._cancel_status is not self._scopes:
            self.offer_kept()
            return self.routing.scope_left_open(self._scopes, error, delivery)
        raise_if_signal(error)
        self.offer_kept()
        self.routing.handler_failed(error, delivery)
        delivery.done()
        return None

    def offer_kept(self) -> None:
        """Offer the collected answers to the destinations."""
        if not self._frames[0]:
            return
        delivery = BatchDelivery(self.routing.state, self._received_at, len(self._frames[0]) - len(self._followed))
        owners = [delivery.owner_for(outlet.template) for outlet in self._outlets]
        for index, (outlet, owner, frames) in enumerate(zip(self._outlets, owners, self._frames, strict=True)):
            outlet.count(frames)
            shared = FrameOwners([owner], [len(frames)])
            followers = {place: owners[index] for place, owners in self._followed.items()}
            shared.single_out([*followers], followers.get)
            owner.offered(outlet.outbox.offer_frames(frames, shared), 0)
            frames.clear()
        self._followed.clear()
