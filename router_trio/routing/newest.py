"""Keep older values of a KV bucket from replacing newer ones in its copies.

A route between buckets sends one message of each key at a time. A redelivered message may still be late: its ack was
lost, and the stream of the copy has forgotten its id. So before a redelivered message is sent, the newest value of its
key is read at the destination.

A stream may have the id of a copy from another client, and then answers as if it had the copy. So a copy whose id its
stream has is read there before it counts as stored, and if it is another message, the copy is sent with another id.

For a bucket with several writers (`last_writer`) this is done for each message, and the stream of the bucket refuses
the copy if the value of its key has changed before it arrives. See `protocol.buckets` for the comparison.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError, MappingError, RouterError, SourceError, reasons
from router_trio.events import BucketConflict, Emit
from router_trio.link import Link, Newest
from router_trio.outbox.operation import Operation
from router_trio.protocol import buckets, framing, headers, message_ids
from router_trio.protocol.buckets import Site, Verdict, Version
from router_trio.routing.delivery import Delivery
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.retry import Failure
from router_trio.routing.policy.server_clock import ServerClock
from router_trio.routing.stream.delivery import StreamDelivery

T = TypeVar("T")

_DIGITS = 8
"""Random bytes in the id of a copy whose usual id its stream has from another client."""


class NewestCheck:
    """Compares the messages of one route with the newest values of their keys, read over the current links."""

    def __init__(self, routing: Routing, here: Connection, emit: Emit) -> None:
        """`here` is the connection of the route's own bucket."""
        self._routing = routing
        self._here = here
        self._emit = emit
        self._wall_clock = here.platform.wall_clock
        self._token_hex = here.platform.token_hex
        self._doubted: dict[tuple[int | None, str], framing.RawMessage] = {}
        """Copies, by sequence and destination, whose ids their streams had already."""
        source = routing.plan.settings.source
        self._stream = source.kind.stream(source) or ""
        self._outlets: Sequence[tuple[int, Outlet]] = [
            (place, one) for place, one in enumerate(routing.outlets) if one.destination.kind.is_bucket
        ]
        self._last_writer = any(one.destination.last_writer for _, one in self._outlets)
        self._site: tuple[Link | None, Site] | None = None
        self._clock_there = ServerClock()
        """The clock of the server that stores the values of other writers."""

    def doubt(self, delivery: Delivery, template: str, operation: Operation) -> bool:
        """Remember a copy whose id its stream has already. Return False if it is for no bucket."""
        if all(one.template != template for _, one in self._outlets):
            return False
        self._doubted[delivery.place_in_stream, template] = framing.published(operation.frame)
        return True

    def _is_stored(self, delivery: StreamDelivery, outlet: Outlet, newest: Newest | None) -> bool:
        """Return True if the newest value of a key is a doubted copy. If it is not, the copy gets another id."""
        sent = self._doubted.pop((delivery.place_in_stream, outlet.template), None)
        if sent is None:
            return False
        block = framing.header_block(sent)
        if (
            newest is not None
            and message_ids.find(newest.headers) == message_ids.find(block)
            and buckets.deletes(newest.headers) == buckets.deletes(block)
            and newest.payload == framing.payload(sent)
        ):
            return True
        delivery.message_id = message_ids.again(delivery.message_id or b"", self._token_hex(_DIGITS))
        return False

    def _send_others(self, delivery: StreamDelivery, stored: Sequence[tuple[int, Outlet]]) -> None:
        """Count copies that are stored, and send those for other destinations."""
        for place, outlet in stored:
            self._routing.state.delivered[outlet.template] += 1
            delivery.copied(place)
        self._routing.forward(delivery)

    def needs(self, delivery: Delivery) -> bool:
        """Return True if a message must be compared before it is sent."""
        if self._last_writer:
            return True
        return delivery.was_tried or (isinstance(delivery, StreamDelivery) and delivery.deliveries > 1)

    async def check_expiry(self) -> None:
        """Raise `SourceError` (`bucket_mismatch`) if a bucket that the route writes to takes no values with a TTL.

        Waits for the first attempt to connect to it. A bucket that can't be looked up is not checked.
        """
        for _, outlet in self._outlets:
            await outlet.connection.first_attempt_over.wait()
            stream = outlet.destination.stream or ""
            state, link = None, outlet.connection.link
            with suppress(LinkError, SourceError):
                state = None if link is None else await link.stream_state(stream)
            if state is not None and state.allow_message_ttl is False:
                raise SourceError(
                    f"values of stream {self._stream!r} may expire one by one, and the bucket of stream {stream!r} on "
                    f"connection {outlet.connection.name!r} refuses such values: set allow_msg_ttl on it, which needs "
                    f"nats-server 2.11: nats stream edit {stream} --allow-msg-ttl",
                    reason=reasons.BUCKET_MISMATCH,
                )

    async def route(self, delivery: Delivery) -> None:
        """Compare a message and send it unless it is out of date. The message fails if the newest value can't be read.

        If the link is lost meanwhile, nothing is sent, and the message waits for the next link.
        """
        routing = self._routing
        routing.trace_if_sampled(delivery)
        if not routing.takes_message(delivery):
            delivery.done()
            return
        assert isinstance(delivery, StreamDelivery), "a bucket is a stream"
        try:
            send = await (self._compared(delivery) if self._last_writer else self._overtaken(delivery))
        except (LinkError, SourceError) as error:
            not_compared(routing, delivery, error)
        else:
            if delivery.out_of_turn:
                delivery.fail(reasons.OUT_OF_TURN)
                delivery.done()
            else:
                send()

    # --- buckets that only the route writes to ---

    async def _overtaken(self, delivery: StreamDelivery) -> Callable[[], None]:
        """Return a function that sends a message to the destinations that do not have a later value of its key."""
        over, stored = [], []
        sequence, time = delivery.place_in_stream, delivery.stored_at
        for place, outlet in self._outlets:
            newest = await _newest(outlet, delivery)
            if self._is_stored(delivery, outlet, newest):
                stored.append((place, outlet))
                continue
            claims = newest is not None and buckets.is_overtaken(self._stream, sequence, time, newest)
            if claims and not await self._is_newest(delivery):
                over.append(place)

        def send() -> None:
            if len(over) == len(self._routing.outlets):
                self._routing.filter_out(delivery, reasons.OLDER)
                delivery.done()
                return
            for place in over:
                delivery.copied(place)
            self._send_others(delivery, stored)

        return send

    async def _is_newest(self, delivery: StreamDelivery) -> bool:
        """Return True if a message is the newest of its key in its own bucket, so that no copy can be of a later one.

        Any client of the destination can publish an id that says otherwise.
        """
        try:
            subject = framing.text(delivery.raw[0])
            newest = await ask(self._here, lambda link: link.newest(self._stream, subject))
        except SourceError as error:
            if error.reason != reasons.PERMISSION_DENIED:
                raise
            return False
        return newest is not None and newest.sequence == delivery.place_in_stream

    # --- buckets with several writers ---

    async def _compared(self, delivery: StreamDelivery) -> Callable[[], None]:
        """Return a function that sends a message, or the newer value of another writer in its place."""
        (_, outlet), *_ = self._outlets
        here = buckets.site_of(self._stream, delivery.stream_created)
        there = await self._destination(outlet)
        block = framing.header_block(delivery.raw)
        copy = buckets.version_of(block, here, delivery.place_in_stream, delivery.stored_at)
        newest = await _newest(outlet, delivery)
        if self._is_stored(delivery, outlet, newest):
            return partial(self._send_others, delivery, self._outlets)
        present = None
        if newest is not None:
            present = buckets.version_of(newest.headers, there, newest.sequence, newest.time_ns)
        verdict = buckets.judge(copy, present, there)

        def send() -> None:
            if verdict is Verdict.ECHO or verdict is Verdict.OLDER:
                self._routing.filter_out(delivery, reasons.ECHO if verdict is Verdict.ECHO else reasons.OLDER)
                delivery.done()
            elif verdict is Verdict.REPLACES:
                contents = outlet.contents
                carried = contents.as_operation(contents.without_control(block), block, delivery.message_id)
                self._put(delivery, outlet, delivery.raw, _as_copy(carried, copy.replacing(present), newest))
            else:
                assert newest is not None, "there is another value"
                assert present is not None, "there is another value"
                self._report(delivery, outlet, copy, present)
                self._put_again(delivery, outlet, newest, present)

        return send

    def _report(self, delivery: StreamDelivery, outlet: Outlet, copy: Version, present: Version) -> None:
        """Count and log a conflict, once for each message."""
        if delivery.was_tried or delivery.deliveries > 1:
            return
        self._routing.state.conflicts += 1
        self._emit(
            BucketConflict(
                at=trio.current_time(),
                route=self._routing.state.name,
                subject=framing.text(delivery.raw[0]),
                stream=self._stream,
                sequence=delivery.place_in_stream,
                connection=outlet.connection.name,
                kept_from=present.site.stream,
                later=round((present.time_ns - copy.time_ns) / 1e9, 6),
            )
        )

    def _put_again(self, delivery: StreamDelivery, outlet: Outlet, newest: Newest, present: Version) -> None:
        """Send the newer value in place of the message, so that the route in the other direction copies it back.

        Otherwise the buckets would stay different if the message was in fact written later, by a clock that is behind.
        """
        now = self._clock_there.time_ns(trio.current_time(), round(self._wall_clock() * 1e9))
        age = now - newest.time_ns
        block = outlet.contents.without_control(newest.headers)
        block = buckets.carried(block, age) if block else block
        raw = framing.published(framing.publish(delivery.raw[0], newest.payload))
        self._put(delivery, outlet, raw, _as_copy(block, present, newest))

    def _put(self, delivery: StreamDelivery, outlet: Outlet, raw: framing.RawMessage, block: bytes) -> None:
        routing = self._routing
        owner = routing.owner_of(delivery, outlet, 0)
        try:
            outlet.forward_with(raw, owner, delivery.message_id or b"", block)
        except RouterError as error:
            routing.not_accepted(error, delivery, outlet)
        delivery.done()

    async def _destination(self, outlet: Outlet) -> Site:
        """Return the bucket that the route writes to, looked up once for each link."""
        link = outlet.connection.link
        if self._site is None or self._site[0] is not link:
            stream = outlet.destination.stream or ""
            try:
                state = await ask(outlet.connection, lambda link: link.stream_state(stream))
            except SourceError as error:
                if error.reason != reasons.PERMISSION_DENIED:
                    raise
                state = None
            if state is not None:
                self._clock_there.set_by(state.time, trio.current_time())
            self._site = link, buckets.site_of(stream, "" if state is None else state.created)
        return self._site[1]


