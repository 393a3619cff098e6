"""The words that everyone uses: a message, and the fate of one that was accepted.

Both are immutable, and named tuples because those are the cheapest of such objects: a message is made for each call of
a handler, a fate for each PubAck. The data plane itself moves raw frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from router_trio.headers import EMPTY, Headers


class Message(NamedTuple):
    """A message as a handler receives and returns it.

    `stream`, `sequence`, `deliveries` (1 for the first) and `timestamp` (Unix seconds, when the stream stored it) are
    set for messages from a JetStream stream. `connection` is the name of the connection it came from.
    """

    subject: str
    payload: bytes = b""
    headers: Headers = EMPTY
    reply: str | None = None
    connection: str | None = None
    stream: str | None = None
    sequence: int | None = None
    deliveries: int = 1
    timestamp: float | None = None

    def replace(self, **changes: Any) -> Message:
        """A copy with some fields changed; `headers` may be any mapping. A changed `subject` wins over the route's.

        Raises `TypeError` for an unknown field.
        """
        if "headers" in changes:
            changes["headers"] = Headers(changes["headers"])
        try:
            return self._replace(**changes)
        except ValueError as error:
            raise TypeError(f"a message has no such field: {error}; it has {', '.join(self._fields)}") from None


class Fate(NamedTuple):
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
