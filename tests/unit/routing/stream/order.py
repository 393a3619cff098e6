"""Messages for tests of order."""

from __future__ import annotations

from dataclasses import dataclass, field

LATE = 10.0


@dataclass(eq=False)
class Message:
    """A message, as `subject_order.InTurn`."""

    sequence: int
    order_key: bytes = b"a"
    ack_subject: bytes = b""
    refusals: int = field(default=0)