def not_compared(routing: Routing, delivery: Delivery, error: LinkError | SourceError) -> None:
    """Fail a message that can't be compared with what is there. If the link is lost, it waits for the next one."""
    if isinstance(error, LinkError):
        delivery.fail(reasons.OUT_OF_TURN)
    else:
        reason = error.reason if error.reason in _OF_DESTINATIONS else reasons.TIMEOUT
        delivery.fail(reason, Failure(reason, str(error)))
        routing.emit_failure_of(delivery, reason, str(error))
    delivery.done()


_OF_DESTINATIONS = frozenset({reasons.PERMISSION_DENIED, reasons.TIMEOUT, reasons.BAD_ANSWER})


def _as_copy(block: bytes, version: Version, newest: Newest | None) -> bytes:
    """Return a header block with its version, for a key whose value is still `newest` when it is stored."""
    block = headers.replace(block, buckets.ORIGIN, version.header())
    return headers.replace(block, buckets.EXPECTED, b"%d" % (0 if newest is None else newest.sequence))


async def _newest(outlet: Outlet, delivery: StreamDelivery) -> Newest | None:
    """Return the newest value of the key of a message at a destination; None without a value or a mapped key."""
    destination = outlet.destination
    try:
        target = framing.text(outlet.address.subject_for(delivery.raw[0]))
    except MappingError:
        return None  # the message fails with it when it is sent
    stream = destination.stream or ""
    key = target.removeprefix(destination.subject_prefix)
    subject = buckets.prefix_of(buckets.bucket_of(stream)) + key
    return await ask(outlet.connection, lambda link: link.newest(stream, subject))


async def ask(connection: Connection, ask: Callable[[Link], Awaitable[T]]) -> T:
    """Return the answer of the current link of a connection. Raises `LinkError` once that link is known to be lost.

    Earlier, the message would be sent to the same link again, without end.
    """
    link = connection.link
    if link is None:
        await trio.lowlevel.checkpoint()
        raise LinkError("not connected", reason=reasons.NOT_CONNECTED)
    try:
        return await ask(link)
    except LinkError:
        while connection.link is link:
            await connection.changed()
        raise
