"""Make the contents of a copy from its message: headers, id, payload.

A copy has no control headers, unless the destination keeps them. Its `Nats-Msg-Id` identifies the copy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import PublishError, reasons
from router_trio.message import Message
from router_trio.protocol import buckets, framing, headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.routing.policy import hops
from router_trio.routing.policy.server_clock import ServerClock
from router_trio.routing.route_plans import Destination

if TYPE_CHECKING:
    from router_trio.expressions.message import Facts
    from router_trio.routing.policy.transform import Transform


def measure(connection: Connection, size: int) -> None:
    """Raise `PublishError` if headers and payload of `size` bytes exceed the max_payload of the connection's server."""
    if size > connection.max_payload:
        raise PublishError(
            f"{size} bytes with headers are more than the max_payload of {connection.max_payload} bytes of "
            f"connection {connection.name!r}",
            reason=reasons.TOO_LARGE,
        )


_control_headers = lru_cache(ControlHeaders)
"""Makes `ControlHeaders` that destinations which keep the same ones share."""


class CopyContents:
    """Makes the contents of copies for one destination."""

    __slots__ = (
        "_connection",
        "_is_stored",
        "_own_ids",
        "_to_bucket",
        "_transform",
        "_wall_clock",
        "control",
        "from_bucket",
        "hops",
        "source_clock",
    )

    def __init__(self, destination: Destination, connection: Connection, transform: Transform | None) -> None:
        self._connection = connection
        self._is_stored = destination.waits_for_puback
        self.hops: hops.Hops | None = destination.hops()
        """Counts the routes that messages pass; None if they are not counted."""
        counted = () if self.hops is None else hops.NAMES
        self.control: ControlHeaders = _control_headers(destination.keep, counted)
        """The headers that are not copied."""
        self._transform = transform
        self._own_ids = destination.own_ids
        self._wall_clock = connection.platform.wall_clock
        self.from_bucket: bool = destination.from_bucket
        """True if a message is an operation of a KV bucket."""
        self._to_bucket = destination.kind.is_bucket
        self.source_clock: ServerClock = ServerClock()
        """The clock of the server that stored the messages."""

    def headers(
        self, block: bytes, first_id: bytes | None, ending: bytes, facts: Facts | None = None, *, begin: bool = False
    ) -> bytes:
        """Return the headers of a copy, given those of the message: without control headers, and with the copy's id.

        A stream identifies a copy by its id. A core publish has an id only if the message had one. `begin`: see
        `counted`. Raises `EvaluationError`, and `PublishError` (`loop`).
        """
        original, carried = block, self.without_control(block)
        counted = carried is not block  # the count is among what is not copied
        if self.from_bucket:
            carried = self.as_operation(carried, block, first_id)
        block = self.transformed(carried, facts)
        if self._is_stored or message_ids.HEADER in block:
            block = self.with_id(block, self.first_id(block, first_id), ending)
        return self.counted(block, original if counted else b"", begin=begin)

    def counted(self, block: bytes, original: bytes, *, begin: bool) -> bytes:
        """Return the header block of a copy with the count of its message, which has the headers `original`.

        A message without a count gets one only if it is to `begin` one. Raises `PublishError` (`loop`) at the limit.
        """
        if self.hops is None:
            return block
        lines = self.hops.lines(original) if original else b""
        if lines or begin or self.hops.each:
            return hops.with_lines(block, lines or hops.FIRST)
        return block

    def transformed(self, block: bytes, facts: Facts | None) -> bytes:
        """Return a header block with the destination's changes. Raises `EvaluationError`."""
        if self._transform is None or facts is None:
            return block
        return self._transform.headers(facts, block, self._connection.max_payload)

    def payload(self, body: bytes, facts: Facts | None) -> bytes:
        """Return the payload of a copy, given that of the message. Raises `EvaluationError`."""
        if self._transform is None or facts is None or (self.from_bucket and buckets.deletes(facts.header_block)):
            return body
        return self._transform.payload(facts, body, self._connection.max_payload)

    def without_control(self, block: bytes) -> bytes:
        """Return a header block without a status, and without control headers that the destination does not keep."""
        block = headers.without_status(block)
        return block if self.control.search(block) is None else self.control.removed(block)

    def as_operation(self, block: bytes, original: bytes, message_id: bytes | None) -> bytes:
        """Return the header block of a copy of an operation, given the one without control headers, and the original.

        In a bucket it is the same operation. `message_id` contains when the message was stored.
        """
        if not original:
            return block
        if not self._to_bucket:
            return buckets.marker_as_purge(block, original)
        stored = message_ids.stored_at(message_id or b"")
        now = self.source_clock.time_ns(trio.current_time(), round(self._wall_clock() * 1e9))
        return buckets.carried(block, now - stored if stored else 0)

    def first_id(self, block: bytes, own: bytes | None) -> bytes | None:
        """Return the first part of the id of a copy; None if nothing identifies the message."""
        return own if self._own_ids else message_ids.find(block) or own

    def with_id(self, block: bytes, first_id: bytes | None, ending: bytes) -> bytes:
        """Return a header block with the id of a copy, or without an id if nothing identifies the message."""
        if first_id is None and not self._is_stored:
            return message_ids.remove(block)
        return message_ids.replace(block, (first_id or self._connection.new_message_id()) + ending)

    def with_parent(self, block: bytes, trace_parent: bytes, size: int) -> bytes:
        """Return the headers of a message with a payload of `size` bytes, with this `traceparent`.

        If the message would be too large with it, return the headers unchanged: no message fails because it is traced.
        """
        # Go writes it with a capital T, so the header is replaced in any case of letters.
        changed = headers.without(block, b"traceparent:") if block else b""
        changed = headers.replace(changed, b"traceparent", trace_parent)
        return changed if len(changed) + size <= self._connection.max_payload else block


def chosen_id(message: Message, origin: Message) -> bytes:
    """Return the id that a handler has set itself, `b""` if it set none or left the original."""
    given = message.headers.get(message_ids.NAME)
    return framing.wire(given) if given and given != origin.headers.get(message_ids.NAME) else b""
