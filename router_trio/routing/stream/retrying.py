"""What a stream does with a message that failed: it redelivers it, or is told that the message is done with.

A message that is given up stays in hand until its dead letter is stored; only then it is terminated. If the dead letter
can't be stored, the message is returned to its stream, and nothing but its dead letter is tried when it is redelivered:
no message is both routed and dead-lettered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import trio

from router_trio.events import Emit, MessageGivenUp
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.failures import Failures
from router_trio.routing.policy.retry import Failure, GivenUp, RetryPolicy
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.limits import UNLIMITED
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import InHand
from router_trio.states import RouteState


class Retrying:
    """The failed messages of one route: the `Recovery` of a stream. Every method is synchronous."""

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
        """`look` is called when something has left the hand."""
        self.server_limit: int = UNLIMITED
        """Deliveries after which the server delivers no message again, though the route wants it to."""
        self.patience: float = 0.0
        """Seconds that a redelivered message may be late."""
        self._state = state
        self._stream = stream
        self._pending = pending
        self._acks = acks
        self._look = look
        self._failures: Failures[StreamDelivery] = Failures(state, policy, dead_letters, self, emit)

    @property
    def has_dead_letters(self) -> bool:
        """Return True if what is given up is stored elsewhere."""
        return self._failures.has_dead_letters

    def message_failed(self, delivery: StreamDelivery, failure: Failure) -> None:
        """Have a message that is in hand redelivered, or give it up."""
        failures = delivery.cursor.failures
        attempts = failures.add(delivery.sequence)
        if delivery.choices is not None:
            failures.keep_choices(delivery.sequence, delivery.choices)
        self._failures.failed(delivery, failure, attempts)

    # --- given up before, and redelivered ---

    def was_given_up(self, delivery: StreamDelivery) -> bool:
        """Return True if a message was given up before: all that is left to do is to store its dead letter."""
        return delivery.sequence in delivery.cursor.failures.given_up

    def without_given_up(self, deliveries: Sequence[StreamDelivery]) -> list[StreamDelivery]:
        """Return the messages that are to be routed, of some in hand. Of the others, send the dead letters."""
        given_up = [self.was_given_up(delivery) for delivery in deliveries]
        for delivery in compress(deliveries, given_up):
            self.give_up_again(delivery)
        return [delivery for delivery, over in zip(deliveries, given_up, strict=True) if not over]

    def give_up_again(self, delivery: StreamDelivery) -> None:
        """Send the dead letter of a message in hand that was given up before, and nothing else."""
        dead = delivery.cursor.failures.given_up[delivery.sequence]
        delivery.refused = dead.refused
        self._failures.give_up(delivery, dead)
        self._look()

    # --- see `Recovery` ---

    def is_last_attempt(self, delivery: StreamDelivery, failure: Failure) -> bool:
        """See `Recovery`: somebody has limited the deliveries of the consumer, and nobody may change that."""
        return self._is_last_delivery(delivery)

    def try_again(self, delivery: StreamDelivery, delay: float, now: float) -> bool:
        """See `Recovery`."""
        delivery.cursor.failures.retried.add(delivery.sequence, now)
        self._pending.remove(delivery)
        self._state.fates["returned"] += 1
        self._pending.await_redelivery(delivery, now, now + delay + OVERDUE, self.patience)
        self._acks.nak(delivery.ack_subject, delay)
        return True

    def dead_lettered(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """See `Recovery`."""
        is_open = self._pending.remove(delivery)
        if is_open:
            self._pending.given_up(delivery)
        # Before bytes leave: then the ledger has to add up.
        self._state.fates["dead_lettered"] += 1
        if is_open:
            self._acks.term(delivery.ack_subject, dead.failure.reason)
        self._look()

    def dropped(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """See `Recovery`. A stream with limits retention keeps the message."""
        self._pending.remove(delivery)
        self._pending.given_up(delivery)
        self._state.fates["given_up"] += 1
        self._failures.count(MessageGivenUp, delivery, dead)
        if self._is_last_delivery(delivery):
            self._acks.nak(delivery.ack_subject, 0)  # it is not redelivered, and no stream deletes it for that
        else:
            self._acks.term(delivery.ack_subject, dead.failure.reason)

    def not_stored(self, delivery: StreamDelivery, dead: GivenUp) -> None:
        """See `Recovery`: the message stays in the stream."""
        if delivery.cursor is not self._pending.cursor:
            self._pending.remove(delivery)
            self._state.fates["lost"] += 1  # that stream is gone
        elif self._is_last_delivery(delivery):
            self.dropped(delivery, dead)
        else:
            now = trio.current_time()
            delivery.cursor.failures.keep_given_up(delivery.sequence, dead)
            self.try_again(delivery, self._failures.policy.backoff(dead.tries, now), now)
        self._look()

    def place(self, delivery: StreamDelivery) -> dict[str, Any]:
        """See `Recovery`."""
        return {"stream": self._stream, "sequence": delivery.sequence}

    def _is_last_delivery(self, delivery: StreamDelivery) -> bool:
        return 0 < self.server_limit <= delivery.deliveries
