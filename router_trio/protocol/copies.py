"""Messages that a server has copied from another stream: what they were made of, and the ids of their own copies.

The server writes where a message was copied from into a header, as the last line of that name. A publisher may have
put such lines into the original, so earlier ones are ignored, and in a stream that copies no other the header means
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from router_trio.protocol.framing import LAST_SEQUENCE, RawMessage, header_block, payload

_LINE = b"\r\nNats-Stream-Source:"
_DIGITS = len(str(LAST_SEQUENCE))
_NOTATION = re.compile(rb"partition\((0*)")


class Original(NamedTuple):
    """The place of the original of a copied message: its stream and its sequence there.

    `transform` is how the server was to change the subject, `content` the rest of the line: the original subject, and
    from nats-server 2.15 on a hash of the time at which the stream was created. `at` is where the line begins.
    """

    stream: bytes
    sequence: int
    transform: bytes
    content: bytes
    at: int


class Copied:
    """A stream that a server copies. At each rollback a number is added to `reused`: sequences up to it may return.

    Each time it is copied as another source, so that the transform in the header has another notation: one more zero
    in front of the number of partitions. `highest` is the last message of it that was delivered, and `highest_at` when
    that was copied, in nanoseconds since 1970.
    """

    __slots__ = ("highest", "highest_at", "reused", "stream")

    def __init__(self, stream: bytes, reused: Sequence[int] = (), highest: int = 0, highest_at: int = 0) -> None:
        self.stream: bytes = stream
        self.reused: Sequence[int] = reused
        self.highest: int = highest
        self.highest_at: int = highest_at

    def uses_again(self, found: Original) -> int:
        """Return the last rollback after which the stream used the sequence of a message again; 0 if there is none.

        It is the same for a message whenever it is asked, since later rollbacks leave the notation as it is.
        """
        if not self.reused:
            return 0
        before = self.reused[: notation_of(found.transform)]
        return max((number for number, last in enumerate(before, 1) if found.sequence <= last), default=0)


def notation_of(destination: bytes) -> int:
    """Return how often a stream was rolled back before its transform got this notation."""
    match = _NOTATION.search(destination)
    return 0 if match is None else len(match[1])


def as_another(destination: str, rolled_back: int) -> str:
    """Return the destination of a transform in the notation after its stream was rolled back that often."""
    return destination.replace("partition(", "partition(" + "0" * rolled_back, 1)


def original(block: bytes) -> Original | None:
    """Return what a raw header block shows of the original of a copied message; None if it shows none."""
    at = block.rfind(_LINE)
    if at < 0:
        return None
    start = at + len(_LINE)
    words = block[start : block.find(b"\r\n", start)].strip().split(b" ")
    number = words[1] if len(words) > 1 else b""
    if not (number.isdigit() and len(number) <= _DIGITS and 0 < int(number) <= LAST_SEQUENCE):
        return None
    transform = words[3] if len(words) > 3 else b""
    return Original(words[0], int(number), transform, b" ".join(words[4:]), at)


def copied_from(block: bytes) -> int:
    """Return the sequence in its source of a message that was copied; 0 if its headers do not contain it."""
    found = original(block)
    return 0 if found is None else found.sequence


def original_in(raw: RawMessage, copied: Copied) -> Original | None:
    """Return the original of a message in a copy of a stream; None if it is not one of that stream."""
    found = original(header_block(raw))
    return found if found is not None and found.stream == copied.stream else None


def first_id(raw: RawMessage, found: Original, copied: Copied) -> bytes:
    """Return the first part of the ids of all copies of a message, given its original.

    The stream that has it may lose it, and the server then copies it again, as another message with another time. So
    the id is made of the original: its stream, its sequence, and its content in place of its time, which the server
    does not copy. The content distinguishes it from a message that the stream of the original stored under that
    sequence before it lost that one; after a rollback that was noticed, so does the count of those.
    """
    known = crc32(header_block(raw)[: found.at], crc32(found.content, copied.uses_again(found)))
    return b"%b:%d:c%08x" % (found.stream, found.sequence, crc32(payload(raw), known))
