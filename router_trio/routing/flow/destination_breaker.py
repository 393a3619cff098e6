"""The circuit breaker of one destination of a route: it observes the fates of publishes, and acts on them.

While it is closed, only failures are observed. When it opens, messages queued for the destination return to the hand of
the route, if a stream keeps them, and so do messages that fail there until it is closed. None of that counts as an
attempt, and the stream need not redeliver these messages.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors.reasons import OF_THE_MESSAGE, OF_THE_WAY, OUT_OF_TURN
from router_trio.events import BreakerClosed, BreakerOpened, Emit
from router_trio.outbox.operation import CoreOperation, Operation, OperationWithAck
from router_trio.routing.delivery import BreakerTracker, Delivery
from router_trio.routing.policy.breaker import CLOSED, HALF_OPEN, Breaker
from router_trio.settings import BreakerSettings
from router_trio.states import BreakerState, RouteState

_LEFT_ALONE = "the breaker of its destination is open"


class DestinationBreaker:
    """The breaker of one destination, and the `BreakerWatch` of its publishes.

    `changed` is called when it opens, closes, or lets a message probe.
    `several`: the route has other destinations, so the messages that this one accepts are counted here.
    """

    def __init__(
        self,
        settings: BreakerSettings,
        route: RouteState,
        connection: Connection,
        template: str,
        emit: Emit,
        changed: Callable[[], None],
        *,
        several: bool,
        kept: bool,
    ) -> None:
        """`kept`: a stream keeps the messages until they are acked, so they can wait in hand."""
        self.shown: BreakerState = BreakerState(connection.name, template)
        """The state of the breaker for pages and readiness."""
        self._breaker = Breaker(settings.failures, settings.pause)
        self._settings = settings
        self._route = route
        self._outbox = connection.outbox
        self._emit = emit
        self._changed = changed
        self._several = several
        self._kept = kept
        self._taken_here = 0
        self._refusals = connection.outbox.refusals
        self._refusals.notify_of_retries((route.name, template), self)

    def stop_listening(self) -> None:
        """Stop listening, since the route has ended."""
        self._refusals.stop_notifying((self._route.name, self.shown.template), self)

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
            shown.why_open = (
                f"the circuit breaker of destination {shown.template!r} on connection {shown.connection} is open: "
                f"{self._settings.failures} failures in a row, the last one {breaker.reason}{self._detail}; "
                f"one message is tried every {self._settings.pause:g} s"
            )
        self._changed()

    @property
    def _detail(self) -> str:
        """Return the server's text about the last failure, as the end of a sentence."""
        shown = self.shown
        for one in self._route.to:
            if (one.connection, one.template) == (shown.connection, shown.template) and one.refused_for is not None:
                reason, detail = one.refused_for
                return f" ({detail})" if reason == self._breaker.reason else ""
        return ""

    # --- events ---

    def follow(self, delivery: Delivery, copy: int) -> BreakerTracker:
        """Record that a message is sent there. Return the owner of its operation."""
        self._breaker.message_goes(trio.current_time())
        self.shown.state = self._breaker.state
        delivery.remaining += 1
        return BreakerTracker(delivery, self.shown.template, copy, self)

    @property
    def _taken(self) -> int:
        if self._several:
            return self._taken_here
        return self._route.accepted_by(self.shown.template)

    def copy_passed(self) -> None:
        self._taken_here += 1
        if self._breaker.message_passed():
            self._closed()

    def accepted(self, operation: OperationWithAck) -> None:
        """Close if a publish was accepted that was sent since the breaker opened: the outbox retries those it holds."""
        if self._breaker.retry_passed(operation.written_at):
            self._closed()

    def _closed(self) -> None:
        """Report that the breaker has closed."""
        now = trio.current_time()
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
        if reason in OF_THE_MESSAGE or reason in OF_THE_WAY:
            self.spare()
            return reason
        if self._failed(reason):
            self._recall()
        return reason if self.closed or not self._kept else OUT_OF_TURN

    def spare(self) -> None:
        """Allow another probe, since the message sent there did not test the destination."""
        if self._breaker.state == HALF_OPEN:
            self._breaker.inconclusive(trio.current_time())
            self._publish()

    def retried(self, operation: OperationWithAck, reason: str) -> None:
        """Record that a publish was refused which the outbox keeps and tries again."""
        opens = self._failed(reason)
        if opens:
            self._recall()
        elif not self.closed and self._is_ours(operation):
            self._refusals.give_up(operation, OUT_OF_TURN, _LEFT_ALONE)

    def _failed(self, reason: str) -> bool:
        """Record a failure. Return True if the breaker opens, for the first time or again."""
        breaker, now, before = self._breaker, trio.current_time(), self._breaker.state
        if breaker.message_failed(now, self._taken, reason):
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
