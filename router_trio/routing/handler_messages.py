"""The messages that handlers are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router_trio.message import Message
from router_trio.protocol import framing, headers


def as_messages(batch: Sequence[framing.RawMessage], connection: str) -> list[Message]:
    """`Message`s for a handler, of what came from a core subscription."""
    text, decode, empty, new = framing.text, headers.decode, headers.EMPTY, tuple.__new__
    # Past Message(), which takes longer: this is done for each message.
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
    """A `Message` for a handler. `origin` are the fields that tell of a stream, where the reply is for the ack."""
    (message,) = as_messages((raw,), connection)
    return message.replace(reply=None, **origin) if origin else message
