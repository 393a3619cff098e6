"""Routes from a JetStream stream: many in flight, each acked when all its destinations are settled.

`serve` receives on each link, `run` routes, and what is unsettled outlives the link: its ack is sent on the next one. A
message that the stream delivers again while it is in hand, or after it was settled, is not routed again. One that a
destination refused comes again before what is behind it on its subject. A destination that is down stops this route's
pulls, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import groupby
from math import inf
from operator import attrgetter

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit
from router_trio.link import Link, PullConsumer
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import policy_for
from router_trio.routing.retrying.dead_letters import DeadLetters
from router_trio.routing.route import Route
from router_trio.routing.stream.ack_pending import AckPending, was_refused
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.feeding import Feeding
from router_trio.routing.stream.consumer.lead import Lead
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.routing.stream.consumer.undelivered import ask_again
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.going_back import GoingBack
from router_trio.routing.stream.intake import StreamIntake
from router_trio.routing.stream.limited import LimitedValues
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.routing.stream.pulling.pull_loop import PullLoop
from router_trio.routing.stream.retrying import Retrying
from router_trio.settings import SourceSettings

BATCH = 256
"""Messages between two looks at the destinations' room: less than a queue's usual limit."""

GIVES_WAY_FOR = 1.0
"""Seconds more, before a durable that was deleted is made again by a process that shared it."""

BETWEEN_TWO_LOOKS = 64
"""Messages with expressions between two looks at the clock."""

_received_at = attrgetter("received_at")


class StreamRoute(Route):
    """One route from a stream."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: StreamRoute | None = None,
    ) -> None:
        """`before` had the same consumer and is over: what it knows of the stream goes on, and what it still owes."""
        super().__init__(routing, connection, emit)
        self.state.holder = self
        source = routing.plan.settings.source
        spec = self._spec = consumer_spec(source)
        policy = policy_for(routing.plan.settings, connection.platform.random.uniform)
        acks = before._acks.on(connection) if before else Acks(connection, emit)
        pending = AckPending()
        if before is not None and before._leaves_pending_to(routing):
            pending = before._ack_pending
            if before.routing.plan.ordered_by != routing.plan.ordered_by:
                # What is awaited there is known by another key: it is not waited for.
                pending.order.clear()
            pending.keys = None
            pending.holds_back = was_refused
            before.state.holder = pending.goes_on(before.state, trio.current_time())
            if before.state.in_hand:
                before._successor = self
        retrying = Retrying(self.state, spec.stream, policy, dead_letters, pending, acks, emit, self._look)
        payloads, budget = Payloads(), connection.pull_budget
        budget.join()
        self.state.in_flight_limit = source.max_in_flight
        self.state.retried, self.state.clock = lambda: (pending.cursor.failures.retried,), trio.current_time
        most_bytes = source.max_in_flight_bytes
        pull_loop = PullLoop(
            routing,
            pending,
            source.max_in_flight,
            most_bytes,
            budget,
            self._closing,
            self._never_come,
            self._elsewhere,
            self._make_room,
            payloads,
            acks.asked,
        )
        acks.belong_to(self.state, spec, pull_loop.lose)
        self._acks: Acks = acks
        self._ack_pending: AckPending = pending
        self._retrying: Retrying = retrying
        self._pull_loop: PullLoop = pull_loop
        self._lead = Lead(self._retry, routing.state, emit)
        self._intake: StreamIntake = StreamIntake(
            self, self._retry, pull_loop, spec, source, policy, pending, acks, retrying, payloads, emit
        )
        self._all_settled = trio.lowlevel.ParkingLot()
        self._going_back = GoingBack(routing, pending, acks, self._all_settled)
        self._arrived = trio.Event()
        self.stored: list[StreamDelivery] = []
        self._nothing_comes = False
        self._successor: StreamRoute | None = None
        """The next life of the route, if that goes on with what this one had sent at its end."""
        self._retired = False
        flow = self._flow = routing.flow
        self._limited: LimitedValues | None = None
        if flow is not None:
            flow.when_changed(pull_loop.look_again)
            for breaker in flow.breakers:
                breaker.untold = lambda: len(self.stored)
            if flow.values is not None:
                self._limited = self._going_back.limited = LimitedValues(routing, flow, pending)
            if self.state.limit is not None:
                self.state.limit.waiting = lambda: pending.limited + (pending.may_go if flow.holds else 0)
        self.forwards_on_arrival: bool = routing.plan.handler is None and self._limited is None
        """True if what has to wait for nothing is forwarded in the turn of the read that brought it."""
        for destination in routing.connections:
            destination.when_changed(self._going_back.recall_out_of_turn)
            destination.when_changed(self._pull_loop.look_again)
        letters = () if dead_letters is None else (dead_letters.connection,)
        self._feeding = Feeding(routing.plan, connection, (*routing.connections, *letters), pull_loop.lose)

    # --- receiving, on one link ---

    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """See `Route`."""
        spec = self._intake.next_spec()
        if spec.standby:
            try:
                spec = await self._lead.taken(link, spec, tried, self._intake.learn)
            except SourceError as error:
                if error.reason in (reasons.CONSUMER_DELETED, reasons.NO_RESPONDERS):
                    # The process with the lead knows best where the next durable begins: it goes first.
                    self._retry.wait_longer(GIVES_WAY_FOR)
                raise
            if self._closing.is_set():
                return
            spec = replace(self._intake.next_spec(), pin=spec.pin)  # more is known of the stream by now
        consumer = await link.open_consumer(spec, self._intake.received)
        self._lead.holds(consumer)
        try:
            await self._receive_from(link, consumer, tried)
        except SourceError as error:
            if error.reason == reasons.CONSUMER_DELETED and self._pull_loop.shared:
                # A process that took all there was knows best where the next durable begins: it goes first.
                self._retry.wait_longer(GIVES_WAY_FOR)
            raise

    async def _receive_from(self, link: Link, consumer: PullConsumer, tried: trio.Event) -> None:
        with self._receiving("no consumer: the connection is away"):
            try:
                self._pull_loop.reset()
                self._intake.go_by(link, consumer)
                self._feeding.check(consumer)
                self._acks.when_pulls_pass = self._tell_ready
                self._retry.tried(tried)
                not_before = await ask_again(consumer, self._ack_pending, self._intake.patience)
                await self._pull_loop.keep_asking(
                    link, consumer, self._intake.late, not_before, self._intake.filters, self._acks.nothing_asked
                )
                # What is under way is still routed: a restart has not to wait for it to be delivered again.
                await consumer.drain()
            finally:
                self._acks.when_pulls_pass = None
                consumer.close()
                self._pull_loop.reset()  # what was borrowed from others is theirs again

    def _tell_ready(self) -> None:
        """Say that messages come from now on: the first pull was taken, or none is to be sent yet."""
        self._acks.when_pulls_pass = None
        self._retry.ready(f"{self._spec.stream} ({self._spec.durable})")

    # --- routing ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        while True:
            await self._something_waits()
            await self.routing.turn.pass_on()
            if await self._some_may_go():
                await self._route_some()

    async def _some_may_go(self) -> bool:
        """Return True if something may be routed now. If not, wait until it should be asked again what waits."""
        await self.routing.ready()  # last: what is routed in one go relies on it
        if self._flow is None or self._flow.may_go(1):
            return True
        if self._nothing_comes:
            self._going_back.all_waiting()  # nothing comes any more, and nothing may go
        else:
            await self._flow.wait_to_go(self._ack_pending.may_go)
        return False

    async def _something_waits(self) -> None:
        """Wait until there is something to route: it arrived, or the limit of its value lets it go."""
        waiting, keys, limited = self._ack_pending.waiting, self._ack_pending.keys, self._limited
        while not (waiting or (keys is not None and keys.may_begin)):
            if limited is not None and limited.due_at <= trio.current_time():
                return
            self._arrived = trio.Event()
            with trio.CancelScope(deadline=inf if limited is None else limited.due_at):
                await self._arrived.wait()
            self.routing.turn.begin()

    def something_waits(self) -> None:
        """There is something to route."""
        self._arrived.set()

    def forward_some(self) -> bool:
        """Forward what may go at once, in one go. Return False if the limit or a breaker lets nothing go."""
        flow, pending = self._flow, self._ack_pending
        most = BATCH if self.routing.as_it_comes else BETWEEN_TWO_LOOKS
        if flow is not None:
            most = flow.may_go(min(most, len(pending.waiting)))
            if not most:
                return False
        deliveries = pending.take_first(most)
        if pending.cursor.failures.given_up:
            deliveries = self._retrying.without_given_up(deliveries)
        if flow is not None:
            flow.going(len(deliveries), len(pending.waiting))
        self.routing.forward_each(deliveries)
        return True

    async def _route_some(self) -> None:
        routing, pending, flow = self.routing, self._ack_pending, self._flow
        handler = routing.plan.handler
        if handler is None and self._limited is None:
            for _ in range(1 if routing.as_it_comes else BATCH // BETWEEN_TWO_LOOKS):
                if not (self.forward_some() and pending.waiting and routing.is_ready) or routing.turn.over:
                    break
        else:
            for _ in range(min(pending.count, BATCH)):
                if flow is not None and not flow.may_go(1):
                    break
                delivery = pending.first() if self._limited is None else self._limited.next_to_route()
                if delivery is None:
                    break
                if pending.cursor.failures.given_up and self._retrying.was_given_up(delivery):
                    pending.waiting.popleft()
                    self._retrying.give_up_again(delivery)
                    continue
                if flow is not None:
                    flow.going(1, len(pending.waiting) - 1)
                if handler is None:
                    pending.waiting.popleft()
                    routing.forward_each([delivery])
                    if routing.turn.over:
                        break
                    continue
                # It leaves when it is routed: cancelled in a handler, nothing was sent and it still waits.
                try:
                    await routing.route(handler, delivery)
                except trio.Cancelled:
                    if self._scope.cancel_called:
                        self._going_back.unrouted(pending.waiting.popleft())
                    raise
                pending.waiting.popleft()
                if routing.waits_for is not None or routing.turn.over:
                    break
        if self._nothing_comes:
            self._going_back.all_stuck()

    def finished(self, delivery: StreamDelivery) -> None:
        """All destinations of a message are settled: ack or nak it, or it is given up."""
        pending, failure = self._ack_pending, delivery.failure
        if failure is None and not delivery.recalled:
            self.state.fates[delivery.outcome] += 1
            self._delivered([delivery])
        elif failure is not None and delivery.cursor is pending.cursor:
            self._retrying.message_failed(delivery, failure)
        elif failure is None and self._scope.cancel_called:
            self._going_back.these((delivery,))  # nobody routes it any more
        elif pending.remove(delivery):
            pending.take_back(delivery)
        elif failure is None:
            pending.route_again(delivery)
        else:
            self.state.fates["lost"] += 1  # its stream is gone
        self._look()

    @property
    def in_hand(self) -> int:
        """See `states.InHand`."""
        return self._ack_pending.in_hand

    def first_stored(self) -> None:
        """See `Source.first_stored`. What is stored is acked with all others of which the link tells now."""
        self.routing.connections[0].listener.when_read_done(self._ack_stored)

    def _ack_stored(self) -> None:
        stored, self.stored = self.stored, []
        state, now = self.state, trio.current_time()
        state.delivered[state.destinations[0]] += len(stored)
        state.fates["routed"] += len(stored)
        for received_at, together in groupby(stored, _received_at):
            state.elapsed.record(now - received_at, len(list(together)))
        self._delivered(stored)
        self._look()

    def _delivered(self, deliveries: list[StreamDelivery]) -> None:
        self._acks.ack(self._ack_pending.delivered(deliveries))

    def _look(self) -> None:
        """Something has left the hand: go on with what that makes room for."""
        if self._retired:
            self._look_after_end()
            return
        pending = self._ack_pending
        if pending.waiting:
            self.something_waits()
        if self._nothing_comes:
            self._going_back.all_stuck()
        if not pending.count:
            self._all_settled.unpark_all()
        self._pull_loop.look()

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """A destination did not take a message: what is behind it must not be sent any more."""
        if self._ack_pending.hold_back_behind(delivery, trio.current_time()):
            self._recall_out_of_turn()

    def _recall_out_of_turn(self) -> None:
        self._going_back.recall_out_of_turn()
        if self._successor is not None:
            self._successor._recall_out_of_turn()

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Source.passes_by`."""
        return self._ack_pending.passes_by(delivery)

    def order_key(self, delivery: StreamDelivery) -> bytes:
        """See `Source.order_key`."""
        return delivery.raw[0]

    def _never_come(self, gone: Collection[int]) -> None:
        """These are gone from the stream, or another process has settled them."""
        if self._ack_pending.give_up_waiting(gone):
            self.something_waits()

    def _elsewhere(self, sequences: Collection[int]) -> None:
        """Somebody else seems to have these messages."""
        if self._ack_pending.wait_no_longer(sequences):
            self.something_waits()

    def _make_room(self, soon: bool) -> None:
        """Give back the newest that waits, so that what is due can come: it comes again later than that."""
        self._going_back.newest(self._intake.returns_after(soon), self._intake.late)

    # --- the end ---

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._pull_loop.look_again()
        self._lead.stop_waiting()

    async def _all_routed(self) -> None:
        """See `Route`. Every message in hand is settled, or given back if it can't be."""
        self._nothing_comes = True
        self._going_back.all_stuck()
        if self._flow is not None:
            self.something_waits()
            self._flow.wake()
        while self._ack_pending.count:
            with trio.move_on_after(self._lead.held_for):
                await self._all_settled.park()
        self._lead.give_up()

    def has_consumer(self, connection: Connection, source: SourceSettings) -> bool:
        """Return True if this is where it receives from; the connection may have been made anew."""
        same = (source.stream, source.durable) == (self._spec.stream, self._spec.durable)
        return same and connection.leads_where(self._connection)

    def recall(self) -> None:
        """See `Route`. It goes back to the stream with the rest, and is delivered again."""
        self._going_back.recall_all()

    def retire(self) -> None:
        """See `Route`."""
        super().retire()
        self._retired = True
        self._connection.pull_budget.consumer_gone()
        self._feeding.end()
        for destination in self.routing.connections:
            destination.tell_no_more(self._going_back.recall_out_of_turn)
            destination.tell_no_more(self._pull_loop.look_again)
            if self.in_hand:
                # What a link that dies leaves unconfirmed would be sent when there is another one, and waited for.
                destination.when_changed(self._going_back.recall_all)

    def _look_after_end(self) -> None:
        """Something that was sent before the end has its fate."""
        successor = self._successor
        if not self.state.in_hand:
            self._successor = None
            for destination in self.routing.connections:
                destination.tell_no_more(self._going_back.recall_all)
        if successor is not None:
            successor._look()

    def _leaves_pending_to(self, routing: Routing) -> bool:
        """Return True if the next life of the route goes on with what this one, which has ended, has in hand.

        Not with what a handler still works on, which the stream delivers again, nor by another order.
        """
        return not self.in_hand or (self.state.is_over and self.routing.plan.ordered_by == routing.plan.ordered_by)

    def abandon(self) -> int:
        """See `Route`. What was not routed is given back to the stream: none of it is lost, so it counts as nothing."""
        if not self._scope.cancel_called:
            self._intake.is_over = True
            self._scope.cancel()
            # What is in the handler has its fate when that returns, or was cancelled.
            self._going_back.everything(self._in_handler())
        return 0

    def _in_handler(self) -> Collection[StreamDelivery]:
        """What the handler works on, and is still the first of what waits."""
        waiting = self._ack_pending.waiting
        return (waiting[0],) if self.state.handling and waiting else ()
