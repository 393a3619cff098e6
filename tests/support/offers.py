"""Offers of frames to an outbox as JetStream publishes, and the number that the next publish gets."""

from __future__ import annotations

from typing import Any

from router_trio.outbox.outbox import Outbox
from router_trio.protocol import framing

INBOX = b"_INBOX.a"


def offer_with_ack(outbox: Outbox, frame: bytes, inbox: bytes = INBOX, **options: Any) -> str:
    """Offer the publish in this frame. Return its status."""
    raw = framing.published(frame)
    block, body = framing.header_block(raw), framing.payload(raw)
    status, _ = outbox.offer_with_ack(raw[0], body, block, inbox, **options)
    return status


def next_order(outbox: Outbox) -> int:
    """Return the number that the next publish gets, unless it is refused."""
    return outbox._order + 1
