"""Routes from a JetStream stream: many messages in hand, each acked when all its destinations are settled.

`serve` receives on each link, `run` routes, and what is unsettled outlives the link: its ack is sent on the next one. A
message that is redelivered while it is in hand, or after it was settled, is not routed again. One that a destination
refused is redelivered before the ones behind it on its subject. A destination that is down stops this route's pulls,
and nothing else.

A route with a `key` or a `concurrency` has one message of each key active at a time, until its destinations have
confirmed it. A message that failed, for whatever reason, holds back its key until it was redelivered or is given up.
Without a handler, under the strategy sticky, a key goes to one destination: then messages of a key follow each other as
those of a subject do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit
from router_trio.link import Link, PullConsumer
from router_trio.outbox.operation import Operation
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.handler_tasks import HandlerTasks
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import policy_for
from router_trio.routing.route import Route
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Order
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.feeding import Feeding
from router_trio.routing.stream.consumer.lead import Lead
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.routing.stream.consumer.undelivered import OVERDUE, ask_again
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import InHand, message_of, place_of, was_refused
from router_trio.routing.stream.intake import StreamIntake
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.routing.stream.pulling.pull_loop import PullLoop
from router_trio.routing.stream.retrying import Retrying
from router_trio.routing.turns import BETWEEN_TWO_LOOKS
from router_trio.settings import SourceSettings

BATCH = 256
"""Messages between two looks at the destinations' room: less than a queue's usual limit."""

GIVES_WAY_FOR = 1.0
"""Seconds more, before a durable that was deleted is made again by a process that shared it."""

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
        plan, source = routing.plan, routing.plan.settings.source
        spec = self._spec = consumer_spec(source)
        policy = policy_for(plan.settings, connection.platform.random.uniform)
        acks = before._acks.on(connection) if before else Acks(connection, emit)
        pending, same_order = InHand(), True
        if before is not None and before._leaves_pending_to(routing):
            pending = before._pending
            same_order = before.routing.plan.ordered_by == plan.ordered_by
        self._pending: InHand = pending
        self._keyed = plan.by_key
        follows_at_once = plan.handler is None and plan.settings.strategy == "sticky"
        self._follows_at_once = plan.by_key and follows_at_once
        pending.go_by(
            self._order(),
            routing.value_limits(place_of),
            self._holds_back if plan.by_key else was_refused,
            same_order=same_order,
        )
        if before is not None and pending is before._pending:
            before.state.holder = pending.goes_on(before.state, trio.current_time())
        pending.route = self
        self._tasks = HandlerTasks(plan.settings.concurrency, self._lead_on, self._begin_at_once)
        retrying = Retrying(self.state, spec.stream, policy, dead_letters, pending, acks, emit, self.look)
        payloads, budget = Payloads(), connection.pull_budget
        budget.join()
        self.state.in_flight_limit = source.max_in_flight
        self.state.retried, self.state.clock = lambda: (pending.cursor.failures.retried,), trio.current_time
        pull_loop = PullLoop(
            routing,
            pending,
            source.max_in_flight,
            source.max_in_flight_bytes,
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
        self._retrying: Retrying = retrying
        self._pull_loop: PullLoop = pull_loop
        self._lead = Lead(self._retry, routing.state, emit)
        self._intake: StreamIntake = StreamIntake(
            self, self._retry, pull_loop, spec, source, policy, pending, acks, retrying, payloads, emit
        )
        self._all_settled = trio.lowlevel.ParkingLot()
        self._arrived = trio.Event()
        self.stored: list[StreamDelivery] = []
        self._nothing_comes = False
        self._retired = False
        flow = self._flow = routing.flow
        if flow is not None:
            flow.when_changed(pull_loop.look_again)
            flow.follow(routing.needed, lambda: pending.active)
            for breaker in flow.breakers:
                breaker.untold = lambda: len(self.stored)
            if self.state.limit is not None:
                self.state.limit.waiting = lambda: pending.limits.count + (pending.waiting if flow.holds else 0)
        self._limited_by_value: bool = flow is not None and flow.values is not None
        self.forwards_on_arrival: bool = plan.handler is None and not self._limited_by_value and not plan.by_key
        """True if what has to wait for nothing is forwarded in the turn of the read that brought it."""
        for destination in routing.connections:
            destination.when_changed(self.recall_out_of_turn)
            destination.when_changed(self._pull_loop.look_again)
        letters = () if dead_letters is None else (dead_letters.connection,)
        self._feeding = Feeding(routing.plan, connection, (*routing.connections, *letters), pull_loop.lose)

    def _order(self) -> Order[StreamDelivery]:
        if not self._keyed:
            return ArrivalOrder()
        return KeyOrder(self.order_key, place_of)

    # --- what is in order with what ---

    def order_key(self, delivery: StreamDelivery) -> bytes:
        """See `Source.order_key`."""
        if not self._keyed:
            return delivery.raw[0]
        key = delivery.key
        if key is None:
            key = delivery.key = self.routing.order_key(delivery, delivery.sequence)
        return key

    def _holds_back(self, delivery: StreamDelivery) -> bool:
        """See `InHand.holds_back`. Nothing waits for a message without a key: it takes up no room for what waits."""
        return delivery.refused or not (self._follows_at_once or self._lacks_key(delivery))

    def _lacks_key(self, delivery: StreamDelivery) -> bool:
        return self._keyed and self.routing.lacks_key(self.order_key(delivery))

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Source.passes_by`. Nor is anything sent that a handler returns while a breaker lets nothing go."""
        flow = self._flow
        return self._pending.passes_by(delivery) or (flow is not None and flow.probing and not flow.may_go(1))

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
                not_before = await ask_again(consumer, self._pending, self._intake.patience)
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
        self._pull_loop.receives()
        self._retry.ready(f"{self._spec.stream} ({self._spec.durable})")

    # --- routing ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        """See `HandlerTasks`."""
        while True:
            await self._something_waits()
            if await self._some_may_go():
                if self.forwards_on_arrival:
                    self._forward_waiting()
                elif (blocked := self._begin_some()) is not None:
                    return blocked
                if self._nothing_comes:
                    self._return_stuck()
            await self.routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        """See `HandlerTasks`."""
        blocked = self._begin_some() if self.routing.is_ready else None
        if blocked is None and self._nothing_comes:
            self._return_stuck()
        return blocked

    async def _some_may_go(self) -> bool:
        """Return True if something may be routed now. If not, wait until it should be asked again what waits."""
        await self.routing.ready()  # last: what is routed in one go relies on it
        if self._flow is None or self._flow.may_go(1):
            return True
        if self._nothing_comes:
            self._return(self._pending.take_unrouted())  # nothing comes any more, and nothing may go
            self._tell_if_settled()
        else:
            await self._flow.wait_to_go(self._pending.waiting)
        return False

    async def _something_waits(self) -> None:
        """Wait until there is something to route: it arrived, or the limit of its value lets it go."""
        schedule, limits = self._pending.schedule, self._pending.limits
        while not schedule.ready:
            if limits.due_at <= trio.current_time():
                return
            self._arrived = trio.Event()
            with trio.CancelScope(deadline=limits.due_at):
                await self._arrived.wait()
            self.routing.turn.begin()

    def something_waits(self) -> None:
        """There is something to route."""
        self._arrived.set()

    def forward_some(self) -> bool:
        """Forward messages that may go now, in one go. Return False if the limit or a breaker lets nothing go.

        For routes without a handler, keys and limits of values, in place of `_begin_some`, which takes one message at a
        time.
        """
        flow, pending = self._flow, self._pending
        most = BATCH if self.routing.as_it_comes else BETWEEN_TWO_LOOKS
        if flow is not None:
            most = flow.may_go(min(most, pending.waiting))
            if not most:
                return False
        deliveries = pending.next_together(most)
        if pending.cursor.failures.given_up:
            deliveries = self._retrying.without_given_up(deliveries)
        if flow is not None:
            flow.going(len(deliveries), pending.waiting)
        self.routing.forward_each(deliveries)
        return True

    def _forward_waiting(self) -> None:
        routing, pending = self.routing, self._pending
        for _ in range(1 if routing.as_it_comes else BATCH // BETWEEN_TWO_LOOKS):
            if not (self.forward_some() and pending.waiting and routing.is_ready) or routing.turn.over:
                break

    def _begin_some(self) -> Awaitable[None] | None:
        """Route what may go now, one after the other. If a handler blocks, return what to await in this task."""
        pending, flow, routing = self._pending, self._flow, self.routing
        for _ in range(BATCH):
            if flow is not None and not flow.may_go(1):
                break
            delivery = pending.next(trio.current_time())
            if delivery is None:
                break
            if pending.cursor.failures.given_up and self._retrying.was_given_up(delivery):
                self._retrying.give_up_again(delivery)
                continue
            if flow is not None:
                flow.going(1, pending.waiting)
            blocked = self._begin(delivery)
            if blocked is not None:
                return blocked
            if routing.waits_for is not None or routing.turn.over:
                break
        return None

    def _begin(self, delivery: StreamDelivery) -> Awaitable[None] | None:
        """Route one message, which may go. If its handler blocks, return what to await."""
        handler = self.routing.plan.handler
        if self._lacks_key(delivery):
            self.routing.fail_without_key(delivery)
            return None
        if handler is None:
            self.routing.forward_each([delivery])
            if self._follows_at_once:
                self._pending.schedule.finished(delivery)
            return None
        try:
            blocked = self.routing.route_until_blocked(handler, delivery)
        except BaseException:
            self._pending.put_back(delivery)
            raise
        if blocked is None:
            return None
        self._pending.in_handler[delivery] = None
        return self._wait_for(blocked, delivery)

    async def _wait_for(self, blocked: Awaitable[None], delivery: StreamDelivery) -> None:
        """Wait for a handler. Cancelled in it, nothing was sent."""
        pending = self._pending
        try:
            await blocked
        except BaseException:
            if self._scope.cancel_called:
                self._count_returned(delivery)
            else:
                pending.put_back(delivery)
            raise
        finally:
            pending.in_handler.pop(delivery, None)

    # --- settled ---

    def finished(self, delivery: StreamDelivery) -> None:
        """All destinations of a message are settled: ack or nak it, or give it up."""
        pending, failure = self._pending, delivery.failure
        if failure is None and not delivery.recalled:
            self.state.fates[delivery.outcome] += 1
            self._delivered([delivery])
        elif failure is not None and delivery.cursor is pending.cursor:
            self._retrying.message_failed(delivery, failure)
        elif failure is None and self._scope.cancel_called:
            self._return((delivery,))  # nobody routes it any more
        else:
            pending.remove(delivery)
            if failure is None:
                pending.take_back(delivery)
            else:
                self.state.fates["lost"] += 1  # its stream is gone
        self.look()

    @property
    def in_hand(self) -> int:
        """See `states.InHand`."""
        return self._pending.in_hand

    def first_stored(self) -> None:
        """See `Source.first_stored`. What is stored is acked with all others that the link tells of now."""
        self.routing.connections[0].listener.when_read_done(self._ack_stored)

    def _ack_stored(self) -> None:
        stored, self.stored = self.stored, []
        state, now = self.state, trio.current_time()
        state.delivered[state.destinations[0]] += len(stored)
        state.fates["routed"] += len(stored)
        for received_at, together in groupby(stored, _received_at):
            state.elapsed.record(now - received_at, len(list(together)))
        self._delivered(stored)
        self.look()

    def _delivered(self, deliveries: list[StreamDelivery]) -> None:
        self._acks.ack(self._pending.delivered(deliveries))

    def look(self) -> None:
        """See `HandOwner`."""
        if self._retired:
            self._look_after_end()
            return
        pending = self._pending
        if pending.schedule.waiting or pending.schedule.may_begin:
            self.something_waits()
        if self._nothing_comes:
            self._return_stuck()
        if not pending.count:
            self._all_settled.unpark_all()
        self._pull_loop.look()

    def _tell_if_settled(self) -> None:
        if not self._pending.count:
            self._all_settled.unpark_all()

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """A destination did not take a message: what is behind it must not be sent any more."""
        if self._pending.hold_back_behind(delivery, trio.current_time()):
            self.recall_out_of_turn()
        if self._pending.schedule.ready:
            self.something_waits()

    def _never_come(self, gone: Collection[int]) -> None:
        """Stop waiting for messages that are gone from the stream, or that another process has settled."""
        if self._pending.give_up_waiting(gone):
            self.something_waits()

    def _elsewhere(self, sequences: Collection[int]) -> None:
        """Stop waiting for messages that somebody else seems to have."""
        if self._pending.wait_no_longer(sequences):
            self.something_waits()

    # --- recalled from outboxes ---

    def recall_out_of_turn(self) -> None:
        """Recall what is behind a refused message and not sent, or not confirmed on a link that died."""
        if self._pending.order.lines:
            for destination in self.routing.connections:
                destination.outbox.recall(self._pending.out_of_turn)
        if (route := self._pending.route) is not None and route is not self:
            route.recall_out_of_turn()

    def recall(self) -> None:
        """See `Route`. It is returned to the stream with the rest, and redelivered."""
        for destination in self.routing.connections:
            destination.outbox.recall(self._is_own, "its route has ended, and the stream delivers it again")

    def _is_own(self, operation: Operation) -> bool:
        delivery = message_of(operation)
        return delivery is not None and delivery.route is self.state

    # --- returned to the stream, which redelivers it ---

    def _make_room(self, soon: bool) -> None:
        """Return the newest message that is held, so that what is due can come: it is redelivered later than that."""
        delay = self._intake.returns_after(soon)
        delivery = self._pending.return_newest(trio.current_time() + delay + OVERDUE, self._intake.late)
        if delivery is not None:
            self.state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, delay)

    def _return_stuck(self) -> None:
        """Return what can't go on now that nothing more is received."""
        while stuck := self._pending.take_stuck():  # what waited behind one of these is stuck then
            self._return(stuck)
        self._tell_if_settled()

    def _return(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Return messages that are in hand and wait for nothing. Those of a stream before this one are lost."""
        deliveries = tuple(deliveries)
        self._nak_at_once(deliveries)
        for delivery in deliveries:
            self._count_returned(delivery)
        if self._pending.schedule.ready:
            self.something_waits()

    def _nak_at_once(self, deliveries: Iterable[StreamDelivery]) -> None:
        """Have messages redelivered now; the route that takes this one's place waits for them."""
        pending = self._pending
        ours = [delivery for delivery in deliveries if delivery.cursor is pending.cursor]
        pending.await_at_once(ours, trio.current_time())
        for delivery in ours:
            self._acks.nak(delivery.ack_subject, 0)

    def _count_returned(self, delivery: StreamDelivery) -> None:
        """Remove a message that was not routed: its stream has it, if that is still there."""
        self.state.fates["returned" if self._pending.remove(delivery) else "lost"] += 1

    # --- the end ---

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._pull_loop.look_again()
        self._lead.stop_waiting()

    async def _all_routed(self) -> None:
        """See `Route`. Every message in hand is settled, or returned if it can't be."""
        self._nothing_comes = True
        self._return_stuck()
        if self._flow is not None:
            self.something_waits()
            self._flow.wake()
        while self._pending.count:
            with trio.move_on_after(self._lead.held_for):
                await self._all_settled.park()
        self._lead.give_up()

    def has_consumer(self, connection: Connection, source: SourceSettings) -> bool:
        """See `Route`. The connection may have been made anew."""
        same = (source.stream, source.durable) == (self._spec.stream, self._spec.durable)
        return same and connection.leads_where(self._connection)

    def retire(self) -> None:
        """See `Route`."""
        super().retire()
        self._retired = True
        self._connection.pull_budget.consumer_gone()
        self._feeding.end()
        for destination in self.routing.connections:
            destination.tell_no_more(self.recall_out_of_turn)
            destination.tell_no_more(self._pull_loop.look_again)
            if self.in_hand:
                # What a link that dies leaves unconfirmed would be sent when there is another one, and waited for.
                destination.when_changed(self.recall)

    def _look_after_end(self) -> None:
        """Something that was sent before the end has its fate."""
        if not self.state.in_hand:
            for destination in self.routing.connections:
                destination.tell_no_more(self.recall)
        if (route := self._pending.route) is not None and route is not self:
            route.look()

    def _leaves_pending_to(self, routing: Routing) -> bool:
        """Return True if the next life of the route goes on with what this one, which has ended, has in hand.

        Not with what a handler still works on, which the stream delivers again, nor by another order.
        """
        return not self.in_hand or (self.state.is_over and self.routing.plan.ordered_by == routing.plan.ordered_by)

    def abandon(self) -> int:
        """See `Route`. What was not routed is returned to the stream: none of it is lost, so it counts as nothing."""
        if not self._scope.cancel_called:
            self._intake.is_over = True
            self._scope.cancel()
            unrouted = self._pending.take_unrouted()
            # What is in a handler has its fate when that returns, or was cancelled; the stream redelivers it first.
            self._nak_at_once((*self._pending.in_handler, *unrouted))
            for delivery in unrouted:
                self._count_returned(delivery)
        return 0
