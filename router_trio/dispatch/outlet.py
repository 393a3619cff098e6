"""One destination of a route, at work: new subjects for old tails, and frames into its connection's outbox.

What a subject maps to is remembered, so that a message costs one dictionary look-up; a mapping with `random` is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count
from typing import Protocol

from router_trio import headers, protocol
from router_trio.connection import Connection
from router_trio.dispatch.delivery import Delivery
from router_trio.errors import MappingError, PublishError, RouterError
from router_trio.message import Message
from router_trio.operation import Owner, Runs
from router_trio.routes import Destination
from router_trio.subjects import validate_subject

MAX_REMEMBERED = 16_384
"""Subjects; then the memory starts anew."""

MESSAGE_ID = b"Nats-Msg-Id"
_IDENTIFIED = b"NATS/1.0\r\nNats-Msg-Id: %b%b\r\n\r\n"
EXPECTATIONS = b"\r\nNats-Expected-"

_SUBJECT_AT = len(protocol.publish_prefix(b"")) - 1
"""Where the subject of a prefix begins; it ends before the last space."""

_process = secrets.token_hex(8).encode()
_numbers = count(1)


def new_message_id() -> bytes:
    """An id for a message that has none: no other one has it, in this process or another."""
    return b"%b-%d" % (_process, next(_numbers))


def measure(connection: Connection, size: int) -> None:
    """Raise `PublishError` if headers and payload of `size` bytes are more than the connection's server takes."""
    if size > connection.max_payload:
        raise PublishError(
            f"{size} bytes with headers are more than the max_payload of {connection.max_payload} bytes of "
            f"connection {connection.name!r}",
            reason="too_large",
        )


class Origin(Protocol):
    """What a message came with: who to answer to, and the id of its copies if it has none of its own."""

    @property
    def reply(self) -> bytes:
        """The reply subject, `b""` for none."""

    @property
    def message_id(self) -> bytes | None:
        """None if any new id will do."""


