"""Check a consumer every few seconds: whether its configuration still fits the route, and whether it delivers.

The server reports a deletion to clients with pending pull requests, but not that the consumer was edited or paused, or
that it delivers nothing new because too many messages are unacked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf

import trio

from router_trio.connection.advisories import AdvisoriesOfDurable
from router_trio.connection.pull_credit import PullBudget
from router_trio.errors import SourceError, reasons
from router_trio.link import STATE_FOR, ConsumerState, PullConsumer
from router_trio.routing.stream.consumer.delivery_limit import DeliveryLimit
from router_trio.routing.stream.consumer.standstill import Look, Unmoved, standstill, unexplained
from router_trio.routing.stream.in_hand import StreamInHand
from router_trio.routing.stream.pulling.payloads import Payloads

CHECK_EVERY = STATE_FOR
"""Seconds between two checks of the consumer."""

CHECKS_A_SECOND = 10
"""Checks per second on one connection: with more than fifty routes, each is checked less often.

A check takes almost a millisecond of the processor. What only a check shows is noticed that much later: that a consumer
was paused or edited, or delivers nothing new. A deletion and a silent consumer are noticed without it.
"""

SHARED_CHECK_EVERY = 1.0
"""Seconds between two checks of a durable that other processes use as well.

If it is deleted, the next one starts at the ack floor that was seen last: messages that others have settled since then
would be routed again.
"""

SHARED_CHECKS_A_SECOND = 50
"""Such checks per second on one connection: with more routes, each is checked less often."""

DENIED_CHECK_EVERY = 60.0
"""Longest interval in seconds between two checks while this user may not make them: a server logs each one.

