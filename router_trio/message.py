"""The words that everyone uses: a message, and the fate of one that was accepted.

Both are immutable, and named tuples because those are the cheapest of such objects: a message is made for each call of
a handler, a fate for each PubAck. The data plane itself moves raw frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from router_trio.headers import EMPTY, Headers

_AS_IT_IS: Any = object()


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

    def replace(
        self,
        *,
        subject: str = _AS_IT_IS,
        payload: bytes = _AS_IT_IS,
        headers: Mapping[str, str | list[str]] | Iterable[tuple[str, str]] = _AS_IT_IS,
        reply: str | None = _AS_IT_IS,
        connection: str | None = _AS_IT_IS,
        stream: str | None = _AS_IT_IS,
        sequence: int | None = _AS_IT_IS,
        deliveries: int = _AS_IT_IS,
        timestamp: float | None = _AS_IT_IS,
    ) -> Message:
        """A copy with some fields changed. A changed `subject` wins over the route's; `headers` may be any mapping."""
        # Written out, and past the checks of Message(): a handler calls it for each message.
        was_subject, was_payload, was_headers, was_reply, was_connection, was_stream, was_sequence, times, at = self
        return tuple.__new__(
            Message,
            (
                was_subject if subject is _AS_IT_IS else subject,
                was_payload if payload is _AS_IT_IS else payload,
                was_headers if headers is _AS_IT_IS else Headers(headers),
                was_reply if reply is _AS_IT_IS else reply,
                was_connection if connection is _AS_IT_IS else connection,
                was_stream if stream is _AS_IT_IS else stream,
                was_sequence if sequence is _AS_IT_IS else sequence,
                times if deliveries is _AS_IT_IS else deliveries,
                at if timestamp is _AS_IT_IS else timestamp,
            ),
        )


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

PubAck = tuple[int, str, int, bool]
"""The number of a JetStream publish, the stream that stored it, its sequence there, whether it was there before."""


def stored(puback: PubAck) -> Fate:
    """The fate of that publish."""
    # Past Fate(), which takes longer: this is done for each PubAck.
    return tuple.__new__(Fate, ("acked", None, *puback[1:]))
