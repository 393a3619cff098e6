"""One destination of a route, at work: new subjects for old tails, and frames into its connection's outbox.

What a subject maps to is remembered, so that a message costs one dictionary look-up; a mapping with `random` is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count

from router_trio import headers, protocol
from router_trio.connection import Connection
from router_trio.errors import MappingError, PublishError
from router_trio.message import Message
from router_trio.pending import Owner
from router_trio.routes import Destination
from router_trio.subjects import validate_subject

MAX_REMEMBERED = 16_384
"""Subjects; then the memory starts anew."""

MESSAGE_ID = b"Nats-Msg-Id"
EXPECTATIONS = b"\r\nNats-Expected-"

_process = secrets.token_hex(8).encode()
_numbers = count(1)


def new_message_id() -> bytes:
    """An id for a message that has none: no other one has it, in this process or another."""
    return b"%b-%d" % (_process, next(_numbers))


class Outlet:
    """A destination and its connection."""

    def __init__(self, destination: Destination, connection: Connection) -> None:
        self.destination = destination
        self.template = destination.template
        self.connection = connection
        self.outbox = connection.outbox
        self._suffix = destination.id_suffix.encode()
        self._remembered: dict[bytes, bytes] = {}

    def subject_for(self, subject: bytes) -> bytes:
        """Where a message with this subject goes. Raises `MappingError`."""
        target = self._remembered.get(subject)
        if target is None:
            target = protocol.wire(self.destination.mapping.apply(protocol.text(subject)))
            if self.destination.mapping.deterministic:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[subject] = target
        return target

    def forward_core(self, batch: Sequence[protocol.RawMessage], owner: Owner) -> list[tuple[str, str]]:
        """Publish a batch from a core subscription as it is: headers, reply and payload are one untouched tail.

        Returns reason and detail of each message that has no subject here.
        """
        failed = []
        frames = []
        subject_for = self.subject_for
        for raw in batch:
            try:
                target = subject_for(raw[0])
            except MappingError as error:
                failed.append(("mapping", str(error)))
                continue
            frames.append((b"HPUB " if raw[2] else b"PUB ") + target + b" " + raw[4])
        self.outbox.offer_frames(frames, owner)
        return failed

    def forward(
        self,
        raw: protocol.RawMessage,
        owner: Owner,
        *,
        message_id: bytes | None = None,
        trace_parent: bytes | None = None,
        with_reply: bool = False,
    ) -> None:
        """Publish one raw message to its mapped subject. Raises `MappingError`, or `PublishError` if refused.

        `message_id` is used if the message has no `Nats-Msg-Id` of its own.
        """
        reply = raw[1] if with_reply else b""
        self.send(
            self.subject_for(raw[0]),
            protocol.header_block(raw),
            protocol.payload(raw),
            owner,
            message_id=message_id,
            trace_parent=trace_parent,
            reply=reply,
        )

    def forward_message(
        self, message: Message, origin: Message, owner: Owner, *, message_id: bytes, trace_parent: bytes | None = None
    ) -> None:
        """Publish what a handler made of `origin`. Raises as `forward`, and `SubjectError` for a bad subject."""
        if message.subject != origin.subject:
            validate_subject(message.subject)
            target = protocol.wire(message.subject)
        else:
            target = self.subject_for(protocol.wire(origin.subject))
        reply = b""
        if message.reply:
            validate_subject(message.reply, what="reply subject")
            reply = protocol.wire(message.reply)
        block = headers.encode(message.headers)
        self.send(
            target, block, message.payload, owner, message_id=message_id, trace_parent=trace_parent, reply=reply
        )

    def send(
        self,
        target: bytes,
        block: bytes,
        body: bytes,
        owner: Owner,
        *,
        message_id: bytes | None,
        trace_parent: bytes | None,
        reply: bytes,
    ) -> None:
        """Offer one frame to the outbox. Raises `PublishError` (too_large, queue_full)."""
        if trace_parent is not None:
            if block:
                # Go's header carriers write it with a capital T: what is replaced is the header in any case.
                block = headers.without(block, b"traceparent:")
            block = headers.replace(block, b"traceparent", trace_parent)
        outbox = self.outbox
        if not self.destination.jetstream:
            frame = protocol.publish(target, body, reply=reply, headers=block)
        else:
            if EXPECTATIONS in block:
                block = headers.without(block, EXPECTATIONS[2:])
            own_id = headers.find(block, MESSAGE_ID) if block else None
            if own_id is None or self._suffix:
                block = headers.replace(block, MESSAGE_ID, (own_id or message_id or new_message_id()) + self._suffix)
            reply = b"%b.%d" % (self.connection.inbox, outbox.next_order)
            frame = protocol.publish(target, body, reply=reply, headers=block)
        if len(block) + len(body) > self.connection.max_payload:
            raise PublishError(
                f"{len(block) + len(body)} bytes with headers are more than the max_payload of "
                f"{self.connection.max_payload} bytes of connection {self.connection.name!r}",
                reason="too_large",
            )
        outbox.offer(frame, with_ack=self.destination.jetstream, owner=owner)
