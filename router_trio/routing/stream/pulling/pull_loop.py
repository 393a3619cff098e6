"""Request messages from a consumer, on one link after another: how many, when, and when the consumer counts as lost.

Messages that wait for their turn have room of their own, apart from the room of active messages. So a subject that a
destination refuses slows down the others only when as many messages wait as may otherwise be in hand. Then no new
messages are requested, but redeliveries always are: a server delivers these before new messages.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import islice
from typing import Protocol

import trio

from router_trio.connection.advisories import AdvisoriesOfDurable
from router_trio.connection.answers import Kind
from router_trio.connection.latch import Latch
from router_trio.connection.pull_credit import PullBudget, PullCredit, Verdict
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.link import IDLE_HEARTBEAT, SIGN_OF_WORK_EVERY, Link, PullConsumer
from router_trio.protocol import framing, headers
from router_trio.protocol.permissions import ACK
from router_trio.routing.pipeline import Routing
from router_trio.routing.source_status import SourceStatus
from router_trio.routing.stream.consumer.delivery_limit import DeliveryLimit
from router_trio.routing.stream.consumer.filters import Filters
from router_trio.routing.stream.consumer.undelivered import Redeliveries, wait_for_redeliveries
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import StreamInHand
from router_trio.routing.stream.pulling.checks import ConsumerChecks
from router_trio.routing.stream.pulling.elsewhere import Elsewhere
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.states import PAUSED, RUNNING, STARTING

PULL_EXPIRES = 30.0

BORROWED_EXPIRES = 5.0
"""Seconds of a request for more than the consumer's share of its connection: others may wait for the borrowed room."""

HEARTBEATS_A_SECOND = 40
"""Heartbeats per second on one connection: with more than 200 idle routes, each requests fewer."""

LONGEST_HEARTBEAT = 12.0
"""Seconds between two heartbeats with any number of routes."""

SILENCE = 15.0
"""Seconds without message or heartbeat after which a pull request counts as lost: three heartbeats.

With more routes than `HEARTBEATS_A_SECOND` allows, and so with longer intervals, it is three of those.
"""

QUIET = 8.0
"""Seconds without message or heartbeat after which the route is paused: one heartbeat and three seconds.

A server that is cut off from its cluster keeps the link, and answers fences, but its consumers deliver nothing.
"""

_PENDING = (b"Nats-Pending-Messages", b"Nats-Pending-Bytes")

LEAST_PROGRESS_DELAY = 0.01
"""Minimum seconds between signs of progress: a consumer may have an ack wait of a nanosecond."""

NONE_KNOWN = -1
"""In place of the number of messages in hand that the server counts as unacked, so that the count shows nothing."""

MOST_LATE = 256
"""Refused messages that are looked up at a time: late ones first, and of these the oldest of each subject."""

ACKS_TESTED_EVERY = 5.0
"""Seconds between two tests whether refused acks are accepted again: a server logs each refusal."""

PROGRESS_SHARE = 1 / 3
"""The interval, as a share of the ack wait, in which the server is notified that messages are still in progress."""

_NOT_IN_ORDER = "the server did not confirm that it redelivers messages of an earlier process in their order"

LEAD_EVERY = 1.0
"""Seconds between two signs that keep the lead of a standby route with nothing in hand."""


class Awaiting(Protocol):
    """Holds messages back behind others that have to be redelivered first."""

    def never_come(self, gone: Collection[int]) -> None:
        """Stop waiting for messages that will not be redelivered."""

    def elsewhere(self, sequences: Collection[int]) -> None:
        """Stop waiting for messages that another process seems to have."""

    def make_room(self, *, soon: bool) -> None:
        """Return a message: one is due, and those that wait for it use all the room in which it could be received.

        `soon`: it is expected soon, since redeliveries are being received, or it is late.
        """

    def use_room(self) -> None:
        """Have messages redelivered that were returned to make room, if they would be routed next."""


