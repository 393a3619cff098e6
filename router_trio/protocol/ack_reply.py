"""The reply subject of a delivery from a JetStream consumer, where it is acked: read and written here alone.

`$JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING`, where the number is the consumer's own; a newer form
has domain and account before the stream, and one token more at the end (nats-architecture-and-design, ADR-15).
"""

from __future__ import annotations

import re

STREAM, DELIVERIES, SEQUENCE, NUMBER, TIME = 2, 4, 5, 6, 7
"""Places of the tokens that `tokens` returns."""

BEGINNING = "$JS.ACK."
"""A server takes no publish of a client with a reply subject that begins so."""

NUMBERS = 5
"""How many numbers end the older form."""

_LONGER = 11
"""The fewest tokens of the newer form."""


def tokens(reply: bytes) -> list[bytes]:
    """Return the tokens of a reply subject, as those of the older form. It may be anybody's: they may be too few."""
    parts = reply.split(b".")
    if len(parts) >= _LONGER:
        del parts[2:4]
    return parts


def prefix(stream: bytes, consumer: bytes) -> bytes:
    """Return what those of a consumer begin with, in the older form."""
    return b"$JS.ACK.%b.%b." % (stream, consumer)


def pattern(stream: bytes, consumer: bytes) -> re.Pattern[bytes]:
    """Return a pattern that matches those of a consumer, in either form, and nothing else."""
    domain = rb"(\.[^.]{1,255}\.[^.]{1,255})?"
    named = re.escape(b".%b.%b" % (stream, consumer))
    return re.compile(rb"\$JS\.ACK" + domain + named + rb"(\.[0-9]*){5}(\.[^.]{1,255})?")


def subscriptions(stream: str, consumer: str) -> tuple[str, str]:
    """Return the subjects of all acks of a consumer, in both forms."""
    return f"$JS.ACK.{stream}.{consumer}.>", f"$JS.ACK.*.*.{stream}.{consumer}.>"


def subject(
    stream: bytes, consumer: bytes, *, sequence: int, number: int, deliveries: int = 1, time: int = 0, pending: int = 0
) -> bytes:
    """Return the subject that acks a delivery."""
    return b"$JS.ACK.%b.%b.%d.%d.%d.%d.%d" % (stream, consumer, deliveries, sequence, number, time, pending)