class Outlet:
    """A destination and its connection."""

    def __init__(self, destination: Destination, connection: Connection) -> None:
        self.destination = destination
        self.template = destination.template
        self.connection = connection
        self.outbox = connection.outbox
        self._suffix = destination.id_suffix.encode()
        self.prefixes: dict[bytes, bytes] = {}
        """What is remembered of `prefix_for`."""

    def subject_for(self, subject: bytes) -> bytes:
        """Where a message with this subject goes. Raises `MappingError`."""
        prefix = self.prefixes.get(subject) or self.prefix_for(subject)
        return prefix[_SUBJECT_AT:-1]

    def prefix_for(self, subject: bytes) -> bytes:
        """The start of a frame to where a message with this subject goes. Raises `MappingError`."""
        prefix = protocol.publish_prefix(protocol.wire(self.destination.mapping.apply(protocol.text(subject))))
        if self.destination.mapping.deterministic:
            if len(self.prefixes) >= MAX_REMEMBERED:
                self.prefixes.clear()
            self.prefixes[subject] = prefix
        return prefix

    def forward_core(self, batch: Sequence[protocol.RawMessage], owner: Owner) -> list[tuple[str, str]]:
        """Publish a batch from a core subscription as it is: headers, reply and payload are one untouched tail.

        Returns reason and detail of each message that has no subject here, or is too large.
        """
        failed = []
        frames: list[bytes] = []
        append = frames.append
        prefixes = self.prefixes
        limit = self.connection.max_payload
        for subject, _, header_size, size, tail in batch:
            try:
                prefix = prefixes.get(subject) or self.prefix_for(subject)
            except MappingError as error:
                failed.append(("mapping", str(error)))
                continue
            if size > limit:
                failed.append(("too_large", f"more than the max_payload of {limit} bytes"))
            elif header_size:
                append(b"H" + prefix + tail)
            else:
                append(prefix + tail)
        self.outbox.offer_frames(frames, Runs([owner], [len(frames)]))
        return failed

    def forward(
        self, raw: protocol.RawMessage, owner: Owner, origin: Origin, trace_parent: bytes | None = None
    ) -> None:
        """Publish one raw message to its mapped subject. Raises `MappingError`, or `PublishError` if refused."""
        _, _, header_size, size, tail = raw
        end = len(tail) - 2
        start = end - size
        self._send(
            self.subject_for(raw[0]),
            tail[start : start + header_size],
            tail[start + header_size : end],
            owner,
            origin.message_id,
            trace_parent,
            origin.reply,
        )

    def forward_each(self, deliveries: Sequence[Delivery]) -> list[tuple[Delivery, RouterError]]:
        """Publish raw messages to a stream while connected, each its own owner and origin, in this order.

        Returns those that were refused, and why.
        """
        refused: list[tuple[Delivery, RouterError]] = []
        frames: list[bytes] = []
        owners: list[Delivery] = []
        order = self.outbox.next_order
        suffix, prefixes = self._suffix, self.prefixes
        inbox, limit = self.connection.inbox, self.connection.max_payload
        for delivery in deliveries:
            subject, _, header_size, size, tail = delivery.raw
            trace_parent = None if delivery.trace is None else self.trace(delivery)
            try:
                prefix = prefixes.get(subject) or self.prefix_for(subject)
                start = len(tail) - 2 - size + header_size
                body = tail[start:]
                if header_size:
                    block = self._identified(tail[start - header_size : start], delivery.message_id)
                else:
                    # What most messages of a stream are like.
                    block = _IDENTIFIED % (delivery.message_id or new_message_id(), suffix)
                if trace_parent is not None:
                    block = self._with_parent(block, trace_parent, size - header_size)
                size += len(block) - header_size
                if size > limit:
                    measure(self.connection, size)
            except RouterError as error:
                refused.append((delivery, error))
                continue
            frames.append(b"H%b%b.%d %d %d\r\n%b%b" % (prefix, inbox, order, len(block), size, block, body))
            owners.append(delivery)
            order += 1
        self.outbox.offer_each(frames, owners)
        return refused

    def forward_message(
        self,
        message: Message,
        origin: Message,
        raw: protocol.RawMessage,
        owner: Owner,
        *,
        message_id: bytes | None,
        trace_parent: bytes | None = None,
    ) -> None:
        """Publish what a handler made of `origin`, which came as `raw`. What it left alone is passed on as it came.

        Raises as `forward`, and `SubjectError` for a bad subject.
        """
        target, block, reply = self._addressed(message, origin, raw)
        self._send(target, block, message.payload, owner, message_id, trace_parent, reply)

    def frame(self, message: Message, origin: Message, raw: protocol.RawMessage) -> bytes:
        """The frame of a core publish of what `forward_message` would publish. Raises as that does."""
        body = message.payload
        if not raw[2] and message[2:4] == origin[2:4] and message.subject is origin.subject:
            return self.frame_of(body, raw)
        target, block, reply = self._addressed(message, origin, raw)
        measure(self.connection, len(block) + len(body))
        return protocol.publish(target, body, reply=reply, headers=block)

    def frame_of(self, body: bytes, raw: protocol.RawMessage) -> bytes:
        """The frame of a core publish of a message without headers of which only the payload has changed.

        Raises as `forward`.
        """
        size = len(body)
        if size > self.connection.max_payload:
            measure(self.connection, size)
        prefix = self.prefixes.get(raw[0]) or self.prefix_for(raw[0])
        return b"%b%b%d\r\n%b\r\n" % (prefix, raw[1] and raw[1] + b" ", size, body)

    def _addressed(self, message: Message, origin: Message, raw: protocol.RawMessage) -> tuple[bytes, bytes, bytes]:
        """Subject, header block and reply subject of what a handler made of a message."""
        if message.subject is not origin.subject and message.subject != origin.subject:
            validate_subject(message.subject)
            target = protocol.wire(message.subject)
        else:
            target = self.subject_for(raw[0])
        reply = b""
        if message.reply:
            if message.reply != origin.reply:
                validate_subject(message.reply, what="reply subject")
            reply = protocol.wire(message.reply)
        if message.headers is not origin.headers:
            block = headers.encode(message.headers)
        else:
            block = protocol.header_block(raw) if raw[2] else b""
        return target, block, reply

    def _send(
        self,
        target: bytes,
        block: bytes,
        body: bytes,
        owner: Owner,
        message_id: bytes | None,
        trace_parent: bytes | None,
        reply: bytes,
    ) -> None:
        """Offer one frame to the outbox. Raises `PublishError` (too_large, queue_full)."""
        outbox = self.outbox
        with_ack = self.destination.jetstream
        if with_ack:
            block = self._identified(block, message_id)
            reply = b"%b.%d" % (self.connection.inbox, outbox.next_order)
        if trace_parent is not None:
            block = self._with_parent(block, trace_parent, len(body))
        measure(self.connection, len(block) + len(body))
        outbox.offer(protocol.publish(target, body, reply=reply, headers=block), with_ack=with_ack, owner=owner)

    def trace(self, delivery: Delivery, size: int | None = None) -> bytes | None:
        """Begin the span of a send of `size` bytes, by default those of the message's payload, if it is traced.

        Returns the `traceparent` of what is sent.
        """
        if delivery.trace is None:
            return None
        if size is None:
            size = delivery.raw[3] - delivery.raw[2]
        return delivery.trace.send(self.template, self.connection.name, size)

    def traced(self, raw: protocol.RawMessage, trace_parent: bytes | None) -> bytes:
        """The frame of a core publish of what is addressed already, with another parent."""
        subject, reply, _, _, _ = raw
        block, body = protocol.header_block(raw), protocol.payload(raw)
        if trace_parent is not None:
            block = self._with_parent(block, trace_parent, len(body))
        return protocol.publish(subject, body, reply=reply, headers=block)

    def _with_parent(self, block: bytes, trace_parent: bytes, size: int) -> bytes:
        """The headers of a message with a payload of `size` bytes, with the parent for whoever receives it.

        What would be too large with it goes as it is: nothing fails because it is looked at.
        """
        # Go's header carriers write it with a capital T: what is replaced is the header in any case.
        changed = headers.without(block, b"traceparent:") if block else b""
        changed = headers.replace(changed, b"traceparent", trace_parent)
        return changed if len(changed) + size <= self.connection.max_payload else block

    def _identified(self, block: bytes, message_id: bytes | None) -> bytes:
        """The headers with the id by which a stream knows this copy, and without expectations meant for another one."""
        if not block:
            return _IDENTIFIED % (message_id or new_message_id(), self._suffix)
        if EXPECTATIONS in block:
            block = headers.without(block, EXPECTATIONS[2:])
        own_id = headers.find(block, MESSAGE_ID)
        if own_id is not None and not self._suffix:
            return block
        return headers.replace(block, MESSAGE_ID, (own_id or message_id or new_message_id()) + self._suffix)
