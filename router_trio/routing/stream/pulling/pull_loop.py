"""Asking a consumer for messages, on one link after the other: how many, when, and when it counts as lost.

What waits for its turn uses up room that is apart from the room of what is worked on, so that a subject that a
destination refuses slows down the others only when as much waits as may be in hand without it. Then nothing new is
asked for, but always what has to come again: a server gives that before anything new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import trio

from router_trio.connection.answers import Kind
from router_trio.connection.pull_credit import PullBudget, PullCredit, Verdict
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.link import SIGN_OF_WORK_EVERY, Link, PullConsumer
from router_trio.protocol import framing, headers
from router_trio.protocol.permissions import ACK
from router_trio.routing.pipeline import Routing
from router_trio.routing.stream.consumer.filters import Filters
from router_trio.routing.stream.in_hand import StreamInHand
from router_trio.routing.stream.pulling.checks import ConsumerChecks
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.states import PAUSED, RUNNING, STARTING

PULL_EXPIRES = 30.0

BORROWED_EXPIRES = 5.0
"""Seconds of a request for more than a consumer's share of its connection: others may wait for what it borrows."""

SILENCE = 15.0
"""Seconds without message or heartbeat after which a pull request is taken for lost: three heartbeats."""

QUIET = 8.0
"""Seconds without message or heartbeat after which the route receives nothing: a heartbeat and three more.

A server that is cut off from its cluster keeps the link, and answers fences, but no consumer is there any more.
"""

_PENDING = (b"Nats-Pending-Messages", b"Nats-Pending-Bytes")

LEAST_PROGRESS_DELAY = 0.01
"""Seconds; a consumer may have an ack wait of a nanosecond."""

MOST_LATE = 256
"""Refused messages that a consumer is asked about at a time: the oldest of each subject first."""

ACKS_TESTED_EVERY = 5.0
"""Seconds between two tests whether acks that were refused are taken again: a server logs each that it refuses."""

PROGRESS_SHARE = 1 / 3
"""Of the ack wait: how often the server is told that a message is still being worked on."""


