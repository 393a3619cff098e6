"""The reply subject of a JetStream delivery, to which its ack is published. Only this module parses and builds it.

`$JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING`, where NUMBER is the consumer sequence and PENDING the
number of messages that the consumer has not delivered yet. A newer form has domain and account before the stream, and
another token at the end (nats-architecture-and-design, ADR-15).
"""

from __future__ import annotations

import re

STREAM, DELIVERIES, SEQUENCE, NUMBER, TIME, PENDING = 2, 4, 5, 6, 7, 8
"""Indexes into the list that `tokens` returns."""

BEGINNING = "$JS.ACK."
"""The start of such a reply subject. A server refuses a client's publish whose reply subject starts with it."""

NUMBERS = 5
"""The number of numeric tokens at the end of the older form."""

_LONGER = 11
"""The minimum number of tokens of the newer form."""


def tokens(reply: bytes) -> list[bytes]:
    """Return the tokens of a reply subject in the older form. There may be too few: any client can forge a subject."""
    parts = reply.split(b".")
    if len(parts) >= _LONGER:
        del parts[2:4]
    return parts


def prefix(stream: bytes, consumer: bytes) -> bytes:
    """Return the start of the reply subjects of a consumer, in the older form."""
    return b"$JS.ACK.%b.%b." % (stream, consumer)


def pattern(stream: bytes, consumer: bytes) -> re.Pattern[bytes]:
    """Return a regular expression that matches exactly the reply subjects of a consumer, in either form."""
    domain = rb"(\.[^.]{1,255}\.[^.]{1,255})?"
    named = re.escape(b".%b.%b" % (stream, consumer))
    return re.compile(rb"\$JS\.ACK" + domain + named + rb"(\.[0-9]*){5}(\.[^.]{1,255})?")


def subscriptions(stream: str, consumer: str) -> tuple[str, str]:
    """Return the two patterns that match all acks of a consumer, one for each form."""
    return f"$JS.ACK.{stream}.{consumer}.>", f"$JS.ACK.*.*.{stream}.{consumer}.>"


def subject(
    stream: bytes, consumer: bytes, *, sequence: int, number: int, deliveries: int = 1, time: int = 0, pending: int = 0
) -> bytes:
    """Return the reply subject of a delivery, in the older form."""
    return b"$JS.ACK.%b.%b.%d.%d.%d.%d.%d" % (stream, consumer, deliveries, sequence, number, time, pending)
