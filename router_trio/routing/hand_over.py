"""Messages that a route which keeps none hands over to its successor.

Not in a module that may be compiled: plain core routes do not wait for the imports of the annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router_trio.protocol.framing import RawMessage


class Batch(NamedTuple):
    """Messages that were received together, and when."""

    received_at: float
    messages: list[RawMessage]


Batches = list[Batch]
"""Batches that a route hands over, the oldest first."""
