"""Map source subjects to the subjects of one destination, and cache the start of each frame.

Unusable subjects are detected here: those that do not fit the mapping, are reserved, or are too long for the server.
The cache is bounded: see `MAX_REMEMBERED_BYTES`.
"""

from __future__ import annotations

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, reasons
from router_trio.protocol import framing
from router_trio.routing.route_plans import Destination

MAX_REMEMBERED_BYTES = 4 * 1024 * 1024
"""Bytes of one destination's cached subjects and their mappings; beyond that the cache is cleared."""

LONGEST_REMEMBERED = 512
"""Bytes of the longest cached subject, before and after its mapping; a longer one is mapped again for each message.

A control line has room for a subject of this length, unless it also holds a sender's reply subject.
"""

_ENTRY_BYTES = 300
"""Approximate bytes of an entry in addition to its subjects."""


class Address:
    """The subjects of one destination."""

    __slots__ = (
        "_connection",
        "_destination",
        "_remembered_bytes",
        "endings",
        "prefixes",
    )

    def __init__(self, destination: Destination, connection: Connection) -> None:
        self._destination = destination
        self._connection = connection
        self._remembered_bytes = 0
        self.prefixes: dict[bytes, bytes] = {}
        """The results of `prefix_for`, by source subject."""
        self.endings: dict[bytes, bytes] = {}
        """The results of `ending_for`, by source subject; only for subjects in `prefixes`."""

    def subject_for(self, subject: bytes) -> bytes:
        """Return the destination's subject for a message with this subject. Raises `MappingError`."""
        prefix = self.prefixes.get(subject)
        if prefix is not None:
            return framing.prefixed_subject(prefix)
        target = self._mapped(subject)
        self._remember(subject, target)
        return target

    def prefix_for(self, raw: framing.RawMessage, more: int = 0) -> bytes:
        """Return the start of the frame of a copy, whose control line may be `more` bytes longer than the message's.

        Raises `MappingError`, also if the server would not accept that line.
        """
        subject, _, _, _, tail = raw
        target = self._mapped(subject)
        if len(target) > LONGEST_REMEMBERED:
            self.check_line(len(target) + 1 + tail.find(b"\r\n") + more)
        return self._remember(subject, target)

    def ending_for(self, subject: bytes) -> bytes:
        """Return the end of the `Nats-Msg-Id` of a copy of a message with this subject. Raises `MappingError`."""
        ending = self.endings.get(subject)
        if ending is None:
            ending = self._destination.copy_id(self.subject_for(subject))
            if subject in self.prefixes:
                self.endings[subject] = ending
        return ending

    def check_line(self, size: int) -> None:
        """Raise `MappingError` (`too_large`) if the server does not accept a control line of `size` bytes."""
        limit = self._connection.max_control_line
        if size > limit:
            raise MappingError(
                f"a control line of {size} bytes is more than the {limit} bytes (max_control_line) that the server of "
                f"connection {self._connection.name!r} takes; map to shorter subjects",
                reason=reasons.TOO_LARGE,
            )

    def _mapped(self, subject: bytes) -> bytes:
        return framing.wire(self._destination.subject_for(framing.text(subject)))

    def _remember(self, subject: bytes, target: bytes) -> bytes:
        """Return the start of the frame for a target, and remember it, unless it is long or drawn at random."""
        prefix = framing.publish_prefix(target)
        if not self._destination.mapping.deterministic or max(len(target), len(subject)) > LONGEST_REMEMBERED:
            return prefix
        size = len(subject) + len(prefix) + _ENTRY_BYTES
        if self._remembered_bytes + size > MAX_REMEMBERED_BYTES:
            self._remembered_bytes = 0
            self.prefixes.clear()
            self.endings.clear()
        self._remembered_bytes += size
        self.prefixes[subject] = prefix
        return prefix