class PullLoop:
    """Requests the messages of one route, until `closing`.

    `payloads` confirms kept deliveries when the consumer was seen to deliver payloads. `asked`
    is called with each request that the server may refuse, `lifted` with limits that were removed from the consumer,
    `paused` when the consumer was paused or, with None, resumed, `deleted` when it was deleted, even if it was created
    again. `advisories` explain trouble of the consumer. `delivery_limit` finds messages at its limit of deliveries.
    """

    def __init__(
        self,
        routing: Routing,
        pending: StreamInHand,
        max_in_flight: int,
        max_in_flight_bytes: int,
        budget: PullBudget,
        closing: Latch,
        awaiting: Awaiting,
        payloads: Payloads,
        asked: Callable[[Kind, Sequence[bytes]], None],
        lifted: Callable[[Sequence[str]], None],
        paused: Callable[[str | None], None],
        deleted: Callable[[], None],
        advisories: AdvisoriesOfDurable,
        delivery_limit: DeliveryLimit,
        status: SourceStatus,
        *,
        leads: bool,
    ) -> None:
        """`status` takes the state of the source. `leads`: its consumer has a lead, which has to be kept."""
        self._advisories = advisories
        self._delivery_limit = delivery_limit
        self._asked = asked
        self._lifted = lifted
        self._deleted = deleted
        self._routing = routing
        self._status = status
        self._leads = leads
        self._flow = routing.flow
        self._pending = pending
        self._max_in_flight = max_in_flight
        self._credit = PullCredit(max_in_flight, max_in_flight_bytes, budget, self.look_again)
        self._budget = budget
        self._heartbeat = IDLE_HEARTBEAT
        """Seconds between the heartbeats of the pending requests, the longest of them."""
        self._most = 2 * max_in_flight
        self._closing = closing
        self._awaiting = awaiting
        self._payloads = payloads
        self._checks = ConsumerChecks(
            pending,
            payloads,
            lost=self.lose,
            changed=self.look_again,
            never_come=awaiting.never_come,
            lifted=lifted,
            paused=paused,
            requested_since=lambda: self._asked_since if self._credit.outstanding and not self._quiet else math.inf,
            budget=budget,
            last_failure=lambda: self._last_failure,
            advisories=advisories,
            delivery_limit=delivery_limit,
        )
        self._made_room_at = -math.inf
        self._redeliveries: Sequence[int] = ()
        self._within = 0.0
        self._comes_again = False  # the next messages are probably redeliveries
        self._look_again = trio.Event()
        self._heard_at = 0.0
        self._asked_since = 0.0
        """Since when a request is always pending, if one is."""
        self._opened_at = 0.0
        self._not_before: float | None = None
        """While messages that were delivered before must be redelivered first: when that should be over."""
        self._quiet = False
        self._waiting_reported = False
        self._lost: SourceError | None = None
        self._asking_about_late = False
        self._nothing_to_report: trio.Event | None = None
        """While `_report_progress` waits for something to report; set by `report_progress`."""
        self._elsewhere: Elsewhere = Elsewhere(PULL_EXPIRES)
        self._lookup_error: str | None = None
        self._filters: Filters | None = None
        self._receives = False
        self._enters: tuple[str, str | None] | None = None
        """The state that the route enters when `receives` is called."""

    # --- notifications by the route ---

    def reopen(self, closing: Latch) -> None:
        """Request messages again, until this `closing`, after the loop has ended for the one before."""
        self._closing = closing

    def resize(self, max_in_flight: int, max_in_flight_bytes: int) -> None:
        """Let that many messages and bytes be in hand or requested from now on."""
        if (max_in_flight, max_in_flight_bytes) != (self._max_in_flight, self._credit.window_bytes):
            self._max_in_flight, self._most = max_in_flight, 2 * max_in_flight
            self._credit.window, self._credit.window_bytes = max_in_flight, max_in_flight_bytes
            self.look_again()

    def reset(self) -> None:
        """Start over with a new link or consumer, or with none: nothing is requested."""
        self._credit.reopened(self._max_in_flight)
        self._payloads.reset()
        self._lost = None
        self._made_room_at = -math.inf  # naks are sent again, so what is due is redelivered before new messages
        self._receives, self._enters = False, None
        self._checks.reset()

    def receives(self) -> None:
        """Let the route count as running from now on: a pull was accepted, or none is needed yet."""
        self._receives = True
        if self._enters is not None:
            self._enter(*self._enters)

    def kept(self, doubtful: Sequence[framing.RawMessage]) -> None:
        """Check the consumer before these deliveries are accepted, which may lack their payloads."""
        self._credit.count_received(len(doubtful), framing.delivered_size(doubtful))
        self._checks.check_now()

    def check_soon(self) -> None:
        """Check the consumer, since a server has reported something about it or its stream."""
        self._checks.check_soon()
        self._look_again.set()

    def share(self) -> None:
        """Record that other processes use the consumer as well."""
        self._checks.share()

    @property
    def shared(self) -> bool:
        """Return True if other processes were seen to use the consumer since it was opened."""
        return self._checks.shared

    def heard(self, now: float) -> None:
        """Record that something was received from the consumer."""
        self._heard_at = now
        if self._quiet:
            self._look_again.set()

    def count_received(self, deliveries: Sequence[StreamDelivery], size: int, *, again: bool) -> None:
        """Count received messages, at least one, and their bytes. `again`: the last of them is a redelivery."""
        self._credit.count_received(len(deliveries), size)
        if self._credit.redelivers:
            self._redelivered(deliveries)
        if self._nothing_to_report is not None:
            self.report_progress()
        self._comes_again = again
        if again:
            self._elsewhere.redelivered((one.sequence for one in deliveries if one.deliveries > 1), self._heard_at)
        else:
            self._elsewhere.none_due_before = self._heard_at
        if self._checks.stopped is not None:
            self._checks.received()

    def look(self) -> None:
        """Request messages if there is room, and update the state of the route. Called when the hand has changed."""
        pending, credit = self._pending, self._credit
        order = pending.order
        if bool(order.lines) is not self._waiting_reported:
            self._look_again.set()
        elif not (order.lines or pending.limits.count or pending.schedule.behind):
            # As nearly always: all messages are active.
            if credit.want(pending.count, pending.bytes):
                self._look_again.set()
        elif credit.want(*self._worked_on()) or (order.awaited and not credit.outstanding):
            self._look_again.set()

    def report_progress(self) -> None:
        """Begin to report progress: messages are in hand, or the server has refused acks."""
        if self._nothing_to_report is not None:
            self._nothing_to_report.set()
            self._nothing_to_report = None

    def look_again(self) -> None:
        """Wake the loop: a destination has connected or disconnected, or the intake was closed."""
        self._look_again.set()

    def read_status(self, raw: framing.RawMessage) -> bool:
        """Read a status message of the consumer. Return True if it reports no problem."""
        block = framing.header_block(raw)
        if not headers.status(block)[0]:
            return False  # not a status of a server
        unfilled, unfilled_bytes = (headers.find_number(block, name) for name in _PENDING)
        code, description = headers.status(block)
        reading = self._credit.read_status(code, description, unfilled, unfilled_bytes)
        if code == 408 and self._checks.stopped is None:
            self._elsewhere.none_due_before = self._heard_at
            self._credit.nothing_due()
        if reading.verdict is Verdict.GO_ON:
            return True
        if reading.verdict is Verdict.REOPEN:
            self.lose(SourceError(reading.detail, reason=reading.reason))
        self._look_again.set()
        return False

    def lose(self, error: SourceError) -> None:
        """Have the consumer reopened, since it can't be used any more."""
        self._lost = error
        if error.reason == reasons.CONSUMER_DELETED:
            self._deleted()
        self._look_again.set()

    # --- on one link ---

    async def keep_asking(
        self,
        link: Link,
        consumer: PullConsumer,
        within: float,
        redeliveries: Redeliveries,
        filters: Filters,
        nothing_asked: Callable[[], None],
        send_owed: Callable[[PullConsumer], Awaitable[None]],
    ) -> None:
        """Request messages until the intake is closed. Raises `SourceError` when the consumer is lost.

        `within`: seconds by which a redelivery may be late before the consumer is asked whether it still has the
        message. Nothing is requested before the time of `redeliveries`, or later if the ack wait is edited, so that
        messages left behind by others are delivered first. `nothing_asked` is called whenever no request is pending.
        `send_owed` sends refused acks again, until it is cancelled.
        """
        pending = self._pending
        self._within = within
        self._opened_at = trio.current_time()
        asked = self._asking_about_late = False
        self._filters = filters
        self._credit.most_requests = consumer.limits.max_waiting
        self._lookup_error = None
        self._redeliveries, not_before = redeliveries.requested, redeliveries.not_before
        if redeliveries.expected:
            self._credit.redeliver(link.max_payload + 2 * link.max_control_line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_progress, link, consumer)
            nursery.start_soon(self._checks.run, consumer)
            nursery.start_soon(send_owed, consumer)
            nursery.start_soon(filters.watch, link, self.look_again)
            self._not_before = None
            if not_before > self._opened_at:
                self._not_before = not_before
                nursery.start_soon(self._wait_for_redeliveries, consumer, not_before)
            while self._lost is None and not self._closing.is_set():
                self._look_again = trio.Event()
                now = trio.current_time()
                away = self._routing.waits_for
                flow = self._flow
                held_up = None if flow is None or flow.quiet or away is not None else flow.held_up()
                if held_up is not None:
                    assert self._flow is not None
                    self._enter(PAUSED if self._flow.pauses else RUNNING, held_up)
                elif away is None:
                    if not asked:
                        pending.order.wait_longer(now, within)
                    late = [] if self._asking_about_late else pending.order.late(now)[:MOST_LATE]
                    if late:
                        self._asking_about_late = True
                        nursery.start_soon(self._ask_about, consumer, late, within)
                    if self._not_before is None:
                        if self._credit.moved and not self._credit.outstanding:
                            await self._restore_order(consumer)
                        self._ask(consumer, now)
                        self._enter_current()
                    else:
                        described = "messages that were delivered before and are not acked must be redelivered first; "
                        described += f"nothing is requested for {max(0.0, self._not_before - now):.0f} s"
                        self._enter(PAUSED, described)
                else:
                    self._enter(PAUSED, f"destination connection {away!r} is not connected")
                asked = away is None and held_up is None
                if not self._credit.outstanding:
                    nothing_asked()
                deadline = self._next_look(now) if asked else self._silent_at
                if self._flow is not None and not self._flow.quiet:
                    deadline = min(deadline, self._flow.ask_at)
                with trio.CancelScope(deadline=deadline):
                    await self._look_again.wait()
                if self._lost is None and trio.current_time() >= self._silent_at:
                    described = f"nothing was heard from the consumer for {self._silence:.3g} s"
                    self._lost = SourceError(described, reason=reasons.CONSUMER_SILENT)
            nursery.cancel_scope.cancel()
        if self._lost is not None:
            raise self._lost

    async def _wait_for_redeliveries(self, consumer: PullConsumer, until: float) -> None:
        """Let nothing be requested before messages that were delivered earlier are due."""

        def postponed(until: float) -> None:
            self._not_before = until
            self._look_again.set()

        await wait_for_redeliveries(consumer, until, postponed, self._lifted)
        self._not_before = None
        self._look_again.set()

    def _redelivered(self, deliveries: Sequence[StreamDelivery]) -> None:
        """Take in messages that were received while the server redelivers those of an earlier link or process."""
        last, until = deliveries[-1], self._redeliveries
        # They go before anything new, and in order if none has lost its place.
        if last.deliveries == 1 or (until and last.sequence >= until[-1] and not self._credit.moved):
            self._credit.nothing_due()
        else:
            self._credit.redelivered(max(framing.delivered_size([one.raw]) for one in deliveries))

    async def _restore_order(self, consumer: PullConsumer) -> None:
        """Have the server put back a message that lost its place because no request had room for it."""
        self._credit.moved = False
        left = [one for one in self._redeliveries if not self._pending.cursor.knows(one)]
        if left and not await consumer.again(left):
            self.lose(SourceError(_NOT_IN_ORDER, reason=reasons.TIMEOUT))

    async def _ask_about(self, consumer: PullConsumer, late: Sequence[int], within: float) -> None:
        """Stop waiting for messages that will not be redelivered, and wait longer for the others.

        All awaited messages are looked up. What happened to the late ones may have happened to the others, and each
        would otherwise be waited for until it is late, one ack wait after the other.
        """
        pending, order = self._pending, self._pending.order
        asked = dict.fromkeys((*late, *order.returned()))
        cursor = pending.cursor
        gone: Collection[int] = ()
        at_the_limit: Collection[int] = ()
        # Not those of an earlier link: the server may have redelivered them to another process, or given them up.
        before = [delivery for delivery in pending.open.values() if delivery.received_at >= self._opened_at]

        def still_in_hand() -> int:
            # Another process may have settled some of these, and have others in hand.
            if pending.others.noticed:
                return NONE_KNOWN
            # The server may have counted before or after an ack that was sent meanwhile.
            return sum(pending.open.get(delivery.sequence) is delivery for delivery in before)

        try:
            gone = await consumer.gone({one: cursor.time_of(one) for one in islice(asked, MOST_LATE)}, still_in_hand)
            self._lookup_error = None
            self._comes_again |= not all(one in gone for one in late)  # their ack wait has ended as well
            at_the_limit = await self._at_the_limit(consumer, gone) if gone else ()
        except SourceError as error:
            self._lookup_error = str(error)
        if cursor is pending.cursor:
            if at_the_limit:
                self._awaiting.elsewhere(at_the_limit)
                self._checks.check_now()
            if gone := [one for one in gone if one not in at_the_limit]:
                self._awaiting.never_come(gone)
            self._wait_for_no_others(within)
        order.wait_longer(trio.current_time(), within)
        self._asking_about_late = False
        self._look_again.set()

    async def _at_the_limit(self, consumer: PullConsumer, gone: Collection[int]) -> Collection[int]:
        """Return which of these the server may have given up at a limit of deliveries. Raises `SourceError`."""
        state = await consumer.check()
        if state.lifted:
            self._lifted(state.lifted)
        return gone if self._delivery_limit.may_have_reached_it(state) else ()

    def _wait_for_no_others(self, within: float) -> None:
        """Stop waiting for messages that are long overdue if deliveries went elsewhere: another process has them.

        They may also have been delivered to a dead link that the server considers alive, but not for that long. Nothing
        is learned about them while nothing is requested.
        """
        now, pending = trio.current_time(), self._pending
        late_at = {sequence: due + within for sequence, due in pending.order.due_times().items()}
        elsewhere = self._elsewhere.among(late_at, now, others=pending.others.seen(now))
        if elsewhere:
            self._awaiting.elsewhere(elsewhere)

    def _ask(self, consumer: PullConsumer, now: float) -> None:
        if self._payloads.unverified:
            return  # what is delivered now would be kept as well, without a bound, or pass redelivered messages
        pending, order, credit = self._pending, self._pending.order, self._credit
        if not self._is_full:
            if order.awaited:
                self._awaiting.use_room()
        elif order.count_due(now) and now >= self._makes_room_at:
            # The server redelivers in the order of due times: other messages may be before the awaited ones.
            self._made_room_at = now
            self._awaiting.make_room(soon=self._comes_again or bool(order.late(now)))
        held, held_bytes = self._worked_on()
        wanted = credit.want(held, held_bytes)
        if order.awaited:
            # At most as many as were in hand before: if new messages are delivered instead, they must be bounded.
            wanted = max(wanted, credit.want_again(min(order.count_due(now), self._most - pending.count)))
        if self._flow is not None and not self._flow.quiet:
            given_up = len(pending.cursor.failures.given_up)
            wanted = self._flow.may_ask(wanted, pending.waiting, pending.schedule.behind, credit.outstanding, given_up)
        size = credit.size(wanted, held_bytes) if wanted else 0
        if size:
            batch = credit.batch(wanted, size)
            heartbeat = min(max(IDLE_HEARTBEAT, self._budget.consumers / HEARTBEATS_A_SECOND), LONGEST_HEARTBEAT)
            if not credit.outstanding:
                self._heard_at = self._asked_since = now
                self._heartbeat = heartbeat
            self._heartbeat = max(self._heartbeat, heartbeat)
            expires = BORROWED_EXPIRES if credit.borrowed else PULL_EXPIRES
            consumer.pull(batch, expires, credit.max_bytes(batch, size), heartbeat)
            credit.asked(batch, size)
            self._asked("pull", ())

    @property
    def _is_full(self) -> bool:
        """Return True if no active message would make room by itself."""
        return self._pending.order.held >= self._most

    @property
    def _makes_room_at(self) -> float:
        """The time from which on a held message may be returned: now, if redeliveries are being received.

        New messages would be received as long as there are any.
        """
        return self._made_room_at + (0.0 if self._comes_again else self._within)

    def _worked_on(self) -> tuple[int, int]:
        """Return the messages and bytes that use room; messages that wait for their turn have room of their own."""
        pending, order = self._pending, self._pending.order
        apart = pending.apart
        if not order.lines and not apart:
            return pending.count, pending.bytes
        # So have messages that wait for the limit of their value, or for another one of their key.
        held = max(pending.count - order.held - apart, order.aside + apart)
        # As if all messages had the same size.
        return held, pending.bytes * held // pending.count if pending.count else 0

    def _enter(self, state: str, reason: str | None = None) -> None:
        """Enter a state of the route, which does not count as running before `receives` is called."""
        own = self._status
        if state != RUNNING or self._receives:
            self._enters = None
            own.enter(state, reason)
            return
        self._enters = state, reason
        if own.state == STARTING:
            own.enter(STARTING, "waiting for the server to confirm that it accepts pull requests")

    def _enter_current(self) -> None:
        order = self._pending.order
        self._waiting_reported = bool(order.lines)
        stopped = self._checks.stopped or (None if self._filters is None else self._filters.outside)
        self._quiet = trio.current_time() >= self._quiet_at
        if stopped is None and self._quiet:
            stopped = f"nothing was heard from its consumer for {self._quiet_for:.3g} s, neither a message nor a "
            stopped += "heartbeat; the server may be cut off from its cluster, or the consumer may have no leader"
            stopped += self._advisories.explain(reasons.CONSUMER_SILENT)
        if stopped is not None:
            self._enter(PAUSED, bounded(stopped))
            return
        if not order.lines:
            self._enter(RUNNING)
            return
        held, held_bytes = self._worked_on()
        full = held >= self._credit.window or held_bytes >= self._credit.window_bytes
        stands = order.aside == held and full
        described = order.describe()
        if stands:
            described += "; nothing new is requested until one of them is settled"
        if self._lookup_error is not None:
            described += (
                "; the redelivery is overdue, and the lookup that would tell whether the stream still has them failed: "
                f"{self._lookup_error}"
            )
        self._enter(PAUSED if stands else RUNNING, bounded(described + self._last_failure))

    @property
    def _last_failure(self) -> str:
        last = self._routing.state.last_failure
        return "" if last is None else f"; the last failure: {last.described}"

    @property
    def _silent_at(self) -> float:
        """The time when the consumer counts as lost if it stays silent; never while nothing is requested."""
        return self._heard_at + self._silence if self._credit.outstanding else math.inf

    @property
    def _quiet_at(self) -> float:
        """The time when the route is paused if the consumer stays silent; never while nothing is requested."""
        return self._heard_at + self._quiet_for if self._credit.outstanding else math.inf

    @property
    def _silence(self) -> float:
        return SILENCE + 3 * (self._heartbeat - IDLE_HEARTBEAT)

    @property
    def _quiet_for(self) -> float:
        return QUIET + self._heartbeat - IDLE_HEARTBEAT

    def _next_look(self, now: float) -> float:
        order = self._pending.order
        silent_at = self._silent_at if self._quiet else self._quiet_at
        if not order.awaited or self._asking_about_late:
            return silent_at
        look = min(silent_at, order.next_look(now))
        # Room is made for what is requested, and nothing is while earlier deliveries are awaited or can't be verified.
        requests = self._not_before is None and not self._payloads.unverified
        return min(look, self._makes_room_at) if requests and self._is_full and order.count_due(now) else look

    async def _report_progress(self, link: Link, consumer: PullConsumer) -> None:
        """Keep active and waiting messages from being redelivered, and keep the lead, if the route has one.

        While there is nothing to report no timer runs: a router may have thousands of idle routes.
        """
        every = max(consumer.ack_wait * PROGRESS_SHARE, LEAST_PROGRESS_DELAY)
        sign = min(every, SIGN_OF_WORK_EVERY)
        reported_at = tested_at = -math.inf
        obstacles = self._status.obstacles
        idle = LEAD_EVERY if self._leads else math.inf
        while True:
            now = trio.current_time()
            in_hand = self._pending.open.values()
            # Nothing is requested then before all redeliveries are in order again.
            self._credit.moved |= consumer.hold_lead() and self._credit.redelivers
            if ACK in obstacles and now >= tested_at + ACKS_TESTED_EVERY:
                tested_at = now
                consumer.say_at_work()
                self._asked("in_progress", ())
            if now < reported_at + every:
                first = next(iter(in_hand), None)
                if first is not None and first.received_at <= now - sign:
                    consumer.say_at_work()
            else:
                reported_at = now
                # Any of them, since messages recalled from a destination are behind later ones.
                if any(delivery.received_at <= now - every for delivery in in_hand):
                    # All of them: a message whose ack wait ends after that of a later one would lose its place.
                    subjects = [delivery.ack_subject for delivery in in_hand]
                    for subject in subjects:
                        link.in_progress(subject)
                    self._asked("in_progress", subjects)
            if in_hand or ACK in obstacles:
                await trio.sleep(sign)
            else:
                self._nothing_to_report = waiting = trio.Event()
                with trio.move_on_after(idle):
                    await waiting.wait()
