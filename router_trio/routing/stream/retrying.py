"""What becomes of a message of a stream that failed: it comes again, or is given up and its dead letter stored.

A message that is given up stays in hand until its dead letter is stored; only then its consumer is done with it. If the
dead letter can't be stored, the message goes back to its stream, and nothing but its dead letter is tried when it comes
again: no message is both routed and dead-lettered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress

import trio

from router_trio.errors import RouterError, reasons
from router_trio.events import DeadLetterNotStored, Emit, MessageDeadLettered, MessageGivenUp
from router_trio.message import Fate
from router_trio.protocol.framing import text
from router_trio.routing.dead_letters import DeadLetter, DeadLetters
from router_trio.routing.pipeline import reason_of
from router_trio.routing.policy.retry import Failure, GivenUp, RetryPolicy
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.limits import UNLIMITED
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import InHand
from router_trio.states import RouteState


class Retrying:
    """The failures of one route. Every method is synchronous; `look` is called when something has left the hand."""

    def __init__(
        self,
        state: RouteState,
        stream: str,
        policy: RetryPolicy,
        dead_letters: DeadLetters | None,
        pending: InHand,
        acks: Acks,
        emit: Emit,
        look: Callable[[], None],
    ) -> None:
        self.server_limit: int = UNLIMITED
        """Deliveries after which the server delivers no message again, though the route wants it to."""
        self._state = state
        self._stream = stream
        self._policy = policy
        self._dead_letters = dead_letters
        self._pending = pending
        self._acks = acks
        self._emit = emit
        self._look = look
        self.patience: float = 0.0
        """Seconds that a message which comes again may be late."""

    @property
    def has_dead_letters(self) -> bool:
        """Return True if what is given up is stored elsewhere."""
        return self._dead_letters is not None

    def message_failed(self, delivery: StreamDelivery, failure: Failure) -> None:
        """A message that is in hand failed: it comes again, or that was its last attempt."""
        failures = delivery.cursor.failures
        attempts = failures.add(delivery.sequence)
        if delivery.choices is not None:
            failures.keep_choices(delivery.sequence, delivery.choices)
        if self._policy.over(failure, attempts) or self._is_last(delivery):
            self._give_up(delivery, GivenUp(failure, attempts, delivery.refused))
        else:
            now = trio.current_time()
            failures.retried.add(delivery.sequence, now)
            self._comes_again(delivery, self._policy.delay(failure, attempts, now))

    def was_given_up(self, delivery: StreamDelivery) -> bool:
        """Return True if a message was given up before: all that is left to do is to store its dead letter."""
        return delivery.sequence in delivery.cursor.failures.given_up

    def without_given_up(self, deliveries: Sequence[StreamDelivery]) -> list[StreamDelivery]:
        """Return those that are to be routed, of messages that are in hand; of the others the dead letters are sent."""
        given_up = [self.was_given_up(delivery) for delivery in deliveries]
        for delivery in compress(deliveries, given_up):
            self.give_up_again(delivery)
        return [delivery for delivery, over in zip(deliveries, given_up, strict=True) if not over]

    def give_up_again(self, delivery: StreamDelivery) -> None:
        """A message that was given up came again, and is in hand: its dead letter is sent, and nothing else."""
        dead = delivery.cursor.failures.given_up[delivery.sequence]
        delivery.refused = dead.refused
        self._give_up(delivery, dead)
        self._look()

    def _is_last(self, delivery: StreamDelivery) -> bool:
        """Return True if the server does not deliver a message again: nobody may change the limit of its consumer."""
        return 0 < self.server_limit <= delivery.deliveries

    def _comes_again(self, delivery: StreamDelivery, delay: float) -> None:
        pending = self._pending
        pending.remove(delivery)
        self._state.fates["returned"] += 1
        now = trio.current_time()
        pending.await_redelivery(delivery, now, now + delay + OVERDUE, self.patience)
        self._acks.nak(delivery.ack_subject, delay)

    # --- dead letters ---

    def _give_up(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """That was the last attempt at a message."""
        letters = self._dead_letters
        if letters is None:
            self._let_go(delivery, dead)
        elif not letters.reachable:
            self._not_stored(delivery, dead, reasons.NOT_CONNECTED, "the connection is away")
        else:
            try:
                letters.store(delivery, dead, self._settled)
            except RouterError as error:
                self._not_stored(delivery, dead, reason_of(error), str(error))

    def _settled(self, letter: DeadLetter, fate: Fate) -> None:
        """A dead letter has its fate."""
        delivery, dead = letter.delivery, letter.dead
        assert isinstance(delivery, StreamDelivery)
        if not fate.delivered:
            self._not_stored(delivery, dead, fate.reason or fate.name, fate.detail or None)
        else:
            is_open = self._pending.remove(delivery)
            if is_open:
                self._pending.given_up(delivery)
            # Before bytes leave: then the ledger has to add up.
            self._count("dead_lettered", MessageDeadLettered, delivery, dead)
            if is_open:
                self._acks.term(delivery.ack_subject, dead.failure.reason)
        self._look()

    def _not_stored(self, delivery: StreamDelivery, dead: GivenUp, reason: str, detail: str | None) -> None:
        """A dead letter could not be stored: its message stays in the stream."""
        now = trio.current_time()
        self._state.failed[reasons.DEAD_LETTER] += 1
        subject = text(delivery.raw[0])
        told = reason if detail is None else f"{reason}: {detail}"
        self._state.failed_at_last(reasons.DEAD_LETTER, subject, delivery.sequence, dead.attempts, detail=told)
        self._emit(
            DeadLetterNotStored(
                at=now,
                route=self._state.name,
                reason=reason,
                subject=subject,
                stream=self._stream,
                sequence=delivery.sequence,
                detail=detail,
            )
        )
        if delivery.cursor is not self._pending.cursor:
            self._pending.remove(delivery)
            self._state.fates["lost"] += 1  # that stream is gone
        elif self._is_last(delivery):
            self._let_go(delivery, dead)
        else:
            delivery.cursor.failures.keep_given_up(delivery.sequence, dead)
            delivery.cursor.failures.retried.add(delivery.sequence, now)
            self._comes_again(delivery, self._policy.backoff(dead.tries, now))

    def _let_go(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """The consumer of a message is done with it. A stream with limits retention keeps it."""
        self._pending.remove(delivery)
        self._pending.given_up(delivery)
        self._count("given_up", MessageGivenUp, delivery, dead)
        if self._is_last(delivery):
            self._acks.nak(delivery.ack_subject, 0)  # it does not come again, and no stream deletes it for that
        else:
            self._acks.term(delivery.ack_subject, dead.failure.reason)

    def _count(
        self,
        fate: str,
        event: type[MessageDeadLettered] | type[MessageGivenUp],
        delivery: StreamDelivery,
        dead: GivenUp,
    ) -> None:
        reason = dead.failure.reason
        self._state.fates[fate] += 1
        self._state.given_up[reason] += 1
        self._emit(
            event(
                at=trio.current_time(),
                route=self._state.name,
                reason=reason,
                attempts=dead.attempts,
                subject=text(delivery.raw[0]),
                stream=self._stream,
                sequence=delivery.sequence,
            )
        )
