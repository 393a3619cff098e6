"""Make the messages that are passed to handlers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router_trio.message import Message
from router_trio.protocol import framing, headers


def as_messages(batch: Sequence[framing.RawMessage], connection: str) -> list[Message]:
    """Return a `Message` for each raw message of a core subscription."""
    text, decode, empty, new = framing.text, headers.decode, headers.EMPTY, tuple.__new__
    # Without calling Message(), which takes longer, since this is done for each message.
    return [
        new(
            Message,
            (
                text(subject),
                tail[header_size - 2 - size : -2],
                decode(tail[-2 - size : header_size - 2 - size]) if header_size else empty,
                text(reply) if reply else None,
                connection,
                None,
                None,
                1,
                None,
            ),
        )
        for subject, reply, header_size, size, tail in batch
    ]


def as_message(raw: framing.RawMessage, connection: str, **origin: Any) -> Message:
    """Return a `Message` for a handler. `origin` are the fields of one from a stream, whose reply is for the ack."""
    (message,) = as_messages((raw,), connection)
    return message.replace(reply=None, **origin) if origin else message