The interval doubles from `CHECK_EVERY` on. After a short refusal, the next check is soon, not up to a minute later.
Until then, a route that gets nothing new is not ready if its last message showed that more wait: see `Unmoved`.
"""

_NOT_AGAIN = "the server did not confirm that it will redeliver messages which it had delivered without their payload"

_UNVERIFIED = (
    "a message has no payload and the header Nats-Msg-Size, as if the consumer delivered only headers (headers_only); "
    "neither it nor a message behind it is routed until the consumer can be checked: {}"
)


class ConsumerChecks:
    """Checks the consumer of one route. `lost` is called after an edit that makes the consumer unusable.

    `changed` is called when `stopped` has changed, and when kept deliveries were requested again; `paused` when the
    consumer was paused on the server, with a description, and when it was resumed, with None. `never_come` is called
    with awaited messages that the consumer does not redeliver, since it has finished with them.
    """

    def __init__(
        self,
        pending: StreamInHand,
        payloads: Payloads,
        *,
        lost: Callable[[SourceError], None],
        changed: Callable[[], None],
        never_come: Callable[[Collection[int]], None],
        lifted: Callable[[Sequence[str]], None],
        paused: Callable[[str | None], None],
        requested_since: Callable[[], float],
        budget: PullBudget,
        last_failure: Callable[[], str] = str,
        advisories: AdvisoriesOfDurable,
        delivery_limit: DeliveryLimit,
    ) -> None:
        """`last_failure` returns the end of a text about failed messages: the last failure.

        `requested_since` returns since when messages are requested, so that the consumer delivers what is stored;
        infinity if none are.
        """
        self._requested_since = requested_since
        self._last_failure = last_failure
        self._advisories = advisories
        self._delivery_limit = delivery_limit
        self._is_denied = False
        self._advised_at = -inf
        self.stopped: str | None = None
        """Why nothing new is received: the consumer delivers nothing, or nothing that can be accepted; else None."""
        self.shared: bool = False
        """True if other processes were seen to use the consumer since it was opened."""
        self._budget = budget
        self._pause = trio.CancelScope()
        self._pending = pending
        self._payloads = payloads
        self._lost = lost
        self._changed = changed
        self._never_come = never_come
        self._lifted = lifted
        self._report_pause = paused
        self._paused: str | None = None
        """The pause that was reported, which outlasts links."""
        self._now = trio.Event()
        self._before: Look | None = None
        self._unmoved = Unmoved()
        self._error: str | None = None
        """Why the last check failed, if it did."""
        self._inferred = False
        """True if `stopped` was inferred from deliveries, since a check failed."""

    def reset(self) -> None:
        """Forget the last check, since there is no consumer, or another one."""
        self.stopped = self._before = self._error = None
        self._unmoved, self._inferred = Unmoved(), False

    def check_now(self) -> None:
        """Check the consumer now, before it is due."""
        self._now.set()

    def check_soon(self) -> None:
        """Check the consumer now, if that was not requested within the last second. Any client may cause it."""
        now = trio.current_time()
        if now >= self._advised_at + SHARED_CHECK_EVERY and not self._is_denied:
            self._advised_at = now
            self._now.set()

    def received(self) -> None:
        """Record a message received while the consumer was `stopped`: check now if it is a new message."""
        if self._inferred:
            pending = self._pending
            if pending.cursor.highest != self._unmoved.highest or not pending.lag.undelivered_since(-inf):
                self._enter(None)
            return
        before = self._before
        if before is not None and self._pending.cursor.highest > before.state.delivered:
            self._now.set()

    def share(self) -> None:
        """Check more often from now on, since other processes use the consumer as well."""
        if not self.shared:
            self.shared = True
            self._pause.deadline = min(self._pause.deadline, trio.current_time() + self._shared_pause)

    @property
    def _pause_of_one(self) -> float:
        return max(CHECK_EVERY, self._budget.consumers / CHECKS_A_SECOND)

    @property
    def _shared_pause(self) -> float:
        return min(max(SHARED_CHECK_EVERY, self._budget.consumers / SHARED_CHECKS_A_SECOND), self._pause_of_one)

    async def run(self, consumer: PullConsumer) -> None:
        """Check the consumer repeatedly. Return when it is lost."""
        self.shared = consumer.progress.in_use is True
        denied_pause = CHECK_EVERY
        while True:
            pause = self._shared_pause if self.shared else self._pause_of_one
            self._now, denied = trio.Event(), False
            doubtful = len(self._payloads.doubtful)
            cursor, lag, began_at = self._pending.cursor, self._pending.lag, trio.current_time()
            self._look_for_new(began_at)
            deliveries, asked = cursor.deliveries, lag.asks(cursor, began_at)
            held = list(self._pending.open.values())
            try:
                state = await consumer.check(oldest=lag.wants_oldest(cursor))
            except SourceError as error:
                if error.reason == reasons.CONSUMER_NOT_FOUND:
                    lag.forget()
                    if doubtful:
                        # If no request is pending, the server does not report the deletion.
                        error = SourceError(str(error), reason=reasons.CONSUMER_DELETED)
                if error.reason not in reasons.LOOKUP_FAILED and error.reason != reasons.CONSUMER_NOT_FOUND:
                    self._lost(error)
                    return
                self._error = str(error)
                if doubtful:
                    self._enter(_UNVERIFIED.format(error))
                self._infer()
                self._is_denied = error.reason == reasons.PERMISSION_DENIED
                denied = self._is_denied and not doubtful
                if denied:
                    pause = max(pause, denied_pause)
                    denied_pause = min(2 * denied_pause, DENIED_CHECK_EVERY)
            else:
                denied_pause, self._error, self._is_denied = CHECK_EVERY, None, False
                if state.lifted:
                    self._lifted(state.lifted)
                before = self._before
                if cursor is self._pending.cursor:
                    # Compared with the number before the check: a delivery since then would have shown a reset.
                    if deliveries <= cursor.deliveries and deliveries and 2 * state.deliveries <= deliveries:
                        self._pending.consumer_was_reset(state.passed + 1)
                    cursor.learn(state.passed, state.delivered, state.deliveries)
                    if self.shared or not self._delivery_limit.may_become_letters(state):
                        self._await_none_up_to(state.passed)
                        cursor.forget_up_to(state.passed, self._pending.open)
                    if state.cut_off is None:  # else the server may report an old state
                        lag.checked(asked, state, cursor, trio.current_time())
                    # Messages delivered before the last check, and not received since, went to another process.
                    self.shared |= before is not None and cursor.lacks(before.state.deliveries)
                    if self.shared or cursor.lacks(state.deliveries):
                        pause = self._shared_pause
                self._compare(state)
                in_hand = self._pending.open
                held = [one for one in held if in_hand.get(one.sequence) is one]
                await self._delivery_limit.look(consumer, state, held, in_hand, alone=not self.shared)
                again = self._payloads.confirm(doubtful)
                if again:
                    if not await consumer.again(again):
                        # New messages would be delivered before them. A reopened consumer requests none for a while.
                        self._lost(SourceError(_NOT_AGAIN, reason=reasons.TIMEOUT))
                        return
                    self._payloads.requested_again()
                    self._changed()
            self._pause = trio.CancelScope(deadline=max(began_at + pause, trio.current_time() + pause / 2))
            with self._pause:
                await self._until_needed(may_ask=not denied)

    def _await_none_up_to(self, floor: int) -> None:
        """Stop waiting for messages up to the ack floor: other processes have settled them.

        Otherwise each would be waited for until its redelivery is late.
        """
        settled = self._pending.order.returned(floor)
        if settled:
            self._never_come(settled)
            self._changed()

    async def _until_needed(self, *, may_ask: bool) -> None:
        """Wait until a check is requested, or is the only way to learn something.

        That is how far the route is behind, or whether another process has settled an awaited message that is due.
        """
        while not self._now.is_set():
            with trio.move_on_after(CHECK_EVERY):
                await self._now.wait()
            self._infer()
            now, pending = trio.current_time(), self._pending
            requested = self._requested_since() < inf and self.stopped is None
            if may_ask and (pending.order.count_due(now) or not pending.lag.stays_known(requested, now)):
                return

    def _look_for_new(self, now: float) -> int:
        """Update since when nothing new is delivered. Return the number of messages that the consumer had left."""
        pending, since = self._pending, self._requested_since()
        undelivered = pending.lag.undelivered_since(since)
        active = len(pending.open) - pending.order.held_for_redeliveries
        self._unmoved.look(pending.cursor, undelivered, active, since, now)
        return undelivered

    def _infer(self) -> None:
        """Report that nothing new is delivered if deliveries show it, and the check that would show why has failed.

        It is not reported for a durable that other processes use as well: they may have received the messages.
        """
        if self._inferred:
            return  # that is reported until something new is delivered or a check succeeds
        now = trio.current_time()
        undelivered = self._look_for_new(now)
        if self._error is None or self.stopped is not None or self.shared or self._payloads.unverified:
            return
        if now >= self._unmoved.since + CHECK_EVERY:
            self._enter(unexplained(undelivered, self._error))
            self._inferred = True

    def _compare(self, state: ConsumerState) -> None:
        pending = self._pending
        now = Look(state, len(pending.open), pending.order.held_for_redeliveries)
        if state.paused != self._paused:
            self._paused = state.paused
            self._report_pause(state.paused)
        stopped = state.paused
        if state.cut_off is not None:
            stopped = stopped or state.cut_off + self._advisories.explain(reasons.JETSTREAM_UNAVAILABLE)
        else:
            self._advisories.is_well()
        if stopped is None:
            failure = self._last_failure()
            stopped = standstill(self._before, now, pending.cursor, alone=not self.shared, last_failure=failure)
        self._before = now
        self._enter(stopped)

    def _enter(self, stopped: str | None) -> None:
        self._inferred = False
        if stopped != self.stopped:
            self.stopped = stopped
            self._changed()
