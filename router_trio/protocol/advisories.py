"""Advisories of JetStream: messages in which a server reports what happened to a stream or a durable. Pure.

An advisory is a core message: it is sent at most once, and only to subscribers. Any client that may publish to its
subject can forge one. So it proves nothing: it is a reason to look something up, and a text to quote beside trouble
that lookups show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from router_trio.errors.quotes import excerpt
from router_trio.protocol import framing
from router_trio.protocol.bounded_json import AnswerError, Object, read

PREFIX: Final = "$JS.EVENT.ADVISORY"

ANY: Final = "*"
"""Stands for all durables of a stream."""

QUORUM_LOST: Final = "quorum_lost"
LEADER_ELECTED: Final = "leader_elected"
CREATED: Final = "created"
DELETED: Final = "deleted"
UPDATED: Final = "updated"
PAUSE: Final = "pause"
MAX_DELIVERIES: Final = "max_deliveries"

OF_STREAMS: Final = (QUORUM_LOST, LEADER_ELECTED, CREATED, DELETED, UPDATED)
"""The kinds of advisories about streams that are subscribed to."""

OF_DURABLES: Final = (QUORUM_LOST, LEADER_ELECTED, DELETED, PAUSE, MAX_DELIVERIES)
"""The kinds about durables that are subscribed to. Servers also send others, such as one for each nak."""

MAX_ADVISORY: Final = 16 * 1024
"""Maximum size of an advisory in bytes. Larger ones are ignored."""

MAX_PEERS: Final = 100
"""Maximum number of replicas in an advisory; servers list at most four. One with more is ignored."""

SHOWN_REPLICAS: Final = 4
"""Maximum number of replicas named in a text."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """An advisory about a stream or, unless `durable` is empty, about one of its durables. `text` describes the event.

    `sequence` and `deliveries` are those of the message that reached the limit of deliveries; 0 for other kinds.
    """

    kind: str
    stream: str
    durable: str
    text: str
    sequence: int = 0
    deliveries: int = 0


def subjects_of(stream: str, durable: str = "") -> Iterator[str]:
    """Yield the subjects of the advisories about a stream or, with `durable`, only about that durable or `ANY`."""
    for kind in OF_DURABLES if durable else OF_STREAMS:
        yield subject_of(kind, stream, durable)


def subject_of(kind: str, stream: str, durable: str = "") -> str:
    """Return the subject of one kind of advisory."""
    what = f"CONSUMER.{kind.upper()}.{stream}.{durable}" if durable else f"STREAM.{kind.upper()}.{stream}"
    return f"{PREFIX}.{what}"


def read_advisory(raw: framing.RawMessage) -> Advisory | None:
    """Return the advisory in a message; None if it is malformed, or contradicts its subject."""
    tokens = framing.text(raw[0]).removeprefix(f"{PREFIX}.").split(".")
    match tokens:
        case ["STREAM", kind, stream]:
            durable, kinds = "", OF_STREAMS
        case ["CONSUMER", kind, stream, durable]:
            kinds = OF_DURABLES
        case _:
            return None
    kind = kind.lower()
    if kind not in kinds:
        return None
    try:
        fields = read(framing.payload(raw), MAX_ADVISORY)
        if fields.text("stream") != stream or (durable and fields.text("consumer") != durable):
            return None
        return _advisory(kind, stream, durable, fields)
    except AnswerError:
        return None


def _advisory(kind: str, stream: str, durable: str, fields: Object) -> Advisory:
    what = f"durable {excerpt(durable)!r} of stream {excerpt(stream)!r}" if durable else f"stream {excerpt(stream)!r}"
    sequence = deliveries = 0
    if kind == QUORUM_LOST:
        text = f"{what} has lost its quorum{_offline(fields)}"
    elif kind == LEADER_ELECTED:
        text = f"the leader of {what} is now {excerpt(fields.text('leader', '')) or 'unknown'}"
    elif kind == PAUSE:
        paused = fields.flag("paused")
        text = f"{what} was paused until {fields.time('pause_until', '?')}" if paused else f"{what} was resumed"
    elif kind == MAX_DELIVERIES:
        sequence = fields.number("stream_seq", low=1, high=framing.LAST_SEQUENCE)
        deliveries = fields.number("deliveries", low=1)
        text = f"message {sequence} of stream {excerpt(stream)!r} reached the limit of deliveries after {deliveries}"
    else:
        text = f"{what} was {kind}"
    return Advisory(kind, stream, durable, text, sequence, deliveries)


def _offline(fields: Object) -> str:
    """Return which replicas are offline or behind, as the end of a text; `""` if the server reports none.

    A server that has just lost contact with its replicas lists them as not current, and itself as current.
    """
    peers = fields.objects("replicas", most=MAX_PEERS)
    missing = [excerpt(one.text("name", "?")) for one in peers if one.flag("offline") or not one.flag("current")]
    if not missing:
        return ""
    more = ", ..." if len(missing) > SHOWN_REPLICAS else ""
    count = "a replica is" if len(missing) == 1 else f"{len(missing)} replicas are"
    return f": {count} offline or behind ({', '.join(missing[:SHOWN_REPLICAS])}{more})"
