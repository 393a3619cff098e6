"""A stream as the source of a route: its durable consumer, on one link after another, and its deliveries.

A pull loop asks for messages ahead, bounded in number and bytes. What is in hand outlives the link, and the route if
its successor has the same consumer: see `keeper.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.events import (
    ConsumerDiffers,
    ConsumerLimitsRemoved,
    ConsumerPaused,
    ConsumerReset,
    ConsumerResumed,
    DeliveryLimitReached,
    Emit,
    StreamWentBack,
)
from router_trio.link import ConsumerSpec, ConsumerState, Link, PullConsumer
from router_trio.protocol import buckets, framing
from router_trio.protocol.advisories import MAX_DELIVERIES, Advisory
from router_trio.protocol.copies import Copied
from router_trio.protocol.metadata import ROUTE, sends
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.key_queues import ActiveKeys
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.source import KeptSource
from router_trio.routing.source_status import SourceStatus
from router_trio.routing.stream.consumer.delivery_limit import DeliveryLimit
from router_trio.routing.stream.consumer.feeding import Feeding
from router_trio.routing.stream.consumer.filters import Filters
from router_trio.routing.stream.consumer.lead import Lead
from router_trio.routing.stream.consumer.lease import Lease
from router_trio.routing.stream.consumer.limits import check_expiry, check_retention, consumer_spec, differences
from router_trio.routing.stream.consumer.owed_acks import send_owed
from router_trio.routing.stream.consumer.tokens import without_tokens
from router_trio.routing.stream.consumer.undelivered import ask_again
from router_trio.routing.stream.deliveries import CopiedDeliveries, Deliveries
from router_trio.routing.stream.delivery import StreamDelivery, columns_of
from router_trio.routing.stream.in_hand import StreamInHand
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.routing.stream.pulling.pull_loop import PullLoop
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.states import PAUSED, RUNNING

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters

GIVES_WAY_FOR = 1.0
"""Additional seconds before a process that shared a deleted durable creates it again."""


@dataclass(frozen=True, slots=True)
class StreamPart:
    """The part of a stream that one of several sources of a route reads, and the `status` to which it reports.

    `copied` is the stream that the server copies this one from, if it was made for the route: then no other route has
    durables of it.
    """

    spec: ConsumerSpec
    status: SourceStatus
    lease: Lease | None
    copied: Copied | None = None


class StreamSource(KeptSource[StreamKeeper]):
    """The consumer of one route."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: StreamKeeper | None = None,
        part: StreamPart | None = None,
        keys: ActiveKeys[StreamDelivery] | None = None,
    ) -> None:
        """`before` is the keeper of the previous source: its unsettled messages continue here.

        Without `part`, it reads everything that the route reads. `keys`: see `StreamKeeper`.
        """
        super().__init__(routing, connection, emit, None if part is None else part.status)
        source = routing.plan.settings.source
        spec = consumer_spec(source) if part is None else part.spec
        spec = self._spec = replace(spec, metadata=self._metadata)
        lease = self._lease = None if part is None else part.lease
        copied = None if part is None else part.copied
        keeper = StreamKeeper(routing, connection, emit, dead_letters, before, spec.stream, lease, copied, keys)
        self.keeper: StreamKeeper = keeper
        self._hand: StreamInHand = keeper.hand
        self._acks = keeper.acks
        self._max_in_flight = source.max_in_flight
        self.state.in_flight_limit = source.max_in_flight
        self._payloads = Payloads()
        self._advisories = connection.advisories.about(spec.stream, spec.durable, with_others=copied is not None)
        self._delivery_limit = DeliveryLimit(
            lambda: self._hand.cursor,
            self._take_over,
            lambda: keeper.may_take_over,
            self._report_limit_reached,
            connection.platform.random.uniform,
        )
        connection.pull_budget.join()
        self._pull_loop: PullLoop = PullLoop(
            routing,
            keeper.hand,
            source.max_in_flight,
            source.max_in_flight_bytes,
            connection.pull_budget,
            self._closing,
            keeper,
            self._payloads,
            keeper.acks.asked,
            self._report_lifted,
            self._report_pause,
            keeper.acks.hold,
            self._advisories,
            self._delivery_limit,
            self._status,
            leads=spec.standby,
        )
        keeper.acks.belong_to(self._status, spec, self._pull_loop.lose, self._pull_loop.report_progress)
        if routing.flow is not None:
            routing.flow.when_changed(self._pull_loop.look_again)
        for destination in routing.connections:
            destination.when_changed(self._pull_loop.look_again)
        self.look: Callable[[], object] = self._pull_loop.look
        self._lead = self._make_lead()
        self._feeding: Feeding | None = None
        if part is None:
            self._feeding = Feeding(routing, connection, dead_letters, self._pull_loop.lose)
        self._token = spec.token
        self._bucket = framing.wire(source.kind.subject_prefix(source))
        self._key_of = routing.plan.partition_key
        self._deliveries = (
            Deliveries(keeper, spec.stream, spec.durable)
            if copied is None
            else CopiedDeliveries(keeper, spec.stream, spec.durable, copied)
        )
        self._advisories.watch(self._advised)
        self._within = 0.0
        """Upper bound, in seconds, on the redelivery delay of any message, also of those nak'ed by other processes."""
        self._reported_differences: list[str] = []
        self._paused: str | None = None
        """Until when the durable is paused whose lead this process waits for; None if it is not."""
        self._filters: Filters = Filters(self.state.name, spec, emit)
        self.opened: trio.Event = trio.Event()
        """Set while its consumer is open, with `standby` only in the process that has the lead."""
        self.ended: trio.Event = trio.Event()
        """Set when that ends."""

    def _make_lead(self) -> Lead:
        return Lead(self._retry, self._status, self._emit)

    # --- on one link ---

    async def _receive(self, link: Link, tried: Latch) -> None:
        try:
            await self._receive_on(link, tried)
        finally:
            self._hand.lag.forget()  # without a consumer it is not known

    async def _receive_on(self, link: Link, tried: Latch) -> None:
        spec = self._next_spec()
        if spec.standby:
            try:
                spec = await self._lead.taken(link, spec, tried, self._learn)
            except SourceError as error:
                if error.reason in (reasons.CONSUMER_DELETED, reasons.NO_RESPONDERS):
                    # The process with the lead knows best where the next durable starts, so it creates it.
                    self._retry.wait_longer(GIVES_WAY_FOR)
                raise
            if spec.pin is None:
                return  # closed
            self._waits_while(None)  # a paused durable gives no lead
            spec = replace(self._next_spec(), pin=spec.pin)  # more is known about the stream by now
        consumer = await link.open_consumer(spec, self.received)
        self._lead.holds(consumer)
        try:
            await self._receive_from(link, consumer, tried)
        except SourceError as error:
            if error.reason == reasons.CONSUMER_DELETED and self._pull_loop.shared:
                # A process that received all messages knows best where the next durable starts, so it creates it.
                self._retry.wait_longer(GIVES_WAY_FOR)
            raise

    async def _receive_from(self, link: Link, consumer: PullConsumer, tried: Latch) -> None:
        self._receiving_begins()
        self.opened.set()
        try:
            try:
                self._pull_loop.reset()
                self._go_by(link, consumer)
                if self._feeding is not None:
                    self._feeding.check(consumer.stream_created, consumer.limits.stores)
                if self._routing.newest is not None and consumer.limits.allow_message_ttl:
                    await self._routing.newest.check_expiry()
                if self._bucket and consumer.limits.allow_message_ttl:
                    await self._read_clock(consumer)
                self._acks.await_pull(self._report_ready)
                tried.set()  # only the start of the router waits until a pull was accepted
                redeliveries = await ask_again(consumer, self._hand, self._within)
                await self._pull_loop.keep_asking(
                    link,
                    consumer,
                    self.keeper.late,
                    redeliveries,
                    self._filters,
                    self._acks.nothing_asked,
                    partial(send_owed, acks=self._acks),
                )
                # Messages on their way are still routed, so that a restart need not wait for their redelivery.
                await consumer.drain()
            finally:
                self._acks.await_no_pull()
                self._retry.first_try_over.set()
                consumer.close()
                self._pull_loop.reset()  # returns room that was borrowed from other routes
        finally:
            self._receiving_ends("no consumer, because the connection is down")
            self.opened, ended, self.ended = trio.Event(), self.ended, trio.Event()
            ended.set()

    def _report_ready(self) -> None:
        """Report that messages are received from now on: the first pull was accepted, or none is needed yet."""
        self._acks.await_no_pull()
        self._pull_loop.receives()
        self._report_available()

    def _report_available(self) -> None:
        self._retry.ready(f"{self._spec.stream} ({self._spec.durable})")

    # --- what servers report ---

    def _advised(self, advisory: Advisory) -> None:
        """Ask the server about what it has reported."""
        if advisory.kind == MAX_DELIVERIES:
            self._delivery_limit.named(advisory.sequence)
        self._pull_loop.check_soon()

    def _described(self, error: SourceError) -> str:
        return f"{error}{self._advisories.explain(error.reason)}"

    # --- the end ---

    def reopen(self) -> None:
        """Let it be served again after `close`."""
        self._closing = Latch()
        self._pull_loop.reopen(self._closing)

    @property
    def is_standby(self) -> bool:
        """Return True if one process at a time has the lead, and receives."""
        return self._spec.standby

    def close(self) -> None:
        super().close()
        self._pull_loop.look_again()
        self._lead.stop_waiting()

    def keep_lead(self) -> float:
        return self._lead.held_for

    def give_up_lead(self) -> None:
        self._lead.give_up()

    def go_on_leading(self, before: StreamSource) -> None:
        """Continue the lead of the source before this one, if it has it."""
        self._lead.go_on(before._lead)

    def retire(self) -> None:
        super().retire()
        self._advisories.unwatch(self._advised)
        self._connection.pull_budget.consumer_gone()
        if self._feeding is not None:
            self._feeding.end()
        for destination in self._routing.connections:
            destination.stop_notifying(self._pull_loop.look_again)

    @property
    def consumer(self) -> tuple[str, str]:
        """The stream and the durable."""
        return self._spec.stream, self._spec.durable

    def _is_source_of(self, plan: RoutePlan, connection: Connection) -> bool:
        source = plan.settings.source
        same = source.kind.consumer(source) == (self._spec.stream, self._spec.durable)
        same = same and partitioning_of(source) is None and plan.retry_schedule is None
        return same and connection.has_same_streams(self._connection)

    def stays(self, plan: RoutePlan, *, reconnects: bool) -> bool:
        return not reconnects and self._is_source_of(plan, self._connection)

    def go_on(self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None) -> StreamSource | None:
        """Return a source that continues if it has the same consumer, even on a new connection; otherwise None."""
        if not self._is_source_of(routing.plan, connection):
            return None
        successor = StreamSource(routing, connection, self._emit, dead_letters, self.keeper)
        successor.go_on_leading(self)
        if successor.keeper.started_before is not None:
            self.state.held_by(successor.keeper.started_before)
        return successor

    # --- the consumer ---

    def _metadata(self) -> Mapping[str, str]:
        """Return what identifies this route on a server."""
        return {**self._connection.metadata(), ROUTE: self.state.name, **sends(self._routing.plan.sends)}

    def _next_spec(self) -> ConsumerSpec:
        """Return the consumer for the next link, which continues behind the known part of the stream."""
        cursor, others, now = self._hand.cursor, self._hand.others, trio.current_time()
        last_sequence, last_time = cursor.last_known
        passed_sequence, passed_time = cursor.last_passed
        return replace(
            self._spec,
            stream_created=cursor.stream_created or None,
            start_sequence=cursor.start,
            last_sequence=last_sequence,
            last_time=last_time,
            passed_sequence=passed_sequence,
            passed_time=passed_time,
            found_by_message=cursor.found_by_message,
            others_seen=others.noticed and not others.take(now),
            owes_acks=self._acks.has_unsent,
        )

    def _go_by(self, link: Link, consumer: PullConsumer) -> None:
        """Take in the state of a consumer that was opened on a link, and send what could not be sent before."""
        hand, keeper = self._hand, self.keeper
        keeper.ack_wait = hand.others.ack_wait = consumer.ack_wait
        self._within = max(2 * consumer.ack_wait, keeper.policy.longest)
        self._compare(consumer)
        if consumer.went_back is not None:
            self._report_went_back(consumer.went_back)
        elif hand.cursor.found_by_message:
            hand.cursor.stream_created = consumer.stream_created
            hand.cursor.found_by_message = False
        if consumer.went_back is not None or consumer.stream_created != hand.cursor.stream_created:
            hand.stream_replaced(consumer.stream_created)
            self._reset_sequences()
        self._delivery_limit.opened(consumer)
        # A durable that replaces it must not start at the beginning of the stream.
        hand.cursor.begin_behind(consumer.progress.passed)
        if not consumer.progress.deliveries:
            hand.order.all_due(trio.current_time())
        self._acks.flush_unsent(link)
        self._acks.renak(link, hand.order.expected())

    def _learn(self, stream_created: str, state: ConsumerState) -> None:
        """Learn where the next durable would start, and how far it is behind, while another process has the lead.

        What shows that the stream is another one than this process knows is for `_go_by`.
        """
        hand = self._hand
        if not hand.cursor.stream_created:
            hand.stream_replaced(stream_created)
            self._acks.clear()
        if hand.cursor.stream_created == stream_created:
            hand.cursor.begin_behind(state.passed)
        hand.lag.checked_by_standby(state, trio.current_time())
        self._waits_while(state.paused)

    def _waits_while(self, paused: str | None) -> None:
        """Report that the durable is paused, or not any more, while this process waits for the lead."""
        if paused is not None:
            self._status.enter(PAUSED, paused)
        elif self._paused is not None:
            self._status.enter(RUNNING)
        if paused != self._paused:
            self._paused = paused
            self._report_pause(paused)

    def _compare(self, consumer: PullConsumer) -> None:
        """Use the limits of the server's consumer, and log how they differ from the configuration."""
        spec = self._spec
        self.keeper.server_limit = consumer.limits.max_deliver
        if not self.keeper.has_dead_letters:
            check_retention(self.keeper.policy, spec, consumer)
        check_expiry(spec, consumer)
        self._filters.compare(consumer.limits.subjects)
        if consumer.lifted:
            self._report_lifted(consumer.lifted)
        found = differences(spec, consumer, 2 * self._max_in_flight)
        if found and found != self._reported_differences:
            self._emit(
                ConsumerDiffers(
                    at=trio.current_time(),
                    route=self.state.name,
                    stream=spec.stream,
                    durable=spec.durable,
                    detail="; ".join(found),
                )
            )
        self._reported_differences = found

    def _report_lifted(self, limits: Sequence[str]) -> None:
        """Log limits that the link has removed from the durable."""
        spec = self._spec
        self._delivery_limit.lifted(limits)
        self._emit(
            ConsumerLimitsRemoved(
                at=trio.current_time(),
                route=self.state.name,
                stream=spec.stream,
                durable=spec.durable,
                detail=" and ".join(limits),
            )
        )

    def _report_pause(self, detail: str | None) -> None:
        """Log that the durable was paused on the server, or resumed."""
        at, route, spec = trio.current_time(), self.state.name, self._spec
        if detail is None:
            self._emit(ConsumerResumed(at=at, route=route, stream=spec.stream, durable=spec.durable))
        else:
            self._emit(ConsumerPaused(at=at, route=route, stream=spec.stream, durable=spec.durable, detail=detail))

    def _take_over(self, messages: Sequence[framing.RawMessage]) -> None:
        """Have the dead letters of messages stored that the consumer does not deliver any more."""
        now, cursor = trio.current_time(), self._hand.cursor
        deliveries, _, _ = self._deliveries.read(self._renamed(messages), cursor, now)
        if self._key_of is not None:
            for delivery in deliveries:
                delivery.key = self._key_of(delivery.raw[0])
        self.keeper.take_over(deliveries)

    def _report_limit_reached(self, count: int, first: int, last: int) -> None:
        """Log that the server gave messages up, and does not report which."""
        self._emit(
            DeliveryLimitReached(
                at=trio.current_time(),
                route=self.state.name,
                stream=self._spec.stream,
                durable=self._spec.durable,
                count=count,
                from_sequence=first,
                to_sequence=last,
            )
        )

    def _other_message(self, delivery: StreamDelivery) -> None:
        self._report_went_back(f"it delivers another message under the sequence {delivery.sequence}")
        self._reset_sequences()

    def _reset_sequences(self) -> None:
        """Forget acks that are owed: they would ack other messages now."""
        self.keeper.route.something_waits()
        self._acks.clear()

    def _report_went_back(self, detail: str) -> None:
        stream = self._spec.stream
        self._emit(StreamWentBack(at=trio.current_time(), route=self.state.name, stream=stream, detail=detail))

    def _report_reset(self) -> None:
        reset = self._hand.take_reset()
        if reset is None:
            return
        stood_at, goes_on_with = reset
        self._emit(
            ConsumerReset(
                at=trio.current_time(),
                route=self.state.name,
                stream=self._spec.stream,
                durable=self._spec.durable,
                from_sequence=stood_at,
                to_sequence=goes_on_with,
            )
        )

    async def _read_clock(self, consumer: PullConsumer) -> None:
        """Learn the server's time before the first value, since a copy expires by the age that its value has there.

        If the consumer can't be checked, this machine's clock is used.
        """
        with suppress(SourceError):
            state = await consumer.check()
            self._hand.lag.clock.set_by(state.time, trio.current_time())

    # --- its messages ---

    def _renamed(self, batch: Sequence[framing.RawMessage]) -> Sequence[framing.RawMessage]:
        """Return a batch with the subjects of the bucket, also of a mirror of another one, or without partitions."""
        if self._bucket:
            return buckets.renamed(batch, self._bucket)
        return without_tokens(batch, self._token) if self._token else batch

    def received(self, batch: Sequence[framing.RawMessage]) -> None:
        """Take over a batch that the link has read: deliveries, and statuses of pull requests."""
        now = trio.current_time()
        keeper, pull_loop = self.keeper, self._pull_loop
        pull_loop.heard(now)
        hand, schedule = self._hand, self._hand.schedule
        longer = 0
        if self._bucket or self._token:
            stored, batch = batch, self._renamed(batch)
            if self._bucket and batch is not stored:
                longer = sum(len(raw[0]) for raw in batch) - sum(len(raw[0]) for raw in stored)
        deliveries, columns, others = self._deliveries.read(batch, hand.cursor, now)
        if keeper.is_over:
            for delivery in deliveries:
                self._acks.nak(delivery.ack_subject, 0)
            return
        answered = False
        for raw in others:
            answered |= pull_loop.read_status(raw)
        accepted, kept = self._payloads.sift(deliveries, batch)
        if kept:
            pull_loop.kept([delivery.raw for delivery in kept])
            deliveries = [*accepted]
            columns = columns_of(deliveries)
        if deliveries:
            if self._key_of is not None:
                for delivery in deliveries:
                    delivery.key = self._key_of(delivery.raw[0])
            alone = len(deliveries) == len(batch)
            size = framing.delivered_size(batch if alone else [delivery.raw for delivery in deliveries])
            size += len(self._token) * len(deliveries) - longer  # the server counts its own subjects
            again = hand.add(deliveries, columns, self._within, self._other_message)
            lag = hand.lag
            lag.received += len(deliveries)
            lag.last_at, lag.last_reply = now, deliveries[-1].ack_subject
            if hand.others.missing and hand.others.seen(now):
                pull_loop.share()
            self.state.received += len(deliveries) - len(again)
            if again:
                self.state.duplicates += len(again)
                cursor, in_hand = hand.cursor, hand.open
                settled = [one for one in again if one.cursor is cursor and one.sequence not in in_hand]
                self._acks.ack([one.ack_subject for one in settled])
                if self._routing.tracing.followed:
                    for one in again:
                        self._routing.tracing.settled_at_once(one.raw, "duplicate")
            came_again = bool(hand.order.lines) and deliveries[-1].deliveries > 1
            pull_loop.count_received(deliveries, size, again=came_again)
        if answered or deliveries:
            # The consumer sends these only in reply to a pull.
            self._retry.succeeded()
            if self._acks.pull_listener is not None:
                self._acks.pull_answered()
        handled = hand.states and hand.in_handler  # by a handler that the route had before a reload
        if keeper.forwards_on_arrival and not handled and (self._lease is None or self._lease.holds(now)):
            # Messages that need not wait are forwarded on arrival, without a turn of the route's own task. So all
            # waiting messages are in `waiting`.
            routing = self._routing
            if not routing.as_it_comes:
                routing.turn.begin()
            while schedule.waiting and routing.is_ready and keeper.forward_some():
                if not routing.as_it_comes and routing.turn.over:
                    break
        if schedule.waiting or schedule.may_begin:
            keeper.route.something_waits()
        # A restarted server may deliver only settled messages, and none of them will be finished and request more.
        pull_loop.look()
        if hand.reset is not None:
            self._report_reset()
