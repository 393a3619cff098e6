"""Routes from a JetStream stream: many in flight, each acked when all its destinations are settled.

`serve` receives on each link, `run` routes, and what is unsettled outlives the link: its ack is sent on the next one. A
message that the stream delivers again while it is in hand, or after it was settled, is not routed again. One that a
destination refused comes again before what is behind it on its subject. A destination that is down stops this route's
pulls, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from math import inf
from operator import attrgetter

import trio

from router_trio.connection.supervisor import Connection
from router_trio.events import ConsumerDiffers, Emit, FilterOutside, StreamWentBack
from router_trio.link import Link, PullConsumer
from router_trio.outbox.operation import CoreOperation, Operation
from router_trio.protocol import framing
from router_trio.routing.delivery import DestinationTracker
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import policy_for
from router_trio.routing.retrying.dead_letters import DeadLetters
from router_trio.routing.route import Route
from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.deliveries import Deliveries
from router_trio.routing.stream.delivery import StreamDelivery, columns_of
from router_trio.routing.stream.lead import Lead
from router_trio.routing.stream.limited import LimitedValues
from router_trio.routing.stream.limits import check_retention, consumer_spec, differences, filters_outside
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.routing.stream.pulling.pull_loop import PullLoop
from router_trio.routing.stream.pulling.window import InFlightWindow
from router_trio.routing.stream.retrying import Retrying
from router_trio.routing.stream.settled_prefix import SettledPrefix
from router_trio.routing.stream.undelivered import OVERDUE, ask_again
from router_trio.routing.whole import NOTHING
from router_trio.settings import SourceSettings

BATCH = 256
"""Messages between two looks at the destinations' room: less than a queue's usual limit."""

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
        self._source = source
        self._spec = consumer_spec(source)
        self._policy = policy_for(routing.plan.settings, connection.platform.random.uniform)
        self._deliveries = Deliveries(self, self._spec.stream, self._spec.durable)
        self._acks: Acks = Acks(routing.state.name, connection, emit) if before is None else before._acks
        self._prefix = SettledPrefix() if self._spec.ack_all else None
        self._lead = Lead(self._retry, routing.state, emit)
        self._ack_pending: AckPending = AckPending()
        if before is not None and not before.in_hand:
            self._ack_pending, before.state.holder = before._ack_pending, NOTHING
            if before.routing.plan.ordered_by != routing.plan.ordered_by:
                # What is awaited there is known by another key: it is not waited for.
                self._ack_pending.order.clear()
            self._ack_pending.keys = None
        self._retrying = Retrying(
            self.state, self._spec.stream, self._policy, dead_letters, self._ack_pending, self._acks, emit, self._look
        )
        prefix = self._prefix
        if prefix is not None:
            self._retrying.done_with = lambda one: self._acks.ack(self._prefix_with(prefix, [one]))

        connection.pull_budget.join()
        self._payloads = Payloads()
        self._window = InFlightWindow(source.max_in_flight)
        self.state.in_flight_limit = lambda: self._window.size
        self._pull_loop = PullLoop(
            routing,
            self._ack_pending,
            self._window,
            source.max_in_flight_bytes,
            connection.pull_budget,
            self._closing,
            self._route,
            self._make_room,
            self._payloads,
        )
        self._ack_wait = source.ack_wait
        self._patience = 0.0
        """Seconds within which comes again whatever does: naks of another process are not known here."""
        self._arrived = trio.Event()
        self._all_settled = trio.lowlevel.ParkingLot()
        self.stored: list[StreamDelivery] = []
        self._nothing_comes = False
        self._told_differences: list[str] = []
        self._told_outside: tuple[str, str] | None = None
        self._flow = routing.flow
        self._limited: LimitedValues | None = None
        if self._flow is not None:
            self._flow.when_changed(self._pull_loop.look_again)
            for breaker in self._flow.breakers:
                breaker.untold = lambda: len(self.stored)
            if self._flow.values is not None:
                self._limited = LimitedValues(routing, self._flow, self._ack_pending)
            if self.state.limit is not None:
                self.state.limit.waiting = self._wait_for_limit
        self._forwards_on_arrival = routing.plan.handler is None and self._limited is None
        for destination in routing.connections:
            destination.when_changed(self._recall)
            destination.when_changed(self._pull_loop.look_again)

    # --- receiving, on one link ---

    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """See `Route`."""
        cursor = self._ack_pending.cursor
        last_sequence, last_time = cursor.last_known
        spec = replace(
            self._spec,
            stream_created=cursor.stream_created or None,
            start_sequence=cursor.start,
            last_sequence=last_sequence,
            last_time=last_time,
        )
        if spec.standby:
            spec = await self._lead.taken(link, spec, tried)
            if self._closing.is_set():
                return
        consumer = await link.open_consumer(spec, self._received)
        self._lead.holds(consumer)
        with self._receiving("no consumer: the connection is away"):
            try:
                self._found(link, consumer)
                self._retry.tried(tried)
                not_before = await ask_again(consumer, self._ack_pending.cursor, self._patience)
                await self._pull_loop.keep_asking(link, consumer, self._late, not_before)
                # What is under way is still routed: a restart has not to wait for it to be delivered again.
                await consumer.drain()
            finally:
                consumer.close()
                self._pull_loop.reset()  # what was borrowed from others is theirs again

    def _found(self, link: Link, consumer: PullConsumer) -> None:
        pending = self._ack_pending
        self._pull_loop.reset()
        self._ack_wait = consumer.ack_wait
        self._patience = max(2 * self._ack_wait, self._policy.longest)
        self._retrying.patience = self._late
        self._compare(consumer)
        if consumer.went_back is not None:
            self._tell_went_back(consumer.went_back)
        if consumer.went_back is not None or consumer.stream_created != pending.cursor.stream_created:
            pending.stream_replaced(consumer.stream_created)
            self._reset_sequences()
        if self._spec.deliver != "all" and pending.cursor.last_known == (0, 0):
            # One that takes its place must not begin where the stream does.
            pending.cursor.begin_behind(consumer.progress.passed)
        if not consumer.progress.deliveries:
            pending.order.all_due(trio.current_time())
        self._acks.flush_unsent(link)
        self._acks.renak(link, pending.order.expected())
        self._retry.ready(f"{self._spec.stream} ({self._spec.durable})")

    def _other_message(self, delivery: StreamDelivery) -> None:
        """See `AckPending.add`."""
        self._tell_went_back(f"it delivers another message as its {delivery.sequence}")
        self._reset_sequences()

    def _reset_sequences(self) -> None:
        """Acks of what is in hand, or is owed, would now be taken for acks of other messages."""
        self._route()
        self._acks.clear()
        if self._prefix is not None:
            self._prefix.forget_all()

    def _tell_went_back(self, detail: str) -> None:
        stream = self._spec.stream
        self._emit(StreamWentBack(at=trio.current_time(), route=self.state.name, stream=stream, detail=detail))

    @property
    def _late(self) -> float:
        """Seconds that a message may be late that was nakked here: if the nak is lost, it comes after the ack wait."""
        return self._ack_wait + OVERDUE

    def _received(self, batch: Sequence[framing.RawMessage]) -> None:
        now = trio.current_time()
        self._pull_loop.heard(now)
        pending = self._ack_pending
        deliveries, columns, others = self._deliveries.read(batch, pending.cursor, now)
        for raw in others:
            if self._pull_loop.read_status(raw):
                self._retry.succeeded()
        taken = self._payloads.sift(deliveries, batch)
        if taken < len(deliveries):
            self._pull_loop.kept([delivery.raw for delivery in deliveries[taken:]])
            deliveries = deliveries[:taken]
            columns = columns_of(deliveries)
        if deliveries:
            alone = len(deliveries) == len(batch)
            size = framing.delivered_size(batch if alone else [delivery.raw for delivery in deliveries])
            again = pending.add(deliveries, columns, self._patience, self._other_message)
            if again:
                self.state.duplicates += len(again)
                cursor, in_hand = pending.cursor, pending.open
                settled = [one for one in again if one.cursor is cursor and one.sequence not in in_hand]
                each = [delivery.ack_subject for delivery in settled]
                self._acks.ack(each if self._prefix is None else self._prefix_with(self._prefix, settled))
            self.state.received += len(deliveries) - len(again)
            came_again = bool(pending.order.lines) and deliveries[-1].deliveries > 1
            self._pull_loop.count_received(len(deliveries), size, again=came_again)
            self._retry.succeeded()
        if self._forwards_on_arrival:
            # What has to wait for nothing is forwarded while it arrives, without a turn of the route's own task.
            while pending.waiting and self.routing.is_ready and self._forward_some():
                pass
        if pending.waiting:
            self._route()
        # A restarted server may deliver nothing but what is settled: none of it will be finished and ask for more.
        self._pull_loop.look()

    # --- routing ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        while True:
            await self._something_waits()
            await trio.lowlevel.checkpoint()
            if await self._some_may_go():
                await self._route_some()

    async def _some_may_go(self) -> bool:
        """Return True if something may be routed now. If not, wait until it should be asked again what waits."""
        await self.routing.ready()  # last: what is routed in one go relies on it
        if self._flow is None or self._flow.may_go(1):
            return True
        if self._nothing_comes:
            self._give_back_waiting()
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

    def _route(self) -> None:
        self._arrived.set()

    def _forward_some(self) -> bool:
        """Forward what may go at once, in one go. Return False if the limit or a breaker lets nothing go."""
        flow, pending = self._flow, self._ack_pending
        most = BATCH
        if flow is not None:
            most = flow.may_go(min(BATCH, len(pending.waiting)))
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
            self._forward_some()
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
                    continue
                # It leaves when it is routed: cancelled in a handler, nothing was sent and it still waits.
                try:
                    await routing.route(handler, delivery)
                except trio.Cancelled:
                    if self._scope.cancel_called:
                        self._unrouted(delivery)
                    raise
                pending.waiting.popleft()
                if routing.waits_for is not None:
                    break
        if self._nothing_comes:
            self._give_back_stuck()

    def finished(self, delivery: StreamDelivery) -> None:
        """All destinations of a message are settled: ack or nak it, or it is given up."""
        pending, failure = self._ack_pending, delivery.failure
        if failure is None and not delivery.recalled:
            self.state.fates[delivery.outcome] += 1
            self._delivered([delivery])
        elif failure is not None and delivery.cursor is pending.cursor:
            self._retrying.message_failed(delivery, failure)
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
        return self._ack_pending.count

    def _wait_for_limit(self) -> int:
        pending = self._ack_pending
        return pending.limited + (pending.may_go if self._flow is not None and self._flow.holds else 0)

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
        pending = self._ack_pending
        if 2 * pending.count >= self._window.size:
            self._pull_loop.count_settled(len(deliveries))
        ack_subjects = pending.delivered(deliveries)
        self._acks.ack(ack_subjects if self._prefix is None else self._prefix_with(self._prefix, deliveries))

    def _prefix_with(self, prefix: SettledPrefix, deliveries: Sequence[StreamDelivery]) -> Sequence[bytes]:
        """These are settled: return where to ack the prefix, if that has made it longer."""
        return prefix.to_ack(deliveries, self._ack_pending.cursor, trio.current_time())

    def _look(self) -> None:
        """Something has left the hand: go on with what that makes room for."""
        pending = self._ack_pending
        if pending.waiting:
            self._route()
        if self._nothing_comes:
            self._give_back_stuck()
        if not pending.count:
            self._all_settled.unpark_all()
        self._pull_loop.look()

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """A destination did not take a message: what is behind it must not be sent any more."""
        if self._ack_pending.hold_back_behind(delivery):
            self._recall()

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Source.passes_by`."""
        return self._ack_pending.passes_by(delivery)

    def order_key(self, delivery: StreamDelivery) -> bytes:
        """See `Source.order_key`."""
        return delivery.raw[0]

    def _recall(self) -> None:
        """Take back what is behind a refused message and not sent, or not confirmed on a link that died."""
        if self._ack_pending.order.lines:
            for destination in self.routing.connections:
                destination.outbox.recall(self._ack_pending.out_of_turn)

    def _compare(self, consumer: PullConsumer) -> None:
        """Go by what the server's consumer says, and log where the route says otherwise."""
        spec = self._spec
        self._retrying.server_limit = consumer.limits.max_deliver
        if not self._retrying.has_dead_letters:
            check_retention(self._policy, spec, consumer)
        outside = filters_outside(spec, consumer)
        if outside is not None and outside != self._told_outside:
            filters, subjects = outside
            self._emit(
                FilterOutside(
                    at=trio.current_time(),
                    route=self.state.name,
                    stream=spec.stream,
                    filter=filters,
                    subjects=subjects,
                )
            )
        self._told_outside = outside
        found = differences(spec, consumer, 2 * self._source.most_in_flight)
        if found and found != self._told_differences:
            self._emit(
                ConsumerDiffers(
                    at=trio.current_time(),
                    route=self.state.name,
                    stream=spec.stream,
                    durable=spec.durable,
                    detail="; ".join(found),
                )
            )
        self._told_differences = found

    def _make_room(self, soon: bool) -> None:
        """Give back the newest that waits, so that what is due can come: it comes again later than that."""
        delay = self._policy.initial if soon else self._ack_wait
        delivery = self._ack_pending.give_back_newest(trio.current_time() + delay + OVERDUE, self._late)
        if delivery is not None:
            self.state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, delay)

    # --- the end ---

    def _give_back_waiting(self) -> None:
        """Nothing comes any more, and nothing may go: what waits goes back to its stream, but for the old one."""
        pending = self._ack_pending
        waiting = [*pending.waiting, *pending.order.clear()]
        pending.waiting.clear()
        self._give_back(waiting)
        self._give_back_stuck()

    def _give_back(self, deliveries: Iterable[StreamDelivery]) -> None:
        for delivery in deliveries:
            if delivery.cursor is self._ack_pending.cursor:
                self._acks.nak(delivery.ack_subject, 0)
            self._unrouted(delivery)

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._pull_loop.look_again()
        self._lead.stop_waiting()

    async def _all_routed(self) -> None:
        """See `Route`. Every message in hand is settled, or given back if it can't be."""
        self._nothing_comes = True
        self._give_back_stuck()
        if self._flow is not None:
            self._route()
            self._flow.wake()
        while self._ack_pending.count:
            with trio.move_on_after(self._lead.held_for):
                await self._all_settled.park()
        self._lead.give_up()

    def _give_back_stuck(self) -> None:
        for delivery in self._ack_pending.take_back_stuck():
            self.state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, 0)
        if self._limited is not None:
            self._give_back(self._limited.clear())
        if not self._ack_pending.count:
            self._all_settled.unpark_all()

    def has_consumer(self, connection: Connection, source: SourceSettings) -> bool:
        """Return True if this is where it receives from."""
        same = (source.stream, source.durable) == (self._spec.stream, self._spec.durable)
        return same and connection is self._connection

    def recall(self) -> None:
        """See `Route`. It goes back to the stream with the rest, and is delivered again."""
        for destination in self.routing.connections:
            destination.outbox.recall(self._is_own, "its route has ended, and the stream delivers it again")

    def _is_own(self, operation: Operation) -> bool:
        owner = operation.owner if isinstance(operation, CoreOperation) else None
        delivery = owner.delivery if isinstance(owner, DestinationTracker) else owner
        return isinstance(delivery, StreamDelivery) and delivery.route is self.state

    def retire(self) -> None:
        """See `Route`."""
        super().retire()
        self._connection.pull_budget.consumer_gone()
        for destination in self.routing.connections:
            destination.tell_no_more(self._recall)
            destination.tell_no_more(self._pull_loop.look_again)

    def abandon(self) -> int:
        """See `Route`. What was not routed is given back to the stream: none of it is lost, so it counts as nothing."""
        if not self._scope.cancel_called:
            self._scope.cancel()
            pending = self._ack_pending
            if self._limited is not None:
                pending.waiting += self._limited.clear()
            # What is in the handler has its fate when that returns, or was cancelled.
            in_handler = self._in_handler()
            of_another_stream = [delivery for delivery in pending.waiting if delivery.cursor is not pending.cursor]
            for delivery in [*pending.unrouted()]:
                self._acks.nak(delivery.ack_subject, 0)
                if delivery not in in_handler:
                    self._unrouted(delivery)
            for delivery in of_another_stream:
                if delivery not in in_handler:
                    self._unrouted(delivery)
        return 0

    def _in_handler(self) -> Collection[StreamDelivery]:
        """What the handler works on, and is still the first of what waits."""
        waiting = self._ack_pending.waiting
        return (waiting[0],) if self.state.handling and waiting else ()

    def _unrouted(self, delivery: StreamDelivery) -> None:
        """It was not routed before the end: its stream has it, if that is still there."""
        self.state.fates["returned" if self._ack_pending.remove(delivery) else "lost"] += 1
