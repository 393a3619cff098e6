"""The circuit breaker of one destination of a route: it observes the fates of publishes, and acts on them.

While it is closed, only failures are observed. When it opens, messages queued for the destination return to the hand of
the route, if that keeps them, and so do messages that fail there until it is closed. None of that counts as an
attempt, and the stream need not redeliver these messages.

A destination without `[routes.to.breaker]` has one as well, if each message of a route that keeps its messages needs
it. That opens only for a refusal that every message there would get: one is tried after pauses that grow. It is shown
as what the destination refuses, and not as a breaker.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors.reasons import OF_THE_MESSAGE, OF_THE_WAY, OUT_OF_TURN, TIMEOUT, UNANSWERED, Refuses, refuses
from router_trio.events import BreakerClosed, BreakerOpened, Emit
from router_trio.events.sentences import counted
from router_trio.outbox.operation import CoreOperation, Operation, OperationWithAck
from router_trio.routing.delivery import BreakerTracker, Delivery
from router_trio.routing.policy.breaker import CLOSED, HALF_OPEN, LONGEST_PAUSE, Breaker
from router_trio.settings import BreakerSettings
from router_trio.states import BreakerState, DestinationState, RouteState

FIRST_PAUSE = 0.5
"""Seconds until the first probe of a destination that refuses all messages. Each further pause is twice as long."""

_LEFT_ALONE = "the breaker of its destination is open"


class DestinationBreaker:
    """The breaker of one destination, and the `BreakerWatch` of its publishes.

    `changed` is called when it opens, closes, or lets a message probe.
    `several`: the route has other destinations, so the messages that this one accepts are counted here.
    """

    def __init__(
        self,
        settings: BreakerSettings | None,
        route: RouteState,
        connection: Connection,
        to: DestinationState,
        emit: Emit,
        changed: Callable[[], None],
        *,
        several: bool,
        falls_back: bool,
        kept: bool,
        never: frozenset[str],
    ) -> None:
        """`settings` are None for a destination without any. `never`: the reasons for which messages are given up.

        `falls_back`: while it refuses some messages, all are sent elsewhere. `kept`: the route keeps messages that
        fail, so they can wait in hand.
        """
        self.shown: BreakerState = BreakerState(connection.name, to.template)
        """The state of the breaker for pages and readiness."""
        self._breaker = Breaker(1, FIRST_PAUSE, LONGEST_PAUSE)
        if settings is not None:
            self._breaker = Breaker(settings.failures, settings.pause)
        self._settings = settings
        self._to = to
        self._never = never
        self._route = route
        self._outbox = connection.outbox
        self._emit = emit
        self._changed = changed
        self._several = several
        self._falls_back = falls_back
        self._kept = kept
        self._taken_here = 0
        self.is_silent: bool = False
        """True if the last message that something is known about got no answer in time."""
        self._refusals = connection.outbox.refusals
        if settings is not None or falls_back:
            self._refusals.notify_of_retries((route.name, to.template), self)

    def stop_listening(self) -> None:
        """Stop listening, since the route has ended."""
        self._refusals.stop_notifying((self._route.name, self.shown.template), self)

    @property
    def is_configured(self) -> bool:
        """Return True if the destination has `[routes.to.breaker]`."""
        return self._settings is not None

    @property
    def state(self) -> str:
        """CLOSED, OPEN or HALF_OPEN."""
        return self._breaker.state

    @property
    def probe_at(self) -> float:
        """When a message may probe the destination, in seconds of the outbox's clock."""
        return self._breaker.probe_at

    @property
    def closed(self) -> bool:
        """Return True if messages are sent as without a breaker."""
        return self._breaker.state == CLOSED

    def admits(self, now: float) -> bool:
        """Return True if a message may be sent there."""
        return self._breaker.admits(now)

    def _publish(self) -> None:
        """Show a change of the breaker on pages, and wake the tasks that wait."""
        breaker, shown = self._breaker, self.shown
        shown.state, shown.probe_at, shown.why_open = breaker.state, breaker.probe_at, None
        if breaker.state != CLOSED:
            where = f"destination {shown.template!r} on connection {shown.connection}"
            tried = f"one message is tried every {breaker.pause:g} s"
            if self._settings is None:
                shown.why_open = f"{where} refuses messages: {breaker.reason}{self._detail}; {tried}"
            else:
                failures = counted(self._settings.failures, "failure")
                shown.why_open = (
                    f"the circuit breaker of {where} is open: "
                    f"{failures} in a row, the last one {breaker.reason}{self._detail}; {tried}"
                )
        self._changed()

    @property
    def _detail(self) -> str:
        """Return the server's text about the last failure, as the end of a sentence."""
        if self._to.refused_for is None:
            return ""
        reason, detail = self._to.refused_for
        return f" ({detail})" if reason == self._breaker.reason else ""

    # --- events ---

    def follow(self, delivery: Delivery, copy: int) -> BreakerTracker:
        """Record that a message is sent there. Return the owner of its operation."""
        if self._breaker.state != CLOSED:
            self._breaker.message_goes(trio.current_time())
            if self.shown.state != self._breaker.state:
                self.shown.state = self._breaker.state
                self._changed()
        delivery.remaining += 1
        return BreakerTracker(delivery, self.shown.template, copy, self)

    @property
    def _taken(self) -> int:
        if self._several:
            return self._taken_here
        return self._route.accepted_by(self.shown.template)

    def copy_passed(self) -> None:
        self._taken_here += 1
        self.is_silent = False
        if self._breaker.message_passed():
            self._closed()

    def accepted(self, operation: OperationWithAck) -> None:
        """Close if a publish was accepted that was sent since the breaker opened: the outbox retries those it holds."""
        if self._breaker.retry_passed(operation.written_at):
            self._closed()

    def _closed(self) -> None:
        """Report that the breaker has closed."""
        now = trio.current_time()
        if self._settings is not None:
            self._emit(
                BreakerClosed(
                    at=now,
                    route=self._route.name,
                    connection=self.shown.connection,
                    subject=self.shown.template,
                    open_seconds=now - self._breaker.opened_at,
                )
            )
        self._publish()

    def copy_refused(self, reason: str) -> str:
        """Record that a copy was refused. A message that can wait in hand fails as if taken back from the outbox."""
        if reason in OF_THE_MESSAGE or reason in OF_THE_WAY or reason in self._never:
            self.spare(reason)
            return reason
        self._take_answer(reason)
        if self._settings is None and not self._refuses_all(reason):
            if self._breaker.close():  # as far as is known it refuses some messages, and others need not wait
                self._publish()
            return reason
        shown = self.closed and self._settings is None  # as the failure of one message, and those behind it wait
        if self._failed(reason):
            self._recall()
        return reason if shown or self.closed or not self._kept else OUT_OF_TURN

    def _refuses_all(self, reason: str) -> bool:
        """Return True if no message is sent there for now: it would be refused for this reason as well."""
        kind = refuses(reason)
        return kind is not Refuses.NOTHING and (
            self._falls_back or self._to.has_one_subject or (kind is Refuses.STREAM and self._to.has_one_stream)
        )

    def spare(self, reason: str) -> None:
        """Allow another probe, since the message sent there failed for this reason and did not test the destination."""
        if self._breaker.state == HALF_OPEN:
            reachable = reason not in OF_THE_WAY or reason == OUT_OF_TURN
            self._breaker.inconclusive(trio.current_time(), reachable=reachable)
            self._publish()

    def retried(self, operation: OperationWithAck, reason: str) -> None:
        """Record that a publish was refused, or not answered, which the outbox keeps and tries again."""
        self._take_answer(reason)
        if self._settings is None and (
            self.is_silent or operation.refused_with is not None or not self._refuses_all(reason)
        ):
            return  # it may be stored
        opens = self._failed(reason)
        if opens:
            self._recall()
        elif not self.closed and self._is_ours(operation):
            self._refusals.give_up(operation, OUT_OF_TURN, _LEFT_ALONE)

    def _take_answer(self, reason: str) -> None:
        """Record whether the destination has answered a message that failed for this reason."""
        was_silent, self.is_silent = self.is_silent, reason in (TIMEOUT, UNANSWERED)
        if self.is_silent and not was_silent:
            self._changed()

    def _failed(self, reason: str) -> bool:
        """Record a failure. Return True if the breaker opens, for the first time or again."""
        breaker, now, before = self._breaker, trio.current_time(), self._breaker.state
        if breaker.message_failed(now, self._taken, reason) and self._settings is not None:
            self._route.openings[self.shown.connection, self.shown.template] += 1
            self._emit(
                BreakerOpened(
                    at=now,
                    route=self._route.name,
                    connection=self.shown.connection,
                    subject=self.shown.template,
                    reason=reason,
                    failed_count=self._settings.failures,
                    pause_seconds=self._settings.pause,
                )
            )
        if breaker.state == before:
            return False
        self._publish()
        return True

    def _recall(self) -> None:
        """Take back the messages that are queued for the destination."""
        if self._kept:
            self._outbox.recall(self._is_ours, _LEFT_ALONE)

    def _is_ours(self, operation: Operation) -> bool:
        owner = operation.owner if isinstance(operation, CoreOperation) else None
        if isinstance(owner, BreakerTracker):
            return owner.breaker is self and self._kept
        return self._kept and isinstance(owner, Delivery) and owner.route is self._route
