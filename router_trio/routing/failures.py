"""Retry a failed message, or give it up and store its dead letter.

This is the same for every source. A source defines what retrying and giving up mean there: see `Recovery`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import trio

from router_trio.errors import RouterError, reasons
from router_trio.errors.reasons import counts_as_attempt
from router_trio.events import DeadLetterNotStored, Emit, MessageDeadLettered, MessageGivenUp
from router_trio.message import Fate
from router_trio.protocol.framing import text
from router_trio.routing.dead_letters import DeadLetter, DeadLetters
from router_trio.routing.delivery import Delivery
from router_trio.routing.pipeline import reason_of
from router_trio.routing.policy.failed_messages import Failed
from router_trio.routing.policy.retry import Failure, GivenUp, RetryPolicy, RetryStore
from router_trio.states import RouteState

D = TypeVar("D", bound=Delivery)
D_contra = TypeVar("D_contra", bound=Delivery, contravariant=True)


class Recovery(Protocol[D_contra]):
    """Retries or settles failed messages, as their source can. All methods except the first two settle the message."""

    def is_last_attempt(self, delivery: D_contra, failure: Failure) -> bool:
        """Return True if a message can't be retried, regardless of the settings."""
        ...

    def try_again(self, delivery: D_contra, delay: float, now: float) -> bool:
        """Have a message routed again after `delay` seconds. Return False if there is no room to keep it."""
        ...

    def scheduled(self, delivery: D_contra) -> None:
        """Settle a message whose next attempt is stored in the stream of retries."""

    def dead_lettered(self, delivery: D_contra, dead: GivenUp, *, elsewhere: bool) -> None:
        """Settle a message whose dead letter is stored; `elsewhere`: another process stored it and counts it."""

    def dropped(self, delivery: D_contra, dead: GivenUp) -> None:
        """Settle a message that is given up on a route without dead letters."""

    def not_stored(self, delivery: D_contra, dead: GivenUp) -> None:
        """Settle a message that was given up and whose dead letter was not stored; its source may still have it."""

    def place(self, delivery: D_contra) -> dict[str, Any]:
        """Return the stream and sequence of a message as fields of an event; empty for a subject."""
        ...


class Failures(Generic[D]):
    """The failures of one route. Every method is synchronous."""

    def __init__(
        self,
        state: RouteState,
        policy: RetryPolicy,
        dead_letters: DeadLetters | None,
        recovery: Recovery[D],
        emit: Emit,
        limited_as: Callable[[D], bytes | None],
        schedules: RetryStore | None = None,
    ) -> None:
        """`limited_as` returns whose limit an attempt uses up: see `Routing.limited_as`."""
        self._schedules = schedules
        self.policy: RetryPolicy = policy
        self._state = state
        self._dead_letters = dead_letters
        self._recovery = recovery
        self._emit = emit
        self._limited_as = limited_as

    @property
    def has_dead_letters(self) -> bool:
        """Return True if the route stores dead letters."""
        return self._dead_letters is not None

    @property
    def stores_dead_letters(self) -> bool:
        """Return True if the route has dead letters, and their connection has a link."""
        return self._dead_letters is not None and self._dead_letters.reachable

    def failed(self, delivery: D, failure: Failure, known: Failed) -> None:
        """Retry a message that has failed, or give it up. `known` is counted up.

        A failure that no message can cause uses up no attempt, and the message waits where it is.
        """
        now = trio.current_time()
        counts = known.count(failure.reason)
        last = self._recovery.is_last_attempt(delivery, failure) or self.policy.over(failure, known.attempts)
        delay = 0.0 if last else self.delay(delivery, failure, known, now)
        if not last and counts and self._schedule(delivery, delay, now):
            return
        if last or not self._recovery.try_again(delivery, delay, now):
            self.give_up(delivery, GivenUp(failure, max(1, known.attempts), delivery.refused))

    def _schedule(self, delivery: D, delay: float, now: float) -> bool:
        """Have another stream keep a message until its next attempt, if that is far away.

        Return False if the message has to wait where it is.
        """
        schedules = self._schedules
        if schedules is None or delay <= schedules.after or not schedules.reachable:
            return False

        def settled(fate: Fate) -> None:
            # The stream has it if it was sent before, and is not published yet.
            if fate.delivered or fate.reason == reasons.WRONG_EXPECTATION:
                self._recovery.scheduled(delivery)
            else:
                later = trio.current_time()
                self._recovery.try_again(delivery, max(0.0, now + delay - later), later)

        try:
            schedules.store(delivery, delay, settled)
        except RouterError:
            return False  # too large with its origin, or the stream would lose it, which `/readyz` reports
        return True

    def delay(self, delivery: D, failure: Failure, known: Failed, now: float) -> float:
        """Return the seconds until the next attempt of a message that has failed."""
        failures = known.attempts if counts_as_attempt(failure.reason) else known.refusals
        return self.policy.delay(failure, failures, now, self._limited_as(delivery))

    def handled_again(self, seconds: float, now: float) -> None:
        """Record how long the handler took for a message that had failed before."""
        self.policy.of_handler.used(seconds, now)

    def give_up(self, delivery: D, dead: GivenUp) -> None:
        """Store the dead letter of a message, which is active until that is settled; without dead letters, drop it."""
        delivery.report_given_up()
        letters = self._dead_letters
        if letters is None:
            self._recovery.dropped(delivery, dead)
        elif delivery.from_stream and (why := letters.unreachable) is not None:
            self._not_stored(delivery, dead, *why)
        else:
            try:
                letters.store(delivery, dead, self._letter_settled(delivery))
            except RouterError as error:
                self._not_stored(delivery, dead, reason_of(error), str(error))

    def _letter_settled(self, delivery: D) -> Callable[[DeadLetter, Fate], None]:
        def settled(letter: DeadLetter, fate: Fate) -> None:
            if fate.delivered:
                elsewhere = letter.dead.taken_over and fate.duplicate and not letter.was_resent
                if not elsewhere:
                    self.count(MessageDeadLettered, delivery, letter.dead)
                self._recovery.dead_lettered(delivery, letter.dead, elsewhere=elsewhere)
            else:
                self._not_stored(delivery, letter.dead, fate.reason or fate.name, fate.detail or None)

        return settled

    def _not_stored(self, delivery: D, dead: GivenUp, reason: str, detail: str | None) -> None:
        self._state.failed[reasons.DEAD_LETTER] += 1
        subject = text(delivery.raw[0])
        described = reason if detail is None else f"{reason}: {detail}"
        self._state.failed_at_last(
            reasons.DEAD_LETTER, subject, delivery.place_in_stream, attempt=dead.attempts, detail=described
        )
        self._emit(
            DeadLetterNotStored(
                at=trio.current_time(),
                route=self._state.name,
                reason=reason,
                subject=subject,
                detail=detail,
                **self._recovery.place(delivery),
            )
        )
        if reason in reasons.OF_THE_MESSAGE:
            dead.refused = False  # the dead letters of other messages would be stored, and this one is not delivered
        self._recovery.not_stored(delivery, dead)

    def count(self, event: type[MessageDeadLettered] | type[MessageGivenUp], delivery: D, dead: GivenUp) -> None:
        """Count and report a message that is given up."""
        reason = dead.failure.reason
        self._state.given_up[reason] += 1
        self._emit(
            event(
                at=trio.current_time(),
                route=self._state.name,
                reason=reason,
                attempts=dead.attempts,
                subject=text(delivery.raw[0]),
                **self._recovery.place(delivery),
            )
        )
