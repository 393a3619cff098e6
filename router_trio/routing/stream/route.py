"""Routes from a JetStream stream: many in flight, each acked when all its destinations are settled.

`serve` receives on each link, `run` routes, and what is unsettled outlives the link: its ack is sent on the next one. A
message that the stream delivers again while it is in hand, or after it was settled, is not routed again. One that a
destination refused comes again before what is behind it on its subject. A destination that is down stops this route's
pulls, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

import trio

from router_trio.connection.supervisor import Connection
from router_trio.events import ConsumerDiffers, Emit, MessageDeadLettered, StreamWentBack
from router_trio.link import Link, PullConsumer
from router_trio.protocol import framing
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.deliveries import Deliveries
from router_trio.routing.stream.delivery import StreamDelivery, columns_of
from router_trio.routing.stream.failures import LONGEST_DELAY, RetryPolicy
from router_trio.routing.stream.lead import Lead
from router_trio.routing.stream.limits import UNLIMITED, check_retention, consumer_spec, differences
from router_trio.routing.stream.payloads import Payloads
from router_trio.routing.stream.pull_loop import PullLoop
from router_trio.routing.stream.undelivered import OVERDUE, ask_again

BATCH = 256
"""Messages between two looks at the destinations' room: less than a queue's usual limit."""

_received_at = attrgetter("received_at")


class StreamRoute(Route):
    """One route from a stream."""

    def __init__(self, routing: Routing, connection: Connection, emit: Emit) -> None:
        super().__init__(routing, connection, emit)
        self.state.holder = self
        source = routing.plan.settings.source
        self._source = source
        self._spec = consumer_spec(source)
        self._policy = RetryPolicy(source.nak_delay, max(source.max_deliver, 0), source.max_in_flight)
        self._server_limit = UNLIMITED
        self._deliveries = Deliveries(self, self._spec.stream, self._spec.durable)
        self._acks = Acks(routing.state.name, connection, emit)
        self._lead = Lead(self._retry, routing.state, emit)
        self._ack_pending = AckPending()
        connection.pull_budget.join()
        self._payloads = Payloads()
        self._pull_loop = PullLoop(
            routing,
            self._ack_pending,
            source.max_in_flight,
            source.max_in_flight_bytes,
            connection.pull_budget,
            self._closing,
            self._route,
            self._make_room,
            self._payloads,
        )
        self._ack_wait = source.ack_wait
        self._arrived = trio.Event()
        self._all_settled = trio.lowlevel.ParkingLot()
        self.stored: list[StreamDelivery] = []
        self._nothing_comes = False
        self._told_differences: list[str] = []
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
        self._compare(consumer)
        if consumer.went_back is not None:
            self._tell_went_back(consumer.went_back)
        if consumer.went_back is not None or consumer.stream_created != pending.cursor.stream_created:
            pending.stream_replaced(consumer.stream_created)
            self._reset_sequences()
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

    def _tell_went_back(self, detail: str) -> None:
        stream = self._spec.stream
        self._emit(StreamWentBack(at=trio.current_time(), route=self.state.name, stream=stream, detail=detail))

    @property
    def _patience(self) -> float:
        """Seconds within which comes again whatever does: naks of another process are not known here."""
        return max(2 * self._ack_wait, LONGEST_DELAY)

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
                self._acks.ack([delivery.ack_subject for delivery in settled])
            self.state.received += len(deliveries) - len(again)
            came_again = bool(pending.order.lines) and deliveries[-1].deliveries > 1
            self._pull_loop.count_received(len(deliveries), size, again=came_again)
            self._retry.succeeded()
        if self.routing.plan.handler is None:
            # What has to wait for nothing is forwarded while it arrives, without a turn of the route's own task.
            while pending.waiting and self.routing.is_ready:
                self.routing.forward_each(pending.take_first(BATCH))
        if pending.waiting:
            self._route()
        # A restarted server may deliver nothing but what is settled: none of it will be finished and ask for more.
        self._pull_loop.look()

    # --- routing ---

    async def _route_arriving(self) -> None:
        """See `Route`."""
        waiting = self._ack_pending.waiting
        while True:
            while not waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await trio.lowlevel.checkpoint()
            await self.routing.ready()  # last: what is routed in one go relies on it
            await self._route_some()

    def _route(self) -> None:
        self._arrived.set()

    async def _route_some(self) -> None:
        routing, pending = self.routing, self._ack_pending
        handler = routing.plan.handler
        if handler is None:
            routing.forward_each(pending.take_first(BATCH))
        else:
            for _ in range(min(len(pending.waiting), BATCH)):
                delivery = pending.first()
                if delivery is None:
                    break
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
        """All destinations of a message are settled: ack or nak it."""
        if delivery.reason is None and not delivery.recalled:
            self.state.fates[delivery.outcome] += 1
            self._delivered([delivery])
        elif self._ack_pending.remove(delivery):
            self._not_delivered(delivery)
        elif delivery.reason is None:
            self._ack_pending.route_again(delivery)
        else:
            self.state.fates["lost"] += 1  # its stream is gone
        self._look()

    @property
    def in_hand(self) -> int:
        """See `states.InHand`."""
        return self._ack_pending.count

    def first_stored(self) -> None:
        """See `Source.first_stored`. What is stored is acked with all others of which the link tells now."""
        self.routing.connections[0].when_read_done(self._ack_stored)

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
        pending = self._ack_pending
        if pending.waiting:
            self._route()
        if self._nothing_comes:
            self._give_back_stuck()
        if not pending.count:
            self._all_settled.unpark_all()
        self._pull_loop.look()

    def _not_delivered(self, delivery: StreamDelivery) -> None:
        if delivery.reason is None:
            self._ack_pending.take_back(delivery)
            return
        now = trio.current_time()
        attempts = delivery.cursor.failures.add(delivery.sequence)
        if delivery.choices is not None:
            delivery.cursor.failures.keep_choices(delivery.sequence, delivery.choices)
        if self._policy.over(attempts):
            self._give_up(delivery, delivery.reason, attempts)
            self._acks.term(delivery.ack_subject, delivery.reason)
            return
        delay = self._policy.delay(attempts, now)
        if 0 < self._server_limit <= delivery.deliveries:
            # Nobody may change this consumer: its server does not deliver the message again.
            self._give_up(delivery, delivery.reason, attempts)
        else:
            self.state.fates["returned"] += 1
            self._ack_pending.comes_again(delivery, now + delay + OVERDUE, self._late)
        self._acks.nak(delivery.ack_subject, delay)

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """A destination did not take a message: what is behind it must not be sent any more."""
        if self._ack_pending.hold_back_behind(delivery):
            self._recall()

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """See `Source.passes_by`."""
        return self._ack_pending.passes_by(delivery)

    def _recall(self) -> None:
        """Take back what is behind a refused message and not sent, or not confirmed on a link that died."""
        if self._ack_pending.order.lines:
            for destination in self.routing.connections:
                destination.outbox.recall(self._ack_pending.out_of_turn)

    def _give_up(self, delivery: StreamDelivery, reason: str, attempts: int) -> None:
        """That was the last attempt: the stream keeps the message, and its consumer is done with it."""
        self._ack_pending.given_up(delivery)
        self.state.dead_lettered += 1
        self.state.fates["given_up"] += 1
        self._emit(
            MessageDeadLettered(
                at=trio.current_time(),
                route=self.state.name,
                reason=reason,
                stream=self._spec.stream,
                sequence=delivery.sequence,
                deliveries=attempts,
            )
        )

    def _compare(self, consumer: PullConsumer) -> None:
        """Go by what the server's consumer says, and log where the route says otherwise."""
        spec = self._spec
        self._server_limit = consumer.limits.max_deliver
        check_retention(self._policy, spec, consumer)
        found = differences(spec, consumer, 2 * self._source.max_in_flight)
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
        delay = self._source.nak_delay if soon else self._ack_wait
        delivery = self._ack_pending.give_back_newest(trio.current_time() + delay + OVERDUE, self._late)
        if delivery is not None:
            self.state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, delay)

    # --- the end ---

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._pull_loop.look_again()
        self._lead.stop_waiting()

    async def _all_routed(self) -> None:
        """See `Route`. Every message in hand is settled, or given back if it can't be."""
        self._nothing_comes = True
        self._give_back_stuck()
        while self._ack_pending.count:
            with trio.move_on_after(self._lead.held_for):
                await self._all_settled.park()
        self._lead.give_up()

    def _give_back_stuck(self) -> None:
        for delivery in self._ack_pending.take_back_stuck():
            self.state.fates["returned"] += 1
            self._acks.nak(delivery.ack_subject, 0)
        if not self._ack_pending.count:
            self._all_settled.unpark_all()

    def abandon(self) -> int:
        """See `Route`. What was not routed is given back to the stream: none of it is lost, so it counts as nothing."""
        if not self._scope.cancel_called:
            self._scope.cancel()
            pending = self._ack_pending
            # What is in the handler has its fate when that returns, or was cancelled.
            in_handler = pending.waiting[0] if self.state.handling and pending.waiting else None
            of_another_stream = [delivery for delivery in pending.waiting if delivery.cursor is not pending.cursor]
            for delivery in [*pending.unrouted()]:
                self._acks.nak(delivery.ack_subject, 0)
                if delivery is not in_handler:
                    self._unrouted(delivery)
            for delivery in of_another_stream:
                if delivery is not in_handler:
                    self._unrouted(delivery)
        return 0

    def _unrouted(self, delivery: StreamDelivery) -> None:
        """It was not routed before the end: its stream has it, if that is still there."""
        self.state.fates["returned" if self._ack_pending.remove(delivery) else "lost"] += 1
