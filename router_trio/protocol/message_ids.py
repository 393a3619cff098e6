"""`Nats-Msg-Id`, by which a stream knows a publish that it has already: read and written here alone."""

from __future__ import annotations

from router_trio.protocol import headers

NAME = "Nats-Msg-Id"
HEADER = b"Nats-Msg-Id"

FRAME = b"H%b%b.%d %d %d\r\nNATS/1.0\r\nNats-Msg-Id: %b%b\r\n\r\n%b"
"""A publish whose one header is its id: prefix, two parts of the reply subject, size of the header block, size of
all, two parts of the id, the payload with its end."""

ADDED = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")
"""The bytes of that header block without the id."""


def find(block: bytes) -> bytes:
    """Return the id in a raw header block, `b""` for none."""
    return headers.find(block, HEADER) or b""


def replace(block: bytes, message_id: bytes) -> bytes:
    """Return the block with this id, and no other."""
    return headers.replace(block, HEADER, message_id)


def remove(block: bytes) -> bytes:
    """Return the block without an id."""
    return headers.without(block, HEADER + b":")
