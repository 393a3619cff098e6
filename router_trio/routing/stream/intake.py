"""What comes to a route from its stream: what its consumer says on each link, and the messages that it delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import trio

from router_trio.events import ConsumerDiffers, ConsumerReset, Emit, StreamWentBack
from router_trio.link import ConsumerSpec, Link, PullConsumer
from router_trio.protocol import framing
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import RetryPolicy
from router_trio.routing.resubscribe import SourceRetry
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.filters import Filters
from router_trio.routing.stream.consumer.limits import check_expiry, check_retention, differences
from router_trio.routing.stream.consumer.undelivered import OVERDUE
from router_trio.routing.stream.deliveries import Deliveries
from router_trio.routing.stream.delivery import Source, StreamDelivery, columns_of
from router_trio.routing.stream.in_hand import InHand
from router_trio.routing.stream.pulling.payloads import Payloads
from router_trio.routing.stream.pulling.pull_loop import PullLoop
from router_trio.routing.stream.retrying import Retrying
from router_trio.settings import SourceSettings


class Receiver(Source, Protocol):
    """Whose messages come: the route."""

    routing: Routing
    forwards_on_arrival: bool

    def forward_some(self) -> bool:
        """Forward what may go at once. False if nothing may."""
        ...

    def something_waits(self) -> None:
        """There is something to route."""


class StreamIntake:
    """What one route knows of its consumer, and where the messages of that go first."""

    def __init__(
        self,
        route: Receiver,
        retry: SourceRetry,
        pull_loop: PullLoop,
        spec: ConsumerSpec,
        source: SourceSettings,
        policy: RetryPolicy,
        pending: InHand,
        acks: Acks,
        retrying: Retrying,
        payloads: Payloads,
        emit: Emit,
    ) -> None:
        self._route = route
        self._retry = retry
        self._pull_loop = pull_loop
        self._state = route.routing.state
        self._spec = spec
        self._max_in_flight = source.max_in_flight
        self._policy = policy
        self._pending = pending
        self._acks = acks
        self._retrying = retrying
        self._payloads = payloads
        self._emit = emit
        self._deliveries = Deliveries(route, spec.stream, spec.durable)
        self._ack_wait = source.ack_wait
        self.patience: float = 0.0
        """Seconds within which comes again whatever does: naks of another process are not known here."""
        self.is_over: bool = False
        """True once nobody routes any more: what comes then, on a link that still sends its acks, goes back at once."""
        self._told_differences: list[str] = []
        self.filters: Filters = Filters(self._state.name, spec, emit)

    # --- the consumer ---

    def next_spec(self) -> ConsumerSpec:
        """Return the consumer that is wanted on the next link: it goes on behind what is known of the stream."""
        cursor, others, now = self._pending.cursor, self._pending.others, trio.current_time()
        last_sequence, last_time = cursor.last_known
        return replace(
            self._spec,
            stream_created=cursor.stream_created or None,
            start_sequence=cursor.start,
            last_sequence=last_sequence,
            last_time=last_time,
            others_seen=others.met and not others.take(now),
        )

    @property
    def late(self) -> float:
        """Seconds that a message may be late that was nakked here: if the nak is lost, it comes after the ack wait."""
        return self._ack_wait + OVERDUE

    def returns_after(self, soon: bool) -> float:
        """Return after how many seconds a message that is given back is to come again."""
        return self._policy.initial if soon else self._ack_wait

    def go_by(self, link: Link, consumer: PullConsumer) -> None:
        """A consumer is open on a link: go by what it says, and tell it what could not be told before."""
        pending = self._pending
        self._ack_wait = consumer.ack_wait
        self.patience = max(2 * self._ack_wait, self._policy.longest)
        self._retrying.patience = self.late
        pending.others.ack_wait = self._ack_wait
        self._compare(consumer)
        if consumer.went_back is not None:
            self._tell_went_back(consumer.went_back)
        if consumer.went_back is not None or consumer.stream_created != pending.cursor.stream_created:
            pending.stream_replaced(consumer.stream_created)
            self._reset_sequences()
        # One that takes its place must not begin where the stream does.
        pending.cursor.begin_behind(consumer.progress.passed)
        if not consumer.progress.deliveries:
            pending.order.all_due(trio.current_time())
        self._acks.flush_unsent(link)
        self._acks.renak(link, pending.order.expected())

    def learn(self, stream_created: str, passed: int) -> None:
        """Another process has the lead: see `link.Learn`. If the durable is deleted, the next one begins behind that.

        What shows that the stream is another one than this process knows is for `go_by`.
        """
        pending = self._pending
        if not pending.cursor.stream_created:
            pending.stream_replaced(stream_created)
        if pending.cursor.stream_created == stream_created:
            pending.cursor.begin_behind(passed)

    def _compare(self, consumer: PullConsumer) -> None:
        """Go by what the server's consumer says, and log where the route says otherwise."""
        spec = self._spec
        self._retrying.server_limit = consumer.limits.max_deliver
        if not self._retrying.has_dead_letters:
            check_retention(self._policy, spec, consumer)
        check_expiry(spec, consumer)
        self.filters.compare(consumer.limits.subjects)
        found = differences(spec, consumer, 2 * self._max_in_flight)
        if found and found != self._told_differences:
            self._emit(
                ConsumerDiffers(
                    at=trio.current_time(),
                    route=self._state.name,
                    stream=spec.stream,
                    durable=spec.durable,
                    detail="; ".join(found),
                )
            )
        self._told_differences = found

    def other_message(self, delivery: StreamDelivery) -> None:
        """See `InHand.add`."""
        self._tell_went_back(f"it delivers another message as its {delivery.sequence}")
        self._reset_sequences()

    def _reset_sequences(self) -> None:
        """Acks of what is in hand, or is owed, would now be taken for acks of other messages."""
        self._route.something_waits()
        self._acks.clear()

    def _tell_went_back(self, detail: str) -> None:
        stream = self._spec.stream
        self._emit(StreamWentBack(at=trio.current_time(), route=self._state.name, stream=stream, detail=detail))

    def _succeeded(self) -> None:
        """Something came that the consumer sends only to who has asked for it."""
        self._retry.succeeded()
        self._acks.pull_answered()

    def _tell_moved(self, stood_at: int, goes_on_with: int) -> None:
        self._pending.moved = None
        self._emit(
            ConsumerReset(
                at=trio.current_time(),
                route=self._state.name,
                stream=self._spec.stream,
                durable=self._spec.durable,
                from_sequence=stood_at,
                to_sequence=goes_on_with,
            )
        )

    # --- its messages ---

    def received(self, batch: Sequence[framing.RawMessage]) -> None:
        """See `link.Deliver`."""
        now = trio.current_time()
        route, pull_loop = self._route, self._pull_loop
        pull_loop.heard(now)
        pending, schedule = self._pending, self._pending.schedule
        deliveries, columns, others = self._deliveries.read(batch, pending.cursor, now)
        if self.is_over:
            for delivery in deliveries:
                self._acks.nak(delivery.ack_subject, 0)
            return
        for raw in others:
            if pull_loop.read_status(raw):
                self._succeeded()
        taken = self._payloads.sift(deliveries, batch)
        if taken < len(deliveries):
            pull_loop.kept([delivery.raw for delivery in deliveries[taken:]])
            deliveries = deliveries[:taken]
            columns = columns_of(deliveries)
        if deliveries:
            alone = len(deliveries) == len(batch)
            size = framing.delivered_size(batch if alone else [delivery.raw for delivery in deliveries])
            again = pending.add(deliveries, columns, self.patience, self.other_message)
            if pending.others.missing and pending.others.seen(now):
                pull_loop.share()
            self._state.received += len(deliveries) - len(again)
            if again:
                self._state.duplicates += len(again)
                cursor, in_hand = pending.cursor, pending.open
                settled = [one for one in again if one.cursor is cursor and one.sequence not in in_hand]
                self._acks.ack([one.ack_subject for one in settled])
            came_again = bool(pending.order.lines) and deliveries[-1].deliveries > 1
            pull_loop.count_received(len(deliveries), size, again=came_again)
            self._succeeded()
        if route.forwards_on_arrival:
            # What has to wait for nothing is forwarded while it arrives, without a turn of the route's own task.
            # So all that waits is in `waiting`.
            routing = route.routing
            if not routing.as_it_comes:
                routing.turn.begin()
            while schedule.waiting and routing.is_ready and route.forward_some():
                if not routing.as_it_comes and routing.turn.over:
                    break
        if schedule.waiting or schedule.may_begin:
            route.something_waits()
        # A restarted server may deliver nothing but what is settled: none of it will be finished and ask for more.
        pull_loop.look()
        if pending.moved is not None:
            self._tell_moved(*pending.moved)
