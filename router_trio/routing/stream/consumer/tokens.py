"""Remove the tokens of partitions from subjects: nothing behind the inbox of a partition's consumer knows of them."""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.protocol.framing import RawMessage


def token_of(partition: int) -> bytes:
    """Return the start of the subjects of a partition."""
    return b"%d." % partition


def without_tokens(batch: Sequence[RawMessage], token: bytes) -> list[RawMessage]:
    """Return the messages of one partition with the subjects that they have in the source.

    Statuses, which have no reply subject, and messages of other clients to the inbox are returned as they are:
    `Deliveries` distinguishes them.
    """
    length = len(token)
    return [
        (raw[0][length:], raw[1], raw[2], raw[3], raw[4]) if raw[1] and raw[0].startswith(token) else raw
        for raw in batch
    ]
