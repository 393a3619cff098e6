"""Routes from a JetStream stream: many in flight, each acked when all its destinations are settled.

`serve` asks for messages on each link, `run` routes them, and what is unsettled outlives the link: its ack is sent on
the next one. A message that the stream delivers again while it is still in hand is not routed again. A destination
that is down stops this route's pulls, and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import trio

from router_trio import headers, protocol
from router_trio.connection import Connection
from router_trio.dispatch.delivery import Delivery
from router_trio.dispatch.retry import SourceRetry
from router_trio.dispatch.routing import Routing
from router_trio.errors import LinkError, SourceError
from router_trio.events import AckFailed, Emit, NakFailed, RouteReady
from router_trio.link import ConsumerSpec, Link, PullConsumer
from router_trio.pull import PullCredit, Verdict
from router_trio.states import PAUSED, RUNNING

PULL_EXPIRES = 30.0

SILENCE = 15.0
"""Seconds without message or heartbeat after which a pull request is taken for lost: three heartbeats."""

LONGEST_NAK_DELAY = 60.0

PROGRESS_SHARE = 1 / 3
"""Of the ack wait: how often the server is told that a message is still being worked on."""


class StreamDelivery(Delivery):
    """A message from a stream. `reply` acks it; the newest delivery's is the one that counts."""

    __slots__ = ("deliveries", "raw", "reply", "sequence", "stream", "timestamp")

    def __init__(self, route: StreamRoute, raw: protocol.RawMessage, received_at: float) -> None:
        super().__init__(route.state, received_at, route.finished)
        self.raw = raw
        self.reply = raw[1]
        # $JS.ACK.[domain.account.]stream.consumer.delivered.stream_sequence.consumer_sequence.timestamp.pending[.token]
        tokens = raw[1].split(b".")
        first = 2 if len(tokens) < 11 else 4
        self.stream = protocol.text(tokens[first])
        self.deliveries = int(tokens[first + 2])
        self.sequence = int(tokens[first + 3])
        self.timestamp = int(tokens[first + 5])

    @property
    def message_id(self) -> bytes:
        """The id of its copies: the same for every delivery of it, another one if the stream was made anew."""
        return b"%b:%d:%d" % (protocol.wire(self.stream), self.sequence, self.timestamp)


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
        self._credit = PullCredit(source.max_in_flight)
        self._open: dict[int, StreamDelivery] = {}
        self._waiting: deque[StreamDelivery] = deque()
        self._to_come_again: set[int] = set()
        self._highest = 0
        self._owed: list[bytes] = []
        self._heard_at = 0.0
        self._lost: SourceError | None = None
        self._arrived = trio.Event()
        self._pull_again = trio.Event()
        self._all_settled = trio.lowlevel.ParkingLot()
        self._closing = trio.Event()

    # --- receiving, on one link ---

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """See `session.Source`: find the consumer, pull from it, and again with growing delay when it is lost."""
        self._send_owed(link)
        while not self._closing.is_set():
            try:
                consumer = await link.open_consumer(self._spec, self._received)
            except SourceError as error:
                self._retry.tried(tried)
                await self._retry.after(error)
                continue
            self._found(consumer)
            self._retry.tried(tried)
            try:
                lost = await self._pull(link, consumer)
            finally:
                consumer.close()
                self.state.enter("starting", "no consumer: the connection is away")
            if lost is not None:
                await self._retry.after(lost)

    def _found(self, consumer: PullConsumer) -> None:
        self._retry.succeeded()
        self._credit.forget()
        self._lost = None
        self._heard_at = trio.current_time()
        if consumer.stream_created != self._spec.stream_created:
            self._spec = replace(self._spec, stream_created=consumer.stream_created, start_sequence=None)
            self._highest = 0
            self._to_come_again.clear()
        self._connection.outbox.counters.succeeded["subscribe"] += 1
        self._emit(
            RouteReady(
                at=trio.current_time(),
                route=self.state.name,
                connection=self._connection.name,
                source=f"{self._spec.stream} ({self._spec.durable})",
            )
        )

    async def _pull(self, link: Link, consumer: PullConsumer) -> SourceError | None:
        """Keep asking for messages until the consumer is lost (says why), or the intake is closed (None)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, link, consumer.ack_wait)
            while self._lost is None and not self._closing.is_set():
                away = self.routing.waits_for
                if away is not None:
                    self.state.enter(PAUSED, f"destination connection {away!r} is not connected")
                    await self._wait_unless_pulling(self.routing.destinations_up)
                    continue
                self.state.enter(RUNNING)
                self._pull_again = trio.Event()
                wanted = self._credit.want(len(self._open))
                if wanted:
                    consumer.pull(wanted, PULL_EXPIRES)
                    self._credit.asked(wanted)
                with trio.move_on_at(self._heard_at + SILENCE):
                    await self._pull_again.wait()
                if self._credit.outstanding and trio.current_time() >= self._heard_at + SILENCE:
                    self._lost = SourceError(
                        f"nothing was heard of the consumer for {SILENCE:g} s", reason="consumer_silent"
                    )
                elif not self._credit.outstanding:
                    self._heard_at = trio.current_time()
            nursery.cancel_scope.cancel()
        return self._lost

    async def _wait_unless_pulling(self, wait_for: object) -> None:
        """Wait for destinations, or for the source's own trouble, whichever comes first."""
        async with trio.open_nursery() as nursery:

            async def destinations() -> None:
                await self.routing.destinations_up()
                nursery.cancel_scope.cancel()

            nursery.start_soon(destinations)
            self._pull_again = trio.Event()
            await self._pull_again.wait()
            nursery.cancel_scope.cancel()

    async def _tell_progress(self, link: Link, ack_wait: float) -> None:
        """Keep what is being worked on from being delivered again."""
        every = ack_wait * PROGRESS_SHARE
        while True:
            await trio.sleep(every)
            old = trio.current_time() - every
            for delivery in tuple(self._open.values()):
                if delivery.received_at <= old:
                    link.in_progress(delivery.reply)

    def _received(self, batch: list[protocol.RawMessage]) -> None:
        now = self._heard_at = trio.current_time()
        for raw in batch:
            if not raw[1].startswith(b"$JS.ACK."):
                self._status(raw)
                continue
            self._credit.received(1)
            delivery = StreamDelivery(self, raw, now)
            in_hand = self._open.get(delivery.sequence)
            if in_hand is not None:
                in_hand.reply = delivery.reply
                self.state.duplicates += 1
                continue
            self._open[delivery.sequence] = delivery
            self._to_come_again.discard(delivery.sequence)
            self._highest = max(self._highest, delivery.sequence)
            self._waiting.append(delivery)
            self.state.received += 1
        if self._waiting:
            self._arrived.set()

    def _status(self, raw: protocol.RawMessage) -> None:
        block = protocol.header_block(raw)
        code, description = headers.status(block)
        unfilled = headers.find(block, b"Nats-Pending-Messages")
        reading = self._credit.status(
            code, description, int(unfilled) if unfilled is not None and unfilled.isdigit() else None
        )
        if reading.verdict is Verdict.REOPEN:
            # If the durable has to be made again, it starts behind what is settled.
            unsettled = min([*self._open, *self._to_come_again], default=self._highest + 1)
            self._spec = replace(self._spec, start_sequence=unsettled)
            self._lost = SourceError(reading.detail, reason=reading.reason)
        if reading.verdict is not Verdict.GO_ON:
            self._pull_again.set()

    # --- routing ---

    async def run(self) -> None:
        """Route what arrives, until cancelled."""
        routing = self.routing
        while True:
            while not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await routing.destinations_up()
            await routing.room()
            await trio.lowlevel.checkpoint()
            # A batch between two looks at the room: less than a queue's usual limit.
            for _ in range(min(len(self._waiting), 256)):
                delivery = self._waiting.popleft()
                try:
                    await routing.route(
                        delivery.raw,
                        delivery,
                        message_id=delivery.message_id,
                        stream=delivery.stream,
                        sequence=delivery.sequence,
                        deliveries=delivery.deliveries,
                        timestamp=delivery.timestamp / 1e9,
                    )
                except trio.Cancelled:
                    # In a handler: nothing was sent, the stream keeps it.
                    self._waiting.appendleft(delivery)
                    raise

    def finished(self, delivery: Delivery) -> None:
        """All destinations of a message are settled: ack or nak it."""
        assert isinstance(delivery, StreamDelivery)
        self._open.pop(delivery.sequence, None)
        if delivery.reason is None:
            self._ack(delivery)
        else:
            limit = self._spec.max_deliver
            if 0 < limit <= delivery.deliveries:
                self.state.dead_lettered += 1
            else:
                self._to_come_again.add(delivery.sequence)
            delay = min(self._source.nak_delay * 2.0 ** min(delivery.deliveries - 1, 16), LONGEST_NAK_DELAY)
            self._nak(delivery, delay)
        if not self._open:
            self._all_settled.unpark_all()
        if self._credit.want(len(self._open)):
            self._pull_again.set()

    def _ack(self, delivery: StreamDelivery) -> None:
        counters = self._connection.outbox.counters
        link = self._connection.link
        try:
            if link is None:
                raise LinkError("not connected", reason="not_connected")
            link.ack(delivery.reply)
            counters.succeeded["ack"] += 1
        except LinkError as error:
            self._owed.append(delivery.reply)
            counters.failed["ack", error.reason] += 1
            self._emit(
                AckFailed(
                    at=trio.current_time(),
                    connection=self._connection.name,
                    route=self.state.name,
                    reason=error.reason,
                )
            )

    def _nak(self, delivery: StreamDelivery, delay: float) -> None:
        counters = self._connection.outbox.counters
        link = self._connection.link
        try:
            if link is None:
                raise LinkError("not connected", reason="not_connected")
            link.nak(delivery.reply, delay)
            counters.succeeded["nak"] += 1
        except LinkError as error:
            counters.failed["nak", error.reason] += 1
            self._emit(
                NakFailed(
                    at=trio.current_time(),
                    connection=self._connection.name,
                    route=self.state.name,
                    reason=error.reason,
                )
            )

    def _send_owed(self, link: Link) -> None:
        """Acks that met no link: the subject of an ack outlives the connection that it came on."""
        owed, self._owed = self._owed, []
        for reply in owed:
            try:
                link.ack(reply)
            except LinkError:
                self._owed.append(reply)

    # --- the end ---

    def close_intake(self) -> None:
        """Ask for nothing more; what is in hand is still routed."""
        self._closing.set()
        self._pull_again.set()

    async def idle(self) -> None:
        """Wait until every message in hand is settled."""
        while self._open:
            await self._all_settled.park()

    def abandon(self) -> int:
        """The end: give back to the stream what was not routed. Nothing of it is lost, so it counts as nothing."""
        for delivery in self._waiting:
            self._nak(delivery, 0)
            self._open.pop(delivery.sequence, None)
        self._waiting.clear()
        return 0
