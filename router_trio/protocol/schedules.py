"""Message schedules: messages that a stream stores now, and publishes itself later (ADR-51, nats-server 2.12).

A schedule is a message with the headers below. At its time the stream stores its payload and its other headers under
the target subject, without the schedule's `Nats-Msg-Id`, and deletes the schedule. Core subscribers do not receive it.
A subject has one schedule: a further one replaces it. Pure and synchronous.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from hashlib import blake2b

from router_trio.protocol import headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders

SCHEDULE = b"Nats-Schedule"
"""The time: `@at` and an RFC 3339 timestamp. Servers also know repeated times, which are not used here."""

TARGET = b"Nats-Schedule-Target"
"""The subject of the message that is published at that time."""

TTL = b"Nats-Schedule-TTL"
"""The time to live of that message, and not of its schedule."""

ROLLUP = b"Nats-Schedule-Rollup"
"""As `Nats-Rollup`, of that message."""

SCHEDULER = b"Nats-Scheduler"
"""In a published message: the subject of its schedule."""

COPY_ID = b"Router-Message-Id"
"""The `Nats-Msg-Id` that the schedule of a copy was stored with, which the published message no longer has."""

_OF_PUBLISHED = ((b"Nats-TTL", TTL), (b"Nats-Rollup", ROLLUP))
"""Headers that would affect a schedule instead of the message that it publishes, and the names for that message."""

_UNWANTED = headers.lines_of([*(name.decode() for name in (SCHEDULE, TARGET, COPY_ID)), "Nats-Schedule-Source"])

_AT = re.compile(rb"@at ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")

_TOKEN_BYTES = 16

_SECOND = 1_000_000_000
_MILLISECOND = 1_000_000


def token(identity: bytes) -> str:
    """Return the last token of a schedule's subject, made of the id of what is scheduled.

    So what is scheduled again replaces its schedule, and is not published twice.
    """
    digest = blake2b(identity, digest_size=_TOKEN_BYTES).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def schedule_value(at_ns: int) -> bytes:
    """Return the value of `SCHEDULE` for a time in nanoseconds since 1970, rounded up to a millisecond: never early."""
    milliseconds = -(-at_ns // _MILLISECOND)
    seconds, rest = divmod(milliseconds, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"@at {text.rjust(19, '0')}.{rest:03}Z".encode()


def due_ns(value: bytes) -> int | None:
    """Return the time of a schedule in nanoseconds since 1970; None if it is repeated or not valid."""
    found = _AT.fullmatch(value)
    if found is None:
        return None
    try:
        seconds = int(datetime.fromisoformat(f"{found[1].decode()}+00:00").timestamp())
    except ValueError:
        return None
    return seconds * _SECOND + int((found[2] or b"0").ljust(9, b"0"))


def wanted(block: bytes) -> tuple[bytes, bytes]:
    """Return the target of a schedule and the id of its copy, each `b""` if the block is not that of a schedule.

    A server takes a time that is not valid, such as an empty one, for no schedule, and looks at no target then.
    """
    if due_ns(headers.find(block, SCHEDULE) or b"") is None:
        return b"", b""
    return headers.find(block, TARGET) or b"", headers.find(block, COPY_ID) or b""


def is_stored_as(subject: str, prefix: str, copy_id: bytes) -> bool:
    """Return True if the schedule of a copy with this id is stored under `subject`, below `prefix`."""
    return copy_id != b"" and subject == f"{prefix}.{token(copy_id)}"


def published(block: bytes) -> bytes:
    """Return the header block of a schedule of a copy without its time, its target and the id of the copy."""
    return block if _UNWANTED.search(block) is None else headers.removed(block, _UNWANTED)


def scheduled(block: bytes, at_ns: int, target: bytes) -> bytes:
    """Return the header block of the schedule of a message with this block, which has a `Nats-Msg-Id`.

    A time to live and a roll-up become those of the published message: a schedule that expires would never publish it.
    """
    own_id = message_ids.find(block)
    block = published(block)
    for name, of_published in _OF_PUBLISHED:
        if (value := headers.find(block, name)) is not None:
            block = headers.replace(headers.without(block, name + b":"), of_published, value)
    for name, value in ((SCHEDULE, schedule_value(at_ns)), (TARGET, target), (COPY_ID, own_id)):
        block = headers.replace(block, name, value)
    return block


_ALL_CONTROL = ControlHeaders()
_ROLLS_UP = b"sub"
"""The only value of `ROLLUP` that a server takes."""


def fired(block: bytes, stream: str) -> bytes:
    """Return the header block of the message that a server would publish for a schedule, for this stream alone.

    None of its control headers takes effect: a server would publish it within the stream, a client from outside.
    """
    kept = _ALL_CONTROL.removed(message_ids.remove(block))
    if (ttl := headers.find(block, TTL)) is not None:
        kept = headers.replace(kept, b"Nats-TTL", ttl)
    if headers.find(block, ROLLUP) == _ROLLS_UP:
        kept = headers.replace(kept, b"Nats-Rollup", _ROLLS_UP)
    return headers.replace(kept, b"Nats-Expected-Stream", stream.encode("utf-8", "surrogateescape"))


def purging(block: bytes, subject: str, sequence: int) -> bytes:
    """Return a header block by which the stream also deletes a schedule, unless that is not there any more.

    `sequence` is that of the schedule, `subject` its subject.
    """
    steering = (
        (SCHEDULER, subject),
        (b"Nats-Schedule-Next", "purge"),
        (b"Nats-Expected-Last-Subject-Sequence", str(sequence)),
        (b"Nats-Expected-Last-Subject-Sequence-Subject", subject),
    )
    for name, value in steering:
        block = headers.replace(block, name, value.encode("utf-8", "surrogateescape"))
    return block
