"""`Nats-Msg-Id`, by which a stream detects duplicates. Only this module parses and builds it."""

from __future__ import annotations

from router_trio.protocol import headers

NAME = "Nats-Msg-Id"
HEADER = b"Nats-Msg-Id"

FRAME = b"H%b%b.%d %d %d\r\nNATS/1.0\r\nNats-Msg-Id: %b%b\r\n\r\n%b"
"""A publish whose only header is its id: prefix, two parts of the reply subject, size of the header block, total size,
two parts of the id, the payload with CRLF."""

ADDED = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")
"""The size of the header block of `FRAME` without the id, in bytes."""


def find(block: bytes) -> bytes:
    """Return the id in a raw header block, `b""` if there is none."""
    return headers.find(block, HEADER) or b""


def replace(block: bytes, message_id: bytes) -> bytes:
    """Return the block with its id replaced, or added."""
    return headers.replace(block, HEADER, message_id)


def remove(block: bytes) -> bytes:
    """Return the block without its id."""
    return headers.without(block, HEADER + b":")
