"""The types that all packages share: a message, and the fate of an accepted message.

Both are immutable, and named tuples because these are the cheapest of such objects: a message is created for each call
of a handler, a fate for each PubAck. The data plane itself moves raw frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, NamedTuple, TypedDict, Unpack

from router_trio.protocol.headers import EMPTY, Headers

_AS_IT_IS: Any = object()
_new = tuple.__new__


class Changes(TypedDict, total=False):
    """The keyword arguments of `Message.replace` besides the payload."""

    subject: str
    headers: Mapping[str, str | list[str]] | Iterable[tuple[str, str]]
    reply: str | None
    connection: str | None
    stream: str | None
    sequence: int | None
    deliveries: int
    timestamp: float | None


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

    def replace(self, *, payload: bytes = _AS_IT_IS, **changes: Unpack[Changes]) -> Message:
        """Return a copy with some fields changed. `subject` overrides the route's; `headers` may be any mapping."""
        if changes:
            if unknown := changes.keys() - set(self._fields):
                raise TypeError(f"a message has no {', '.join(sorted(unknown))}; it has {', '.join(self._fields)}")
            if "headers" in changes:
                changes["headers"] = Headers(changes["headers"])
            payload = self.payload if payload is _AS_IT_IS else payload
            return self._replace(payload=payload, **changes)  # type: ignore[arg-type]  # they are Headers now
        # Without the checks of Message(): nearly every handler calls this, for each message. Indexes are fastest.
        if payload is _AS_IT_IS:
            payload = self[1]
        return _new(Message, (self[0], payload, self[2], self[3], self[4], self[5], self[6], self[7], self[8]))


class Fate(NamedTuple):
    """The final fate of an accepted message. Each message has exactly one.

    `name` is one of `fenced` (the server received it, in order), `acked` (a stream stored it: `stream`, `sequence`,
    `duplicate`), `dropped` (`reason`: queue_full, expired, shutdown, worker_lost), `failed` (with its `reason`),
    `failed_open`.
    """

    name: str
    reason: str | None = None
    stream: str | None = None
    sequence: int | None = None
    duplicate: bool = False

    @property
    def detail(self) -> str:
        """The words of the server or the router about a failure, `""` if none. Fates are compared without it."""
        return ""

    @property
    def delivered(self) -> bool:
        """Return True if a server confirmed it: `fenced` or `acked`."""
        return self.name in ("fenced", "acked")


class _FateWithDetail(Fate):
    """A fate with a text.

    The text is not a field: fates that are counted as one kind would differ by the words of servers. And a field would
    take memory in every fate: there are as many as messages, and few fail.
    """

    text: str = ""

    @property
    def detail(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Fate(name={self.name!r}, reason={self.reason!r}, detail={self.text!r})"


def fate_with_detail(name: str, reason: str, detail: str) -> Fate:
    """Return the fate `name` of a message that was not delivered, with its reason and detail."""
    fate = _FateWithDetail(name, reason)
    fate.text = detail
    return fate


FENCED = Fate("fenced")
FATES = ("fenced", "acked", "dropped", "failed", "failed_open")

PubAck = tuple[int, Fate]
"""The number of a JetStream publish, and its fate: `acked`."""


def stored(stream: str, sequence: int, duplicate: bool = False) -> Fate:
    """Return the fate of a publish that a stream has stored; `duplicate` if it was stored before."""
    # Without Fate(), which takes longer: this is called for each PubAck.
    return tuple.__new__(Fate, ("acked", None, stream, sequence, duplicate))


def stored_each(stream: str, sequences: Iterable[int]) -> list[Fate]:
    """Return the fates of publishes whose PubAcks were read together, as `stored` does for each."""
    fields = zip(repeat("acked"), repeat(None), repeat(stream), sequences, repeat(False), strict=False)
    return [*map(tuple.__new__, repeat(Fate), fields)]
