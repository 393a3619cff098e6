"""Make the contents of a copy from its message: headers, id, payload.

It carries no control headers, unless the destination keeps them. Its `Nats-Msg-Id` tells which copy it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router_trio.connection.supervisor import Connection
from router_trio.errors import PublishError, reasons
from router_trio.message import Message
from router_trio.protocol import framing, headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.routing.route_plans import Destination

if TYPE_CHECKING:
    from router_trio.expressions.message import Facts
    from router_trio.routing.policy.transform import Transform


def measure(connection: Connection, size: int) -> None:
    """Raise `PublishError` if headers and payload of `size` bytes are more than the connection's server takes."""
    if size > connection.max_payload:
        raise PublishError(
            f"{size} bytes with headers are more than the max_payload of {connection.max_payload} bytes of "
            f"connection {connection.name!r}",
            reason=reasons.TOO_LARGE,
        )


class CopyContents:
    """The contents of copies for one destination."""

    def __init__(self, destination: Destination, connection: Connection, transform: Transform | None) -> None:
        self._connection = connection
        self._is_stored = destination.waits_for_puback
        self.control: ControlHeaders = ControlHeaders(destination.keep)
        """Headers that are not carried along."""
        self._transform = transform
        self._own_ids = destination.own_ids

    def headers(self, block: bytes, first_id: bytes | None, ending: bytes, facts: Facts | None = None) -> bytes:
        """The headers of a copy of a message that came with `block`: nothing that steers where it goes, and its id.

        A stream knows a copy by its id. A core publish has one only if the message had one.
        """
        block = self.transformed(self.without_control(block), facts)
        if self._is_stored or message_ids.HEADER in block:
            return self.with_id(block, self.first_id(block, first_id), ending)
        return block

    def transformed(self, block: bytes, facts: Facts | None) -> bytes:
        """Return a header block with what the destination sets and removes. Raises `EvaluationError`."""
        if self._transform is None or facts is None:
            return block
        return self._transform.headers(facts, block, self._connection.max_payload)

    def payload(self, body: bytes, facts: Facts | None) -> bytes:
        """Return the payload of a copy of a message that came with this one. Raises `EvaluationError`."""
        if self._transform is None or facts is None:
            return body
        return self._transform.payload(facts, body, self._connection.max_payload)

    def without_control(self, block: bytes) -> bytes:
        """Return a header block without a status, and the control headers that the destination does not take."""
        block = headers.without_status(block)
        return block if self.control.search(block) is None else self.control.removed(block)

    def first_id(self, block: bytes, own: bytes | None) -> bytes | None:
        """Return what the id of a copy begins with; None if nothing identifies the message."""
        return own if self._own_ids else message_ids.find(block) or own

    def with_id(self, block: bytes, first_id: bytes | None, ending: bytes) -> bytes:
        """Return a header block with the id of a copy, or without one if there is nothing to know it by."""
        if first_id is None and not self._is_stored:
            return message_ids.remove(block)
        return message_ids.replace(block, (first_id or self._connection.new_message_id()) + ending)

    def with_parent(self, block: bytes, trace_parent: bytes, size: int) -> bytes:
        """The headers of a message with a payload of `size` bytes, with the parent for whoever receives it.

        What would be too large with it goes as it is: nothing fails because it is looked at.
        """
        # Go's header carriers write it with a capital T: what is replaced is the header in any case.
        changed = headers.without(block, b"traceparent:") if block else b""
        changed = headers.replace(changed, b"traceparent", trace_parent)
        return changed if len(changed) + size <= self._connection.max_payload else block


def chosen_id(message: Message, origin: Message) -> bytes:
    """The id that a handler itself has given to a message, `b""` for none: not the one that came."""
    given = message.headers.get(message_ids.NAME)
    return framing.wire(given) if given and given != origin.headers.get(message_ids.NAME) else b""
