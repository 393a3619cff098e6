"""Routes from a JetStream stream: many in flight, each acked when all its destinations are settled.

`serve` asks for messages on each link, `run` routes them, and what is unsettled outlives the link: its ack is sent on
the next one. A message that the stream delivers again while it is in hand, or after it was settled, is not routed
again. A destination that is down stops this route's pulls, and nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import trio

from router_trio import headers, protocol
from router_trio.connection import Connection
from router_trio.dispatch.acks import Acks
from router_trio.dispatch.delivery import Delivery
from router_trio.dispatch.position import Position
from router_trio.dispatch.retry import SourceRetry
from router_trio.dispatch.routing import Routing
from router_trio.errors import SourceError
from router_trio.events import Emit, MessageDeadLettered
from router_trio.link import ConsumerSpec, Link, PullConsumer
from router_trio.pull import PullCredit, Verdict
from router_trio.states import PAUSED, RUNNING, STARTING

PULL_EXPIRES = 30.0

SILENCE = 15.0
"""Seconds without message or heartbeat after which a pull request is taken for lost: three heartbeats."""

LONGEST_NAK_DELAY = 60.0

PROGRESS_SHARE = 1 / 3
"""Of the ack wait: how often the server is told that a message is still being worked on."""

BATCH = 256
"""Messages between two looks at the destinations' room: less than a queue's usual limit."""


class StreamDelivery(Delivery):
    """A message from a stream. `ack_subject` acks it; the newest delivery's is the one that counts.

    `number` is the consumer's number of the delivery, `position` the place in the stream that it came from.
    """

    __slots__ = ("_source", "_tokens", "ack_subject", "deliveries", "number", "position", "sequence")

    reply = b""  # the reply subject of a delivery is for us, not for who gets the copies

    def __init__(self, source: StreamRoute, position: Position, raw: protocol.RawMessage, received_at: float) -> None:
        super().__init__(source.state, raw, received_at)
        self.position = position
        self.ack_subject = raw[1]
        # $JS.ACK.[domain.account.]stream.consumer.delivered.stream_sequence.consumer_sequence.timestamp.pending[.token]
        tokens = raw[1].split(b".")
        if len(tokens) >= 11:
            del tokens[2:4]
        self._source = source
        self._tokens = tokens
        self.deliveries = int(tokens[4])
        self.sequence = int(tokens[5])
        self.number = int(tokens[6])

    @property
    def message_id(self) -> bytes:
        """The same for every delivery of the message, another one if the stream was made anew."""
        return b"%b:%b:%b" % (self._tokens[2], self._tokens[5], self._tokens[7])

    def origin(self) -> dict[str, Any]:
        """See `Delivery.origin`."""
        return {
            "stream": protocol.text(self._tokens[2]),
            "sequence": self.sequence,
            "deliveries": self.deliveries,
            "timestamp": int(self._tokens[7]) / 1e9,
        }

    def finished(self) -> None:
        """See `Delivery.finished`."""
        self._source.finished(self)


class StreamRoute:
    """One route from a stream. `serve` receives, on each link; `run` routes, as long as the router lives."""

    def __init__(self, routing: Routing, connection: Connection, emit: Emit) -> None:
        self.routing = routing
        self.state = routing.state
        source = routing.plan.settings.source
        assert source.stream is not None
        assert source.durable is not None
        self._source = source
        self._spec = ConsumerSpec(
            source.stream,
            source.durable,
            source.filter,
            source.ack_wait,
            source.max_deliver,
            # Room for what was handed out on a link that died and is not yet acked on the next one.
            2 * source.max_in_flight,
        )
        self._connection = connection
        self._emit = emit
        self._retry = SourceRetry(routing.state, connection, emit)
        self.first_try_over = self._retry.first_try_over
        self._acks = Acks(routing.state.name, connection, emit)
        self._credit = PullCredit(source.max_in_flight)
        self._position = Position()
        self._patience = 0.0
        self._open: dict[int, StreamDelivery] = {}
        self._in_hand = 0
        self._waiting: deque[StreamDelivery] = deque()
        self._heard_at = 0.0
        self._lost: SourceError | None = None
        self._arrived = trio.Event()
        self._look_again = trio.Event()
        self._all_settled = trio.lowlevel.ParkingLot()
        self._closing = trio.Event()
        self._intake_over = trio.Event()
        self._intake_over.set()
        self._scope = trio.CancelScope()

    # --- receiving, on one link ---

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """See `session.Source`: find the consumer, pull from it, and again with growing delay when it is lost."""
        await self._retry.keep_receiving(self._consume, link, tried, self._closing)

    async def _consume(self, link: Link, tried: trio.Event) -> None:
        """Receive from one consumer until the intake is closed. Raises `SourceError` if it can't be had or is lost."""
        position = self._position
        # Only counts if the durable has to be made again, in the same incarnation of the stream.
        spec = replace(self._spec, stream_created=position.stream_created or None, start_sequence=position.start)
        consumer = await link.open_consumer(spec, self._received)
        self._intake_over = trio.Event()
        try:
            self._found(link, consumer)
            self._retry.tried(tried)
            await self._ask_again(consumer)
            await self._pull(link, consumer)
            # What is under way is still routed: a restart has not to wait for it to be delivered again.
            await consumer.drain()
        finally:
            consumer.close()
            self._intake_over.set()
            self.state.enter(STARTING, "no consumer: the connection is away")

    def _found(self, link: Link, consumer: PullConsumer) -> None:
        self._credit.forget()
        self._lost = None
        # Naks of another process are not known here; its messages come again after their delay.
        self._patience = max(2 * consumer.ack_wait, LONGEST_NAK_DELAY)
        if consumer.stream_created != self._position.stream_created:
            # Another stream of that name. What is in hand of the old one is still routed, but its acks would now be
            # taken for acks of other messages.
            self._position = Position(consumer.stream_created, shared=bool(self._position.stream_created))
            self._open.clear()
            self._acks.forget()
        self._acks.pay(link)
        self._retry.ready(f"{self._spec.stream} ({self._spec.durable})")

    async def _ask_again(self, consumer: PullConsumer) -> None:
        """What went to a link that died, or to a process before this one, is asked for before anything new.

        So it keeps its order, and comes without the ack wait.
        """
        progress, position = consumer.progress, self._position
        if position.opened(progress.deliveries, trio.current_time(), self._patience, in_use=progress.in_use):
            astray = [sequence for sequence in progress.unacked if not position.knows(sequence)]
            if astray:
                await consumer.again(astray)

    async def _pull(self, link: Link, consumer: PullConsumer) -> None:
        """Keep asking for messages until the intake is closed. Raises `SourceError` when the consumer is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, link, consumer.ack_wait)
            for destination in self.routing.connections:
                nursery.start_soon(self._look_when_changed, destination)
            while self._lost is None and not self._closing.is_set():
                self._look_again = trio.Event()
                away = self.routing.waits_for
                if away is None:
                    self.state.enter(RUNNING)
                    self._ask(consumer)
                else:
                    self.state.enter(PAUSED, f"destination connection {away!r} is not connected")
                with trio.CancelScope(deadline=self._silent_at):
                    await self._look_again.wait()
                if self._lost is None and trio.current_time() >= self._silent_at:
                    told = f"nothing was heard of the consumer for {SILENCE:g} s"
                    self._lost = SourceError(told, reason="consumer_silent")
            nursery.cancel_scope.cancel()
        if self._lost is not None:
            raise self._lost

    def _ask(self, consumer: PullConsumer) -> None:
        wanted = self._credit.want(self._in_hand)
        if wanted:
            if not self._credit.outstanding:
                self._heard_at = trio.current_time()
            consumer.pull(wanted, PULL_EXPIRES)
            self._credit.asked(wanted)

    @property
    def _silent_at(self) -> float:
        """When the consumer counts as lost if nothing is heard of it before: never, while it is asked for nothing."""
        return self._heard_at + SILENCE if self._credit.outstanding else math.inf

    async def _look_when_changed(self, destination: Connection) -> None:
        while True:
            await destination.changed()
            self._look_again.set()

    async def _tell_progress(self, link: Link, ack_wait: float) -> None:
        """Keep what is being worked on from being delivered again."""
        every = ack_wait * PROGRESS_SHARE
        while True:
            old = trio.current_time() - every
            for delivery in tuple(self._open.values()):
                if delivery.received_at <= old:
                    link.in_progress(delivery.ack_subject)
            await trio.sleep(every)

    def _received(self, batch: list[protocol.RawMessage]) -> None:
        now = self._heard_at = trio.current_time()
        for raw in batch:
            if raw[1].startswith(b"$JS.ACK."):
                self._take(StreamDelivery(self, self._position, raw, now))
            else:
                self._status(raw)
        if self._waiting:
            self._arrived.set()
        if self._credit.want(self._in_hand):
            # A restarted server may deliver nothing but what is settled: none of it will be finished and ask for more.
            self._look_again.set()

    def _take(self, delivery: StreamDelivery) -> None:
        sequence = delivery.sequence
        self._credit.received(1)
        self._retry.succeeded()
        unsettled = self._position.received(sequence, delivery.number, delivery.received_at, self._patience)
        in_hand = self._open.get(sequence)
        if in_hand is not None:
            in_hand.ack_subject, in_hand.deliveries = delivery.ack_subject, delivery.deliveries
            self.state.duplicates += 1
        elif not unsettled:
            self._acks.ack(delivery.ack_subject)
            self.state.duplicates += 1
        else:
            self._open[sequence] = delivery
            self._in_hand += 1
            self._waiting.append(delivery)
            self.state.received += 1

    def _status(self, raw: protocol.RawMessage) -> None:
        block = protocol.header_block(raw)
        code, description = headers.status(block)
        unfilled = headers.find(block, b"Nats-Pending-Messages")
        reading = self._credit.status(
            code, description, int(unfilled) if unfilled is not None and unfilled.isdigit() else None
        )
        if reading.verdict is Verdict.GO_ON:
            self._retry.succeeded()
            return
        if reading.verdict is Verdict.REOPEN:
            self._lost = SourceError(reading.detail, reason=reading.reason)
        self._look_again.set()

    # --- routing ---

    async def run(self) -> None:
        """Route what arrives, until cancelled or abandoned."""
        with self._scope:
            while True:
                while not self._waiting:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await self.routing.ready()
                await trio.lowlevel.checkpoint()
                await self._route_some()

    async def _route_some(self) -> None:
        routing = self.routing
        for _ in range(min(len(self._waiting), BATCH)):
            # It leaves when it is routed: cancelled in a handler, nothing was sent and it still waits.
            await routing.route(self._waiting[0])
            self._waiting.popleft()
            if routing.waits_for is not None:
                return

    def finished(self, delivery: StreamDelivery) -> None:
        """All destinations of a message are settled: ack or nak it."""
        self._in_hand -= 1
        if delivery.position is self._position:
            del self._open[delivery.sequence]
            self._answer(delivery)
        if not self._in_hand:
            self._all_settled.unpark_all()
        if self._credit.want(self._in_hand):
            self._look_again.set()

    def _answer(self, delivery: StreamDelivery) -> None:
        if delivery.reason is None:
            self._position.settled(delivery.sequence)
            self._acks.ack(delivery.ack_subject)
            return
        if 0 < self._spec.max_deliver <= delivery.deliveries:
            self._give_up(delivery, delivery.reason)
        delay = self._source.nak_delay * 2.0 ** min(delivery.deliveries - 1, 16)
        self._acks.nak(delivery.ack_subject, min(delay, LONGEST_NAK_DELAY))

    def _give_up(self, delivery: StreamDelivery, reason: str) -> None:
        """That was the last delivery: the stream keeps the message, and its consumer is done with it."""
        self.state.dead_lettered += 1
        self._position.given_up(delivery.sequence)
        self._emit(
            MessageDeadLettered(
                at=trio.current_time(),
                route=self.state.name,
                reason=reason,
                stream=self._spec.stream,
                sequence=delivery.sequence,
                deliveries=delivery.deliveries,
            )
        )

    # --- the end ---

    def close_intake(self) -> None:
        """Ask for nothing more; what is in hand or under way is still routed."""
        self._closing.set()
        self._look_again.set()

    async def idle(self) -> None:
        """Wait until nothing more comes, and every message in hand is settled."""
        await self._intake_over.wait()
        while self._in_hand:
            await self._all_settled.park()

    def abandon(self) -> int:
        """The end: give back to the stream what was not routed. Nothing of it is lost, so it counts as nothing."""
        if not self._scope.cancel_called:
            self._scope.cancel()
            for delivery in self._waiting:
                if delivery.position is self._position:
                    self._acks.nak(delivery.ack_subject, 0)
        return 0
