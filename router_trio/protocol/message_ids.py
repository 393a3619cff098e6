"""`Nats-Msg-Id`, by which a stream detects duplicates. Only this module parses and builds it."""

from __future__ import annotations

import re
from typing import NamedTuple

from router_trio.protocol import headers

NAME = "Nats-Msg-Id"
HEADER = b"Nats-Msg-Id"

FRAME = b"H%b%b.%d %d %d\r\nNATS/1.0\r\nNats-Msg-Id: %b%b\r\n\r\n%b"
"""A publish whose only header is its id: prefix, two parts of the reply subject, size of the header block, total size,
two parts of the id, the payload with CRLF."""

ADDED = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")
"""The size of the header block of `FRAME` without the id, in bytes."""

_COPY = re.compile(rb"((.+):([0-9]{1,19}):([0-9]{1,20}))(?:~[0-9a-f]{1,32})?(:dead)?:[A-Za-z0-9_-]{16}", re.DOTALL)

_AGAIN = re.compile(rb"~[0-9a-f]{1,32}(?=(?::dead)?:[A-Za-z0-9_-]{16}\Z)")

_DIGITS = re.compile(rb"~[0-9a-f]{1,32}\Z")

_STORED_AT = re.compile(rb":([0-9]{1,20})(?:\.[0-9]+)?(?:~[0-9a-f]+)?\Z")


class Origin(NamedTuple):
    """The message of a stream that an id of a router was made from. `first` is the part that all its ids have.

    `time_ns` is when the stream stored the message, in nanoseconds since 1970.
    `is_dead`: the id is that of a dead letter, and not of a copy.
    """

    first: bytes
    stream: bytes
    sequence: int
    time_ns: int
    is_dead: bool


def of_position(stream: bytes, sequence: int, time_ns: int) -> bytes:
    """Return the first part of the ids of a message, made of its position in a stream and the time it was stored."""
    return b"%b:%d:%d" % (stream, sequence, time_ns)


def again(first: bytes, digits: str) -> bytes:
    """Return another first part for ids of the same message, which a stream has not seen: with unguessable digits."""
    return b"%b~%b" % (without_digits(first), digits.encode())


def without_digits(first: bytes) -> bytes:
    """Return the first part that `again` was called with."""
    return _DIGITS.sub(b"", first)


def usual(message_id: bytes) -> bytes:
    """Return the id that a copy has unless another client used it first: see `again`."""
    return _AGAIN.sub(b"", message_id)


def origin(message_id: bytes) -> Origin | None:
    """Return the origin of a copy or a dead letter, as its id gives it; None for any other id.

    Anyone who may publish can choose an id.
    """
    found = _COPY.fullmatch(message_id)
    return None if found is None else Origin(found[1], found[2], int(found[3]), int(found[4]), found[5] is not None)


def stored_at(first: bytes) -> int:
    """Return when the message of a first part was stored, in nanoseconds since 1970; 0 if that does not contain it."""
    found = _STORED_AT.search(first)
    return 0 if found is None else int(found[1])


def find(block: bytes) -> bytes:
    """Return the id in a raw header block, `b""` if there is none."""
    return headers.find(block, HEADER) or b""


def replace(block: bytes, message_id: bytes) -> bytes:
    """Return the block with its id replaced, or added."""
    return headers.replace(block, HEADER, message_id)


def remove(block: bytes) -> bytes:
    """Return the block without its id."""
    return headers.without(block, HEADER + b":")
