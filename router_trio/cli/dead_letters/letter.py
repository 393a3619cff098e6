"""A dead letter: what its headers say, and the message that it is made into again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from router_trio.errors import SubjectError
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol import headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.subjects.patterns import WILDCARDS, matches, reserved_namespace, validate_subject

PREFIX = "Router-Dead-Letter-"
REDRIVEN = "Router-Redriven"
"""How often a message was sent again as a dead letter."""

_CONTROL = ControlHeaders()


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of a route, as its stream holds it."""

    message: StoredMessage
    reason: str
    detail: str
    attempts: str
    origin: str
    """The subject on which the message came to the route."""
    from_stream: bool
    """True if it came from a stream, False from a core subscription."""
    time: str
    """When it was given up."""

    @property
    def sequence(self) -> int:
        """Its sequence among the dead letters."""
        return self.message.sequence

    def fields(self) -> dict[str, Any]:
        """Return what a list says of it."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "reason": self.reason,
            "detail": self.detail,
            "attempts": int(self.attempts) if self.attempts.isdecimal() else None,
            "subject": self.origin,
            "size": len(self.message.payload),
        }


def read_letter(message: StoredMessage, route: str) -> Letter | None:
    """Return a message as the dead letter of a route; None if it is none of this route."""
    block = headers.decode(message.headers)
    if block.get(f"{PREFIX}Route") != route:
        return None

    def field(name: str) -> str:
        return block.get(PREFIX + name, "")

    return Letter(
        message,
        field("Reason"),
        field("Detail"),
        field("Attempts"),
        field("Subject"),
        bool(field("Stream")),
        field("Time") or written(message.time_ns),
    )


def written(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as it is written, in UTC."""
    at = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).replace(microsecond=time_ns // 1_000_000 % 1000 * 1000)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def why_not(letter: Letter, sources: Sequence[str], *reserved: str) -> str | None:
    """Return why a dead letter can't go back to its subject, or None.

    Whoever may publish to the stream of the dead letters chooses that subject, and it is published to with the rights
    of the router: so it must be one that the route reads. `sources` are the patterns of those.
    """
    if not letter.origin:
        return f"it has no header {PREFIX}Subject"
    try:
        validate_subject(letter.origin)
    except SubjectError as error:
        return str(error)
    source = next((one for one in sources if matches(one, letter.origin)), None)
    if source is None:
        return f"its subject {letter.origin!r} is none that the route reads ({', '.join(sources)})"
    tokens = source.split(".")
    literal = next((index for index, token in enumerate(tokens) if token in WILDCARDS), len(tokens))
    namespace = reserved_namespace(letter.origin, tokens[:literal], *reserved)
    return (
        None if namespace is None else f"its subject {letter.origin!r} is below {namespace}, reserved for NATS itself"
    )


def header_block(letter: Letter, stream: str, created: int) -> bytes:
    """Return the headers of the message that a dead letter is made into again.

    They are those that it came with, what the dead letter says of its failure, a count, and an id that is the same each
    time: so a stream stores it once, however often it is sent. `created` is when the stream of the dead letters was
    made, in nanoseconds since 1970.
    """
    block = letter.message.headers
    before = headers.find_number(block, REDRIVEN.encode()) or 0
    block = _CONTROL.removed(block)
    block = headers.replace(block, REDRIVEN.encode(), b"%d" % (before + 1))
    return message_ids.replace(block, f"redriven:{stream}:{created}:{letter.sequence}".encode())
