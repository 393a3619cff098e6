"""Send to one destination of a route: map subjects, and offer frames to the outbox of its connection.

A copy has no status and no control headers of its message, unless the destination keeps them, and no reply subject of
another connection, of a server or of a router (`subjects.inboxes`). Its `Nats-Msg-Id` identifies the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, PublishError, RouterError, reasons
from router_trio.message import Message
from router_trio.outbox.operation import FrameOwners, Owner, RouteOwner
from router_trio.outbox.outbox import Outbox
from router_trio.protocol import framing, headers, message_ids, schedules
from router_trio.routing.delivery import BatchTracker, Delivery
from router_trio.routing.outlets.address import LONGEST_REMEMBERED, Address
from router_trio.routing.outlets.contents import CopyContents, chosen_id, measure
from router_trio.routing.policy import hops
from router_trio.routing.route_plans import Destination
from router_trio.states import NOT_LOOKED_UP
from router_trio.subjects.patterns import validate_subject

if TYPE_CHECKING:
    from router_trio.expressions.message import Facts
    from router_trio.routing.policy.delay import Delay
    from router_trio.states import DestinationState

_MORE_DIGITS = 24
"""Bytes by which a control line may grow when a message gets headers or another payload, for its two sizes."""

_LONGEST_NUMBER = b".%d" % 2**64
"""The longest part behind the inbox in the reply subject for a PubAck."""

_MORE_WITH_ACK = _MORE_DIGITS + len(_LONGEST_NUMBER) + 1
"""`_MORE_DIGITS` plus the reply subject for a PubAck, without the inbox."""


_COUNTED_FRAME = message_ids.FRAME.replace(b"\r\n\r\n", b"\r\n%b\r\n" % hops.FIRST)
"""`message_ids.FRAME` of messages that begin to be counted."""

_ADDED_TO_COUNT = message_ids.ADDED + len(hops.FIRST)

_MORE_IN_STREAM = 1024
"""Bytes that a copy in a stream may have besides the headers and the payload of its message: its id, and its count."""

_MORE_WITH_HOP = len(headers.FIRST_LINE) + len(hops.FIRST) + 2
"""Bytes by which headers and payload may grow when a message begins to be counted."""


class Origin(Protocol):
    """The origin of a message: its reply subject, and the id of its copies if the message has none."""

    @property
    def reply(self) -> bytes:
        """The reply subject, `b""` for none."""
        ...

    @property
    def message_id(self) -> bytes | None:
        """The id; None if any new id will do."""


class OutletBreaker(Protocol):
    """The circuit breaker of a destination, with the methods that senders call."""

    @property
    def closed(self) -> bool:
        """Return True if messages are sent as without a breaker."""
        ...

    @property
    def is_silent(self) -> bool:
        """Return True if the destination has not answered for long, as far as is known."""
        ...

    def admits(self, now: float) -> bool:
        """Return True if a message may be sent there."""
        ...

    def follow(self, delivery: Delivery, copy: int) -> RouteOwner:
        """Record that a message is sent there. Return the owner of its operation."""
        ...

    def spare(self, reason: str) -> None:
        """Record that a probe was not sent after all, for this reason. Another message may be the probe."""


class Outlet:
    """Sends to one destination over its connection."""

    __slots__ = (
        "_carries_reply",
        "_delay",
        "_never_replied_to",
        "_puback_from",
        "_state",
        "_transform",
        "address",
        "breaker",
        "changes",
        "connection",
        "contents",
        "destination",
        "outbox",
        "template",
        "waits_for_puback",
    )

    def __init__(
        self,
        destination: Destination,
        connection: Connection,
        breaker: OutletBreaker | None = None,
        state: DestinationState | None = None,
    ) -> None:
        """`state` is asked whether the stream keeps schedules; by default it is taken for granted."""
        self.destination: Destination = destination
        self.template: str = destination.template
        self.connection: Connection = connection
        self.outbox: Outbox = connection.outbox
        self.address: Address = Address(destination, connection)
        transform = destination.transform()
        self.contents: CopyContents = CopyContents(destination, connection, transform)
        self._transform = transform
        self.changes: bool = transform is not None
        """True if copies differ from the message in more than the subject."""
        self._puback_from = destination.stream or (destination.route, self.template)
        self.waits_for_puback: bool = destination.waits_for_puback
        """True if a publish is settled by its PubAck. An attribute, since it is read for each message."""
        self._carries_reply = destination.carries_reply
        self._delay = destination.delays()
        self._state = state
        self._never_replied_to = destination.never_replied_to
        self.breaker: OutletBreaker | None = breaker
        """The breaker of the destination, if it has one."""

    def forward_core(self, batch: Sequence[framing.RawMessage], owner: BatchTracker) -> list[tuple[int, str, str]]:
        """Publish a batch from a core subscription; messages without headers and reply keep their bytes unchanged.

        Return number, reason and detail of each message that has no subject here, or is too large.
        """
        refused: list[tuple[int, str, str]] = []
        frames: list[bytes] = []
        prefixes = self.address.prefixes
        limit = self.connection.max_payload
        for number, raw in enumerate(batch):
            subject, reply, header_size, size, tail = raw
            try:
                prefix = prefixes.get(subject) or self.address.prefix_for(raw)
                if header_size or reply:
                    frames.append(self.carried(raw, prefix))
                elif size > limit:
                    measure(self.connection, size)
                else:
                    frames.append(prefix + tail)
            except (MappingError, PublishError) as error:
                refused.append((number, error.reason, str(error)))
        self.count(frames)
        first = self.outbox.offer_frames(frames, FrameOwners([owner], [len(frames)]))
        owner.offered(first, 0)
        for offered_before, (number, _, _) in enumerate(refused):
            owner.offered(first + number - offered_before, number + 1)
        return refused

    def count(self, frames: list[bytes]) -> None:
        """Begin to count the hops of one of these core publishes, another one each time, or of all: see `hops`."""
        if self.contents.hops is not None and frames:
            for index in self.contents.hops.chosen(len(frames)):
                frames[index] = self.counted(frames[index])

    def counted(self, frame: bytes) -> bytes:
        """Return the frame of a core publish with its first hop; unchanged if it has a count, or has no room for it."""
        subject, reply, _, size, _ = raw = framing.published(frame)
        block = framing.header_block(raw)
        if not self._has_room(subject, reply, size) or hops.is_counted(block):
            return frame
        return framing.publish(subject, framing.payload(raw), reply, hops.with_lines(block, hops.FIRST))

    def _has_room(self, subject: bytes, reply: bytes, size: int) -> bool:
        """Return True if a publish may get a first hop: no message is too large because it is counted."""
        return size + _MORE_WITH_HOP <= self.connection.max_payload and len(subject) + len(reply) <= LONGEST_REMEMBERED

    def _by_count(self, counting: hops.Hops, deliveries: Sequence[Delivery]) -> list[tuple[bool, Sequence[Delivery]]]:
        """Split messages that are sent together: True for those that begin to be counted, one of them or all.

        No message is too large because it is counted.
        """
        most = self.connection.max_payload - _MORE_IN_STREAM
        if counting.each:
            return [(max(delivery.raw[3] for delivery in deliveries) <= most, deliveries)]
        place = counting.sample.choose(len(deliveries))
        if deliveries[place].raw[3] > most or not counting.begins(0):
            return [(False, deliveries)]
        after = place + 1
        return [(False, deliveries[:place]), (True, deliveries[place:after]), (False, deliveries[after:])]

    def _begins(self, subject: bytes, reply: bytes, size: int) -> bool:
        """Return True if a message that is sent by itself should begin to be counted."""
        counting = self.contents.hops
        return counting is not None and counting.begins() and self._has_room(subject, reply, size)

    def carried(self, raw: framing.RawMessage, prefix: bytes) -> bytes:
        """Return the frame of a core publish of a message with headers or a reply subject, as far as they are copied.

        Raises `MappingError` or `PublishError` (`too_large`).
        """
        subject, reply, header_size, size, tail = raw
        if reply:
            if self._carries_reply and not reply.startswith(self._never_replied_to):
                self.address.check_line(len(prefix) - len(b"PUB ") + tail.find(b"\r\n") + _MORE_DIGITS)
            else:
                tail, reply = tail[len(reply) + 1 :], b""
        if not header_size:
            measure(self.connection, size)
            return prefix + tail
        start = len(tail) - 2 - size
        end = start + header_size
        if (
            self.contents.control.search(tail, start, end) is None
            and tail.find(message_ids.HEADER, start, end) < 0
            and tail.startswith(headers.FIRST_LINE, start)
        ):
            measure(self.connection, size)
            return b"H" + prefix + tail
        block = self.contents.headers(tail[start:end], None, self.address.ending_for(subject))
        body = tail[end:-2]
        measure(self.connection, len(block) + len(body))
        return framing.publish(framing.prefixed_subject(prefix), body, reply=reply, headers=block)

    def frame_by_content(self, raw: framing.RawMessage, facts: Facts) -> bytes:
        """Return the frame of a core publish of a message that the destination `changes`.

        Raises `MappingError`, `PublishError` or `EvaluationError`.
        """
        assert self._transform is not None
        subject, reply, header_size, _, _ = raw
        if not header_size and not self._transform.changes_headers:
            return self.frame_of(self._transform.payload(facts, framing.payload(raw), self.connection.max_payload), raw)
        if subject not in self.address.prefixes:
            self.address.prefix_for(raw, _MORE_DIGITS)  # fills the cache
        target, block, body = self._copy_of(raw, None, facts)
        reply = self._carried_reply(reply)
        self._check_size(target, block, len(body), reply)
        return framing.publish(target, body, reply=reply, headers=block)

    def _carried_reply(self, reply: bytes) -> bytes:
        """Return the reply subject of a copy, given that of the message."""
        return reply if self._carries_reply and not reply.startswith(self._never_replied_to) else b""

    def _copy_of(
        self, raw: framing.RawMessage, message_id: bytes | None, facts: Facts | None, *, begin: bool = False
    ) -> tuple[bytes, bytes, bytes]:
        """Return subject, header block and payload of the copy of a message. `begin`: see `CopyContents.counted`."""
        subject, _, header_size, size, tail = raw
        end = len(tail) - 2
        start = end - size
        target = self.address.subject_for(subject)
        block, body = tail[start : start + header_size], tail[start + header_size : end]
        block = self.contents.headers(block, message_id, self.address.ending_for(subject), facts, begin=begin)
        return target, block, self.contents.payload(body, facts)

    def forward(
        self,
        raw: framing.RawMessage,
        owner: Owner,
        origin: Origin,
        trace_parent: bytes | None = None,
        facts: Facts | None = None,
    ) -> int | None:
        """Publish one raw message to its mapped subject. Return its number if it gets a PubAck.

        Raises `MappingError`, `PublishError` if it is refused, and with `facts` `EvaluationError`.
        """
        target, block, body = self._copy_of(raw, origin.message_id, facts, begin=self._begins(raw[0], raw[1], raw[3]))
        reply = self._carried_reply(origin.reply)
        return self._send(target, block, body, owner, trace_parent, reply, facts=facts)

    def forward_each(self, deliveries: Sequence[Delivery]) -> list[tuple[Delivery, RouterError]]:
        """Publish raw messages to a stream while connected, each its own owner and origin, in this order.

        There is at least one. Return the refused messages, each with its error.

        Fast path of `forward`; held equal by
        test_both_ways_of_streams.py::test_messages_of_a_stream_are_forwarded_as_they_would_be_one_by_one, worth 370
        instructions a message
        (tests/performance/test_fast_paths.py::test_messages_of_a_stream_that_are_forwarded_together).
        """
        refused: list[tuple[Delivery, RouterError]] = []
        frames: list[bytes] = []
        owners: list[Delivery] = []
        first = order = self.outbox.take_numbers(len(deliveries))
        prefixes, endings = self.address.prefixes, self.address.endings
        inbox, limit = self.connection.inbox, self.connection.max_payload
        counting = self.contents.hops
        parts = [(False, deliveries)]
        if counting is not None:
            counting.sample.uncounted += len(deliveries) + hops.A_READ  # `begins`, without a call for most messages
            if counting.each or counting.sample.uncounted >= hops.EVERY:
                parts = self._by_count(counting, deliveries)
        for begin, part in parts:
            form, more = (_COUNTED_FRAME, _ADDED_TO_COUNT) if begin else (message_ids.FRAME, message_ids.ADDED)
            for delivery in part:
                raw = delivery.raw
                subject, _, header_size, size, tail = raw
                try:
                    prefix = prefixes.get(subject) or self.address.prefix_for(raw, len(inbox) + _MORE_WITH_ACK)
                    ending = endings.get(subject) or self.address.ending_for(subject)
                    message_id = delivery.message_id or self.connection.new_message_id()
                    if header_size or delivery.trace is not None:
                        start = len(tail) - 2 - size + header_size
                        block = self.contents.headers(
                            tail[start - header_size : start], message_id, ending, begin=begin
                        )
                        trace_parent = self.trace(delivery)
                        if trace_parent is not None:
                            block = self.contents.with_parent(block, trace_parent, size - header_size)
                        size += len(block) - header_size
                        if size > limit:
                            measure(self.connection, size)
                        frame = b"H%b%b.%d %d %d\r\n%b%b" % (
                            prefix, inbox, order, len(block), size, block, tail[start:]
                        )  # fmt: skip
                    else:
                        # The case of most messages of a stream, in one expression.
                        added = len(message_id) + len(ending) + more
                        if size + added > limit:
                            measure(self.connection, size + added)
                        body = tail[-2 - size :]
                        frame = form % (
                            prefix, inbox, order, added, size + added, message_id, ending, body
                        )  # fmt: skip
                except RouterError as error:
                    refused.append((delivery, error))
                    continue
                frames.append(frame)
                owners.append(delivery)
                order += 1
        self.outbox.offer_each(first, frames, owners, self._puback_from)
        return refused

    def forward_message(
        self,
        message: Message,
        origin: Message,
        raw: framing.RawMessage,
        owner: Owner,
        *,
        message_id: bytes | None,
        trace_parent: bytes | None = None,
        facts: Facts | None = None,
    ) -> None:
        """Publish a message that a handler returned for `origin`, whose raw form is `raw`.

        Parts that the handler left unchanged are copied from `raw`.

        Raises as `forward`, and `SubjectError` for a bad subject.
        """
        target, block, reply = self._addressed(message, origin, raw, message_id, facts, begin=True)
        body = self.contents.payload(message.payload, facts)
        mapped = message.subject == origin.subject
        self._send(target, block, body, owner, trace_parent, reply, mapped=mapped, facts=facts)

    def forward_with(
        self,
        raw: framing.RawMessage,
        owner: Owner,
        message_id: bytes,
        block: bytes,
        due_ns: int | None = None,
        target: bytes | None = None,
    ) -> None:
        """Publish one raw message with this header block, in which the id of the copy begins with `message_id`.

        `due_ns` is when a schedule is due, in nanoseconds since 1970. `target` replaces the mapped subject. Raises as
        `forward`.
        """
        target = target or self.address.subject_for(raw[0])
        block = message_ids.replace(block, message_id + self.destination.copy_id(target))
        self._send(target, block, framing.payload(raw), owner, None, b"", due_ns=due_ns)

    def frame(self, message: Message, origin: Message, raw: framing.RawMessage) -> bytes:
        """Return the frame of a core publish of what `forward_message` would publish. Raises as that does."""
        body = message.payload
        target, block, reply = self._addressed(message, origin, raw, None)
        self._check_size(target, block, len(body), reply)
        return framing.publish(target, body, reply=reply, headers=block)

    def frame_of(self, body: bytes, raw: framing.RawMessage) -> bytes:
        """Return the frame of a core publish of a message without headers, with only its payload changed.

        As `frame`, for `HandlerBatch.handle_each`, whose tests hold it equal. Raises as `forward`.
        """
        prefix = self.address.prefixes.get(raw[0]) or self.address.prefix_for(raw, _MORE_DIGITS)
        size = len(body)
        if size > self.connection.max_payload:
            measure(self.connection, size)
        reply = raw[1]
        if reply:
            reply = reply + b" " if self._carried_reply(reply) else b""
            self.address.check_line(len(prefix) - len(b"PUB ") + len(reply) + _MORE_DIGITS)
        return b"%b%b%d\r\n%b\r\n" % (prefix, reply, size, body)

    def _addressed(
        self,
        message: Message,
        origin: Message,
        raw: framing.RawMessage,
        message_id: bytes | None,
        facts: Facts | None = None,
        *,
        begin: bool = False,
    ) -> tuple[bytes, bytes, bytes]:
        """Return subject, header block and reply subject of a message that a handler returned.

        It has the count of the message that the handler got. `begin`: see `CopyContents.counted`.
        """
        if message.subject is not origin.subject and message.subject != origin.subject:
            target = self._target(message.subject, origin)
        else:
            target = self.address.subject_for(raw[0])
        reply = b""
        if message.reply and message.reply != origin.reply:
            validate_subject(message.reply, what="reply subject")
            reply = framing.wire(message.reply)
        elif message.reply:
            reply = self._carried_reply(framing.wire(message.reply))
        chosen = b""
        if message.headers is not origin.headers:
            block = hops.without(headers.encode(self.contents.control.removed_from(message.headers, origin.headers)))
            chosen = chosen_id(message, origin)  # after `encode`, which checks the headers
        else:
            block = self.contents.without_control(framing.header_block(raw)) if raw[2] else b""
        if self.contents.from_bucket:
            block = self.contents.as_operation(block, framing.header_block(raw), message_id)
        block = self.contents.transformed(block, facts)
        if self.waits_for_puback or message_ids.HEADER in block:
            block = self.contents.with_id(
                block, chosen or self.contents.first_id(block, message_id), self.destination.copy_id(target)
            )
        begin = begin and self._begins(target, reply, len(block) + len(message.payload))
        if raw[2] or begin:
            block = self.contents.counted(block, framing.header_block(raw), begin=begin)
        return target, block, reply

    def _target(self, subject: str, origin: Message) -> bytes:
        """Return the subject that a handler sends to. Raises `MappingError` for a server's or a router's own subjects.

        An answer to the one who asked may go to the inbox of any other client.
        """
        subject = self.destination.subject_prefix + subject
        validate_subject(subject)
        target = framing.wire(subject)
        if subject != origin.reply or target.startswith(self._never_replied_to):
            self.destination.check_reserved(subject)
        return target

    def _send(
        self,
        target: bytes,
        block: bytes,
        body: bytes,
        owner: Owner,
        trace_parent: bytes | None,
        reply: bytes,
        *,
        mapped: bool = True,
        facts: Facts | None = None,
        due_ns: int | None = None,
    ) -> int | None:
        """Offer one frame to the outbox. `mapped` is False if `target` does not result from the mapping.

        Returns its number if it gets a PubAck. Raises `MappingError`, `PublishError` (too_large, queue_full), and
        `EvaluationError` for a copy without a delay.
        """
        if trace_parent is not None:
            block = self.contents.with_parent(block, trace_parent, len(body))
        if self._delay is not None:
            target, block = self._schedule_of(target, block, self._delay, facts, due_ns)
            mapped = True
        if not self.waits_for_puback:
            self._check_size(target, block, len(body), reply)
            self.outbox.offer(framing.publish(target, body, reply=reply, headers=block), owner=owner)
            return None
        inbox = self.connection.inbox
        self._check_size(target, block, len(body), inbox + _LONGEST_NUMBER)
        puback_from = self._puback_from if mapped else self.destination.stream
        _, order = self.outbox.offer_with_ack(target, body, block, inbox, owner=owner, puback_from=puback_from)
        return order

    @property
    def awaits_lookup(self) -> bool:
        """True until it is known whether the stream of this destination keeps schedules, if it needs them."""
        return self._state is not None and self._state.awaits_lookup

    async def looked_up(self) -> None:
        """Wait until that is known."""
        if self._state is not None:
            await self.connection.destinations.looked_up(self._state)

    def _schedule_of(
        self, target: bytes, block: bytes, delay: Delay, facts: Facts | None, due_ns: int | None
    ) -> tuple[bytes, bytes]:
        """Return the subject and the header block of the schedule of a copy, by default due after its delay.

        Raises `PublishError` (schedules_refused) unless its stream is known to keep schedules, since a stream that
        deletes or ignores them acks them all the same.
        """
        if self._state is not None and self._state.loses_schedules is not None:
            raise PublishError(self._state.loses_schedules, reason=reasons.SCHEDULES_REFUSED)
        if due_ns is None:
            due_ns = delay.due_ns(facts, int(self.connection.platform.wall_clock() * 1e9))
        subject = b"%b.%b" % (delay.prefix, schedules.token(message_ids.find(block)).encode())
        return subject, schedules.scheduled(block, due_ns, target)

    def _check_size(self, target: bytes, block: bytes, size: int, reply: bytes) -> None:
        measure(self.connection, len(block) + size)
        self.address.check_line(framing.control_line_size(target, reply, len(block), size))

    def trace(self, delivery: Delivery, size: int | None = None) -> bytes | None:
        """Begin the span of a send of `size` bytes, by default the size of the payload, if the message is traced.

        Returns the `traceparent` of what is sent.
        """
        if delivery.trace is None:
            return None
        if size is None:
            size = delivery.raw[3] - delivery.raw[2]
        return delivery.trace.send(self.template, self.connection.name, size)

    def traced(self, raw: framing.RawMessage, trace_parent: bytes | None) -> bytes:
        """Return the frame of a core publish of an addressed message, with this `traceparent`."""
        subject, reply, _, _, _ = raw
        block, body = framing.header_block(raw), framing.payload(raw)
        # A control line that may have the maximum length is not made longer.
        if trace_parent is not None and len(subject) <= LONGEST_REMEMBERED:
            block = self.contents.with_parent(block, trace_parent, len(body))
        return framing.publish(subject, body, reply, block)


def is_healthy(connection: Connection, breaker: OutletBreaker | None, to: DestinationState) -> bool:
    """Return True if a destination is connected, and not known to refuse. An open breaker decides when to try it."""
    if not connection.connected:
        return False
    if breaker is not None and not breaker.closed:
        return breaker.admits(trio.current_time())
    return to.trouble is None or to.trouble == NOT_LOOKED_UP
