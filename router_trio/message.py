"""The words that everyone uses: a message, and the fate of one that was accepted.

Both are frozen. A `Message` is what handlers see; the data plane moves raw frames and builds one only when a handler
or a span needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from router_trio.headers import EMPTY, Headers


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a handler receives and returns it.

    `stream`, `sequence`, `deliveries` (1 for the first) and `timestamp` (Unix seconds, when the stream stored it) are
    set for messages from a JetStream stream. `connection` is the name of the connection it came from.
    """

    subject: str
    payload: bytes = b""
    headers: Headers = field(default=EMPTY)
    reply: str | None = None
    connection: str | None = None
    stream: str | None = None
    sequence: int | None = None
    deliveries: int = 1
    timestamp: float | None = None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; `headers` may be any mapping. A changed `subject` wins over the route's.

        Raises `TypeError` for an unknown field.
        """
        if "headers" in changes:
            changes["headers"] = Headers(changes["headers"])
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Fate:
    """What finally became of an accepted message. Exactly one a message.

    `name` is one of `fenced` (the server received it, in order), `acked` (a stream stored it: `stream`, `sequence`,
    `duplicate`), `dropped` (`reason`: queue_full, expired, shutdown), `failed` (with its `reason`), `failed_open`.
    """

    name: str
    reason: str | None = None
    stream: str | None = None
    sequence: int | None = None
    duplicate: bool = False

    @property
    def delivered(self) -> bool:
        """Whether a server confirmed it: `fenced` or `acked`."""
        return self.name in ("fenced", "acked")


FENCED = Fate("fenced")
FATES = ("fenced", "acked", "dropped", "failed", "failed_open")