class PullLoop:
    """How one route asks. `closing` ends it; `never_come` is told which messages never come again, though they were to.

    `elsewhere` is told which of those somebody else seems to have.

    `make_room` is called when something is due, and what waits for it has all the room in which it could come. It is
    told whether that comes soon: others that were delivered before come now, or it is late. `payloads` is told how much
    of what it has kept came before the consumer was seen to deliver payloads. `asked` is told of all that is sent here,
    which the server may refuse.
    """

    def __init__(
        self,
        routing: Routing,
        pending: StreamInHand,
        max_in_flight: int,
        max_in_flight_bytes: int,
        budget: PullBudget,
        closing: trio.Event,
        never_come: Callable[[Collection[int]], None],
        elsewhere: Callable[[Collection[int]], None],
        make_room: Callable[[bool], None],
        payloads: Payloads,
        asked: Callable[[Kind, Sequence[bytes]], None],
        lifted: Callable[[Sequence[str]], None],
    ) -> None:
        self._asked = asked
        self._routing = routing
        self._flow = routing.flow
        self._pending = pending
        self._max_in_flight = max_in_flight
        self._credit = PullCredit(max_in_flight, max_in_flight_bytes, budget, self.look_again)
        self._most = 2 * max_in_flight
        self._closing = closing
        self._never_come = never_come
        self._elsewhere = elsewhere
        self._make_room = make_room
        self._payloads = payloads
        self._checks = ConsumerChecks(
            pending,
            payloads,
            lost=self.lose,
            changed=self.look_again,
            lifted=lifted,
            budget=budget,
            last_failure=lambda: self._last_failure,
        )
        self._made_room_at = -math.inf
        self._within = 0.0
        self._comes_again = False  # what is asked for now has come before, as far as is known
        self._look_again = trio.Event()
        self._heard_at = 0.0
        self._opened_at = 0.0
        self._quiet = False
        self._waiting_reported = False
        self._lost: SourceError | None = None
        self._asking_about_late = False
        self._late_since: dict[int, float] = {}
        self._lookup_error: str | None = None
        self._filters: Filters | None = None
        self._receives = False
        self._enters: tuple[str, str | None] | None = None
        """The state that the route enters as soon as it `receives`."""

    # --- what the route tells ---

    def reset(self) -> None:
        """The link is new, or the consumer, or there is none: nothing is asked for."""
        self._credit.reopened(self._max_in_flight)
        self._payloads.reset()
        self._lost = None
        self._receives, self._enters = False, None
        self._checks.reset()

    def receives(self) -> None:
        """A pull was taken, or none is to be sent yet: from now on the route may count as running."""
        self._receives = True
        if self._enters is not None:
            self._enter(*self._enters)

    def kept(self, doubtful: Sequence[framing.RawMessage]) -> None:
        """These came, and may not be what was asked for: look at the consumer before they are taken."""
        self._credit.count_received(len(doubtful), framing.delivered_size(doubtful))
        self._checks.check_now()

    def share(self) -> None:
        """Other processes take from the consumer as well."""
        self._checks.share()

    @property
    def shared(self) -> bool:
        """Return True if other processes were seen to take from the consumer as well, since it was opened."""
        return self._checks.shared

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard_at = now
        if self._quiet:
            self._look_again.set()

    def count_received(self, count: int, size: int, *, again: bool) -> None:
        """That many of the messages that were asked for came, of so many bytes. `again`: the last had come before."""
        self._credit.count_received(count, size)
        self._comes_again = again
        if self._checks.stopped is not None:
            self._checks.received()

    def look(self) -> None:
        """Something came or went: ask, if there is room, and tell if something waits or nothing does any more."""
        pending, credit = self._pending, self._credit
        order = pending.order
        if bool(order.lines) is not self._waiting_reported:
            self._look_again.set()
        elif not (order.lines or pending.limits.count or pending.schedule.behind):
            # As nearly always: all of it is worked on.
            if credit.want(pending.count, pending.bytes):
                self._look_again.set()
        elif credit.want(*self._worked_on()) or (order.awaited and not credit.outstanding):
            self._look_again.set()

    def look_again(self) -> None:
        """A destination came or went, or the intake was closed."""
        self._look_again.set()

    def read_status(self, raw: framing.RawMessage) -> bool:
        """Read a status of the consumer. Returns True if it says that all is well."""
        block = framing.header_block(raw)
        if not headers.status(block)[0]:
            return False  # it is nothing that a server says
        unfilled, unfilled_bytes = (headers.find_number(block, name) for name in _PENDING)
        reading = self._credit.read_status(*headers.status(block), unfilled, unfilled_bytes)
        if reading.verdict is Verdict.GO_ON:
            return True
        if reading.verdict is Verdict.REOPEN:
            self.lose(SourceError(reading.detail, reason=reading.reason))
        self._look_again.set()
        return False

    def lose(self, error: SourceError) -> None:
        """The consumer is of no use any more: it is to be opened again."""
        self._lost = error
        self._look_again.set()

    # --- on one link ---

    async def keep_asking(
        self,
        link: Link,
        consumer: PullConsumer,
        within: float,
        not_before: float,
        filters: Filters,
        nothing_asked: Callable[[], None],
    ) -> None:
        """Ask until the intake is closed. Raises `SourceError` when the consumer is lost.

        `within`: seconds that a message may be late that is to come again; then the consumer is asked whether it
        does. `not_before`: nothing is asked for until then, so that what others left behind comes first.
        `nothing_asked` is called whenever nothing is.
        """
        pending = self._pending
        self._within = within
        self._opened_at = trio.current_time()
        asked = self._asking_about_late = False
        self._filters = filters
        self._credit.most_requests = consumer.limits.max_waiting
        self._lookup_error = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_progress, link, consumer)
            nursery.start_soon(self._checks.run, consumer)
            nursery.start_soon(filters.watch, link, self.look_again)
            while self._lost is None and not self._closing.is_set():
                self._look_again = trio.Event()
                now = trio.current_time()
                away = self._routing.waits_for
                held_up = self._flow.held_up() if self._flow is not None and away is None else None
                if held_up is not None:
                    self._enter_held_up(held_up)
                elif away is None:
                    if not asked:
                        pending.order.wait_longer(now, within)
                    late = [] if self._asking_about_late else pending.order.late(now)[:MOST_LATE]
                    if late:
                        self._asking_about_late = True
                        nursery.start_soon(self._ask_about, consumer, late, within)
                    if now >= not_before:
                        self._ask(consumer, now)
                        self._enter_current()
                    else:
                        described = "messages that were delivered before and are not acked must be redelivered first; "
                        described += f"nothing is requested for {not_before - now:.0f} s"
                        self._enter(PAUSED, described)
                else:
                    self._enter(PAUSED, f"destination connection {away!r} is not connected")
                asked = away is None and held_up is None
                if not self._credit.outstanding:
                    nothing_asked()
                deadline = self._next_look(now) if asked else self._silent_at
                if self._flow is not None:
                    deadline = min(deadline, self._flow.ask_at)
                with trio.CancelScope(deadline=min(deadline, not_before) if now < not_before else deadline):
                    await self._look_again.wait()
                if self._lost is None and trio.current_time() >= self._silent_at:
                    described = f"nothing was heard from the consumer for {SILENCE:g} s"
                    self._lost = SourceError(described, reason=reasons.CONSUMER_SILENT)
            nursery.cancel_scope.cancel()
        if self._lost is not None:
            raise self._lost

    async def _ask_about(self, consumer: PullConsumer, late: Sequence[int], within: float) -> None:
        """Wait no longer for what never comes again, and longer for the rest."""
        pending, order = self._pending, self._pending.order
        cursor = pending.cursor
        gone: Collection[int] = ()
        # Not those of an earlier link: the server may have redelivered them to another process, or given them up.
        before = [delivery for delivery in pending.open.values() if delivery.received_at >= self._opened_at]

        def still_in_hand() -> int:
            # The server may have counted before or after an ack that was sent meanwhile.
            return sum(pending.open.get(delivery.sequence) is delivery for delivery in before)

        try:
            gone = await consumer.gone({one: cursor.time_of(one) for one in late}, still_in_hand)
            self._lookup_error = None
            self._comes_again |= len(gone) < len(late)  # their ack wait is over as well
        except SourceError as error:
            self._lookup_error = str(error)
        if cursor is pending.cursor:
            if gone:
                self._never_come(gone)
            self._wait_for_no_others([one for one in late if one not in gone])
        order.wait_longer(trio.current_time(), within)
        self._asking_about_late = False
        self._look_again.set()

    def _wait_for_no_others(self, late: Sequence[int]) -> None:
        """Stop waiting for what is late for long, if deliveries went elsewhere: it is with those who took them.

        A dead link that the server takes for alive may have got it as well, but not for so long.
        """
        now, before = trio.current_time(), self._late_since
        elsewhere = [one for one in late if before.get(one, now) + PULL_EXPIRES <= now]
        seen = self._pending.others.seen(now)
        self._late_since = {one: before.get(one, now) for one in late if seen or one in before}
        if elsewhere:
            self._elsewhere(elsewhere)

    def _ask(self, consumer: PullConsumer, now: float) -> None:
        pending, order, credit = self._pending, self._pending.order, self._credit
        if self._is_full and order.count_due(now) and now >= self._makes_room_at:
            # The server gives what comes again in the order in which it was due: others may be before what is awaited.
            self._made_room_at = now
            self._make_room(self._comes_again or bool(order.late(now)))
        held, held_bytes = self._worked_on()
        wanted = credit.want(held, held_bytes)
        if order.awaited:
            # At most as many as were in hand before: should something new come instead, that must have an end.
            wanted = max(wanted, credit.want_again(min(order.count_due(now), self._most - pending.count)))
        if self._flow is not None:
            wanted = self._flow.may_ask(wanted, pending.waiting, credit.outstanding)
        size = credit.size(wanted, held_bytes) if wanted else 0
        if size:
            if credit.borrowed or size > credit.window_bytes:
                wanted = 1  # it is for one large message: what is left is given back as soon as that has come
            if not credit.outstanding:
                self._heard_at = now
            consumer.pull(wanted, BORROWED_EXPIRES if credit.borrowed else PULL_EXPIRES, size)
            credit.asked(wanted, size)
            self._asked("pull", ())

    @property
    def _is_full(self) -> bool:
        """Return True if nothing is worked on that would make room by itself."""
        return self._pending.order.held >= self._most

    @property
    def _makes_room_at(self) -> float:
        """From when on one may be given back: at once if what comes has come before, so that all of that may come.

        What is new would come for as long as there is any.
        """
        return self._made_room_at + (0.0 if self._comes_again else self._within)

    def _worked_on(self) -> tuple[int, int]:
        """Return the messages and bytes that use up room: those that wait for their turn have as much of their own."""
        pending, order = self._pending, self._pending.order
        apart = pending.apart
        if not order.lines and not apart:
            return pending.count, pending.bytes
        # So has what waits for the limit of its value, or for another one of its key.
        held = max(pending.count - order.held - apart, order.aside + apart)
        # As if all were of the same size.
        return held, pending.bytes * held // pending.count if pending.count else 0

    def _enter_held_up(self, why: str) -> None:
        """A breaker is open: nothing is asked for."""
        state = self._routing.state
        self._enter(PAUSED if state.held_up(trio.current_time()) else RUNNING, why)

    def _enter(self, state: str, reason: str | None = None) -> None:
        """Enter a state of the route, which does not count as running before it `receives`."""
        own = self._routing.state
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
            stopped = f"nothing was heard from its consumer for {QUIET:g} s, neither a message nor a heartbeat; "
            stopped += "the server may be cut off from its cluster, or the consumer may have no leader"
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
        """When the consumer counts as lost if nothing is heard of it before: never, while it is asked for nothing."""
        return self._heard_at + SILENCE if self._credit.outstanding else math.inf

    @property
    def _quiet_at(self) -> float:
        """When the route counts as receiving nothing, if nothing is heard of the consumer before."""
        return self._heard_at + QUIET if self._credit.outstanding else math.inf

    def _next_look(self, now: float) -> float:
        order = self._pending.order
        silent_at = self._silent_at if self._quiet else self._quiet_at
        if not order.awaited or self._asking_about_late:
            return silent_at
        look = min(silent_at, order.next_look(now))
        return min(look, self._makes_room_at) if self._is_full and order.count_due(now) else look

    async def _report_progress(self, link: Link, consumer: PullConsumer) -> None:
        """Keep what is being worked on, or waits for its turn, from being delivered again; and the lead, if any."""
        every = max(consumer.ack_wait * PROGRESS_SHARE, LEAST_PROGRESS_DELAY)
        sign = min(every, SIGN_OF_WORK_EVERY)
        reported_at = tested_at = -math.inf
        obstacles = self._routing.state.obstacles
        while True:
            now = trio.current_time()
            in_hand = self._pending.open.values()
            consumer.hold_lead()
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
                # Any of them: what was taken back from a destination is behind what came later.
                if any(delivery.received_at <= now - every for delivery in in_hand):
                    # All of them: with a later ack wait than what came after it, a message would lose its place.
                    subjects = [delivery.ack_subject for delivery in in_hand]
                    for subject in subjects:
                        link.in_progress(subject)
                    self._asked("in_progress", subjects)
            await trio.sleep(sign)
