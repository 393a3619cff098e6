"""Where the messages of one destination go: the start of each frame, remembered, so that it costs one look-up.

What makes a subject unusable is found out here: it does not fit the mapping, it is reserved, or it is too long for a
server. What is remembered is short and bounded: see `MAX_REMEMBERED_BYTES`.
"""

from __future__ import annotations

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, reasons
from router_trio.protocol import framing
from router_trio.routing.route_plans import Destination

MAX_REMEMBERED_BYTES = 4 * 1024 * 1024
"""Of one destination's subjects and what they map to; then the memory starts anew."""

LONGEST_REMEMBERED = 512
"""Bytes of a subject, before or after its mapping; a longer one is mapped again for each message.

A control line has room for one that is not longer, unless a sender's reply subject is beside it.
"""

_ENTRY_BYTES = 300
"""About what an entry takes besides its subjects."""


class Address:
    """The subjects of one destination."""

    def __init__(self, destination: Destination, connection: Connection) -> None:
        self._destination = destination
        self._connection = connection
        self._remembered_bytes = 0
        self.prefixes: dict[bytes, bytes] = {}
        """By source subject, what `prefix_for` gave."""
        self.endings: dict[bytes, bytes] = {}
        """By source subject, what `ending_for` gave; for no other subjects than `prefixes`."""

    def subject_for(self, subject: bytes) -> bytes:
        """Return where a message with this subject goes. Raises `MappingError`."""
        prefix = self.prefixes.get(subject)
        return framing.prefixed_subject(prefix) if prefix is not None else self._mapped(subject)

    def prefix_for(self, raw: framing.RawMessage, more: int = 0) -> bytes:
        """Return the start of the frame of a message's copy, whose control line has `more` bytes than the message's.

        Raises `MappingError`, also if the server would not take that line.
        """
        subject, _, _, _, tail = raw
        target = self._mapped(subject)
        if len(target) > LONGEST_REMEMBERED:
            self.check_line(len(target) + 1 + tail.find(b"\r\n") + more)
        prefix = framing.publish_prefix(target)
        if self._destination.mapping.deterministic and max(len(target), len(subject)) <= LONGEST_REMEMBERED:
            self._remember(subject, prefix)
        return prefix

    def ending_for(self, subject: bytes) -> bytes:
        """Return the end of the `Nats-Msg-Id` of a copy of a message with this subject. Raises `MappingError`."""
        ending = self.endings.get(subject)
        if ending is None:
            ending = self._destination.copy_id(self.subject_for(subject))
            if subject in self.prefixes:
                self.endings[subject] = ending
        return ending

    def check_line(self, size: int) -> None:
        """Raise `MappingError` (`too_large`) if the server does not take a control line with so many bytes."""
        limit = self._connection.max_control_line
        if size > limit:
            raise MappingError(
                f"a control line of {size} bytes is more than the {limit} bytes (max_control_line) that the server of "
                f"connection {self._connection.name!r} takes; map to shorter subjects",
                reason=reasons.TOO_LARGE,
            )

    def _mapped(self, subject: bytes) -> bytes:
        return framing.wire(self._destination.subject_for(framing.text(subject)))

    def _remember(self, subject: bytes, prefix: bytes) -> None:
        size = len(subject) + len(prefix) + _ENTRY_BYTES
        if self._remembered_bytes + size > MAX_REMEMBERED_BYTES:
            self._remembered_bytes = 0
            self.prefixes.clear()
            self.endings.clear()
        self._remembered_bytes += size
        self.prefixes[subject] = prefix
